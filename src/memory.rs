//! The allocator, and that memory goes back to the system when an attack is over.
//!
//! Threat: exhaustion. glibc keeps what thousands of connections have given back, in pieces between what is still in use: a
//! process that was attacked once holds its peak for the rest of its life (`docs/decisions/0009-allocator.md` has the figures).
//! jemalloc keeps pages apart by size and returns those that are not used, on a thread of its own that sleeps while nothing is
//! freed. It serves C as well, as the library for TLS keeps its keys there: 5,000 handshakes left 7.6 MiB behind, now 1.7. Place:
//! beside everything. Where the C library is musl its own allocator stays, which returns memory by itself.

#[cfg(target_env = "gnu")]
pub use tikv_jemallocator::Jemalloc as Allocator;

#[cfg(not(target_env = "gnu"))]
pub use std::alloc::System as Allocator;

/// The allocator of the process.
pub const ALLOCATOR: Allocator = Allocator;

/// From now on what is free for [`DECAY`] goes back to the system. After the sandbox is entered, as it starts a thread.
#[cfg(target_env = "gnu")]
pub fn give_back() -> Result<(), tikv_jemalloc_ctl::Error> {
    use tikv_jemalloc_ctl::{Access, AsName, background_thread, max_background_threads};

    // The first for arenas to come, the second for the one that the start has used.
    for key in ["arenas.dirty_decay_ms\0", "arena.0.dirty_decay_ms\0"] {
        key.name().write(DECAY)?;
    }
    max_background_threads::write(1)?;
    background_thread::write(true)
}

/// The C library's allocator does it by itself.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() -> Result<(), std::convert::Infallible> {
    Ok(())
}

/// Milliseconds over which pages that are free go back; they are used again meanwhile.
#[cfg(target_env = "gnu")]
const DECAY: isize = 1000;
