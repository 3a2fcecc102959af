//! The one queue: a complete request waits here for one of Puma's threads.
//!
//! Threat: exhaustion. Bounded in length, time and memory; ordered by class, then by arrival (newest first once the queue
//! stands); no client and no kind of request can have every thread. A request whose client goes away leaves the queue
//! without reaching Puma. Place: inside `buffer`, so that a slow sender never holds a thread. The connection is kept.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Version, header};
use pin_project_lite::pin_project;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tower_service::Service;

use crate::{
    accept::client::ClientKey,
    http::arrival::{Arrival, Moment, Names},
    layers::{
        buffer::{Complete, Content},
        slots::{Ask, Full, Lane, NoSlot, Policy, Slot, Slots},
    },
    refusal::Refusal,
    units::{ByteSize, Deadline, OneOrMany},
};

/// `[queue]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Longest wait for one of Puma's threads; then 503 `queue_timeout`. Too low: bursts are refused; too high: people wait
    /// for answers that they no longer want. Default: 5 s.
    pub deadline: Deadline,
    /// Requests that may wait. `"auto"`: as many as can be served within `deadline` at the measured service time, at most
    /// 4096. Memory at worst: `memory`, and about 1 KiB for each. Default: `"auto"`.
    pub max: Max,
    /// Bytes of bodies in memory that waiting requests may hold; above it 503 `queue_full`. Default: 64 MiB.
    pub memory: ByteSize,
    /// Order under overload, which begins when more requests wait than can be served in a quarter of `deadline`, and lasts as long
    /// as requests find no room: `"lifo"` serves those whose clients are most likely still there, `"fifo"` the oldest. Both the
    /// beginning and the end count after a fifth of `deadline`. Default: `"lifo"`.
    pub overload_order: Order,
    /// Part of the threads, and of the queue, that one client may have while others are there: 0 to 1. Too low slows a
    /// client's parallel requests; too high lets one client slow all others. Default: 0.34.
    pub per_client_share: Share,
    /// Part of the threads that event streams may have: 0 to 1. Default: 0.5.
    pub stream_share: Share,
    /// Classes of requests, for urgency and reserved threads. Default: one, `health`, for `/up`, before all others.
    pub class: Vec<Class>,
}

/// `[[queue.class]]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// The name, for logs and metrics.
    pub name: String,
    /// Which requests it is about.
    #[serde(rename = "match")]
    pub matches: Match,
    /// The lower, the earlier out of the queue; requests without a class have 100. Default: 100.
    #[serde(default = "plain_priority")]
    pub priority: u16,
    /// Threads that no other class may take. Default: 0.
    #[serde(default)]
    pub reserve: u16,
}

/// What a class is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// Paths: exact, or with `*` at the end for everything that begins so.
    pub path: OneOrMany<String>,
}

/// The bound of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Max {
    /// From the measured service time.
    Auto,
    /// This many.
    Requests(u32),
}

/// The order under overload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Oldest first.
    Fifo,
    /// Newest first.
    Lifo,
}

/// A part of a whole, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Share(f64);

/// Admits requests to Puma.
#[derive(Clone, Debug)]
pub struct InFlightLayer {
    slots: Slots,
    classes: Arc<Classes>,
}

/// The service that [`InFlightLayer`] makes.
#[derive(Clone, Debug)]
pub struct InFlight<S> {
    inner: S,
    slots: Slots,
    classes: Arc<Classes>,
}

#[derive(Debug)]
struct Classes {
    /// Patterns and the index of their class in the order of urgency.
    patterns: Vec<(String, usize)>,
    /// The index of requests that no pattern matches.
    plain: usize,
}

impl Config {
    /// The rules of the queue; `hold` is how long requests wait for a Puma that is away.
    pub fn policy(&self, hold: Duration) -> Policy {
        Policy {
            deadline: self.deadline.get(),
            hold,
            max: match self.max {
                Max::Auto => MOST_WAITING,
                Max::Requests(n) => n as usize,
            },
            memory: self.memory.0,
            newest_first: self.overload_order == Order::Lifo,
            client_share: self.per_client_share.0,
            stream_share: self.stream_share.0,
            reserves: self.ordered().into_iter().map(|class| class.map_or(0, |c| u32::from(c.reserve))).collect(),
        }
    }

    /// The classes by urgency; `None` stands for requests without one.
    fn ordered(&self) -> Vec<Option<&Class>> {
        let mut order: Vec<_> = self.class.iter().map(Some).chain([None]).collect();
        order.sort_by_key(|class| class.map_or(PLAIN_PRIORITY, |c| c.priority));
        order
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            deadline: Deadline::seconds(5),
            max: Max::Auto,
            memory: ByteSize::mib(64),
            overload_order: Order::Lifo,
            per_client_share: Share(0.34),
            stream_share: Share(0.5),
            class: vec![Class { name: "health".into(), matches: Match { path: OneOrMany(vec!["/up".into()]) }, priority: 0, reserve: 0 }],
        }
    }
}

impl InFlightLayer {
    /// A queue for these threads.
    pub fn new(config: &Config, slots: Slots) -> Self {
        let ordered = config.ordered();
        let plain = ordered.iter().position(Option::is_none).unwrap_or(0);
        let patterns = ordered
            .iter()
            .enumerate()
            .flat_map(|(index, class)| class.iter().flat_map(move |c| c.matches.path.0.iter().map(move |p| (p.clone(), index))))
            .collect();
        InFlightLayer { slots, classes: Arc::new(Classes { patterns, plain }) }
    }
}

impl<S> tower_layer::Layer<S> for InFlightLayer {
    type Service = InFlight<S>;

    fn layer(&self, inner: S) -> InFlight<S> {
        InFlight { inner, slots: self.slots.clone(), classes: Arc::clone(&self.classes) }
    }
}

impl<S> Service<Request<Complete>> for InFlight<S>
where
    S: Service<Request<Complete>, Error = Refusal> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = S::Response;
    type Error = Refusal;
    type Future = Admitted<S::Response, S::Future>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Complete>) -> Self::Future {
        let Some(ask) = self.ask(&request) else { return Admitted::Refused { refusal: Refusal::Internal } };
        if let Some(slot) = self.slots.try_take(&ask) {
            admit(&mut request, slot);
            return Admitted::Direct { future: self.inner.call(request) };
        }
        match self.slots.enqueue(ask) {
            Err(full) => Admitted::Refused { refusal: Refusal::QueueFull { after: seconds(&full) } },
            Ok(waiting) => {
                let mut inner = self.inner.clone();
                Admitted::Queued {
                    future: Box::pin(async move {
                        let slot = waiting.slot().await.map_err(|reason| match reason {
                            NoSlot::Late => Refusal::QueueTimeout { after: 1 },
                            NoSlot::Away => Refusal::UpstreamRefused,
                            NoSlot::Displaced => Refusal::QueueFull { after: 1 },
                        })?;
                        admit(&mut request, slot);
                        inner.call(request).await
                    }),
                }
            }
        }
    }
}

impl<S> InFlight<S> {
    fn ask(&self, request: &Request<Complete>) -> Option<Ask> {
        let arrival = request.extensions().get::<Arrival>()?;
        let memory = match request.body().content() {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::None | Content::File(_) => 0,
        };
        let client = ClientKey::of(arrival.notes.client().unwrap_or(arrival.client.ip));
        Some(Ask { client, lane: lane(request), class: self.classes.of(request.uri().path()), memory })
    }
}

impl Classes {
    fn of(&self, path: &str) -> usize {
        let matches = |pattern: &str| match pattern.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => path == pattern,
        };
        self.patterns.iter().find(|(pattern, _)| matches(pattern)).map_or(self.plain, |(_, index)| *index)
    }
}

pin_project! {
    /// The answer to a request, at once or after its turn.
    #[project = AdmittedState]
    pub enum Admitted<R, F> {
        /// It had a thread at once.
        Direct {
            #[pin]
            future: F,
        },
        /// It waits.
        Queued { future: Pin<Box<dyn Future<Output = Result<R, Refusal>> + Send>> },
        /// It may not even wait.
        Refused { refusal: Refusal },
    }
}

impl<R, F> std::fmt::Debug for Admitted<R, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Admitted::Direct { .. } => "Direct",
            Admitted::Queued { .. } => "Queued",
            Admitted::Refused { .. } => "Refused",
        })
    }
}

impl<R, F: Future<Output = Result<R, Refusal>>> Future for Admitted<R, F> {
    type Output = Result<R, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            AdmittedState::Direct { future } => future.poll(cx),
            AdmittedState::Queued { future } => Poll::Ready(ready!(future.as_mut().poll(cx))),
            AdmittedState::Refused { refusal } => Poll::Ready(Err(*refusal)),
        }
    }
}

fn admit(request: &mut Request<Complete>, slot: Slot) {
    if let Some(arrival) = request.extensions().get::<Arrival>() {
        arrival.notes.mark_at(Moment::Admitted, slot.since());
    }
    request.body_mut().admit(slot);
}

/// What the request says about itself; the answer has the last word.
fn lane(request: &Request<Complete>) -> Lane {
    let headers = request.headers();
    let sent = request.extensions().get::<Arrival>().map_or(Names::ANY, |arrival| arrival.sent);
    let mentions = |name: &header::HeaderName, word: &[u8]| {
        let contains = |value: &header::HeaderValue| value.as_bytes().windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
        headers.get_all(name).iter().any(contains)
    };
    // `normalize` writes an Upgrade of its own for a handshake over HTTP/2.
    if (request.version() == Version::HTTP_2 || sent.may_have(&header::UPGRADE)) && mentions(&header::UPGRADE, b"websocket") {
        Lane::Upgrade
    } else if sent.may_have(&header::ACCEPT) && mentions(&header::ACCEPT, b"text/event-stream") {
        Lane::Stream
    } else {
        Lane::Normal
    }
}

fn seconds(full: &Full) -> u32 {
    u32::try_from(full.after.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}

impl TryFrom<f64> for Share {
    type Error = &'static str;

    fn try_from(value: f64) -> Result<Self, Self::Error> {
        if (0.0..=1.0).contains(&value) { Ok(Share(value)) } else { Err("expected a part between 0 and 1") }
    }
}

impl From<Share> for f64 {
    fn from(share: Share) -> f64 {
        share.0
    }
}

impl Serialize for Max {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Max::Auto => s.serialize_str("auto"),
            Max::Requests(n) => s.serialize_u32(*n),
        }
    }
}

impl<'de> Deserialize<'de> for Max {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Reader;
        impl de::Visitor<'_> for Reader {
            type Value = Max;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"auto\" or a number of requests")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Max, E> {
                if text == "auto" {
                    return Ok(Max::Auto);
                }
                text.parse().map(Max::Requests).map_err(|_| E::custom("expected \"auto\" or a number of requests"))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Max, E> {
                u32::try_from(number).map(Max::Requests).map_err(|_| E::custom("expected at most 4294967295 requests"))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Max, E> {
                u64::try_from(number).map_err(|_| E::custom("expected a number of requests")).and_then(|n| self.visit_u64(n))
            }
        }
        d.deserialize_any(Reader)
    }
}

fn plain_priority() -> u16 {
    PLAIN_PRIORITY
}

/// Urgency of requests without a class.
const PLAIN_PRIORITY: u16 = 100;
/// Bound of the queue where the configuration names none.
const MOST_WAITING: usize = 4096;

#[cfg(test)]
mod tests;
