//! Bytes: one reading or a refusal. Sans-IO.
//!
//! The one place where the bytes of an HTTP/1 message get a meaning. Threat: *smuggling*; two recipients that read the
//! same bytes differently are the attack, so whatever has no single reading under RFC 9112 is refused, never repaired
//! (Puma's own repairs are CVE-2020-11076, -11077, CVE-2021-41136, CVE-2022-24790, CVE-2023-40175, CVE-2024-21647).
//!
//! Place: first behind the socket. A refusal closes the connection; no byte behind the error is ever parsed.
//!
//! The verdict does not depend on how the bytes were cut into reads. Inside a head it is found in this order:
//! 1. by byte, as soon as the byte is there: line endings (G1), control bytes (G2), blanks at the start of a line (G3),
//!    empty lines in front (G4), and the limits on the request line (G7) and the head (G9);
//! 2. the request line (G5, G6, G7, G8), as soon as its CRLF is there and before any byte behind it is looked at;
//! 3. the field lines from top to bottom (G9), once the head is complete;
//! 4. what the fields say together: G10, G12, G18, G11, G13, G17.
//!
//! With `monitor`, a rule is noted in [`head::Head::observed`] instead of refusing only where the request keeps exactly
//! one reading and Puma takes it: G9 for a single name or value above its limit (the head's limit still holds, and so does
//! Puma's own of 256 bytes a name). Everything else concerns framing, routing or the end of the head and is refused in every
//! mode.

pub mod answer;
pub mod chunked;
mod framing;
pub mod head;
mod line;
pub mod pipeline;
pub mod rule;
pub mod target;

/// Limits on a request's head and on the lines of a chunked body, in bytes unless they count something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The request target. Default: 8 KiB.
    pub target: usize,
    /// The head, from its first byte (empty lines in front included) to its empty line. Default: 32 KiB.
    pub head: usize,
    /// Number of field lines. Default: 100.
    pub fields: usize,
    /// A field name. Default: 256.
    pub name: usize,
    /// A field value without the blanks around it. Default: 16 KiB.
    pub value: usize,
    /// A chunk-size line without its CRLF. Default: 256.
    pub chunk_line: usize,
    /// All chunk extensions of one body. Default: 4 KiB.
    pub chunk_extensions: usize,
    /// The trailer section. Default: 8 KiB.
    pub trailer: usize,
    /// Number of trailer lines. Default: 32.
    pub trailer_fields: usize,
    /// Note what can be noted without harm instead of refusing it. Default: off.
    pub monitor: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            target: 8192,
            head: 32768,
            fields: 100,
            name: 256,
            value: 16384,
            chunk_line: 256,
            chunk_extensions: 4096,
            trailer: 8192,
            trailer_fields: 32,
            monitor: false,
        }
    }
}

/// A part of a head, as offsets into the buffer that holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Offset of its first byte.
    pub start: u32,
    /// Offset behind its last byte.
    pub end: u32,
}

impl Span {
    /// The bytes of this part; empty when `buf` does not hold them.
    pub fn of(self, buf: &[u8]) -> &[u8] {
        let (Ok(start), Ok(end)) = (usize::try_from(self.start), usize::try_from(self.end)) else { return &[] };
        buf.get(start..end).unwrap_or_default()
    }

    /// Whether it has no byte.
    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// Number of bytes.
    pub fn len(self) -> usize {
        usize::try_from(self.end.saturating_sub(self.start)).unwrap_or(usize::MAX)
    }

    fn new(start: usize, end: usize) -> Span {
        Span { start: u32::try_from(start).unwrap_or(u32::MAX), end: u32::try_from(end).unwrap_or(u32::MAX) }
    }
}

/// A field line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// A token, in the sender's case.
    pub name: Span,
    /// Without the blanks around it.
    pub value: Span,
}

/// The version of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
}

/// Where the body of a request ends, RFC 9112 §6.3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    #[default]
    None,
    /// After this many bytes.
    Length(u64),
    /// After the last chunk and its trailer section.
    Chunked,
}

/// The form of a request target, RFC 9112 §3.2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// `/path?query`.
    #[default]
    Origin,
    /// `http://authority/path?query`.
    Absolute,
    /// `*`, only with OPTIONS.
    Asterisk,
}

#[cfg(test)]
mod tests;
