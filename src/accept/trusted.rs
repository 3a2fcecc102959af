//! The peers whose word about a client counts: `trusted_proxies` in `proxy.toml`.
//!
//! Threat: exposure, as a client that could speak for another would pass every limit and ban. Nobody is listed by default.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::client::unmapped;
use crate::units::OneOrMany;

/// Networks, and presets: `loopback`, `private`, `cloudflare`, `unix`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "OneOrMany<String>", into = "OneOrMany<String>")]
pub struct TrustedProxies {
    words: Vec<String>,
    networks: Vec<IpNet>,
    unix: bool,
}

/// An entry that is neither a network nor a preset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotANetwork;

impl TrustedProxies {
    /// Reads networks (`10.0.0.0/8`), single addresses and presets.
    pub fn new<S: AsRef<str>>(entries: impl IntoIterator<Item = S>) -> Result<Self, NotANetwork> {
        let mut list = TrustedProxies::default();
        for entry in entries {
            let word = entry.as_ref().trim();
            match word {
                "loopback" => list.preset(LOOPBACK)?,
                "private" => list.preset(PRIVATE)?,
                "cloudflare" => list.preset(CLOUDFLARE)?,
                "unix" => list.unix = true,
                _ => list.networks.push(network(word)?),
            }
            list.words.push(word.to_owned());
        }
        list.networks = IpNet::aggregate(&list.networks);
        Ok(list)
    }

    /// Their networks.
    pub fn networks(&self) -> &[IpNet] {
        &self.networks
    }

    /// Whether the peer's word counts.
    pub fn contains(&self, peer: IpAddr) -> bool {
        is_in(&self.networks, peer)
    }

    /// Whether peers of unix sockets are listed; the socket's mode already says who may connect.
    pub fn contains_unix(&self) -> bool {
        self.unix
    }

    /// Whether nobody is listed.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && !self.unix
    }

    fn preset(&mut self, networks: &[&str]) -> Result<(), NotANetwork> {
        for word in networks {
            self.networks.push(network(word)?);
        }
        Ok(())
    }
}

/// Whether one of the networks has the address; an IPv4 address mapped into IPv6 is the IPv4 address.
pub(super) fn is_in(networks: &[IpNet], ip: IpAddr) -> bool {
    let ip = unmapped(ip);
    networks.iter().any(|n| n.contains(&ip))
}

fn network(word: &str) -> Result<IpNet, NotANetwork> {
    word.parse::<IpNet>().map(|n| n.trunc()).or_else(|_| word.parse::<IpAddr>().map(IpNet::from)).map_err(|_| NotANetwork)
}

impl TryFrom<OneOrMany<String>> for TrustedProxies {
    type Error = NotANetwork;
    fn try_from(entries: OneOrMany<String>) -> Result<Self, NotANetwork> {
        TrustedProxies::new(entries.0)
    }
}

impl From<TrustedProxies> for OneOrMany<String> {
    fn from(list: TrustedProxies) -> Self {
        OneOrMany(list.words)
    }
}

impl std::fmt::Display for NotANetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "expected networks such as \"10.0.0.0/8\", addresses, or the presets \"loopback\", \"private\", \"cloudflare\", \"unix\"",
        )
    }
}

impl std::error::Error for NotANetwork {}

/// The networks of the preset `private`, behind which one address often stands for many.
pub fn private() -> Vec<IpNet> {
    PRIVATE.iter().filter_map(|network| network.parse().ok()).collect()
}

const LOOPBACK: &[&str] = &["127.0.0.0/8", "::1/128"];

/// RFC 1918, RFC 6598 (carrier and cloud networks), RFC 4193, link-local, and loopback.
const PRIVATE: &[&str] = &[
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "127.0.0.0/8",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
];

/// Published at <https://www.cloudflare.com/ips-v4> and `/ips-v6`; this is the list since April 2021. A range that is given up would
/// keep its trust here until the next release, so firewalls should admit the same list.
const CLOUDFLARE: &[&str] = &[
    "173.245.48.0/20",
    "103.21.244.0/22",
    "103.22.200.0/22",
    "103.31.4.0/22",
    "141.101.64.0/18",
    "108.162.192.0/18",
    "190.93.240.0/20",
    "188.114.96.0/20",
    "197.234.240.0/22",
    "198.41.128.0/17",
    "162.158.0.0/15",
    "104.16.0.0/13",
    "104.24.0.0/14",
    "172.64.0.0/13",
    "131.0.72.0/22",
    "2400:cb00::/32",
    "2606:4700::/32",
    "2803:f800::/32",
    "2405:b500::/32",
    "2405:8100::/32",
    "2a06:98c0::/29",
    "2c0f:f248::/32",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn nobody_is_trusted_by_default() {
        let none = TrustedProxies::default();
        assert!(none.is_empty() && !none.contains(ip("127.0.0.1")) && !none.contains_unix());
    }

    #[test]
    fn every_preset_can_be_read() {
        assert_eq!(private().len(), PRIVATE.len());
        let list = TrustedProxies::new(["loopback", "private", "cloudflare", "unix"]).unwrap();
        for inside in ["127.0.0.1", "::1", "10.1.2.3", "172.31.0.1", "fd00::1", "104.27.255.255", "2606:4700::6810:1", "::ffff:10.0.0.1"] {
            assert!(list.contains(ip(inside)), "{inside}");
        }
        for outside in ["172.32.0.1", "104.28.0.0", "8.8.8.8", "2001:db8::1", "11.0.0.1"] {
            assert!(!list.contains(ip(outside)), "{outside}");
        }
        assert!(list.contains_unix());
    }

    #[test]
    fn an_entry_that_is_no_network_is_refused() {
        for bad in ["", "10.0.0.0/33", "localhost", "10.0.0", "cloud flare"] {
            assert_eq!(TrustedProxies::new([bad]), Err(NotANetwork), "{bad}");
        }
        assert!(TrustedProxies::new(["192.0.2.7"]).unwrap().contains(ip("192.0.2.7")));
    }

    #[test]
    fn a_list_is_written_as_it_was_read() {
        let list: TrustedProxies = serde_json::from_str(r#"["cloudflare","192.0.2.0/24"]"#).unwrap();
        assert_eq!(serde_json::to_string(&list).unwrap(), r#"["cloudflare","192.0.2.0/24"]"#);
        assert_eq!(serde_json::from_str::<TrustedProxies>(r#""private""#).unwrap(), TrustedProxies::new(["private"]).unwrap());
    }
}
