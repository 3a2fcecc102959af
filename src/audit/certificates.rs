//! S17: TLS keys and certificates, of the proxy and of Puma.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::parse_x509_certificate;
use x509_parser::public_key::PublicKey;

use super::application::Application;
use super::checks::Id;
use crate::puma::Bind;

pub(super) fn check(app: &mut Application<'_>) {
    let mut pairs: Vec<(PathBuf, PathBuf)> = app.options.proxy.certificates.clone();
    for listener in &app.puma.binds {
        if let Bind::Ssl { options, .. } = &listener.bind {
            let option = |name: &str| options.iter().find(|(key, _)| key == name).map(|(_, value)| app.root.join(value));
            if let (Some(certificate), Some(key)) = (option("cert"), option("key")) {
                pairs.push((certificate, key));
            }
        }
    }
    for (certificate, key) in &pairs {
        pair(app, certificate, key);
    }
    for folder in ["config", "config/ssl", "config/certs", "config/tls", "ssl", "certs"] {
        for name in app.files(folder).into_iter().filter(|name| name.ends_with(".pem") || name.ends_with(".key")) {
            let path = app.root.join(&name);
            if !pairs.iter().any(|(_, key)| *key == path) && app.text(&name).is_some_and(|text| text.contains("PRIVATE KEY-----")) {
                readable(app, &path);
            }
        }
    }
}

fn readable(app: &mut Application<'_>, key: &Path) {
    if let Some(mode) = fs::metadata(key).ok().map(|metadata| metadata.permissions().mode() & 0o777).filter(|mode| mode & 0o077 != 0) {
        app.find(Id::S17, key, None, format!("the private key has mode {mode:04o}"));
    }
}

fn pair(app: &mut Application<'_>, certificate: &Path, key: &Path) {
    readable(app, key);
    let Ok(pem) = fs::read(certificate) else { return };
    let chain: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    for der in &chain {
        let Ok((_, parsed)) = parse_x509_certificate(der) else {
            app.find(Id::S17, certificate, None, "a certificate of the chain cannot be read");
            continue;
        };
        let left = parsed.validity().not_after.timestamp().saturating_sub(now);
        if left < 0 {
            app.find(Id::S17, certificate, None, "a certificate of the chain has expired");
        } else if left < SOON {
            app.find(Id::S17, certificate, None, format!("a certificate of the chain expires in {} days", left / 86_400));
        }
        if let Ok(PublicKey::RSA(rsa)) = parsed.public_key().parsed()
            && rsa.key_size() < 2048
        {
            app.find(Id::S17, certificate, None, format!("an RSA key of {} bits", rsa.key_size()));
        }
    }
    let (Some(leaf), Ok(key)) = (chain.first(), PrivateKeyDer::from_pem_file(key)) else { return };
    let Ok((_, leaf)) = parse_x509_certificate(leaf) else { return };
    // A key that the library refuses is too short or no key: the certificate's own size is reported above.
    let Ok(signing) = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key) else { return };
    if signing.public_key().is_some_and(|public| public.as_ref() != leaf.public_key().raw) {
        app.find(Id::S17, certificate, None, "the private key does not belong to the certificate");
    }
}

/// A certificate that ends within this many seconds should have been renewed: 14 days.
const SOON: i64 = 14 * 86_400;
