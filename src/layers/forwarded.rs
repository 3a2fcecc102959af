//! One truth about the client: its whole family of forwarding fields is taken away, then ours are set.
//!
//! Threat: exposure. Rack and Puma believe a dozen fields about address, scheme and host of anybody who sends them
//! (CVE-2026-32762, httpoxy, CVE-2025-61780; rule T8, RFC 7239). Nothing is refused. Stands behind `normalize`: hop-by-hop fields
//! must be gone before ours are set, or `Connection: X-Forwarded-For` would strip them.

use std::{
    fmt::Write,
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header::HOST, request::Parts};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use tower_layer::Layer;
use tower_service::Service;

use super::{client_address::TrustedProxies, field_policy::is_trust};
use crate::{
    accept::client::{Client, Scheme},
    guard::rule::Rule,
    http::arrival::Arrival,
    refusal::Refusal,
    units::OneOrMany,
};

/// `[forwarded]` in `proxy.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// X-Forwarded-For: `replace` with the one address of the client, or `append` to a trusted peer's list. Default: replace.
    pub mode: ForwardedFor,
    /// Whether clients may send X-HTTP-Method-Override. Default: false, as it turns a checked POST into an unchecked DELETE.
    pub method_override: bool,
    /// Further fields to take away from every client. Default: none.
    pub strip: OneOrMany<String>,
}

/// What becomes of X-Forwarded-For.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ForwardedFor {
    /// The client's address and nothing else.
    #[default]
    Replace,
    /// A trusted peer's list with the peer behind it; from anybody else as `replace`.
    Append,
}

/// Makes [`Forwarded`].
#[derive(Clone, Debug)]
pub struct ForwardedLayer {
    rules: Arc<Rules>,
}

impl ForwardedLayer {
    /// From the configuration and `trusted_proxies`.
    pub fn new(config: Config, trusted: TrustedProxies) -> Self {
        let mut strip: Vec<HeaderName> = config.strip.0.iter().filter_map(|name| name.parse().ok()).collect();
        if !config.method_override {
            strip.extend(METHOD_OVERRIDE);
        }
        ForwardedLayer { rules: Arc::new(Rules { mode: config.mode, strip, trusted }) }
    }
}

impl<S> Layer<S> for ForwardedLayer {
    type Service = Forwarded<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Forwarded { inner, rules: Arc::clone(&self.rules) }
    }
}

/// Writes what the application may believe about its client.
#[derive(Clone, Debug)]
pub struct Forwarded<S> {
    inner: S,
    rules: Arc<Rules>,
}

impl<S, B, R> Service<Request<B>> for Forwarded<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Refusal>,
{
    type Response = Response<R>;
    type Error = Refusal;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        self.rules.replace(&mut head);
        self.inner.call(Request::from_parts(head, body))
    }
}

#[derive(Debug)]
struct Rules {
    mode: ForwardedFor,
    strip: Vec<HeaderName>,
    trusted: TrustedProxies,
}

impl Rules {
    fn replace(&self, head: &mut Parts) {
        let Some(arrival) = head.extensions.get::<Arrival>() else {
            self.clear(&mut head.headers);
            return;
        };
        let client = &arrival.client;
        if !client.trusted {
            if self.clear(&mut head.headers) {
                arrival.notes.observe(Rule::T8);
            }
            // The same for every request of the connection: `canonical` writes it as it is, and the host beside it.
            client.family.get_or_init(|| family(client));
            arrival.notes.is_direct();
            return;
        }
        let address = self.trusted.client(client, &head.headers);
        let list = self.list(client, address, &head.headers);
        let (proto, port) = scheme_and_port(client, &head.headers);
        self.clear(&mut head.headers);
        if address != client.ip {
            arrival.notes.attribute(address);
        }
        let address = text_of(address);
        let headers = &mut head.headers;
        if let Some(host) = headers.get(HOST).cloned() {
            headers.insert(X_FORWARDED_HOST, host);
        }
        headers.insert(X_FORWARDED_FOR, list.unwrap_or_else(|| address.clone()));
        headers.insert(X_REAL_IP, address);
        headers.insert(X_FORWARDED_PROTO, proto);
        headers.insert(X_FORWARDED_PORT, port);
    }

    /// The list of a trusted peer with the peer behind it; `None` where the client's address alone is the truth.
    fn list(&self, client: &Client, address: IpAddr, headers: &HeaderMap) -> Option<HeaderValue> {
        if self.mode == ForwardedFor::Replace || !client.trusted || address == client.ip {
            return None;
        }
        let mut list = BytesMut::new();
        for line in headers.get_all(X_FORWARDED_FOR) {
            list.extend_from_slice(line.as_bytes());
            list.extend_from_slice(b", ");
        }
        write!(list, "{}", client.ip).ok()?;
        HeaderValue::from_maybe_shared(list.freeze()).ok()
    }

    /// Takes the whole family away; true when there was any of it.
    fn clear(&self, headers: &mut HeaderMap) -> bool {
        let forbidden = |name: &&HeaderName| is_trust(name.as_str().as_bytes()) || self.strip.contains(name);
        let names: SmallVec<[HeaderName; 8]> = headers.keys().filter(forbidden).cloned().collect();
        for name in &names {
            headers.remove(name);
        }
        !names.is_empty()
    }
}

/// The family of a client for whom nobody speaks, but for the host, which is each request's own.
fn family(client: &Client) -> Bytes {
    let (proto, port) = scheme_and_port(client, &HeaderMap::new());
    let address = text_of(client.ip);
    let mut lines = Vec::with_capacity(LONGEST_FAMILY);
    for (name, value) in [(X_FORWARDED_FOR, &address), (X_REAL_IP, &address), (X_FORWARDED_PROTO, &proto), (X_FORWARDED_PORT, &port)] {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            lines.extend_from_slice(part);
        }
    }
    Bytes::from(lines.into_boxed_slice())
}

/// The connection's scheme and port, or what a trusted peer says that the client used.
fn scheme_and_port(client: &Client, headers: &HeaderMap) -> (HeaderValue, HeaderValue) {
    let said = headers.get(X_FORWARDED_PROTO).filter(|_| client.trusted).map(HeaderValue::as_bytes);
    let said = match said {
        Some(b"https") => Some(Scheme::Https),
        Some(b"http") => Some(Scheme::Http),
        Some(_) | None => None,
    };
    let port = match said {
        None => client.local_port,
        Some(scheme) => {
            let port = headers.get(X_FORWARDED_PORT).and_then(|port| port.to_str().ok()?.parse().ok());
            port.unwrap_or(default_port(scheme))
        }
    };
    let scheme = said.unwrap_or(client.scheme);
    let proto = match scheme {
        Scheme::Http => HeaderValue::from_static("http"),
        Scheme::Https => HeaderValue::from_static("https"),
    };
    let port = match port {
        0 => default_port(scheme),
        port => port,
    };
    let port = match port {
        80 => HeaderValue::from_static("80"),
        443 => HeaderValue::from_static("443"),
        port => HeaderValue::from(port),
    };
    (proto, port)
}

fn default_port(scheme: Scheme) -> u16 {
    match scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    }
}

/// An address as a value that is shared, not copied, when it is cloned.
fn text_of(address: IpAddr) -> HeaderValue {
    let mut text = BytesMut::with_capacity(LONGEST_ADDRESS);
    let written = write!(text, "{address}").is_ok();
    let text = if written { text.freeze() } else { Bytes::new() };
    HeaderValue::from_maybe_shared(text).unwrap_or(HeaderValue::from_static("unknown"))
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const METHOD_OVERRIDE: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];
const LONGEST_ADDRESS: usize = 45;
const LONGEST_FAMILY: usize = 192;

#[cfg(test)]
mod tests {
    use super::{super::fixture, *};

    fn replaced(config: Config, request: http::request::Builder, fields: &[(&str, &str)]) -> HeaderMap {
        let trusted = TrustedProxies::new(&["10.0.0.0/8".parse().unwrap()]);
        let mut request = request.header("host", "shop.example");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let mut head = request.body(()).unwrap().into_parts().0;
        ForwardedLayer::new(config, trusted).rules.replace(&mut head);
        let arrival = head.extensions.get::<Arrival>().unwrap();
        if let Some(family) = arrival.notes.family(&arrival.client) {
            for line in std::str::from_utf8(family).unwrap().split_terminator("\r\n") {
                let (name, value) = line.split_once(": ").unwrap();
                head.headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            }
        }
        head.headers
    }

    const FORGED: [(&str, &str); 24] = [
        ("forwarded", "for=\"1.1.1.1;host=evil.example\""),
        ("x-forwarded", "6.6.6.6"),
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-port", "6666"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-scheme", "https"),
        ("x-forwarded-ssl", "on"),
        ("x-forwarded-prefix", "/evil"),
        ("x-forwarded-server", "evil"),
        ("x-real-ip", "6.6.6.6"),
        ("client-ip", "6.6.6.6"),
        ("x-client-ip", "6.6.6.6"),
        ("true-client-ip", "6.6.6.6"),
        ("x-cluster-client-ip", "6.6.6.6"),
        ("cf-connecting-ip", "6.6.6.6"),
        ("proxy", "http://evil.example"),
        ("x-original-url", "/evil"),
        ("x-rewrite-url", "/evil"),
        ("x-accel-mapping", "/=/"),
        ("x-sendfile-type", "X-Accel-Redirect"),
        ("x-request-start", "t=1"),
        ("ssl-client-cert", "evil"),
        ("x-http-method-override", "DELETE"),
    ];

    #[test]
    fn nothing_of_a_strangers_family_is_left() {
        let headers = replaced(Config::default(), fixture::arrived("/"), &FORGED);
        let mut list: Vec<_> = headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        list.sort();
        assert_eq!(
            list,
            ["host: shop.example", "x-forwarded-for: 192.0.2.1", "x-forwarded-port: 80", "x-forwarded-proto: http", "x-real-ip: 192.0.2.1",]
        );
    }

    #[test]
    fn a_trusted_peer_speaks_for_its_client() {
        let fields = [("x-forwarded-for", "6.6.6.6, 198.51.100.7"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "evil.example")];
        let headers = replaced(Config::default(), fixture::trusted("/"), &fields);
        assert_eq!(headers["x-forwarded-for"], "198.51.100.7");
        assert_eq!(headers["x-real-ip"], "198.51.100.7");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-port"], "443");
        assert_eq!(headers["x-forwarded-host"], "shop.example");
    }

    #[test]
    fn a_list_is_appended_to_only_for_a_trusted_peer() {
        let append = Config { mode: ForwardedFor::Append, ..Config::default() };
        let fields = [("x-forwarded-for", "6.6.6.6, 198.51.100.7")];
        assert_eq!(replaced(append.clone(), fixture::trusted("/"), &fields)["x-forwarded-for"], "6.6.6.6, 198.51.100.7, 10.0.0.1");
        assert_eq!(replaced(append, fixture::arrived("/"), &fields)["x-forwarded-for"], "192.0.2.1");
    }

    #[test]
    fn the_override_of_the_method_passes_only_where_it_is_asked_for() {
        let allow = Config { method_override: true, ..Config::default() };
        let fields = [("x-http-method-override", "PUT")];
        assert!(replaced(allow, fixture::arrived("/"), &fields).contains_key("x-http-method-override"));
    }
}
