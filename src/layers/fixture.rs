//! Requests for the tests of the layers.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::{Request, request::Builder};

use crate::{
    accept::client::Client,
    http::arrival::{Arrival, Names, Notes},
};

/// A request to `target` from 192.0.2.1.
pub fn arrived(target: &str) -> Builder {
    from(target, Client { ip: "192.0.2.1".parse().unwrap(), peer: "192.0.2.1".parse().unwrap(), local_port: 80, ..Client::local() })
}

/// A request to `target` from 10.0.0.1, a trusted proxy.
pub fn trusted(target: &str) -> Builder {
    let proxy = "10.0.0.1".parse().unwrap();
    from(target, Client { ip: proxy, peer: proxy, local_port: 80, trusted: true, ..Client::local() })
}

/// A request to `target` from `client`.
pub fn from(target: &str, client: Client) -> Builder {
    Request::builder().extension(Arrival {
        client: Arc::new(client),
        target: Bytes::copy_from_slice(target.as_bytes()),
        notes: Arc::new(Notes::new(Instant::now())),
        sent: Names::ANY,
    })
}

/// Reads a head by the grammar in the documentation of `canonical`, knowing nothing of its code.
pub fn parse(head: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let head = head.strip_suffix(b"\r\n\r\n")?;
    assert!(!head.windows(4).any(|w| w == b"\r\n\r\n"));
    let mut lines = Vec::new();
    let mut rest = head;
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n").unwrap_or(rest.len());
        lines.push(&rest[..end]);
        if end == rest.len() {
            break;
        }
        rest = &rest[end + 2..];
    }
    let first: Vec<_> = lines[0].split(|b| *b == b' ').collect();
    let [method, target, b"HTTP/1.1"] = first[..] else { return None };
    let tchar = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let uchar = |b: &u8| (0x21..=0x7e).contains(b) && !b"\"#<>".contains(b);
    let target_fits = (target == b"*" && method == b"OPTIONS") || (target.first() == Some(&b'/') && target.iter().all(uchar));
    if method.is_empty() || !method.iter().all(tchar) || !target_fits {
        return None;
    }
    let mut fields = Vec::new();
    for line in &lines[1..] {
        let colon = line.windows(2).position(|w| w == b": ")?;
        let (name, value) = (&line[..colon], &line[colon + 2..]);
        let name_fits = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(b);
        let vchar = |b: &u8| (0x21..=0x7e).contains(b) || *b >= 0x80;
        let ends = [value.first(), value.last()].into_iter().flatten().all(vchar);
        if name.is_empty() || !name.iter().all(name_fits) || !ends || !value.iter().all(|b| vchar(b) || b" \t".contains(b)) {
            return None;
        }
        fields.push((String::from_utf8(name.to_vec()).unwrap(), value.to_vec()));
    }
    let of = |name: &str| fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect::<Vec<_>>();
    let hosts = of("host");
    let host_fits = hosts.len() == 1
        && fields[0].0 == "host"
        && !hosts[0].is_empty()
        && hosts[0].iter().all(|b| b.is_ascii_alphanumeric() || b"-._~:[]".contains(b));
    let lengths = of("content-length");
    let length_fits = lengths.len() <= 1
        && lengths.iter().all(|l| l == b"0" || (l.iter().all(u8::is_ascii_digit) && !l.starts_with(b"0") && !l.is_empty()));
    let upgrade_fits = match (of("connection").as_slice(), of("upgrade").as_slice()) {
        ([], []) => true,
        ([connection], [upgrade]) => connection == b"Upgrade" && upgrade == b"websocket" && lengths.is_empty(),
        _ => false,
    };
    let none = ["transfer-encoding", "te", "trailer", "expect", "keep-alive"].iter().all(|name| of(name).is_empty());
    (host_fits && length_fits && upgrade_fits && none).then_some(fields)
}
