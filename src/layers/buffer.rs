//! Takes a request in whole: memory first, then an unlinked file, both within a budget.
//!
//! Threat: slowloris and exhaustion. It stands outside `in_flight`, so a slow sender waits here and holds memory, but none of
//! Puma's threads; a body that stalls or falls below `rates.body_min` is refused (408), one above its limit is refused before
//! it is read (413, RFC 9110 §15.5.14). Nothing of an incomplete request ever reaches Puma. The connection closes after a
//! refusal, as the rest of the body is not read.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    budget::Reserved,
    route::BodyLimit,
    slots::Slot,
    spill::{Config, Spilled, Store},
};
use crate::{
    accept::{
        beat::{Beat, Sweep},
        client::ClientKey,
        pace::{Pace, Rates, Timeouts},
    },
    http::{
        arrival::{Arrival, Moment},
        body::Received,
    },
    refusal::Refusal,
    units::{ByteSize, Deadline},
};

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
    Memory(Held),
    /// On disk.
    File(Spilled),
}

/// Bytes in memory; the budget gets them back when they are dropped.
#[derive(Debug)]
pub struct Held {
    bytes: Bytes,
    _reserved: Reserved,
}

/// Makes [`Buffer`]s.
#[derive(Clone, Debug)]
pub struct BufferLayer(Arc<Policy>);

/// The service.
#[derive(Clone, Debug)]
pub struct Buffer<S> {
    inner: S,
    policy: Arc<Policy>,
}

/// What buffering goes by.
#[derive(Debug)]
pub struct Policy {
    /// Memory and disk.
    pub store: Arc<Store>,
    /// The deadlines' clock.
    pub sweep: Arc<Sweep>,
    /// `[buffer]`.
    pub config: Config,
    /// Longest pause within a body.
    pub stall: Deadline,
    /// Minimum rate and grace.
    pub rates: Rates,
    /// Longest body, where no route says otherwise.
    pub limit: ByteSize,
}

impl Complete {
    /// Its length in bytes; `None` where the client sent no body at all.
    pub fn length(&self) -> Option<u64> {
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

    /// A body for the tests of the layers behind this one.
    #[cfg(test)]
    pub fn of(body: Option<&'static [u8]>) -> Self {
        Complete { content: body.map_or(Content::None, |bytes| Content::Memory(Bytes::from_static(bytes).into())), slot: None }
    }
}

impl std::ops::Deref for Held {
    type Target = Bytes;
    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

#[cfg(test)]
impl From<Bytes> for Held {
    fn from(bytes: Bytes) -> Self {
        Held { bytes, _reserved: super::budget::Account::new(u64::MAX, u64::MAX).open() }
    }
}

impl BufferLayer {
    /// A layer with this policy.
    pub fn new(policy: Policy) -> Self {
        BufferLayer(Arc::new(policy))
    }
}

impl Policy {
    /// The policy of a configuration.
    pub fn new(config: Config, store: Arc<Store>, sweep: Arc<Sweep>, timeouts: &Timeouts, rates: &Rates, limit: ByteSize) -> Self {
        Policy { store, sweep, config, stall: timeouts.body_stall, rates: rates.clone(), limit }
    }
}

impl<S> Layer<S> for BufferLayer {
    type Service = Buffer<S>;
    fn layer(&self, inner: S) -> Buffer<S> {
        Buffer { inner, policy: Arc::clone(&self.0) }
    }
}

impl<S> Service<Request<Received>> for Buffer<S>
where
    S: Service<Request<Complete>, Error = Refusal> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Send,
{
    type Response = S::Response;
    type Error = Refusal;
    type Future = Buffered<S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Received>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let arrival = parts.extensions.get::<Arrival>();
        let limit = parts.extensions.get::<BodyLimit>().map_or(self.policy.limit.0, |route| route.0);
        if http_body::Body::size_hint(&body).lower() > limit {
            return Buffered::Refused { refusal: Some(Refusal::BodyTooLarge) };
        }
        let content = match body {
            Received::None => Content::None,
            Received::Whole(bytes) => {
                let mut reserved = self.policy.store.memory.open();
                if !reserved.grow(bytes.capacity() as u64) {
                    return Buffered::Refused { refusal: Some(Refusal::BufferFull) };
                }
                Content::Memory(Held { bytes: bytes.freeze(), _reserved: reserved })
            }
            streamed @ (Received::One(_) | Received::Two(_)) => {
                let Some(arrival) = arrival.cloned() else { return Buffered::Refused { refusal: Some(Refusal::Internal) } };
                let (policy, mut inner) = (Arc::clone(&self.policy), self.inner.clone());
                return Buffered::Waiting {
                    future: Box::pin(async move {
                        let mut intake = Intake::new(streamed, &policy, limit);
                        let content = {
                            let mut collecting = pin!(intake.collect(&policy, ClientKey::of(arrival.client.ip)));
                            match std::future::poll_fn(|cx| Poll::Ready(collecting.as_mut().poll(cx))).await {
                                Poll::Ready(content) => content,
                                Poll::Pending => {
                                    fit(&mut parts.headers);
                                    collecting.await
                                }
                            }
                        };
                        arrival.notes.body_length(intake.read);
                        arrival.notes.mark(Moment::Complete);
                        drop(intake);
                        let complete = Complete { content: content?, slot: None };
                        inner.call(Request::from_parts(parts, complete)).await
                    }),
                };
            }
        };
        let complete = Complete { content, slot: None };
        if let Some(arrival) = arrival {
            arrival.notes.body_length(complete.length().unwrap_or(0));
            // Nothing was waited for: the request was whole with its head.
            arrival.notes.mark_at(Moment::Complete, arrival.notes.started);
        }
        Buffered::Direct { future: self.inner.call(Request::from_parts(parts, complete)) }
    }
}

pin_project! {
    /// The rest of the way of a request, or its refusal.
    #[project = BufferedProjection]
    pub enum Buffered<F: Future> {
        /// The body was here already.
        Direct { #[pin] future: F },
        /// The body is being taken in.
        Waiting { future: Pin<Box<dyn Future<Output = F::Output> + Send>> },
        /// It is too large.
        Refused { refusal: Option<Refusal> },
    }
}

impl<F, R> Future for Buffered<F>
where
    F: Future<Output = Result<R, Refusal>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            BufferedProjection::Direct { future } => future.poll(cx),
            BufferedProjection::Waiting { future } => future.as_mut().poll(cx),
            BufferedProjection::Refused { refusal } => Poll::Ready(Err(refusal.take().unwrap_or(Refusal::Internal))),
        }
    }
}

/// The map was made for the fields of any request. One that waits for its sender keeps only the room that it needs.
fn fit(fields: &mut HeaderMap) {
    if fields.capacity() > fields.len().saturating_mul(2) {
        let all = std::mem::take(fields);
        let mut fitting = HeaderMap::with_capacity(all.keys_len());
        fitting.extend(all);
        *fields = fitting;
    }
}

/// A body on its way into memory or a file.
struct Intake {
    body: Received,
    pace: Pace,
    beat: Beat,
    piece: BytesMut,
    read: u64,
    limit: u64,
}

impl Intake {
    fn new(body: Received, policy: &Policy, limit: u64) -> Self {
        let now = policy.sweep.now();
        let mut pace = Pace::new(now, policy.stall, policy.rates.body_min, policy.rates.grace);
        let beat = policy.sweep.enrol(pace.deadline(now));
        Intake { body, pace, beat, piece: BytesMut::new(), read: 0, limit }
    }

    async fn collect(&mut self, policy: &Policy, client: ClientKey) -> Result<Content, Refusal> {
        let mut reserved = policy.store.memory.open_for(client);
        let store = &policy.store;
        loop {
            let in_memory = if store.memory.is_tight() { TIGHT } else { policy.config.memory_per_request.as_usize() };
            if self.piece.len() > in_memory {
                break;
            }
            if !self.next().await? {
                return Ok(Content::Memory(Held { bytes: std::mem::take(&mut self.piece).freeze(), _reserved: reserved }));
            }
            // Where memory has no room, the disk may have.
            if !reserved.grow_to(self.piece.capacity()) {
                break;
            }
        }
        self.pace.pause(self.beat.now());
        self.beat.unlimited();
        let mut file = Spilled::new(store, store.disk.open_for(client));
        loop {
            self.put_away(&mut file).await?;
            reserved.clear();
            while self.piece.len() < PIECE {
                if !self.next().await? {
                    self.put_away(&mut file).await?;
                    return Ok(Content::File(file));
                }
                if !reserved.grow_to(self.piece.capacity()) {
                    break;
                }
            }
        }
    }

    /// Writes the piece to the file. The client does not answer for the time that the disk takes.
    async fn put_away(&mut self, file: &mut Spilled) -> Result<(), Refusal> {
        self.pace.pause(self.beat.now());
        self.beat.unlimited();
        let piece = std::mem::take(&mut self.piece).freeze();
        file.append(piece).await.map_err(|error| disk_failed(&error))?;
        self.beat.until(self.pace.deadline(self.beat.now()));
        Ok(())
    }

    /// Appends what comes next to the piece. False at the end.
    async fn next(&mut self) -> Result<bool, Refusal> {
        let Intake { body, beat, piece, .. } = self;
        let before = piece.len();
        let more = std::future::poll_fn(|cx| {
            let next = body.poll_append(cx, piece);
            if next.is_pending() {
                beat.wake_by(cx.waker());
                if beat.is_over() {
                    return Poll::Ready(Err(Refusal::SlowBody));
                }
            }
            next
        })
        .await?;
        let moved = self.piece.len().saturating_sub(before);
        self.read = self.read.saturating_add(moved as u64);
        if self.read > self.limit {
            return Err(Refusal::BodyTooLarge);
        }
        self.beat.advance(moved as u64);
        self.pace.moved(moved);
        self.beat.until(self.pace.deadline(self.beat.now()));
        Ok(more)
    }
}

fn disk_failed(error: &std::io::Error) -> Refusal {
    if error.kind() != std::io::ErrorKind::QuotaExceeded {
        crate::log::event(crate::log::Level::Error, "a body cannot be kept on disk", &[("error", error), ("remedy", &"check buffer.dir")]);
    }
    Refusal::BufferFull
}

/// Bytes of one body in memory when memory is tight.
const TIGHT: usize = 64 * 1024;
/// Bytes that are written to the file at once.
const PIECE: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncWriteExt,
        net::UnixStream,
        time::{sleep, timeout},
    };
    use tower::ServiceExt;

    use super::{super::fixture, *};
    use crate::{
        accept::stream::Stream,
        guard::Limits,
        http::one::{reader::Reader, wire::Wire},
        units::{Auto, ByteRate},
    };

    struct Bench {
        dir: tempfile::TempDir,
        store: Arc<Store>,
        sweep: Arc<Sweep>,
        config: Config,
        limit: ByteSize,
    }

    impl Bench {
        fn new(memory: u64, disk: u64, limit: u64) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let config = Config {
                memory_per_request: ByteSize(100_000),
                memory_total: Auto::Value(ByteSize(memory)),
                disk_total: ByteSize(disk),
                client_share: 1.0,
                dir: dir.path().to_owned(),
            };
            Bench { dir, store: Store::start(&config).unwrap(), sweep: Sweep::new(), config, limit: ByteSize(limit) }
        }

        /// Sends a request with this body through the layer.
        async fn take(&self, body: Received) -> Result<Complete, Refusal> {
            let timeouts = Timeouts { body_stall: Deadline::millis(200), ..Timeouts::default() };
            let rates = Rates { body_min: ByteRate(500), grace: Deadline::millis(200), ..Rates::default() };
            let policy = Policy::new(self.config.clone(), Arc::clone(&self.store), Arc::clone(&self.sweep), &timeouts, &rates, self.limit);
            let app = tower::service_fn(|request: Request<Complete>| std::future::ready(Ok::<_, Refusal>(request.into_body())));
            let ticking = Arc::clone(&self.sweep);
            let ticker = tokio::spawn(async move {
                loop {
                    sleep(std::time::Duration::from_millis(10)).await;
                    ticking.tick();
                }
            });
            let call = BufferLayer::new(policy).layer(app).oneshot(fixture::arrived("/").body(body).unwrap());
            let taken = timeout(std::time::Duration::from_secs(10), call).await.unwrap();
            ticker.abort();
            taken
        }

        fn used(&self) -> (u64, u64) {
            (self.store.memory.used(), self.store.disk.used())
        }

        fn of_length(&self, length: u64) -> (UnixStream, Received) {
            let (client, far) = UnixStream::pair().unwrap();
            let wire = Wire::new(Stream::of_unix(far), self.sweep.enrol(u64::MAX));
            (client, Received::One(Box::new(Reader::of_length(wire, length, Limits::default(), false).0)))
        }

        fn of_chunks(&self) -> (UnixStream, Received) {
            let (client, far) = UnixStream::pair().unwrap();
            let wire = Wire::new(Stream::of_unix(far), self.sweep.enrol(u64::MAX));
            (client, Received::One(Box::new(Reader::of_chunks(wire, Limits::default(), false).0)))
        }
    }

    /// Writes as much as anybody reads.
    fn write(mut client: UnixStream, bytes: Vec<u8>) {
        tokio::spawn(async move {
            client.write_all(&bytes).await.unwrap_or_default();
            sleep(std::time::Duration::from_secs(9)).await;
        });
    }

    #[tokio::test]
    async fn a_small_body_stays_in_memory_and_a_large_one_goes_to_the_disk() {
        let bench = Bench::new(1 << 20, 1 << 30, 1 << 30);
        for (length, is_file) in [(1, false), (99_000, false), (100_001, true), (3_000_000, true)] {
            let bytes: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            let (client, body) = bench.of_length(length);
            write(client, bytes.clone());
            let complete = bench.take(body).await.unwrap();
            assert_eq!(complete.length(), Some(length));
            match complete.content() {
                Content::Memory(held) => assert!(!is_file && held[..] == bytes && bench.used().0 >= length && bench.used().1 == 0),
                Content::File(file) => {
                    let (mut all, mut reader) = (Vec::new(), file.reader());
                    while let Some(piece) = reader.next().await.unwrap() {
                        all.extend_from_slice(&piece);
                    }
                    assert!(is_file && all == bytes);
                    assert_eq!(bench.used(), (0, length.next_multiple_of(64 * 1024)));
                }
                Content::None => panic!("it had a body"),
            }
            drop(complete);
            assert_eq!(bench.used(), (0, 0));
        }
        assert_eq!(std::fs::read_dir(bench.dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn no_body_and_an_empty_body_are_not_the_same() {
        let bench = Bench::new(1 << 20, 1 << 20, 1 << 20);
        assert_eq!(bench.take(Received::None).await.unwrap().length(), None);
        assert_eq!(bench.take(Received::Whole(BytesMut::new())).await.unwrap().length(), Some(0));
        let (client, body) = bench.of_chunks();
        write(client, b"0\r\n\r\n".to_vec());
        assert_eq!(bench.take(body).await.unwrap().length(), Some(0));
    }

    #[tokio::test]
    async fn a_declared_length_above_the_limit_is_refused_before_a_byte_is_read() {
        let bench = Bench::new(1 << 20, 1 << 20, 1000);
        let (_client, body) = bench.of_length(1001);
        assert_eq!(bench.take(body).await.unwrap_err(), Refusal::BodyTooLarge);
        assert_eq!(bench.take(Received::Whole(BytesMut::zeroed(1001))).await.unwrap_err(), Refusal::BodyTooLarge);
        let mut bytes = BytesMut::with_capacity(1024);
        bytes.resize(1000, 0);
        let complete = bench.take(Received::Whole(bytes)).await.unwrap();
        assert_eq!((complete.length(), bench.used()), (Some(1000), (1024, 0)), "what holds it counts");
    }

    #[tokio::test]
    async fn a_body_that_grows_above_the_limit_is_refused_and_everything_given_back() {
        let bench = Bench::new(1 << 20, 1 << 30, 500_000);
        let (client, body) = bench.of_chunks();
        write(client, format!("1000\r\n{}\r\n", "x".repeat(4096)).repeat(200).into_bytes());
        assert_eq!(bench.take(body).await.unwrap_err(), Refusal::BodyTooLarge);
        assert_eq!(bench.used(), (0, 0));
    }

    #[tokio::test]
    async fn memory_grows_with_what_came_and_not_with_what_was_declared() {
        let bench = Bench::new(1 << 20, 1 << 20, 1 << 40);
        let (mut client, body) = bench.of_length(1 << 39);
        client.write_all(&[7; 5000]).await.unwrap();
        let mut taken = std::pin::pin!(bench.take(body));
        assert!(timeout(std::time::Duration::from_millis(100), &mut taken).await.is_err());
        assert!((1..=16 * 1024).contains(&bench.used().0), "{:?}", bench.used());
        assert_eq!(taken.await.unwrap_err(), Refusal::SlowBody);
        assert_eq!(bench.used(), (0, 0));
    }

    #[tokio::test]
    async fn where_memory_is_spent_the_disk_takes_it_and_where_both_are_the_client_is_told() {
        let bench = Bench::new(1 << 16, 1 << 20, 1 << 30);
        let mut other = bench.store.memory.open();
        assert!(other.grow(1 << 16));
        let (client, body) = bench.of_length(50_000);
        write(client, vec![1; 50_000]);
        let complete = bench.take(body).await.unwrap();
        assert!(matches!(complete.content(), Content::File(file) if file.len() == 50_000));
        let (client, body) = bench.of_length(1_040_000);
        write(client, vec![1; 1_040_000]);
        assert_eq!(bench.take(body).await.unwrap_err(), Refusal::BufferFull);
        assert_eq!(bench.used(), (1 << 16, 1 << 16));
    }

    #[tokio::test]
    async fn an_upload_that_moves_is_never_too_slow_and_one_that_drips_is() {
        let bench = Bench::new(1 << 20, 1 << 20, 1 << 20);
        let (mut client, body) = bench.of_length(20_000);
        tokio::spawn(async move {
            for _ in 0..20 {
                client.write_all(&[1; 1000]).await.unwrap();
                sleep(std::time::Duration::from_millis(50)).await;
            }
            sleep(std::time::Duration::from_secs(9)).await;
        });
        assert_eq!(bench.take(body).await.unwrap().length(), Some(20_000));
        let (mut client, body) = bench.of_length(20_000);
        tokio::spawn(async move {
            while client.write_all(&[1]).await.is_ok() {
                sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        assert_eq!(bench.take(body).await.unwrap_err(), Refusal::SlowBody);
    }

    #[tokio::test]
    async fn an_honest_upload_is_not_the_one_that_makes_room() {
        let bench = Bench::new(1 << 20, 1 << 30, 1 << 30);
        let (mut client, body) = bench.of_length(3_000_000);
        let sweep = Arc::clone(&bench.sweep);
        tokio::spawn(async move {
            client.write_all(&[1; 2_000_000]).await.unwrap();
            sleep(std::time::Duration::from_millis(50)).await;
            // Whatever is left to be dropped, it is not this one.
            sweep.evict(crate::accept::limit::HONEST, 100);
            client.write_all(&[1; 1_000_000]).await.unwrap_or_default();
            sleep(std::time::Duration::from_secs(9)).await;
        });
        assert_eq!(bench.take(body).await.unwrap().length(), Some(3_000_000));
    }
}
