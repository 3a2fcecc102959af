//! Whether the client of a connection that has streams open is still there: a PING after a silence, and an end without an echo.

use std::task::Context;

use h2::{Ping, PingPong};

/// The PINGs of one connection.
#[derive(Debug)]
pub struct Alive {
    pings: Option<PingPong>,
    /// When the PING was sent that has no echo yet.
    asked: Option<u64>,
}

impl Alive {
    /// A connection that has just been greeted.
    pub fn new(pings: Option<PingPong>) -> Self {
        Alive { pings, asked: None }
    }

    /// Until when it goes on, if the last bytes came at `heard`; `None` when nobody is there.
    pub fn look(&mut self, cx: &mut Context<'_>, now: u64, heard: u64) -> Option<u64> {
        let Some(pings) = &mut self.pings else { return Some(u64::MAX) };
        if self.asked.is_some() && pings.poll_pong(cx).is_ready() {
            self.asked = None;
        }
        let due = heard.saturating_add(SILENCE);
        if let Some(asked) = self.asked {
            // Any bytes are a sign of life, but a new PING has to wait for the echo of the old one.
            let end = asked.saturating_add(ECHO).max(if heard > asked { due.saturating_add(ECHO) } else { 0 });
            return (now < end).then_some(end);
        }
        if now < due {
            return Some(due);
        }
        if pings.send_ping(Ping::opaque()).is_ok() {
            self.asked = Some(now);
        }
        Some(now.saturating_add(ECHO))
    }
}

const SILENCE: u64 = 20_000;
const ECHO: u64 = 10_000;
