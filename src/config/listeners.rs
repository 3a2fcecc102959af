//! `listen`, the short form of `[[listener]]`.

use std::net::SocketAddr;

use super::Config;
use crate::accept::{
    listener::{self, Address, Protocol},
    proxy_protocol::ProxyProtocol,
};

impl Config {
    /// Every listener, those of the short form first.
    pub fn listeners(&self) -> Vec<listener::Config> {
        let short = self.listen.0.iter().map(|address| self.meant(address));
        short.chain(self.listener.iter().cloned()).collect()
    }

    /// What an address alone means.
    fn meant(&self, address: &Address) -> listener::Config {
        let protocol = match port(address) {
            Some(443) => Protocol::Https,
            Some(8443) if self.tls.is_on() => Protocol::Https,
            Some(80) if self.speaks_https() => Protocol::Redirect,
            Some(_) | None => Protocol::Http,
        };
        listener::Config { address: address.clone(), protocol, http2: true, proxy_protocol: ProxyProtocol::Off, backlog: BACKLOG }
    }

    fn speaks_https(&self) -> bool {
        let is_short = self.listen.0.iter().any(|address| port(address) == Some(443) || (self.tls.is_on() && port(address) == Some(8443)));
        is_short || self.listener.iter().any(|listener| listener.protocol == Protocol::Https)
    }
}

/// The port, where the address has one.
pub(super) fn port(address: &Address) -> Option<u16> {
    match address {
        Address::Any(port) => Some(*port),
        Address::Ip(address) => Some(address.port()),
        Address::Unix(_) | Address::Inherited(_) => None,
    }
}

/// Whether two listeners would take each other's address. Port 0 is a different one each time.
pub(super) fn collide(one: &Address, other: &Address) -> bool {
    match (one, other) {
        (Address::Any(one), Address::Any(other)) => one == other && *one != 0,
        (Address::Any(port), Address::Ip(address)) | (Address::Ip(address), Address::Any(port)) => *port == address.port() && *port != 0,
        (Address::Ip(one), Address::Ip(other)) => one.port() != 0 && is_within(one, other),
        (Address::Unix(_), Address::Unix(_)) | (Address::Inherited(_), Address::Inherited(_)) => one == other,
        (Address::Any(_) | Address::Ip(_) | Address::Unix(_) | Address::Inherited(_), _) => false,
    }
}

fn is_within(one: &SocketAddr, other: &SocketAddr) -> bool {
    let same_family = one.is_ipv4() == other.is_ipv4();
    one.port() == other.port() && (one.ip() == other.ip() || (same_family && (one.ip().is_unspecified() || other.ip().is_unspecified())))
}

/// That of `[[listener]]`.
const BACKLOG: u32 = 4096;
