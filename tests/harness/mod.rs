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
    fs::{self, File},
    net::TcpListener,
    ops::Range,
    path::Path,
    sync::{Mutex, PoisonError},
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

/// A port of 127.0.0.1 that is free, and that no other test is given as long as this process lives. The kernel gives none of them to
/// anybody by itself.
pub fn free_port() -> u16 {
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let locks = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ports");
    fs::create_dir_all(&locks).unwrap();
    let start = std::process::id().wrapping_mul(101);
    for n in 0..u32::from(PORTS.end - PORTS.start) {
        let port = PORTS.start + u16::try_from(start.wrapping_add(n) % u32::from(PORTS.end - PORTS.start)).unwrap();
        let lock = File::create(locks.join(port.to_string())).unwrap();
        if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            held.push(lock);
            return port;
        }
    }
    panic!("no port is free");
}

/// Below those that the kernel gives to sockets without one.
const PORTS: Range<u16> = 12_000..32_000;

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
