//! When Palisade itself runs short, what it gives up first.
//!
//! Threat: exhaustion of the proxy instead of Puma. Three things are watched: descriptors against the limit of open files,
//! memory against the cgroup's or machine's, and the event loop by how late its own tick comes. Above a watermark relief is
//! given in steps: newcomers, then keep-alive, then requests of low priority. It ends by itself, a little below the watermark,
//! so that it does not flutter. What cannot be measured, as the sandbox or the system hides it, is not watched. Place: beside
//! everything; `accept`, `http` and `route` ask [`Overload::relief`], which is one atomic load.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use rustix::{
    fs::{Dir, OFlags},
    process::Resource,
};
use serde::{Deserialize, Serialize};

use crate::{
    log::{Level, event},
    units::Deadline,
};

/// `[overload]` in `proxy.toml`.
///
/// Each figure is the watermark of the first step; the second and the third follow at a third and at two thirds of the way from
/// there to the limit, for `lag` at twice and four times of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Part of the limit of open files that may be in use, 0 to 1; 1 switches it off. Too low refuses clients without need, too
    /// high leaves no descriptors for Puma. Default: 0.85.
    pub descriptors: f64,
    /// Part of the cgroup's or machine's memory that Palisade may occupy, 0 to 1; 1 switches it off. Default: 0.8.
    pub memory: f64,
    /// How late the event loop may come to its work, for about a second. Too low refuses clients on a busy machine. Default: 250 ms.
    pub lag: Deadline,
}

/// What is given up, each step with all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Relief {
    /// Nothing.
    None,
    /// New connections come in only instead of one with less progress; for want of CPU, new TLS connections do not come in.
    Newcomers,
    /// Connections close after their answer, unless it is CPU that is short.
    KeepAlive,
    /// Routes of low priority are refused with 503.
    LowPriority,
}

/// How short Palisade is.
#[derive(Debug)]
pub struct Overload {
    relief: AtomicU8,
    lacks_cpu: AtomicBool,
    config: ArcSwap<Config>,
}

/// What was measured at one moment, as parts of the limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// Descriptors in use.
    pub descriptors: Option<f64>,
    /// Memory in use.
    pub memory: Option<f64>,
    /// How late the tick came, smoothed.
    pub lag: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config { descriptors: 0.85, memory: 0.8, lag: Deadline::millis(250) }
    }
}

impl Overload {
    /// Calm, until [`Overload::run`] measures something else.
    pub fn new(config: Config) -> Arc<Self> {
        Arc::new(Overload { relief: AtomicU8::new(0), lacks_cpu: AtomicBool::new(false), config: ArcSwap::from_pointee(config) })
    }

    /// What is given up now.
    pub fn relief(&self) -> Relief {
        match self.relief.load(Relaxed) {
            0 => Relief::None,
            1 => Relief::Newcomers,
            2 => Relief::KeepAlive,
            _ => Relief::LowPriority,
        }
    }

    /// CPU is what is short, so that exchanging one connection for another would not help.
    pub fn lacks_cpu(&self) -> bool {
        self.lacks_cpu.load(Relaxed)
    }

    /// Connections should end after the answer that they are at. For want of CPU that would only bring on handshakes.
    pub fn ends_connections(&self) -> bool {
        self.relief() >= Relief::KeepAlive && !self.lacks_cpu()
    }

    /// Follows a reload.
    pub fn reconfigure(&self, config: Config) {
        self.config.store(Arc::new(config));
    }

    /// Takes in a reading; the step before and the step now.
    pub fn judge(&self, reading: Reading) -> (Relief, Relief) {
        let config = self.config.load();
        let before = self.relief();
        let lag = as_part(reading.lag, config.lag.get());
        let cpu = step(lag, &[1.0, 2.0, 4.0], before);
        let parts = [(reading.descriptors, config.descriptors), (reading.memory, config.memory)];
        let space = parts.into_iter().filter_map(|(used, from)| Some(step(used?, &steps(from), before))).max().unwrap_or(Relief::None);
        let now = cpu.max(space);
        self.lacks_cpu.store(cpu != Relief::None && cpu >= space, Relaxed);
        self.relief.store(now as u8, Relaxed);
        (before, now)
    }

    /// Measures for ever. Must run on the runtime that serves, as it is that one's lateness that counts. `memory` is the limit
    /// in bytes.
    pub async fn run(self: Arc<Self>, memory: u64) {
        let mut system = System::open(memory);
        let mut every = tokio::time::interval(TICK);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut lag = Duration::ZERO;
        let mut due = Instant::now();
        loop {
            every.tick().await;
            let late = Instant::now().saturating_duration_since(due);
            // A single stall, such as a suspended machine, is no overload: a reading counts for one part in SMOOTHING, and for no more than LONGEST.
            lag = lag
                .saturating_mul(SMOOTHING.saturating_sub(1))
                .saturating_add(late.min(LONGEST))
                .checked_div(SMOOTHING)
                .unwrap_or_default();
            let (before, now) = self.judge(system.read(lag));
            if before != now {
                let level = if now > before { Level::Warn } else { Level::Info };
                event(level, "overload", &[("gives_up", &now.label()), ("gave_up", &before.label())]);
            }
            due = Instant::now().checked_add(TICK).unwrap_or(due);
        }
    }

    /// Forces a step.
    #[cfg(test)]
    pub(crate) fn set_for_test(&self, relief: Relief) {
        self.relief.store(relief as u8, Relaxed);
    }
}

impl Relief {
    /// The word in the log.
    pub fn label(self) -> &'static str {
        match self {
            Relief::None => "nothing",
            Relief::Newcomers => "newcomers",
            Relief::KeepAlive => "keep_alive",
            Relief::LowPriority => "low_priority",
        }
    }
}

/// The watermarks of the three steps.
fn steps(from: f64) -> [f64; 3] {
    if from >= 1.0 {
        return [f64::INFINITY; 3];
    }
    let third = (1.0 - from) / 3.0;
    [from, from + third, from + third + third]
}

/// The highest step whose watermark is reached. A step that is taken already is left only well below its watermark.
fn step(used: f64, from: &[f64; 3], taken: Relief) -> Relief {
    let reaches = |relief: Relief, from: f64| used >= if taken >= relief { from * LEAVE } else { from };
    let [newcomers, keep_alive, low] = *from;
    if reaches(Relief::LowPriority, low) {
        Relief::LowPriority
    } else if reaches(Relief::KeepAlive, keep_alive) {
        Relief::KeepAlive
    } else if reaches(Relief::Newcomers, newcomers) {
        Relief::Newcomers
    } else {
        Relief::None
    }
}

fn as_part(lag: Duration, of: Duration) -> f64 {
    lag.as_secs_f64() / of.as_secs_f64().max(f64::MIN_POSITIVE)
}

/// Where the readings come from. The files stay open: a sandbox that hides /proc later does not end the watch.
struct System {
    descriptors: Option<File>,
    statm: Option<File>,
    memory: u64,
    turn: u32,
    last: Reading,
}

impl System {
    fn open(memory: u64) -> Self {
        let folder = rustix::fs::open("/proc/self/fd", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, rustix::fs::Mode::empty());
        System {
            descriptors: folder.ok().map(File::from),
            statm: File::open("/proc/self/statm").ok(),
            memory,
            turn: 0,
            last: Reading::default(),
        }
    }

    fn read(&mut self, lag: Duration) -> Reading {
        self.turn = self.turn.wrapping_add(1);
        self.last.lag = lag;
        self.last.memory = self.statm.as_ref().and_then(|file| resident(file).ok()).map(|bytes| part(bytes, self.memory));
        if let Some(folder) = &self.descriptors {
            // It may be changed from outside (prlimit).
            let at_most = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
            // Since Linux 6.2 the size of the folder is the count; before, it is read, which costs about 0.2 µs an entry.
            match rustix::fs::fstat(folder).ok().and_then(|stat| u64::try_from(stat.st_size).ok()) {
                Some(count) if count > 0 => self.last.descriptors = Some(part(count, at_most)),
                Some(_) | None if self.turn % SELDOM == 1 => {
                    self.last.descriptors = Dir::read_from(folder).ok().map(|entries| part(entries.count() as u64, at_most));
                }
                Some(_) | None => {}
            }
        }
        self.last
    }
}

fn part(used: u64, of: u64) -> f64 {
    used as f64 / of.max(1) as f64
}

/// The second number of proc_pid_statm(5), in pages.
fn resident(statm: &File) -> io::Result<u64> {
    let mut text = [0u8; 128];
    let read = statm.read_at(&mut text, 0)?;
    let text = std::str::from_utf8(text.get(..read).unwrap_or_default()).map_err(io::Error::other)?;
    let pages = text.split_ascii_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
    let pages = pages.ok_or(io::ErrorKind::InvalidData)?;
    Ok(pages.saturating_mul(rustix::param::page_size() as u64))
}

const TICK: Duration = Duration::from_millis(100);
/// A lateness counts for one part in this many, so that about a second of it is needed.
const SMOOTHING: u32 = 8;
const LONGEST: Duration = Duration::from_secs(2);
/// Ticks between two readings of the folder of descriptors, where it must be read.
const SELDOM: u32 = 10;
/// A step is left at this part of its watermark.
const LEAVE: f64 = 0.95;

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptors(part: f64) -> Reading {
        Reading { descriptors: Some(part), ..Reading::default() }
    }

    #[test]
    fn the_shorter_it_gets_the_more_is_given_up_and_it_recovers_by_itself() {
        let overload = Overload::new(Config::default());
        let steps = [
            (0.5, Relief::None),
            (0.85, Relief::Newcomers),
            (0.91, Relief::KeepAlive),
            (0.96, Relief::LowPriority),
            (0.92, Relief::LowPriority),
            (0.90, Relief::KeepAlive),
            (0.82, Relief::Newcomers),
            (0.80, Relief::None),
            (0.84, Relief::None),
        ];
        for (used, expected) in steps {
            overload.judge(descriptors(used));
            assert_eq!(overload.relief(), expected, "{used}");
            assert!(!overload.lacks_cpu());
        }
    }

    #[test]
    fn a_late_event_loop_is_a_want_of_cpu() {
        let overload = Overload::new(Config::default());
        for (lag, expected) in
            [(100, Relief::None), (250, Relief::Newcomers), (600, Relief::KeepAlive), (1100, Relief::LowPriority), (9, Relief::None)]
        {
            overload.judge(Reading { lag: Duration::from_millis(lag), ..Reading::default() });
            assert_eq!(overload.relief(), expected, "{lag}");
            assert_eq!(overload.lacks_cpu(), expected != Relief::None);
        }
    }

    #[test]
    fn a_watermark_of_one_is_off_and_what_is_not_measured_is_not_watched() {
        let overload = Overload::new(Config { descriptors: 1.0, memory: 1.0, ..Config::default() });
        overload.judge(Reading { descriptors: Some(1.5), memory: Some(1.5), ..Reading::default() });
        assert_eq!(overload.relief(), Relief::None);
        overload.reconfigure(Config::default());
        overload.judge(Reading::default());
        assert_eq!(overload.relief(), Relief::None);
        overload.judge(Reading { memory: Some(0.99), ..Reading::default() });
        assert_eq!(overload.relief(), Relief::LowPriority);
    }

    #[test]
    fn this_process_is_measured() {
        let mut system = System::open(1 << 40);
        let reading = system.read(Duration::ZERO);
        let before = reading.descriptors.unwrap();
        assert!(before > 0.0 && reading.memory.unwrap() > 0.0);
        let _files: Vec<_> = (0..200).map(|_| File::open("/dev/null").unwrap()).collect();
        for _ in 0..SELDOM {
            system.read(Duration::ZERO);
        }
        assert!(system.last.descriptors.unwrap() >= before + part(150, rustix::process::getrlimit(Resource::Nofile).current.unwrap()));
    }
}
