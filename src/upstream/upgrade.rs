//! Puma's end of a connection that has switched protocols.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use bytes::Bytes;

use crate::upstream::connect::Stream;

/// Extension of a 101 response: the connection behind it. Only the first taker gets it.
#[derive(Clone, Debug)]
pub struct FarEnd(Arc<Mutex<Option<Tunnel>>>);

/// A connection to Puma that carries another protocol now.
#[derive(Debug)]
pub struct Tunnel {
    /// The connection.
    pub stream: Stream,
    /// What Puma sent right behind its 101.
    pub leftover: Bytes,
    /// Counts as an open upgrade until it is dropped. It takes none of Puma's threads: the application has its own.
    pub open: OpenUpgrade,
}

/// One open upgrade in the count.
#[derive(Debug)]
pub struct OpenUpgrade(Arc<AtomicU32>);

impl FarEnd {
    pub(super) fn new(stream: Stream, leftover: Bytes, open: OpenUpgrade) -> Self {
        FarEnd(Arc::new(Mutex::new(Some(Tunnel { stream, leftover, open }))))
    }

    /// The connection, once.
    pub fn take(&self) -> Option<Tunnel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl OpenUpgrade {
    pub(super) fn count(counter: &Arc<AtomicU32>) -> Self {
        counter.fetch_add(1, Relaxed);
        OpenUpgrade(Arc::clone(counter))
    }
}

impl Drop for OpenUpgrade {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
