//! Real Puma, Debian's and what `tests/pumas.sh` finds, with `tests/app/config.ru`.

use std::{
    collections::HashMap,
    fs,
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tempfile::TempDir;

use super::{client::Client, eventually, free_port, process::Process, skip};

/// How Puma is started.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub workers: usize,
    pub threads: usize,
    /// A TCP port instead of a unix socket for each worker.
    pub tcp: bool,
    pub early_hints: bool,
    /// The suite that `tests/pumas.sh` takes Puma from; none: the installed one.
    pub suite: Option<&'static str>,
}

/// A running Puma.
#[derive(Debug)]
pub struct Puma {
    process: Option<Process>,
    shape: Shape,
    port: u16,
    dir: TempDir,
}

/// One request as Ruby saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub id: String,
    pub method: String,
    pub target: String,
    pub pid: u32,
    pub begin: u64,
    /// Monotonic nanoseconds; none while it runs, or when its process was killed.
    pub end: Option<u64>,
}

/// Whether this Puma closes its connections by `upstream.reuse = "auto"`.
pub fn is_before_7(puma: &Process) -> bool {
    let output = puma.output();
    ["5.", "6."].iter().any(|version| output.contains(&format!("Puma version: {version}")))
}

impl Shape {
    pub fn cluster(workers: usize, threads: usize) -> Shape {
        Shape { workers, threads, tcp: false, early_hints: false, suite: None }
    }
}

impl Puma {
    /// Two workers with five threads each, a unix socket for each worker. None, with a printed reason, without Puma.
    pub fn cluster() -> Option<Puma> {
        Puma::start(Shape::cluster(2, 5))
    }

    /// One after the other: the installed Puma, and those of newer suites where they can be had. `PUMA_SUITE` names one of
    /// them alone, `installed` the first, for long runs by hand.
    pub fn each(shape: Shape) -> impl Iterator<Item = Puma> {
        let only = std::env::var("PUMA_SUITE").ok();
        let is_wanted = move |suite: &Option<&str>| only.as_deref().is_none_or(|only| only == suite.unwrap_or("installed"));
        SUITES.into_iter().filter(is_wanted).filter_map(move |suite| Puma::start(Shape { suite, ..shape }))
    }

    pub fn start(shape: Shape) -> Option<Puma> {
        let mut puma = Puma { process: None, shape, port: free_port(), dir: TempDir::new().unwrap() };
        fs::create_dir(puma.folder()).unwrap();
        puma.boot().then_some(puma)
    }

    /// The value for `upstream.address`.
    pub fn address(&self) -> String {
        if self.shape.tcp { format!("127.0.0.1:{}", self.port) } else { format!("unix:{}/w*.sock", self.folder().display()) }
    }

    /// A connection to Puma itself, without the proxy.
    pub fn connect(&self) -> Client {
        if self.shape.tcp { Client::tcp(([127, 0, 0, 1], self.port).into()) } else { Client::unix(&self.socket(0)) }
    }

    pub fn socket(&self, worker: usize) -> PathBuf {
        self.folder().join(format!("w{worker}.sock"))
    }

    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("puma runs")
    }

    /// Waits for the end of a Puma that was told to end.
    pub fn wait(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.wait(Duration::from_secs(40));
        }
    }

    /// Ends it at once; sockets disappear as they do when a service is stopped.
    pub fn stop(&mut self) {
        self.process = None;
        for worker in 0..self.shape.workers.max(1) {
            // Absent with TCP.
            fs::remove_file(self.socket(worker)).ok();
        }
    }

    /// Starts it again where it was.
    pub fn boot(&mut self) -> bool {
        let Some(mut command) = command(self.shape.suite) else { return false };
        let app = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/app");
        command.arg("-C").arg(app.join("puma.rb")).arg(app.join("config.ru")).current_dir(&app);
        command.env("APP_WORKERS", self.shape.workers.to_string()).env("APP_THREADS", self.shape.threads.to_string());
        command.env("APP_LOG", self.log()).env("PALISADE_SOCKETS", self.folder());
        command.env_remove("APP_PORT").env_remove("WEB_CONCURRENCY");
        if self.shape.tcp {
            command.env("APP_PORT", self.port.to_string());
        }
        if self.shape.early_hints {
            command.env("APP_EARLY_HINTS", "1");
        }
        self.process = Some(Process::start("puma", command, self.dir.path()));
        eventually("puma listens and its workers have booted", || {
            let process = self.process.as_mut()?;
            assert!(process.ended().is_none(), "puma ended:\n{}", process.output());
            let booted = self.shape.workers < 2 || process.output().matches(" booted ").count() >= self.shape.workers;
            (booted && self.listens()).then_some(())
        });
        true
    }

    /// Every request that reached Ruby, in the order in which they began.
    pub fn seen(&self) -> Vec<Seen> {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let mut all: Vec<Seen> = Vec::new();
        let mut open: HashMap<(u32, String), Vec<usize>> = HashMap::new();
        for line in log.lines() {
            let words: Vec<&str> = line.splitn(6, ' ').collect();
            let (time, pid) = (words[1].parse().unwrap(), words[2].parse().unwrap());
            let key = (pid, words[3..].join(" "));
            if words[0] == "B" {
                open.entry(key).or_default().push(all.len());
                let (id, method, target) = (words[3].to_owned(), words[4].to_owned(), words[5].to_owned());
                all.push(Seen { id, method, target, pid, begin: time, end: None });
            } else if let Some(index) = open.get_mut(&key).and_then(Vec::pop) {
                all[index].end = Some(time);
            }
        }
        all
    }

    /// How often the request with this `X-Test-Id` reached Ruby.
    pub fn count(&self, id: &str) -> usize {
        self.seen().iter().filter(|seen| seen.id == id).count()
    }

    /// The largest number of requests inside Ruby at one time.
    pub fn most_at_once(&self) -> usize {
        let mut edges: Vec<(u64, i32)> = Vec::new();
        for seen in self.seen() {
            edges.push((seen.begin, 1));
            edges.push((seen.end.unwrap_or(u64::MAX), -1));
        }
        edges.sort_unstable();
        let (mut now, mut most) = (0_i32, 0_i32);
        for (_, step) in edges {
            now += step;
            most = most.max(now);
        }
        usize::try_from(most).unwrap()
    }

    fn listens(&self) -> bool {
        if self.shape.tcp {
            return TcpStream::connect(("127.0.0.1", self.port)).is_ok();
        }
        (0..self.shape.workers.max(1)).all(|worker| UnixStream::connect(self.socket(worker)).is_ok())
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("sockets")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("requests.log")
    }
}

/// The installed Puma, as `puma` or else `bundle exec puma`, or one of another suite; says what is missing.
pub fn command(suite: Option<&str>) -> Option<Command> {
    if let Some(suite) = suite {
        return other(suite);
    }
    if answers(Command::new("puma").arg("--version")) {
        return Some(Command::new("puma"));
    }
    if answers(Command::new("bundle").args(["exec", "puma", "--version"])) {
        let mut bundle = Command::new("bundle");
        bundle.args(["exec", "puma"]);
        return Some(bundle);
    }
    skip("puma is not installed (neither `puma` nor `bundle exec puma` is on the PATH)");
    None
}

/// Newer Pumas need a mirror: without one they are left out, in CI as well, and that is said.
fn other(suite: &str) -> Option<Command> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("pumas");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pumas.sh");
    let output = Command::new(script).arg(suite).arg(folder).output().unwrap();
    if output.status.success() {
        return Some(Command::new(String::from_utf8(output.stdout).unwrap().trim()));
    }
    eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
    None
}

fn answers(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Puma 5.6 of bookworm or whatever is installed, 6.6, 8.
pub const SUITES: [Option<&str>; 3] = [None, Some("trixie"), Some("sid")];
