//! The part of an answer that its client has not yet taken, first in, first out, on the disk.
//!
//! One operation at a time runs on a disk thread; between them everything is arithmetic on two offsets, and what comes
//! meanwhile waits in memory. The offsets begin with a hole, so that what the client was offered and did not take can be put back
//! in front. What the client has taken is free again. A disk that is full or broken takes nothing more; what it did not take
//! stays in memory.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use super::{
    budget::Reserved,
    spill::Store,
    spool::{Refused, Space},
};
use crate::{
    accept::client::ClientKey,
    log::{Level, event},
    refusal::Refusal,
};

/// Bytes on their way through a file.
#[derive(Debug)]
pub struct Backlog {
    store: Arc<Store>,
    space: Arc<Space>,
    /// Comes first, and the disk did not take it.
    front: VecDeque<Bytes>,
    /// Came last, not yet on the disk.
    fresh: BytesMut,
    written: u64,
    read: u64,
    /// Bytes before `read` that were taken last, and are still on the disk.
    taken: usize,
    reserved: Reserved,
    work: Work,
    /// The disk takes no more.
    is_shut: bool,
    /// What was last to be written, and the budget had no room for it.
    refused: u64,
}

#[derive(Debug)]
enum Work {
    None,
    Writing {
        result: oneshot::Receiver<Result<(), Refused>>,
        start: u64,
        length: usize,
    },
    Reading(oneshot::Receiver<io::Result<Bytes>>),
    /// The thread that wrote is gone, and the bytes with it.
    Lost,
}

impl Backlog {
    /// An empty one.
    pub fn new(store: Arc<Store>, client: ClientKey) -> Self {
        let (reserved, space) = (store.disk.open_for(client), store.spool.space());
        Backlog {
            store,
            space,
            front: VecDeque::new(),
            fresh: BytesMut::new(),
            written: HOLE,
            read: HOLE,
            taken: 0,
            reserved,
            work: Work::None,
            is_shut: false,
            refused: 0,
        }
    }

    /// Bytes that are in memory only because the budget of the disk has no room for them.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Bytes that are not on the disk yet.
    pub fn in_memory(&self) -> usize {
        let on_their_way = match &self.work {
            Work::Writing { length, .. } => *length,
            Work::None | Work::Reading(_) | Work::Lost => 0,
        };
        let front: usize = self.front.iter().map(Bytes::len).sum();
        self.fresh.len().saturating_add(on_their_way).saturating_add(front)
    }

    /// Whether the disk is at something that was written.
    pub fn is_writing(&self) -> bool {
        matches!(self.work, Work::Writing { .. })
    }

    /// Adds bytes, and starts to write when there are enough of them and nothing else is going on.
    pub fn add(&mut self, bytes: Bytes) {
        if self.fresh.is_empty() && bytes.len() >= AS_IT_IS && self.may_write(self.written, bytes.len()) {
            return self.write(vec![bytes], self.written);
        }
        self.fresh.extend_from_slice(&bytes);
        if self.fresh.len() >= PIECE {
            self.put_away();
        }
    }

    /// Starts to write what is fresh, unless something else is going on or the budget has no room. Whether it did.
    pub fn put_away(&mut self) -> bool {
        let begun = !self.fresh.is_empty() && self.may_write(self.written, self.fresh.len());
        if begun {
            let bytes = std::mem::take(&mut self.fresh).freeze();
            self.write(vec![bytes], self.written);
        }
        begun
    }

    /// Starts to put pieces of `total` bytes in front of everything else. False, and the pieces are not asked for, where there
    /// is no room for them.
    pub fn put_first(&mut self, total: usize, pieces: impl FnOnce() -> Vec<Bytes>) -> bool {
        let Some(at) = self.read.checked_sub(total as u64).filter(|_| self.front.is_empty()) else { return false };
        if total == 0 || !self.may_write(at, total) {
            return false;
        }
        self.taken = 0;
        self.write(pieces(), at);
        true
    }

    /// The last `n` bytes that were taken are to be taken again. False where the disk does not have them.
    pub fn untake(&mut self, n: usize) -> bool {
        match (self.taken.checked_sub(n), self.read.checked_sub(n as u64)) {
            (Some(taken), Some(read)) => {
                (self.taken, self.read) = (taken, read);
                true
            }
            (None, _) | (_, None) => false,
        }
    }

    fn may_write(&mut self, start: u64, length: usize) -> bool {
        if !matches!(self.work, Work::None) || self.is_shut {
            return false;
        }
        let size = self.space.size_with(start..start.saturating_add(length as u64));
        let begins = self.reserved.resize(size);
        self.refused = if begins { 0 } else { size.saturating_sub(self.space.size()) };
        begins
    }

    fn write(&mut self, pieces: Vec<Bytes>, start: u64) {
        let length = pieces.iter().map(Bytes::len).sum();
        self.work = Work::Writing { result: self.space.write(pieces, start), start, length };
    }

    /// Waits for a write to end; a read is the client's affair.
    pub fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Work::Writing { result, start, length } = &mut self.work else { return Poll::Ready(()) };
        let (start, end) = (*start, start.saturating_add(*length as u64));
        match ready!(Pin::new(result).poll(cx)) {
            Ok(Ok(())) => {
                self.read = self.read.min(start);
                self.written = self.written.max(end);
            }
            Ok(Err(Refused { error, pieces })) => {
                event(Level::Error, "an answer cannot be kept on disk", &[("error", &error), ("remedy", &"check buffer.dir")]);
                self.is_shut = true;
                if start < self.read {
                    self.front = pieces.into();
                } else {
                    let mut fresh: BytesMut = pieces.concat().as_slice().into();
                    fresh.unsplit(std::mem::take(&mut self.fresh));
                    self.fresh = fresh;
                }
            }
            Err(_) => {
                let error = io::Error::from(io::ErrorKind::BrokenPipe);
                event(Level::Error, "an answer is lost on its way to the disk", &[("error", &error)]);
                self.work = Work::Lost;
                return Poll::Ready(());
            }
        }
        self.work = Work::None;
        Poll::Ready(())
    }

    /// The next bytes, at most `most`; `None` when all have been taken.
    pub fn poll_take(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<Result<Option<Bytes>, Refusal>> {
        loop {
            ready!(self.poll_settled(cx));
            if matches!(self.work, Work::Lost) {
                return Poll::Ready(Err(Refusal::BufferFull));
            }
            if let Some(first) = self.front.pop_front() {
                self.taken = 0;
                return Poll::Ready(Ok(Some(first)));
            }
            if let Work::Reading(result) = &mut self.work {
                let bytes = ready!(Pin::new(result).poll(cx));
                self.work = Work::None;
                let Ok(Ok(bytes)) = bytes else { return Poll::Ready(Err(Refusal::BufferFull)) };
                if self.space.forget(self.read) {
                    self.reserved.shrink_to(self.space.size());
                }
                self.taken = bytes.len();
                self.read = self.read.saturating_add(bytes.len() as u64);
                return Poll::Ready(Ok(Some(bytes)));
            }
            let waiting = usize::try_from(self.written.saturating_sub(self.read)).unwrap_or(usize::MAX);
            if waiting == 0 {
                self.rewind();
                return Poll::Ready(Ok(Some(std::mem::take(&mut self.fresh).freeze()).filter(|bytes| !bytes.is_empty())));
            }
            self.work = Work::Reading(self.space.read(self.read, waiting.min(most)));
        }
    }

    /// The client has caught up: everything on the disk is free.
    fn rewind(&mut self) {
        if self.space.size() > 0 {
            self.space = self.store.spool.space();
        }
        (self.written, self.read, self.taken) = (HOLE, HOLE, 0);
        self.reserved.clear();
    }
}

/// Bytes that are written at once.
const PIECE: usize = 64 * 1024;
/// A piece of this length is written as it is: to put it to others would cost a copy of it.
const AS_IT_IS: usize = 16 * 1024;
/// The number of the first byte: room in front of it for what comes back.
const HOLE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        layers::{spill, spool::Spool},
        units::ByteSize,
    };

    fn backlog(disk: u64) -> (tempfile::TempDir, Backlog) {
        backlog_on(disk, Spool::start)
    }

    /// One whose disk is always full.
    fn broken() -> (tempfile::TempDir, Backlog) {
        let full = || std::fs::File::options().write(true).open("/dev/full");
        backlog_on(1 << 30, |_| Spool::of([full()?, full()?]))
    }

    fn backlog_on(disk: u64, spool: impl FnOnce(&Path) -> io::Result<Spool>) -> (tempfile::TempDir, Backlog) {
        let dir = tempfile::tempdir().unwrap();
        let config = spill::Config { disk_total: ByteSize(disk), client_share: 1.0, dir: dir.path().to_owned(), ..Default::default() };
        let mut store = Store::start(&config).unwrap();
        Arc::get_mut(&mut store).unwrap().spool = spool(dir.path()).unwrap();
        let backlog = Backlog::new(store, ClientKey::of(std::net::Ipv4Addr::LOCALHOST.into()));
        (dir, backlog)
    }

    async fn settled(backlog: &mut Backlog) {
        std::future::poll_fn(|cx| backlog.poll_settled(cx)).await;
    }

    async fn drain(backlog: &mut Backlog) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = std::future::poll_fn(|cx| backlog.poll_take(cx, 16 * 1024)).await.unwrap() {
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
            backlog.add(bytes);
        }
        assert_eq!(drain(&mut backlog).await, expected);
        assert_eq!(backlog.store.disk.used(), 0, "the budget is free when the client has caught up");
    }

    #[tokio::test]
    async fn a_spent_budget_leaves_what_is_fresh_in_memory_and_asks_for_no_more() {
        let (_dir, mut backlog) = backlog(1000);
        backlog.add(Bytes::from(vec![7; PIECE]));
        settled(&mut backlog).await;
        assert_eq!(backlog.in_memory(), PIECE);
        assert_eq!(drain(&mut backlog).await.len(), PIECE);
        assert_eq!(backlog.in_memory(), 0);
    }

    #[tokio::test]
    async fn what_the_client_did_not_take_comes_first_again() {
        let (_dir, mut backlog) = backlog(1 << 30);
        assert!(backlog.put_first(8, || [&b"one "[..], b"two "].map(Bytes::from_static).to_vec()));
        settled(&mut backlog).await;
        backlog.add(Bytes::from_static(b"three "));
        backlog.put_away();
        settled(&mut backlog).await;
        let taken = std::future::poll_fn(|cx| backlog.poll_take(cx, 6)).await.unwrap().unwrap();
        assert_eq!(taken, "one tw");
        assert!(backlog.untake(3));
        assert!(backlog.put_first(5, || vec![Bytes::from_static(b"zero ")]));
        settled(&mut backlog).await;
        assert_eq!(drain(&mut backlog).await, b"zero  two three ".to_vec());
        assert!(!backlog.untake(1), "the file is gone");
        assert_eq!(backlog.store.disk.used(), 0);
    }

    #[tokio::test]
    async fn bytes_that_never_were_in_the_file_are_not_taken_from_it_again() {
        let (_dir, mut backlog) = backlog(1 << 30);
        backlog.add(Bytes::from_static(b"from memory"));
        assert_eq!(std::future::poll_fn(|cx| backlog.poll_take(cx, 6)).await.unwrap().unwrap(), "from memory");
        backlog.add(Bytes::from_static(b"next"));
        backlog.put_away();
        settled(&mut backlog).await;
        assert!(!backlog.untake(1));
        assert_eq!(drain(&mut backlog).await, b"next".to_vec());
    }

    #[tokio::test]
    async fn what_a_broken_disk_did_not_take_stays_in_memory_and_in_order() {
        let (_dir, mut backlog) = broken();
        backlog.add(Bytes::from(vec![1; PIECE]));
        backlog.add(Bytes::from_static(b"later"));
        settled(&mut backlog).await;
        assert!(backlog.is_shut && backlog.in_memory() == PIECE + 5 && !backlog.put_away());
        assert!(!backlog.put_first(3, || panic!("nothing may be taken")));
        assert_eq!(drain(&mut backlog).await, [vec![1; PIECE], b"later".to_vec()].concat());
        let (_dir, mut backlog) = broken();
        backlog.add(Bytes::from_static(b"second"));
        assert!(backlog.put_first(6, || vec![Bytes::from_static(b"first ")]));
        settled(&mut backlog).await;
        assert_eq!(drain(&mut backlog).await, b"first second".to_vec());
    }

    #[tokio::test]
    async fn a_spent_budget_takes_nothing_back() {
        let (_dir, mut backlog) = backlog(10);
        assert!(!backlog.put_first(12, || panic!("nothing may be taken")));
    }
}
