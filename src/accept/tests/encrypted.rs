//! Listeners with TLS: certificates, protocols, deadlines, tickets.

use super::*;

struct Names {
    folder: tempfile::TempDir,
    config: tls::Config,
}

impl Names {
    fn new(names: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificate = names.iter().map(|name| certificate::tests::write(folder.path(), name, &[name])).collect();
        Names { folder, config: tls::Config { certificate, strict_sni: true, ..tls::Config::default() } }
    }

    fn gate(&self) -> Gate {
        Gate { tls: Some(Arc::new(Terminator::load(&self.config).unwrap())), ..gate() }
    }

    /// A client that trusts exactly the certificates that were written for these names.
    fn client(&self, name: &str, alpn: &[&str]) -> TlsConnector {
        self.client_with(name, alpn, |builder| builder.with_no_client_auth())
    }

    fn client_with(
        &self,
        name: &str,
        alpn: &[&str],
        auth: impl Fn(rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>) -> ClientConfig,
    ) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        for certificate in certificate::certificates(&self.folder.path().join(format!("{name}.pem"))).unwrap() {
            roots.add(certificate).unwrap();
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let mut config = auth(builder);
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }
}

async fn shake(site: &Site, client: &TlsConnector, name: &str) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    soon(client.connect(name, site.connect().await)).await
}

#[tokio::test]
async fn the_host_of_the_handshake_chooses_the_certificate() {
    let names = Names::new(&["a.test", "b.test"]);
    let site = start(names.gate(), HTTPS);
    for name in ["a.test", "b.test"] {
        let mut tls = shake(&site, &names.client(name, &["h2", "http/1.1"]), name).await.unwrap();
        assert_eq!(line(&mut tls).await, format!("127.0.0.1 127.0.0.1 {} TLSv1.3/h2/{name} false\n", site.address.port()));
    }
    assert!(shake(&site, &names.client("a.test", &[]), "b.test").await.is_err(), "the other certificate");
    assert!(shake(&site, &names.client("a.test", &[]), "c.test").await.is_err());
    site.until(|gate| gate.counters.failed(Failure::UnknownName) == 1).await;
    assert_eq!(site.gate.counters.handshakes(), 2);
}

#[tokio::test]
async fn the_protocols_of_the_listener_are_offered() {
    let names = Names::new(&["a.test"]);
    let site = start(names.gate(), r#"{"address":"127.0.0.1:0","protocol":"https","http2":false}"#);
    let mut tls = shake(&site, &names.client("a.test", &["h2", "http/1.1"]), "a.test").await.unwrap();
    assert!(line(&mut tls).await.contains("TLSv1.3/http/1.1/a.test"));
    assert!(shake(&site, &names.client("a.test", &["h2"]), "a.test").await.is_err());
    site.until(|gate| gate.counters.failed(Failure::NothingInCommon) == 1).await;
}

#[tokio::test]
async fn a_silent_or_dripping_tls_client_ends_at_the_deadline() {
    let site = start(Names::new(&["a.test"]).gate(), HTTPS);
    let begun = Instant::now();
    let (mut silent, mut dripping) = (site.connect().await, site.connect().await);
    let (mut read, mut write) = dripping.split();
    let drip = async {
        for byte in [0x16, 3, 1, 2, 0].into_iter().chain(std::iter::repeat(1)) {
            if write.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = drip => {}
        // A byte that comes after the end is answered by a reset, so either way of ending is right here.
        _ = soon(read.read_u8()) => {}
    }
    assert!(ends(&mut silent).await);
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(350) && took < Duration::from_secs(2), "{took:?}");
    site.until(|gate| gate.counters.failed(Failure::Timeout) == 2 && gate.limits.open() == 0).await;
}

#[tokio::test]
async fn http_on_a_tls_port_reads_why_there_is_no_page() {
    let site = start(Names::new(&["a.test"]).gate(), HTTPS);
    let mut plain = site.connect().await;
    plain.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon(plain.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("This port speaks TLS. Use https:// in the address.\n"));
    let mut junk = site.connect().await;
    junk.write_all(b"\x00\x01").await.unwrap();
    assert!(ends(&mut junk).await);
    let mut broken = site.connect().await;
    broken.write_all(b"\x16\x03\x01\x00\x04\xff\xff\xff\xff").await.unwrap();
    soon(broken.read_to_end(&mut Vec::new())).await.unwrap();
    let counters = &site.gate.counters;
    let counts = [Failure::PlainHttp, Failure::NotTls, Failure::Malformed].map(|cause| counters.failed(cause));
    assert_eq!(counts, [1, 1, 1]);
}

#[tokio::test]
async fn old_versions_are_refused_and_the_key_exchange_is_safe_from_later_decryption() {
    let mut names = Names::new(&["a.test"]);
    names.config.min_version = tls::Version::Tls13;
    let site = start(names.gate(), HTTPS);
    let mut roots = RootCertStore::empty();
    roots.add(certificate::certificates(&names.config.certificate[0].cert_file).unwrap().remove(0)).unwrap();
    let provider = rustls::crypto::CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    for (version, is_served) in [(&rustls::version::TLS12, false), (&rustls::version::TLS13, true)] {
        let builder = ClientConfig::builder_with_provider(Arc::new(provider.clone())).with_protocol_versions(&[version]).unwrap();
        let client = TlsConnector::from(Arc::new(builder.with_root_certificates(roots.clone()).with_no_client_auth()));
        let shaken = shake(&site, &client, "a.test").await;
        assert_eq!(shaken.is_ok(), is_served);
        if let Ok(tls) = shaken {
            let group = tls.get_ref().1.negotiated_key_exchange_group().unwrap().name();
            assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        }
    }
    site.until(|gate| gate.counters.failed(Failure::NothingInCommon) == 1).await;
}

#[tokio::test]
async fn a_client_resumes_by_its_ticket_also_after_a_reload() {
    let names = Names::new(&["a.test"]);
    let site = start(names.gate(), HTTPS);
    let client = names.client("a.test", &[]);
    for expected in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed, rustls::HandshakeKind::Resumed] {
        let mut tls = shake(&site, &client, "a.test").await.unwrap();
        line(&mut tls).await;
        assert_eq!(tls.get_ref().1.handshake_kind(), Some(expected));
        site.gate.tls.as_ref().unwrap().reload().unwrap();
    }
}

#[tokio::test]
async fn the_rate_of_handshakes_is_limited_before_their_arithmetic() {
    let names = Names::new(&["a.test"]);
    let limits = Limits::new(limit::Config { tls_rate: "2/h".parse().unwrap(), ..Default::default() });
    let site = start(Gate { limits, ..names.gate() }, HTTPS);
    let client = names.client("a.test", &[]);
    let held = [shake(&site, &client, "a.test").await.unwrap(), shake(&site, &client, "a.test").await.unwrap()];
    assert!(shake(&site, &client, "a.test").await.is_err());
    assert_eq!(site.gate.counters.rejected(Rejected::TlsRate), 1);
    drop(held);
    site.until(|gate| gate.limits.open() == 0 && gate.limits.entries() == 0).await;
}

#[tokio::test]
async fn reloads_under_load_fail_no_handshake() {
    let names = Names::new(&["a.test"]);
    let site = start(names.gate(), HTTPS);
    let terminator = Arc::clone(site.gate.tls.as_ref().unwrap());
    let stop = std::sync::atomic::AtomicBool::new(false);
    let client = names.client("a.test", &["http/1.1"]);
    let reloads = async {
        for n in 0..200u32 {
            terminator.reload().unwrap();
            if n % 4 == 0 {
                tokio::task::yield_now().await;
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let handshakes = async {
        let mut done = 0;
        while done == 0 || !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let mut tls = shake(&site, &client, "a.test").await.unwrap();
            assert!(line(&mut tls).await.contains("a.test"));
            done += 1;
        }
        done
    };
    let ((), done) = tokio::join!(reloads, handshakes);
    assert!(done > 5, "{done}");
    assert_eq!(site.gate.counters.handshakes(), done);
}

/// An authority, a client of it, and a list that revokes the client with that serial number.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new(folder: &Path) -> Self {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(folder.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { issuer: rcgen::Issuer::new(params, key) }
    }

    fn client(&self, serial: u64) -> (rustls::pki_types::CertificateDer<'static>, rustls::pki_types::PrivateKeyDer<'static>) {
        let mut params = rcgen::CertificateParams::new(vec!["client.test".to_owned()]).unwrap();
        params.serial_number = Some(serial.into());
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    fn revoke(&self, serials: &[u64], file: &Path) {
        let revoked = serials.iter().map(|serial| rcgen::RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: rcgen::date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2024, 1, 1),
            next_update: rcgen::date_time_ymd(2100, 1, 1),
            crl_number: 1u64.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        std::fs::write(file, list.signed_by(&self.issuer).unwrap().pem().unwrap()).unwrap();
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_or_with_a_revoked_one_is_refused() {
    let mut names = Names::new(&["a.test"]);
    let folder = names.folder.path().to_owned();
    let authority = Authority::new(&folder);
    authority.revoke(&[666], &folder.join("crl.pem"));
    names.config.client_auth = tls::ClientAuth {
        mode: tls::ClientAuthMode::Require,
        ca_file: Some(folder.join("ca.pem")),
        crl_file: Some(folder.join("crl.pem")),
    };
    let site = start(names.gate(), HTTPS);
    let with = |serial: u64| {
        let (certificate, key) = authority.client(serial);
        names.client_with("a.test", &[], move |b| b.with_client_auth_cert(vec![certificate.clone()], key.clone_key()).unwrap())
    };
    // Under TLS 1.3 a client learns that it is refused by its first read.
    let is_served = async |client: &TlsConnector| match shake(&site, client, "a.test").await {
        Ok(mut tls) => line(&mut tls).await.contains("a.test"),
        Err(_) => false,
    };
    let good = with(1);
    assert!(is_served(&good).await);
    assert!(!is_served(&with(666)).await);
    assert!(!is_served(&names.client("a.test", &[])).await);
    assert_eq!(site.gate.counters.failed(Failure::ClientCertificate), 2);
    authority.revoke(&[666, 1], &folder.join("crl.pem"));
    site.gate.tls.as_ref().unwrap().reload().unwrap();
    assert!(!is_served(&good).await, "nor may a ticket from before the list open the door");
}
