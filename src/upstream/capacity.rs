//! How many requests Puma can work on: an explicit number, the control server, `puma.rb`, or Puma's own default.
//!
//! Threat: exhaustion. What is above the capacity waits inside Puma (7 and later take in without a bound) or in the
//! kernel. The control server is up to 5 s late in cluster mode: it gives capacity and phase, never what is in flight.

use std::{
    collections::HashMap,
    io::ErrorKind,
    sync::{Arc, Weak},
    time::{Duration, Instant, SystemTime},
};

use crate::{
    puma::puma_rb,
    upstream::{
        Config, Inner, control,
        dispatch::Socket,
        stats::{self, Stats},
    },
};

/// The last answer of the control server.
#[derive(Clone, Debug)]
pub struct Reported {
    /// What it said.
    pub stats: Stats,
    /// When: an old answer goes on being used.
    pub at: Instant,
}

/// Sets the capacity that is known at once, and keeps it up to date.
pub(super) fn start(puma: &Arc<Inner>) {
    apply(puma);
    tokio::spawn(keep_up(Arc::downgrade(puma)));
}

async fn keep_up(puma: Weak<Inner>) {
    let mut pause = Duration::ZERO;
    let mut known = puma.upgrade().and_then(|puma| written(&puma.config));
    loop {
        tokio::time::sleep(pause).await;
        let Some(puma) = puma.upgrade() else { return };
        let grown = puma.sockets.may_grow() && puma.sockets.look();
        let said = ask(&puma).await;
        let asked = matches!(said, Said::Figures);
        let now = written(&puma.config);
        // A file that is away is being replaced: what it said still holds.
        let edited = now.is_some() && now != known;
        known = now.or(known);
        if grown || asked || edited {
            apply(&puma);
        }
        puma.slots.note_control(matches!(said, Said::Gone));
        for socket in puma.sockets.all().iter() {
            socket.pool.purge(puma.keep());
        }
        let cluster = puma.reported.load().as_ref().is_some_and(|r| r.stats.workers.len() > 1);
        pause = if cluster && asked { CLUSTER_PAUSE } else { PAUSE };
    }
}

/// What became of a question to the control server.
enum Said {
    /// It told its figures.
    Figures,
    /// Nobody listens there: Puma has ended or starts anew.
    Gone,
    /// No answer, which says nothing, or there is none to ask.
    Nothing,
}

/// Asks the control server; no answer leaves everything as it is.
async fn ask(puma: &Inner) -> Said {
    let Some(control) = &puma.config.control_url else { return Said::Nothing };
    let Some(token) = control::find(&puma.config) else { return Said::Nothing };
    match stats::fetch(control, &token, STATS_DEADLINE).await {
        Ok(stats) => {
            puma.set_version(stats.version);
            puma.reported.store(Some(Arc::new(Reported { stats, at: Instant::now() })));
            Said::Figures
        }
        Err(e) if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Said::Gone,
        Err(_) => Said::Nothing,
    }
}

fn apply(puma: &Inner) {
    let reported = puma.reported.load();
    let sockets = puma.sockets.all();
    puma.slots.set_workers(&limits(&puma.config, reported.as_ref().map(|r| &r.stats), &sockets));
}

/// The threads behind each socket.
fn limits(config: &Config, stats: Option<&Stats>, sockets: &[Arc<Socket>]) -> Vec<u32> {
    let count = u32::try_from(sockets.len()).unwrap_or(u32::MAX).max(1);
    // What is left over goes to the first ones, one each; no socket is without a thread.
    let equally = |slots: u32| {
        let part = |index: u32| (slots / count).saturating_add(u32::from(index < slots % count)).max(1);
        (0..u32::try_from(sockets.len()).unwrap_or(u32::MAX)).map(part).collect::<Vec<_>>()
    };
    if let Some(slots) = config.slots {
        return equally(slots);
    }
    if let Some(stats) = stats {
        let booted = || stats.workers.iter().filter(|w| w.booted);
        let all: u32 = booted().map(|w| w.max_threads).sum();
        let one_each = sockets.iter().all(|s| s.address.worker_index().is_some()) && sockets.len() > 1;
        if !one_each {
            // Nobody has booted yet: then nobody answers.
            return if all == 0 { vec![0; sockets.len()] } else { equally(all) };
        }
        // A socket whose worker is gone or boots would take connections and not answer.
        let by_index: HashMap<u32, u32> = booted().map(|w| (w.index, w.max_threads)).collect();
        let of = |socket: &Arc<Socket>| socket.address.worker_index().and_then(|i| by_index.get(&i)).copied().unwrap_or(0);
        return sockets.iter().map(of).collect();
    }
    match slots_from_puma_rb(config) {
        Some(slots) => equally(slots),
        None => equally(DEFAULT_THREADS.saturating_mul(count)),
    }
}

/// When `puma_config` was last written: Puma is about to be restarted with what it says now.
fn written(config: &Config) -> Option<SystemTime> {
    std::fs::metadata(config.puma_config.as_ref()?).ok()?.modified().ok()
}

/// Threads times workers as `puma_config` says, where it can be known without running it.
fn slots_from_puma_rb(config: &Config) -> Option<u32> {
    let (app, path) = puma_rb::places(config.puma_config.as_deref()?)?;
    puma_rb::read_file(&app, &path, &|name| std::env::var(name).ok()).ok()?.slots()
}

/// Puma's own default for `max_threads`.
const DEFAULT_THREADS: u32 = 5;
const STATS_DEADLINE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_secs(1);
const CLUSTER_PAUSE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{
        dispatch::Sockets,
        stats::{PumaVersion, WorkerStats},
    };

    fn stats(workers: &[(u32, bool, u32)]) -> Stats {
        let worker = |&(index, booted, max_threads): &(u32, bool, u32)| WorkerStats {
            index,
            booted,
            max_threads,
            pid: 0,
            phase: 0,
            running: 0,
            backlog: 0,
            pool_capacity: 0,
            requests: 0,
        };
        Stats { version: PumaVersion { major: 8, minor: 0 }, workers: workers.iter().map(worker).collect(), phase: 0 }
    }

    fn sockets(addresses: &[&str]) -> Arc<Vec<Arc<Socket>>> {
        Sockets::new(addresses.iter().map(|a| a.parse().unwrap()).collect()).all()
    }

    #[test]
    fn an_explicit_number_wins_and_the_default_is_pumas() {
        let shared = sockets(&["127.0.0.1:3000"]);
        let explicit = Config { slots: Some(8), ..Config::default() };
        assert_eq!(limits(&explicit, Some(&stats(&[(0, true, 5)])), &shared), [8]);
        assert_eq!(limits(&Config::default(), None, &shared), [5]);
    }

    #[test]
    fn a_shared_socket_has_the_threads_of_all_booted_workers() {
        let shared = sockets(&["unix:/run/puma.sock"]);
        assert_eq!(limits(&Config::default(), Some(&stats(&[(0, true, 5), (1, true, 5), (2, false, 0)])), &shared), [10]);
    }

    #[test]
    fn threads_are_divided_exactly_among_equal_sockets() {
        let four = sockets(&["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4"]);
        let of = |slots| limits(&Config { slots: Some(slots), ..Config::default() }, None, &four);
        assert_eq!((of(6), of(8), of(2)), (vec![2, 2, 1, 1], vec![2, 2, 2, 2], vec![1, 1, 1, 1]));
    }

    #[test]
    fn threads_and_workers_are_read_from_pumas_configuration() {
        let app = tempfile::tempdir().unwrap();
        std::fs::create_dir(app.path().join("config")).unwrap();
        let path = app.path().join("config/puma.rb");
        std::fs::write(&path, "workers 3\nthreads 2, 4\n").unwrap();
        let config = Config { puma_config: Some(path), ..Config::default() };
        assert_eq!(limits(&config, None, &sockets(&["127.0.0.1:3000"])), [12]);
    }

    #[test]
    fn a_socket_of_a_worker_that_is_not_booted_gets_nothing() {
        let each = sockets(&["unix:/run/w0.sock", "unix:/run/w1.sock", "unix:/run/w2.sock"]);
        assert_eq!(limits(&Config::default(), Some(&stats(&[(0, true, 3), (1, false, 0)])), &each), [3, 0, 0]);
    }
}
