//! The PROXY header, versions 1 and 2: a load balancer in front says which client a connection belongs to. Sans-IO.
//!
//! Threat: exposure and exhaustion, as whoever may write this line may be anybody to every limit, ban and log. So it is read
//! only from peers in `trusted_proxies`, exactly in the grammar of the HAProxy specification (proxy-protocol.txt §2), and a
//! connection without it, where it is required, is closed. Place: the first bytes of a connection, before TLS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::client::unmapped;

/// Which header a listener requires of its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// None: its bytes would be read as HTTP or TLS, and refused.
    #[default]
    Off,
    /// The text line of version 1.
    V1,
    /// The binary header of version 2.
    V2,
    /// Either.
    Any,
}

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A beginning: more bytes are needed, and all that were given belong to the header.
    Partial,
    /// A header of so many bytes.
    Complete(usize, Announced),
    /// Not a header that is taken here.
    Bad(Bad),
}

/// Whom the header speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// Nobody (`LOCAL`, `UNKNOWN`): the balancer itself, such as its health check. The socket's address stays.
    Nobody,
    /// A client.
    Client {
        /// Its address and port.
        source: SocketAddr,
        /// What it connected to.
        destination: SocketAddr,
    },
}

/// Why the first bytes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// They begin otherwise.
    Missing,
    /// Longer than any header may be.
    TooLong,
    /// They begin as a header and break its grammar.
    Malformed,
}

impl ProxyProtocol {
    /// Reads the beginning of a connection. The verdict on a prefix, once it is not `Partial`, is the verdict on the whole.
    pub fn read(self, bytes: &[u8]) -> Verdict {
        let (v1, v2) = match self {
            ProxyProtocol::Off => (false, false),
            ProxyProtocol::V1 => (true, false),
            ProxyProtocol::V2 => (false, true),
            ProxyProtocol::Any => (true, true),
        };
        if v1 && begins(bytes, V1_SIGNATURE) {
            text(bytes)
        } else if v2 && begins(bytes, V2_SIGNATURE) {
            binary(bytes)
        } else {
            Verdict::Bad(Bad::Missing)
        }
    }
}

/// Whether the bytes are a prefix of the signature or begin with it.
fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(a, b)| a == b)
}

/// Version 1, §2.1: `PROXY TCP4 source destination port port CRLF`, at most 107 bytes.
fn text(bytes: &[u8]) -> Verdict {
    let head = bytes.get(..V1_LIMIT).unwrap_or(bytes);
    let Some(end) = memchr::memmem::find(head, b"\r\n") else {
        return if bytes.len() >= V1_LIMIT { Verdict::Bad(Bad::TooLong) } else { Verdict::Partial };
    };
    let line = head.get(..end).and_then(|line| std::str::from_utf8(line).ok()).and_then(|line| line.strip_prefix("PROXY "));
    match line.and_then(announced) {
        Some(announced) => Verdict::Complete(end.saturating_add(2), announced),
        None => Verdict::Bad(Bad::Malformed),
    }
}

fn announced(line: &str) -> Option<Announced> {
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return Some(Announced::Nobody);
    }
    let mut words = line.split(' ');
    let family = words.next()?;
    let mut address = || -> Option<IpAddr> {
        let word = words.next()?;
        match family {
            "TCP4" => word.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => word.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (from, to) = (address()?, address()?);
    let (from_port, to_port) = (port(words.next()?)?, port(words.next()?)?);
    match words.next() {
        Some(_) => None,
        None => Some(Announced::Client { source: socket(from, from_port), destination: socket(to, to_port) }),
    }
}

/// Digits without sign or leading zero, which `parse` alone would take.
fn port(word: &str) -> Option<u16> {
    let plain = word.bytes().all(|b| b.is_ascii_digit()) && (word.len() == 1 || !word.starts_with('0'));
    if plain { word.parse().ok() } else { None }
}

fn socket(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(unmapped(ip), port)
}

/// Version 2, §2.2: signature, command, family, length, addresses, and extensions that are skipped.
fn binary(bytes: &[u8]) -> Verdict {
    let Some(command) = bytes.get(12) else { return Verdict::Partial };
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Verdict::Bad(Bad::Malformed),
    };
    let (Some(family), Some(length)) = (bytes.get(13), bytes.get(14..16)) else { return Verdict::Partial };
    let length = length.iter().fold(0usize, |sum, b| (sum << 8) | usize::from(*b));
    let total = V2_FIXED.saturating_add(length);
    if total > V2_LIMIT {
        return Verdict::Bad(Bad::TooLong);
    }
    let least = match (is_local, family) {
        (true, _) | (false, 0x00) => 0,
        (false, 0x11) => 12,
        (false, 0x21) => 36,
        (false, 0x31) => 216,
        // A datagram's address on a stream, or a family that the specification does not know.
        (false, _) => return Verdict::Bad(Bad::Malformed),
    };
    if length < least {
        return Verdict::Bad(Bad::Malformed);
    }
    let Some(addresses) = bytes.get(V2_FIXED..total) else { return Verdict::Partial };
    let announced = match (is_local, family) {
        (false, 0x11) => four(addresses),
        (false, 0x21) => six(addresses),
        _ => Some(Announced::Nobody),
    };
    announced.map_or(Verdict::Bad(Bad::Malformed), |announced| Verdict::Complete(total, announced))
}

fn four(addresses: &[u8]) -> Option<Announced> {
    let (from, rest) = addresses.split_first_chunk::<4>()?;
    let (to, rest) = rest.split_first_chunk::<4>()?;
    ports(IpAddr::from(*from), IpAddr::from(*to), rest)
}

fn six(addresses: &[u8]) -> Option<Announced> {
    let (from, rest) = addresses.split_first_chunk::<16>()?;
    let (to, rest) = rest.split_first_chunk::<16>()?;
    ports(IpAddr::from(*from), IpAddr::from(*to), rest)
}

fn ports(from: IpAddr, to: IpAddr, rest: &[u8]) -> Option<Announced> {
    let (from_port, rest) = rest.split_first_chunk::<2>()?;
    let to_port = rest.first_chunk::<2>()?;
    let (from_port, to_port) = (u16::from_be_bytes(*from_port), u16::from_be_bytes(*to_port));
    Some(Announced::Client { source: socket(from, from_port), destination: socket(to, to_port) })
}

/// Longest header of any version: what fits into the smallest TCP segment, by the specification.
pub const LONGEST: usize = V2_LIMIT;

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V1_LIMIT: usize = 107;
const V2_FIXED: usize = 16;
const V2_LIMIT: usize = 536;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(source: &str, destination: &str) -> Announced {
        Announced::Client { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = V2_SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend((rest.len() as u16).to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn a_line_of_version_1_names_its_client() {
        let line = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\nGET / HTTP/1.1\r\n";
        assert_eq!(ProxyProtocol::V1.read(line), Verdict::Complete(45, client("192.0.2.7:56324", "198.51.100.1:443")));
        let line = b"PROXY TCP6 2001:db8::7 2001:db8::1 1 443\r\n";
        assert_eq!(ProxyProtocol::Any.read(line), Verdict::Complete(line.len(), client("[2001:db8::7]:1", "[2001:db8::1]:443")));
        assert_eq!(ProxyProtocol::V1.read(b"PROXY UNKNOWN\r\n"), Verdict::Complete(15, Announced::Nobody));
        assert_eq!(ProxyProtocol::V1.read(b"PROXY UNKNOWN ffff::1 x\r\n"), Verdict::Complete(25, Announced::Nobody));
    }

    #[test]
    fn version_1_is_read_strictly() {
        for bad in [
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 \r\n",
            "PROXY TCP4 192.0.2.7  198.51.100.1 56324 443\r\n",
            "PROXY TCP4 192.0.2.07 198.51.100.1 56324 443\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 056324 443\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 +5 443\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n",
            "PROXY TCP4 2001:db8::7 2001:db8::1 1 443\r\n",
            "PROXY TCP6 192.0.2.7 198.51.100.1 1 443\r\n",
            "PROXY TCP6 fe80::1%eth0 2001:db8::1 1 443\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY \r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1 443\n\r\n",
        ] {
            assert_eq!(ProxyProtocol::V1.read(bad.as_bytes()), Verdict::Bad(Bad::Malformed), "{bad:?}");
        }
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        assert_eq!(ProxyProtocol::V1.read(long.as_bytes()), Verdict::Bad(Bad::TooLong));
        assert_eq!(ProxyProtocol::V1.read(b"GET / HTTP/1.1\r\n"), Verdict::Bad(Bad::Missing));
        assert_eq!(ProxyProtocol::V2.read(b"PROXY TCP4"), Verdict::Bad(Bad::Missing));
        assert_eq!(ProxyProtocol::Off.read(b"PROXY TCP4"), Verdict::Bad(Bad::Missing));
    }

    #[test]
    fn a_header_of_version_2_names_its_client_and_its_extensions_are_skipped() {
        let four = [192, 0, 2, 7, 198, 51, 100, 1, 0, 80, 1, 187, 0x04, 0, 1, 0];
        assert_eq!(ProxyProtocol::V2.read(&v2(0x21, 0x11, &four)), Verdict::Complete(32, client("192.0.2.7:80", "198.51.100.1:443")));
        let mut six = [0u8; 36];
        (six[15], six[31], six[33], six[35]) = (1, 2, 3, 4);
        assert_eq!(ProxyProtocol::Any.read(&v2(0x21, 0x21, &six)), Verdict::Complete(52, client("[::1]:3", "[::2]:4")));
        assert_eq!(ProxyProtocol::V2.read(&v2(0x20, 0x00, &[])), Verdict::Complete(16, Announced::Nobody));
        assert_eq!(ProxyProtocol::V2.read(&v2(0x20, 0x77, &[9; 3])), Verdict::Complete(19, Announced::Nobody));
        assert_eq!(ProxyProtocol::V2.read(&v2(0x21, 0x31, &[0; 216])), Verdict::Complete(232, Announced::Nobody));
    }

    #[test]
    fn version_2_is_read_strictly() {
        for (command, family, length) in [(0x22, 0x11, 12), (0x11, 0x11, 12), (0x21, 0x12, 12), (0x21, 0x11, 11), (0x21, 0x21, 35)] {
            assert_eq!(ProxyProtocol::V2.read(&v2(command, family, &vec![0; length])), Verdict::Bad(Bad::Malformed));
        }
        assert_eq!(ProxyProtocol::V2.read(&v2(0x21, 0x11, &[0; 521])), Verdict::Bad(Bad::TooLong));
        assert_eq!(ProxyProtocol::V1.read(&v2(0x21, 0x11, &[0; 12])), Verdict::Bad(Bad::Missing));
    }

    fn header() -> impl Strategy<Value = Vec<u8>> {
        let v1 = "PROXY (TCP4|TCP6|UNKNOWN|X) ?[0-9.:a-f ]{0,100}(\r\n|\r|\n)?[a-z\r\n]{0,9}".prop_map(String::into_bytes);
        let v2 = (0x1fu8..0x23, prop::sample::select(vec![0x00u8, 0x11, 0x21, 0x31, 0x12]), prop::collection::vec(any::<u8>(), 0..530))
            .prop_map(|(command, family, rest)| v2(command, family, &rest));
        prop_oneof![v1, v2, prop::collection::vec(any::<u8>(), 0..40)]
    }

    proptest! {
        #[test]
        fn the_verdict_does_not_depend_on_the_cuts(bytes in header(), more in prop::collection::vec(any::<u8>(), 0..20)) {
            let whole = [bytes, more].concat();
            for protocol in [ProxyProtocol::Off, ProxyProtocol::V1, ProxyProtocol::V2, ProxyProtocol::Any] {
                let last = protocol.read(&whole);
                for cut in 0..whole.len() {
                    let verdict = protocol.read(&whole[..cut]);
                    prop_assert!(verdict == Verdict::Partial || verdict == last, "{protocol:?} at {cut}: {verdict:?}, then {last:?}");
                    if let Verdict::Complete(length, _) = verdict {
                        prop_assert!(length <= cut && length <= LONGEST);
                    }
                }
            }
        }
    }
}
