//! What is known of a request that its own bytes do not say, and what the layers note about it on its way.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::{
    accept::client::{Client, Scheme},
    guard::rule::Rule,
    log::Said,
};

/// Extension of every request, set by the front that received it.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Who sent it.
    pub client: Arc<Client>,
    /// The request target as the client sent it; `normalize` reduces it to origin-form (or `*`).
    pub target: Bytes,
    /// What the layers note for the log.
    pub notes: Arc<Notes>,
    /// The names of the fields that the client has sent.
    pub sent: Names,
}

/// Which names are among the fields that a client has sent. It may say yes to one that is not, never no to one that is: most
/// fields that a layer looks for are not there, and this costs a tenth of a look-up. Of names that layers add it knows nothing.
#[derive(Clone, Copy, Debug)]
pub struct Names(u64);

impl Names {
    /// Nothing is known: any name may be there.
    pub const ANY: Names = Names(u64::MAX);
    /// None.
    pub const NONE: Names = Names(0);

    /// Adds a name.
    pub fn add(&mut self, name: &HeaderName) {
        self.0 |= place(name);
    }

    /// Whether a field of this name may be there.
    pub fn may_have(self, name: &HeaderName) -> bool {
        self.0 & place(name) != 0
    }
}

/// One bit of 64, by length and ends of the name.
fn place(name: &HeaderName) -> u64 {
    let name = name.as_str().as_bytes();
    let ends = (name.first().copied().unwrap_or(0) ^ name.last().copied().unwrap_or(0).rotate_left(2)).wrapping_mul(5);
    1_u64.rotate_left(u32::from(ends ^ name.len() as u8))
}

impl Arrival {
    /// Whether the client came over https: by the connection, or by what `forwarded` wrote where a trusted peer speaks for it.
    pub fn is_https(&self, fields: &HeaderMap) -> bool {
        if self.client.trusted
            && let Some(proto) = fields.get(X_FORWARDED_PROTO)
        {
            return proto == "https";
        }
        self.client.scheme == Scheme::Https
    }
}

/// Times and findings of one request, written by the stage that knows them and read once, by `record`.
#[derive(Debug)]
pub struct Notes {
    /// The first byte of the head.
    pub started: Instant,
    /// The same moment by the calendar.
    pub at: SystemTime,
    said: OnceLock<Said>,
    id: OnceLock<HeaderValue>,
    complete: AtomicU64,
    admitted: AtomicU64,
    answered: AtomicU64,
    finished: AtomicU64,
    body: AtomicU64,
    sent: AtomicU64,
    status: AtomicU16,
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
        Notes::blank(started, SystemTime::now())
    }

    /// Forgets the request.
    pub fn clear(&mut self) {
        *self = Notes::blank(self.started, self.at);
    }

    /// Makes blank notes those of a request whose first byte came at `started`.
    pub fn begin(&mut self, started: Instant) {
        (self.started, self.at) = (started, SystemTime::now());
    }

    fn blank(started: Instant, at: SystemTime) -> Self {
        Notes {
            started,
            at,
            said: OnceLock::new(),
            id: OnceLock::new(),
            complete: AtomicU64::new(0),
            admitted: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            body: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            status: AtomicU16::new(0),
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

    /// Notes what the client said (`record` does, once).
    pub fn say(&self, said: Said) {
        self.said.get_or_init(|| said);
    }

    /// What the client said, once the request is recorded.
    pub fn said(&self) -> Option<&Said> {
        self.said.get()
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

    /// Notes the status of the answer.
    pub fn answer(&self, status: StatusCode) {
        self.status.store(status.as_u16(), Relaxed);
    }

    /// The status of the answer, once there is one.
    pub fn status(&self) -> Option<StatusCode> {
        StatusCode::from_u16(self.status.load(Relaxed)).ok()
    }

    /// Notes bytes of the response body that were handed to the connection.
    pub fn send(&self, bytes: u64) {
        self.sent.store(self.sent().saturating_add(bytes), Relaxed);
    }

    /// Notes bytes that came back from there.
    pub fn take_back(&self, bytes: u64) {
        self.sent.store(self.sent().saturating_sub(bytes), Relaxed);
    }

    /// Bytes of the response body that were handed to the connection.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
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

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_name_that_was_sent_is_never_missed(names in proptest::collection::vec("[a-z0-9_-]{1,20}", 0..12)) {
            let names: Vec<HeaderName> = names.iter().map(|name| name.parse().unwrap()).collect();
            let mut sent = Names::NONE;
            names.iter().for_each(|name| sent.add(name));
            proptest::prop_assert!(names.iter().all(|name| sent.may_have(name) && Names::ANY.may_have(name)));
        }
    }

    #[test]
    fn what_a_browser_does_not_send_is_mostly_known_to_be_absent() {
        let mut sent = Names::NONE;
        for name in ["host", "user-agent", "accept", "accept-language", "accept-encoding", "cookie", "connection", "referer"] {
            sent.add(&name.parse().unwrap());
        }
        let absent = ["range", "content-type", "accept-charset", "upgrade", "expect", "if-range", "origin", "te", "authorization"];
        let taken = absent.iter().filter(|name| sent.may_have(&name.parse().unwrap())).count();
        assert!(taken <= 2, "{taken}");
        assert!(!Names::NONE.may_have(&http::header::ACCEPT));
    }
}
