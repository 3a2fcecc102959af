//! Where a body ends: Content-Length and Transfer-Encoding. RFC 9112 §6; *smuggling*.
//!
//! Puma was led astray by each of these: both fields at once (CVE-2022-24790), codings other than `chunked`
//! (CVE-2020-11076), underscores for dashes (CVE-2020-11077), lengths with signs or without digits (CVE-2023-40175).
//! RFC 9110 §8.6 allows to collapse equal Content-Lengths; that is a repair which versions of Puma make and others
//! refuse, so it is refused here.

use super::{Framing, Span, Version, line, rule::Rule};

/// What the fields of one head say about the end of its body.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Claims {
    length: Claim,
    coding: Claim,
    length_twin: bool,
    coding_twin: bool,
    other_twin: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum Claim {
    #[default]
    Absent,
    Once(Span),
    Repeated,
}

impl Claims {
    /// Takes note of a Content-Length field.
    pub fn length(&mut self, value: Span) {
        self.length.add(value);
    }

    /// Takes note of a Transfer-Encoding field.
    pub fn coding(&mut self, value: Span) {
        self.coding.add(value);
    }

    /// Takes note of a name with an underscore, if a field that frames or routes is meant by it.
    ///
    /// CGI's rule, which Puma follows, makes `-` and `_` the same; without both, the names are compared.
    pub fn underscored(&mut self, name: &[u8]) {
        let letters = name.iter().filter(|b| **b != b'_' && **b != b'-').map(u8::to_ascii_lowercase);
        let spells = |field: &[u8]| letters.clone().eq(field.iter().copied());
        self.length_twin |= spells(b"contentlength");
        self.coding_twin |= spells(b"transferencoding");
        self.other_twin |= spells(b"host") || spells(b"connection") || spells(b"upgrade");
    }

    /// Decides where the body ends.
    pub fn decide(&self, buf: &[u8], version: Version) -> Result<Framing, Rule> {
        let length = self.length.is_present() || self.length_twin;
        let coding = self.coding.is_present() || self.coding_twin;
        if length && coding {
            return Err(Rule::G10);
        }
        if coding && version == Version::Http10 {
            return Err(Rule::G12);
        }
        if self.length_twin || self.coding_twin || self.other_twin {
            return Err(Rule::G18);
        }
        match (self.coding, self.length) {
            (Claim::Repeated, _) => Err(Rule::G11),
            (Claim::Once(value), _) => coding_of(value.of(buf)),
            (Claim::Absent, Claim::Repeated) => Err(Rule::G13),
            (Claim::Absent, Claim::Once(value)) => length_of(value.of(buf)).map(Framing::Length).ok_or(Rule::G13),
            (Claim::Absent, Claim::Absent) => Ok(Framing::None),
        }
    }
}

impl Claim {
    fn add(&mut self, value: Span) {
        *self = match self {
            Claim::Absent => Claim::Once(value),
            Claim::Once(_) | Claim::Repeated => Claim::Repeated,
        };
    }

    fn is_present(self) -> bool {
        !matches!(self, Claim::Absent)
    }
}

/// A well-formed list that ends in `chunked` or never names it is one that we do not implement; the rest is malformed.
fn coding_of(value: &[u8]) -> Result<Framing, Rule> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(Framing::Chunked);
    }
    let mut chunked = false;
    for coding in line::members(value) {
        if chunked || !line::is_token(coding) {
            return Err(Rule::G11);
        }
        chunked = coding.eq_ignore_ascii_case(b"chunked");
    }
    Err(Rule::G11Unknown)
}

/// 1*DIGIT. More than 19 digits after the zeros in front do not fit into 64 bits in every recipient.
fn length_of(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let zeros = value.iter().take_while(|b| **b == b'0').count();
    let digits = value.get(zeros..).filter(|digits| digits.len() <= LENGTH_DIGITS)?;
    digits.iter().try_fold(0_u64, |sum, digit| sum.checked_mul(10)?.checked_add(u64::from(digit & 0x0f)))
}

const LENGTH_DIGITS: usize = 19;
