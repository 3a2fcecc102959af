//! What is asked of Puma's threads, what is answered, and by which policy.

use std::time::Duration;

use crate::accept::client::ClientKey;

/// What the queue is allowed to do.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Longest wait for a thread while Puma can be reached.
    pub deadline: Duration,
    /// Longest wait for Puma to come back; the time counts separately from `deadline`.
    pub hold: Duration,
    /// Waiting requests at most; fewer where the measured service time says that more could not be served in time.
    pub max: usize,
    /// Bytes of bodies that waiting requests may hold in memory.
    pub memory: u64,
    /// Newest first once the queue stands.
    pub newest_first: bool,
    /// Part of the threads, and of the queue, that one client may have where others are there as well.
    pub client_share: f64,
    /// Part of the threads that event streams may have.
    pub stream_share: f64,
    /// Threads kept free for each class, the most urgent class first.
    pub reserves: Vec<u32>,
}

impl Policy {
    /// Threads that the other classes still keep free, where each has so many busy.
    pub(super) fn kept_from(&self, class: usize, busy: &[u32]) -> u32 {
        let others = self.reserves.iter().zip(busy).enumerate().filter(|(other, _)| *other != class);
        others.map(|(_, (reserve, busy))| reserve.saturating_sub(*busy)).sum()
    }
}

/// How long a request will keep its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Until its answer is written.
    Normal,
    /// As long as the client listens.
    Stream,
    /// Until Puma has switched protocols; then it is none of Puma's threads any more.
    Upgrade,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Who asks.
    pub client: ClientKey,
    /// For how long, about.
    pub lane: Lane,
    /// Index of its class: the lower, the more urgent.
    pub class: usize,
    /// Bytes of its body in memory.
    pub memory: u64,
}

/// Why a request may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// When it is worth while to come back.
    pub after: Duration,
}

/// What a waiting request should do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Wait, and ask again after this time at the latest.
    Wait(Duration),
    /// Give up: no thread came free in time.
    Late,
    /// Give up: Puma did not come back in time.
    Away,
}

impl Patience {
    /// Of who has waited for so long, and beside that for a Puma that was away.
    pub(super) fn of(policy: &Policy, waited: Duration, held: Duration, is_away: bool) -> Self {
        let (held_left, left) = (policy.hold.saturating_sub(held), policy.deadline.saturating_sub(waited));
        match (held_left.is_zero(), left.is_zero(), is_away) {
            (true, _, true) => Patience::Away,
            (_, true, false) => Patience::Late,
            (_, _, true) => Patience::Wait(held_left.min(left.max(AWAY_RECHECK))),
            (_, _, false) => Patience::Wait(left),
        }
    }
}

/// Figures for metrics and the live page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Threads of workers that can be reached.
    pub slots: u32,
    /// Requests inside Puma.
    pub in_flight: u32,
    /// Of these, the ones whose clients were already answered 504.
    pub stuck: u32,
    /// Of these, event streams.
    pub streams: u32,
    /// Requests that wait.
    pub waiting: usize,
    /// No worker can be reached.
    pub away: bool,
    /// For each worker: threads, requests inside, whether it can be reached.
    pub workers: Vec<(u32, u32, bool)>,
    /// Mean time that a request keeps its thread.
    pub service: Option<Duration>,
}

/// While Puma is away, waiting requests look again at least this often: their own deadline goes on once it is back.
const AWAY_RECHECK: Duration = Duration::from_millis(250);
