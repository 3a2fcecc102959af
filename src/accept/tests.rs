use std::{path::Path, process::Command};

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    counters::{Failure, Rejected},
    listener::Inherited,
    *,
};
use crate::{
    overload::{self, Overload},
    units::Deadline,
};

/// A running listener, and what its gate counts.
struct Site {
    gate: Arc<Gate>,
    address: SocketAddr,
    closing: watch::Sender<bool>,
    served: tokio::task::JoinHandle<Result<(), Problem>>,
    _sweep: tokio::task::JoinHandle<()>,
}

fn gate() -> Gate {
    Gate {
        timeouts: ArcSwap::from_pointee(Timeouts { tls_handshake: Deadline::millis(400), ..Timeouts::default() }),
        limits: Limits::new(limit::Config::default()),
        trusted: ArcSwap::default(),
        sweep: Sweep::new(),
        counters: Counters::default(),
        overload: Overload::new(overload::Config::default()),
        tls: None,
        report: |_| (),
    }
}

/// Serves by telling who the client is, then echoing, until the client or its time is over.
async fn tell(gate: Arc<Gate>, mut stream: Stream, client: Client, permit: Permit) {
    let beat = gate.sweep.enrol(gate.sweep.now() + 60_000);
    let told = format!(
        "{} {} {} {}/{}/{} {}\n",
        client.ip,
        client.peer,
        client.local_port,
        client.tls,
        client.alpn,
        client.server_name.as_deref().unwrap_or("-"),
        client.trusted
    );
    stream.write_all(told.as_bytes()).await.unwrap();
    let echo = async {
        let mut buf = [0; 1024];
        while let Ok(n @ 1..) = stream.read(&mut buf).await {
            beat.advance(n as u64);
            stream.write_all(&buf[..n]).await.unwrap();
        }
    };
    let mut echo = pin!(echo);
    std::future::poll_fn(|cx| {
        beat.wake_by(cx.waker());
        if beat.is_over() { std::task::Poll::Ready(()) } else { echo.as_mut().poll(cx) }
    })
    .await;
    drop(permit);
}

fn bind(listener: &str) -> Bound {
    Bound::bind(&serde_json::from_str(listener).unwrap(), &mut Inherited::default()).unwrap()
}

fn start(gate: Gate, listener: &str) -> Site {
    let bound = bind(listener);
    let address = bound.local_addr().unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
    let gate = Arc::new(gate);
    let (closing, closed) = watch::channel(false);
    let handler = {
        let gate = Arc::clone(&gate);
        move |stream, client, permit| tell(Arc::clone(&gate), stream, client, permit)
    };
    let served = tokio::spawn(serve(bound, Arc::clone(&gate), handler, closed));
    let sweep = tokio::spawn(Arc::clone(&gate.sweep).run());
    Site { gate, address, closing, served, _sweep: sweep }
}

impl Site {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn until(&self, what: impl Fn(&Gate) -> bool) {
        let reached = async {
            while !what(&self.gate) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        soon(reached).await;
    }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work).await.expect("it takes too long")
}

async fn line(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    while text.last() != Some(&b'\n') {
        match soon(stream.read_u8()).await {
            Ok(byte) => text.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(text).unwrap()
}

/// The connection ends, and not by a reset.
async fn ends(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> bool {
    soon(stream.read(&mut [0; 64])).await.is_ok_and(|n| n == 0)
}

#[tokio::test]
async fn a_plain_connection_is_served_with_its_address() {
    let site = start(gate(), r#"{"address":"127.0.0.1:0","protocol":"http"}"#);
    let mut client = site.connect().await;
    assert_eq!(line(&mut client).await, format!("127.0.0.1 127.0.0.1 {} //- false\n", site.address.port()));
    client.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    soon(client.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, b"hello");
    drop(client);
    site.until(|gate| gate.limits.open() == 0 && gate.limits.entries() == 0).await;
    assert_eq!(site.gate.counters.accepted(), 1);
}

#[tokio::test]
async fn a_connection_over_the_limit_ends_without_a_reset_although_it_has_spoken() {
    let limits = Limits::new(limit::Config { connections_per_ip: 1.try_into().unwrap(), ..Default::default() });
    let site = start(Gate { limits, ..gate() }, r#"{"address":"127.0.0.1:0","protocol":"http"}"#);
    let mut first = site.connect().await;
    line(&mut first).await;
    let speak = async || {
        let mut socket = site.connect().await;
        socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        ends(&mut socket).await
    };
    assert!(speak().await);
    assert_eq!(site.gate.counters.rejected(Rejected::PerAddress), 1);
    drop(first);
    site.until(|gate| gate.limits.open() == 0).await;
    assert!(!line(&mut site.connect().await).await.is_empty());
}

#[tokio::test]
async fn at_the_limit_the_idle_one_goes_and_the_newcomer_is_served() {
    let limits = Limits::new(limit::Config { connections: 2.try_into().unwrap(), ..Default::default() });
    let site = start(Gate { limits, ..gate() }, r#"{"address":"127.0.0.1:0","protocol":"http"}"#);
    let (mut idle, mut busy) = (site.connect().await, site.connect().await);
    line(&mut idle).await;
    line(&mut busy).await;
    busy.write_all(b"x").await.unwrap();
    soon(busy.read_u8()).await.unwrap();
    // Only one may go: the other has made progress, and one place is needed.
    let mut newcomer = site.connect().await;
    assert!(!line(&mut newcomer).await.is_empty());
    assert!(ends(&mut idle).await);
    busy.write_all(b"y").await.unwrap();
    assert_eq!(soon(busy.read_u8()).await.unwrap(), b'y');
}

/// Connects from an address of its own: all of 127.0.0.0/8 is this machine.
async fn connect_from(source: [u8; 4], site: &Site) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    socket.connect(site.address).await.unwrap()
}

#[tokio::test]
async fn a_flood_from_one_network_is_held_at_its_share_and_another_client_is_served_at_once() {
    let connections_per_prefix = limit::Prefixes { v4_24: 32.try_into().unwrap(), ..Default::default() };
    let limits = Limits::new(limit::Config { connections_per_prefix, ..Default::default() });
    let site = start(Gate { limits, ..gate() }, r#"{"address":"127.0.0.1:0","protocol":"http"}"#);
    let mut flood = Vec::new();
    for n in 0..200 {
        flood.push(connect_from([127, 0, 1, n], &site).await);
    }
    site.until(|gate| gate.counters.rejected(Rejected::PerPrefix) == 168).await;
    let begun = Instant::now();
    let mut honest = connect_from([127, 0, 2, 1], &site).await;
    assert!(line(&mut honest).await.starts_with("127.0.2.1 "));
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!(site.gate.limits.open(), 33);
}

#[tokio::test]
async fn an_ipv4_client_of_a_dual_listener_has_its_ipv4_address() {
    let site = start(gate(), r#"{"address":":0","protocol":"http"}"#);
    let mut client = TcpStream::connect(("127.0.0.1", site.address.port())).await.unwrap();
    assert!(line(&mut client).await.starts_with("127.0.0.1 127.0.0.1 "));
}

const PROXIED: &str = r#"{"address":"127.0.0.1:0","protocol":"http","proxy_protocol":"any"}"#;

fn listed() -> Gate {
    Gate { trusted: ArcSwap::from_pointee(TrustedProxies::new(["loopback", "unix"]).unwrap()), ..gate() }
}

#[tokio::test]
async fn a_listed_peer_speaks_for_its_client_and_no_byte_behind_the_line_is_lost() {
    let site = start(listed(), PROXIED);
    for cut in [0, 1, 6, 20, 43, 44, 45, 47] {
        let mut balancer = site.connect().await;
        balancer.set_nodelay(true).unwrap();
        let (first, rest) = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\nrest".split_at(cut);
        balancer.write_all(first).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        balancer.write_all(rest).await.unwrap();
        assert_eq!(line(&mut balancer).await, "192.0.2.7 127.0.0.1 443 //- false\n", "cut at {cut}");
        let mut echo = [0; 4];
        soon(balancer.read_exact(&mut echo)).await.unwrap();
        assert_eq!(&echo, b"rest");
    }
    let mut balancer = site.connect().await;
    balancer.write_all(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x09\x01\x01\x01\x01\x00\x50\x01\xbb").await.unwrap();
    assert_eq!(line(&mut balancer).await, "192.0.2.9 127.0.0.1 443 //- false\n");
    let mut check = site.connect().await;
    check.write_all(b"PROXY UNKNOWN\r\n").await.unwrap();
    assert_eq!(line(&mut check).await, format!("127.0.0.1 127.0.0.1 {} //- true\n", site.address.port()));
}

#[tokio::test]
async fn a_forged_line_of_an_unlisted_peer_ends_the_connection() {
    let trusted = ArcSwap::from_pointee(TrustedProxies::new(["10.0.0.0/8"]).unwrap());
    let site = start(Gate { trusted, ..gate() }, PROXIED);
    let mut forger = site.connect().await;
    forger.write_all(b"PROXY TCP4 10.0.0.1 198.51.100.1 56324 443\r\n").await.unwrap();
    assert!(soon(forger.read(&mut [0; 9])).await.is_ok_and(|n| n == 0));
    assert_eq!(site.gate.counters.rejected(Rejected::ProxyUnlisted), 1);
    assert_eq!(site.gate.limits.open(), 0);
}

#[tokio::test]
async fn without_a_line_or_with_half_of_one_the_connection_ends() {
    let site = start(listed(), PROXIED);
    let mut direct = site.connect().await;
    direct.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(ends(&mut direct).await);
    let mut half = site.connect().await;
    half.write_all(b"PROXY TCP4 10.0").await.unwrap();
    half.shutdown().await.unwrap();
    assert!(ends(&mut half).await);
    let mut silent = site.connect().await;
    assert!(ends(&mut silent).await, "at the deadline");
    assert_eq!(site.gate.counters.rejected(Rejected::ProxyLine), 3);
    site.until(|gate| gate.limits.open() == 0).await;
}

#[tokio::test]
async fn clients_behind_a_listed_peer_have_their_own_limits() {
    let limits = Limits::new(limit::Config { connections_per_ip: 1.try_into().unwrap(), ..Default::default() });
    let site = start(Gate { limits, ..listed() }, PROXIED);
    let speak = async |line: &[u8]| {
        let mut balancer = site.connect().await;
        balancer.write_all(line).await.unwrap();
        balancer
    };
    let mut first = speak(b"PROXY TCP4 192.0.2.7 198.51.100.1 1 443\r\n").await;
    assert!(line(&mut first).await.starts_with("192.0.2.7"));
    let mut second = speak(b"PROXY TCP4 192.0.2.7 198.51.100.1 2 443\r\n").await;
    assert!(ends(&mut second).await);
    let mut other = speak(b"PROXY TCP4 192.0.2.8 198.51.100.1 1 443\r\n").await;
    assert!(line(&mut other).await.starts_with("192.0.2.8"));
    assert_eq!(site.gate.counters.rejected(Rejected::PerAddress), 1);
}

#[tokio::test]
async fn a_unix_socket_is_served_and_takes_a_proxy_line_when_unix_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    for (proxy, line_sent, expected) in [
        ("off", &b""[..], "127.0.0.1 127.0.0.1 0 //- true\n"),
        ("v1", b"PROXY TCP4 192.0.2.7 198.51.100.1 1 443\r\n", "192.0.2.7 127.0.0.1 443 //- false\n"),
    ] {
        let path = folder.path().join(proxy);
        let listener = format!(r#"{{"address":"unix:{}","protocol":"http","proxy_protocol":"{proxy}"}}"#, path.display());
        let _site = start(listed(), &listener);
        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(line_sent).await.unwrap();
        assert_eq!(line(&mut client).await, expected);
    }
}

const HTTPS: &str = r#"{"address":"127.0.0.1:0","protocol":"https"}"#;

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

#[tokio::test]
async fn a_listener_that_cannot_work_does_not_start() {
    let (_closing, closed) = watch::channel(false);
    let handler = |_: Stream, _: Client, _: Permit| async {};
    let tls = serve(bind(HTTPS), Arc::new(gate()), handler, closed.clone()).await.unwrap_err();
    assert!(tls.remedy.contains("cert_file"));
    let proxy = serve(bind(PROXIED), Arc::new(gate()), handler, closed).await.unwrap_err();
    assert!(proxy.remedy.contains("trusted_proxies"));
}

#[tokio::test]
async fn closing_takes_in_who_has_connected_and_then_refuses() {
    let bound = bind(r#"{"address":"127.0.0.1:0","protocol":"http"}"#);
    let address = bound.local_addr().unwrap();
    let waiting = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    let (_closing, closed) = watch::channel(true);
    let gate = Arc::new(gate());
    let handler = |mut stream: Stream, _: Client, permit: Permit| async move {
        stream.write_all(b"served\n").await.unwrap();
        drop(permit);
    };
    serve(bound, gate, handler, closed).await.unwrap();
    for mut client in waiting {
        assert_eq!(line(&mut client).await, "served\n");
    }
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_listener_stops_when_closing_turns_true() {
    let site = start(gate(), r#"{"address":"127.0.0.1:0","protocol":"http"}"#);
    let mut held = site.connect().await;
    line(&mut held).await;
    site.closing.send(true).unwrap();
    soon(site.served).await.unwrap().unwrap();
    held.write_all(b"x").await.unwrap();
    assert_eq!(soon(held.read_u8()).await.unwrap(), b'x', "what is open goes on");
}

#[test]
fn waits_grow_and_the_log_is_quiet() {
    let (mut backoff, now) = (Backoff::default(), Instant::now());
    let waits: Vec<_> = (0..6).map(|_| backoff.fail(now).0.as_millis()).collect();
    assert_eq!(waits, [10, 20, 40, 80, 100, 100]);
    assert!(!backoff.fail(now + Duration::from_millis(999)).1);
    assert!(backoff.fail(now + Duration::from_secs(1)).1);
    backoff.succeed();
    assert_eq!(backoff.fail(now).0.as_millis(), 10);
}

#[test]
fn running_out_of_descriptors_drops_the_idle_and_ends_nothing() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "accept::tests::child_with_few_descriptors"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test]
#[ignore = "started by running_out_of_descriptors_drops_the_idle_and_ends_nothing in a process of its own"]
async fn child_with_few_descriptors() {
    let site = start(gate(), r#"{"address":"127.0.0.1:0","protocol":"http"}"#);
    // The clients connect before the limit falls, so that only the accepting side runs out.
    let clients: Vec<TcpStream> = {
        let mut clients = Vec::new();
        for _ in 0..40 {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            clients.push(tokio::net::TcpSocket::from_std_stream(socket.into()));
        }
        let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        let limit = rustix::process::Rlimit { current: Some(used + 10), maximum: Some(used + 10) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
        let mut connected = Vec::new();
        for client in clients {
            connected.push(client.connect(site.address).await.unwrap());
        }
        connected
    };
    site.until(|gate| gate.counters.accept_errors() > 0 && gate.counters.accepted() == 40).await;
    assert!(!site.served.is_finished());
    drop(clients);
    site.until(|gate| gate.limits.open() == 0).await;
}
