//! Who does bad things again and again is shut out for a while, and for longer each time.
//!
//! Threat: exhaustion and exposure: scanners, guessers of passwords, fuzzers. Counts refusals and chosen answers of the application
//! by client. Answer: 429 with Retry-After, the connection is closed. Stands outermost of what refuses, as nothing is cheaper.
//! The driver of a connection asks and tells [`Bans`] too, for what is refused before there is a request, and `accept` asks whom
//! it need not even shake hands with.
//!
//! Memory is bounded by `keys` for each rule: when they are spent, ended bans and quiet clients are forgotten first.

use std::{
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

pub use super::{ban_config::RuleConfig, ban_rule::Banned};
use super::{
    ban_rule::{Rule, Seen},
    client_address::TrustedProxies,
    outcome::{Amend, Amended, Decided},
};
use crate::{accept::Doorkeeper, http::arrival::Arrival, refusal::Refusal};

/// The books of all rules; the layer, the connections' drivers and the administration share them.
#[derive(Debug)]
pub struct Bans {
    rules: Vec<Rule>,
    trusted: TrustedProxies,
    epoch: Instant,
}

impl Bans {
    /// From the configuration and `trusted_proxies`, which are never banned themselves.
    pub fn new(rules: Vec<RuleConfig>, trusted: TrustedProxies) -> Self {
        Bans { rules: rules.into_iter().map(Rule::new).collect(), trusted, epoch: Instant::now() }
    }

    /// The same books under another configuration: rules keep what they know by their names.
    pub fn reconfigured(&self, rules: Vec<RuleConfig>, trusted: TrustedProxies) -> Self {
        let next = Bans { epoch: self.epoch, ..Bans::new(rules, trusted) };
        for rule in &next.rules {
            if let Some(old) = self.rules.iter().find(|old| old.name() == rule.name()) {
                rule.inherit(old);
            }
        }
        next
    }

    /// Whole seconds for which a client is still banned.
    pub fn check(&self, client: IpAddr) -> Option<u32> {
        if self.rules.iter().all(Rule::is_quiet) || self.trusted.contains(client) {
            return None;
        }
        let now = self.epoch.elapsed();
        self.rules.iter().filter_map(|rule| rule.check(client, now)).max()
    }

    /// Whether a client gets no connection at all.
    pub fn shuts_out(&self, client: IpAddr) -> bool {
        let now = self.epoch.elapsed();
        let is_banned = self.rules.iter().any(|rule| rule.refuses_connections() && rule.check(client, now).is_some());
        is_banned && !self.trusted.contains(client)
    }

    /// Counts a refusal, also one that was made before there was a request.
    pub fn note_refusal(&self, client: IpAddr, refusal: Refusal) {
        self.note(client, Seen::Refused(refusal));
    }

    /// Counts an answer of the application.
    pub fn note_status(&self, client: IpAddr, status: http::StatusCode) {
        self.note(client, Seen::Answered(status));
    }

    /// Every ban that holds, for the administration.
    pub fn list(&self) -> Vec<Banned> {
        let now = self.epoch.elapsed();
        self.rules.iter().flat_map(|rule| rule.list(now)).collect()
    }

    /// Every rule with the number of its bans that hold.
    pub fn report(&self) -> impl Iterator<Item = (&str, usize)> {
        let now = self.epoch.elapsed();
        self.rules.iter().map(move |rule| (rule.name(), rule.list(now).len()))
    }

    /// Bans a client by hand under the first rule; false where there is no rule.
    pub fn add(&self, client: IpAddr, time: Duration) -> bool {
        let now = self.epoch.elapsed();
        self.rules.first().inspect(|rule| rule.add(client, time, now)).is_some()
    }

    /// Lifts every ban of a client and forgets what was counted; false where there was none.
    pub fn remove(&self, client: IpAddr) -> bool {
        self.rules.iter().filter(|rule| rule.remove(client)).count() > 0
    }

    fn note(&self, client: IpAddr, seen: Seen) {
        if !self.rules.iter().any(|rule| rule.counts(seen)) || self.trusted.contains(client) {
            return;
        }
        let now = self.epoch.elapsed();
        for rule in self.rules.iter().filter(|rule| rule.counts(seen)) {
            rule.note(client, now);
        }
    }
}

impl Doorkeeper for ArcSwap<Bans> {
    fn turns_away(&self, client: IpAddr) -> bool {
        self.load().shuts_out(client)
    }
}

/// Makes [`Ban`].
#[derive(Clone, Debug)]
pub struct BanLayer {
    bans: Arc<Bans>,
}

impl BanLayer {
    /// Over shared books.
    pub fn new(bans: Arc<Bans>) -> Self {
        BanLayer { bans }
    }
}

impl<S> Layer<S> for BanLayer {
    type Service = Ban<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Ban { inner, bans: Arc::clone(&self.bans) }
    }
}

/// Refuses who is banned, and counts what the others get.
#[derive(Clone, Debug)]
pub struct Ban<S> {
    inner: S,
    bans: Arc<Bans>,
}

impl<S, B, R> Service<Request<B>> for Ban<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Refusal>,
{
    type Response = Response<R>;
    type Error = Refusal;
    type Future = Decided<Amended<S::Future, Count>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Some(arrival) = request.extensions().get::<Arrival>() else {
            return Decided::Refused { refusal: Refusal::Internal };
        };
        let client = self.bans.trusted.client(&arrival.client, request.headers());
        if let Some(after) = self.bans.check(client) {
            return Decided::Refused { refusal: Refusal::Banned { after } };
        }
        let count = Count { bans: Arc::clone(&self.bans), client };
        Decided::Passed { inner: Amended::new(self.inner.call(request), count) }
    }
}

/// Notes how a request ended.
#[derive(Debug)]
pub struct Count {
    bans: Arc<Bans>,
    client: IpAddr,
}

impl Amend for Count {
    fn amend<R>(self, outcome: Result<Response<R>, Refusal>) -> Result<Response<R>, Refusal> {
        match &outcome {
            Ok(answer) => self.bans.note_status(self.client, answer.status()),
            Err(refusal) => self.bans.note_refusal(self.client, *refusal),
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use tower::{ServiceExt, service_fn};

    use super::{super::fixture, *};
    use crate::guard::rule::Rule as FramingRule;

    const SEVERE: Refusal = Refusal::BadFraming(FramingRule::G10);

    fn bans(rules: Value) -> Bans {
        Bans::new(serde_json::from_value(rules).unwrap(), TrustedProxies::new(&["10.0.0.0/8".parse().unwrap()]))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn severe_refusals_ban_a_client_and_nobody_else() {
        let bans = bans(json!([{ "name": "s", "on": "severe", "threshold": "3/min", "for": "15m" }]));
        for _ in 0..2 {
            bans.note_refusal(ip("192.0.2.1"), SEVERE);
        }
        bans.note_refusal(ip("192.0.2.1"), Refusal::QueueFull { after: 1 });
        assert_eq!(bans.check(ip("192.0.2.1")), None);
        bans.note_refusal(ip("192.0.2.1"), SEVERE);
        assert_eq!(bans.check(ip("192.0.2.1")), Some(900));
        assert_eq!(bans.check(ip("192.0.2.2")), None);
        let list = bans.list();
        assert_eq!((list.len(), list[0].client.to_string().as_str(), &*list[0].rule, list[0].seconds), (1, "192.0.2.1", "s", 900));
        assert!(bans.remove(ip("192.0.2.1")) && !bans.remove(ip("192.0.2.1")));
        assert_eq!(bans.check(ip("192.0.2.1")), None);
    }

    #[test]
    fn a_trusted_proxy_is_never_banned() {
        let bans = bans(json!([{ "name": "s", "on": "severe", "threshold": "1/min" }]));
        bans.note_refusal(ip("10.0.0.1"), SEVERE);
        assert_eq!(bans.check(ip("10.0.0.1")), None);
    }

    #[test]
    fn bans_survive_a_new_configuration() {
        let old = bans(json!([{ "name": "s", "on": "severe", "threshold": "1/min", "for": "15m" }]));
        old.note_refusal(ip("192.0.2.1"), SEVERE);
        let new = old.reconfigured(
            serde_json::from_value(json!([{ "name": "s", "on": "severe", "threshold": "9/min" }])).unwrap(),
            TrustedProxies::default(),
        );
        assert!(new.check(ip("192.0.2.1")).is_some());
    }

    #[test]
    fn a_ban_by_hand_holds() {
        let bans = bans(json!([{ "name": "s", "on": "severe", "threshold": "9/min" }]));
        assert!(bans.add(ip("2001:db8::1"), Duration::from_secs(60)));
        assert_eq!(bans.check(ip("2001:db8::ffff")), Some(60));
    }

    #[tokio::test]
    async fn answers_of_the_application_count_for_the_client_behind_a_trusted_proxy() {
        let bans = Arc::new(bans(json!([{ "name": "guess", "on": ["status:401", "status:404"], "threshold": "2/min" }])));
        let layer = BanLayer::new(Arc::clone(&bans));
        let app = service_fn(|_: Request<()>| async {
            let mut answer = Response::new(());
            *answer.status_mut() = StatusCode::UNAUTHORIZED;
            Ok::<_, Refusal>(answer)
        });
        let call = |client: &str| layer.layer(app).oneshot(fixture::trusted("/").header("x-forwarded-for", client).body(()).unwrap());
        assert!(call("192.0.2.1").await.is_ok());
        assert!(call("192.0.2.1").await.is_ok());
        assert_eq!(call("192.0.2.1").await.err(), Some(Refusal::Banned { after: 900 }));
        assert!(call("192.0.2.2").await.is_ok());
    }
}
