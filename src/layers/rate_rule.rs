//! A rate limit as the configuration writes it: what it matches and by which key it counts.

use std::{fmt, num::NonZeroU32, str::FromStr, time::Duration};

use http::{HeaderName, Request, header};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{authority::Authority, target_view};
use crate::units::{Mode, OneOrMany, Rate};

/// One `[[rate_limit]]` in `proxy.toml`. Every rule that matches counts; the first that is exceeded refuses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// The name in logs, metrics and the RateLimit fields: letters, digits, `-` and `_`.
    pub name: Name,
    /// Which requests count. Default: all.
    #[serde(rename = "match", default)]
    pub matches: Match,
    /// What is counted by, together. Default: `ip`. A request that lacks a header or cookie of the key is not counted.
    #[serde(default = "by_ip")]
    pub key: OneOrMany<KeyPart>,
    /// How many requests in how long, such as `10/min`.
    pub rate: Rate,
    /// How many may come at once. Default: what comes in a second at `rate`, at least 1.
    #[serde(default)]
    pub burst: Option<NonZeroU32>,
    /// What one request counts. Default: 1.
    #[serde(default = "one")]
    pub cost: NonZeroU32,
    /// `enforce`, `observe` or `off`. Default: enforce.
    #[serde(default)]
    pub mode: Mode,
    /// Networks that are not counted. Default: none.
    #[serde(default)]
    #[schemars(with = "OneOrMany<crate::config::schema::Network>")]
    pub allow: OneOrMany<IpNet>,
    /// Whether answers carry RateLimit and RateLimit-Policy. Default: true.
    #[serde(default = "yes")]
    pub fields: bool,
    /// Keys that are remembered; the stalest is forgotten. Memory: 17 bytes each, allocated at start. Default: 65536.
    #[serde(default = "keys")]
    pub keys: usize,
}

impl RuleConfig {
    /// The rule that holds where none is configured: 100 requests a second for each client, 500 at once.
    ///
    /// Generous: a page of an application without a CDN has some dozens of files, and many people sit behind one address. Still
    /// one client cannot take more than a share of what a usual Puma (10 threads, 25 ms) gives. Loopback is not counted: there
    /// another proxy speaks for everybody.
    pub fn defaults() -> Vec<RuleConfig> {
        let loopback = [
            IpNet::from(ipnet::Ipv4Net::new_assert([127, 0, 0, 0].into(), 8)),
            IpNet::from(std::net::IpAddr::from(std::net::Ipv6Addr::LOCALHOST)),
        ];
        vec![RuleConfig {
            name: Name("client".into()),
            matches: Match::default(),
            key: by_ip(),
            rate: Rate { count: NonZeroU32::MIN.saturating_add(99), period: Duration::from_secs(1) },
            burst: NonZeroU32::new(500),
            cost: one(),
            mode: Mode::Enforce,
            allow: OneOrMany(loopback.to_vec()),
            fields: false,
            keys: keys(),
        }]
    }

    /// The bucket's size: never below what one request costs.
    pub fn bucket(&self) -> NonZeroU32 {
        let seconds = u32::try_from(self.rate.period.as_secs()).unwrap_or(u32::MAX);
        let a_second = NonZeroU32::new(self.rate.count.get().checked_div(seconds).unwrap_or(0)).unwrap_or(NonZeroU32::MIN);
        self.burst.unwrap_or(a_second).max(self.cost)
    }
}

/// The name of a rule, safe in a header field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Name(Box<str>);

impl Name {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let fits = matches!(text.len(), 1..=64) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        fits.then(|| Name(text.into_boxed_str())).ok_or_else(|| D::Error::custom("expected a name of 1 to 64 letters, digits, - and _"))
    }
}

/// Which requests a rule is about; an empty list stands for all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// Methods, in capitals.
    pub method: OneOrMany<String>,
    /// Paths, each with all below it (`/session` is also `/session/new` and `/session.json`), or patterns with `*`.
    pub path: OneOrMany<String>,
    /// Hosts, without port.
    pub host: OneOrMany<String>,
}

impl Match {
    /// The number of the path that matches, 0 where every path does; `None` where the rule is not about this request.
    /// `path` is the path as the application understands it.
    pub fn route<B>(&self, request: &Request<B>, path: &[u8]) -> Option<usize> {
        let method = request.method().as_str();
        if !self.method.0.is_empty() && !self.method.0.iter().any(|m| m == method) {
            return None;
        }
        if !self.host.0.is_empty() {
            let host = host(request)?;
            self.host.0.iter().find(|wanted| wanted.eq_ignore_ascii_case(host))?;
        }
        if self.path.0.is_empty() {
            return Some(0);
        }
        self.path.0.iter().position(|pattern| path_matches(pattern.as_bytes(), path))
    }
}

/// The host that a request is for, before or behind the layer that settles it.
pub fn host<B>(request: &Request<B>) -> Option<&str> {
    let arrival = request.extensions().get::<crate::http::arrival::Arrival>()?;
    let authority = match target_view::absolute(&arrival.target) {
        Some(absolute) => absolute.authority,
        None => match request.uri().authority() {
            Some(authority) => authority.as_str().as_bytes(),
            None => request.headers().get(header::HOST)?.as_bytes(),
        },
    };
    Authority::parse(authority).map(|authority| authority.host())
}

/// A path with all below it, or a pattern in which `*` stands for any bytes.
fn path_matches(pattern: &[u8], path: &[u8]) -> bool {
    if !pattern.contains(&b'*') {
        let below = |rest: &[u8]| rest.first().is_none_or(|b| matches!(b, b'/' | b'.' | b';')) || pattern.ends_with(b"/");
        return path.strip_prefix(pattern).is_some_and(below);
    }
    let mut pieces = pattern.split(|b| *b == b'*');
    let Some(mut rest) = path.strip_prefix(pieces.next().unwrap_or_default()) else {
        return false;
    };
    let last = pieces.next_back().unwrap_or_default();
    for piece in pieces {
        let Some(at) = memchr::memmem::find(rest, piece) else {
            return false;
        };
        rest = rest.get(at.saturating_add(piece.len())..).unwrap_or_default();
    }
    rest.ends_with(last)
}

/// A part of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPart {
    /// `ip`: the client's address, for IPv6 its /64.
    Ip,
    /// `ip_prefix`: the client's network, /24 or /48.
    IpPrefix,
    /// `header:NAME`.
    Header(HeaderName),
    /// `cookie:NAME`.
    Cookie(Box<str>),
    /// `host`.
    Host,
    /// `method`.
    Method,
    /// `route`: which of the rule's paths matched.
    Route,
}

impl FromStr for KeyPart {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = "expected ip, ip_prefix, header:NAME, cookie:NAME, host, method or route";
        match text.split_once(':') {
            None => match text {
                "ip" => Ok(KeyPart::Ip),
                "ip_prefix" => Ok(KeyPart::IpPrefix),
                "host" => Ok(KeyPart::Host),
                "method" => Ok(KeyPart::Method),
                "route" => Ok(KeyPart::Route),
                _ => Err(unknown),
            },
            Some(("header", name)) => name.parse().map(KeyPart::Header).map_err(|_| unknown),
            Some(("cookie", name)) if !name.is_empty() => Ok(KeyPart::Cookie(name.into())),
            Some(_) => Err(unknown),
        }
    }
}

impl fmt::Display for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyPart::Ip => f.write_str("ip"),
            KeyPart::IpPrefix => f.write_str("ip_prefix"),
            KeyPart::Header(name) => write!(f, "header:{name}"),
            KeyPart::Cookie(name) => write!(f, "cookie:{name}"),
            KeyPart::Host => f.write_str("host"),
            KeyPart::Method => f.write_str("method"),
            KeyPart::Route => f.write_str("route"),
        }
    }
}

impl Serialize for KeyPart {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyPart {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

fn by_ip() -> OneOrMany<KeyPart> {
    OneOrMany(vec![KeyPart::Ip])
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

fn yes() -> bool {
    true
}

fn keys() -> usize {
    65_536
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stands_for_all_below_it() {
        for path in ["/session", "/session/new", "/session.json", "/session;x"] {
            assert!(path_matches(b"/session", path.as_bytes()), "{path}");
        }
        assert!(!path_matches(b"/session", b"/sessions"));
        assert!(path_matches(b"/", b"/any"));
        assert!(path_matches(b"/admin/", b"/admin/x"));
    }

    #[test]
    fn an_asterisk_stands_for_any_bytes() {
        assert!(path_matches(b"/users/*/edit", b"/users/7/edit"));
        assert!(path_matches(b"*.json", b"/a/b.json"));
        assert!(path_matches(b"/a*b*c", b"/a-b-b-c"));
        assert!(!path_matches(b"/users/*/edit", b"/users/7/edits"));
        assert!(!path_matches(b"/ab*ba", b"/aba"));
    }

    #[test]
    fn a_rule_reads_what_the_documentation_shows() {
        let rule: RuleConfig = figment::Figment::from(figment::providers::Serialized::defaults(serde_json::json!({
            "name": "login", "match": { "method": "POST", "path": "/session" }, "key": ["ip_prefix", "cookie:cart", "header:X-Api-Key"],
            "rate": "10/min", "burst": 5, "mode": "observe",
        })))
        .extract()
        .unwrap();
        assert_eq!((rule.bucket().get(), rule.mode, rule.keys), (5, Mode::Observe, 65_536));
        assert_eq!(rule.key.0[2].to_string(), "header:x-api-key");
        assert!("body:email".parse::<KeyPart>().is_err());
    }
}
