//! The count of Puma's threads, and who has one.

/// One thread of Puma, held until Puma's last byte; given back on drop.
#[derive(Debug)]
pub struct Slot {
    worker: u32,
}

impl Slot {
    /// The index of the worker (or socket) whose thread it is.
    pub fn worker(&self) -> u32 {
        self.worker
    }
}
