//! Puma's workers and their threads: who is least busy, how many can serve, and how long none could be reached.
//!
//! One that has just come back has cold caches and no compiled code: for a while it counts as smaller than it is, and gets
//! its full number only where the others are as busy.

use std::time::{Duration, Instant};

/// All workers, by index.
#[derive(Debug)]
pub(super) struct Workers {
    list: Vec<Worker>,
    rotation: usize,
    /// When a thread was given back last.
    freed: Instant,
    /// Puma starts anew behind sockets that stay open.
    silent: bool,
    away_since: Option<Instant>,
    away_before: Duration,
}

#[derive(Debug, Default)]
struct Worker {
    limit: u32,
    in_flight: u32,
    stuck: u32,
    down: bool,
    /// When it came back.
    back: Option<Instant>,
}

impl Workers {
    /// None yet: Puma is away.
    pub(super) fn new(now: Instant) -> Self {
        Workers { list: Vec::new(), rotation: 0, freed: now, silent: false, away_since: Some(now), away_before: Duration::ZERO }
    }

    /// The threads of each; true where Puma is back by that.
    pub(super) fn set(&mut self, limits: &[u32], now: Instant) -> bool {
        if self.list.len() < limits.len() {
            self.list.resize_with(limits.len(), Worker::default);
        }
        for (index, worker) in self.list.iter_mut().enumerate() {
            let limit = limits.get(index).copied().unwrap_or(0);
            if worker.limit == 0 && limit > 0 {
                worker.back = Some(now);
            }
            worker.limit = limit;
        }
        self.note_away(now)
    }

    /// Whether a worker can be reached; true where Puma is back by that.
    pub(super) fn set_down(&mut self, index: u32, down: bool, now: Instant) -> bool {
        if let Some(worker) = self.list.get_mut(index as usize) {
            if worker.down && !down {
                worker.back = Some(now);
            }
            worker.down = down;
        }
        self.note_away(now)
    }

    /// Whether the control server is gone; true where Puma is back by that. In a hot restart Puma's sockets stay open and
    /// nobody answers, which looks like a wedged application, but for that.
    pub(super) fn note_control(&mut self, gone: bool, now: Instant) -> bool {
        let busy = !self.list.iter().any(Worker::has_free);
        self.silent = gone && busy && now.saturating_duration_since(self.freed) >= QUIET;
        self.note_away(now)
    }

    /// Puma has ended an answer; true where it is back by that.
    pub(super) fn note_answer(&mut self, now: Instant) -> bool {
        self.freed = now;
        self.silent = false;
        self.note_away(now)
    }

    /// One thread more of this worker is busy.
    pub(super) fn occupy(&mut self, index: u32) {
        if let Some(worker) = self.list.get_mut(index as usize) {
            worker.in_flight = worker.in_flight.saturating_add(1);
        }
    }

    /// One thread less is.
    pub(super) fn release(&mut self, index: u32, stuck: bool) {
        if let Some(worker) = self.list.get_mut(index as usize) {
            worker.in_flight = worker.in_flight.saturating_sub(1);
            worker.stuck = worker.stuck.saturating_sub(u32::from(stuck));
        }
    }

    /// A busy thread serves nobody any more.
    pub(super) fn mark_stuck(&mut self, index: u32) {
        if let Some(worker) = self.list.get_mut(index as usize) {
            worker.stuck = worker.stuck.saturating_add(1);
        }
    }

    /// The worker has a thread free and can be reached.
    pub(super) fn has_free(&self, index: u32) -> bool {
        self.list.get(index as usize).is_some_and(Worker::has_free)
    }

    /// The worker that would have the smallest part of its threads busy with one request more; equals take turns.
    pub(super) fn least_busy(&mut self, except: Option<u32>, now: Instant) -> Option<u32> {
        let count = self.list.len();
        let mut best: Option<(usize, u32, u32)> = None;
        let busy = |in_flight: u32, of: u32| u64::from(in_flight.saturating_add(1)) * u64::from(of);
        for step in 0..count {
            let index = self.rotation.wrapping_add(step) % count;
            let excepted = except.is_some_and(|e| e as usize == index);
            let Some(worker) = self.list.get(index).filter(|w| w.has_free() && !excepted) else { continue };
            let weight = worker.weight(now);
            if best.is_none_or(|(_, in_flight, other)| busy(worker.in_flight, other) < busy(in_flight, weight)) {
                best = Some((index, worker.in_flight, weight));
            }
        }
        let (index, ..) = best?;
        self.rotation = index.wrapping_add(1);
        u32::try_from(index).ok()
    }

    /// Threads that can serve: of reachable workers, without the stuck ones. While all are away: what there was.
    pub(super) fn capacity(&self) -> usize {
        let away = self.is_away();
        self.list.iter().filter(|w| away || !w.down).map(|w| w.limit.saturating_sub(w.stuck) as usize).sum()
    }

    /// Threads of reachable workers.
    pub(super) fn threads(&self) -> u32 {
        self.list.iter().filter(|w| !w.down).map(|w| w.limit).sum()
    }

    /// Of these, the free ones.
    pub(super) fn free(&self) -> u32 {
        self.list.iter().filter(|w| !w.down).map(|w| w.limit.saturating_sub(w.in_flight)).sum()
    }

    /// Busy threads of all workers, and how many of them serve nobody.
    pub(super) fn busy(&self) -> (u32, u32) {
        (self.list.iter().map(|w| w.in_flight).sum(), self.list.iter().map(|w| w.stuck).sum())
    }

    /// For each worker: threads, busy ones, whether it can be reached.
    pub(super) fn each(&self) -> Vec<(u32, u32, bool)> {
        self.list.iter().map(|w| (w.limit, w.in_flight, !w.down)).collect()
    }

    /// None can be reached.
    pub(super) fn is_away(&self) -> bool {
        self.away_since.is_some()
    }

    /// A clock that runs only while none can be reached.
    pub(super) fn away_clock(&self, now: Instant) -> Duration {
        let current = self.away_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.away_before.saturating_add(current)
    }

    fn note_away(&mut self, now: Instant) -> bool {
        let away = self.silent || !self.list.iter().any(|w| !w.down && w.limit > 0);
        match (away, self.away_since) {
            (true, None) => self.away_since = Some(now),
            (false, Some(since)) => {
                self.away_before = self.away_before.saturating_add(now.saturating_duration_since(since));
                self.away_since = None;
                return true;
            }
            (true, Some(_)) | (false, None) => {}
        }
        false
    }
}

impl Worker {
    fn has_free(&self) -> bool {
        !self.down && self.in_flight < self.limit
    }

    /// Its threads; fewer for a while after it has come back, and never none.
    fn weight(&self, now: Instant) -> u32 {
        let warm = self.back.map_or(SLOW_START, |at| now.saturating_duration_since(at).min(SLOW_START)).as_millis();
        let part = u128::from(self.limit).saturating_mul(warm).checked_div(SLOW_START.as_millis());
        u32::try_from(part.unwrap_or(0)).unwrap_or(self.limit).max(1)
    }
}

/// Nobody may have answered for so long in a Puma whose control server is gone, until it counts as away.
const QUIET: Duration = Duration::from_secs(1);
/// So long a worker that has come back counts as smaller than it is.
const SLOW_START: Duration = Duration::from_secs(10);
