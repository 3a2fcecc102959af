//! Names that Thruster reads from the environment of a Rails 8 container: taken where there is a setting of the same meaning,
//! explained where there is none.

use std::ffi::{OsStr, OsString};

/// One name that is set.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// As it stands in the environment.
    pub(super) name: &'static str,
    /// Where the setting lives now.
    pub(super) hint: &'static str,
    /// The same in our environment, where that is not set already.
    pub(super) setting: Option<(OsString, OsString)>,
}

/// What to make of Thruster's value.
#[derive(Clone, Copy)]
enum Take {
    /// Our variable, the value with something before and behind it.
    As(&'static str, &'static str, &'static str),
    /// Nothing: only the hint.
    Nothing,
}

/// All names of Thruster's that are set, each with its successor.
pub(super) fn translate(environment: &[(OsString, OsString)]) -> Vec<Found> {
    let value = |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value);
    let mut found = Vec::new();
    for &(name, take, hint) in NAMES {
        let bare = name.strip_prefix(PREFIX).unwrap_or(name);
        // Names that other programs have as well count only with Thruster's prefix.
        let plain = if SHARED.contains(&bare) { None } else { value(bare).map(|value| (bare, value)) };
        let Some((name, value)) = value(name).map(|value| (name, value)).or(plain) else { continue };
        let setting = match take {
            Take::As(ours, before, behind) if environment.iter().all(|(known, _)| known != ours) => {
                number(value).map(|number| (OsString::from(ours), OsString::from(format!("{before}{number}{behind}"))))
            }
            Take::As(..) | Take::Nothing => None,
        };
        found.push(Found { name, hint, setting });
    }
    found
}

/// A number above 0: in Thruster's language 0 is «no limit», which does not exist here.
fn number(value: &OsStr) -> Option<u64> {
    value.to_str()?.trim().parse().ok().filter(|number| *number > 0)
}

const PREFIX: &str = "THRUSTER_";
const SHARED: [&str; 3] = ["DEBUG", "STORAGE_PATH", "CACHE_SIZE"];

const NAMES: &[(&str, Take, &str)] = &[
    ("THRUSTER_HTTP_PORT", Take::As("PALISADE_LISTEN", ":", ""), "taken; write listen, or PALISADE_LISTEN=:80"),
    ("THRUSTER_HTTPS_PORT", Take::Nothing, "not taken: add :443 to listen, with tls.cert_file and tls.key_file"),
    ("THRUSTER_TARGET_PORT", Take::Nothing, "not needed: Puma listens on private unix sockets, on no port"),
    ("THRUSTER_TLS_DOMAIN", Take::Nothing, "not taken: no certificates are fetched; set domains, tls.cert_file and tls.key_file"),
    ("THRUSTER_ACME_DIRECTORY", Take::Nothing, "not taken: no certificates are fetched; set tls.cert_file and tls.key_file"),
    ("THRUSTER_EAB_KID", Take::Nothing, "not taken: no certificates are fetched; set tls.cert_file and tls.key_file"),
    ("THRUSTER_EAB_HMAC_KEY", Take::Nothing, "not taken: no certificates are fetched; set tls.cert_file and tls.key_file"),
    ("THRUSTER_MAX_REQUEST_BODY", Take::As("PALISADE_LIMITS__BODY", "", "B"), "taken where it is above 0; write limits.body"),
    ("THRUSTER_HTTP_IDLE_TIMEOUT", Take::As("PALISADE_TIMEOUTS__IDLE", "", "s"), "taken; write timeouts.idle"),
    ("THRUSTER_HTTP_READ_TIMEOUT", Take::Nothing, "not taken: timeouts.header, timeouts.body_stall and rates.body_min bound reading"),
    ("THRUSTER_HTTP_WRITE_TIMEOUT", Take::Nothing, "not taken: timeouts.write_stall and rates.write_min bound writing"),
    ("THRUSTER_FORWARD_HEADERS", Take::Nothing, "not taken: name the proxies before Palisade in trusted_proxies"),
    ("THRUSTER_LOG_REQUESTS", Take::Nothing, "not taken: log.access says how requests are logged"),
    ("THRUSTER_BAD_GATEWAY_PAGE", Take::Nothing, "not taken: pages of errors are files in errors.dir"),
    ("THRUSTER_X_SENDFILE_ENABLED", Take::Nothing, "not taken: files are sent by Puma"),
    ("THRUSTER_GZIP_COMPRESSION_ENABLED", Take::Nothing, "not taken: answers are passed on as they are; use Rack::Deflater or the CDN"),
    ("THRUSTER_CACHE_SIZE", Take::Nothing, "not taken: there is no cache here; use the CDN"),
    ("THRUSTER_MAX_CACHE_ITEM_SIZE", Take::Nothing, "not taken: there is no cache here; use the CDN"),
    ("THRUSTER_STORAGE_PATH", Take::Nothing, "not taken: nothing is stored"),
    ("THRUSTER_DEBUG", Take::Nothing, "not taken: log.level says how much is logged"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Vec<(&'static str, Option<(String, String)>)> {
        let environment: Vec<_> = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
        let text = |text: OsString| text.into_string().unwrap();
        translate(&environment)
            .into_iter()
            .map(|found| (found.name, found.setting.map(|(name, value)| (text(name), text(value)))))
            .collect()
    }

    #[test]
    fn settings_of_the_same_meaning_are_taken() {
        let setting = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
        assert_eq!(of(&[("HTTP_PORT", "80")]), [("HTTP_PORT", setting("PALISADE_LISTEN", ":80"))]);
        assert_eq!(of(&[("MAX_REQUEST_BODY", "1048576")]), [("MAX_REQUEST_BODY", setting("PALISADE_LIMITS__BODY", "1048576B"))]);
        assert_eq!(
            of(&[("THRUSTER_HTTP_IDLE_TIMEOUT", "30")]),
            [("THRUSTER_HTTP_IDLE_TIMEOUT", setting("PALISADE_TIMEOUTS__IDLE", "30s"))]
        );
    }

    #[test]
    fn our_own_names_are_stronger_and_no_limit_is_no_setting() {
        assert_eq!(of(&[("HTTP_PORT", "80"), ("PALISADE_LISTEN", ":8080")]), [("HTTP_PORT", None)]);
        assert_eq!(of(&[("MAX_REQUEST_BODY", "0")]), [("MAX_REQUEST_BODY", None)]);
    }

    #[test]
    fn names_of_others_are_left_alone() {
        assert_eq!(of(&[("DEBUG", "1"), ("PORT", "3000"), ("STORAGE_PATH", "/x")]), []);
        assert_eq!(of(&[("TARGET_PORT", "3000")]), [("TARGET_PORT", None)]);
    }
}
