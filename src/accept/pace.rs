//! Deadlines and minimum rates of connections, in both directions.
//!
//! Threat: slowloris in every form. A phase ends at a total deadline (head, handshake, idle), or a transfer ends when it
//! stalls or falls below its minimum rate after a grace. All of it is arithmetic on `now`; [`beat`](super::beat) ends what is over.

use serde::{Deserialize, Serialize};

use super::beat::Millis;
use crate::units::{ByteRate, Deadline};

/// `[timeouts]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// TLS handshake and PROXY line, from accept to the end. Default: 5 s.
    pub tls_handshake: Deadline,
    /// A request head, from its first byte to its last. Default: 10 s.
    pub header: Deadline,
    /// Longest pause within a request body. Default: 15 s.
    pub body_stall: Deadline,
    /// Longest pause of a client that reads its answer. Default: 15 s.
    pub write_stall: Deadline,
    /// An idle connection between requests. Default: 30 s.
    pub idle: Deadline,
    /// A connection is closed after its next answer when it is older. Default: 1 h.
    pub connection_age: Deadline,
    /// Longest silence of a WebSocket in both directions; ActionCable pings every 3 s. Default: 60 s.
    pub tunnel_idle: Deadline,
    /// Requests on one connection before it is closed. Default: 10000.
    pub requests: u32,
}

/// `[rates]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rates {
    /// Least mean rate of a request body after the grace. Default: 500 B/s.
    pub body_min: ByteRate,
    /// Least mean rate at which a client reads its answer after the grace. Default: 500 B/s.
    pub write_min: ByteRate,
    /// Time before the minimum rates count. Default: 10 s.
    pub grace: Deadline,
}

/// Arithmetic of one transfer: bytes against the time in which the client had the turn.
///
/// Time is an account. It starts with the grace, every byte pays in what it may take at the minimum rate, and the clock takes
/// out. It never holds more than the grace or the stall, whichever is longer: a fast start does not buy hours of dripping.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// When the account is empty; while the turn is elsewhere, what is left in it.
    end: Millis,
    is_paused: bool,
    /// Bytes times 1000 that have not yet made up a whole millisecond.
    change: u64,
    stall: u64,
    most: u64,
    rate: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            tls_handshake: Deadline::seconds(5),
            header: Deadline::seconds(10),
            body_stall: Deadline::seconds(15),
            write_stall: Deadline::seconds(15),
            idle: Deadline::seconds(30),
            connection_age: Deadline::seconds(3600),
            tunnel_idle: Deadline::seconds(60),
            requests: 10_000,
        }
    }
}

impl Default for Rates {
    fn default() -> Self {
        Rates { body_min: ByteRate(500), write_min: ByteRate(500), grace: Deadline::seconds(10) }
    }
}

impl Pace {
    /// A transfer that starts now.
    pub fn new(now: Millis, stall: Deadline, rate: ByteRate, grace: Deadline) -> Self {
        let (stall, grace) = (stall.as_millis(), grace.as_millis());
        Pace { end: now.saturating_add(grace), is_paused: false, change: 0, stall, most: stall.max(grace), rate: rate.0 }
    }

    /// Counts bytes that moved.
    pub fn moved(&mut self, bytes: usize) {
        let worth = (bytes as u64).saturating_mul(1000).saturating_add(self.change);
        self.end = self.end.saturating_add(worth.checked_div(self.rate).unwrap_or(0));
        self.change = worth.checked_rem(self.rate).unwrap_or(0);
    }

    /// The moment at which the transfer is too slow, if nothing moves from `now` on.
    pub fn deadline(&mut self, now: Millis) -> Millis {
        self.resume(now);
        let stalled = now.saturating_add(self.stall);
        if self.rate == 0 {
            return stalled;
        }
        self.end = self.end.min(now.saturating_add(self.most));
        stalled.min(self.end)
    }

    /// Whether the turn is elsewhere.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// The client is not to blame for the time that passes from `now` on.
    pub fn pause(&mut self, now: Millis) {
        if !self.is_paused {
            (self.end, self.is_paused) = (self.end.saturating_sub(now), true);
        }
    }

    /// The client has the turn again.
    pub fn resume(&mut self, now: Millis) {
        if self.is_paused {
            (self.end, self.is_paused) = (self.end.saturating_add(now), false);
        }
    }
}

/// When a client that has taken nothing since `since` gets its part of the kernel's buffer filled where it is not, if its time is over at
/// `deadline`: only from then on what the kernel takes says what the client does.
pub fn fill_at(since: Millis, deadline: Millis) -> Millis {
    since.saturating_add(deadline.saturating_sub(since) / FILL_PART)
}

/// Early, as the kernel frees its buffer in pieces of up to 64 KiB, and one has to be gone before the deadline.
const FILL_PART: u64 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace::new(1000, Deadline::seconds(15), ByteRate(500), Deadline::seconds(10))
    }

    #[test]
    fn a_drip_ends_at_the_grace_plus_what_its_bytes_earned() {
        let mut pace = pace();
        assert_eq!(pace.deadline(1000), 11_000);
        pace.moved(500);
        assert_eq!(pace.deadline(10_000), 12_000);
        pace.moved(1);
        assert_eq!(pace.deadline(11_500), 12_002);
    }

    #[test]
    fn a_steady_upload_is_never_too_slow() {
        let mut pace = pace();
        for second in 1..100_000u64 {
            pace.moved(1_000_000);
            let now = 1000 + second * 1000;
            assert!(pace.deadline(now) > now + 1000, "second {second}");
        }
    }

    #[test]
    fn a_fast_start_buys_no_time_for_a_drip() {
        let mut pace = pace();
        pace.moved(100_000_000);
        let mut now = 1000;
        while pace.deadline(now) > now + 1000 {
            now += 1000;
            pace.moved(64);
        }
        assert_eq!(now, 18_000, "15 s of credit, stretched by 64 bytes a second");
    }

    #[test]
    fn a_client_at_twice_the_least_rate_may_go_on_and_one_at_half_of_it_not() {
        for (bytes, is_honest) in [(1000, true), (250, false)] {
            let (mut pace, mut now) = (pace(), 1000);
            while now < 1_000_000 && pace.deadline(now) > now + 1000 {
                now += 1000;
                pace.moved(bytes);
            }
            assert_eq!(now == 1_000_000, is_honest, "{bytes} bytes a second, {now} ms");
        }
    }

    #[test]
    fn time_in_which_the_turn_is_elsewhere_is_not_counted() {
        let mut pace = pace();
        assert_eq!(pace.deadline(5000), 11_000);
        pace.pause(5000);
        pace.pause(6000);
        assert_eq!(pace.deadline(100_000), 106_000, "6 s are left of the grace");
    }

    #[test]
    fn bytes_that_come_one_by_one_are_worth_the_same() {
        let (mut one, mut all) = (pace(), pace());
        (0..7501).for_each(|_| one.moved(1));
        all.moved(7501);
        assert_eq!(one.deadline(11_000), all.deadline(11_000));
    }

    #[test]
    fn a_fast_transfer_that_stops_ends_at_the_stall() {
        let mut pace = pace();
        pace.moved(100_000_000);
        assert_eq!(pace.deadline(50_000), 65_000);
    }
}
