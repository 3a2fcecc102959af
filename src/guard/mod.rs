//! Bytes: one reading or a refusal. Sans-IO.
pub mod answer;
pub mod chunked;
pub mod rule;

/// A range of a buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    /// Its bytes.
    pub fn of(self, buf: &[u8]) -> &[u8] {
        buf.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// One field line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Field {
    pub name: Span,
    pub value: Span,
}

/// HTTP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// Limits.
#[derive(Clone, Debug)]
pub struct Limits {
    pub chunk_line: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { chunk_line: 256 }
    }
}
