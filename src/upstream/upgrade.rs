//! Puma's end of a connection that has switched protocols, in the count of open upgrades.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use bytes::Bytes;

use crate::{
    http::upgrade::{Far, FarEnd},
    upstream::connect::Stream,
};

/// One open upgrade in the count. It takes none of Puma's threads: the application has its own.
#[derive(Debug)]
struct OpenUpgrade(Arc<AtomicU32>);

/// The end of a tunnel: the connection, and what Puma sent right behind its 101.
pub(super) fn far_end(stream: Stream, leftover: Bytes, counter: &Arc<AtomicU32>) -> FarEnd {
    counter.fetch_add(1, Relaxed);
    FarEnd::new(Far { stream: Box::pin(stream), early: leftover, place: Box::new(OpenUpgrade(Arc::clone(counter))) })
}

impl Drop for OpenUpgrade {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
