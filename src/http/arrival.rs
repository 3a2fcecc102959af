//! What is known of a request that its own bytes do not say, and what the layers note about it on its way.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{accept::client::Client, guard::rule::Rule};

/// Extension of every request, set by the front that received it.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Who sent it.
    pub client: Arc<Client>,
    /// The request target as the client sent it; `normalize` reduces it to origin-form (or `*`).
    pub target: Bytes,
    /// What the layers note for the log.
    pub notes: Arc<Notes>,
}

/// Times and findings of one request, written by the stage that knows them and read once, by `record`.
#[derive(Debug)]
pub struct Notes {
    /// The first byte of the head.
    pub started: Instant,
    /// The same moment by the calendar.
    pub at: SystemTime,
    id: OnceLock<HeaderValue>,
    complete: AtomicU64,
    admitted: AtomicU64,
    answered: AtomicU64,
    finished: AtomicU64,
    body: AtomicU64,
    worker: AtomicU32,
    route: AtomicU32,
    limit: OnceLock<Arc<str>>,
    observed: AtomicU64,
    client: OnceLock<IpAddr>,
    direct: AtomicBool,
    quota: OnceLock<Box<[(HeaderName, HeaderValue); 2]>>,
    hinted: AtomicBool,
    hints: Mutex<Vec<HeaderMap>>,
}

/// A moment in the life of a request, after its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The last byte of its body had come.
    Complete,
    /// It had a slot.
    Admitted,
    /// The head of Puma's answer had come.
    Answered,
    /// Puma's last byte had come.
    Finished,
}

impl Notes {
    /// Notes of a request whose first byte came at `started`.
    pub fn new(started: Instant) -> Self {
        Notes {
            started,
            at: SystemTime::now(),
            id: OnceLock::new(),
            complete: AtomicU64::new(0),
            admitted: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            body: AtomicU64::new(0),
            worker: AtomicU32::new(u32::MAX),
            route: AtomicU32::new(0),
            limit: OnceLock::new(),
            observed: AtomicU64::new(0),
            client: OnceLock::new(),
            direct: AtomicBool::new(false),
            quota: OnceLock::new(),
            hinted: AtomicBool::new(false),
            hints: Mutex::new(Vec::new()),
        }
    }

    /// Notes that a moment is now.
    pub fn mark(&self, moment: Moment) {
        self.mark_at(moment, Instant::now());
    }

    /// Notes when a moment was, for whoever has just looked at the clock.
    pub fn mark_at(&self, moment: Moment, at: Instant) {
        let micros = u64::try_from(at.saturating_duration_since(self.started).as_micros()).unwrap_or(u64::MAX);
        self.cell(moment).store(micros.max(1), Relaxed);
    }

    /// How long after the start a moment was; `None` when it was never reached.
    pub fn when(&self, moment: Moment) -> Option<Duration> {
        match self.cell(moment).load(Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    /// Notes for whom a trusted peer speaks (`forwarded` does, once).
    pub fn attribute(&self, client: IpAddr) {
        self.client.get_or_init(|| client);
    }

    /// The address that a trusted peer speaks for; `None` where the connection's own address is the client's.
    pub fn client(&self) -> Option<IpAddr> {
        self.client.get().copied()
    }

    /// Notes that nobody speaks for the client: what the application learns of it is [`Client::family`].
    pub fn is_direct(&self) {
        self.direct.store(true, Relaxed);
    }

    /// The field lines about a client for whom nobody speaks; `None` where the fields of the request tell of it.
    pub fn family<'a>(&self, client: &'a Client) -> Option<&'a Bytes> {
        client.family.get().filter(|_| self.direct.load(Relaxed))
    }

    /// Notes the request id (`request_id` does, once); the first one stays.
    pub fn identify(&self, id: HeaderValue) {
        self.id.get_or_init(|| id);
    }

    /// The request id, once it is known; stages further out read it after the answer or the refusal came back.
    pub fn id(&self) -> Option<&HeaderValue> {
        self.id.get()
    }

    /// Notes the fields about the rate limit that is exceeded, for the refusal's answer.
    pub fn limited(&self, fields: [(HeaderName, HeaderValue); 2]) {
        self.quota.get_or_init(|| Box::new(fields));
    }

    /// Fields that the answer to a refusal carries.
    pub fn quota(&self) -> &[(HeaderName, HeaderValue)] {
        self.quota.get().map_or(&[], |fields| fields.as_slice())
    }

    /// Notes the length of the request body.
    pub fn body_length(&self, bytes: u64) {
        self.body.store(bytes, Relaxed);
    }

    /// The length of the request body as far as it was read.
    pub fn body(&self) -> u64 {
        self.body.load(Relaxed)
    }

    /// Notes which of Puma's workers (or sockets) has the request.
    pub fn sent_to(&self, worker: u32) {
        self.worker.store(worker, Relaxed);
    }

    /// The index of Puma's worker (or socket), once the request was sent.
    pub fn worker(&self) -> Option<u32> {
        Some(self.worker.load(Relaxed)).filter(|w| *w != u32::MAX)
    }

    /// Notes which `[[route]]` holds, counted from 1 as they stand in the file.
    pub fn routed_by(&self, number: u32) {
        self.route.store(number, Relaxed);
    }

    /// The number of the `[[route]]` that holds; `None` where none does.
    pub fn route(&self) -> Option<u32> {
        Some(self.route.load(Relaxed)).filter(|number| *number > 0)
    }

    /// Notes the name of the `[[rate_limit]]` that is exceeded; the first one stays.
    pub fn limited_by(&self, name: &Arc<str>) {
        self.limit.get_or_init(|| Arc::clone(name));
    }

    /// The `[[rate_limit]]` that refused, or would have in mode `enforce`.
    pub fn limit(&self) -> Option<&str> {
        self.limit.get().map(|name| &**name)
    }

    /// Notes a rule that repaired something, or would have refused in mode `enforce`.
    pub fn observe(&self, rule: Rule) {
        self.observed.fetch_or(1 << (rule as u8), Relaxed);
    }

    /// Notes the rules whose bits are set, as the guard counts them in mode `monitor`.
    pub fn observe_all(&self, bits: u64) {
        if bits != 0 {
            self.observed.fetch_or(bits, Relaxed);
        }
    }

    /// The rules that were noted, in the order of [`Rule::ALL`].
    pub fn observed(&self) -> impl Iterator<Item = Rule> {
        let mut bits = self.observed.load(Relaxed);
        std::iter::from_fn(move || {
            let lowest = usize::try_from(bits.trailing_zeros()).ok()?;
            bits &= bits.wrapping_sub(1);
            Rule::ALL.get(lowest).copied()
        })
    }

    /// Leaves the fields of a 103 for the front (RFC 8297); the front runs in the same task and looks after each turn.
    pub fn hint(&self, fields: HeaderMap) {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner).push(fields);
        self.hinted.store(true, Relaxed);
    }

    /// The 103s that came since the last call.
    pub fn take_hints(&self) -> Vec<HeaderMap> {
        if !self.hinted.swap(false, Relaxed) {
            return Vec::new();
        }
        std::mem::take(&mut *self.hints.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn cell(&self, moment: Moment) -> &AtomicU64 {
        match moment {
            Moment::Complete => &self.complete,
            Moment::Admitted => &self.admitted,
            Moment::Answered => &self.answered,
            Moment::Finished => &self.finished,
        }
    }
}
