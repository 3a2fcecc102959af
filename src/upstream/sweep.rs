//! Deadlines of exchanges with Puma, looked at every tick instead of a timer each: a timer costs every request two walks
//! through the timer wheel, a deadline here costs two short locks.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};

use slab::Slab;

/// All deadlines of one upstream.
#[derive(Debug)]
pub(super) struct Sweep {
    entries: Mutex<Slab<Entry>>,
    started: Instant,
    /// Microseconds from the start to the last tick: near enough for deadlines, which only a tick ends.
    ticked: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    due: Instant,
    waker: Option<Waker>,
}

/// One deadline; it is registered only once somebody has to wait.
#[derive(Debug)]
pub(super) struct Watch {
    sweep: Arc<Sweep>,
    due: Instant,
    registered: Option<Registered>,
}

#[derive(Debug)]
struct Registered {
    key: usize,
    due: Instant,
    waker: Waker,
}

impl Sweep {
    /// Starts the sweep; it ends with the last owner.
    pub(super) fn start() -> Arc<Self> {
        let sweep = Arc::new(Sweep { entries: Mutex::default(), started: Instant::now(), ticked: AtomicU64::new(0) });
        let weak = Arc::downgrade(&sweep);
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(TICK);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let Some(sweep) = weak.upgrade() else { return };
                sweep.pass(Instant::now());
            }
        });
        sweep
    }

    fn pass(&self, now: Instant) {
        let since = now.saturating_duration_since(self.started).as_micros();
        self.ticked.store(u64::try_from(since).unwrap_or(u64::MAX), Relaxed);
        let due: Vec<Waker> = {
            let mut entries = self.lock();
            entries.iter_mut().filter(|(_, entry)| entry.due <= now).filter_map(|(_, entry)| entry.waker.take()).collect()
        };
        due.into_iter().for_each(Waker::wake);
    }

    fn recent(&self) -> Instant {
        self.started + Duration::from_micros(self.ticked.load(Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// A deadline that long from `now`.
    pub(super) fn new(sweep: &Arc<Sweep>, now: Instant, after: Duration) -> Self {
        Watch { sweep: Arc::clone(sweep), due: now + after, registered: None }
    }

    /// Moves it to that long from `now`.
    pub(super) fn extend(&mut self, now: Instant, after: Duration) {
        self.due = now + after;
    }

    /// Whether it has passed; else the task is woken within a tick after it has.
    pub(super) fn is_due(&mut self, cx: &Context<'_>) -> bool {
        let now = self.sweep.recent();
        if now >= self.due {
            return true;
        }
        let entry = |due| Entry { due, waker: Some(cx.waker().clone()) };
        match &mut self.registered {
            // The sweep may have used the waker of a deadline that has been moved since: register again.
            Some(registered) if now < registered.due && registered.waker.will_wake(cx.waker()) => {}
            Some(registered) => {
                *registered = Registered { key: registered.key, due: self.due, waker: cx.waker().clone() };
                if let Some(slot) = self.sweep.lock().get_mut(registered.key) {
                    *slot = entry(self.due);
                }
            }
            None => {
                let key = self.sweep.lock().insert(entry(self.due));
                self.registered = Some(Registered { key, due: self.due, waker: cx.waker().clone() });
            }
        }
        false
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(registered) = &self.registered {
            self.sweep.lock().try_remove(registered.key);
        }
    }
}

/// How late a deadline may be noticed.
const TICK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    async fn due(watch: &mut Watch) {
        poll_fn(|cx| if watch.is_due(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    #[tokio::test]
    async fn a_deadline_wakes_its_task_and_leaves_nothing_behind() {
        let sweep = Sweep::start();
        let start = Instant::now();
        let mut watch = Watch::new(&sweep, start, Duration::from_millis(50));
        tokio::time::timeout(Duration::from_secs(5), due(&mut watch)).await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(50));
        drop(watch);
        assert!(sweep.lock().is_empty());
    }

    #[tokio::test]
    async fn a_moved_deadline_still_wakes() {
        let sweep = Sweep::start();
        let start = Instant::now();
        let mut watch = Watch::new(&sweep, start, Duration::from_millis(20));
        poll_fn(|cx| Poll::Ready(watch.is_due(cx))).await;
        watch.extend(start, Duration::from_millis(300));
        tokio::time::timeout(Duration::from_secs(5), due(&mut watch)).await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(290));
    }
}
