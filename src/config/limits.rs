//! `[limits]`: how much of anything one client, or all of them, may have.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    guard,
    units::{ByteSize, Rate},
};

/// `[limits]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// A request head, in bytes, from its first byte to the empty line.
    ///
    /// Memory at worst: `connections` times this. Too low: long cookies are refused with 431.
    pub header_bytes: ByteSize,
    /// Fields of a request head. Memory: 16 bytes each while a head is read.
    pub header_count: u16,
    /// Name of one field, in bytes.
    pub header_name: ByteSize,
    /// Value of one field, in bytes. Too low: long cookies are refused with 431.
    pub header_value: ByteSize,
    /// Request target, in bytes. Puma refuses paths above 8 KiB and queries above 10 KiB itself.
    pub uri_bytes: ByteSize,
    /// One chunk-size line of a chunked request, in bytes. Clients that honestly need more than 20 are not known.
    pub chunk_line: ByteSize,
    /// All chunk extensions of one request, in bytes; they are thrown away. Too high: a body of nothing but extensions.
    pub chunk_extensions: ByteSize,
    /// Trailer section of a chunked request, in bytes; it is thrown away.
    pub trailer_bytes: ByteSize,
    /// Lines of a trailer section.
    pub trailer_count: u16,
    /// Request body, in bytes; a route may allow more.
    ///
    /// Held in memory up to `buffer.memory_per_request`, beyond it on disk. Too high: few clients can fill `buffer.disk_total`.
    pub body: ByteSize,
    /// Open client connections in all. Memory at worst, idle: 4 KiB each, with TLS about 20 KiB each.
    pub connections: u32,
    /// Open connections of one client address (IPv6: one /64). Too low: an office behind one address is refused.
    pub connections_per_ip: u32,
    /// Open connections of one network.
    pub connections_per_prefix: PerPrefix,
    /// New connections a second in all; more wait in the backlog of the kernel.
    pub accept_rate: Rate,
    /// TLS handshakes begun a second in all. One costs about 1 ms of a core (RSA) or 0.2 ms (ECDSA).
    pub tls_rate: Rate,
}

/// `connections_per_prefix`: open connections of one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PerPrefix {
    /// Of one IPv4 /24.
    pub v4_24: u32,
    /// Of one IPv6 /64.
    pub v6_64: u32,
    /// Of one IPv6 /48.
    pub v6_48: u32,
}

impl Limits {
    /// What the parser of requests is told. `monitor` notes what can be noted without harm.
    pub fn guard(&self, monitor: bool) -> guard::Limits {
        guard::Limits {
            target: self.uri_bytes.as_usize(),
            head: self.header_bytes.as_usize(),
            fields: usize::from(self.header_count),
            name: self.header_name.as_usize(),
            value: self.header_value.as_usize(),
            chunk_line: self.chunk_line.as_usize(),
            chunk_extensions: self.chunk_extensions.as_usize(),
            trailer: self.trailer_bytes.as_usize(),
            trailer_fields: usize::from(self.trailer_count),
            monitor,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            header_bytes: ByteSize::kib(32),
            header_count: 100,
            header_name: ByteSize(256),
            header_value: ByteSize::kib(16),
            uri_bytes: ByteSize::kib(8),
            chunk_line: ByteSize(256),
            chunk_extensions: ByteSize::kib(4),
            trailer_bytes: ByteSize::kib(8),
            trailer_count: 32,
            body: ByteSize::mib(64),
            connections: 20_000,
            connections_per_ip: 64,
            connections_per_prefix: PerPrefix::default(),
            accept_rate: per_second(2000),
            tls_rate: per_second(500),
        }
    }
}

impl Default for PerPrefix {
    fn default() -> Self {
        PerPrefix { v4_24: 512, v6_64: 64, v6_48: 1024 }
    }
}

const fn per_second(count: u32) -> Rate {
    match std::num::NonZeroU32::new(count) {
        Some(count) => Rate::per_second(count),
        None => Rate::per_second(std::num::NonZeroU32::MIN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_parser() {
        assert_eq!(Limits::default().guard(false), guard::Limits::default());
    }
}
