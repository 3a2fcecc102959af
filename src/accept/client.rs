//! Who is at the other end of a connection: the peer, or the client that a trusted peer speaks for.
//!
//! Threat: exhaustion and exposure, as limits and logs are by client. Addresses, scheme and port come from the connection or
//! from a PROXY line of a listed peer, never from a header field that the client could have written.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::OnceLock,
};

use bytes::Bytes;

/// The two kinds of HTTP that a connection can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// Over TLS that ends here.
    Https,
}

/// What a connection tells of its client.
#[derive(Clone, Debug)]
pub struct Client {
    /// The client's address: of the PROXY line where a listed peer sent one, else the peer's.
    pub ip: IpAddr,
    /// The client's port; 0 where there is none (unix sockets).
    pub port: u16,
    /// The address that the socket is connected to; for unix sockets 127.0.0.1.
    pub peer: IpAddr,
    /// The port that the client connected to, for X-Forwarded-Port.
    pub local_port: u16,
    /// Whether TLS ends here.
    pub scheme: Scheme,
    /// The TLS version and protocol, for the log: `TLSv1.3`, `h2`; empty without TLS.
    pub tls: &'static str,
    /// What ALPN chose: `h2`, `http/1.1` or nothing.
    pub alpn: &'static str,
    /// The host name of the handshake (SNI), lower case.
    pub server_name: Option<Box<str>>,
    /// The peer is in `trusted_proxies`: its forwarding fields and request ids count.
    pub trusted: bool,
    /// The field lines that tell the application of this client, made when the first request needs them.
    pub family: OnceLock<Bytes>,
}

/// A client as limits and rates know it: one IPv4 address, or one IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientKey(u128);

impl ClientKey {
    /// The key of an address: IPv4 (also mapped into IPv6) whole, IPv6 by its /64.
    pub fn of(ip: IpAddr) -> Self {
        Self::prefix(ip, 32, 64)
    }

    /// The key of the network that an address is in.
    pub fn prefix(ip: IpAddr, v4_bits: u32, v6_bits: u32) -> Self {
        match unmapped(ip) {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32u32.saturating_sub(v4_bits)).unwrap_or(0);
                ClientKey(0xffff_0000_0000 | u128::from(u32::from(v4) & mask))
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128u32.saturating_sub(v6_bits)).unwrap_or(0);
                ClientKey(u128::from(v6) & mask)
            }
        }
    }

    /// The key of the network that is most likely one owner's: an IPv4 /24, an IPv6 /48.
    pub fn network(self) -> Self {
        Self::prefix(IpAddr::V6(Ipv6Addr::from(self.0)), 24, 48)
    }
}

/// An IPv4 address that arrived as `::ffff:a.b.c.d` is the IPv4 address.
pub fn unmapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

impl Client {
    /// A client of a unix socket: it has no address of its own, so it counts as the machine itself.
    pub fn local() -> Self {
        Client {
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
            local_port: 0,
            scheme: Scheme::Http,
            tls: "",
            alpn: "",
            server_name: None,
            trusted: false,
            family: OnceLock::new(),
        }
    }
}

impl std::fmt::Display for ClientKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        unmapped(IpAddr::V6(Ipv6Addr::from(self.0))).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_client_is_its_64() {
        let a = ClientKey::of("2001:db8:1:2::1".parse().unwrap());
        assert_eq!(a, ClientKey::of("2001:db8:1:2:ffff::9".parse().unwrap()));
        assert_ne!(a, ClientKey::of("2001:db8:1:3::1".parse().unwrap()));
        assert_eq!(a.to_string(), "2001:db8:1:2::");
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        let mapped = ClientKey::of("::ffff:192.0.2.7".parse().unwrap());
        assert_eq!(mapped, ClientKey::of("192.0.2.7".parse().unwrap()));
        assert_eq!(mapped.to_string(), "192.0.2.7");
        assert_eq!(ClientKey::prefix("192.0.2.7".parse().unwrap(), 24, 64).to_string(), "192.0.2.0");
    }
}
