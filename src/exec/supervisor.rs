//! Puma as a child: its signals, its end, its next start.

use std::{
    io,
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::Child,
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::Plan;
use crate::log::{Level, event};

/// What happens when Puma ends by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Restart {
    /// Palisade ends with the same code: the container's or systemd's policy decides.
    #[default]
    Never,
    /// After a failure it is started again, after a pause that grows from 1 s to 30 s.
    OnFailure,
}

/// A Puma that is looked after.
#[derive(Debug)]
pub struct Supervisor {
    signals: mpsc::UnboundedSender<Signal>,
    ended: oneshot::Receiver<u8>,
    code: Option<u8>,
}

impl Supervisor {
    pub(super) fn start(plan: Plan) -> io::Result<Self> {
        let child = plan.command()?.spawn()?;
        let (signals, told) = mpsc::unbounded_channel();
        let (end, ended) = oneshot::channel();
        tokio::spawn(look_after(plan, child, told, end));
        Ok(Supervisor { signals, ended, code: None })
    }

    /// Passes a signal to Puma.
    pub fn pass(&self, signal: Signal) {
        if self.signals.send(signal).is_err() {
            event(Level::Warn, "a signal for Puma came after its end", &[("signal", &signal.as_raw())]);
        }
    }

    /// Waits until Puma has ended for good: its exit code, 128 + n where signal n ended it.
    pub async fn ended(&mut self) -> u8 {
        match self.code {
            Some(code) => code,
            None => *self.code.insert((&mut self.ended).await.unwrap_or(FAILED)),
        }
    }

    /// Asks Puma to end, and makes it where it has not within that time.
    pub async fn end(mut self, signal: Signal, within: Duration) -> u8 {
        self.pass(signal);
        if let Ok(code) = timeout(within, self.ended()).await {
            return code;
        }
        event(Level::Warn, "Puma does not end and is killed", &[("after_s", &within.as_secs())]);
        self.pass(Signal::KILL);
        self.ended().await
    }
}

async fn look_after(plan: Plan, first: Child, mut told: mpsc::UnboundedReceiver<Signal>, end: oneshot::Sender<u8>) {
    let mut child = Some(first);
    let mut policy = Policy { restart: plan.restart, leaving: false, failures: 0 };
    let code = loop {
        let started = Instant::now();
        let code = match child.take() {
            Some(child) => until_its_end(child, &mut told, &mut policy).await,
            None => FAILED,
        };
        let Some(pause) = policy.pause(code, started.elapsed()) else { break code };
        event(Level::Warn, "Puma has ended and is started again", &[("code", &code), ("in_s", &pause.as_secs())]);
        let cut_short = async {
            while let Some(signal) = told.recv().await {
                if ends(signal) {
                    return;
                }
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = cut_short => break code,
        }
        child = match plan.command().and_then(|mut command| command.spawn()) {
            Ok(child) => Some(child),
            Err(error) => {
                event(Level::Error, "Puma cannot be started", &[("error", &error)]);
                None
            }
        };
    };
    // Before the end is told: whoever is told may end the process.
    drop(plan);
    if end.send(code).is_err() {
        event(Level::Info, "Puma ended after Palisade", &[("code", &code)]);
    }
}

async fn until_its_end(mut child: Child, told: &mut mpsc::UnboundedReceiver<Signal>, policy: &mut Policy) -> u8 {
    loop {
        let pid = child.id();
        tokio::select! {
            status = child.wait() => return status.map_or(FAILED, code),
            Some(signal) = told.recv() => {
                policy.leaving |= ends(signal);
                let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
                if let Some(Err(error)) = pid.map(|pid| kill_process(pid, signal)) {
                    event(Level::Warn, "a signal does not reach Puma", &[("signal", &signal.as_raw()), ("error", &error)]);
                }
            }
        }
    }
}

/// Whether, and when, there is a next start.
struct Policy {
    restart: Restart,
    /// Puma was told to end.
    leaving: bool,
    failures: u32,
}

impl Policy {
    fn pause(&mut self, code: u8, lived: Duration) -> Option<Duration> {
        if self.leaving || code == 0 || self.restart == Restart::Never {
            return None;
        }
        self.failures = if lived >= STABLE { 0 } else { self.failures.saturating_add(1) };
        Some(FIRST_PAUSE.saturating_mul(1 << self.failures.saturating_sub(1).min(5)).min(LONGEST_PAUSE))
    }
}

fn ends(signal: Signal) -> bool {
    [Signal::TERM, Signal::INT, Signal::QUIT, Signal::KILL].contains(&signal)
}

fn code(status: ExitStatus) -> u8 {
    let raw = status.code().unwrap_or_else(|| status.signal().map_or(1, |signal| signal.saturating_add(128)));
    u8::try_from(raw).unwrap_or(FAILED)
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Who has lived that long starts afresh: the next failure is not a consequence of the last one.
const STABLE: Duration = Duration::from_secs(60);
const FAILED: u8 = 1;

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::config::Inputs;

    fn start(script: &str, restart: Restart) -> Supervisor {
        let command: Vec<OsString> = ["sh", "-c", script].map(OsString::from).into();
        Plan::prepare(command, restart, &mut Inputs::default()).unwrap().start().unwrap()
    }

    #[tokio::test]
    async fn the_code_of_the_child_is_passed_on_and_a_signal_is_128_and_its_number() {
        assert_eq!(start("exit 7", Restart::Never).ended().await, 7);
        assert_eq!(start("kill -9 $$", Restart::Never).ended().await, 137);
        assert_eq!(start("exit 0", Restart::OnFailure).ended().await, 0);
    }

    #[tokio::test]
    async fn a_child_that_is_told_to_end_is_not_started_again() {
        let supervisor = start("trap 'exit 3' TERM; while :; do sleep 0.05; done", Restart::OnFailure);
        sleep(Duration::from_millis(300)).await;
        assert_eq!(supervisor.end(Signal::TERM, Duration::from_secs(20)).await, 3);
    }

    #[tokio::test]
    async fn a_child_that_does_not_listen_is_killed() {
        let supervisor = start("trap '' TERM; while :; do sleep 0.05; done", Restart::Never);
        sleep(Duration::from_millis(300)).await;
        assert_eq!(supervisor.end(Signal::TERM, Duration::from_millis(200)).await, 137);
    }

    #[test]
    fn pauses_grow_up_to_half_a_minute_and_start_again_after_a_long_life() {
        let mut policy = Policy { restart: Restart::OnFailure, leaving: false, failures: 0 };
        let mut after = |lived| policy.pause(1, Duration::from_secs(lived)).unwrap().as_secs();
        assert_eq!([0, 0, 0, 0, 0, 0, 0].map(&mut after), [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!([61, 0, 0].map(&mut after), [1, 1, 2]);
    }
}
