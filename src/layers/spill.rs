//! Unlinked 0600 files for bodies that are larger than memory allows, within the disk budget.

/// Bytes in an unlinked file; the budget gets them back when it is dropped.
#[derive(Debug)]
pub struct Spilled {
    len: u64,
}

impl Spilled {
    /// The number of bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Reads from `offset` on; 0 at the end.
    pub fn read_at(&self, _offset: u64, _into: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}
