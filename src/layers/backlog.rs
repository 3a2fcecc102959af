//! The part of an answer that its client has not yet taken, first in, first out, in an unlinked file.
//!
//! One operation at a time runs on the disk threads; between them everything is arithmetic on two offsets. The file is cut
//! back to nothing whenever the client has caught up.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use super::{
    budget::Reserved,
    spill::{Store, finished, unlinked},
};
use crate::{accept::client::ClientKey, refusal::Refusal};

/// Bytes on their way through a file.
#[derive(Debug)]
pub struct Backlog {
    store: Arc<Store>,
    dir: PathBuf,
    file: Option<Arc<File>>,
    /// Came last, not yet in the file.
    fresh: BytesMut,
    written: u64,
    read: u64,
    /// Bytes of the last piece that can be given back.
    returnable: u64,
    reserved: Reserved,
    work: Work,
    has_failed: bool,
}

#[derive(Debug)]
enum Work {
    None,
    Writing(oneshot::Receiver<io::Result<(Arc<File>, u64)>>),
    Reading(oneshot::Receiver<io::Result<Bytes>>),
}

impl Backlog {
    /// An empty one; the file is made when it is needed.
    pub fn new(store: Arc<Store>, dir: PathBuf, client: ClientKey) -> Self {
        let reserved = store.disk.open_for(client);
        Backlog { store, dir, file: None, fresh: BytesMut::new(), written: 0, read: 0, returnable: 0, reserved, work: Work::None, has_failed: false }
    }

    /// Whether more may be added now.
    pub fn has_room(&self) -> bool {
        !self.has_failed && self.fresh.len() < PIECE
    }

    /// Adds bytes, and starts to write when a piece is full.
    pub fn add(&mut self, bytes: &Bytes) {
        self.fresh.extend_from_slice(bytes);
        if self.fresh.len() >= PIECE {
            self.put_away();
        }
    }

    /// Starts to write what is fresh, unless something else is going on or the budget has no room.
    pub fn put_away(&mut self) {
        if self.fresh.is_empty() || !matches!(self.work, Work::None) || self.has_failed || !self.reserved.grow(self.fresh.len() as u64) {
            return;
        }
        let (file, dir, at) = (self.file.clone(), self.dir.clone(), self.written);
        let bytes = std::mem::take(&mut self.fresh).freeze();
        self.work = Work::Writing(self.store.run(move || {
            let file = match file {
                Some(file) => file,
                None => Arc::new(unlinked(&dir)?),
            };
            file.write_all_at(&bytes, at)?;
            Ok((file, bytes.len() as u64))
        }));
    }

    /// Takes the end of the last piece back; false where its place is taken by what came later.
    pub fn give_back(&mut self, rest: &Bytes) -> bool {
        let length = rest.len() as u64;
        if length <= self.returnable {
            self.returnable = self.returnable.saturating_sub(length);
            self.read = self.read.saturating_sub(length);
            return true;
        }
        let is_empty = self.fresh.is_empty() && self.read >= self.written && matches!(self.work, Work::None);
        if is_empty {
            self.add(rest);
        }
        is_empty
    }

    /// Waits for a write to end; a read is the client's affair.
    pub fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Work::Writing(result) = &mut self.work else { return Poll::Ready(()) };
        match finished(ready!(Pin::new(result).poll(cx))) {
            Ok((file, wrote)) => {
                self.file = Some(file);
                self.written = self.written.saturating_add(wrote);
            }
            Err(_) => self.has_failed = true,
        }
        self.work = Work::None;
        Poll::Ready(())
    }

    /// The next bytes; `None` when all have been taken.
    pub fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Refusal>> {
        loop {
            ready!(self.poll_settled(cx));
            if self.has_failed {
                return Poll::Ready(Err(Refusal::BufferFull));
            }
            if let Work::Reading(result) = &mut self.work {
                let bytes = finished(ready!(Pin::new(result).poll(cx)));
                self.work = Work::None;
                let Ok(bytes) = bytes else { return Poll::Ready(Err(Refusal::BufferFull)) };
                self.returnable = bytes.len() as u64;
                self.read = self.read.saturating_add(self.returnable);
                return Poll::Ready(Ok(Some(bytes)));
            }
            let waiting = self.written.saturating_sub(self.read);
            match &self.file {
                Some(file) if waiting > 0 => {
                    let (file, at) = (Arc::clone(file), self.read);
                    let size = usize::try_from(waiting).unwrap_or(usize::MAX).min(READ);
                    self.work = Work::Reading(self.store.run(move || {
                        let mut bytes = vec![0; size];
                        file.read_exact_at(&mut bytes, at)?;
                        Ok(bytes.into())
                    }));
                }
                Some(_) | None => {
                    self.rewind();
                    return Poll::Ready(Ok(Some(std::mem::take(&mut self.fresh).freeze()).filter(|bytes| !bytes.is_empty())));
                }
            }
        }
    }

    /// The client has caught up: the file is empty again, and its budget free.
    fn rewind(&mut self) {
        (self.written, self.read, self.returnable, self.file) = (0, 0, 0, None);
        self.reserved.clear();
    }
}

/// Bytes that are written at once.
const PIECE: usize = 256 * 1024;
/// Bytes that are read back at once: what a slow reader costs in memory.
const READ: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{layers::spill, units::ByteSize};

    fn backlog(disk: u64) -> (tempfile::TempDir, Backlog) {
        let dir = tempfile::tempdir().unwrap();
        let config = spill::Config { disk_total: ByteSize(disk), client_share: 1.0, dir: dir.path().to_owned(), ..Default::default() };
        let store = Store::start(&config).unwrap();
        let backlog = Backlog::new(store, config.dir, ClientKey::of(std::net::Ipv4Addr::LOCALHOST.into()));
        (dir, backlog)
    }

    async fn settled(backlog: &mut Backlog) {
        std::future::poll_fn(|cx| backlog.poll_settled(cx)).await;
    }

    async fn drain(backlog: &mut Backlog) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = std::future::poll_fn(|cx| backlog.poll_take(cx)).await.unwrap() {
            all.extend_from_slice(&bytes);
        }
        all
    }

    #[tokio::test]
    async fn bytes_come_out_in_the_order_in_which_they_went_in() {
        let (_dir, mut backlog) = backlog(1 << 30);
        let mut expected = Vec::new();
        for n in 0..40u8 {
            let bytes = Bytes::from(vec![n; 50_000]);
            expected.extend_from_slice(&bytes);
            settled(&mut backlog).await;
            backlog.add(&bytes);
        }
        assert_eq!(drain(&mut backlog).await, expected);
        assert_eq!(backlog.store.disk.used(), 0, "the budget is free when the client has caught up");
    }

    #[tokio::test]
    async fn a_spent_budget_leaves_what_is_fresh_in_memory_and_asks_for_no_more() {
        let (_dir, mut backlog) = backlog(1000);
        backlog.add(&Bytes::from(vec![7; PIECE]));
        settled(&mut backlog).await;
        assert!(!backlog.has_room());
        assert_eq!(drain(&mut backlog).await.len(), PIECE);
        assert!(backlog.has_room());
    }
}
