//! Who may open a WebSocket, and how many.
//!
//! Threat: exposure (a page of another site opens a socket with its visitor's cookies: browsers send them, and no other rule of
//! theirs holds it back, RFC 6455 §10.2) and exhaustion (a socket costs two descriptors for as long as it is open). Answer: 403
//! for an origin, 503 for a number; the connection is kept. Stands behind `forwarded`, which knows the client. A place is held
//! until the tunnel has ended; whether its silence or a drain ends it is `http::upgrade`'s affair.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    authority::Authority,
    handshake::Upgrade,
    outcome::{Amend, Amended, Decided},
};
use crate::{
    accept::client::{ClientKey, Scheme},
    http::{arrival::Arrival, upgrade::FarEnd},
    refusal::Refusal,
    units::OneOrMany,
};

/// `[websocket]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Sites whose pages may open a WebSocket, such as `"https://shop.example.com"`; `*` within stands for one label of a host,
    /// and alone for every site. Empty: the request's own host, and `domains`. A client that names no origin is no browser, and
    /// passes. Too wide lets pages of others act as their visitors. Default: empty.
    pub origins: OneOrMany<String>,
    /// Open WebSockets at most; above it 503 `websocket_full`. Memory at worst: two descriptors, and 16 KiB with what the
    /// kernel buffers, for each. Default: 10000.
    pub max: u32,
    /// Open WebSockets of one client at most. Should be below `limits.connections_per_ip`, or a client's sockets leave no
    /// connection for its pages. Too low: an office behind one address gets no more. Default: 50.
    pub max_per_client: u32,
    /// Names that are served, from `domains`.
    #[serde(skip)]
    pub domains: OneOrMany<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config { origins: OneOrMany::default(), max: 10_000, max_per_client: 50, domains: OneOrMany::default() }
    }
}

/// Whether an entry of `origins` can ever match.
pub fn is_origin(entry: &str) -> bool {
    let Some((scheme, host)) = entry.split_once("://") else { return entry == "*" };
    let is_scheme = scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    is_scheme && !scheme.is_empty() && Authority::parse(host.replacen('*', "x", 1).as_bytes()).is_some()
}

/// Open WebSockets, counted over reloads.
#[derive(Debug, Default)]
pub struct Open(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    all: u32,
    by_client: HashMap<ClientKey, u32>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
struct Permit {
    open: Arc<Open>,
    client: ClientKey,
}

/// Makes [`WebSocket`].
#[derive(Clone, Debug)]
pub struct WebSocketLayer {
    rules: Arc<Rules>,
}

/// Judges handshakes; everything else passes.
#[derive(Clone, Debug)]
pub struct WebSocket<S> {
    inner: S,
    rules: Arc<Rules>,
}

#[derive(Debug)]
struct Rules {
    config: Config,
    open: Arc<Open>,
}

impl WebSocketLayer {
    /// From the configuration; `open` outlives it.
    pub fn new(config: Config, open: Arc<Open>) -> Self {
        WebSocketLayer { rules: Arc::new(Rules { config, open }) }
    }
}

impl<S> Layer<S> for WebSocketLayer {
    type Service = WebSocket<S>;

    fn layer(&self, inner: S) -> WebSocket<S> {
        WebSocket { inner, rules: Arc::clone(&self.rules) }
    }
}

impl<S, B, R> Service<Request<B>> for WebSocket<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Refusal>,
{
    type Response = Response<R>;
    type Error = Refusal;
    type Future = Decided<Amended<S::Future, Place>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.rules.judge(&request) {
            Ok(place) => Decided::Passed { inner: Amended::new(self.inner.call(request), place) },
            Err(refusal) => Decided::Refused { refusal },
        }
    }
}

/// What a handshake holds until it is answered, and its tunnel from then on.
#[derive(Debug)]
pub struct Place(Option<Permit>);

impl Amend for Place {
    fn amend<R>(self, outcome: Result<Response<R>, Refusal>) -> Result<Response<R>, Refusal> {
        if let (Some(permit), Ok(answer)) = (self.0, &outcome)
            && answer.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(far) = answer.extensions().get::<FarEnd>()
        {
            far.hold(permit);
        }
        outcome
    }
}

impl Rules {
    fn judge<B>(&self, request: &Request<B>) -> Result<Place, Refusal> {
        if request.extensions().get::<Upgrade>().is_none() {
            return Ok(Place(None));
        }
        let arrival = request.extensions().get::<Arrival>().ok_or(Refusal::Internal)?;
        let headers = request.headers();
        let is_https = arrival.is_https(headers);
        if let Some(origin) = headers.get(header::ORIGIN)
            && !self.config.allows(origin, headers.get(header::HOST), is_https)
        {
            return Err(Refusal::Forbidden);
        }
        let client = ClientKey::of(arrival.notes.client().unwrap_or(arrival.client.ip));
        let permit = self.open.enter(client, self.config.max, self.config.max_per_client);
        permit.map(|permit| Place(Some(permit))).ok_or(Refusal::WebSocketFull)
    }
}

impl Config {
    fn allows(&self, origin: &HeaderValue, host: Option<&HeaderValue>, is_https: bool) -> bool {
        let Ok(origin) = origin.to_str() else { return false };
        if !self.origins.0.is_empty() {
            return self.origins.0.iter().any(|entry| entry == "*" || matches(entry, origin));
        }
        let (scheme, rest) = match origin.split_once("://") {
            Some(("https", rest)) => (Scheme::Https, rest),
            // A page without TLS may be anybody's on the way.
            Some(("http", rest)) if !is_https => (Scheme::Http, rest),
            Some(_) | None => return false,
        };
        let Some(of_page) = Authority::parse(rest.as_bytes()) else { return false };
        let own = host.and_then(|host| Authority::parse(host.as_bytes()));
        own.is_some_and(|own| own.same(&of_page, scheme)) || self.domains.0.iter().any(|name| matches(name, of_page.host()))
    }
}

/// An entry, in which one `*` stands for one label, against what it is about.
fn matches(entry: &str, text: &str) -> bool {
    let Some((before, after)) = entry.split_once('*') else { return entry.eq_ignore_ascii_case(text) };
    let Some(end) = text.len().checked_sub(after.len()).filter(|end| *end > before.len()) else { return false };
    let part = |range| text.get(range).unwrap_or_default();
    let label = part(before.len()..end);
    part(0..before.len()).eq_ignore_ascii_case(before)
        && part(end..text.len()).eq_ignore_ascii_case(after)
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

impl Open {
    fn enter(self: &Arc<Self>, client: ClientKey, most: u32, most_of_client: u32) -> Option<Permit> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = &mut *counts;
        let mine = counts.by_client.get(&client).copied().unwrap_or(0);
        if counts.all >= most || mine >= most_of_client {
            return None;
        }
        counts.all = counts.all.saturating_add(1);
        counts.by_client.insert(client, mine.saturating_add(1));
        Some(Permit { open: Arc::clone(self), client })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.open.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        let left = counts.by_client.get(&self.client).copied().unwrap_or(0).saturating_sub(1);
        match left {
            0 => drop(counts.by_client.remove(&self.client)),
            left => drop(counts.by_client.insert(self.client, left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{super::fixture, *};
    use crate::{accept::client::Client, http::upgrade::Far};

    fn of(origins: &[&str], domains: &[&str]) -> Config {
        let list = |names: &[&str]| OneOrMany(names.iter().map(|name| (*name).to_owned()).collect());
        Config { origins: list(origins), domains: list(domains), ..Config::default() }
    }

    fn layer(config: Config) -> WebSocketLayer {
        WebSocketLayer::new(config, Arc::default())
    }

    fn handshake(origin: Option<&str>, scheme: Scheme) -> Request<()> {
        let mut request = fixture::from("/cable", Client { scheme, ..Client::local() }).header("host", "shop.example").extension(Upgrade);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        request.body(()).unwrap()
    }

    fn judged(config: &Config, origin: &str) -> bool {
        layer(config.clone())
            .rules
            .judge(&handshake(Some(origin), Scheme::Https))
            .map_err(|refusal| assert_eq!(refusal, Refusal::Forbidden))
            .is_ok()
    }

    #[test]
    fn by_default_pages_of_the_own_host_and_of_the_domains_open_sockets() {
        let config = of(&[], &["shop.example", "*.shop.example"]);
        for good in ["https://shop.example", "https://SHOP.example:443", "https://www.shop.example", "https://www.shop.example:8443"] {
            assert!(judged(&config, good), "{good}");
        }
        for bad in ["https://evil.example", "http://shop.example", "null", "", "shop.example", "https://shop.example.evil.example"] {
            assert!(!judged(&config, bad), "{bad}");
        }
        let own = of(&[], &[]);
        assert!(judged(&own, "https://shop.example") && !judged(&own, "https://shop.example:8443"));
        assert!(layer(own.clone()).rules.judge(&handshake(Some("http://shop.example"), Scheme::Http)).is_ok());
        assert!(layer(own).rules.judge(&handshake(None, Scheme::Https)).is_ok(), "no browser");
    }

    #[test]
    fn a_page_without_tls_opens_no_socket_behind_a_peer_that_speaks_of_https() {
        let config = of(&[], &["shop.example"]);
        let through = |proto: &str| {
            let request = fixture::trusted("/cable").header("host", "shop.example").header("x-forwarded-proto", proto);
            let request = request.header("origin", "http://shop.example").extension(Upgrade).body(()).unwrap();
            layer(config.clone()).rules.judge(&request).is_ok()
        };
        assert!(through("http") && !through("https"));
    }

    #[test]
    fn a_list_of_origins_stands_alone() {
        let config = of(&["https://app.example", "https://*.partner.example:8443", "capacitor://localhost"], &["shop.example"]);
        for good in ["https://app.example", "https://a.partner.example:8443", "capacitor://localhost"] {
            assert!(judged(&config, good), "{good}");
        }
        for bad in [
            "https://shop.example",
            "https://partner.example:8443",
            "https://a.b.partner.example:8443",
            "https://a.partner.example",
            "null",
        ] {
            assert!(!judged(&config, bad), "{bad}");
        }
        assert!(judged(&of(&["*"], &[]), "https://evil.example"));
    }

    #[test]
    fn an_entry_that_can_never_match_is_found() {
        for good in ["*", "https://a.example", "https://*.a.example:81", "app://-"] {
            assert!(is_origin(good), "{good}");
        }
        for bad in ["", "a.example", "https://", "https://a/b", "https://*.*.a", "https://a.example/"] {
            assert!(!is_origin(bad), "{bad}");
        }
    }

    #[test]
    fn places_are_counted_by_client_and_in_all_until_the_tunnel_ends() {
        let rules = layer(Config { max: 3, max_per_client: 2, ..Config::default() }).rules;
        let from = |last: u8| {
            let client = Client { ip: [192, 0, 2, last].into(), ..Client::local() };
            rules.judge(&fixture::from("/cable", client).extension(Upgrade).body(()).unwrap())
        };
        let (first, _second, _other) = (from(1).unwrap(), from(1).unwrap(), from(2).unwrap());
        assert_eq!(from(1).unwrap_err(), Refusal::WebSocketFull);
        assert_eq!(from(3).unwrap_err(), Refusal::WebSocketFull);
        let far = FarEnd::new(Far { stream: Box::pin(tokio::io::empty()), early: Bytes::new(), place: Box::new(()) });
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        answer.extensions_mut().insert(far.clone());
        first.amend(Ok(answer)).unwrap();
        assert!(from(3).is_err(), "the tunnel is open");
        drop(far.take());
        assert!(from(3).is_ok());
    }

    #[test]
    fn a_handshake_that_is_not_answered_by_a_101_gives_its_place_back() {
        let rules = layer(Config { max: 1, ..Config::default() }).rules;
        let place = rules.judge(&handshake(None, Scheme::Https)).unwrap();
        place.amend(Ok(Response::new(()))).unwrap();
        assert!(rules.judge(&handshake(None, Scheme::Https)).is_ok());
        assert_eq!(rules.open.0.lock().unwrap().by_client.len(), 0);
    }

    #[test]
    fn other_requests_pass_without_a_look() {
        let rules = layer(Config { max: 0, ..Config::default() }).rules;
        let request = fixture::arrived("/").header("origin", "https://evil.example").body(()).unwrap();
        assert!(rules.judge(&request).unwrap().0.is_none());
    }
}
