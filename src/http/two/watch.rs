//! When an HTTP/2 connection has to end: idle, old, spent, draining, or too slow in taking its answers.
//!
//! Threat: slowloris. Arithmetic on counters and `now`; the frames that a client sends do not matter here, only its streams.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use super::stalls::Stalls;
use crate::{
    accept::{beat::Sweep, pace::Pace},
    http::{Site, Sites},
};

/// What goes on in one connection.
#[derive(Debug)]
pub struct Load {
    /// Streams that are not yet answered in full.
    pub streams: AtomicUsize,
    /// Answers whose next piece the client has to make room for.
    pub stalls: Arc<Stalls>,
    /// Bytes of answers that the client has made room for.
    moved: AtomicU64,
    /// Bytes that are counted before h2 takes more for them.
    ahead: AtomicU64,
    /// Streams answered in whole since the meter looked last.
    pub answered: AtomicU32,
    /// Streams that were opened.
    pub seen: AtomicU32,
    /// Streams that the client has reset before they were answered.
    pub resets: AtomicU32,
    /// When the client was last heard of, in milliseconds: its bytes came, or it took some.
    pub heard: AtomicU64,
    /// When a slow client has taken all that was written to it.
    owed: AtomicU64,
    /// Bytes wait for the socket.
    is_blocked: AtomicBool,
    /// Streams that were reset since the last pause, less what answers have made good.
    haste: AtomicU32,
    /// Until when nothing is read.
    pause: AtomicU64,
}

/// Counts a stream from its head to the end of its answer.
#[derive(Debug)]
pub struct Open(Arc<Load>);

impl Load {
    /// A connection without a stream.
    pub fn new() -> Arc<Self> {
        Arc::new(Load {
            streams: AtomicUsize::new(0),
            stalls: Stalls::new(),
            moved: AtomicU64::new(0),
            ahead: AtomicU64::new(0),
            answered: AtomicU32::new(0),
            seen: AtomicU32::new(0),
            resets: AtomicU32::new(0),
            heard: AtomicU64::new(0),
            owed: AtomicU64::new(0),
            is_blocked: AtomicBool::new(false),
            haste: AtomicU32::new(0),
            pause: AtomicU64::new(u64::MAX),
        })
    }

    /// A stream begins.
    pub fn open(self: &Arc<Self>) -> Open {
        self.streams.fetch_add(1, Relaxed);
        self.seen.fetch_add(1, Relaxed);
        Open(Arc::clone(self))
    }

    /// The client has made room for so many bytes of an answer.
    pub fn make_room(&self, bytes: u64) {
        let ahead = self.ahead.load(Relaxed);
        self.ahead.store(ahead.saturating_sub(bytes), Relaxed);
        self.moved.fetch_add(bytes.saturating_sub(ahead), Relaxed);
    }

    /// So many bytes left for the kernel while answers wait, so many of them into room that the client has made.
    pub fn run_ahead(&self, left: u64, moved: u64) {
        self.ahead.fetch_add(left, Relaxed);
        self.moved.fetch_add(moved, Relaxed);
    }

    /// So many bytes were written at `now`. A client may be at them for longer than we see: they wait for the socket, in the kernel and
    /// on the way.
    pub fn write(&self, bytes: u64, now: u64) {
        let end = self.owed().max(now).saturating_add(bytes / SLOWEST);
        self.owed.store(end.min(now.saturating_add(MOST_QUEUED / SLOWEST)), Relaxed);
    }

    /// When a slow client has taken all that was written to it.
    pub fn owed(&self) -> u64 {
        self.owed.load(Relaxed)
    }

    /// Until when an answer without room may only be behind others that the socket is at.
    pub fn busy_until(&self) -> u64 {
        if self.is_blocked.load(Relaxed) { self.owed() } else { 0 }
    }

    /// The client has reset a stream.
    pub fn reset(&self) {
        self.resets.fetch_add(1, Relaxed);
        self.haste.fetch_add(1, Relaxed);
    }

    /// A stream was answered in whole.
    pub fn answer(&self) {
        self.answered.fetch_add(1, Relaxed);
        let haste = self.haste.load(Relaxed);
        if haste > 0 {
            self.haste.store(haste / 2, Relaxed);
        }
    }

    /// Whether the client's bytes have to wait. Who resets streams faster than they can be answered is not read for a moment:
    /// what comes meanwhile is read in few pieces, each counted before it is parsed.
    pub fn must_wait(&self, clock: &Sweep) -> bool {
        if self.pause() == u64::MAX {
            if self.haste.load(Relaxed) < HASTE {
                return false;
            }
            self.pause.store(clock.now().saturating_add(PAUSE), Relaxed);
        }
        true
    }

    /// The client's bytes have to wait until then.
    pub fn wait_until(&self, moment: u64) {
        self.pause.store(moment, Relaxed);
    }

    /// The end of the pause, if there is one.
    pub fn pause(&self) -> u64 {
        self.pause.load(Relaxed)
    }

    /// Ends the pause if it is over.
    pub fn resume(&self, now: u64) -> bool {
        let is_over = now >= self.pause();
        if is_over {
            self.pause.store(u64::MAX, Relaxed);
            self.haste.store(0, Relaxed);
        }
        is_over
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
    }
}

/// When a connection has to end.
pub struct Watch<S> {
    site: Arc<Site<S>>,
    sites: Arc<Sites<S>>,
    load: Arc<Load>,
    born: u64,
    /// Since when no stream has been open.
    idle: Option<u64>,
    /// Since when the client knows that it ends.
    leaving: Option<u64>,
    pace: Option<(Pace, u64)>,
    moved: u64,
}

/// What becomes of a connection.
pub enum Verdict {
    /// It goes on as it is, and is looked at again then at the latest.
    Until(u64),
    /// It gets a GOAWAY; what is under way is answered.
    Leave,
    /// It ends at once.
    End,
}

impl<S> Watch<S> {
    /// A connection that begins at `now`.
    pub fn new(site: Arc<Site<S>>, sites: Arc<Sites<S>>, load: Arc<Load>, now: u64) -> Self {
        Watch { site, sites, load, born: now, idle: None, leaving: None, pace: None, moved: 0 }
    }

    /// Looks at what has happened since the last call; `is_blocked` where answers wait, even whole ones, until the client makes room
    /// in its connection.
    pub fn look(&mut self, now: u64, is_blocked: bool) -> Verdict {
        let timeouts = &self.site.timeouts;
        self.load.is_blocked.store(is_blocked, Relaxed);
        let is_idle = self.load.streams.load(Relaxed) == 0 && !is_blocked;
        self.idle = if is_idle { self.idle.or(Some(now)) } else { None };
        let silent = self.idle.map(|since| since.saturating_add(timeouts.idle.as_millis()));
        let old = self.born.saturating_add(timeouts.connection_age.as_millis());
        if self.leaving.is_none() {
            let is_spent = self.load.seen.load(Relaxed) >= timeouts.requests;
            if is_spent
                || now >= old
                || silent.is_some_and(|end| now >= end)
                || self.sites.is_draining()
                || self.site.overload.ends_connections()
            {
                self.leaving = Some(now);
                return Verdict::Leave;
            }
        }
        let patience = timeouts.write_stall.as_millis();
        let slow = self.slow(now, is_blocked);
        // What is under way is answered, and its end may still be on its way; but nobody stays for ever.
        let gone = match (self.leaving, self.idle) {
            (Some(leaving), Some(idle)) if idle > leaving => Some(idle.saturating_add(patience)),
            (Some(leaving), Some(_)) => Some(leaving.saturating_add(patience.min(LEAVE))),
            (None, _) | (_, None) => None,
        };
        // The echo of the PING that comes with GOAWAY ends it before that.
        let gone = gone.map(|end| if self.site.overload.ends_connections() { end } else { end.max(self.load.owed()) });
        let end = [slow, gone].into_iter().flatten().min();
        if end.is_some_and(|end| now >= end) {
            return Verdict::End;
        }
        let leave = if self.leaving.is_some() { u64::MAX } else { silent.unwrap_or(u64::MAX).min(old) };
        Verdict::Until(end.unwrap_or(u64::MAX).min(leave).min(self.load.stalls.look(now)))
    }

    /// The moment at which the client takes its answers too slowly, while any of them waits for it.
    fn slow(&mut self, now: u64, is_blocked: bool) -> Option<u64> {
        let total = self.load.moved.load(Relaxed);
        let moved = usize::try_from(total.saturating_sub(self.moved)).unwrap_or(usize::MAX);
        self.moved = total;
        if self.load.stalls.count() == 0 && !is_blocked {
            if let Some((pace, _)) = &mut self.pace {
                pace.moved(moved);
                pace.pause(now);
            }
            return None;
        }
        let (timeouts, rates) = (&self.site.timeouts, &self.site.rates);
        let (pace, end) = self.pace.get_or_insert_with(|| {
            let mut pace = Pace::new(now, timeouts.write_stall, rates.write_min, rates.grace);
            let end = pace.deadline(now);
            (pace, end)
        });
        if moved > 0 || pace.is_paused() {
            pace.moved(moved);
            *end = pace.deadline(now);
        }
        Some(*end)
    }
}

/// Bytes that wait for the socket and in its buffer at most, and how many of them a slow client takes in a millisecond.
const MOST_QUEUED: u64 = 256 * 1024;
const SLOWEST: u64 = 2;
/// Milliseconds for which a connection that had nothing under way when it was told to leave is still there.
const LEAVE: u64 = 5000;
/// Streams that a client may reset before it is not read for a moment, and that moment in milliseconds.
const HASTE: u32 = 16;
const PAUSE: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_takes_a_slow_client_so_long_and_no_longer_than_a_bound() {
        let load = Load::new();
        let owed = |bytes, now| {
            load.write(bytes, now);
            load.owed()
        };
        assert_eq!([owed(1000, 5000), owed(1000, 5100), owed(10, 9000)], [5500, 6000, 9005]);
        assert_eq!(owed(u64::MAX, 10_000), 10_000 + 131_072);
        assert_eq!(load.busy_until(), 0, "nothing waits for the socket");
        load.is_blocked.store(true, Relaxed);
        assert_eq!(load.busy_until(), load.owed());
    }

    #[test]
    fn what_left_before_h2_took_more_for_it_counts_once() {
        let load = Load::new();
        load.make_room(100);
        load.run_ahead(50, 50);
        load.run_ahead(30, 0);
        load.make_room(60);
        assert_eq!(load.moved.load(Relaxed), 150, "the 60 are among the 80 that had left");
        load.make_room(60);
        assert_eq!(load.moved.load(Relaxed), 190);
    }
}
