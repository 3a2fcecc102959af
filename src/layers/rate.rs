//! How often a client may come: rules in order, each a bucket for each key (GCRA).
//!
//! Threat: exhaustion, and guessing of passwords. No byte of a body has been read. Answer: 429 with Retry-After (RFC 6585 §4), the
//! connection stays; all answers, the 429 too, carry RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-10). Stands
//! behind `ban`, before everything that costs more. Memory is fixed at start: see `rate_table`.

use std::{
    hash::{BuildHasher, Hash, Hasher, RandomState},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, QuantaClock},
    middleware::StateInformationMiddleware,
};
use http::{HeaderName, HeaderValue, Request, Response, header::COOKIE};
use ipnet::IpNet;
use tower_layer::Layer;
use tower_service::Service;

pub use super::rate_rule::RuleConfig;
use super::{
    client_address::TrustedProxies,
    outcome::{Amend, Amended, Decided},
    rate_index::Index,
    rate_rule::{KeyPart, Match, host},
    rate_table::Table,
    target_view,
};
use crate::{accept::client::ClientKey, http::arrival::Arrival, refusal::Refusal, units::Mode};

/// The books of all rules; the layer and the administration share them.
#[derive(Debug)]
pub struct Limits {
    rules: Vec<Rule>,
    trusted: TrustedProxies,
    secret: RandomState,
    index: Index,
}

/// What the administration shows of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its mode now.
    pub mode: Mode,
    /// Requests that passed.
    pub passed: u64,
    /// Requests that were refused, or would have been in mode `enforce`.
    pub limited: u64,
    /// Keys that are remembered.
    pub keys: usize,
}

#[derive(Debug)]
struct Rule {
    name: Arc<str>,
    matches: Match,
    key: Vec<KeyPart>,
    cost: std::num::NonZeroU32,
    allow: Vec<IpNet>,
    mode: AtomicU8,
    table: Table,
    buckets: RateLimiter<u64, Table, QuantaClock, StateInformationMiddleware>,
    interval: Duration,
    burst: u32,
    policy: Option<HeaderValue>,
    passed: AtomicU64,
    limited: AtomicU64,
}

impl Limits {
    /// From the configuration and `trusted_proxies`.
    pub fn new(rules: Vec<RuleConfig>, trusted: TrustedProxies) -> Self {
        let index = Index::new(rules.iter().map(|rule| rule.matches.path.0.as_slice()));
        Limits { rules: rules.into_iter().map(Rule::new).collect(), trusted, secret: RandomState::new(), index }
    }

    /// One line for each rule, in order.
    pub fn report(&self) -> impl Iterator<Item = Report<'_>> {
        self.rules.iter().map(|rule| Report {
            name: &rule.name,
            mode: rule.mode(),
            passed: rule.passed.load(Relaxed),
            limited: rule.limited.load(Relaxed),
            keys: rule.table.held(),
        })
    }

    /// Sets the mode of a rule while running; false when there is none of this name.
    pub fn set_mode(&self, name: &str, mode: Mode) -> bool {
        let rule = self.rules.iter().find(|rule| *rule.name == *name);
        if let Some(rule) = rule {
            rule.mode.store(as_number(mode), Relaxed);
        }
        rule.is_some()
    }

    /// Counts a request by every rule that matches; the fields for its answer, or the refusal.
    fn check<B>(&self, request: &Request<B>) -> Result<Fields, Refusal> {
        let mut fields = Fields::default();
        if self.rules.is_empty() {
            return Ok(fields);
        }
        let arrival = request.extensions().get::<Arrival>().ok_or(Refusal::Internal)?;
        let client = self.trusted.client(&arrival.client, request.headers());
        let path = self.index.reads_paths().then(|| target_view::understood(&arrival.target));
        let path = path.as_deref().unwrap_or_default();
        for rule in self.index.candidates(path).filter_map(|number| self.rules.get(number)) {
            let mode = rule.mode();
            if mode == Mode::Off || rule.allow.iter().any(|network| network.contains(&client)) {
                continue;
            }
            let Some(route) = rule.matches.route(request, path) else {
                continue;
            };
            let Some(key) = self.key(&rule.key, request, client, route) else {
                continue;
            };
            match rule.buckets.check_key_n(&key, rule.cost) {
                Ok(Ok(snapshot)) => {
                    rule.passed.fetch_add(1, Relaxed);
                    if let Some(policy) = &rule.policy {
                        fields.note(rule, policy, snapshot.remaining_burst_capacity());
                    }
                }
                Ok(Err(until)) => {
                    rule.limited.fetch_add(1, Relaxed);
                    arrival.notes.limited_by(&rule.name);
                    if mode == Mode::Enforce {
                        let wait = until.wait_time_from(rule.buckets.clock().now());
                        let after = seconds(wait).max(1);
                        if let (Some(policy), Some(limit)) = (&rule.policy, rule.limit(0, after)) {
                            arrival.notes.limited([(RATELIMIT_POLICY, policy.clone()), (RATELIMIT, limit)]);
                        }
                        return Err(Refusal::RateLimited { after });
                    }
                }
                // A bucket is never smaller than the cost of a request.
                Err(_) => return Err(Refusal::Internal),
            }
        }
        Ok(fields)
    }

    /// The hashed key; `None` where the request lacks a part of it.
    fn key<B>(&self, parts: &[KeyPart], request: &Request<B>, client: IpAddr, route: usize) -> Option<u64> {
        let mut hasher = self.secret.build_hasher();
        for part in parts {
            match part {
                KeyPart::Ip => ClientKey::of(client).hash(&mut hasher),
                KeyPart::IpPrefix => ClientKey::prefix(client, 24, 48).hash(&mut hasher),
                KeyPart::Header(name) => request.headers().get(name)?.as_bytes().hash(&mut hasher),
                KeyPart::Cookie(name) => cookie(request, name)?.hash(&mut hasher),
                KeyPart::Host => host(request)?.to_ascii_lowercase().hash(&mut hasher),
                KeyPart::Method => request.method().as_str().hash(&mut hasher),
                KeyPart::Route => route.hash(&mut hasher),
            }
        }
        Some(hasher.finish())
    }
}

impl Rule {
    fn new(config: RuleConfig) -> Self {
        let burst = config.bucket();
        let interval = config.rate.period.checked_div(config.rate.count.get()).unwrap_or_default().max(Duration::from_nanos(1));
        let quota = Quota::with_period(interval).unwrap_or(Quota::per_second(config.rate.count)).allow_burst(burst);
        let mut policy = Vec::new();
        item(&mut policy, config.name.as_str(), b'q', config.rate.count.get(), b'w', seconds(config.rate.period));
        let table = Table::new(config.keys);
        Rule {
            name: config.name.as_str().into(),
            matches: config.matches,
            key: config.key.0,
            cost: config.cost,
            allow: config.allow.0,
            mode: AtomicU8::new(as_number(config.mode)),
            buckets: RateLimiter::new(quota, table.clone(), QuantaClock::default()),
            table,
            interval,
            burst: burst.get(),
            policy: HeaderValue::from_maybe_shared(bytes::Bytes::from(policy)).ok().filter(|_| config.fields),
            passed: AtomicU64::new(0),
            limited: AtomicU64::new(0),
        }
    }

    /// The value of RateLimit: how many requests are left, and in how many seconds there are more.
    fn limit(&self, remaining: u32, reset: u32) -> Option<HeaderValue> {
        let mut text = Vec::with_capacity(self.name.len().saturating_add(32));
        item(&mut text, &self.name, b'r', remaining, b't', reset);
        HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).ok()
    }

    fn mode(&self) -> Mode {
        match self.mode.load(Relaxed) {
            0 => Mode::Enforce,
            1 => Mode::Observe,
            _ => Mode::Off,
        }
    }
}

fn as_number(mode: Mode) -> u8 {
    match mode {
        Mode::Enforce => 0,
        Mode::Observe => 1,
        Mode::Off => 2,
    }
}

fn cookie<'a, B>(request: &'a Request<B>, name: &str) -> Option<&'a [u8]> {
    request
        .headers()
        .get_all(COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b';'))
        .find_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// Whole seconds, rounded up.
fn seconds(duration: Duration) -> u32 {
    let rounded = duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0));
    u32::try_from(rounded).unwrap_or(u32::MAX)
}

/// An item of a structured field (RFC 9651): `"name";q=10;w=60`.
fn item(out: &mut Vec<u8>, name: &str, first: u8, number: u32, second: u8, time: u32) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&[b'"', b';', first, b'=']);
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.extend_from_slice(&[b';', second, b'=']);
    out.extend_from_slice(itoa::Buffer::new().format(time).as_bytes());
}

/// RateLimit and RateLimit-Policy of the rule with the least left.
#[derive(Debug, Default)]
pub struct Fields(Option<Tightest>);

#[derive(Debug)]
struct Tightest {
    remaining: u32,
    policy: HeaderValue,
    limit: HeaderValue,
}

impl Fields {
    fn note(&mut self, rule: &Rule, policy: &HeaderValue, remaining: u32) {
        if self.0.as_ref().is_some_and(|tightest| tightest.remaining <= remaining) {
            return;
        }
        let reset = seconds(rule.interval.saturating_mul(rule.burst.saturating_sub(remaining)));
        if let Some(limit) = rule.limit(remaining, reset) {
            self.0 = Some(Tightest { remaining, policy: policy.clone(), limit });
        }
    }
}

impl Amend for Fields {
    fn amend<R>(self, outcome: Result<Response<R>, Refusal>) -> Result<Response<R>, Refusal> {
        let mut answer = outcome?;
        if let Some(tightest) = self.0 {
            answer.headers_mut().insert(RATELIMIT_POLICY, tightest.policy);
            answer.headers_mut().insert(RATELIMIT, tightest.limit);
        }
        Ok(answer)
    }
}

/// Makes [`RateLimit`].
#[derive(Clone, Debug)]
pub struct RateLayer {
    limits: Arc<Limits>,
}

impl RateLayer {
    /// Over shared books.
    pub fn new(limits: Arc<Limits>) -> Self {
        RateLayer { limits }
    }
}

impl<S> Layer<S> for RateLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit { inner, limits: Arc::clone(&self.limits) }
    }
}

/// Refuses who comes too often.
#[derive(Clone, Debug)]
pub struct RateLimit<S> {
    inner: S,
    limits: Arc<Limits>,
}

impl<S, B, R> Service<Request<B>> for RateLimit<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Refusal>,
{
    type Response = Response<R>;
    type Error = Refusal;
    type Future = Decided<Amended<S::Future, Fields>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.limits.check(&request) {
            Ok(fields) => Decided::Passed { inner: Amended::new(self.inner.call(request), fields) },
            Err(refusal) => Decided::Refused { refusal },
        }
    }
}

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tower::{ServiceExt, service_fn};

    use super::{super::fixture, *};
    use crate::accept::client::Client;

    fn limits(rules: Value) -> Limits {
        Limits::new(serde_json::from_value(rules).unwrap(), TrustedProxies::new(&["10.0.0.0/8".parse().unwrap()]))
    }

    fn passes(limits: &Limits, request: http::request::Builder) -> bool {
        limits.check(&request.body(()).unwrap()).is_ok()
    }

    fn of(ip: &str, target: &str) -> http::request::Builder {
        fixture::from(target, Client { ip: ip.parse().unwrap(), ..Client::local() })
    }

    #[test]
    fn a_burst_passes_and_then_the_client_waits() {
        let limits = limits(json!([{ "name": "all", "rate": "1/min", "burst": 3 }]));
        for _ in 0..3 {
            assert!(passes(&limits, of("192.0.2.1", "/")));
        }
        let refused = limits.check(&of("192.0.2.1", "/").body(()).unwrap()).err();
        assert_eq!(refused, Some(Refusal::RateLimited { after: 60 }));
        assert!(passes(&limits, of("192.0.2.2", "/")));
        assert_eq!(limits.report().next().unwrap(), Report { name: "all", mode: Mode::Enforce, passed: 4, limited: 1, keys: 2 });
    }

    #[test]
    fn a_rule_is_about_what_it_matches_however_the_path_is_written() {
        let rule = json!([{ "name": "login", "rate": "1/h", "match": { "method": "POST", "path": "/session", "host": "shop.example" } }]);
        let limits = limits(rule);
        let post = |target: &str| of("192.0.2.1", target).method("POST").header("host", "Shop.Example:443");
        assert!(passes(&limits, post("/session")));
        for target in ["/session", "//session", "/%73ession", "/session.json", "/session?x", "http://shop.example/session"] {
            assert!(!passes(&limits, post(target)), "{target}");
        }
        assert!(passes(&limits, post("/sessions")));
        assert!(passes(&limits, of("192.0.2.1", "/session").header("host", "shop.example")));
        assert!(passes(&limits, of("192.0.2.1", "/session").method("POST").header("host", "other.example")));
    }

    #[test]
    fn keys_combine_and_a_missing_part_is_not_counted() {
        let limits = limits(json!([{ "name": "k", "rate": "1/h", "key": ["ip_prefix", "cookie:cart", "header:x-api-key"] }]));
        let with = |ip: &str, cart: &str| of(ip, "/").header("cookie", format!("a=1; cart={cart}")).header("x-api-key", "k");
        assert!(passes(&limits, with("192.0.2.1", "7")));
        assert!(!passes(&limits, with("192.0.2.200", "7")));
        assert!(passes(&limits, with("192.0.2.1", "8")));
        assert!(passes(&limits, with("192.0.3.1", "7")));
        for _ in 0..3 {
            assert!(passes(&limits, of("192.0.2.1", "/")));
        }
    }

    #[test]
    fn a_mode_can_be_changed_while_running_and_observe_only_counts() {
        let limits = limits(json!([{ "name": "a", "rate": "1/h", "mode": "observe" }]));
        assert!(passes(&limits, of("192.0.2.1", "/")) && passes(&limits, of("192.0.2.1", "/")));
        assert_eq!(limits.report().next().unwrap().limited, 1);
        assert!(limits.set_mode("a", Mode::Enforce) && !limits.set_mode("b", Mode::Enforce));
        assert!(!passes(&limits, of("192.0.2.1", "/")));
        assert!(limits.set_mode("a", Mode::Off));
        assert!(passes(&limits, of("192.0.2.1", "/")));
    }

    #[test]
    fn behind_a_trusted_proxy_its_clients_are_counted_and_listed_networks_are_not() {
        let limits = limits(json!([{ "name": "a", "rate": "1/h", "allow": "198.51.100.0/24" }]));
        let via = |client: &str| fixture::trusted("/").header("x-forwarded-for", client);
        assert!(passes(&limits, via("192.0.2.1")) && passes(&limits, via("192.0.2.2")));
        assert!(!passes(&limits, via("192.0.2.1")));
        assert!(passes(&limits, via("198.51.100.1")) && passes(&limits, via("198.51.100.1")));
    }

    #[test]
    fn a_request_may_cost_more_than_one() {
        let limits = limits(json!([{ "name": "a", "rate": "1/h", "burst": 10, "cost": 4 }]));
        let passed = (0..5).filter(|_| passes(&limits, of("192.0.2.1", "/"))).count();
        assert_eq!(passed, 2);
    }

    #[tokio::test]
    async fn an_answer_says_what_is_left_of_the_tightest_rule() {
        let limits = limits(json!([
            { "name": "wide", "rate": "100/s", "burst": 100 },
            { "name": "tight", "rate": "10/min", "burst": 5 },
        ]));
        let app = service_fn(|_: Request<()>| async { Ok::<_, Refusal>(Response::new(())) });
        let answer = RateLayer::new(Arc::new(limits)).layer(app).oneshot(of("192.0.2.1", "/").body(()).unwrap()).await.unwrap();
        assert_eq!(answer.headers()["ratelimit-policy"], "\"tight\";q=10;w=60");
        assert_eq!(answer.headers()["ratelimit"], "\"tight\";r=4;t=6");
    }

    #[test]
    fn a_refusal_says_which_rule_and_when_there_is_room_again() {
        let limits = limits(json!([{ "name": "tight", "rate": "10/min", "burst": 1 }, { "name": "mute", "rate": "1/h", "fields": false }]));
        let ask = || of("192.0.2.1", "/").body(()).unwrap();
        assert!(limits.check(&ask()).is_ok());
        let refused = ask();
        assert_eq!(limits.check(&refused).err(), Some(Refusal::RateLimited { after: 6 }));
        let fields = refused.extensions().get::<Arrival>().unwrap().notes.quota().to_vec();
        let expected = [(RATELIMIT_POLICY, "\"tight\";q=10;w=60"), (RATELIMIT, "\"tight\";r=0;t=6")];
        assert_eq!(fields, expected.map(|(name, value)| (name, HeaderValue::from_static(value))));
    }

    #[test]
    fn the_default_rule_is_generous_and_leaves_loopback_alone() {
        let limits = Limits::new(RuleConfig::defaults(), TrustedProxies::default());
        assert!((0..500).all(|_| passes(&limits, of("192.0.2.1", "/"))));
        assert!((0..500).any(|_| !passes(&limits, of("192.0.2.1", "/"))));
        assert!((0..2000).all(|_| passes(&limits, of("127.0.0.1", "/")) && passes(&limits, of("::1", "/"))));
    }
}
