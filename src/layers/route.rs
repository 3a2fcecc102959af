//! What holds for some requests only: `[[route]]`, the first that matches.
//!
//! Threat: exposure (a path for the office or the metrics collector alone) and exhaustion (a large body where uploads belong,
//! and only there; a slow report that may take longer; what is given up first when Palisade runs short). Answer: 403, the
//! connection stays; 503 where a request of low priority is given up. Stands behind `normalize`, so that a path has one
//! spelling, and before `buffer`, so that no byte of a body has been read.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tower_layer::Layer;
use tower_service::Service;

use super::{client_address::TrustedProxies, handshake::Upgrade, outcome::Decided, rate_rule::Match, target_view};
use crate::{
    http::arrival::Arrival,
    overload::{Overload, Relief},
    refusal::Refusal,
    units::{ByteSize, Deadline, OneOrMany},
    upstream::ResponseTimeout,
};

/// One `[[route]]` in `proxy.toml`. The first that matches holds, and no other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which requests it is about. Default: all.
    #[serde(rename = "match", default)]
    pub matches: Match,
    /// Longest request body, instead of `limits.body`. Too high: few clients can fill `buffer.disk_total`.
    #[serde(default)]
    pub body: Option<ByteSize>,
    /// Longest wait for Puma's answer, instead of `upstream.response_timeout`.
    #[serde(default)]
    pub response_timeout: Option<Deadline>,
    /// Networks whose clients may come here; others get 403. Empty: all.
    #[serde(default)]
    #[schemars(with = "OneOrMany<crate::config::schema::Network>")]
    pub allow: OneOrMany<IpNet>,
    /// Whether WebSockets may be opened; otherwise the handshake gets 403. Default: true.
    #[serde(default = "yes")]
    pub upgrade: bool,
    /// Refused first, with 503, when Palisade itself runs short (`[overload]`). Default: false.
    #[serde(default)]
    pub low_priority: bool,
}

/// Extension of a request whose route has a body limit of its own, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLimit(pub u64);

/// Makes [`Route`].
#[derive(Clone, Debug)]
pub struct RouteLayer {
    routes: Arc<Routes>,
}

/// Finds the route of each request.
#[derive(Clone, Debug)]
pub struct Route<S> {
    inner: S,
    routes: Arc<Routes>,
}

#[derive(Debug)]
struct Routes {
    list: Vec<Config>,
    reads_paths: bool,
    trusted: TrustedProxies,
    overload: Arc<Overload>,
}

impl RouteLayer {
    /// From the configuration; `overload` says when low priority is given up.
    pub fn new(list: Vec<Config>, trusted: TrustedProxies, overload: Arc<Overload>) -> Self {
        let reads_paths = list.iter().any(|route| !route.matches.path.0.is_empty());
        RouteLayer { routes: Arc::new(Routes { list, reads_paths, trusted, overload }) }
    }
}

impl<S> Layer<S> for RouteLayer {
    type Service = Route<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Route { inner, routes: Arc::clone(&self.routes) }
    }
}

impl<S, B, R> Service<Request<B>> for Route<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Refusal>,
{
    type Response = Response<R>;
    type Error = Refusal;
    type Future = Decided<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.routes.settle(&mut request) {
            Ok(()) => Decided::Passed { inner: self.inner.call(request) },
            Err(refusal) => Decided::Refused { refusal },
        }
    }
}

impl Routes {
    /// Finds the route, and notes for the layers behind what it says.
    fn settle<B>(&self, request: &mut Request<B>) -> Result<(), Refusal> {
        if self.list.is_empty() {
            return Ok(());
        }
        let arrival = request.extensions().get::<Arrival>().ok_or(Refusal::Internal)?;
        let path = self.reads_paths.then(|| target_view::understood(&arrival.target));
        let path = path.as_deref().unwrap_or_default();
        let Some((number, route)) = (1..).zip(&self.list).find(|(_, route)| route.matches.route(request, path).is_some()) else {
            return Ok(());
        };
        arrival.notes.routed_by(number);
        if !route.allow.0.is_empty() {
            let client = self.trusted.client(&arrival.client, request.headers());
            if !route.allow.0.iter().any(|network| network.contains(&client)) {
                return Err(Refusal::Forbidden);
            }
        }
        if !route.upgrade && request.extensions().get::<Upgrade>().is_some() {
            return Err(Refusal::Forbidden);
        }
        if route.low_priority && self.overload.relief() >= Relief::LowPriority {
            return Err(Refusal::Overloaded);
        }
        if let Some(limit) = route.body {
            request.extensions_mut().insert(BodyLimit(limit.0));
        }
        if let Some(timeout) = route.response_timeout {
            request.extensions_mut().insert(ResponseTimeout(timeout.get()));
        }
        Ok(())
    }
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::{super::fixture, *};

    fn routes(list: serde_json::Value, overload: Arc<Overload>) -> Arc<Routes> {
        let list: Vec<Config> = serde_json::from_value(list).unwrap();
        RouteLayer::new(list, TrustedProxies::new(&["10.0.0.0/8".parse().unwrap()]), overload).routes
    }

    impl Routes {
        fn run(&self, method: &str, target: &str) -> Result<(Option<u64>, Option<Duration>), Refusal> {
            let mut request = fixture::arrived(target).method(method).header("host", "shop.example").body(()).unwrap();
            self.settle(&mut request)?;
            let extensions = request.extensions();
            Ok((extensions.get::<BodyLimit>().map(|l| l.0), extensions.get::<ResponseTimeout>().map(|t| t.0)))
        }
    }

    #[test]
    fn the_first_route_that_matches_holds_and_no_other() {
        let routes = routes(
            json!([
                { "match": { "path": "/uploads", "method": "POST" }, "body": "1GiB" },
                { "match": { "path": ["/uploads", "/reports"] }, "body": "1KiB", "response_timeout": "5min" },
            ]),
            Overload::new(Default::default()),
        );
        let minutes = Some(Duration::from_secs(300));
        assert_eq!(routes.run("POST", "/uploads/7"), Ok((Some(1 << 30), None)));
        assert_eq!(routes.run("PUT", "/uploads/7"), Ok((Some(1024), minutes)));
        assert_eq!(routes.run("GET", "/reports?x=1"), Ok((Some(1024), minutes)));
        assert_eq!(routes.run("GET", "/reportsx"), Ok((None, None)));
    }

    #[test]
    fn a_path_is_for_the_networks_of_its_list_however_it_is_written() {
        let allowing = |network: &str| {
            routes(
                json!([{ "match": { "path": "/admin", "host": "SHOP.example" }, "allow": [network] }]),
                Overload::new(Default::default()),
            )
        };
        for target in ["/admin", "/admin/x", "//admin", "/%61dmin", "/admin?x"] {
            assert_eq!(allowing("198.51.100.0/24").run("GET", target), Err(Refusal::Forbidden), "{target}");
            assert_eq!(allowing("192.0.2.0/24").run("GET", target), Ok((None, None)), "{target}");
        }
        assert_eq!(allowing("198.51.100.0/24").run("GET", "/"), Ok((None, None)));
    }

    #[test]
    fn the_client_behind_a_trusted_proxy_is_the_one_that_counts() {
        let routes = routes(json!([{ "allow": ["198.51.100.7/32"] }]), Overload::new(Default::default()));
        let from = |forwarded: &str| {
            let mut request = fixture::trusted("/").header("x-forwarded-for", forwarded).body(()).unwrap();
            routes.settle(&mut request)
        };
        assert_eq!(from("198.51.100.7"), Ok(()));
        assert_eq!(from("198.51.100.7, 203.0.113.9"), Err(Refusal::Forbidden));
        let mut spoofed = fixture::arrived("/").header("x-forwarded-for", "198.51.100.7").body(()).unwrap();
        assert_eq!(routes.settle(&mut spoofed), Err(Refusal::Forbidden));
    }

    #[test]
    fn a_route_may_refuse_web_sockets_alone() {
        let routes = routes(json!([{ "upgrade": false }]), Overload::new(Default::default()));
        let mut handshake = fixture::arrived("/").extension(Upgrade).body(()).unwrap();
        assert_eq!(routes.settle(&mut handshake), Err(Refusal::Forbidden));
        assert_eq!(routes.run("GET", "/"), Ok((None, None)));
    }

    #[test]
    fn low_priority_is_refused_only_while_palisade_is_short() {
        let overload = Overload::new(Default::default());
        let routes = routes(json!([{ "match": { "path": "/export" }, "low_priority": true }]), Arc::clone(&overload));
        for (relief, is_refused) in [
            (Relief::None, false),
            (Relief::Newcomers, false),
            (Relief::KeepAlive, false),
            (Relief::LowPriority, true),
            (Relief::None, false),
        ] {
            overload.set_for_test(relief);
            assert_eq!(routes.run("GET", "/export").err(), is_refused.then_some(Refusal::Overloaded), "{relief:?}");
            assert_eq!(routes.run("GET", "/"), Ok((None, None)));
        }
    }
}
