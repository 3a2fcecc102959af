//! Idle connections to one of Puma's sockets, the warmest first; and when a connection may be used again at all.
//!
//! Puma up to 6.6 parks a thread for 0.2 s after every kept-alive answer, so there each request has its own connection.
//! From 7 on connections are kept, but never as long as Puma would, and never beyond the count at which Puma closes.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::upstream::{connect::Stream, stats::PumaVersion};

/// Whether connections to Puma are used more than once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reuse {
    /// By Puma's version: from 7 on. A version that is not known counts as an old one.
    #[default]
    Auto,
    /// Never: each request says `Connection: close`.
    Close,
    /// Always.
    Keepalive,
}

/// What to do with a connection after its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Ask Puma to close it.
    No,
    /// Keep it that long at most.
    For(Duration),
}

/// A connection that is in use.
#[derive(Debug)]
pub(super) struct Connection {
    /// The socket.
    pub(super) stream: Stream,
    /// How often it has lain here: after each answer, and once where a prober left it.
    pub(super) served: u32,
}

/// Idle connections of one socket.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: Mutex<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

impl Reuse {
    /// What it means for this version of Puma.
    pub(super) fn keep(self, version: Option<PumaVersion>) -> Keep {
        let patient = version.is_some_and(|v| v.major >= 7);
        match (self, patient) {
            (Reuse::Close, _) | (Reuse::Auto, false) => Keep::No,
            (Reuse::Auto | Reuse::Keepalive, true) => Keep::For(PATIENT),
            (Reuse::Keepalive, false) => Keep::For(IMPATIENT),
        }
    }

    /// Connections are kept that this version of Puma does badly with.
    pub(super) fn is_lossy(self, version: PumaVersion) -> bool {
        self.keep(Some(version)) == Keep::For(IMPATIENT)
    }
}

impl Pool {
    /// The connection that was used last, if it is still as it was left.
    pub(super) fn take(&self, keep: Keep, now: Instant) -> Option<Connection> {
        let Keep::For(longest) = keep else { return None };
        let mut idle = self.lock();
        while let Some(last) = idle.pop() {
            if now.saturating_duration_since(last.since) >= longest {
                // The others are older still.
                idle.clear();
                return None;
            }
            if last.connection.stream.is_quiet() {
                return Some(last.connection);
            }
        }
        None
    }

    /// Keeps a connection for the next request.
    pub(super) fn put(&self, mut connection: Connection, keep: Keep, now: Instant) {
        connection.served = connection.served.saturating_add(1);
        if matches!(keep, Keep::For(_)) && connection.served < MOST_REQUESTS {
            let mut idle = self.lock();
            if idle.len() < MOST_IDLE {
                idle.push(Idle { connection, since: now });
            }
        }
    }

    /// Closes what has been idle for too long, or was closed by Puma.
    pub(super) fn purge(&self, keep: Keep) {
        let now = Instant::now();
        self.lock().retain(|idle| match keep {
            Keep::No => false,
            Keep::For(longest) => now.saturating_duration_since(idle.since) < longest && idle.connection.stream.is_quiet(),
        });
    }

    /// How many there are.
    pub(super) fn idle(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Five seconds less than `persistent_timeout` of Puma 7 and later (65 s), and once more five.
const PATIENT: Duration = Duration::from_secs(55);
/// Five seconds less than `persistent_timeout` of Puma up to 6.6 (20 s).
const IMPATIENT: Duration = Duration::from_secs(15);
/// Puma 7 and later close after 999.
const MOST_REQUESTS: u32 = 900;
/// Bound of the pool; admission keeps the number below Puma's threads anyway.
const MOST_IDLE: usize = 1024;

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    const OLD: PumaVersion = PumaVersion { major: 6, minor: 6 };
    const NEW: PumaVersion = PumaVersion { major: 7, minor: 0 };

    #[test]
    fn old_and_unknown_pumas_get_a_connection_for_each_request() {
        assert_eq!(Reuse::Auto.keep(None), Keep::No);
        assert_eq!(Reuse::Auto.keep(Some(OLD)), Keep::No);
        assert_eq!(Reuse::Auto.keep(Some(NEW)), Keep::For(PATIENT));
        assert_eq!(Reuse::Close.keep(Some(NEW)), Keep::No);
        assert_eq!(Reuse::Keepalive.keep(Some(OLD)), Keep::For(IMPATIENT));
    }

    fn connection() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection { stream: Stream::Unix(ours), served: 0 }, theirs)
    }

    #[tokio::test]
    async fn a_connection_that_puma_closed_or_wrote_to_is_never_used_again() {
        let pool = Pool::default();
        let keep = Keep::For(PATIENT);
        let (first, puma_closed) = connection();
        let (second, puma_wrote) = connection();
        pool.put(first, keep, Instant::now());
        pool.put(second, keep, Instant::now());
        puma_wrote.try_write(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        drop(puma_closed);
        // The runtime has to hear of it.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(pool.take(keep, Instant::now()).is_none());
        assert_eq!(pool.idle(), 0);
    }

    #[tokio::test]
    async fn the_warmest_connection_comes_first_and_an_old_one_never() {
        let pool = Pool::default();
        let keep = Keep::For(Duration::from_millis(40));
        let (mut cold, _a) = connection();
        cold.served = 5;
        pool.put(cold, keep, Instant::now());
        let (warm, _b) = connection();
        pool.put(warm, keep, Instant::now());
        assert_eq!(pool.take(keep, Instant::now()).unwrap().served, 1);
        std::thread::sleep(Duration::from_millis(50));
        assert!(pool.take(keep, Instant::now()).is_none());
    }

    #[tokio::test]
    async fn a_connection_is_recycled_before_puma_closes_it() {
        let pool = Pool::default();
        let (mut used, _a) = connection();
        used.served = MOST_REQUESTS;
        pool.put(used, Keep::For(PATIENT), Instant::now());
        assert_eq!(pool.idle(), 0);
    }
}
