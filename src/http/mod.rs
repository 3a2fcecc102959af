//! Messages: connections become requests and answers.
//!
//! Two fronts, one stack: [`one`] drives HTTP/1 on the guard's parser, [`two`] drives HTTP/2 on h2's frames;
//! both hand `http::Request<Received>` to the same tower stack and write what it answers.

pub mod arrival;
pub mod body;
mod extended_connect;
#[cfg(test)]
mod fixture;
pub mod frames;
pub mod names;
pub mod one;
pub mod pause;
pub mod spare;
pub mod two;
pub mod upgrade;
pub mod websocket;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use crate::{
    accept::{
        client::Client,
        pace::{Rates, Timeouts},
    },
    guard::Limits,
    layers::ban::Bans,
    log::Recorder,
    overload::Overload,
    refusal::Refusal,
    units::Deadline,
};

/// All that a connection needs of one state of the configuration.
#[derive(Debug)]
pub struct Site<S> {
    /// Limits of heads and chunk lines.
    pub limits: Limits,
    /// `[timeouts]`.
    pub timeouts: Timeouts,
    /// `[rates]`.
    pub rates: Rates,
    /// Longest silence of a WebSocket.
    pub tunnel_idle: Deadline,
    /// Over this long WebSockets end when Palisade drains.
    pub tunnel_spread: Duration,
    /// The tower stack.
    pub stack: S,
    /// Log and metrics.
    pub recorder: Arc<Recorder>,
    /// Whether Palisade itself is short.
    pub overload: Arc<Overload>,
    /// Who is shut out.
    pub bans: Arc<Bans>,
}

/// The configuration in force. A reload swaps it; connections look at each request.
#[derive(Debug)]
pub struct Sites<S> {
    current: ArcSwap<Site<S>>,
    is_draining: AtomicBool,
}

impl<S> Sites<S> {
    /// Starts with one.
    pub fn new(site: Site<S>) -> Arc<Self> {
        Arc::new(Sites { current: ArcSwap::from_pointee(site), is_draining: AtomicBool::new(false) })
    }

    /// The one in force.
    pub fn current(&self) -> Arc<Site<S>> {
        self.current.load_full()
    }

    /// Puts another in force.
    pub fn replace(&self, site: Site<S>) {
        self.current.store(Arc::new(site));
    }

    /// From now on connections close after the answer that they are at.
    pub fn drain(&self) {
        self.is_draining.store(true, Relaxed);
    }

    /// Whether Palisade is shutting down.
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Relaxed)
    }

    fn is_in_force(&self, site: &Arc<Site<S>>) -> bool {
        Arc::ptr_eq(&self.current.load(), site)
    }
}

impl<S: Clone> Site<S> {
    fn stack(&self) -> S {
        self.stack.clone()
    }
}

impl<S> Site<S> {
    /// Logs and counts a refusal of which no layer knows, because there was no request yet.
    fn refused(&self, client: &Client, started: Instant, method: &[u8], target: &[u8], refusal: Refusal) {
        self.bans.note_refusal(client.ip, refusal);
        self.recorder.refused_bytes(client, started, method, target, refusal);
    }
}
