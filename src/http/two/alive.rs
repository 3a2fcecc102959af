//! Whether the client of a connection that has streams open is still there: a PING after a silence, and an end without an echo.

use std::{sync::atomic::Ordering::Relaxed, task::Context};

use h2::{Ping, PingPong};

use super::watch::Load;

/// The PINGs of one connection.
#[derive(Debug)]
pub struct Alive {
    pings: Option<PingPong>,
    /// When the PING was sent that has no echo yet, and when that should be there.
    asked: Option<(u64, u64)>,
}

impl Alive {
    /// A connection that has just been greeted.
    pub fn new(pings: Option<PingPong>) -> Self {
        Alive { pings, asked: None }
    }

    /// Until when it goes on; `None` when nobody is there.
    pub fn look(&mut self, cx: &mut Context<'_>, now: u64, load: &Load) -> Option<u64> {
        let Some(pings) = &mut self.pings else { return Some(u64::MAX) };
        if self.asked.is_some() && pings.poll_pong(cx).is_ready() {
            self.asked = None;
        }
        let heard = load.heard.load(Relaxed);
        let due = heard.saturating_add(SILENCE);
        if let Some((asked, end)) = self.asked {
            // Any sign of life counts, but a new PING has to wait for the echo of the old one.
            let end = end.max(if heard > asked { due.max(load.owed()).saturating_add(ECHO) } else { 0 });
            return (now < end).then_some(end);
        }
        if now < due {
            return Some(due);
        }
        // It stands behind all that was written.
        let end = now.max(load.owed()).saturating_add(ECHO);
        if pings.send_ping(Ping::opaque()).is_ok() {
            self.asked = Some((now, end));
        }
        Some(end)
    }
}

const SILENCE: u64 = 20_000;
const ECHO: u64 = 10_000;
