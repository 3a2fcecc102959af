//! Deadlines and minimum rates of connections, in both directions.
//!
//! Threat: slowloris in every form. A phase ends at a total deadline (head, handshake, idle), or a transfer ends when it
//! stalls or falls below its minimum rate after a grace. All of it is arithmetic on `now`; no timer is made or moved per
//! request. Each connection owns one [`Pulse`]; one sweep over all of them (every 100 ms) wakes those whose time is over,
//! and finds the connection with the least progress when slots run out.

use std::{
    collections::BinaryHeap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use serde::{Deserialize, Serialize};

use crate::units::{ByteRate, Deadline};

/// `[timeouts]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// TLS handshake and PROXY line, from accept to the end. Default: 5 s.
    pub tls_handshake: Deadline,
    /// A request head, from its first byte to its last. Default: 10 s.
    pub header: Deadline,
    /// Longest pause within a request body. Default: 15 s.
    pub body_stall: Deadline,
    /// Longest pause of a client that reads its answer. Default: 15 s.
    pub write_stall: Deadline,
    /// An idle connection between requests. Default: 30 s.
    pub idle: Deadline,
    /// A connection is closed after its next answer when it is older. Default: 1 h.
    pub connection_age: Deadline,
    /// Longest silence of a WebSocket in both directions; ActionCable pings every 3 s. Default: 60 s.
    pub tunnel_idle: Deadline,
    /// Requests on one connection before it is closed. Default: 10000.
    pub requests: u32,
}

/// `[rates]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rates {
    /// Least mean rate of a request body after the grace. Default: 500 B/s.
    pub body_min: ByteRate,
    /// Least mean rate at which a client reads its answer after the grace. Default: 500 B/s.
    pub write_min: ByteRate,
    /// Time before the minimum rates count. Default: 10 s.
    pub grace: Deadline,
}

/// Arithmetic of one transfer: bytes against the time in which the client had the turn.
///
/// Time is an account. It starts with the grace, every byte pays in what it may take at the minimum rate, and the clock takes
/// out. It never holds more than the grace or the stall, whichever is longer: a fast start does not buy hours of dripping.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// When the account is empty; while the turn is elsewhere, what is left in it.
    end: Millis,
    is_paused: bool,
    /// Bytes times 1000 that have not yet made up a whole millisecond.
    change: u64,
    stall: u64,
    most: u64,
    rate: u64,
}

/// Milliseconds since the start of the process.
pub type Millis = u64;

/// The heartbeat of one connection: until when it may go on as it is, and how far it has come.
#[derive(Debug)]
pub struct Pulse {
    deadline: AtomicU64,
    progress: AtomicU64,
    evicted: AtomicBool,
    waker: AtomicWaker,
}

/// The pulses of all connections.
#[derive(Debug)]
pub struct Sweep {
    started: Instant,
    /// The last tick: near enough for deadlines, which only a tick ends, and cheaper than the clock.
    ticked: AtomicU64,
    shards: Box<[Mutex<slab::Slab<Arc<Pulse>>>]>,
}

/// A pulse in its sweep, for as long as the connection lives.
#[derive(Debug)]
pub struct Beat {
    pulse: Arc<Pulse>,
    sweep: Arc<Sweep>,
    shard: usize,
    slot: usize,
}

/// A connection that may have to go: without a deadline or with one, its progress, its deadline.
type Rank = (bool, u64, Millis);

#[derive(Debug)]
struct Candidate {
    rank: Rank,
    pulse: Arc<Pulse>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            tls_handshake: Deadline::seconds(5),
            header: Deadline::seconds(10),
            body_stall: Deadline::seconds(15),
            write_stall: Deadline::seconds(15),
            idle: Deadline::seconds(30),
            connection_age: Deadline::seconds(3600),
            tunnel_idle: Deadline::seconds(60),
            requests: 10_000,
        }
    }
}

impl Default for Rates {
    fn default() -> Self {
        Rates { body_min: ByteRate(500), write_min: ByteRate(500), grace: Deadline::seconds(10) }
    }
}

impl Pace {
    /// A transfer that starts now.
    pub fn new(now: Millis, stall: Deadline, rate: ByteRate, grace: Deadline) -> Self {
        let (stall, grace) = (stall.as_millis(), grace.as_millis());
        Pace { end: now.saturating_add(grace), is_paused: false, change: 0, stall, most: stall.max(grace), rate: rate.0 }
    }

    /// Counts bytes that moved.
    pub fn moved(&mut self, bytes: usize) {
        let worth = (bytes as u64).saturating_mul(1000).saturating_add(self.change);
        self.end = self.end.saturating_add(worth.checked_div(self.rate).unwrap_or(0));
        self.change = worth.checked_rem(self.rate).unwrap_or(0);
    }

    /// The moment at which the transfer is too slow, if nothing moves from `now` on.
    pub fn deadline(&mut self, now: Millis) -> Millis {
        self.resume(now);
        let stalled = now.saturating_add(self.stall);
        if self.rate == 0 {
            return stalled;
        }
        self.end = self.end.min(now.saturating_add(self.most));
        stalled.min(self.end)
    }

    /// Whether the turn is elsewhere.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// The client is not to blame for the time that passes from `now` on.
    pub fn pause(&mut self, now: Millis) {
        if !self.is_paused {
            (self.end, self.is_paused) = (self.end.saturating_sub(now), true);
        }
    }

    /// The client has the turn again.
    pub fn resume(&mut self, now: Millis) {
        if self.is_paused {
            (self.end, self.is_paused) = (self.end.saturating_add(now), false);
        }
    }
}

/// When a client that has taken nothing since `since` gets its part of the kernel's buffer filled where it is not, if its time is over at
/// `deadline`: only from then on what the kernel takes says what the client does.
pub fn fill_at(since: Millis, deadline: Millis) -> Millis {
    since.saturating_add(deadline.saturating_sub(since) / FILL_PART)
}

impl Pulse {
    /// The connection may go on as it is until `deadline`.
    pub fn until(&self, deadline: Millis) {
        self.deadline.store(deadline, Relaxed);
    }

    /// Nothing limits the connection for now: Palisade or Puma has the turn.
    pub fn unlimited(&self) {
        self.deadline.store(u64::MAX, Relaxed);
    }

    /// Counts progress, for the choice of whom to drop when connections run out.
    pub fn advance(&self, by: u64) {
        self.progress.fetch_add(by, Relaxed);
    }

    fn rank(&self) -> Rank {
        let deadline = self.deadline.load(Relaxed);
        (deadline == u64::MAX, self.progress.load(Relaxed), deadline)
    }

    /// Whether the deadline has passed or the connection was chosen to go.
    pub fn is_over(&self, now: Millis) -> bool {
        self.deadline.load(Relaxed) <= now || self.evicted.load(Relaxed)
    }

    /// Whether the connection was chosen to make room for others.
    pub fn is_evicted(&self) -> bool {
        self.evicted.load(Relaxed)
    }

    /// Wakes this task when the time is over. The task's waker stays the same for its life, so once is enough.
    pub fn wake_by(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Wakes the task, and can do so again: a connection whose deadline moved in the moment in which it passed must not be
    /// without one from then on.
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            self.waker.register(&waker);
            waker.wake();
        }
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank
    }
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank.cmp(&other.rank)
    }
}

impl Sweep {
    /// An empty registry. [`Sweep::run`] must be spawned for deadlines to fire.
    pub fn new() -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| Mutex::new(slab::Slab::new())).collect();
        Arc::new(Sweep { started: Instant::now(), ticked: AtomicU64::new(0), shards })
    }

    /// Milliseconds since the start.
    pub fn now(&self) -> Millis {
        self.at(Instant::now())
    }

    /// A moment as milliseconds since the start.
    pub fn at(&self, moment: Instant) -> Millis {
        u64::try_from(moment.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// The same at the last tick, which costs no look at a clock.
    pub fn lately(&self) -> Millis {
        self.ticked.load(Relaxed)
    }

    /// Enrols a connection.
    pub fn enrol(self: &Arc<Self>, deadline: Millis) -> Beat {
        let pulse = Arc::new(Pulse {
            deadline: AtomicU64::new(deadline),
            progress: AtomicU64::new(0),
            evicted: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        let shard = fastrand::usize(..SHARDS);
        let slot = match self.shards.get(shard) {
            Some(shard) => shard.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(&pulse)),
            None => 0,
        };
        Beat { pulse, sweep: Arc::clone(self), shard, slot }
    }

    /// Wakes every connection whose time is over.
    pub fn tick(&self) {
        let now = self.now();
        self.ticked.store(now, Relaxed);
        for shard in &self.shards {
            for (_, pulse) in shard.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                if pulse.is_over(now) {
                    pulse.wake();
                }
            }
        }
    }

    /// Drops the connection that has made the least progress so far, if one has made less than `below`.
    pub fn evict_least(&self, below: u64) -> bool {
        self.evict(below, 1) > 0
    }

    /// Drops up to `most` connections that have made less progress than `below`, in one pass; says how many it dropped.
    ///
    /// The least progress goes first. Among equals the one nearest to its deadline goes, which has been silent for longest, so
    /// that an attacker's idle connections go before a newcomer that has had no time to speak; and those that wait for Palisade
    /// or Puma, which have no deadline, go last.
    pub fn evict(&self, below: u64, most: usize) -> usize {
        let mut least: BinaryHeap<Candidate> = BinaryHeap::new();
        for shard in &self.shards {
            for (_, pulse) in shard.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                let rank = pulse.rank();
                let is_less = least.len() < most || least.peek().is_some_and(|worst| rank < worst.rank);
                if rank.1 < below && is_less && !pulse.evicted.load(Relaxed) {
                    least.push(Candidate { rank, pulse: Arc::clone(pulse) });
                    if least.len() > most {
                        least.pop();
                    }
                }
            }
        }
        let mut dropped = 0usize;
        for Candidate { pulse, .. } in least {
            // Two passes may run at once and choose the same connection; it makes room for one.
            if !pulse.evicted.swap(true, Relaxed) {
                dropped = dropped.saturating_add(1);
            }
            pulse.wake();
        }
        dropped
    }

    /// Wakes every connection, so that it looks whether Palisade is draining.
    pub fn wake_all(&self) {
        for shard in &self.shards {
            for (_, pulse) in shard.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                pulse.wake();
            }
        }
    }

    /// Sweeps for ever.
    pub async fn run(self: Arc<Self>) {
        let mut every = tokio::time::interval(TICK);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            every.tick().await;
            self.tick();
        }
    }
}

impl Beat {
    /// The sweep's clock.
    pub fn now(&self) -> Millis {
        self.sweep.now()
    }

    /// [`Sweep::at`].
    pub fn at(&self, moment: Instant) -> Millis {
        self.sweep.at(moment)
    }

    /// [`Sweep::lately`].
    pub fn lately(&self) -> Millis {
        self.sweep.lately()
    }

    /// Whether the time was over at the last tick.
    pub fn is_over(&self) -> bool {
        self.pulse.is_over(self.sweep.lately())
    }

    /// The clock and registry that the pulse belongs to.
    pub fn clock(&self) -> Arc<Sweep> {
        Arc::clone(&self.sweep)
    }

    /// The pulse, to hand to the parts of a connection.
    pub fn share(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }
}

impl std::ops::Deref for Beat {
    type Target = Pulse;
    fn deref(&self) -> &Pulse {
        &self.pulse
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        if let Some(shard) = self.sweep.shards.get(self.shard) {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.try_remove(self.slot);
            if shard.is_empty() {
                shard.shrink_to_fit();
            }
        }
    }
}

const SHARDS: usize = 16;
const TICK: Duration = Duration::from_millis(100);
/// Early, as the kernel frees its buffer in pieces of up to 64 KiB, and one has to be gone before the deadline.
const FILL_PART: u64 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Count(AtomicU64);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn pace() -> Pace {
        Pace::new(1000, Deadline::seconds(15), ByteRate(500), Deadline::seconds(10))
    }

    #[test]
    fn a_drip_ends_at_the_grace_plus_what_its_bytes_earned() {
        let mut pace = pace();
        assert_eq!(pace.deadline(1000), 11_000);
        pace.moved(500);
        assert_eq!(pace.deadline(10_000), 12_000);
        pace.moved(1);
        assert_eq!(pace.deadline(11_500), 12_002);
    }

    #[test]
    fn a_steady_upload_is_never_too_slow() {
        let mut pace = pace();
        for second in 1..100_000u64 {
            pace.moved(1_000_000);
            let now = 1000 + second * 1000;
            assert!(pace.deadline(now) > now + 1000, "second {second}");
        }
    }

    #[test]
    fn a_fast_start_buys_no_time_for_a_drip() {
        let mut pace = pace();
        pace.moved(100_000_000);
        let mut now = 1000;
        while pace.deadline(now) > now + 1000 {
            now += 1000;
            pace.moved(64);
        }
        assert_eq!(now, 18_000, "15 s of credit, stretched by 64 bytes a second");
    }

    #[test]
    fn a_client_at_twice_the_least_rate_may_go_on_and_one_at_half_of_it_not() {
        for (bytes, is_honest) in [(1000, true), (250, false)] {
            let (mut pace, mut now) = (pace(), 1000);
            while now < 1_000_000 && pace.deadline(now) > now + 1000 {
                now += 1000;
                pace.moved(bytes);
            }
            assert_eq!(now == 1_000_000, is_honest, "{bytes} bytes a second, {now} ms");
        }
    }

    #[test]
    fn time_in_which_the_turn_is_elsewhere_is_not_counted() {
        let mut pace = pace();
        assert_eq!(pace.deadline(5000), 11_000);
        pace.pause(5000);
        pace.pause(6000);
        assert_eq!(pace.deadline(100_000), 106_000, "6 s are left of the grace");
    }

    #[test]
    fn bytes_that_come_one_by_one_are_worth_the_same() {
        let (mut one, mut all) = (pace(), pace());
        (0..7501).for_each(|_| one.moved(1));
        all.moved(7501);
        assert_eq!(one.deadline(11_000), all.deadline(11_000));
    }

    #[test]
    fn a_task_can_be_woken_more_than_once() {
        let sweep = Sweep::new();
        let beat = sweep.enrol(0);
        let count = Arc::new(Count::default());
        beat.wake_by(&Waker::from(Arc::clone(&count)));
        sweep.tick();
        sweep.tick();
        sweep.wake_all();
        assert_eq!(count.0.load(Relaxed), 3);
    }

    #[test]
    fn a_fast_transfer_that_stops_ends_at_the_stall() {
        let mut pace = pace();
        pace.moved(100_000_000);
        assert_eq!(pace.deadline(50_000), 65_000);
    }

    #[test]
    fn the_least_progress_goes_first() {
        let sweep = Sweep::new();
        let (idle, busy) = (sweep.enrol(u64::MAX), sweep.enrol(u64::MAX));
        busy.advance(10);
        assert!(sweep.evict_least(10));
        assert!(idle.is_evicted() && !busy.is_evicted());
        assert!(!sweep.evict_least(10), "the honest one is never dropped");
    }

    #[test]
    fn among_equals_the_longest_silent_goes_and_who_waits_for_puma_goes_last() {
        let sweep = Sweep::new();
        let (newcomer, silent, served) = (sweep.enrol(9000), sweep.enrol(100), sweep.enrol(u64::MAX));
        assert_eq!(sweep.evict(10, 1), 1);
        assert!(silent.is_evicted() && !newcomer.is_evicted());
        assert_eq!(sweep.evict(10, 1), 1);
        assert!(newcomer.is_evicted() && !served.is_evicted());
        assert_eq!(sweep.evict(10, 9), 1);
        assert_eq!(sweep.evict(10, 9), 0);
    }

    #[test]
    fn one_pass_drops_the_several_least() {
        let sweep = Sweep::new();
        let beats: Vec<_> = (0..100).map(|_| sweep.enrol(1000)).collect();
        for (n, beat) in beats.iter().enumerate() {
            beat.advance(n as u64);
        }
        assert_eq!(sweep.evict(50, 7), 7);
        assert!(beats.iter().enumerate().all(|(n, beat)| beat.is_evicted() == (n < 7)));
        assert_eq!(sweep.evict(50, 70), 43, "the honest ones are never dropped");
    }

    #[test]
    fn a_beat_leaves_the_sweep_with_its_connection() {
        let sweep = Sweep::new();
        drop(sweep.enrol(0));
        assert!(sweep.shards.iter().all(|s| s.lock().unwrap().is_empty()));
    }
}
