//! What the process gives up before it serves anybody: after binding, before the first thread beside its own.
//!
//! Threat: exposure, after the worst has happened. Whoever makes a parser run code of his own finds a process without
//! privileges that starts no program, reads no file but those it serves by, connects to nothing but Puma, and cannot be looked
//! into by others of the same user. Everything here is kept by the threads that are started later, so it costs nothing per
//! request but the kernel's walk through the filter. Where a kernel lacks a part, `auto` goes on without it and says so in an
//! event and in `palisade_sandbox`; `required` does not start.

mod calls;
mod reach;
mod user;

use std::time::{Duration, Instant};

use rustix::{
    fs::Mode,
    process::{DumpableBehavior, set_dumpable_behavior, umask},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    },
};

use self::reach::Reach;
use crate::{
    accept::Problem,
    config::{Loaded, server::Sandbox},
    log::{Level, event},
};

/// A part of what can be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Core dumps, and being traced by others of the same user.
    Dumps,
    /// Every capability, also for what it might execute.
    Capabilities,
    /// Ever gaining any by executing something.
    Privileges,
    /// Files but those that are needed.
    Files,
    /// TCP connections but to Puma, and every new listener.
    Ports,
    /// Signals to others, and sockets without a path.
    Scope,
    /// System calls but those that are needed.
    Calls,
}

/// What was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    given_up: Vec<Part>,
    mode: Sandbox,
    /// The version of Landlock, 0 without it.
    landlock: u8,
    took: Duration,
}

impl Part {
    /// All of them.
    pub const EACH: [Part; 7] = [Part::Dumps, Part::Capabilities, Part::Privileges, Part::Files, Part::Ports, Part::Scope, Part::Calls];

    /// The label in metrics and events.
    pub fn label(self) -> &'static str {
        match self {
            Part::Dumps => "dumps",
            Part::Capabilities => "capabilities",
            Part::Privileges => "privileges",
            Part::Files => "files",
            Part::Ports => "ports",
            Part::Scope => "scope",
            Part::Calls => "calls",
        }
    }
}

/// Becomes `server.user` and gives up what `server.sandbox` says. While the process has one thread.
pub fn enter(loaded: &Loaded) -> Result<Confinement, Problem> {
    let server = &loaded.config.server;
    let reach = Reach::of(loaded);
    let begun = Instant::now();
    if server.sandbox != Sandbox::Off {
        // Fails for numbers that this kernel has no capability for, and where we are nobody who could have any.
        for capability in CapabilitySet::all().iter() {
            remove_capability_from_bounding_set(capability).unwrap_or_default();
        }
    }
    if !server.user.is_empty() {
        user::become_user(&server.user)?;
    }
    let mut confinement = Confinement { given_up: Vec::new(), mode: server.sandbox, landlock: 0, took: Duration::ZERO };
    if server.sandbox == Sandbox::Off {
        return Ok(confinement);
    }
    umask(Mode::from_raw_mode(0o077));
    confinement.confine(&reach)?;
    confinement.took = begun.elapsed();
    Ok(confinement)
}

/// Nothing is given up but core dumps: what this process starts would inherit every other restriction, and Puma needs more than
/// a proxy does. Whether it may be dumped, a program that is started decides anew.
pub fn around_puma(loaded: &Loaded) -> Result<Confinement, Problem> {
    match loaded.config.server.sandbox {
        Sandbox::Required => Err(Problem {
            place: "server.sandbox".into(),
            cause: "a process that starts Puma cannot be confined, as Puma would inherit it".into(),
            remedy: "start Puma on its own and use `palisade run`, or set server.sandbox = \"auto\"".into(),
        }),
        Sandbox::Off => Ok(Confinement { given_up: Vec::new(), mode: Sandbox::Off, landlock: 0, took: Duration::ZERO }),
        Sandbox::Auto => {
            let mut confinement = Confinement { given_up: Vec::new(), mode: Sandbox::Off, landlock: 0, took: Duration::ZERO };
            confinement.note(
                Part::Dumps,
                set_dumpable_behavior(DumpableBehavior::NotDumpable),
                "start Palisade where prctl(2) is allowed",
            )?;
            Ok(confinement)
        }
    }
}

impl Confinement {
    /// Whether the part was given up.
    pub fn has(&self, part: Part) -> bool {
        self.given_up.contains(&part)
    }

    /// One event that says how far it went.
    pub fn announce(&self) {
        let missing: Vec<&str> = Part::EACH.into_iter().filter(|part| !self.has(*part)).map(Part::label).collect();
        let (level, reached) = match (self.mode, missing.is_empty()) {
            (Sandbox::Off, _) => (Level::Warn, "off"),
            (Sandbox::Auto | Sandbox::Required, true) => (Level::Info, "full"),
            (Sandbox::Auto | Sandbox::Required, false) => (Level::Warn, "partial"),
        };
        let micros = self.took.as_micros();
        let missing = missing.join(",");
        event(level, "sandbox", &[("reached", &reached), ("missing", &missing), ("landlock", &self.landlock), ("micros", &micros)]);
    }

    fn confine(&mut self, reach: &Reach) -> Result<(), Problem> {
        let none =
            CapabilitySets { effective: CapabilitySet::empty(), permitted: CapabilitySet::empty(), inheritable: CapabilitySet::empty() };
        // systemd's @privileged forbids capset(2), also to one who has nothing to give up.
        let capabilities = clear_ambient_capability_set()
            .and_then(|()| set_capabilities(None, none))
            .or_else(|errno| if capabilities(None)? == none { Ok(()) } else { Err(errno) });
        self.note(Part::Capabilities, capabilities, "start Palisade where prctl(2) and capset(2) are allowed")?;
        // After the change of user, which sets it back.
        self.note(Part::Dumps, set_dumpable_behavior(DumpableBehavior::NotDumpable), "start Palisade where prctl(2) is allowed")?;
        self.note(Part::Privileges, set_no_new_privs(true), "start Palisade where prctl(2) is allowed")?;
        let enforced = match reach.enforce() {
            Ok(Some(enforced)) => Ok(enforced),
            Ok(None) => Err("this kernel has no Landlock, or it is switched off".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        self.landlock = enforced.as_ref().map_or(0, |enforced| enforced.version);
        let of = |version: &str| format!("Landlock is of version {}, and this takes {version}", self.landlock);
        let ports = if enforced.as_ref().is_ok_and(|enforced| enforced.ports()) { Ok(()) } else { Err(of("4")) };
        let scope = if enforced.as_ref().is_ok_and(|enforced| enforced.scope()) { Ok(()) } else { Err(of("6")) };
        self.note(Part::Files, enforced, "use a kernel of 5.13 or later with Landlock among its security modules")?;
        self.note(Part::Ports, ports, "use a kernel of 6.7 or later")?;
        self.note(Part::Scope, scope, "use a kernel of 6.12 or later")?;
        // Last: the filter allows none of the calls above.
        let filter = calls::filter().map_err(|error| error.to_string());
        let calls = filter.and_then(|filter| seccompiler::apply_filter(&filter).map_err(|error| error.to_string()));
        self.note(Part::Calls, calls, "use a kernel with seccomp filters, on x86-64, arm64 or riscv64")
    }

    /// Notes what became of a part; where everything is required, a part that is not there is the end.
    fn note<T>(&mut self, part: Part, outcome: Result<T, impl std::fmt::Display>, remedy: &str) -> Result<(), Problem> {
        match outcome {
            Ok(_) => self.given_up.push(part),
            Err(cause) if self.mode == Sandbox::Required => {
                return Err(Problem {
                    place: "server.sandbox".to_owned(),
                    cause: format!("\"required\", but {} cannot be given up: {cause}", part.label()),
                    remedy: format!("{remedy}, or set it to \"auto\""),
                });
            }
            Err(_) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
