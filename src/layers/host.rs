//! One truth for the host, and only hosts that are served here.
//!
//! Threat: exposure and smuggling. Caches, routers and Rails' links follow the host, so two hosts in one request are two readings
//! (RFC 9112 §3.2.2, RFC 9113 §8.3.1; rules T2, T3): 400 and the connection is closed. A host that is not served learns nothing:
//! 421 (RFC 9110 §15.5.20), the connection stays. Stands before everything that reads a path.
//!
//! Behind this layer `Host` stands exactly once and is well-formed, whatever version the request came in.

use std::{
    collections::HashMap,
    sync::Arc,
    task::{Context, Poll},
};

use foldhash::fast::RandomState;
use http::{HeaderMap, HeaderValue, Request, Response, Version, header::HOST, request::Parts, uri::Scheme};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    authority::Authority,
    outcome::Decided,
    target_view::{self, Absolute},
};
use crate::{
    accept::client::Client,
    guard::rule::Rule,
    http::{arrival::Arrival, spare},
    refusal::Refusal,
    units::OneOrMany,
};

/// `[host]` in `proxy.toml`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Names that are served, from `domains`; `*.example.com` stands for one label. Default: none, which means any name.
    ///
    /// Memory: about 100 bytes a name.
    #[serde(skip)]
    pub domains: OneOrMany<String>,
    /// Networks whose addresses may stand as the host, for health checks by address. Default: none.
    #[schemars(with = "OneOrMany<crate::config::schema::Network>")]
    pub addresses: OneOrMany<IpNet>,
    /// The host of an HTTP/1.0 request that names none. Default: none: `localhost` as Puma would have it where any name is
    /// served, else 421.
    pub default: Option<String>,
    /// Refuse a host that the certificate of the handshake does not name. Default: false.
    pub strict_sni: bool,
}

/// Makes [`Host`].
#[derive(Clone, Debug)]
pub struct HostLayer {
    served: Arc<Served>,
}

impl HostLayer {
    /// From the configuration, and the names of each certificate for `strict_sni`.
    pub fn new(config: Config, certificates: &[Vec<String>]) -> Self {
        let default = match config.default.as_deref().map(HeaderValue::from_str) {
            Some(Ok(value)) => Some(value),
            Some(Err(_)) | None => config.domains.0.is_empty().then(|| HeaderValue::from_static("localhost")),
        };
        let numbered = certificates.iter().enumerate().flat_map(|(number, names)| names.iter().map(move |name| (name.as_str(), number)));
        let served = Served {
            any: config.domains.0.is_empty(),
            names: Names::new(config.domains.0.iter().map(|name| (name.as_str(), 0))),
            addresses: config.addresses.0,
            default,
            certificates: config.strict_sni.then(|| Names::new(numbered)),
        };
        HostLayer { served: Arc::new(served) }
    }
}

impl<S> Layer<S> for HostLayer {
    type Service = Host<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Host { inner, served: Arc::clone(&self.served) }
    }
}

/// Refuses what has no host, two hosts or a foreign one.
#[derive(Clone, Debug)]
pub struct Host<S> {
    inner: S,
    served: Arc<Served>,
}

impl<S, B, R> Service<Request<B>> for Host<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Refusal>,
{
    type Response = Response<R>;
    type Error = Refusal;
    type Future = Decided<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        match self.served.settle(&mut head) {
            Ok(()) => Decided::Passed { inner: self.inner.call(Request::from_parts(head, body)) },
            Err(refusal) => Decided::Refused { refusal },
        }
    }
}

/// What is served, ready for look-ups.
#[derive(Debug)]
struct Served {
    any: bool,
    names: Names,
    addresses: Vec<IpNet>,
    default: Option<HeaderValue>,
    certificates: Option<Names>,
}

/// Names and wildcards, each with a number.
#[derive(Debug)]
struct Names {
    exact: HashMap<Box<str>, usize, RandomState>,
    below: HashMap<Box<str>, usize, RandomState>,
}

impl Names {
    fn new<'a>(names: impl Iterator<Item = (&'a str, usize)>) -> Self {
        let mut all = Names { exact: HashMap::default(), below: HashMap::default() };
        for (name, number) in names {
            match name.strip_prefix("*.") {
                Some(parent) => all.below.insert(lower(parent), number),
                None => all.exact.insert(lower(name), number),
            };
        }
        all
    }

    /// The number of a name in lower case: its own, or that of the wildcard for its first label (RFC 9525 §6.3).
    fn find(&self, name: &str) -> Option<usize> {
        let below = || name.split_once('.').and_then(|(_, parent)| self.below.get(parent));
        self.exact.get(name).or_else(below).copied()
    }
}

impl Served {
    /// Leaves exactly one well-formed and served `Host`, or refuses.
    fn settle(&self, head: &mut Parts) -> Result<(), Refusal> {
        let arrival = head.extensions.get::<Arrival>().ok_or(Refusal::Internal)?;
        if head.version == Version::HTTP_2 && head.uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
            return Err(Refusal::BadTarget(Rule::T3));
        }
        let rewritten = match target_view::absolute(&arrival.target) {
            Some(absolute) => Some(from_absolute(absolute, &head.headers, &arrival.client)?),
            None => match head.uri.authority().filter(|_| head.version == Version::HTTP_2) {
                Some(authority) => Some(from_pseudo(authority.as_str().as_bytes(), &head.headers, &arrival.client)?),
                None => self.of_field(head.version, &head.headers)?,
            },
        };
        let value = match &rewritten {
            Some(value) => value,
            None => head.headers.get(HOST).ok_or(Refusal::BadHost(Rule::T3))?,
        };
        let authority = Authority::parse(value.as_bytes()).ok_or(Refusal::BadHost(Rule::T3))?;
        if !self.serves(&authority) || !self.agrees(&authority, &arrival.client) {
            return Err(Refusal::UnknownHost);
        }
        if let Some(value) = rewritten {
            head.headers.insert(HOST, value);
        }
        Ok(())
    }

    /// The field itself, which must stand once; HTTP/1.0 may go without.
    fn of_field(&self, version: Version, headers: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
        match headers.get_all(HOST).iter().count() {
            0 if version > Version::HTTP_10 => Err(Refusal::BadHost(Rule::T3)),
            0 => self.default.clone().map(Some).ok_or(Refusal::UnknownHost),
            1 => Ok(None),
            _ => Err(Refusal::BadHost(Rule::T3)),
        }
    }

    fn serves(&self, authority: &Authority<'_>) -> bool {
        if self.any {
            return true;
        }
        if !self.addresses.is_empty()
            && let Some(address) = authority.address()
            && self.addresses.iter().any(|network| network.contains(&address))
        {
            return true;
        }
        with_lower(authority.host(), |host| self.names.find(host).is_some())
    }

    /// Under `strict_sni` the host and the name of the handshake must belong to one certificate.
    fn agrees(&self, authority: &Authority<'_>, client: &Client) -> bool {
        let (Some(certificates), Some(name)) = (&self.certificates, client.server_name.as_deref()) else {
            return true;
        };
        with_lower(authority.host(), |host| host == name || certificates.find(host).is_some_and(|c| certificates.find(name) == Some(c)))
    }
}

/// RFC 9112 §3.2.2: the authority of an absolute-form wins. We ask that Host, where it stands, says the same.
fn from_absolute(absolute: Absolute<'_>, headers: &HeaderMap, client: &Client) -> Result<HeaderValue, Refusal> {
    if !absolute.scheme.eq_ignore_ascii_case(b"http") && !absolute.scheme.eq_ignore_ascii_case(b"https") {
        return Err(Refusal::BadTarget(Rule::T2));
    }
    agreed(absolute.authority, headers, client, Rule::T2)
}

/// RFC 9113 §8.3.1: `:authority` stands for Host.
fn from_pseudo(authority: &[u8], headers: &HeaderMap, client: &Client) -> Result<HeaderValue, Refusal> {
    agreed(authority, headers, client, Rule::T3)
}

fn agreed(authority: &[u8], headers: &HeaderMap, client: &Client, rule: Rule) -> Result<HeaderValue, Refusal> {
    let parsed = Authority::parse(authority).ok_or(Refusal::BadHost(rule))?;
    let mut fields = headers.get_all(HOST).iter();
    if let Some(field) = fields.next() {
        let same = Authority::parse(field.as_bytes()).is_some_and(|host| host.same(&parsed, client.scheme));
        if !same || fields.next().is_some() {
            return Err(Refusal::BadHost(rule));
        }
    }
    HeaderValue::from_maybe_shared(spare::cut(authority)).map_err(|_| Refusal::BadHost(rule))
}

fn lower(name: &str) -> Box<str> {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase().into_boxed_str()
}

/// Calls `f` with the name in lower case, without memory where it is that already.
fn with_lower<T>(name: &str, f: impl FnOnce(&str) -> T) -> T {
    if !name.bytes().any(|b| b.is_ascii_uppercase()) {
        return f(name);
    }
    f(&name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::{super::fixture, *};
    use crate::accept::client;

    fn served(domains: &[&str]) -> HostLayer {
        HostLayer::new(
            Config {
                domains: OneOrMany(domains.iter().map(|d| d.to_string()).collect()),
                addresses: OneOrMany(vec!["10.0.0.0/8".parse().unwrap()]),
                ..Config::default()
            },
            &[],
        )
    }

    fn settle(layer: &HostLayer, target: &str, hosts: &[&str]) -> Result<String, Refusal> {
        let mut request = fixture::arrived(target).body(()).unwrap();
        for host in hosts {
            request.headers_mut().append(HOST, host.parse().unwrap());
        }
        settled(layer, request)
    }

    fn settled(layer: &HostLayer, request: Request<()>) -> Result<String, Refusal> {
        let mut head = request.into_parts().0;
        layer.served.settle(&mut head)?;
        assert_eq!(head.headers.get_all(HOST).iter().count(), 1);
        Ok(head.headers[HOST].to_str().unwrap().to_owned())
    }

    #[test]
    fn a_host_is_compared_without_case_port_and_root_dot_and_passed_on_as_sent() {
        let shop = served(&["shop.example", "*.cdn.example"]);
        for host in ["shop.example", "SHOP.Example:8080", "shop.example.", "a.cdn.example", "10.1.2.3:9292"] {
            assert_eq!(settle(&shop, "/", &[host]).unwrap(), host);
        }
        for host in ["evil.example", "cdn.example", "a.b.cdn.example", "192.0.2.1", "xshop.example"] {
            assert_eq!(settle(&shop, "/", &[host]), Err(Refusal::UnknownHost), "{host}");
        }
        assert_eq!(settle(&served(&[]), "/", &["my_app.lab.example"]).unwrap(), "my_app.lab.example");
    }

    #[test]
    fn the_authority_of_an_absolute_form_is_the_host_and_must_agree_with_it() {
        let any = served(&[]);
        assert_eq!(settle(&any, "http://shop.example:80/a", &["shop.example"]).unwrap(), "shop.example:80");
        assert_eq!(settle(&any, "http://shop.example", &[]).unwrap(), "shop.example");
        assert_eq!(settle(&any, "http://shop.example/", &["evil.example"]), Err(Refusal::BadHost(Rule::T2)));
        for bad in ["http:///a", "http://u@shop.example/", "http://a:b/", "http://a,b/"] {
            assert_eq!(settle(&any, bad, &["shop.example"]), Err(Refusal::BadHost(Rule::T2)), "{bad}");
        }
        for bad in ["file:///etc/passwd", "evil://shop.example/", "://shop.example/"] {
            assert_eq!(settle(&any, bad, &["shop.example"]), Err(Refusal::BadTarget(Rule::T2)), "{bad}");
        }
    }

    #[test]
    fn authority_and_host_of_http_2_must_agree() {
        let any = served(&[]);
        let two = |host: Option<&str>| {
            let mut builder = fixture::arrived("/").version(Version::HTTP_2).uri("http://shop.example/");
            if let Some(host) = host {
                builder = builder.header(HOST, host);
            }
            settled(&any, builder.body(()).unwrap())
        };
        assert_eq!(two(None).unwrap(), "shop.example");
        assert_eq!(two(Some("shop.example")).unwrap(), "shop.example");
        assert_eq!(two(Some("evil.example")), Err(Refusal::BadHost(Rule::T3)));
        let odd = fixture::arrived("/").version(Version::HTTP_2).uri("evil://shop.example/").body(()).unwrap();
        assert_eq!(settled(&any, odd), Err(Refusal::BadTarget(Rule::T3)));
    }

    #[test]
    fn two_hosts_are_refused_and_none_is_for_http_1_0_where_any_name_is_served() {
        assert_eq!(settle(&served(&[]), "/", &["a", "a"]), Err(Refusal::BadHost(Rule::T3)));
        assert_eq!(settle(&served(&[]), "/", &["a,b"]), Err(Refusal::BadHost(Rule::T3)));
        assert_eq!(settle(&served(&[]), "/", &[]), Err(Refusal::BadHost(Rule::T3)));
        let old = || fixture::arrived("/").version(Version::HTTP_10).body(()).unwrap();
        assert_eq!(settled(&served(&[]), old()).unwrap(), "localhost");
        assert_eq!(settled(&served(&["shop.example"]), old()), Err(Refusal::UnknownHost));
    }

    #[test]
    fn under_strict_sni_the_host_belongs_to_the_certificate_of_the_handshake() {
        let config = Config { strict_sni: true, ..Config::default() };
        let layer = HostLayer::new(config, &[vec!["a.example".into(), "*.a.example".into()], vec!["b.example".into()]]);
        let with = |host: &str| {
            let client = Client { server_name: Some("a.example".into()), scheme: client::Scheme::Https, ..Client::local() };
            settled(&layer, fixture::from("/", client).header(HOST, host).body(()).unwrap())
        };
        assert!(with("A.example").is_ok());
        assert!(with("www.a.example").is_ok());
        assert_eq!(with("b.example"), Err(Refusal::UnknownHost));
    }
}
