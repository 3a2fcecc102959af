//! The address of the client that a trusted peer speaks for.
//!
//! Threat: exposure and exhaustion. Every entry of X-Forwarded-For except the last is written by somebody whom nobody knows, so
//! the list is read from its end: the first address that is not a trusted proxy's is the client (RFC 7239 §8.1).

use std::{net::IpAddr, sync::Arc};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use crate::accept::{
    client::{Client, unmapped},
    trusted,
};

/// The networks of `trusted_proxies`.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    /// From the configuration.
    pub fn new(networks: &[IpNet]) -> Self {
        TrustedProxies(networks.into())
    }

    /// The client: the connection's, or where the peer is trusted the right-most address of X-Forwarded-For that is not.
    pub fn client(&self, client: &Client, headers: &HeaderMap) -> IpAddr {
        if !client.trusted {
            return client.ip;
        }
        let mut nearest = client.ip;
        for line in headers.get_all(X_FORWARDED_FOR).iter().rev() {
            for entry in line.as_bytes().rsplit(|b| *b == b',') {
                let Some(address) = entry_address(entry) else {
                    return nearest;
                };
                nearest = address;
                if !self.contains(address) {
                    return nearest;
                }
            }
        }
        nearest
    }

    /// The address is a trusted proxy's.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl From<&trusted::TrustedProxies> for TrustedProxies {
    fn from(listed: &trusted::TrustedProxies) -> Self {
        TrustedProxies::new(listed.networks())
    }
}

/// An entry of the list: an address, perhaps in brackets, perhaps with a port.
fn entry_address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry.trim_ascii()).ok()?;
    let address = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        None => match text.split_once(':') {
            Some((v4, port)) if !port.contains(':') => v4,
            Some(_) | None => text,
        },
    };
    address.parse().ok().map(unmapped)
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

#[cfg(test)]
mod tests {
    use super::*;

    fn client(list: &[&str], trusted: bool) -> String {
        let mut headers = HeaderMap::new();
        for line in list {
            headers.append(X_FORWARDED_FOR, line.parse().unwrap());
        }
        let proxies = TrustedProxies::new(&["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()]);
        let peer = Client { ip: "10.0.0.1".parse().unwrap(), trusted, ..Client::local() };
        proxies.client(&peer, &headers).to_string()
    }

    #[test]
    fn an_untrusted_peer_is_its_own_client() {
        assert_eq!(client(&["192.0.2.1"], false), "10.0.0.1");
    }

    #[test]
    fn the_right_most_untrusted_address_is_the_client() {
        assert_eq!(client(&["6.6.6.6, 192.0.2.1, 10.2.3.4"], true), "192.0.2.1");
        assert_eq!(client(&["6.6.6.6", "192.0.2.1", "10.2.3.4"], true), "192.0.2.1");
        assert_eq!(client(&["192.0.2.1:4711"], true), "192.0.2.1");
        assert_eq!(client(&["[2001:dead::1]:4711, [2001:db8::7]"], true), "2001:dead::1");
        assert_eq!(client(&["::ffff:192.0.2.9"], true), "192.0.2.9");
    }

    #[test]
    fn what_is_no_address_ends_the_list() {
        assert_eq!(client(&["6.6.6.6, unknown, 10.9.9.9"], true), "10.9.9.9");
        assert_eq!(client(&[], true), "10.0.0.1");
        assert_eq!(client(&["10.1.1.1"], true), "10.1.1.1");
    }
}
