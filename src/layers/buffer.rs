//! Takes a request in whole: memory first, then an unlinked file, both within a budget.
use bytes::Bytes;

use crate::layers::{slots::Slot, spill::Spilled};

/// A request body that is here to its last byte. Only this layer makes one.
#[derive(Debug)]
pub struct Complete {
    content: Content,
    slot: Option<Slot>,
}

/// Where a complete body is.
#[derive(Debug)]
pub enum Content {
    /// There is none: neither Content-Length nor chunks arrived.
    None,
    /// In memory; may be empty when the client declared an empty body.
    Memory(Bytes),
    /// In an unlinked file.
    File(Spilled),
}

impl Complete {
    /// Its length in bytes; `None` where the client sent no body at all.
    pub fn len(&self) -> Option<u64> {
        match &self.content {
            Content::None => None,
            Content::Memory(bytes) => Some(bytes.len() as u64),
            Content::File(file) => Some(file.len()),
        }
    }

    /// A body as tests need it.
    #[cfg(test)]
    pub(crate) fn for_test(content: Content) -> Self {
        Complete { content, slot: None }
    }

    /// Where it is.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Binds one of Puma's threads to the request (`in_flight` does).
    pub fn admit(&mut self, slot: Slot) {
        self.slot = Some(slot);
    }

    /// The thread that was bound, and the content.
    pub fn into_parts(self) -> (Option<Slot>, Content) {
        (self.slot, self.content)
    }
}
