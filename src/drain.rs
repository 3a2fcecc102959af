//! Leaving in order: readiness fails first, then no new connections, then what is under way ends, then the process.
//!
//! A second signal ends it at once. Nothing is lost that the client could not send again: requests that are under way are
//! answered with `Connection: close` (HTTP/1) or before GOAWAY takes effect (HTTP/2).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::watch;

/// How far the process is with leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It serves.
    Serving,
    /// It still serves, but `/ready` says no, so that balancers look elsewhere.
    Leaving,
    /// It accepts no more.
    Closing,
}

/// The phase, for those who ask and those who wait.
#[derive(Debug)]
pub struct Drain {
    phase: AtomicU8,
    closing: watch::Sender<bool>,
}

impl Drain {
    /// A process that serves.
    pub fn new() -> Arc<Self> {
        Arc::new(Drain { phase: AtomicU8::new(Phase::Serving as u8), closing: watch::Sender::new(false) })
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Serving,
            1 => Phase::Leaving,
            _ => Phase::Closing,
        }
    }

    /// Turns true when listeners must close.
    pub fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// From now on not ready, but serving.
    pub fn leave(&self) {
        self.phase.store(Phase::Leaving as u8, Relaxed);
    }

    /// From now on nothing new is accepted.
    pub fn close(&self) {
        self.phase.store(Phase::Closing as u8, Relaxed);
        self.closing.send_replace(true);
    }
}

/// Waits until `count` says that nothing is under way, or until the time is over. True when nothing was.
pub async fn emptied(count: impl Fn() -> usize, within: Duration) -> bool {
    let end = tokio::time::Instant::now() + within;
    while count() > 0 {
        if tokio::time::Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(STEP).await;
    }
    true
}

const STEP: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_for_what_is_under_way_ends_with_it_or_with_the_time() {
        assert!(emptied(|| 0, Duration::from_secs(1)).await);
        assert!(!emptied(|| 1, Duration::from_secs(1)).await);
    }

    #[test]
    fn the_phases_follow_each_other() {
        let drain = Drain::new();
        let closing = drain.closing();
        drain.leave();
        assert_eq!((drain.phase(), *closing.borrow()), (Phase::Leaving, false));
        drain.close();
        assert_eq!((drain.phase(), *closing.borrow()), (Phase::Closing, true));
    }
}
