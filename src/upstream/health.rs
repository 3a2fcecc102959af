//! Active checks of Puma's sockets, for those who name a path. Passive ones need no setting: a socket that refuses gets
//! nothing until it accepts again.
//!
//! A check takes a slot like any request, so it never adds to a full Puma; a worker that has no slot free is busy, not ill.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    guard::answer::{AnswerHead, AnswerLimits, AnswerScan},
    units::Deadline,
    upstream::{Inner, connect::Address, hold},
};

/// `[upstream.health]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Path to ask for, such as `/up`. Default: none, no active checks.
    pub path: Option<String>,
    /// Host of the question: one that the application accepts. Default: `localhost`.
    pub host: String,
    /// Time between two checks of a socket. Default: 5 s.
    pub interval: Deadline,
    /// Longest wait for an answer. Default: 2 s.
    pub timeout: Deadline,
    /// Failed checks in a row after which a socket gets no more requests. Default: 3.
    pub unhealthy: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config { path: None, host: "localhost".into(), interval: Deadline::seconds(5), timeout: Deadline::seconds(2), unhealthy: 3 }
    }
}

/// Starts the checks, where there are any.
pub(super) fn start(puma: &Arc<Inner>) {
    if puma.config.health.path.is_some() {
        tokio::spawn(check(Arc::downgrade(puma), puma.config.health.interval.get()));
    }
}

async fn check(puma: Weak<Inner>, interval: Duration) {
    let mut failures: Vec<u32> = Vec::new();
    loop {
        tokio::time::sleep(interval).await;
        let Some(puma) = puma.upgrade() else { return };
        let sockets = puma.sockets.all();
        failures.resize(sockets.len(), 0);
        for (socket, failed) in sockets.iter().zip(&mut failures) {
            if !socket.gate.is_open() {
                continue;
            }
            let Some(slot) = puma.slots.try_take_of(socket.index) else { continue };
            *failed = if answers(&puma, &socket.address).await { 0 } else { failed.saturating_add(1) };
            drop(slot);
            if *failed >= puma.config.health.unhealthy.max(1) {
                *failed = 0;
                hold::lost(&puma, socket);
            }
        }
    }
}

/// Whether the application answers the check with a status below 400; always, where there is no check.
pub(super) async fn answers(puma: &Inner, address: &Address) -> bool {
    let health = &puma.config.health;
    let Some(path) = &health.path else { return true };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nX-Forwarded-Proto: https\r\nUser-Agent: palisade-health\r\nConnection: close\r\n\r\n",
        health.host
    );
    let ask = async {
        let mut stream = address.connect(health.timeout.get()).await.ok()?;
        stream.write_all(request.as_bytes()).await.ok()?;
        let (mut buffer, mut scan, mut head) = (BytesMut::new(), AnswerScan::default(), AnswerHead::new());
        let limits = AnswerLimits { head: 64 * 1024, fields: 200 };
        loop {
            if stream.read_buf(&mut buffer).await.ok()? == 0 {
                return None;
            }
            if scan.advance(&buffer, &limits, false, &mut head).ok()? {
                return Some(head.status);
            }
        }
    };
    let status = tokio::time::timeout(health.timeout.get(), ask).await.ok().flatten();
    status.is_some_and(|status| (200..400).contains(&status))
}
