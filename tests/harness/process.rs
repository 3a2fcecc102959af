//! A child process that cannot outlive its test: signals and looks by pid, output in a file, killed on drop.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::within;

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts `command` with both its outputs in one file under `dir`.
    pub fn start(name: &'static str, mut command: Command, dir: &Path) -> Process {
        let output = dir.join(format!("{name}.out"));
        let file = File::options().create(true).append(true).open(&output).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|e| panic!("{name} did not start: {e}"));
        Process { name, child, output }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(pid(self.pid()), signal).unwrap_or_else(|e| panic!("signal {signal:?} to {}: {e}", self.name));
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for the end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let name = self.name;
        within(limit, &format!("{name} ends"), || self.child.try_wait().unwrap())
    }

    /// Everything it has printed.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// The pids of its children, such as Puma's workers, whichever of its threads started them.
    pub fn children(&self) -> Vec<u32> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
        lists.flat_map(|list| list.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u32>>()).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The children first: without their parent they would live on until they notice. It stands still meanwhile, or it would
        // start others.
        if matches!(self.child.try_wait(), Ok(None)) {
            kill_process(pid(self.child.id()), Signal::STOP).ok();
        }
        for child in self.children() {
            // It may have ended in between, which is just as good.
            kill_process(pid(child), Signal::KILL).ok();
        }
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("---- {} printed:\n{}----", self.name, self.output());
        }
    }
}

fn pid(raw: u32) -> Pid {
    Pid::from_raw(i32::try_from(raw).unwrap()).unwrap()
}
