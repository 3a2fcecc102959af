//! Clients that are slow to take their answers, and who of them goes when the budget for bodies is spent.
//!
//! Threat: slowloris by slow reading, and exhaustion. When neither memory nor disk has room for what Puma sends, Puma would wait,
//! with its threads, for the slowest clients there are. So those go: the least progress first, as many as a part of the
//! budget needs, and nobody who takes his answer at an honest rate. Where only one client's share is spent, only his own go.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use futures_util::task::AtomicWaker;
use slab::Slab;
use tokio::time::{Duration, Instant};

use crate::accept::client::ClientKey;

/// All answers of which a part waits on disk.
#[derive(Debug)]
pub struct Standing {
    readers: Mutex<Slab<Arc<Reader>>>,
    /// When somebody last had to go.
    last: Mutex<Option<Instant>>,
}

/// One answer's client.
#[derive(Debug)]
struct Reader {
    client: ClientKey,
    since: Instant,
    taken: AtomicU64,
    is_dismissed: AtomicBool,
    waker: AtomicWaker,
}

/// The place of an answer among them; left on drop.
#[derive(Debug)]
pub struct Enrolled {
    standing: Arc<Standing>,
    reader: Arc<Reader>,
    slot: usize,
}

impl Standing {
    /// Nobody.
    pub fn new() -> Arc<Self> {
        Arc::new(Standing { readers: Mutex::new(Slab::new()), last: Mutex::new(None) })
    }

    /// An answer of which a part waits from now on.
    pub fn enrol(self: &Arc<Self>, client: ClientKey) -> Enrolled {
        let reader = Arc::new(Reader {
            client,
            since: Instant::now(),
            taken: AtomicU64::new(0),
            is_dismissed: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        let slot = self.readers.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(&reader));
        Enrolled { standing: Arc::clone(self), reader, slot }
    }

    /// Lets the slowest go, of this client where one is named; says how many.
    pub fn give_way(&self, client: Option<ClientKey>) -> usize {
        let now = Instant::now();
        {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|at| now.saturating_duration_since(at) < PAUSE) {
                return 0;
            }
            *last = Some(now);
        }
        let mut slow: Vec<(u64, Arc<Reader>)> = {
            let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
            let mine = readers.iter().filter(|(_, reader)| client.is_none_or(|client| client == reader.client));
            mine.filter_map(|(_, reader)| Some((reader.rate(now)?, Arc::clone(reader)))).collect()
        };
        let most = slow.len().div_ceil(PART);
        slow.sort_unstable_by_key(|(rate, _)| *rate);
        for (_, reader) in slow.iter().take(most) {
            reader.is_dismissed.store(true, Relaxed);
            reader.waker.wake();
        }
        most
    }
}

impl Reader {
    /// Bytes a second; `None` for those who need not go.
    fn rate(&self, now: Instant) -> Option<u64> {
        let age = now.saturating_duration_since(self.since);
        if age < TRIAL || self.is_dismissed.load(Relaxed) {
            return None;
        }
        let rate = self.taken.load(Relaxed).checked_div(age.as_secs())?;
        (rate < HONEST).then_some(rate)
    }
}

impl Enrolled {
    /// The client was given so many bytes.
    pub fn took(&self, bytes: usize) {
        self.reader.taken.fetch_add(bytes as u64, Relaxed);
    }

    /// It did not take so many of them.
    pub fn left(&self, bytes: usize) {
        let taken = self.reader.taken.load(Relaxed);
        self.reader.taken.store(taken.saturating_sub(bytes as u64), Relaxed);
    }

    /// Whether the answer has to go; wakes the task when it has.
    pub fn is_dismissed(&self, waker: &std::task::Waker) -> bool {
        self.reader.waker.register(waker);
        self.reader.is_dismissed.load(Relaxed)
    }
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        let mut readers = self.standing.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.try_remove(self.slot);
        if readers.is_empty() {
            readers.shrink_to_fit();
        }
    }
}

/// How long an answer is there before its rate says anything: what the kernel takes at first is no progress.
const TRIAL: Duration = Duration::from_secs(3);
/// Who takes so many bytes a second does not go: a bad line of a phone has more.
const HONEST: u64 = 16 * 1024;
/// Of the slow ones one in this many goes at once, so that a little want costs few ...
const PART: usize = 16;
/// ... and the next ones after this time.
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn client(n: u8) -> ClientKey {
        ClientKey::of(std::net::IpAddr::from([192, 0, 2, n]))
    }

    fn gone(readers: &[Enrolled]) -> Vec<usize> {
        readers.iter().enumerate().filter(|(_, reader)| reader.is_dismissed(Waker::noop())).map(|(n, _)| n).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_slowest_go_first_and_an_honest_rate_or_a_newcomer_never() {
        let standing = Standing::new();
        let mut readers: Vec<_> = (0..20).map(|n| standing.enrol(client(n))).collect();
        for (n, reader) in readers.iter().enumerate() {
            reader.took(if n < 10 { 9_000_000 } else { 100 * (n + 1) });
        }
        readers[15].left(1500);
        assert_eq!(standing.give_way(None), 0, "nobody has been there for long");
        tokio::time::advance(TRIAL).await;
        readers.push(standing.enrol(client(99)));
        assert_eq!((standing.give_way(None), gone(&readers)), (1, vec![15]));
        assert_eq!(standing.give_way(None), 0, "a moment later");
        for _ in 0..20 {
            tokio::time::advance(PAUSE).await;
            standing.give_way(None);
        }
        assert_eq!(gone(&readers), (10..20).collect::<Vec<_>>());
        readers.clear();
        assert!(standing.readers.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn where_one_client_has_spent_its_share_only_its_own_go() {
        let standing = Standing::new();
        let readers: Vec<_> = [1, 2, 2, 3].map(|n| standing.enrol(client(n))).into_iter().collect();
        tokio::time::advance(TRIAL).await;
        assert_eq!(standing.give_way(Some(client(2))), 1);
        assert!(matches!(gone(&readers)[..], [1] | [2]));
        tokio::time::advance(PAUSE).await;
        assert_eq!(standing.give_way(Some(client(9))), 0);
    }
}
