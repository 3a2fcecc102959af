//! Takes a request in whole: memory first, then an unlinked file, both within a budget.
//!
//! Threat: slowloris and exhaustion. It stands outside `in_flight`, so a slow sender waits here and holds memory, but none of
//! Puma's threads; a body that stalls or falls below `rates.body_min` is refused (408), one above its limit is refused before
//! it is read (413, RFC 9110 §15.5.14). Nothing of an incomplete request ever reaches Puma. The connection closes after a
//! refusal, as the rest of the body is not read.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::Request;
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
        client::ClientKey,
        pace::{Beat, Pace, Rates, Sweep, Timeouts},
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
    /// In an unlinked file.
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
        let (parts, body) = request.into_parts();
        let arrival = parts.extensions.get::<Arrival>();
        let limit = parts.extensions.get::<BodyLimit>().map_or(self.policy.limit.0, |route| route.0);
        if http_body::Body::size_hint(&body).lower() > limit {
            return Buffered::Refused { refusal: Some(Refusal::BodyTooLarge) };
        }
        let content = match body {
            Received::None => Content::None,
            Received::Whole(bytes) => {
                let mut reserved = self.policy.store.memory.open();
                if !reserved.grow(bytes.len() as u64) {
                    return Buffered::Refused { refusal: Some(Refusal::BufferFull) };
                }
                Content::Memory(Held { bytes, _reserved: reserved })
            }
            streamed @ (Received::One(_) | Received::Two(_)) => {
                let Some(arrival) = arrival.cloned() else { return Buffered::Refused { refusal: Some(Refusal::Internal) } };
                let (policy, mut inner) = (Arc::clone(&self.policy), self.inner.clone());
                return Buffered::Waiting {
                    future: Box::pin(async move {
                        let client = ClientKey::of(arrival.client.ip);
                        let taken = take_in(streamed, &policy, client, limit).await;
                        arrival.notes.body_length(taken.read);
                        arrival.notes.mark(Moment::Complete);
                        let complete = Complete { content: taken.content?, slot: None };
                        inner.call(Request::from_parts(parts, complete)).await
                    }),
                };
            }
        };
        let complete = Complete { content, slot: None };
        if let Some(arrival) = arrival {
            arrival.notes.body_length(complete.length().unwrap_or(0));
            arrival.notes.mark(Moment::Complete);
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

struct Taken {
    content: Result<Content, Refusal>,
    read: u64,
}

async fn take_in(body: Received, policy: &Policy, client: ClientKey, limit: u64) -> Taken {
    let now = policy.sweep.now();
    let mut pace = Pace::new(now, policy.stall, policy.rates.body_min, policy.rates.grace);
    let mut intake = Intake { body, pace, beat: policy.sweep.enrol(pace.deadline(now)), piece: BytesMut::new(), read: 0, limit };
    let content = intake.collect(policy, client).await;
    Taken { content, read: intake.read }
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
        let file = Spilled::create(store, &policy.config.dir, store.disk.open_for(client)).await;
        let mut file = file.map_err(|error| disk_failed(&error))?;
        loop {
            let piece = std::mem::take(&mut self.piece).freeze();
            file.append(piece).await.map_err(|error| disk_failed(&error))?;
            reserved.clear();
            while self.piece.len() < PIECE {
                if !self.next().await? {
                    let last = std::mem::take(&mut self.piece).freeze();
                    file.append(last).await.map_err(|error| disk_failed(&error))?;
                    return Ok(Content::File(file));
                }
                if !reserved.grow_to(self.piece.capacity()) {
                    break;
                }
            }
        }
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
