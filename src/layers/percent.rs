//! Percent-encoding (RFC 3986 §2.1) and UTF-8 (RFC 3629), byte by byte and without memory.

/// A `%` that is not followed by two hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadEscape;

/// A byte, and whether it was written as `%XX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The byte that is meant.
    pub byte: u8,
    /// It stood as `%XX`.
    pub escaped: bool,
}

/// The bytes that percent-encoded text means.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

/// A validator that sees each byte once; refuses overlong forms, surrogates and what is above U+10FFFF.
#[derive(Clone, Copy, Debug)]
pub struct Utf8 {
    missing: u8,
    low: u8,
    high: u8,
}

impl<'a> Decoder<'a> {
    /// Reads `text` once from its start.
    pub fn new(text: &'a [u8]) -> Self {
        Decoder { rest: text }
    }
}

impl Iterator for Decoder<'_> {
    type Item = Result<Decoded, BadEscape>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        if first != b'%' {
            return Some(Ok(Decoded { byte: first, escaped: false }));
        }
        let Some((&[high, low], rest)) = rest.split_first_chunk::<2>() else {
            return Some(Err(BadEscape));
        };
        let (Some(high), Some(low)) = (hex(high), hex(low)) else {
            return Some(Err(BadEscape));
        };
        self.rest = rest;
        Some(Ok(Decoded { byte: (high << 4) | low, escaped: true }))
    }
}

impl Utf8 {
    /// Before the first byte.
    pub const fn new() -> Self {
        Utf8 { missing: 0, low: 0x80, high: 0xbf }
    }

    /// Takes the next byte; false when it cannot stand here.
    pub fn push(&mut self, byte: u8) -> bool {
        if self.missing > 0 {
            let fits = (self.low..=self.high).contains(&byte);
            *self = Utf8 { missing: self.missing.saturating_sub(1), ..Utf8::new() };
            return fits;
        }
        let (missing, low, high) = match byte {
            0x00..=0x7f => return true,
            0xc2..=0xdf => (1, 0x80, 0xbf),
            0xe0 => (2, 0xa0, 0xbf),
            0xed => (2, 0x80, 0x9f),
            0xe1..=0xef => (2, 0x80, 0xbf),
            0xf0 => (3, 0x90, 0xbf),
            0xf1..=0xf3 => (3, 0x80, 0xbf),
            0xf4 => (3, 0x80, 0x8f),
            _ => return false,
        };
        *self = Utf8 { missing, low, high };
        true
    }

    /// No character is cut off here.
    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }
}

impl Default for Utf8 {
    fn default() -> Self {
        Self::new()
    }
}

/// The value of a hexadecimal digit.
pub fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit.wrapping_sub(b'0')),
        b'a'..=b'f' => Some(digit.wrapping_sub(b'a').wrapping_add(10)),
        b'A'..=b'F' => Some(digit.wrapping_sub(b'A').wrapping_add(10)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(text: &str) -> Option<Vec<u8>> {
        Decoder::new(text.as_bytes()).map(|d| d.ok().map(|d| d.byte)).collect()
    }

    fn is_utf8(bytes: &[u8]) -> bool {
        let mut utf8 = Utf8::new();
        bytes.iter().all(|b| utf8.push(*b)) && utf8.is_complete()
    }

    #[test]
    fn an_escape_is_a_percent_sign_and_two_hexadecimal_digits() {
        assert_eq!(decode("a%2Fb%e6").unwrap(), b"a/b\xe6");
        for bad in ["%", "%4", "%zz", "%4g", "a%%41"] {
            assert!(decode(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn overlong_forms_and_surrogates_are_not_utf8() {
        for bad in [&b"\xc0\xaf"[..], b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff", b"\xe6\x97"] {
            assert!(!is_utf8(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn the_validator_agrees_with_the_standard_library(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            prop_assert_eq!(is_utf8(&bytes), std::str::from_utf8(&bytes).is_ok());
        }

        #[test]
        fn the_validator_takes_every_text(text in ".*") {
            prop_assert!(is_utf8(text.as_bytes()));
        }
    }
}
