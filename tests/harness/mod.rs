//! What the end-to-end tests stand on. Everything started here listens on loopback or a unix socket in a temporary
//! folder, waits for readiness instead of sleeping, gives every wait a deadline, and is killed by its own pid on drop.

pub mod answer;
pub mod client;
pub mod corpus;
pub mod grammar;
pub mod palisade;
pub mod process;
pub mod puma;
pub mod recorder;
pub mod websocket;

use std::{
    fmt::Write,
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

/// The longest wait for something that ought to happen soon. Generous, because CI machines stall.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls until `probe` gives a value; fails with `what` when [`PATIENCE`] is over.
pub fn eventually<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, probe)
}

/// Polls until `probe` gives a value; fails with `what` after `limit`.
pub fn within<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < limit, "did not happen within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A port of 127.0.0.1 that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Says that a test did not run and why. In CI nothing may be skipped.
pub fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none_or(|v| v.is_empty()), "skipped in CI: {reason}");
    eprintln!("skipped: {reason}");
}

/// SHA-256 in lower-case hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Bytes that differ from place to place, so that a lost, doubled or moved piece changes the checksum.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state & 0xff) as u8
        })
        .collect()
}
