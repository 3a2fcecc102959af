//! Certificates and keys: read, checked against each other, chosen by name.
//!
//! Threat: exposure. A key that others can read is refused, and so is one that does not belong to its certificate. Errors name the
//! file and what was expected there, never what was found. With `strict_sni` a scanner that asks for no name, or for a wrong one,
//! does not learn from a certificate which names are served. Place: at start and at reload.

use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::{
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};
use zeroize::Zeroizing;

use super::Problem;
use crate::config::secret;

/// `[[tls.certificate]]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Host names it is used for, such as `shop.example.com` or `*.example.com`. Default: the names in the certificate.
    #[serde(default)]
    pub names: Vec<String>,
    /// The certificate, followed by its intermediates, in PEM.
    pub cert_file: PathBuf,
    /// Its private key in PEM, readable for nobody but its owner (or root's, and readable for a group).
    pub key_file: PathBuf,
}

/// Certificates by name. Replaced as a whole on reload.
#[derive(Debug)]
pub struct Certificates {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By the name without its first label.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
    expiry: Vec<(String, i64)>,
    warnings: Vec<String>,
}

impl Certificates {
    /// Reads all of them; the first is the default unless `strict_sni`.
    pub fn load(list: &[Config], strict_sni: bool, provider: &CryptoProvider) -> Result<Self, Problem> {
        let mut all =
            Certificates { exact: HashMap::new(), wildcard: HashMap::new(), default: None, expiry: Vec::new(), warnings: Vec::new() };
        for config in list {
            let key = all.add(config, provider)?;
            if !strict_sni && all.default.is_none() {
                all.default = Some(key);
            }
        }
        Ok(all)
    }

    /// The certificate for a name: exact, then a wildcard for its first label, then the default.
    pub fn choose(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let by_name = name.map(str::to_ascii_lowercase).and_then(|name| {
            let parent = name.split_once('.').map(|(_, parent)| parent);
            self.exact.get(&name).or_else(|| parent.and_then(|parent| self.wildcard.get(parent)))
        });
        by_name.or(self.default.as_ref())
    }

    /// When each certificate ends: its first name, and seconds since 1970.
    pub fn expiry(&self) -> &[(String, i64)] {
        &self.expiry
    }

    /// What is wrong and does not prevent service: expired, not yet valid, or given a name that the certificate does not have.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn add(&mut self, config: &Config, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Problem> {
        let file = config.cert_file.display();
        let chain = certificates(&config.cert_file)?;
        let parsed = chain.first().and_then(|der| X509Certificate::from_der(der).ok()).map(|(_, parsed)| parsed);
        let Some(parsed) = parsed else {
            return Err(problem(&config.cert_file, "its first certificate is not a valid X.509 certificate", "write it anew in PEM"));
        };
        let own = dns_names(&parsed);
        let (begins, ends) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let names: Vec<String> = match config.names.is_empty() {
            true => own.clone(),
            false => config.names.iter().map(|n| n.to_ascii_lowercase()).collect(),
        };
        for name in names.iter().filter(|name| !own.iter().any(|o| covers(o, name))) {
            self.warnings.push(format!("{file}: the certificate does not have the name {name}; clients will refuse it"));
        }
        if names.is_empty() {
            self.warnings.push(format!("{file}: the certificate has no host name; it is used only without strict_sni"));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
        if ends <= now {
            self.warnings.push(format!("{file}: the certificate has expired; clients will refuse it"));
        }
        if begins > now {
            self.warnings.push(format!("{file}: the certificate is not valid yet; check the clock of this machine"));
        }
        let key = private_key(&config.key_file)?;
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| {
            if matches!(error, rustls::Error::InconsistentKeys(_)) {
                problem(
                    &config.key_file,
                    format!("this key does not belong to the certificate in {file}"),
                    "use the key that the certificate was requested with",
                )
            } else {
                problem(&config.key_file, "this kind of key cannot be used", "use an ECDSA P-256 or P-384, Ed25519 or RSA key")
            }
        })?;
        let key = Arc::new(key);
        self.expiry.push((names.first().cloned().unwrap_or_else(|| file.to_string()), ends));
        for name in names {
            let (map, name) = match name.strip_prefix("*.") {
                Some(parent) => (&mut self.wildcard, parent.to_owned()),
                None => (&mut self.exact, name),
            };
            map.entry(name).or_insert_with(|| Arc::clone(&key));
        }
        Ok(key)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name()).cloned()
    }
}

/// Whether a name of a certificate is good for a host, or for the same wildcard.
fn covers(own: &str, name: &str) -> bool {
    own == name || own.strip_prefix("*.").is_some_and(|parent| name.split_once('.').is_some_and(|(_, rest)| rest == parent))
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|extension| &extension.value.general_names);
    names.filter_map(|name| if let GeneralName::DNSName(name) = name { Some(name.to_ascii_lowercase()) } else { None }).collect()
}

/// The certificates of a PEM file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let text = read(path, &open(path)?)?;
    let list: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&text).collect();
    match list {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(problem(path, "no certificate in it", "expected PEM with -----BEGIN CERTIFICATE-----")),
        Err(_) => Err(problem(path, "its PEM is broken", "expected PEM with -----BEGIN CERTIFICATE-----")),
    }
}

/// The revocation lists of a PEM file, at least one.
pub(super) fn revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, Problem> {
    let text = read(path, &open(path)?)?;
    let list: Result<Vec<_>, pem::Error> = CertificateRevocationListDer::pem_slice_iter(&text).collect();
    match list {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) | Err(_) => Err(problem(path, "no revocation list in it", "expected PEM with -----BEGIN X509 CRL-----")),
    }
}

/// A key, from a file that is private. The mode is asked of the open file, so that it is the mode of what is read.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Problem> {
    let file = open(path)?;
    let metadata = file.metadata().map_err(|error| problem(path, error, "check the file"))?;
    if !is_private(metadata.mode(), metadata.uid()) {
        return Err(problem(
            path,
            format!("others can read or write this key (mode {:04o})", metadata.mode() & 0o7777),
            format!("chmod 600 {}; and replace the key if others had access to the machine", path.display()),
        ));
    }
    let text = read(path, &file)?;
    match PrivateKeyDer::from_pem_slice(&text) {
        Ok(key) => Ok(key),
        Err(_) if memchr::memmem::find(&text, b"ENCRYPTED").is_some() => {
            Err(problem(path, "the key is encrypted", "decrypt it with `openssl pkey`, and keep the file at mode 600"))
        }
        Err(_) => Err(problem(path, "no private key in it", "expected PEM with -----BEGIN PRIVATE KEY----- (or EC, or RSA)")),
    }
}

/// Nobody but the owner; or root's and readable for a group: systemd's credentials (0440 with an access list), a volume of
/// Kubernetes with fsGroup, Debian's group ssl-cert.
fn is_private(mode: u32, owner: u32) -> bool {
    mode & 0o077 == 0 || (owner == 0 && mode & 0o037 == 0)
}

fn open(path: &Path) -> Result<File, Problem> {
    let file = secret::file(path).map_err(|error| problem(path, &error, error.remedy()))?;
    File::open(file).map_err(|error| problem(path, error, "check the path, and that Palisade's user may read the file"))
}

fn read(path: &Path, file: &File) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let size = file.metadata().map_or(0, |m| usize::try_from(m.len()).unwrap_or(LARGEST)).min(LARGEST);
    // Room for all of it at once: a buffer that grows leaves copies of the key behind that nobody wipes.
    let mut text = Zeroizing::new(Vec::with_capacity(size.saturating_add(1)));
    match file.take(LARGEST as u64).read_to_end(&mut text) {
        Ok(_) => Ok(text),
        Err(error) => Err(problem(path, error, "check that it is a file")),
    }
}

fn problem(path: &Path, cause: impl std::fmt::Display, remedy: impl Into<String>) -> Problem {
    Problem { place: path.display().to_string(), cause: cause.to_string(), remedy: remedy.into() }
}

/// A revocation list may be long; nothing else here comes near.
const LARGEST: usize = 16 << 20;

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustls::crypto::aws_lc_rs;

    use super::*;

    /// Writes a self-signed certificate and its key.
    pub fn write(folder: &Path, file: &str, names: &[&str]) -> Config {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let config = Config { names: vec![], cert_file: folder.join(format!("{file}.pem")), key_file: folder.join(format!("{file}.key")) };
        std::fs::write(&config.cert_file, made.cert.pem()).unwrap();
        std::fs::write(&config.key_file, made.signing_key.serialize_pem()).unwrap();
        std::fs::set_permissions(&config.key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        config
    }

    fn load(list: &[Config], strict: bool) -> Result<Certificates, Problem> {
        Certificates::load(list, strict, &aws_lc_rs::default_provider())
    }

    #[test]
    fn the_name_chooses_exact_before_wildcard_before_default() {
        let folder = tempfile::tempdir().unwrap();
        let shop = write(folder.path(), "shop", &["shop.example.com"]);
        let wild = write(folder.path(), "wild", &["*.example.com", "example.com"]);
        let all = load(&[shop.clone(), wild.clone()], false).unwrap();
        let is = |name: Option<&str>, config: &Config| all.choose(name).unwrap().cert == certificates(&config.cert_file).unwrap();
        assert!(is(Some("shop.example.com"), &shop) && is(Some("SHOP.example.com"), &shop));
        assert!(is(Some("a.example.com"), &wild) && is(Some("example.com"), &wild));
        assert!(is(Some("a.b.example.com"), &shop), "a wildcard stands for one label");
        assert!(is(None, &shop) && is(Some("other.test"), &shop));
        let strict = load(&[shop, wild], true).unwrap();
        assert!(strict.choose(None).is_none() && strict.choose(Some("other.test")).is_none());
        assert!(strict.choose(Some("a.example.com")).is_some());
        assert_eq!(strict.expiry().len(), 2);
        assert_eq!(strict.expiry()[0].0, "shop.example.com");
        assert!(strict.warnings().is_empty());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let config = write(folder.path(), "a", &["a.test"]);
        for mode in [0o644, 0o604, 0o602, 0o666, 0o620] {
            std::fs::set_permissions(&config.key_file, std::fs::Permissions::from_mode(mode)).unwrap();
            let problem = load(std::slice::from_ref(&config), true).unwrap_err();
            assert!(problem.remedy.contains("chmod 600") && problem.place.contains("a.key"), "{mode:o}");
        }
        assert!(is_private(0o100_600, 1000) && is_private(0o100_400, 0));
        assert!(is_private(0o100_440, 0) && is_private(0o100_640, 0), "root's, for a group");
        assert!(!is_private(0o100_440, 1000) && !is_private(0o100_444, 0) && !is_private(0o100_660, 0));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (write(folder.path(), "a", &["a.test"]), write(folder.path(), "b", &["b.test"]));
        let mixed = Config { key_file: b.key_file, ..a };
        assert!(load(&[mixed], true).unwrap_err().cause.contains("does not belong"));
    }

    #[test]
    fn errors_name_the_file_and_what_was_expected_and_never_its_contents() {
        let folder = tempfile::tempdir().unwrap();
        let good = write(folder.path(), "a", &["a.test"]);
        let secret = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg";
        for (text, cause) in [
            (String::new(), "no private key"),
            (format!("-----BEGIN PRIVATE KEY-----\n{secret}!!\n-----END PRIVATE KEY-----\n"), "no private key"),
            (format!("-----BEGIN ENCRYPTED PRIVATE KEY-----\n{secret}\n-----END ENCRYPTED PRIVATE KEY-----\n"), "encrypted"),
            (std::fs::read_to_string(&good.cert_file).unwrap(), "no private key"),
        ] {
            std::fs::write(&good.key_file, text).unwrap();
            let problem = load(std::slice::from_ref(&good), true).unwrap_err();
            assert!(problem.cause.contains(cause) && problem.place.ends_with("a.key"), "{problem}");
            assert!(!problem.to_string().contains("MIGH") && !format!("{problem:?}").contains("MIGH"));
        }
        std::fs::write(&good.cert_file, "nothing").unwrap();
        assert!(load(std::slice::from_ref(&good), true).unwrap_err().remedy.contains("BEGIN CERTIFICATE"));
        std::fs::remove_file(&good.cert_file).unwrap();
        assert!(load(&[good], true).unwrap_err().place.ends_with("a.pem"));
    }

    #[test]
    fn an_expired_certificate_and_a_foreign_name_are_warnings() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = write(folder.path(), "a", &["*.a.test"]);
        let mut params = rcgen::CertificateParams::new(vec!["*.a.test".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&config.cert_file, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&config.key_file, key.serialize_pem()).unwrap();
        config.names = vec!["x.a.test".into(), "b.test".into()];
        let all = load(&[config], true).unwrap();
        assert_eq!(all.warnings().len(), 2, "{:?}", all.warnings());
        assert!(all.warnings()[0].contains("b.test") && all.warnings()[1].contains("expired"));
        assert_eq!(all.expiry(), [("x.a.test".to_owned(), 1_577_836_800)]);
    }
}
