//! Values of clients as text that cannot leave its field or its line.
//!
//! Threat: exposure by forged lines (CWE-117) and terminals that obey control sequences. No byte below 0x20, no DEL, no C1
//! control, no line separator and no bidirectional override is ever written as it came. What is not UTF-8 becomes `\xNN`.

use std::{io::Write, net::IpAddr, time::Duration};

/// Writes a JSON string, quotes included.
pub fn json(out: &mut Vec<u8>, value: &[u8]) {
    out.push(b'"');
    let (value, clipped) = clip(value);
    if is_plain(value) {
        out.extend_from_slice(value);
    } else {
        escape(out, value);
    }
    if clipped {
        out.extend_from_slice(ELLIPSIS);
    }
    out.push(b'"');
}

/// Writes a logfmt value: bare where that has one reading, else as a JSON string.
pub fn logfmt(out: &mut Vec<u8>, value: &[u8]) {
    let is_bare = !value.is_empty() && value.len() <= CLIP && value.iter().fold(true, |bare, b| bare & is_bare(*b));
    if is_bare {
        out.extend_from_slice(value);
    } else {
        json(out, value);
    }
}

/// Writes a value as nginx does between the quotes of `combined`: `-` for none, `\xNN` for whatever could end the field.
pub fn combined(out: &mut Vec<u8>, value: &[u8]) {
    let (value, clipped) = clip(value);
    if value.is_empty() {
        out.push(b'-');
    } else if is_plain(value) {
        out.extend_from_slice(value);
    } else {
        for b in value {
            if is_plain_byte(*b) {
                out.push(*b);
            } else {
                out.extend_from_slice(b"\\x");
                hexadecimal(out, *b);
            }
        }
    }
    if clipped {
        out.extend_from_slice(b"...");
    }
}

/// Writes a number in decimal digits.
pub fn number(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

/// Writes milliseconds with three decimals.
pub fn millis(out: &mut Vec<u8>, duration: Duration) {
    let rest = duration.subsec_micros();
    let whole = duration.as_secs().saturating_mul(1000).saturating_add(u64::from(rest / 1000));
    match u8::try_from(whole) {
        Ok(digit @ 0..=9) => out.push(b'0' + digit),
        Ok(_) | Err(_) => number(out, whole),
    }
    let [hundreds, tens, ones] = digits(rest % 1000);
    out.extend_from_slice(&[b'.', hundreds, tens, ones]);
}

/// Three digits; every answer takes few steps, as a line has a dozen of them.
fn digits(n: u32) -> [u8; 3] {
    [n / 100, n / 10 % 10, n % 10].map(|digit| b'0' + digit as u8)
}

/// Writes an address.
pub fn address(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => {
            let mut text = [b'.'; 16];
            let mut end = 0;
            for octet in v4.octets() {
                let digits = digits(u32::from(octet));
                let shown = digits
                    .get(
                        if octet > 99 {
                            0
                        } else if octet > 9 {
                            1
                        } else {
                            2
                        }..,
                    )
                    .unwrap_or_default();
                for (to, digit) in text.iter_mut().skip(end).zip(shown) {
                    *to = *digit;
                }
                end += shown.len() + 1;
            }
            out.extend_from_slice(text.get(..end - 1).unwrap_or_default());
        }
        // A Vec takes every byte, so this write cannot fail.
        IpAddr::V6(v6) => write!(out, "{v6}").unwrap_or_default(),
    }
}

/// A client may send 32 KiB of head and six bytes of log for each of them; no field shows more than this.
const CLIP: usize = 2048;
const ELLIPSIS: &[u8] = "…".as_bytes();

fn clip(value: &[u8]) -> (&[u8], bool) {
    match value.split_at_checked(CLIP) {
        Some((shown, rest)) => (shown, !rest.is_empty()),
        None => (value, false),
    }
}

/// Without short-circuit, so that the compiler looks at 16 bytes at once.
fn is_plain(value: &[u8]) -> bool {
    value.iter().fold(true, |plain, b| plain & is_plain_byte(*b))
}

fn is_plain_byte(b: u8) -> bool {
    matches!(b, 0x20..0x7f) & (b != b'"') & (b != b'\\')
}

fn is_bare(b: u8) -> bool {
    is_plain_byte(b) & (b != b' ') & (b != b'=')
}

fn escape(out: &mut Vec<u8>, value: &[u8]) {
    for chunk in value.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                _ if is_hidden(c) => {
                    out.extend_from_slice(b"\\u");
                    let [high, low] = u16::try_from(u32::from(c)).unwrap_or(0xfffd).to_be_bytes();
                    hexadecimal(out, high);
                    hexadecimal(out, low);
                }
                _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        for b in chunk.invalid() {
            out.extend_from_slice(b"\\\\x");
            hexadecimal(out, *b);
        }
    }
}

/// Characters that a terminal obeys or a reader cannot see. All are in the Basic Multilingual Plane.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

fn hexadecimal(out: &mut Vec<u8>, b: u8) {
    for nibble in [b >> 4, b & 15] {
        out.push(if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(write: fn(&mut Vec<u8>, &[u8]), value: &[u8]) -> String {
        let mut out = Vec::new();
        write(&mut out, value);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_a_terminal_obeys_is_spelled_out() {
        assert_eq!(with(json, b"a\x1b[2Jb\r\n\x7f"), r#""a\u001b[2Jb\r\n\u007f""#);
        assert_eq!(with(json, "\u{85}\u{202e}\u{2028}é".as_bytes()), "\"\\u0085\\u202e\\u2028é\"");
        assert_eq!(with(json, b"\xff\"\\"), r#""\\xff\"\\""#);
        assert_eq!(with(combined, b"a\"\n\xc3\xa9"), r"a\x22\x0a\xc3\xa9");
        assert_eq!(with(logfmt, b"a=b"), r#""a=b""#);
        assert_eq!(with(logfmt, b""), r#""""#);
        assert_eq!(with(logfmt, b"/a/b"), "/a/b");
    }

    #[test]
    fn a_long_value_is_clipped_and_says_so() {
        let long = [b'a'; 5000];
        assert_eq!(with(json, &long).len(), CLIP + 2 + ELLIPSIS.len());
        assert!(with(combined, &long).ends_with("a..."));
        assert!(with(logfmt, &long).ends_with("…\""));
    }

    #[test]
    fn numbers_have_their_digits() {
        let mut out = Vec::new();
        millis(&mut out, Duration::from_micros(12_045));
        out.push(b' ');
        address(&mut out, "192.0.2.255".parse().unwrap());
        out.push(b' ');
        address(&mut out, "2001:db8::1".parse().unwrap());
        assert_eq!(out, b"12.045 192.0.2.255 2001:db8::1");
    }
}
