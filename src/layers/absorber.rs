//! An answer between Puma and a client: what has come and not yet gone, in memory and then in a file.
//!
//! Threat: slowloris by slow reading. Part of [`relay`](super::relay). A client that takes longer than a second for a piece
//! costs next to no memory: what it was offered and what waits behind that goes to the file, too, and comes back in small
//! pieces. When bodies hold much memory already nobody has that second. What waits in memory is in the books of the client;
//! where they are full, the file takes it, and where that is full, the slowest [`standing`](super::standing) go, and Puma waits.
//! It takes in one piece in each turn of the loop, and only so many of them do at a time ([`passage`](super::passage)): what
//! thousands of slow clients cost an honest one is bounded.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Sleep;

use super::{
    appetite::Appetite,
    backlog::Backlog,
    budget::Reserved,
    passage::Passage,
    spill::{Config, Store},
    stall::Stall,
    standing::Enrolled,
};
use crate::{
    accept::client::ClientKey,
    http::body::{LARGEST_PIECE, Source},
    refusal::Refusal,
};

/// What has come from Puma and not yet gone to the client.
#[derive(Debug)]
pub struct Absorber<B> {
    inner: Option<B>,
    left: Option<u64>,
    queue: VecDeque<Bytes>,
    queued: usize,
    backlog: Option<Backlog>,
    enrolled: Option<Enrolled>,
    failed: Option<Refusal>,
    stall: Stall,
    /// When to look for room again.
    retry: Option<Pin<Box<Sleep>>>,
    /// What waits in memory: here, in the backlog, and with whoever writes it to the client.
    held: Reserved,
    /// Bytes that were taken back; the next pieces end where they end.
    again: usize,
    /// How much is read back at once.
    step: usize,
    /// How much is read from Puma at once.
    appetite: Appetite,
    /// Where the disk takes what comes.
    passage: Passage,
    place: Place,
}

/// Where it goes and who answers for it.
#[derive(Debug)]
pub struct Place {
    store: Arc<Store>,
    client: ClientKey,
    /// Bytes of one answer that may wait in memory.
    most: usize,
}

impl Place {
    /// As `config` says, in the books of `store` under `client`.
    pub fn new(store: &Arc<Store>, config: &Config, client: ClientKey) -> Self {
        Place { store: Arc::clone(store), client, most: config.memory_per_request.as_usize() }
    }
}

impl<B> Absorber<B> {
    /// An answer of which `first` has come and `left` bytes, if that is known, are to come with it. Whoever takes its pieces
    /// says how large they may be.
    pub fn new(inner: B, first: Option<Bytes>, left: Option<u64>, largest: usize, place: Place) -> Self {
        let queue: VecDeque<Bytes> = first.into_iter().filter(|bytes| !bytes.is_empty()).collect();
        Absorber {
            inner: Some(inner),
            left,
            queued: queue.iter().map(Bytes::len).sum(),
            queue,
            backlog: None,
            enrolled: None,
            failed: None,
            stall: Stall::default(),
            retry: None,
            held: place.store.memory.open_for(place.client),
            again: 0,
            step: STEP_MOST,
            appetite: Appetite::new(largest),
            passage: Passage::None,
            place,
        }
    }

    /// Bytes that the client has yet to take, where that is known.
    pub fn left(&self) -> Option<u64> {
        self.left
    }

    /// Whether nothing is to come.
    pub fn is_end(&self) -> bool {
        self.inner.is_none() && self.queue.is_empty() && self.backlog.is_none() && self.failed.is_none()
    }
}

impl<B: Source + Unpin> Absorber<B> {
    /// Takes in what Puma has sent, as far as there is room for it, and frees memory when the client stands still.
    pub fn poll_absorb(&mut self, cx: &mut Context<'_>, unsent: &mut Bytes) {
        self.absorb(cx, unsent);
        let in_memory = self.in_memory(unsent);
        // Room for it was taken before it was read; only what Palisade itself holds at the very first may find none.
        if !self.held.resize(in_memory as u64) {
            self.held.clear();
        }
    }

    fn in_memory(&self, unsent: &Bytes) -> usize {
        let fresh = self.backlog.as_ref().map_or(0, Backlog::in_memory);
        unsent.len().saturating_add(self.queued).saturating_add(fresh)
    }

    fn absorb(&mut self, cx: &mut Context<'_>, unsent: &mut Bytes) {
        if self.enrolled.as_ref().is_some_and(|enrolled| enrolled.is_dismissed(cx.waker())) {
            self.dismiss(unsent);
            cx.waker().wake_by_ref();
            return;
        }
        let has_passed = self.stall.poll_passed(cx);
        loop {
            let memory = &self.place.store.memory;
            let has_stalled = has_passed || memory.is_crowded();
            if !has_stalled {
                self.passage = Passage::None;
            }
            if has_stalled {
                self.appetite.start_again();
            }
            let (most, piece) = match has_stalled || memory.is_tight() {
                true => (LARGEST_PIECE, LARGEST_PIECE),
                false => (self.place.most, self.appetite.piece(&self.place.store.large_pieces).max(LARGEST_PIECE)),
            };
            let is_writing = self.backlog.as_mut().is_some_and(|backlog| backlog.poll_settled(cx).is_pending());
            if !is_writing && has_stalled && self.step_back(unsent) {
                continue;
            }
            // The steps of what is on its way have to find room beside what waits.
            let waits = most.saturating_sub(LARGEST_PIECE.saturating_mul(4)).max(IN_MEMORY);
            if self.backlog.is_none() && self.queued >= waits {
                self.backlog = Some(self.new_backlog());
            }
            // While the disk is at it Puma need not wait: what comes has room in memory within the budget.
            let wanted = self.in_memory(unsent).saturating_add(piece);
            let fits = wanted <= most.max(IN_MEMORY.saturating_add(LARGEST_PIECE));
            let has_room = fits && self.held.resize(wanted as u64);
            let read = match &mut self.inner {
                Some(inner) if has_room && (!has_stalled || self.passage.poll_open(cx, &self.place.store.passages)) => {
                    inner.at_once(piece);
                    Pin::new(inner).poll_frame(cx)
                }
                Some(_) | None => Poll::Pending,
            };
            match read {
                Poll::Ready(None) => self.inner = None,
                Poll::Ready(Some(Err(refusal))) => {
                    self.inner = None;
                    self.failed = Some(refusal);
                }
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    self.passage.passed(data.len());
                    match &mut self.backlog {
                        Some(backlog) => backlog.add(data),
                        None => {
                            self.queued = self.queued.saturating_add(data.len());
                            self.queue.push_back(data);
                        }
                    }
                    // The next piece when the other connections have had their turn: this client is slow anyway.
                    cx.waker().wake_by_ref();
                    return;
                }
                Poll::Pending => {
                    let is_over = self.inner.is_none() || !has_room || has_stalled;
                    if !is_writing && is_over && self.backlog.as_mut().is_some_and(Backlog::put_away) {
                        continue;
                    }
                    let refused = self.backlog.as_ref().map_or(0, Backlog::refused);
                    if self.inner.is_some() && !has_room && !is_writing && (fits || refused > 0) {
                        self.ask_for_room(cx, refused);
                    }
                    return self.give_way(cx);
                }
            }
        }
    }

    /// Others may read when Puma has nothing more and the disk has what came, or when it was long enough.
    fn give_way(&mut self, cx: &mut Context<'_>) {
        let is_open = matches!(self.passage, Passage::Open { .. });
        if is_open && !self.backlog.as_ref().is_some_and(Backlog::is_writing) {
            let wants_more = self.passage.is_over();
            self.passage = Passage::None;
            if wants_more {
                cx.waker().wake_by_ref();
            }
        }
    }

    /// Puma waits for want of room: the slowest clients go, and here it looks again a little later.
    fn ask_for_room(&mut self, cx: &mut Context<'_>, refused: u64) {
        let (store, client) = (&self.place.store, self.place.client);
        let is_spent = store.memory.is_spent(LARGEST_PIECE as u64) || store.disk.is_spent(refused);
        store.standing.give_way((!is_spent).then_some(client));
        let again = tokio::time::Instant::now() + RETRY;
        let retry = self.retry.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(again)));
        if retry.as_mut().poll(cx).is_ready() {
            retry.as_mut().reset(again);
            // Registers for the new moment.
            if retry.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
    }

    /// The answer ends here: what waits is thrown away, and Puma is let go.
    fn dismiss(&mut self, unsent: &mut Bytes) {
        (self.inner, self.backlog, self.enrolled, self.retry) = (None, None, None, None);
        self.passage = Passage::None;
        self.queue.clear();
        self.queued = 0;
        unsent.clear();
        self.failed = Some(Refusal::BufferFull);
    }

    /// Moves what waits in memory to the front of the file, but for a few bytes: without them the client would be given the next
    /// piece at once, which it would not take either. True when a write has begun.
    fn step_back(&mut self, unsent: &mut Bytes) -> bool {
        let stay = unsent.len().min(STAY);
        let n = unsent.len().saturating_sub(stay);
        if n > 0 && self.queue.is_empty() && self.backlog.as_mut().is_some_and(|backlog| backlog.untake(n)) {
            self.taken_back(n);
            keep(unsent, stay);
            return false;
        }
        let total = n.saturating_add(self.queued);
        if total <= WORTHLESS {
            keep(unsent, usize::MAX);
            return false;
        }
        if self.backlog.is_none() {
            self.backlog = Some(self.new_backlog());
        }
        let queue = &mut self.queue;
        let pieces = || {
            let first = Some(unsent.slice(stay..)).filter(|bytes| !bytes.is_empty());
            first.into_iter().chain(queue.drain(..)).collect()
        };
        let begun = self.backlog.as_mut().is_some_and(|backlog| backlog.put_first(total, pieces));
        if begun {
            self.queued = 0;
            self.taken_back(n);
            keep(unsent, stay);
        }
        begun
    }

    fn taken_back(&mut self, n: usize) {
        if let Some(enrolled) = &self.enrolled {
            enrolled.left(n);
        }
        self.again = self.again.saturating_add(n);
        self.step = STEP_LEAST;
        self.stall.pass();
        if let Some(left) = &mut self.left {
            *left = left.saturating_add(n as u64);
        }
    }

    fn new_backlog(&mut self) -> Backlog {
        self.enrolled = Some(self.place.store.standing.enrol(self.place.client));
        Backlog::new(Arc::clone(&self.place.store), self.place.client)
    }

    /// The next piece for the client.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Refusal>>> {
        if self.queue.is_empty() && self.backlog.is_none() && !self.held.is_empty() {
            self.held.clear();
        }
        // The client may have taken what it was left while the disk is still at the rest.
        if !self.backlog.as_ref().is_some_and(Backlog::is_writing) {
            self.passage = Passage::None;
        }
        if !self.stall.end() {
            self.step = self.step.saturating_mul(2).min(STEP_MOST);
        }
        if let Some(piece) = self.queue.pop_front() {
            self.queued = self.queued.saturating_sub(piece.len());
            return self.gone(piece);
        }
        if let Some(backlog) = &mut self.backlog {
            let most = if self.again > 0 { self.again.min(self.step) } else { self.step };
            match ready!(backlog.poll_take(cx, most)) {
                Ok(Some(piece)) => {
                    self.again = self.again.saturating_sub(piece.len());
                    return self.gone(piece);
                }
                Ok(None) => (self.backlog, self.enrolled) = (None, None),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(self.failed.take().map(Err));
        };
        let store = &self.place.store;
        if store.memory.is_crowded() {
            self.appetite.start_again();
        }
        inner.at_once(self.appetite.piece(&store.large_pieces));
        match ready!(Pin::new(inner).poll_frame(cx)) {
            None => {
                self.inner = None;
                Poll::Ready(None)
            }
            Some(Err(refusal)) => {
                self.inner = None;
                Poll::Ready(Some(Err(refusal)))
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(piece) => self.gone(piece),
                Err(_) => self.gone(Bytes::new()),
            },
        }
    }

    fn gone(&mut self, piece: Bytes) -> Poll<Option<Result<Bytes, Refusal>>> {
        self.appetite.took(piece.len());
        if let Some(enrolled) = &self.enrolled {
            enrolled.took(piece.len());
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(piece.len() as u64);
        }
        Poll::Ready(Some(Ok(piece)))
    }
}

/// Leaves the first bytes in memory of their own: the allocation that they are a part of may be large.
fn keep(unsent: &mut Bytes, most: usize) {
    *unsent = Bytes::copy_from_slice(unsent.get(..most).unwrap_or(unsent));
}

/// Bytes of an answer that wait in memory before a file takes the rest.
const IN_MEMORY: usize = 64 * 1024;
/// Bytes that are read back from the file at once: for a client that has just stood still, and for one that keeps up.
const STEP_LEAST: usize = 4 * 1024;
const STEP_MOST: usize = 64 * 1024;
/// Bytes in memory for which a write to the file does not pay.
const WORTHLESS: usize = 1024;
/// Bytes of its piece that a client keeps when the rest is taken back.
const STAY: usize = 256;
/// How long Puma waits until room is looked for again.
const RETRY: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use http_body::{Body, Frame};

    use super::*;
    use crate::{
        layers::{appetite, stall::PATIENCE},
        units::ByteSize,
    };

    /// A body of pieces; `None` in it means that Puma has nothing yet, once.
    #[derive(Debug)]
    struct Pieces(VecDeque<Option<Result<Bytes, Refusal>>>);

    impl Source for Pieces {}

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Refusal;
        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
            match self.0.pop_front() {
                Some(Some(piece)) => Poll::Ready(Some(piece.map(Frame::data))),
                Some(None) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                None => Poll::Ready(None),
            }
        }
    }

    fn absorber(disk: u64, pieces: Vec<Option<Result<Bytes, Refusal>>>) -> (tempfile::TempDir, Arc<Store>, Box<Absorber<Pieces>>) {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { disk_total: ByteSize(disk), client_share: 1.0, dir: dir.path().to_owned(), ..Config::default() };
        let store = Store::start(&config).unwrap();
        let place = Place::new(&store, &config, ClientKey::of(std::net::Ipv4Addr::LOCALHOST.into()));
        let absorber = Box::new(Absorber::new(Pieces(pieces.into()), None, None, appetite::MOST, place));
        (dir, store, absorber)
    }

    fn pieces(sizes: &[usize]) -> (Vec<Option<Result<Bytes, Refusal>>>, Vec<u8>) {
        let all: Vec<u8> = (0..sizes.iter().sum::<usize>()).map(|n| (n / 7 % 251) as u8).collect();
        let mut rest = Bytes::from(all.clone());
        (sizes.iter().map(|n| Some(Ok(rest.split_to(*n)))).collect(), all)
    }

    /// The client has not taken `unsent`; as often as the disk needs.
    async fn stand_still(absorber: &mut Absorber<Pieces>, unsent: &mut Bytes, turns: usize) {
        for _ in 0..turns {
            std::future::poll_fn(|cx| {
                absorber.poll_absorb(cx, unsent);
                Poll::Ready(())
            })
            .await;
            std::thread::sleep(Duration::from_micros(500));
            tokio::task::yield_now().await;
        }
    }

    async fn next(absorber: &mut Absorber<Pieces>) -> Option<Bytes> {
        std::future::poll_fn(|cx| absorber.poll_piece(cx)).await.map(Result::unwrap)
    }

    #[tokio::test(start_paused = true)]
    async fn each_turn_takes_one_piece_and_asks_for_the_next_turn_itself() {
        let (sent, _) = pieces(&[1000; 3]);
        let (_dir, _store, mut absorber) = absorber(1 << 30, sent);
        let mut turns = Vec::new();
        std::future::poll_fn(|cx| {
            absorber.poll_absorb(cx, &mut Bytes::new());
            turns.push(absorber.queued);
            // Nobody else wakes it: that it goes on shows that it was woken.
            if absorber.inner.is_none() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        assert_eq!(turns, [1000, 2000, 3000, 3000]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stands_still_holds_nothing_in_memory() {
        let (sent, all) = pieces(&[60_000; 20]);
        let (_dir, store, mut absorber) = absorber(1 << 30, sent);
        let mut unsent = next(&mut absorber).await.unwrap().slice(100..);
        stand_still(&mut absorber, &mut unsent, 1).await;
        assert_eq!(unsent.len(), 59_900, "for a moment it may keep its piece");
        tokio::time::advance(PATIENCE * 2).await;
        stand_still(&mut absorber, &mut unsent, 200).await;
        assert!(absorber.queue.is_empty() && absorber.inner.is_none(), "Puma is done, memory is free");
        assert_eq!(unsent.len(), 256, "without any the next piece would be fetched, to be taken back as well");
        assert!(store.disk.used() >= 1_199_900 - 60_000);
        let mut got = all[..100].to_vec();
        got.extend_from_slice(&unsent);
        let first = next(&mut absorber).await.unwrap();
        assert!(first.len() <= 2 * STEP_LEAST, "{}", first.len());
        got.extend_from_slice(&first);
        while let Some(piece) = next(&mut absorber).await {
            got.extend_from_slice(&piece);
        }
        assert!(got == all);
        assert_eq!(store.disk.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_bytes_of_a_piece_do_not_keep_the_memory_of_all_of_it() {
        let (sent, _) = pieces(&[60_000]);
        let (_dir, _store, mut absorber) = absorber(1 << 30, sent);
        let piece = next(&mut absorber).await.unwrap();
        let mut unsent = piece.slice(59_900..);
        stand_still(&mut absorber, &mut unsent, 1).await;
        tokio::time::advance(PATIENCE * 2).await;
        stand_still(&mut absorber, &mut unsent, 1).await;
        assert!(unsent == piece.slice(59_900..) && unsent.is_unique());
    }

    #[tokio::test(start_paused = true)]
    async fn the_passage_is_kept_while_the_disk_is_at_its_piece() {
        let (sent, _) = pieces(&[60_000; 20]);
        let (_dir, _store, mut absorber) = absorber(1 << 30, sent);
        let mut unsent = next(&mut absorber).await.unwrap();
        stand_still(&mut absorber, &mut unsent, 1).await;
        tokio::time::advance(PATIENCE * 2).await;
        while !absorber.backlog.as_ref().is_some_and(Backlog::is_writing) || matches!(absorber.passage, Passage::None) {
            stand_still(&mut absorber, &mut unsent, 1).await;
        }
        assert_eq!(unsent.len(), STAY, "the client has taken them meanwhile, and asks");
        std::future::poll_fn(|cx| {
            // The disk may be done by now, but nobody has looked.
            let piece = absorber.poll_piece(cx);
            assert!(matches!(absorber.passage, Passage::Open { .. }), "{piece:?}");
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_a_client_takes_and_leaves_it_gets_every_byte_once_and_in_order() {
        fastrand::seed(7);
        // While a blocking task runs the paused clock stands, however long the disk takes.
        let (end, until_end) = std::sync::mpsc::channel::<()>();
        #[expect(clippy::disallowed_methods, reason = "the clock heeds blocking tasks of the runtime only")]
        let clock = tokio::task::spawn_blocking(move || until_end.recv());
        for round in 0..15 {
            let sizes: Vec<usize> = (0..fastrand::usize(2..16)).map(|_| fastrand::usize(1..40_000)).collect();
            let (mut sent, all) = pieces(&sizes);
            for _ in 0..fastrand::usize(0..5) {
                sent.insert(fastrand::usize(1..=sent.len()), None);
            }
            // Where the budget is spent, who stands still for three seconds would be let go.
            let (disk, stops) = if round % 3 == 0 { (200_000, 1) } else { (1 << 30, usize::MAX) };
            let (_dir, store, mut absorber) = absorber(disk, sent);
            let (mut got, mut stops) = (Vec::new(), 0..stops);
            while let Some(mut unsent) = next(&mut absorber).await {
                while !unsent.is_empty() {
                    let n = fastrand::usize(0..=unsent.len());
                    got.extend_from_slice(&unsent.split_to(n));
                    if unsent.is_empty() {
                        break;
                    }
                    if fastrand::bool() && stops.next().is_some() {
                        tokio::time::advance(PATIENCE * 2).await;
                    }
                    stand_still(&mut absorber, &mut unsent, fastrand::usize(1..4)).await;
                }
            }
            assert_eq!(got.len(), all.len(), "round {round}");
            assert!(got == all, "round {round}");
            drop(absorber);
            assert_eq!((store.disk.used(), store.memory.used()), (0, 0));
        }
        drop(end);
        assert!(clock.await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_disk_budget_has_room_again_puma_is_read_on() {
        let (sent, _) = pieces(&[60_000; 20]);
        let (_dir, store, mut absorber) = absorber(1 << 20, sent);
        let mut other = store.disk.open();
        assert!(other.grow((1 << 20) - 1000));
        let mut unsent = next(&mut absorber).await.unwrap();
        stand_still(&mut absorber, &mut unsent, 100).await;
        assert!(absorber.inner.is_some(), "back-pressure");
        let waiting = absorber.inner.as_ref().unwrap().0.len();
        other.clear();
        stand_still(&mut absorber, &mut unsent, 100).await;
        assert!(absorber.inner.as_ref().is_none_or(|inner| inner.0.len() < waiting));
    }

    #[tokio::test(start_paused = true)]
    async fn what_finds_no_room_on_disk_stays_in_memory() {
        let (sent, all) = pieces(&[50_000; 3]);
        let (_dir, _store, mut absorber) = absorber(10_000, sent);
        let mut unsent = next(&mut absorber).await.unwrap();
        stand_still(&mut absorber, &mut unsent, 1).await;
        tokio::time::advance(PATIENCE * 2).await;
        stand_still(&mut absorber, &mut unsent, 20).await;
        let mut got = unsent.to_vec();
        while let Some(piece) = next(&mut absorber).await {
            got.extend_from_slice(&piece);
        }
        assert!(got == all, "{} of {}", got.len(), all.len());
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_budget_is_spent_the_slowest_goes_and_the_next_answer_is_read_on() {
        let (sent, _) = pieces(&[60_000; 20]);
        let (dir, store, mut slow) = absorber(1_300_000, sent);
        let mut unsent = next(&mut slow).await.unwrap();
        stand_still(&mut slow, &mut unsent, 1).await;
        tokio::time::advance(PATIENCE * 2).await;
        stand_still(&mut slow, &mut unsent, 200).await;
        assert!(store.disk.used() > 1_000_000);
        tokio::time::advance(PATIENCE * 4).await;
        let (sent, _) = pieces(&[60_000; 30]);
        let config = Config { dir: dir.path().to_owned(), ..Config::default() };
        let place = Place::new(&store, &config, ClientKey::of(std::net::Ipv4Addr::new(192, 0, 2, 1).into()));
        let mut other = Box::new(Absorber::new(Pieces(sent.into()), None, None, appetite::MOST, place));
        let mut waits = next(&mut other).await.unwrap();
        stand_still(&mut other, &mut waits, 200).await;
        assert!(other.inner.is_some(), "no room yet");
        stand_still(&mut slow, &mut unsent, 1).await;
        assert!(unsent.is_empty() && slow.inner.is_none());
        assert_eq!(std::future::poll_fn(|cx| slow.poll_piece(cx)).await, Some(Err(Refusal::BufferFull)));
        tokio::time::advance(RETRY).await;
        stand_still(&mut other, &mut waits, 200).await;
        assert!(other.inner.is_none(), "{}", store.disk.used());
    }

    #[tokio::test]
    async fn an_error_of_puma_comes_after_what_it_sent_before() {
        let (mut sent, all) = pieces(&[60_000; 4]);
        sent.push(Some(Err(Refusal::UpstreamReset)));
        let (_dir, _store, mut absorber) = absorber(1 << 30, sent);
        let mut unsent = next(&mut absorber).await.unwrap();
        let mut got = unsent.to_vec();
        stand_still(&mut absorber, &mut unsent, 100).await;
        let error = loop {
            match std::future::poll_fn(|cx| absorber.poll_piece(cx)).await {
                Some(Ok(piece)) => got.extend_from_slice(&piece),
                other => break other,
            }
        };
        assert_eq!(error, Some(Err(Refusal::UpstreamReset)));
        assert!(got == all);
    }
}
