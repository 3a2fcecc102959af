//! Answers whose client makes no room for them: each is ended alone, before its connection is.
//!
//! Threat: exhaustion. A client can read most of its streams and let one stand still for ever, with all that it holds. Nothing
//! here runs on a timer: the connection's sweep wakes it, and it wakes the streams whose time is over.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Waker,
};

use slab::Slab;

/// The answers of one connection that wait for room.
#[derive(Debug)]
pub struct Stalls {
    waiting: Mutex<Slab<(u64, Waker)>>,
    count: AtomicUsize,
    next: AtomicU64,
}

/// One answer that waits. Dropping it ends the wait.
#[derive(Debug)]
pub struct Stall {
    stalls: Arc<Stalls>,
    key: usize,
    /// When the wait is over, in milliseconds.
    pub end: u64,
}

impl Stalls {
    /// None waits.
    pub fn new() -> Arc<Self> {
        Arc::new(Stalls { waiting: Mutex::new(Slab::new()), count: AtomicUsize::new(0), next: AtomicU64::new(u64::MAX) })
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// An answer that waits from `now` on, for `patience`. Where several wait at once the client may only be slow, and takes
    /// one after the other: each waits as often as there are others, up to a bound.
    pub fn wait(self: &Arc<Self>, now: u64, patience: u64, waker: &Waker) -> Stall {
        let mut waiting = self.waiting();
        let turns = waiting.len().saturating_add(1).min(TURNS) as u64;
        let end = now.saturating_add(patience.saturating_mul(turns));
        let key = waiting.insert((end, waker.clone()));
        self.count.store(waiting.len(), Relaxed);
        self.next.fetch_min(end, Relaxed);
        Stall { stalls: Arc::clone(self), key, end }
    }

    /// Wakes those whose time is over at `now`; says when the next one's is.
    pub fn look(&self, now: u64) -> u64 {
        let next = self.next.load(Relaxed);
        if now < next {
            return next;
        }
        let waiting = self.waiting();
        let mut next = u64::MAX;
        for (_, (end, waker)) in waiting.iter() {
            if *end <= now {
                waker.wake_by_ref();
            } else {
                next = next.min(*end);
            }
        }
        self.next.store(next, Relaxed);
        next
    }

    fn waiting(&self) -> MutexGuard<'_, Slab<(u64, Waker)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stall {
    /// Waits on.
    pub fn wait_until(&mut self, end: u64) {
        self.end = end;
        if let Some((known, _)) = self.stalls.waiting().get_mut(self.key) {
            *known = end;
        }
        self.stalls.next.fetch_min(end, Relaxed);
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        let mut waiting = self.stalls.waiting();
        waiting.try_remove(self.key);
        if waiting.is_empty() && waiting.capacity() > 0 {
            *waiting = Slab::new();
        }
        self.stalls.count.store(waiting.len(), Relaxed);
    }
}

/// How many times the patience an answer waits at most.
const TURNS: usize = 8;

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn each_answer_is_woken_when_its_own_time_is_over() {
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let stalls = Stalls::new();
        assert_eq!(stalls.look(5), u64::MAX);
        let one = stalls.wait(10, 100, &Waker::from(Arc::clone(&first)));
        let mut two = stalls.wait(20, 100, &Waker::from(Arc::clone(&second)));
        assert_eq!((one.end, two.end, stalls.count()), (110, 220, 2), "the second waits for two");
        assert_eq!(stalls.look(109), 110);
        assert_eq!(stalls.look(110), 220);
        assert_eq!((first.0.load(SeqCst), second.0.load(SeqCst)), (1, 0));
        drop(one);
        assert_eq!(stalls.look(230), u64::MAX);
        assert_eq!((first.0.load(SeqCst), second.0.load(SeqCst)), (1, 1));
        two.wait_until(300);
        assert_eq!((stalls.look(231), stalls.look(300)), (300, u64::MAX));
        assert_eq!(second.0.load(SeqCst), 2, "it has waited on");
        drop(two);
        assert_eq!(stalls.count(), 0);
    }

    #[test]
    fn patience_has_a_bound() {
        let stalls = Stalls::new();
        let all: Vec<_> = (0..100).map(|_| stalls.wait(0, 10, Waker::noop())).collect();
        assert_eq!(all[99].end, 80);
    }
}
