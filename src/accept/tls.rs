//! TLS: which versions, key exchanges, certificates and clients are taken.
//!
//! Threat: exposure and exhaustion. TLS 1.2 and 1.3 with forward secrecy only, no early data (it can be replayed, RFC 8446 §8),
//! tickets without a store (RFC 5077), so that resumption needs no memory per client. Everything is behind one pointer that a reload
//! replaces as a whole or not at all. Place: after the PROXY line, before the first byte of HTTP.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs},
    server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use serde::{Deserialize, Serialize};

use super::{
    Problem,
    certificate::{self, Certificates, revocation_lists},
};
use crate::units::OneOrMany;

/// `[tls]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The oldest version that is taken. Default: 1.2.
    pub min_version: Version,
    /// Key exchanges, the preferred one first. A client that sends a key share for one of them gets that one, as asking for another
    /// would cost it a round trip. Default: X25519MLKEM768, X25519, secp256r1, secp384r1.
    pub key_exchange: OneOrMany<KeyExchange>,
    /// Refuse handshakes that name no host, or none that a certificate has. Without it the first certificate answers them, and tells
    /// every scanner its names; but a client that comes by address names no host. Default: false.
    pub strict_sni: bool,
    /// Short for one entry in `certificate`.
    pub cert_file: Option<PathBuf>,
    /// The key of `cert_file`.
    pub key_file: Option<PathBuf>,
    /// The certificates.
    pub certificate: Vec<certificate::Config>,
    /// Certificates of clients.
    pub client_auth: ClientAuth,
}

/// `tls.min_version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Version {
    /// TLS 1.2, RFC 5246.
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    /// TLS 1.3, RFC 8446.
    #[serde(rename = "1.3")]
    Tls13,
}

/// `tls.key_exchange`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum KeyExchange {
    /// X25519 and ML-KEM-768 together: safe also against what is recorded today and broken later.
    X25519MLKEM768,
    /// X25519.
    X25519,
    /// NIST P-256.
    #[serde(rename = "secp256r1")]
    Secp256r1,
    /// NIST P-384.
    #[serde(rename = "secp384r1")]
    Secp384r1,
}

/// `[tls.client_auth]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClientAuth {
    /// Whether clients need a certificate. Default: off.
    pub mode: ClientAuthMode,
    /// The authorities that may sign them, in PEM.
    pub ca_file: Option<PathBuf>,
    /// Revoked ones, in PEM; with it, a certificate whose authority has no list here is refused too.
    pub crl_file: Option<PathBuf>,
}

/// `tls.client_auth.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuthMode {
    /// They are not asked.
    #[default]
    Off,
    /// They are asked; who has none is served, who has a wrong one is not.
    Optional,
    /// They need one.
    Require,
}

/// Ends TLS, by a configuration that can be replaced.
#[derive(Debug)]
pub struct Terminator {
    live: ArcSwap<Live>,
}

#[derive(Debug)]
struct Live {
    config: Config,
    certificates: Arc<Certificates>,
    tickets: Arc<dyn ProducesTickets>,
    with_h2: Arc<ServerConfig>,
    without_h2: Arc<ServerConfig>,
}

impl Terminator {
    /// Reads certificates, keys and lists.
    pub fn load(config: &Config) -> Result<Self, Problem> {
        Ok(Terminator { live: ArcSwap::from_pointee(Live::load(config, None)?) })
    }

    /// Reads all files again. On a problem everything stays as it was.
    pub fn reload(&self) -> Result<(), Problem> {
        let old = self.live.load_full();
        self.reconfigure(&old.config)
    }

    /// Replaces the configuration, and reads its files. On a problem everything stays as it was.
    pub fn reconfigure(&self, config: &Config) -> Result<(), Problem> {
        let old = self.live.load_full();
        // A ticket stands for a client's certificate that was good when it was issued, so tickets must not outlive a new list.
        let keeps_tickets = config.client_auth.mode == ClientAuthMode::Off && old.config.client_auth.mode == ClientAuthMode::Off;
        let tickets = keeps_tickets.then(|| Arc::clone(&old.tickets));
        self.live.store(Arc::new(Live::load(config, tickets)?));
        Ok(())
    }

    /// When each certificate ends: its first name, and seconds since 1970.
    pub fn expiry(&self) -> Vec<(String, i64)> {
        self.live.load().certificates.expiry().to_vec()
    }

    /// What is wrong with the certificates and does not prevent service.
    pub fn warnings(&self) -> Vec<String> {
        self.live.load().certificates.warnings().to_vec()
    }

    /// Whether a certificate answers to the name.
    pub(super) fn knows(&self, name: Option<&str>) -> bool {
        self.live.load().certificates.choose(name).is_some()
    }

    pub(super) fn config(&self, http2: bool) -> Arc<ServerConfig> {
        let live = self.live.load();
        Arc::clone(if http2 { &live.with_h2 } else { &live.without_h2 })
    }
}

impl Live {
    fn load(config: &Config, tickets: Option<Arc<dyn ProducesTickets>>) -> Result<Self, Problem> {
        let list = config.certificates()?;
        let provider = Arc::new(provider(&config.key_exchange)?);
        let certificates = Arc::new(Certificates::load(&list, config.strict_sni, &provider)?);
        let clients = config.client_auth.verifier(&provider)?;
        let tickets = match tickets {
            Some(tickets) => tickets,
            None => aws_lc_rs::Ticketer::new().map_err(|error| problem("tls", error, "check the machine's source of randomness"))?,
        };
        let versions: &[&SupportedProtocolVersion] = match config.min_version {
            Version::Tls12 => &[&TLS13, &TLS12],
            Version::Tls13 => &[&TLS13],
        };
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|error| problem("tls", error, "check tls.min_version and tls.key_exchange"))?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::<Certificates>::clone(&certificates));
        server.ticketer = Arc::clone(&tickets);
        // With tickets, a store would only serve TLS 1.2 clients that know none, and cost memory for everybody.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.max_early_data_size = 0;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let without_h2 = Arc::new(server.clone());
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Live { config: config.clone(), certificates, tickets, with_h2: Arc::new(server), without_h2 })
    }
}

impl Config {
    /// Whether any certificate is configured.
    pub fn is_on(&self) -> bool {
        !self.certificate.is_empty() || self.cert_file.is_some() || self.key_file.is_some()
    }

    fn certificates(&self) -> Result<Vec<certificate::Config>, Problem> {
        let mut list = Vec::new();
        match (&self.cert_file, &self.key_file) {
            (Some(cert_file), Some(key_file)) => {
                list.push(certificate::Config { names: Vec::new(), cert_file: cert_file.clone(), key_file: key_file.clone() });
            }
            (None, None) => {}
            (Some(_), None) => return Err(problem("tls.key_file", "cert_file is set and key_file is not", "set both")),
            (None, Some(_)) => return Err(problem("tls.cert_file", "key_file is set and cert_file is not", "set both")),
        }
        list.extend(self.certificate.iter().cloned());
        if list.is_empty() {
            return Err(problem("tls", "there is no certificate", "set cert_file and key_file, or add [[tls.certificate]]"));
        }
        Ok(list)
    }
}

impl ClientAuth {
    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, Problem> {
        if self.mode == ClientAuthMode::Off {
            return Ok(WebPkiClientVerifier::no_client_auth());
        }
        let Some(ca_file) = &self.ca_file else {
            return Err(problem("tls.client_auth.ca_file", "client_auth is on and names no authority", "set ca_file"));
        };
        let mut roots = RootCertStore::empty();
        for authority in certificate::certificates(ca_file)? {
            roots.add(authority).map_err(|_| {
                problem(&ca_file.display().to_string(), "one of its certificates cannot be an authority", "expected authorities in PEM")
            })?;
        }
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        if let Some(crl_file) = &self.crl_file {
            builder = builder.with_crls(revocation_lists(crl_file)?);
        }
        if self.mode == ClientAuthMode::Optional {
            builder = builder.allow_unauthenticated();
        }
        builder.build().map_err(|error| problem("tls.client_auth", error, "check ca_file and crl_file"))
    }
}

fn provider(groups: &OneOrMany<KeyExchange>) -> Result<CryptoProvider, Problem> {
    if groups.0.is_empty() {
        return Err(problem("tls.key_exchange", "the list is empty", "name at least one, such as \"X25519\""));
    }
    let kx_groups = groups.0.iter().map(|group| group.supported()).collect();
    Ok(CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() })
}

impl KeyExchange {
    fn supported(self) -> &'static dyn SupportedKxGroup {
        match self {
            KeyExchange::X25519MLKEM768 => aws_lc_rs::kx_group::X25519MLKEM768,
            KeyExchange::X25519 => aws_lc_rs::kx_group::X25519,
            KeyExchange::Secp256r1 => aws_lc_rs::kx_group::SECP256R1,
            KeyExchange::Secp384r1 => aws_lc_rs::kx_group::SECP384R1,
        }
    }
}

fn problem(place: &str, cause: impl std::fmt::Display, remedy: &str) -> Problem {
    Problem { place: place.into(), cause: cause.to_string(), remedy: remedy.into() }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            min_version: Version::Tls12,
            key_exchange: OneOrMany(vec![KeyExchange::X25519MLKEM768, KeyExchange::X25519, KeyExchange::Secp256r1, KeyExchange::Secp384r1]),
            strict_sni: false,
            cert_file: None,
            key_file: None,
            certificate: Vec::new(),
            client_auth: ClientAuth::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{certificate::tests::write, *};

    #[test]
    fn a_reload_with_a_bad_key_keeps_the_old_certificate_and_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { certificate: vec![write(folder.path(), "a", &["a.test"])], ..Config::default() };
        let terminator = Terminator::load(&config).unwrap();
        let before = terminator.config(true);
        std::fs::write(folder.path().join("a.key"), "broken").unwrap();
        let problem = terminator.reload().unwrap_err();
        assert!(problem.place.ends_with("a.key"), "{problem}");
        assert!(Arc::ptr_eq(&before, &terminator.config(true)) && terminator.knows(Some("a.test")));
        write(folder.path(), "a", &["a.test", "b.test"]);
        terminator.reload().unwrap();
        assert!(!Arc::ptr_eq(&before, &terminator.config(true)) && terminator.knows(Some("b.test")));
        assert_eq!(terminator.expiry().len(), 1);
        assert!(terminator.warnings().is_empty());
    }

    #[test]
    fn half_a_certificate_or_none_is_a_problem() {
        assert!(!Config::default().is_on());
        assert!(Terminator::load(&Config::default()).unwrap_err().remedy.contains("cert_file"));
        let half = Config { cert_file: Some("/x".into()), ..Config::default() };
        assert!(half.is_on() && Terminator::load(&half).unwrap_err().place.contains("key_file"));
        let auth = ClientAuth { mode: ClientAuthMode::Require, ..ClientAuth::default() };
        assert!(auth.verifier(&Arc::new(aws_lc_rs::default_provider())).unwrap_err().place.contains("ca_file"));
    }

    #[test]
    fn tickets_survive_a_reload_only_without_client_certificates() {
        let folder = tempfile::tempdir().unwrap();
        let ca = write(folder.path(), "ca", &["ca.test"]);
        let mut config = Config { certificate: vec![write(folder.path(), "a", &["a.test"])], ..Config::default() };
        let terminator = Terminator::load(&config).unwrap();
        let tickets = |t: &Terminator| Arc::clone(&t.live.load().tickets);
        let first = tickets(&terminator);
        terminator.reload().unwrap();
        assert!(Arc::ptr_eq(&first, &tickets(&terminator)));
        config.client_auth = ClientAuth { mode: ClientAuthMode::Require, ca_file: Some(ca.cert_file), crl_file: None };
        terminator.reconfigure(&config).unwrap();
        let second = tickets(&terminator);
        terminator.reload().unwrap();
        assert!(!Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&second, &tickets(&terminator)));
    }

    #[test]
    fn the_configuration_is_read_as_it_is_documented() {
        let text = r#"{"min_version":"1.3","key_exchange":["X25519MLKEM768","secp256r1"],"client_auth":{"mode":"optional"}}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        assert_eq!(config.min_version, Version::Tls13);
        assert_eq!(config.key_exchange.0, [KeyExchange::X25519MLKEM768, KeyExchange::Secp256r1]);
        assert!(!config.strict_sni && config.client_auth.mode == ClientAuthMode::Optional);
        assert!(serde_json::from_str::<Config>(r#"{"min_version":"1.1"}"#).is_err());
    }
}
