//! One name for a request in the log, in Rails' log and in the client's hands.
//!
//! Threat: exposure. A client could write markup or another request's id into logs, so only a trusted peer's id counts, and only
//! if it is `[A-Za-z0-9-]{1,64}`; everybody else gets a UUIDv7 (RFC 9562 §5.7), which sorts by time. Stands before every layer
//! that can refuse, so that refusals have an id too.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::{SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use serde::{Deserialize, Serialize};
use tower_layer::Layer;
use tower_service::Service;
use uuid::{Builder, fmt::Hyphenated};

use super::outcome::{Amend, Amended};
use crate::{
    http::{arrival::Arrival, spare},
    refusal::Refusal,
};

/// `[request_id]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether an id that a trusted proxy sends is kept. Default: true.
    ///
    /// Never kept from anybody else. Memory: at most 64 bytes a request.
    pub trust: bool,
    /// Whether the answer carries the id when the application sends none. Default: true.
    pub answer: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config { trust: true, answer: true }
    }
}

/// Makes [`WithRequestId`].
#[derive(Clone, Debug)]
pub struct RequestIdLayer {
    config: Arc<Config>,
}

impl RequestIdLayer {
    /// From the configuration.
    pub fn new(config: Config) -> Self {
        RequestIdLayer { config: Arc::new(config) }
    }
}

impl<S> Layer<S> for RequestIdLayer {
    type Service = WithRequestId<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WithRequestId { inner, config: Arc::clone(&self.config) }
    }
}

/// Gives each request and its answer one id.
#[derive(Clone, Debug)]
pub struct WithRequestId<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S, B, R> Service<Request<B>> for WithRequestId<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Refusal>,
{
    type Response = Response<R>;
    type Error = Refusal;
    type Future = Amended<S::Future, SetOnAnswer>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let trusted = self.config.trust && request.extensions().get::<Arrival>().is_some_and(|a| a.client.trusted);
        let id = trusted.then(|| sent(request.headers())).flatten();
        let arrival = request.extensions().get::<Arrival>();
        let id = id.unwrap_or_else(|| generated(arrival.map_or_else(SystemTime::now, |arrival| arrival.notes.at)));
        if let Some(arrival) = arrival {
            arrival.notes.identify(id.clone());
        }
        request.headers_mut().insert(X_REQUEST_ID, id.clone());
        Amended::new(self.inner.call(request), SetOnAnswer(self.config.answer.then_some(id)))
    }
}

/// Writes the id on the answer, unless the application did.
#[derive(Debug)]
pub struct SetOnAnswer(Option<HeaderValue>);

impl Amend for SetOnAnswer {
    fn amend<R>(self, outcome: Result<Response<R>, Refusal>) -> Result<Response<R>, Refusal> {
        let mut answer = outcome?;
        if let Some(id) = self.0 {
            answer.headers_mut().entry(X_REQUEST_ID).or_insert(id);
        }
        Ok(answer)
    }
}

fn sent(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(X_REQUEST_ID).iter();
    let id = values.next()?;
    let fits = matches!(id.len(), 1..=64) && id.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-');
    (fits && values.next().is_none()).then(|| id.clone())
}

fn generated(at: SystemTime) -> HeaderValue {
    let millis = at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    let mut random = [0; 10];
    fastrand::fill(&mut random);
    let mut text = [0; Hyphenated::LENGTH];
    let text = Builder::from_unix_timestamp_millis(millis, &random).into_uuid().hyphenated().encode_lower(&mut text);
    HeaderValue::from_maybe_shared(spare::cut(text.as_bytes())).unwrap_or(HeaderValue::from_static("none"))
}

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[cfg(test)]
mod tests {
    use tower::{ServiceExt, service_fn};
    use uuid::Uuid;

    use super::{
        super::fixture::{arrived, trusted},
        *,
    };

    async fn seen(request: Request<()>) -> (String, String) {
        let app = service_fn(|request: Request<()>| async move {
            let mut answer = Response::new(());
            answer.headers_mut().insert("seen", request.headers()[X_REQUEST_ID].clone());
            let arrival = request.extensions().get::<Arrival>().unwrap();
            assert_eq!(arrival.notes.id(), Some(&request.headers()[X_REQUEST_ID]));
            Ok::<_, Refusal>(answer)
        });
        let answer = RequestIdLayer::new(Config::default()).layer(app).oneshot(request).await.unwrap();
        let text = |name| answer.headers()[name].to_str().unwrap().to_owned();
        (text("seen"), text("x-request-id"))
    }

    fn with_id(request: http::request::Builder, id: &str) -> Request<()> {
        request.header("x-request-id", id).body(()).unwrap()
    }

    #[tokio::test]
    async fn a_stranger_gets_an_id_of_ours_whatever_it_sends() {
        let (seen, answered) = seen(with_id(arrived("/"), "evil")).await;
        assert_eq!(Uuid::parse_str(&seen).unwrap().get_version_num(), 7);
        assert_eq!(seen, answered);
    }

    #[tokio::test]
    async fn a_trusted_peers_id_is_kept_if_it_is_plain() {
        assert_eq!(seen(with_id(trusted("/"), "abc-123")).await.0, "abc-123");
        for bad in ["", "a b", "evil\"><script>", &"a".repeat(65)] {
            assert_eq!(seen(with_id(trusted("/"), bad)).await.0.len(), 36, "{bad}");
        }
    }

    #[tokio::test]
    async fn the_applications_own_id_stays_on_the_answer() {
        let app =
            service_fn(|_: Request<()>| async { Ok::<_, Refusal>(Response::builder().header("x-request-id", "app").body(()).unwrap()) });
        let answer = RequestIdLayer::new(Config::default()).layer(app).oneshot(arrived("/").body(()).unwrap()).await.unwrap();
        assert_eq!(answer.headers()["x-request-id"], "app");
    }
}
