//! Puma: what reaches it, when, on which connection, and how its answer is read. The only door to it.
//!
//! Threats: exhaustion (no more inside Puma than it has threads; a slot is held until its last byte) and smuggling (one
//! canonical request at a time, the answer read by rules as strict as those for clients). Place: innermost.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use http::{Request, Response};
use serde::{Deserialize, Serialize};
use tower_service::Service;

use crate::{
    layers::{
        canonical::Canonical,
        slots::{Figures, Slots},
    },
    log::{Level, event},
    refusal::Refusal,
    units::{Deadline, OneOrMany},
};

mod answer;
mod capacity;
pub mod connect;
mod control;
mod dispatch;
mod exchange;
mod health;
mod hold;
mod pool;
mod response;
pub mod stats;
mod sweep;
mod turn;
mod under_way;
mod upgrade;

pub use answer::Answer;
pub use capacity::Reported;
pub use control::token;
pub use health::Config as Health;
pub use pool::Reuse;
pub use under_way::UnderWay;

use connect::Address;
use dispatch::Sockets;
use pool::Keep;
use stats::PumaVersion;
use sweep::Sweep;

/// `[upstream]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Puma's sockets: `"http://127.0.0.1:3000"`, `"unix:/run/shop/puma.sock"`, a list of them, or one for each worker as
    /// `"unix:/run/shop/w*.sock"`. Default: `"http://127.0.0.1:3000"`.
    pub address: OneOrMany<Address>,
    /// Puma's threads in all (threads times workers); with several sockets each has an equal part. Too low leaves threads
    /// idle; too high lets requests wait inside Puma, where nothing bounds them. Default: from the control server, else from
    /// `puma_config`, else 5 for each socket.
    pub slots: Option<u32>,
    /// `auto`, `close` or `keepalive`: whether connections to Puma are used again. `auto` keeps them from Puma 7 on; before,
    /// each would cost a thread 0.2 s, and a worker that ends fails some requests on them (seen with 5.6.5 and
    /// 6.6.0). Memory at worst: one descriptor for each slot. Default: `auto`.
    pub reuse: Reuse,
    /// Longest wait for a connection. Default: 1 s.
    pub connect_timeout: Deadline,
    /// Longest wait for the head of an answer, and longest silence within an answer; then 504 `upstream_timeout`. Too low
    /// cuts slow pages, whose threads go on working; too high lets clients wait for nothing. Default: 60 s.
    pub response_timeout: Deadline,
    /// Longest silence in an event stream. Default: 1 h.
    pub stream_timeout: Deadline,
    /// Longest time that unsent requests wait for a Puma that refuses connections, has no socket, or starts anew behind open
    /// sockets (no answer, and nobody at `control_url`); then 503 `upstream_refused`. Should be longer than a restart.
    /// Default: 10 s.
    pub hold_on_refused: Deadline,
    /// Puma's control server, `"http://127.0.0.1:9293"` or `"unix:/run/shop/control.sock"`: it tells threads, workers and
    /// version. Its reading resets Puma's `backlog_max`: let others read Palisade's figures. Default: with
    /// `upstream = "puma"` as `activate_control_app` says, else none.
    pub control_url: Option<Address>,
    /// File with the control server's token. Default: none; the token is then the one in `puma_config`, or in
    /// `control_state_file`.
    pub control_token_file: Option<PathBuf>,
    /// Puma's state file, in which it notes the token that it makes up where it is given none. Default: with
    /// `upstream = "puma"` as `state_path` says, else none.
    pub control_state_file: Option<PathBuf>,
    /// Puma's configuration file, read without running it, where there is no control server. Default: none.
    pub puma_config: Option<PathBuf>,
    /// Active checks.
    pub health: Health,
}

/// The way to Puma. Clones share everything.
#[derive(Clone, Debug)]
pub struct Puma(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    slots: Slots,
    sockets: Sockets,
    sweep: Arc<Sweep>,
    upgrades: Arc<AtomicU32>,
    /// Major and minor version of Puma as `major << 16 | minor`; 0 while it is not known.
    version: AtomicU32,
    reported: ArcSwapOption<Reported>,
}

/// Extension of a request that has a `response_timeout` of its own.
#[derive(Clone, Copy, Debug)]
pub struct ResponseTimeout(pub Duration);

impl Default for Config {
    fn default() -> Self {
        Config {
            address: OneOrMany(vec![Address::Tcp(([127, 0, 0, 1], 3000).into())]),
            slots: None,
            reuse: Reuse::Auto,
            connect_timeout: Deadline::seconds(1),
            response_timeout: Deadline::seconds(60),
            stream_timeout: Deadline::seconds(3600),
            hold_on_refused: Deadline::seconds(10),
            control_url: None,
            control_token_file: None,
            control_state_file: None,
            puma_config: None,
            health: Health::default(),
        }
    }
}

impl Puma {
    /// Starts to look after Puma: its capacity goes to `slots`, from now on and within a Tokio runtime.
    pub fn start(config: Config, slots: Slots) -> Self {
        let sockets = Sockets::new(config.address.0.clone());
        let puma = Arc::new(Inner {
            config,
            slots,
            sockets,
            sweep: Sweep::start(),
            upgrades: Arc::default(),
            version: AtomicU32::new(0),
            reported: ArcSwapOption::empty(),
        });
        capacity::start(&puma);
        health::start(&puma);
        Puma(puma)
    }

    /// Tells the version where something other than the control server knows it (`Gemfile.lock`).
    pub fn set_version(&self, version: PumaVersion) {
        self.0.set_version(version);
    }

    /// Puma's version, once it is known.
    pub fn version(&self) -> Option<PumaVersion> {
        self.0.version()
    }

    /// What the control server said the last time it answered.
    pub fn reported(&self) -> Option<Arc<Reported>> {
        self.0.reported.load_full()
    }

    /// The control server has said that a worker serves. A socket may accept long before.
    pub fn has_booted(&self) -> bool {
        self.reported().is_some_and(|reported| reported.stats.workers.iter().any(|worker| worker.booted))
    }

    /// Threads, who has them, who waits.
    pub fn figures(&self) -> Figures {
        self.0.slots.figures()
    }

    /// Open connections that have switched protocols.
    pub fn upgrades(&self) -> u32 {
        self.0.upgrades.load(Relaxed)
    }

    /// Idle connections to Puma.
    pub fn idle_connections(&self) -> usize {
        self.0.sockets.all().iter().map(|socket| socket.pool.idle()).sum()
    }
}

impl Inner {
    fn keep(&self) -> Keep {
        self.config.reuse.keep(self.version())
    }

    fn version(&self) -> Option<PumaVersion> {
        let packed = self.version.load(Relaxed);
        (packed != 0).then_some(PumaVersion { major: packed >> 16, minor: packed & 0xffff })
    }

    fn set_version(&self, version: PumaVersion) {
        let packed = version.major << 16 | version.minor & 0xffff;
        let is_new = self.version.swap(packed, Relaxed) != packed;
        if is_new && self.config.reuse.is_lossy(version) {
            let problem = "before Puma 7 each kept connection costs a thread 0.2 s, and a worker that ends fails requests on it";
            event(Level::Warn, "upstream.reuse", &[("problem", &problem), ("remedy", &"set it to auto")]);
        }
    }
}

impl Service<Request<Canonical>> for Puma {
    type Response = Response<Answer>;
    type Error = Refusal;
    type Future = UnderWay;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Canonical>) -> Self::Future {
        UnderWay::new(exchange::exchange(Arc::clone(&self.0), request))
    }
}

#[cfg(test)]
mod tests;
