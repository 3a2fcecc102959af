//! Takes an answer off Puma as fast as Puma can write it, whatever the client does.
//!
//! Threat: slowloris by slow reading, which stops Puma with one client a thread (measured on 5.6 to 8.0; puma/puma#3110). It
//! stands outside `in_flight`: when the last byte has come from Puma, Puma's thread is free, and what the client has not yet
//! taken waits in an unlinked file within the budget. When the budget is spent there is back-pressure, and the minimum rate
//! of the client decides. Answers that come at once, and streams whose client keeps up, pass without a detour.
//!
//! A client that takes longer than a second for a piece costs next to no memory: what it was offered and what waits behind
//! that goes to the file, too, and comes back in small pieces.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::{sync::mpsc, time::Sleep};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    backlog::Backlog,
    spill::{Config, Store},
};
use crate::{
    accept::client::ClientKey,
    http::{arrival::Arrival, body::Absorb},
    refusal::Refusal,
};

/// Makes [`Relay`]s.
#[derive(Clone, Debug)]
pub struct RelayLayer {
    store: Arc<Store>,
    config: Arc<Config>,
}

/// The service.
#[derive(Clone, Debug)]
pub struct Relay<S> {
    inner: S,
    layer: RelayLayer,
}

/// An answer's body on its way from Puma to the client.
#[derive(Debug)]
pub enum Relayed<B> {
    /// It was complete at once.
    Whole(Option<Bytes>),
    /// The front takes in what comes while it writes.
    Live(Box<Absorber<B>>),
    /// A task takes in what comes, as HTTP/2 asks for data only when the client has room.
    Pumped {
        /// Pieces, one at a time.
        pieces: mpsc::Receiver<Result<Bytes, Refusal>>,
        /// Bytes to come, where that is known.
        left: Option<u64>,
    },
}

/// What has come from Puma and not yet gone to the client.
#[derive(Debug)]
pub struct Absorber<B> {
    inner: Option<B>,
    left: Option<u64>,
    queue: VecDeque<Bytes>,
    queued: usize,
    backlog: Option<Backlog>,
    failed: Option<Refusal>,
    stall: Stall,
    /// Bytes that were taken back; the next pieces end where they end.
    again: usize,
    /// How much is read back at once.
    step: usize,
    client: ClientKey,
    layer: RelayLayer,
}

/// How long the client has been at its piece.
#[derive(Debug, Default)]
struct Stall {
    timer: Option<Pin<Box<Sleep>>>,
    is_set: bool,
    has_passed: bool,
}

impl RelayLayer {
    /// A layer that keeps what clients have not yet taken in `store`.
    pub fn new(store: Arc<Store>, config: Config) -> Self {
        RelayLayer { store, config: Arc::new(config) }
    }
}

impl<S> Layer<S> for RelayLayer {
    type Service = Relay<S>;
    fn layer(&self, inner: S) -> Relay<S> {
        Relay { inner, layer: self.clone() }
    }
}

impl<S, A, B> Service<Request<A>> for Relay<S>
where
    S: Service<Request<A>, Response = Response<B>, Error = Refusal>,
    B: Body<Data = Bytes, Error = Refusal> + Unpin + Send + 'static,
{
    type Response = Response<Relayed<B>>;
    type Error = Refusal;
    type Future = Relaying<S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let client = request.extensions().get::<Arrival>().map(|arrival| ClientKey::of(arrival.client.ip));
        let is_pumped = request.version() == Version::HTTP_2;
        Relaying { future: self.inner.call(request), layer: self.layer.clone(), client, is_pumped }
    }
}

pin_project! {
    /// An answer that is awaited.
    pub struct Relaying<F> {
        #[pin]
        future: F,
        layer: RelayLayer,
        client: Option<ClientKey>,
        is_pumped: bool,
    }
}

impl<F, B> Future for Relaying<F>
where
    F: Future<Output = Result<Response<B>, Refusal>>,
    B: Body<Data = Bytes, Error = Refusal> + Unpin + Send + 'static,
{
    type Output = Result<Response<Relayed<B>>, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (parts, mut body) = ready!(this.future.poll(cx))?.into_parts();
        let left = body.size_hint().exact();
        let first = match Pin::new(&mut body).poll_frame(cx) {
            Poll::Ready(None) => return Poll::Ready(Ok(Response::from_parts(parts, Relayed::Whole(None)))),
            Poll::Ready(Some(Err(refusal))) => return Poll::Ready(Err(refusal)),
            Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
            Poll::Pending => None,
        };
        if body.is_end_stream() {
            return Poll::Ready(Ok(Response::from_parts(parts, Relayed::Whole(first))));
        }
        let queue: VecDeque<Bytes> = first.into_iter().filter(|bytes| !bytes.is_empty()).collect();
        let absorber = Absorber {
            inner: Some(body),
            left,
            queued: queue.iter().map(Bytes::len).sum(),
            queue,
            backlog: None,
            failed: None,
            stall: Stall::default(),
            again: 0,
            step: STEP_MOST,
            client: this.client.unwrap_or(ClientKey::of(std::net::Ipv4Addr::LOCALHOST.into())),
            layer: this.layer.clone(),
        };
        let relayed = if *this.is_pumped {
            let (out, pieces) = mpsc::channel(1);
            tokio::spawn(pump(absorber, out));
            Relayed::Pumped { pieces, left }
        } else {
            Relayed::Live(Box::new(absorber))
        };
        Poll::Ready(Ok(Response::from_parts(parts, relayed)))
    }
}

impl Stall {
    /// Whether the client has been at its piece for too long; wakes the task when it will have been.
    fn poll_passed(&mut self, cx: &mut Context<'_>) -> bool {
        if self.has_passed {
            return true;
        }
        if !self.is_set {
            self.is_set = true;
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(tokio::time::Instant::now() + PATIENCE),
                None => self.timer = Some(Box::pin(tokio::time::sleep(PATIENCE))),
            }
        }
        self.has_passed = self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
        self.has_passed
    }

    /// The client has taken its piece.
    fn end(&mut self) -> bool {
        self.is_set = false;
        std::mem::take(&mut self.has_passed)
    }
}

impl<B: Body<Data = Bytes, Error = Refusal> + Unpin> Absorber<B> {
    /// Takes in what Puma has sent, as far as there is room for it, and frees memory when the client stands still.
    fn poll_absorb(&mut self, cx: &mut Context<'_>, unsent: &mut Bytes) {
        let has_stalled = self.stall.poll_passed(cx);
        loop {
            if let Some(backlog) = &mut self.backlog
                && backlog.poll_settled(cx).is_pending()
            {
                return;
            }
            if has_stalled && self.step_back(unsent) {
                continue;
            }
            let Some(inner) = &mut self.inner else {
                if self.backlog.as_mut().is_some_and(Backlog::put_away) {
                    continue;
                }
                return;
            };
            if self.backlog.is_none() && self.queued >= IN_MEMORY {
                self.backlog = Some(self.new_backlog());
                continue;
            }
            if let Some(backlog) = &mut self.backlog
                && !backlog.has_room()
            {
                // The budget may have room again.
                if backlog.put_away() {
                    continue;
                }
                return;
            }
            match Pin::new(inner).poll_frame(cx) {
                Poll::Pending => {
                    if has_stalled && self.backlog.as_mut().is_some_and(Backlog::put_away) {
                        continue;
                    }
                    return;
                }
                Poll::Ready(None) => self.inner = None,
                Poll::Ready(Some(Err(refusal))) => {
                    self.inner = None;
                    self.failed = Some(refusal);
                }
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    match &mut self.backlog {
                        Some(backlog) => backlog.add(&data),
                        None => {
                            self.queued = self.queued.saturating_add(data.len());
                            self.queue.push_back(data);
                        }
                    }
                }
            }
        }
    }

    /// Moves what waits in memory to the front of the file. True when a write has begun.
    fn step_back(&mut self, unsent: &mut Bytes) -> bool {
        let n = unsent.len();
        if n > 0 && self.queue.is_empty() && self.backlog.as_mut().is_some_and(|backlog| backlog.untake(n)) {
            self.taken_back(n);
            unsent.clear();
            return false;
        }
        let total = n.saturating_add(self.queued);
        if total <= WORTHLESS {
            // The allocation that it is a part of may be large.
            *unsent = Bytes::copy_from_slice(unsent);
            return false;
        }
        if self.backlog.is_none() {
            self.backlog = Some(self.new_backlog());
        }
        let (queue, first) = (&mut self.queue, Some(unsent.clone()).filter(|bytes| !bytes.is_empty()));
        let begun = self.backlog.as_mut().is_some_and(|backlog| backlog.put_first(&mut first.into_iter().chain(queue.drain(..)), total));
        if begun {
            self.queued = 0;
            self.taken_back(n);
            unsent.clear();
        }
        begun
    }

    fn taken_back(&mut self, n: usize) {
        self.again = self.again.saturating_add(n);
        self.step = STEP_LEAST;
        if let Some(left) = &mut self.left {
            *left = left.saturating_add(n as u64);
        }
    }

    fn new_backlog(&self) -> Backlog {
        Backlog::new(Arc::clone(&self.layer.store), self.layer.config.dir.clone(), self.client)
    }

    /// The next piece for the client.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Refusal>>> {
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
                Ok(None) => self.backlog = None,
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(self.failed.take().map(Err));
        };
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
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(piece.len() as u64);
        }
        Poll::Ready(Some(Ok(piece)))
    }
}

/// Absorbs until the client's stream has room for a piece, hands it over, and again.
async fn pump<B: Body<Data = Bytes, Error = Refusal> + Unpin>(mut absorber: Absorber<B>, out: mpsc::Sender<Result<Bytes, Refusal>>) {
    loop {
        let mut room = std::pin::pin!(out.reserve());
        let room = std::future::poll_fn(|cx| {
            absorber.poll_absorb(cx, &mut Bytes::new());
            room.as_mut().poll(cx)
        });
        let Ok(room) = room.await else { return };
        let mut gone = std::pin::pin!(out.closed());
        let piece = std::future::poll_fn(|cx| match gone.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => absorber.poll_piece(cx),
        });
        match piece.await {
            Some(piece) => room.send(piece),
            None => return,
        }
    }
}

impl<B: Body<Data = Bytes, Error = Refusal> + Unpin> Body for Relayed<B> {
    type Data = Bytes;
    type Error = Refusal;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        let piece = match self.get_mut() {
            Relayed::Whole(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Relayed::Live(absorber) => ready!(absorber.poll_piece(cx)),
            Relayed::Pumped { pieces, left } => {
                let piece = ready!(pieces.poll_recv(cx));
                if let (Some(left), Some(Ok(bytes))) = (left, &piece) {
                    *left = left.saturating_sub(bytes.len() as u64);
                }
                piece
            }
        };
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Relayed::Whole(bytes) => bytes.is_none(),
            Relayed::Live(absorber) => {
                absorber.inner.is_none() && absorber.queue.is_empty() && absorber.backlog.is_none() && absorber.failed.is_none()
            }
            Relayed::Pumped { left, .. } => *left == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Relayed::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Relayed::Live(absorber) => absorber.left.map_or_else(SizeHint::default, SizeHint::with_exact),
            Relayed::Pumped { left, .. } => left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl<B: Body<Data = Bytes, Error = Refusal> + Unpin> Absorb for Relayed<B> {
    fn poll_absorb(self: Pin<&mut Self>, cx: &mut Context<'_>, unsent: &mut Bytes) {
        match self.get_mut() {
            Relayed::Live(absorber) => absorber.poll_absorb(cx, unsent),
            Relayed::Whole(_) | Relayed::Pumped { .. } => {}
        }
    }
}

/// Bytes of an answer that wait in memory before a file takes the rest.
const IN_MEMORY: usize = 64 * 1024;
/// Bytes that are read back from the file at once: for a client that has just stood still, and for one that keeps up.
const STEP_LEAST: usize = 4 * 1024;
const STEP_MOST: usize = 64 * 1024;
/// Bytes in memory for which a write to the file does not pay.
const WORTHLESS: usize = 1024;
/// How long a client may be at a piece before the piece is taken back.
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tower::ServiceExt;

    use super::*;
    use crate::units::ByteSize;

    /// A body of pieces; `None` in it means that Puma has nothing yet, once.
    #[derive(Debug)]
    struct Pieces(VecDeque<Option<Result<Bytes, Refusal>>>);

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

    async fn absorber(disk: u64, pieces: Vec<Option<Result<Bytes, Refusal>>>) -> (tempfile::TempDir, Arc<Store>, Box<Absorber<Pieces>>) {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { disk_total: ByteSize(disk), client_share: 1.0, dir: dir.path().to_owned(), ..Config::default() };
        let store = Store::start(&config).unwrap();
        let mut body = Some(Pieces(pieces.into()));
        let puma = tower::service_fn(move |_: Request<()>| std::future::ready(Ok::<_, Refusal>(Response::new(body.take().unwrap()))));
        let response = RelayLayer::new(Arc::clone(&store), config).layer(puma).oneshot(Request::new(())).await.unwrap();
        match response.into_body() {
            Relayed::Live(absorber) => (dir, store, absorber),
            other @ (Relayed::Whole(_) | Relayed::Pumped { .. }) => panic!("{other:?}"),
        }
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
    async fn a_client_that_stands_still_holds_nothing_in_memory() {
        let (sent, all) = pieces(&[60_000; 20]);
        let (_dir, store, mut absorber) = absorber(1 << 30, sent).await;
        let mut unsent = next(&mut absorber).await.unwrap().slice(100..);
        stand_still(&mut absorber, &mut unsent, 1).await;
        assert_eq!(unsent.len(), 59_900, "for a moment it may keep its piece");
        tokio::time::advance(PATIENCE * 2).await;
        stand_still(&mut absorber, &mut unsent, 200).await;
        assert!(unsent.is_empty() && absorber.queue.is_empty() && absorber.inner.is_none(), "Puma is done, memory is free");
        assert!(store.disk.used() >= 1_199_900 - 60_000);
        let mut got = all[..100].to_vec();
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
    async fn whatever_a_client_takes_and_leaves_it_gets_every_byte_once_and_in_order() {
        fastrand::seed(7);
        for round in 0..15 {
            let sizes: Vec<usize> = (0..fastrand::usize(2..16)).map(|_| fastrand::usize(1..40_000)).collect();
            let (mut sent, all) = pieces(&sizes);
            for _ in 0..fastrand::usize(0..5) {
                sent.insert(fastrand::usize(1..=sent.len()), None);
            }
            let (_dir, store, mut absorber) = absorber(if round % 3 == 0 { 200_000 } else { 1 << 30 }, sent).await;
            let mut got = Vec::new();
            while let Some(mut unsent) = next(&mut absorber).await {
                while !unsent.is_empty() {
                    let n = fastrand::usize(0..=unsent.len());
                    got.extend_from_slice(&unsent.split_to(n));
                    if unsent.is_empty() {
                        break;
                    }
                    if fastrand::bool() {
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
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_disk_budget_has_room_again_puma_is_read_on() {
        let (sent, _) = pieces(&[60_000; 20]);
        let (_dir, store, mut absorber) = absorber(1 << 20, sent).await;
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

    #[tokio::test]
    async fn an_error_of_puma_comes_after_what_it_sent_before() {
        let (mut sent, all) = pieces(&[60_000; 4]);
        sent.push(Some(Err(Refusal::UpstreamReset)));
        let (_dir, _store, mut absorber) = absorber(1 << 30, sent).await;
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
