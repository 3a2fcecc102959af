//! The request target and the authority of a request. RFC 9112 §3.2, RFC 9110 §7.2, RFC 3986 §3.2; *smuggling*, *exposure*.
//!
//! A target that a URI cannot contain is read differently by each recipient: `#` is cut off by some, `\` is a slash to
//! others, bytes above 0x7f have no charset. A Host that is not a plain host and port is trusted by Rack as it is
//! (CVE-2026-34835). `[ ] { } | ^` and the backquote stay, for browsers send them raw.

use std::{net::Ipv6Addr, ops::Range};

use memchr::{memchr, memchr2, memmem};

use super::{Form, rule::Rule};
use crate::refusal::Refusal;

/// What is known of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub form: Form,
    /// The authority of absolute-form, within the target.
    pub authority: Range<usize>,
}

/// Reads a request target; `options` tells whether the method is OPTIONS.
pub(super) fn read(target: &[u8], options: bool) -> Result<Target, Refusal> {
    const G8: Refusal = Refusal::BadTarget(Rule::G8);
    const T2: Refusal = Refusal::BadTarget(Rule::T2);
    if !is_clear(target) {
        return Err(G8);
    }
    if target.first() == Some(&b'/') {
        return Ok(Target { form: Form::Origin, authority: 0..0 });
    }
    if target == b"*" {
        return if options { Ok(Target { form: Form::Asterisk, authority: 0..0 }) } else { Err(G8) };
    }
    let scheme = memmem::find(target, b"://").filter(|end| is_scheme(target.get(..*end).unwrap_or_default())).ok_or(G8)?;
    let name = target.get(..scheme).unwrap_or_default();
    if !name.eq_ignore_ascii_case(b"http") && !name.eq_ignore_ascii_case(b"https") {
        return Err(T2);
    }
    let start = scheme + 3;
    let rest = target.get(start..).unwrap_or_default();
    let authority = rest.get(..memchr2(b'/', b'?', rest).unwrap_or(rest.len())).unwrap_or_default();
    if !is_authority(authority) {
        return Err(T2);
    }
    Ok(Target { form: Form::Absolute, authority: start..start + authority.len() })
}

/// Whether this is `uri-host [":" port]` with a host that is a name of letters, digits and `-._~`, an IPv4 address, or
/// an IPv6 address in brackets, and a port of at most 65535. No userinfo, no `%`, no sub-delims, no empty host or port.
pub fn is_authority(value: &[u8]) -> bool {
    if let Some(rest) = value.strip_prefix(b"[") {
        let Some(end) = memchr(b']', rest) else { return false };
        let address = rest.get(..end).and_then(|a| std::str::from_utf8(a).ok());
        return address.is_some_and(|a| a.parse::<Ipv6Addr>().is_ok()) && is_port(rest.get(end + 1..).unwrap_or_default());
    }
    let end = memchr(b':', value).unwrap_or(value.len());
    let (name, port) = value.split_at_checked(end).unwrap_or_default();
    (1..=NAME).contains(&name.len()) && name.iter().all(|b| is_unreserved(*b)) && is_port(port)
}

/// Nothing, or a colon and 1 to 5 digits.
fn is_port(value: &[u8]) -> bool {
    let Some(digits) = value.strip_prefix(b":") else { return value.is_empty() };
    (1..=PORT_DIGITS).contains(&digits.len())
        && digits.iter().all(u8::is_ascii_digit)
        && digits.iter().fold(0_u32, |sum, digit| sum.saturating_mul(10).saturating_add(u32::from(digit & 0x0f))) <= u32::from(u16::MAX)
}

fn is_scheme(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(u8::is_ascii_alphabetic) && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Whether no byte makes the target ambiguous. `"`, `<` and `>` are not, but no URI may contain them and Puma's parser
/// refuses them.
fn is_clear(target: &[u8]) -> bool {
    if !is_unusual(target) {
        return true;
    }
    let mut query = false;
    target.iter().all(|byte| match byte {
        b'?' => {
            query = true;
            true
        }
        // Browsers send a backslash raw in a query, and only in a path it is taken for a slash.
        b'\\' => query,
        0..=b' ' | b'#' | b'"' | b'<' | b'>' | 0x7f..=0xff => false,
        _ => true,
    })
}

/// Whether a byte of the target must be looked at by itself.
fn is_unusual(target: &[u8]) -> bool {
    let unusual = |byte: &u8| {
        let byte = *byte;
        // `"` and `#` differ in one bit, `<` and `>` too.
        (byte <= b' ') | (byte >= 0x7f) | (byte & 0xfe == b'"') | (byte & 0xfd == b'<') | (byte == b'\\')
    };
    let (blocks, tail) = target.as_chunks::<BLOCK>();
    // The last block overlaps the one before, so that only a short target is walked byte by byte.
    match target.last_chunk::<BLOCK>() {
        Some(last) => blocks.iter().chain([last]).any(|block| block.iter().fold(false, |hit, byte| hit | unusual(byte))),
        None => tail.iter().any(unusual),
    }
}

/// Bytes looked at in one go.
const BLOCK: usize = 16;
/// Longest name, RFC 3986 §3.2.2.
const NAME: usize = 255;
const PORT_DIGITS: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_target_has_its_fate_in_short_and_long_ones() {
        for byte in 0..=u8::MAX {
            for (front, back) in [("/", ""), ("/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "b"), ("/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "")] {
                let path = [front.as_bytes(), &[byte], back.as_bytes()].concat();
                let query = [front.as_bytes(), b"?", &[byte], back.as_bytes()].concat();
                let (in_path, in_query) = match byte {
                    b'\\' => (false, true),
                    b'#' | b'"' | b'<' | b'>' | 0..=b' ' | 0x7f..=0xff => (false, false),
                    _ => (true, true),
                };
                assert_eq!(read(&path, false).is_ok(), in_path, "{byte:#x}");
                assert_eq!(read(&query, false).is_ok(), in_query, "{byte:#x}");
            }
        }
    }

    #[test]
    fn the_authority_of_absolute_form_ends_at_its_path_or_query() {
        for (target, authority) in [
            ("http://a.example", "a.example"),
            ("http://a.example:80/b?c", "a.example:80"),
            ("HTTPS://[::1]?c/d", "[::1]"),
            ("http://a.example//b", "a.example"),
        ] {
            let read = read(target.as_bytes(), false).expect(target);
            assert_eq!((read.form, &target[read.authority]), (Form::Absolute, authority));
        }
    }

    #[test]
    fn an_authority_is_a_host_and_perhaps_a_port() {
        for good in ["a", "A.b-c_d~e", "a.", "127.0.0.1", "a:0", "a:65535", "a:00080", "[::1]", "[::1]:443", "[2001:db8::192.0.2.1]"] {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            ":",
            ":80",
            "a:",
            "a:b",
            "a:65536",
            "a:000080",
            "a:+8",
            "a:80:80",
            "a,b",
            "a b",
            "u@a",
            "a/b",
            "a?b",
            "a#b",
            "a%62",
            "a;b",
            "a'b",
            "é",
            "[]",
            "[::1",
            "::1",
            "[::1]a",
            "[::1]:",
            "[::1%25lo]",
            "[a]",
            "[1.2.3.4]",
            "[::1]]",
            "a]",
            "[[::1]]",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }
}
