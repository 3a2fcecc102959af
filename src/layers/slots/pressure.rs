//! How long requests keep their threads, whether the queue stands, and how many may therefore wait.

use std::time::{Duration, Instant};

use super::terms::Policy;

/// Mean service time and state of the queue.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    service: Option<Duration>,
    standing_since: Option<Instant>,
    full_at: Option<Instant>,
    back_since: Option<Instant>,
}

impl Pressure {
    /// A thread was busy for that long until `now`, where that says something about the next request: a request that Puma
    /// had before it came back has waited for the start of the application.
    pub(super) fn measured(&mut self, service: Option<Duration>, now: Instant) {
        let is_new = |busy: &Duration| self.back_since.is_none_or(|back| now.saturating_duration_since(back) >= *busy);
        let Some(measured) = service.filter(is_new) else { return };
        self.service = Some(self.service.map_or(measured, |mean| (mean * (SMOOTHING - 1) + measured) / SMOOTHING));
    }

    /// The mean.
    pub(super) fn service(&self) -> Option<Duration> {
        self.service
    }

    /// Somebody has come to wait, and so many do now: the queue stands from when it is long.
    pub(super) fn grow(&mut self, policy: &Policy, capacity: usize, waiting: usize, now: Instant) {
        if self.is_long(policy, capacity, waiting) {
            self.standing_since.get_or_insert(now);
        }
    }

    /// So many are left. The queue stands no more when it is short, or no longer long and has had room for a while: with what can be
    /// served soon, in whatever order, Puma keeps up, even if somebody always waits, and newest first would let the oldest starve
    /// for nothing.
    pub(super) fn settle(&mut self, policy: &Policy, capacity: usize, waiting: usize, now: Instant) {
        let Some(since) = self.standing_since else { return };
        let is_short = || waiting <= self.within(policy.deadline / STANDING_PART, capacity).div_ceil(2);
        let lacked_room = self.full_at.map_or(since, |full| full.max(since));
        if is_short() || (is_for_long(policy, lacked_room, now) && !self.is_long(policy, capacity, waiting)) {
            self.standing_since = None;
        }
    }

    /// Somebody comes for whom there is no room.
    pub(super) fn full(&mut self, now: Instant) {
        self.full_at = Some(now);
    }

    /// Puma is back: whoever waits has waited for something else until now.
    pub(super) fn begin_again(&mut self, now: Instant) {
        self.back_since = Some(now);
        self.standing_since = self.standing_since.map(|_| now);
    }

    /// Nobody waits.
    pub(super) fn end(&mut self) {
        self.standing_since = None;
    }

    /// The queue has been standing for a while: arrivals exceed what Puma can do, and the newest are served first.
    pub(super) fn newest_first(&self, policy: &Policy, now: Instant) -> bool {
        policy.newest_first && self.standing_since.is_some_and(|since| is_for_long(policy, since, now))
    }

    fn is_long(&self, policy: &Policy, capacity: usize, waiting: usize) -> bool {
        waiting > self.within(policy.deadline / LONG_PART, capacity)
    }

    /// How many may wait: as many as can be served within the deadline, fewer once the queue stands, never above `max`.
    pub(super) fn room(&self, policy: &Policy, capacity: usize, away: bool, now: Instant) -> usize {
        if capacity == 0 {
            return if away { policy.max.min(UNKNOWN_ROOM) } else { 0 };
        }
        let horizon = if away {
            policy.hold
        } else if self.newest_first(policy, now) {
            policy.deadline / STANDING_PART
        } else {
            policy.deadline
        };
        self.within(horizon, capacity).min(policy.max)
    }

    /// How many can be served in that time.
    fn within(&self, horizon: Duration, capacity: usize) -> usize {
        let service = self.service.unwrap_or(ASSUMED_SERVICE).max(SHORTEST_SERVICE);
        let rounds = horizon.as_micros().checked_div(service.as_micros()).unwrap_or(0);
        capacity.saturating_mul(usize::try_from(rounds).unwrap_or(usize::MAX)).max(capacity)
    }

    /// How long it takes until all who wait are served.
    pub(super) fn drain_time(&self, waiting: usize, capacity: usize) -> Duration {
        let rounds = waiting.checked_div(capacity).unwrap_or(1).saturating_add(1);
        let service = self.service.unwrap_or(ASSUMED_SERVICE);
        service.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX)).min(LONGEST_RETRY)
    }
}

/// Whether what has been so since then has been so for long enough to turn the order.
fn is_for_long(policy: &Policy, since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= policy.deadline / STANDING_AFTER
}

/// Weight of one measurement in the mean: one in this many.
const SMOOTHING: u32 = 16;
/// Before anything was measured.
const ASSUMED_SERVICE: Duration = Duration::from_millis(100);
const SHORTEST_SERVICE: Duration = Duration::from_micros(100);
/// The queue is long when the oldest waits for more than this part of the deadline.
const LONG_PART: u32 = 4;
/// The newest are served first when it has stood for this part of the deadline ...
const STANDING_AFTER: u32 = 5;
/// ... and it is then kept this much shorter: behind newest-first the rest only grows stale.
const STANDING_PART: u32 = 10;
/// Room while nothing is known about Puma.
const UNKNOWN_ROOM: usize = 128;
/// Longest Retry-After.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
