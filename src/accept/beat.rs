//! The heartbeat of every connection: until when it may go on, how far it has come, and one sweep that looks at all of them.
//!
//! Threats: slowloris (a deadline that has passed ends its phase) and exhaustion (the connection with the least progress goes when
//! slots run out). No timer is made or moved per request. Each connection owns one [`Pulse`]; one sweep over all of them (every
//! 100 ms) wakes those whose time is over.

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
