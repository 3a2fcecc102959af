//! Lines on their way to a file: bounded, batched, written by one thread.
//!
//! Threat: exhaustion. A full disk, a stopped terminal or a slow pipe must not stop requests, so a line that finds no room is
//! dropped and counted. One write for many lines: the thread gathers for 20 ms, which is 50 wake-ups a second at most and none
//! while nothing happens.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file that is appended to.
    File(PathBuf),
}

/// The near end: takes lines and never waits for the far one.
#[derive(Debug)]
pub struct Sink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    is_writing: bool,
    is_closed: bool,
    wants_reopen: bool,
}

impl Target {
    /// `-`, `stderr` or a path.
    pub fn parse(text: &str) -> Self {
        match text {
            "-" | "stdout" => Target::Stdout,
            "stderr" => Target::Stderr,
            path => Target::File(PathBuf::from(path)),
        }
    }

    /// A descriptor of its own, so that neither std's buffer nor its lock is in the way.
    fn open(&self) -> io::Result<File> {
        match self {
            Target::Stdout => Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?)),
            Target::Stderr => Ok(File::from(io::stderr().as_fd().try_clone_to_owned()?)),
            Target::File(path) => OpenOptions::new().append(true).create(true).mode(0o640).open(path),
        }
    }
}

impl Sink {
    /// Opens the target and starts the thread that writes to it.
    pub fn open(target: Target) -> io::Result<Self> {
        let file = target.open()?;
        let shared =
            Arc::new(Shared { state: Mutex::default(), filled: Condvar::new(), emptied: Condvar::new(), dropped: AtomicU64::new(0) });
        let writer = Arc::clone(&shared);
        thread::Builder::new().name("log".to_owned()).spawn(move || writer.run(file, &target))?;
        Ok(Sink { shared })
    }

    /// Takes whole lines, or drops and counts them when the writer is too far behind.
    pub fn push(&self, line: &[u8]) {
        let mut state = self.shared.lock();
        if state.lines.len().saturating_add(line.len()) > CAPACITY {
            self.shared.dropped.fetch_add(1, Relaxed);
            return;
        }
        let was_empty = state.lines.is_empty();
        state.lines.extend_from_slice(line);
        drop(state);
        if was_empty {
            self.shared.filled.notify_one();
        }
    }

    /// Opens the file again before the next write, after a log rotation has moved it away.
    pub fn reopen(&self) {
        self.shared.lock().wants_reopen = true;
        self.shared.filled.notify_one();
    }

    /// Waits until everything is written, at most for `patience`. Whether it was.
    pub fn flush(&self, patience: Duration) -> bool {
        let until = Instant::now().checked_add(patience);
        let mut state = self.shared.lock();
        while !state.lines.is_empty() || state.is_writing {
            let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            state = self.shared.emptied.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// How many lines were dropped.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }

    /// A way to read [`Sink::dropped`] later, for metrics.
    pub fn drop_counter(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.dropped.load(Relaxed)
    }
}

/// The thread writes what it was given and ends; nobody waits for it, as the far end may be stopped.
impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.filled.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut file: File, target: &Target) {
        let mut batch = Vec::new();
        loop {
            if self.wait() {
                thread::sleep(GATHER);
            }
            let mut state = self.lock();
            std::mem::swap(&mut state.lines, &mut batch);
            let wants_reopen = std::mem::take(&mut state.wants_reopen);
            state.is_writing = true;
            drop(state);
            if wants_reopen && let Ok(again) = target.open() {
                file = again;
            }
            self.write(&mut file, &batch);
            batch.clear();
            batch.shrink_to(KEPT);
            let mut state = self.lock();
            state.is_writing = false;
            let is_over = state.is_closed && state.lines.is_empty();
            drop(state);
            self.emptied.notify_all();
            if is_over {
                return;
            }
        }
    }

    /// Waits for lines; whether it is worth while to gather more.
    fn wait(&self) -> bool {
        let mut state = self.lock();
        while state.lines.is_empty() && !state.is_closed && !state.wants_reopen {
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.is_closed && !state.wants_reopen
    }

    fn write(&self, file: &mut File, batch: &[u8]) {
        let mut rest = batch;
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Standard output may share its file description, and with it O_NONBLOCK, with another process.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => thread::sleep(GATHER),
                Err(_) => {
                    let lost = memchr::memchr_iter(b'\n', rest).count();
                    self.dropped.fetch_add(u64::try_from(lost).unwrap_or(u64::MAX), Relaxed);
                    return;
                }
            }
        }
    }
}

/// Memory at worst: twice this for each sink, once filling and once being written.
const CAPACITY: usize = 4 << 20;
const KEPT: usize = 256 << 10;
const GATHER: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn lines_arrive_whole_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let sink = Sink::open(Target::File(path.clone())).unwrap();
        for i in 0..1000 {
            sink.push(format!("line {i}\n").as_bytes());
        }
        assert!(sink.flush(PATIENCE));
        let expected: String = (0..1000).map(|i| format!("line {i}\n")).collect();
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(sink.dropped(), 0);
    }

    #[test]
    fn a_rotated_file_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let sink = Sink::open(Target::File(path.clone())).unwrap();
        sink.push(b"before\n");
        assert!(sink.flush(PATIENCE));
        fs::rename(&path, &moved).unwrap();
        sink.reopen();
        sink.push(b"after\n");
        assert!(sink.flush(PATIENCE));
        assert_eq!(fs::read(&moved).unwrap(), b"before\n");
        assert_eq!(fs::read(&path).unwrap(), b"after\n");
    }

    #[test]
    fn a_reader_that_stops_costs_lines_and_never_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0).unwrap();
        let reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let sink = Sink::open(Target::File(path)).unwrap();
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        let started = Instant::now();
        for _ in 0..3 * CAPACITY / line.len() {
            sink.push(&line);
        }
        assert!(started.elapsed() < PATIENCE);
        assert!(sink.dropped() > 0);
        assert!(!sink.flush(Duration::from_millis(50)));
        drop(reader);
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let sink = Sink::open(Target::File("/dev/full".into())).unwrap();
        sink.push(b"one\ntwo\n");
        assert!(sink.flush(PATIENCE));
        assert_eq!(sink.dropped(), 2);
    }
}
