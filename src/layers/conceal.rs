//! What an answer must not tell, and what it should say for the browser's protection.
//!
//! Threat: exposure. Names and versions of servers, and running times of the application, tell an attacker what to try; they are
//! taken away. Security headers (RFC 6797, Fetch, HTML) are added where the application sets none of its own. Nothing is refused.
//! Stands inside `in_flight`, next to Puma, so that every answer of the application passes and Palisade's own do not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS},
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use tower_layer::Layer;
use tower_service::Service;

use super::outcome::{Amend, Amended};
use crate::{
    http::arrival::{Arrival, Names},
    refusal::Refusal,
    units::{Deadline, Mode, OneOrMany},
};

/// `[conceal]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `enforce`, `observe` (counted, nothing changed) or `off`, for `response_remove`. Default: enforce.
    pub mode: Mode,
    /// Fields that are taken away from answers. Default: what Ruby servers, Rack and Rails tell of themselves.
    pub response_remove: OneOrMany<String>,
    /// Strict-Transport-Security for so long, on answers over https only; `"off"`: none. Default: `"1y"`.
    pub hsts: Hsts,
    /// `X-Content-Type-Options: nosniff`. Default: true.
    pub nosniff: bool,
    /// X-Frame-Options: `SAMEORIGIN`, `DENY`, or empty for none. Default: `SAMEORIGIN`, as Rails has it.
    pub frame: String,
    /// Referrer-Policy, or empty for none. Default: `strict-origin-when-cross-origin`, as Rails has it.
    pub referrer: String,
}

/// How long a browser shall come over https only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum Hsts {
    /// So long.
    For(Deadline),
    /// `"off"`.
    Off(Off),
}

/// The word `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Off {
    /// Not set.
    Off,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            mode: Mode::Enforce,
            response_remove: OneOrMany(TELLTALE.map(str::to_owned).to_vec()),
            hsts: Hsts::For(Deadline::seconds(31_536_000)),
            nosniff: true,
            frame: "SAMEORIGIN".into(),
            referrer: "strict-origin-when-cross-origin".into(),
        }
    }
}

/// Makes [`Conceal`].
#[derive(Clone, Debug)]
pub struct ConcealLayer {
    preset: Arc<Preset>,
}

/// The configuration as fields.
#[derive(Debug)]
struct Preset {
    mode: Mode,
    telltale: Vec<HeaderName>,
    found: Arc<AtomicU64>,
    /// Strict-Transport-Security only over https.
    add: Vec<(HeaderName, HeaderValue)>,
    /// The names of both.
    known: Names,
}

impl ConcealLayer {
    /// From the configuration; `found` counts answers that told something, also where they are only observed.
    pub fn new(config: Config, found: Arc<AtomicU64>) -> Self {
        let telltale: Vec<HeaderName> = config.response_remove.0.iter().filter_map(|name| name.parse().ok()).collect();
        let hsts = match config.hsts {
            Hsts::For(time) => ["max-age=", itoa::Buffer::new().format(time.get().as_secs())].concat(),
            Hsts::Off(Off::Off) => String::new(),
        };
        let named: [_; MOST_ADDED] = [
            (STRICT_TRANSPORT_SECURITY, hsts.as_str()),
            (X_CONTENT_TYPE_OPTIONS, if config.nosniff { "nosniff" } else { "" }),
            (X_FRAME_OPTIONS, config.frame.as_str()),
            (REFERRER_POLICY, config.referrer.as_str()),
        ];
        let add = named.into_iter().filter(|(_, value)| !value.is_empty());
        let add: Vec<_> = add.filter_map(|(name, value)| Some((name, HeaderValue::from_str(value).ok()?))).collect();
        let mut known = Names::NONE;
        telltale.iter().chain(add.iter().map(|(name, _)| name)).for_each(|name| known.add(name));
        ConcealLayer { preset: Arc::new(Preset { mode: config.mode, telltale, found, add, known }) }
    }
}

impl<S> Layer<S> for ConcealLayer {
    type Service = Conceal<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Conceal { inner, preset: Arc::clone(&self.preset) }
    }
}

/// Takes away and adds fields of answers.
#[derive(Clone, Debug)]
pub struct Conceal<S> {
    inner: S,
    preset: Arc<Preset>,
}

impl<S, B, R> Service<Request<B>> for Conceal<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Refusal>,
{
    type Response = Response<R>;
    type Error = Refusal;
    type Future = Amended<S::Future, Change>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let https = request.extensions().get::<Arrival>().is_some_and(|arrival| arrival.is_https(request.headers()));
        let change = Change { preset: Arc::clone(&self.preset), https };
        Amended::new(self.inner.call(request), change)
    }
}

/// What happens to an answer.
#[derive(Debug)]
pub struct Change {
    preset: Arc<Preset>,
    https: bool,
}

impl Amend for Change {
    fn amend<R>(self, outcome: Result<Response<R>, Refusal>) -> Result<Response<R>, Refusal> {
        let mut answer = outcome?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            self.preset.apply(answer.headers_mut(), self.https);
        }
        Ok(answer)
    }
}

impl Preset {
    fn apply(&self, headers: &mut HeaderMap, https: bool) {
        // One look at the few fields that an answer has, instead of a look-up for each that it might have.
        let mut telling: SmallVec<[&HeaderName; 4]> = SmallVec::new();
        let mut has = [false; MOST_ADDED];
        for name in headers.keys().filter(|name| self.known.may_have(name)) {
            telling.extend(self.telltale.iter().filter(|telltale| *telltale == name));
            has.iter_mut().zip(&self.add).for_each(|(has, (wanted, _))| *has |= wanted == name);
        }
        if !telling.is_empty() && self.mode != Mode::Off {
            self.found.fetch_add(1, Relaxed);
        }
        if self.mode == Mode::Enforce {
            telling.into_iter().for_each(|name| drop(headers.remove(name)));
        }
        for (has, (name, value)) in has.into_iter().zip(&self.add) {
            if !has && (https || *name != STRICT_TRANSPORT_SECURITY) {
                headers.insert(name, value.clone());
            }
        }
    }
}

/// Fields that may be added.
const MOST_ADDED: usize = 4;
const TELLTALE: [&str; 7] = ["Server", "X-Powered-By", "X-Runtime", "X-Rack-Cache", "X-Cascade", "X-AspNet-Version", "X-Generator"];

#[cfg(test)]
mod tests {
    use tower::{ServiceExt, service_fn};

    use super::{super::fixture, *};
    use crate::accept::client::{Client, Scheme};

    async fn answered(config: Config, scheme: Scheme, fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let app = service_fn(|_: Request<()>| {
            let mut answer = Response::new(());
            for (name, value) in fields {
                answer.headers_mut().append(*name, HeaderValue::from_static(value));
            }
            async { Ok::<_, Refusal>(answer) }
        });
        let request = fixture::from("/", Client { scheme, ..Client::local() }).body(()).unwrap();
        ConcealLayer::new(config, Arc::default()).layer(app).oneshot(request).await.unwrap().into_parts().0.headers
    }

    #[tokio::test]
    async fn an_answer_does_not_tell_what_made_it() {
        let fields = [("server", "Puma 5.6.5"), ("x-powered-by", "Phusion"), ("x-runtime", "0.1"), ("x-mine", "1"), ("server", "twice")];
        let headers = answered(Config::default(), Scheme::Http, &fields).await;
        assert!(!headers.contains_key("server") && !headers.contains_key("x-powered-by") && !headers.contains_key("x-runtime"));
        assert_eq!(headers["x-mine"], "1");
    }

    #[tokio::test]
    async fn the_applications_own_security_headers_are_left_as_they_are() {
        let own = [("x-frame-options", "ALLOWALL"), ("strict-transport-security", "max-age=5"), ("referrer-policy", "no-referrer")];
        let headers = answered(Config::default(), Scheme::Https, &own).await;
        assert_eq!(
            (&headers["x-frame-options"], &headers["strict-transport-security"]),
            (&"ALLOWALL".parse().unwrap(), &"max-age=5".parse().unwrap())
        );
        assert_eq!(
            (&headers["referrer-policy"], &headers["x-content-type-options"]),
            (&"no-referrer".parse().unwrap(), &"nosniff".parse().unwrap())
        );
    }

    #[tokio::test]
    async fn strict_transport_security_is_said_over_https_only() {
        assert_eq!(answered(Config::default(), Scheme::Https, &[]).await["strict-transport-security"], "max-age=31536000");
        assert!(!answered(Config::default(), Scheme::Http, &[]).await.contains_key("strict-transport-security"));
        let off: Config = serde_json::from_str(r#"{"hsts": "off", "frame": ""}"#).unwrap();
        let headers = answered(off, Scheme::Https, &[]).await;
        assert!(!headers.contains_key("strict-transport-security") && !headers.contains_key("x-frame-options"));
    }

    #[tokio::test]
    async fn nothing_is_taken_away_where_that_is_off_or_observed() {
        for mode in [Mode::Off, Mode::Observe] {
            assert!(answered(Config { mode, ..Config::default() }, Scheme::Http, &[("server", "x")]).await.contains_key("server"));
        }
    }
}
