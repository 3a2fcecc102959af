//! `[server]` and `[audit]`: the process itself.

use std::num::NonZeroU16;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    audit::{Severity, Waiver},
    units::{Auto, Deadline},
};

/// `[server]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Threads that serve: `"auto"` is one for each core.
    pub workers: Auto<NonZeroU16>,
    /// The user to become after binding; empty: stay who we are. Needs to be root at the start.
    pub user: String,
    /// Landlock, seccomp and no_new_privs: `"auto"` takes what the kernel offers, `"required"` refuses to start without.
    pub sandbox: Sandbox,
    /// How long requests that are under way may take to end after SIGTERM.
    pub drain: Deadline,
    /// How long new connections are still accepted after SIGTERM while `/ready` already fails, so that load balancers notice.
    pub drain_delay: Deadline,
}

/// How much the process gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Sandbox {
    /// Nothing.
    Off,
    /// What the kernel lets it give up.
    #[default]
    Auto,
    /// Everything, or no start.
    Required,
}

/// `[audit]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// What findings about the application do at the start.
    pub on_start: OnStart,
    /// From which severity on `"block"` blocks, and `palisade audit` ends with exit code 6.
    pub fail_on: Severity,
    /// Findings that are accepted, each with its reason and its end.
    pub ignore: Vec<Waiver>,
}

/// What findings do at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnStart {
    /// Do not look.
    Off,
    /// Log them.
    #[default]
    Warn,
    /// Refuse to start.
    Block,
}

impl Server {
    /// The number of threads on this machine; cgroup limits count.
    pub fn threads(&self) -> usize {
        match self.workers {
            Auto::Value(count) => usize::from(count.get()),
            Auto::Auto => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Server {
            workers: Auto::Auto,
            user: String::new(),
            sandbox: Sandbox::Auto,
            drain: Deadline::seconds(35),
            drain_delay: Deadline::seconds(5),
        }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Audit { on_start: OnStart::default(), fail_on: Severity::Critical, ignore: Vec::new() }
    }
}
