//! `palisade audit`: the set-up of an application, checked without running it.
//!
//! Threat 4, exposure: the control token in puma.rb, the master key in git, the socket that everyone may open, found
//! before somebody else does. 44 checks in families, one file each; [`runtime`] has the part that looks at a running
//! Puma when the proxy starts.

mod advisories;
mod answers;
mod application;
mod certificates;
mod checks;
mod committed;
mod control;
mod deployment;
mod finding;
mod git;
mod listeners;
mod literals;
mod live;
mod rails;
mod render;
mod report;
mod runtime;
mod secret;
mod waiver;
mod yaml;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

pub use advisories::Advisory;
use application::Application;
pub use checks::Id;
pub use finding::{Finding, Place, Severity};
pub use live::Door;
pub use report::{Report, Waived};
pub use runtime::{ControlAddress, ControlFacts, FileFacts, RuntimeFacts, at_start, listening, unwaived};
pub use waiver::{Date, Waiver};

/// How to look.
#[derive(Clone, Debug)]
pub struct Options {
    /// Variables that the application sees besides those its own files set.
    pub environment: BTreeMap<String, String>,
    /// Look into every commit, not only at what is tracked now.
    pub history: bool,
    pub waivers: Vec<Waiver>,
    /// Look at what runs on this machine as well.
    pub live: bool,
    /// Advisories besides those that are compiled in.
    pub advisories: Vec<Advisory>,
    /// What is known of the proxy in front.
    pub proxy: Proxy,
    pub today: Date,
}

/// The proxy in front, as far as it matters here.
#[derive(Clone, Debug, Default)]
pub struct Proxy {
    /// Its limit for request bodies; `None` if its configuration is not known.
    pub body_limit: Option<u64>,
    /// How long it keeps an idle connection to Puma, if that is set by hand.
    pub upstream_idle: Option<Duration>,
    /// The address Puma sees it at; loopback if it stands on the same machine.
    pub address: Option<IpAddr>,
    /// Its certificate files, each with its key.
    pub certificates: Vec<(PathBuf, PathBuf)>,
}

/// How to show what was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Table,
    Json,
    Sarif,
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            "sarif" => Ok(Self::Sarif),
            _ => Err("expected table, json or sarif"),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            environment: BTreeMap::new(),
            history: true,
            waivers: Vec::new(),
            live: false,
            advisories: Vec::new(),
            proxy: Proxy::default(),
            today: Date::today(),
        }
    }
}

/// Audit the application in a folder.
#[must_use]
pub fn run(dir: &Path, options: &Options) -> Report {
    let mut app = Application::read(dir, options);
    committed::check(&mut app);
    advisories::check(&mut app);
    // Each configuration of Puma that the folder has; what they have in common is found once.
    while app.next_configuration() {
        literals::check(&mut app);
        certificates::check(&mut app);
        control::check(&mut app);
        listeners::check(&mut app);
        answers::check(&mut app);
        rails::check(&mut app);
        if options.live {
            live::check(&mut app);
        }
    }
    Report::new(app)
}

/// Audit a folder and write the report. The answer is the exit code: 0, or 6 if something at or above `fail_on` was
/// found.
///
/// # Errors
/// When the folder is none, or the report cannot be written.
pub fn command(dir: &Path, format: Format, fail_on: Option<Severity>, options: &Options, out: &mut dyn Write) -> io::Result<u8> {
    if !dir.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is not a folder", dir.display())));
    }
    let report = run(dir, options);
    report.write(format, out)?;
    let failed = fail_on.is_some_and(|severity| report.at_or_above(severity).next().is_some());
    Ok(if failed { FOUND } else { 0 })
}

/// Exit code when something was found that the caller does not accept.
pub const FOUND: u8 = 6;
