//! The authority of a request (RFC 9110 §7.2, RFC 3986 §3.2): a host and perhaps a port, and when two of them are the same.

use std::net::{IpAddr, Ipv6Addr};

use crate::accept::client::Scheme;

/// A well-formed `uri-host [ ":" port ]`.
#[derive(Clone, Copy, Debug)]
pub struct Authority<'a> {
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Reads an authority. Without userinfo, escapes or sub-delims: no host name has them, and Rack and its callers
    /// read such names differently (CVE-2026-34835).
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (inner, _) = rest.split_once(']')?;
                inner.parse::<Ipv6Addr>().ok()?;
                let (literal, port) = text.split_at_checked(inner.len().saturating_add(2))?;
                (literal, port.strip_prefix(':').or(port.is_empty().then_some("")))
            }
            None => match text.bytes().position(|b| b == b':').and_then(|colon| text.split_at_checked(colon)) {
                Some((host, port)) => (host, port.strip_prefix(':')),
                None => (text, Some("")),
            },
        };
        let named = host.starts_with('[') || host.bytes().fold(true, |named, b| named & is_named(b));
        if host.is_empty() || host.len() > MAX_HOST || !named {
            return None;
        }
        match port? {
            "" => Some(Authority { host, port: None }),
            digits if digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(Authority { host, port: Some(digits.parse().ok()?) })
            }
            _ => None,
        }
    }

    /// The host in any case, without the dot of the root.
    pub fn host(&self) -> &'a str {
        self.host.strip_suffix('.').unwrap_or(self.host)
    }

    /// The host as an address, where it is one.
    pub fn address(&self) -> Option<IpAddr> {
        let host = self.host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(self.host);
        host.parse().ok()
    }

    /// Both name the same origin server: case, the root's dot and the default port make no difference.
    pub fn same(&self, other: &Authority<'_>, scheme: Scheme) -> bool {
        let default = match scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        };
        self.host().eq_ignore_ascii_case(other.host()) && self.port.unwrap_or(default) == other.port.unwrap_or(default)
    }
}

/// A byte of a host name. RFC 3986 §3.2.2 allows more, which no name in use has.
fn is_named(b: u8) -> bool {
    b.is_ascii_alphanumeric() | matches!(b, b'-' | b'.' | b'_' | b'~')
}

/// The longest name of the DNS, with its dot.
const MAX_HOST: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cve_2026_34835_a_host_has_no_other_bytes_than_names_and_addresses_have() {
        for good in ["shop.example", "SHOP.example:443", "my_app.local", "192.0.2.1:8080", "[2001:db8::1]", "[::1]:80", "a.", "a:"] {
            assert!(Authority::parse(good.as_bytes()).is_some(), "{good}");
        }
        for bad in
            ["", ":80", "user@a", "a/b", "a,b", "a b", "a%00", "<a>", "a:99999", "a:-1", "a:80:90", "[::1]a", "[::1", "a?b", "a#b", "ä"]
        {
            assert!(Authority::parse(bad.as_bytes()).is_none(), "{bad}");
        }
        assert!(Authority::parse("a".repeat(256).as_bytes()).is_none());
    }

    #[test]
    fn case_root_dot_and_default_port_make_no_difference() {
        let same =
            |a: &str, b: &str, scheme| Authority::parse(a.as_bytes()).unwrap().same(&Authority::parse(b.as_bytes()).unwrap(), scheme);
        assert!(same("Shop.Example.", "shop.example:80", Scheme::Http));
        assert!(same("shop.example:443", "shop.example", Scheme::Https));
        assert!(!same("shop.example:443", "shop.example", Scheme::Http));
        assert!(!same("shop.example", "evil.example", Scheme::Http));
    }
}
