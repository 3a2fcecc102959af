//! `[limits]`: how much of anything one client, or all of them, may have.

use std::num::NonZeroU32;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::Network;
use crate::{
    accept::limit,
    guard,
    units::{ByteSize, OneOrMany, Rate},
};

/// `[limits]` in `proxy.toml`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
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
    pub connections: NonZeroU32,
    /// Open connections of one client address (IPv6: one /64). Too low: an office behind one address is refused.
    pub connections_per_ip: NonZeroU32,
    /// Open connections of one network.
    pub connections_per_prefix: limit::Prefixes,
    /// New connections in all; more wait in the backlog of the kernel.
    pub accept_rate: Rate,
    /// New TLS handshakes in all; each costs as much as ten requests.
    pub tls_rate: Rate,
    /// TLS handshakes of one client at the same time.
    pub handshakes_per_ip: NonZeroU32,
    /// Connections kept free for `health_from`; counts only where that is not empty.
    pub health_reserve: u32,
    /// Networks of health checks: they may use the reserve, and `accept_rate` does not stop them.
    #[schemars(with = "OneOrMany<Network>")]
    pub health_from: OneOrMany<IpNet>,
    /// Networks without limits per address or network and without rates. Peers in `trusted_proxies` have no limit per address
    /// or network either, as each speaks for many.
    #[schemars(with = "OneOrMany<Network>")]
    pub exempt: OneOrMany<IpNet>,
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

    /// What `accept` is told.
    pub fn connections(&self) -> limit::Config {
        limit::Config {
            connections: self.connections,
            connections_per_ip: self.connections_per_ip,
            connections_per_prefix: self.connections_per_prefix.clone(),
            health_reserve: self.health_reserve,
            health_from: self.health_from.clone(),
            accept_rate: self.accept_rate,
            tls_rate: self.tls_rate,
            handshakes_per_ip: self.handshakes_per_ip,
            exempt: self.exempt.clone(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let connections = limit::Config::default();
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
            connections: connections.connections,
            connections_per_ip: connections.connections_per_ip,
            connections_per_prefix: connections.connections_per_prefix,
            accept_rate: connections.accept_rate,
            tls_rate: connections.tls_rate,
            handshakes_per_ip: connections.handshakes_per_ip,
            health_reserve: connections.health_reserve,
            health_from: connections.health_from,
            exempt: connections.exempt,
        }
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
