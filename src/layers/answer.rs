//! Turns every refusal into an answer: above this layer nothing fails.
//!
//! Threat: exposure, as an answer of ours says what was refused and by which rule, and nothing of the request or of Puma. Place:
//! outermost. JSON where the client prefers it, Rails' own error page where `errors.dir` has one for the status, else one line
//! of text. Every answer of ours is `no-store` (RFC 9111 §5.2.2.5), carries Retry-After where coming back helps (RFC 9110
//! §10.2.3), and tells the connection its fate by an extension of type [`Fate`](crate::refusal::Fate).

use std::{
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use serde::{Deserialize, Serialize};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    guard::rule::Rule,
    http::{
        arrival::{Arrival, Notes},
        body::Absorb,
    },
    log::{End, Settle, text},
    refusal::Refusal,
};

/// `[errors]` in `proxy.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A folder with `400.html`, `404.html`, `413.html`, `422.html`, `429.html`, `500.html`, `502.html`, `503.html`, `504.html`
    /// as Rails keeps them in `public/`; each is optional, at most 1 MiB, and held in memory. Read at start and on reload.
    /// Default: none, one line of text instead.
    pub dir: Option<PathBuf>,
}

/// The error pages, as they are now.
#[derive(Debug)]
pub struct Pages(ArcSwap<Vec<(StatusCode, Bytes)>>);

/// Answers refusals.
#[derive(Clone, Debug)]
pub struct AnswerLayer {
    shared: Arc<Shared>,
}

/// Answers the refusals of `S`.
#[derive(Clone, Debug)]
pub struct Answer<S> {
    inner: S,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pages: Arc<Pages>,
    allow: Option<HeaderValue>,
}

pin_project! {
    /// A request that will be answered.
    #[derive(Debug)]
    pub struct AnswerFuture<F> {
        #[pin]
        inner: F,
        shared: Arc<Shared>,
        accept: Option<HeaderValue>,
        notes: Option<Arc<Notes>>,
        is_head: bool,
    }
}

pin_project! {
    /// The body of an answer: ours or what came from inside.
    #[derive(Debug)]
    #[project = AnsweredParts]
    pub enum Answered<B> {
        /// One of ours, whole; `None` once it was taken.
        Ours {
            rest: Option<Bytes>,
        },
        /// From inside.
        Inner {
            #[pin]
            body: B,
        },
    }
}

impl Pages {
    /// Reads the pages. A page that is not there is not an error; a folder that is not there is.
    pub fn load(config: &Config) -> io::Result<Self> {
        Ok(Pages(ArcSwap::from_pointee(read_pages(config.dir.as_deref())?)))
    }

    /// Reads them again; keeps the old ones when that fails.
    pub fn reload(&self, config: &Config) -> io::Result<()> {
        self.0.store(Arc::new(read_pages(config.dir.as_deref())?));
        Ok(())
    }

    fn get(&self, status: StatusCode) -> Option<Bytes> {
        self.0.load().iter().find(|(of, _)| *of == status).map(|(_, page)| page.clone())
    }
}

impl AnswerLayer {
    /// A layer that answers with `pages`; `methods` are those that 405 names in Allow (RFC 9110 §15.5.6).
    pub fn new(pages: Arc<Pages>, methods: &[Method]) -> Self {
        let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
        AnswerLayer { shared: Arc::new(Shared { pages, allow: HeaderValue::from_str(&names.join(", ")).ok() }) }
    }
}

impl<S> Layer<S> for AnswerLayer {
    type Service = Answer<S>;
    fn layer(&self, inner: S) -> Answer<S> {
        Answer { inner, shared: Arc::clone(&self.shared) }
    }
}

impl<S, A, B> Service<Request<A>> for Answer<S>
where
    S: Service<Request<A>, Response = Response<B>, Error = Refusal>,
{
    type Response = Response<Answered<B>>;
    type Error = Infallible;
    type Future = AnswerFuture<S::Future>;

    /// Layers are always ready; an inner refusal to be ready would be one to every request, and `call` reports it.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx).map(|_| Ok(()))
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let arrival = request.extensions().get::<Arrival>();
        AnswerFuture {
            accept: arrival.filter(|a| a.sent.may_have(&header::ACCEPT)).and_then(|_| request.headers().get(header::ACCEPT)).cloned(),
            notes: arrival.map(|arrival| Arc::clone(&arrival.notes)),
            is_head: request.method() == Method::HEAD,
            shared: Arc::clone(&self.shared),
            inner: self.inner.call(request),
        }
    }
}

impl<F, B> Future for AnswerFuture<F>
where
    F: Future<Output = Result<Response<B>, Refusal>>,
{
    type Output = Result<Response<Answered<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let refusal = match ready!(this.inner.poll(cx)) {
            Ok(response) => return Poll::Ready(Ok(response.map(|body| Answered::Inner { body }))),
            Err(refusal) => refusal,
        };
        let id = this.notes.as_ref().and_then(|notes| notes.id());
        let status = refusal.status();
        let (kind, body) = if prefers_json(this.accept.as_ref()) {
            (JSON, json(refusal, id))
        } else if let Some(page) = this.shared.pages.get(status) {
            (HTML, page)
        } else {
            (TEXT, plain(refusal))
        };
        let mut response = dressed(refusal, kind, body);
        if let Some(id) = id {
            response.headers_mut().insert(REQUEST_ID, id.clone());
        }
        for (name, value) in this.notes.iter().flat_map(|notes| notes.quota()) {
            response.headers_mut().insert(name, value.clone());
        }
        if status == StatusCode::METHOD_NOT_ALLOWED
            && let Some(allow) = &this.shared.allow
        {
            response.headers_mut().insert(header::ALLOW, allow.clone());
        }
        let is_head = *this.is_head;
        Poll::Ready(Ok(response.map(|body| Answered::Ours { rest: Some(body).filter(|_| !is_head) })))
    }
}

impl<B> Body for Answered<B>
where
    B: Body<Data = Bytes, Error = Refusal>,
{
    type Data = Bytes;
    type Error = Refusal;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        match self.project() {
            AnsweredParts::Ours { rest } => Poll::Ready(rest.take().map(|bytes| Ok(Frame::data(bytes)))),
            AnsweredParts::Inner { body } => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answered::Ours { rest } => rest.is_none(),
            Answered::Inner { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answered::Ours { rest } => SizeHint::with_exact(rest.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Answered::Inner { body } => body.size_hint(),
        }
    }
}

impl<B: Settle> Settle for Answered<B> {
    fn settle(self: Pin<&mut Self>, end: End) {
        match self.project() {
            // Recorded already, by the refusal that it answers.
            AnsweredParts::Ours { .. } => {}
            AnsweredParts::Inner { body } => body.settle(end),
        }
    }
}

impl<B: Absorb> Absorb for Answered<B> {
    fn poll_absorb(self: Pin<&mut Self>, cx: &mut Context<'_>, unsent: &mut Bytes) {
        match self.project() {
            AnsweredParts::Ours { .. } => {}
            AnsweredParts::Inner { body } => body.poll_absorb(cx, unsent),
        }
    }
}

/// The answer to bytes that never became a request: nothing is known of what the client prefers.
pub fn bare(refusal: Refusal) -> Response<Bytes> {
    dressed(refusal, TEXT, plain(refusal))
}

fn dressed(refusal: Refusal, kind: &'static str, body: Bytes) -> Response<Bytes> {
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(body);
    *response.status_mut() = refusal.status();
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_LENGTH, length);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(after) = refusal.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(after));
    }
    response.extensions_mut().insert(refusal.fate());
    response
}

/// `bad_framing G1: A line must end in CR LF; neither byte may stand alone.`
fn plain(refusal: Refusal) -> Bytes {
    let mut text = refusal.label().to_owned();
    if let Some(rule) = refusal.rule() {
        text.push(' ');
        text.push_str(rule.id());
    }
    text.push_str(": ");
    text.push_str(refusal.sentence());
    text.push('\n');
    Bytes::from(text)
}

fn json(refusal: Refusal, id: Option<&HeaderValue>) -> Bytes {
    let mut out = Vec::with_capacity(256);
    let rule = refusal.rule().map(Rule::id);
    out.extend_from_slice(b"{\"error\":");
    text::json(&mut out, refusal.label().as_bytes());
    for (key, value) in [
        (&b",\"rule\":"[..], rule.map(str::as_bytes)),
        (b",\"message\":", Some(refusal.sentence().as_bytes())),
        (b",\"request_id\":", id.map(HeaderValue::as_bytes)),
    ] {
        if let Some(value) = value {
            out.extend_from_slice(key);
            text::json(&mut out, value);
        }
    }
    out.extend_from_slice(b"}\n");
    Bytes::from(out)
}

/// Whether JSON is named with a higher weight than HTML (RFC 9110 §12.5.1); wildcards ask for neither.
fn prefers_json(accept: Option<&HeaderValue>) -> bool {
    let Some(accept) = accept.and_then(|value| value.to_str().ok()) else { return false };
    let (mut json, mut html) = (0.0f32, 0.0f32);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let weight = parts.find_map(|p| p.strip_prefix("q=").or(p.strip_prefix("Q="))).map_or(1.0, |q| q.parse().unwrap_or(0.0));
        let is = |name: &str| kind.eq_ignore_ascii_case(name);
        if is("application/json") || is("application/problem+json") || is("application/vnd.api+json") {
            json = json.max(weight);
        } else if is("text/html") || is("application/xhtml+xml") {
            html = html.max(weight);
        }
    }
    json > html
}

fn read_pages(dir: Option<&Path>) -> io::Result<Vec<(StatusCode, Bytes)>> {
    let Some(dir) = dir else { return Ok(Vec::new()) };
    if !fs::metadata(dir)?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "errors.dir must be a folder"));
    }
    let mut pages = Vec::new();
    for status in STATUSES {
        let path = dir.join(format!("{}.html", status.as_u16()));
        match fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
            Ok(file) if file.len() > PAGE_LIMIT => {
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, "an error page must not be larger than 1 MiB"));
            }
            Ok(_) => pages.push((status, Bytes::from(fs::read(&path)?))),
        }
    }
    Ok(pages)
}

const STATUSES: [StatusCode; 12] = [
    StatusCode::BAD_REQUEST,
    StatusCode::FORBIDDEN,
    StatusCode::NOT_FOUND,
    StatusCode::METHOD_NOT_ALLOWED,
    StatusCode::REQUEST_TIMEOUT,
    StatusCode::PAYLOAD_TOO_LARGE,
    StatusCode::UNPROCESSABLE_ENTITY,
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::INTERNAL_SERVER_ERROR,
    StatusCode::BAD_GATEWAY,
    StatusCode::SERVICE_UNAVAILABLE,
    StatusCode::GATEWAY_TIMEOUT,
];
const PAGE_LIMIT: u64 = 1 << 20;
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures_util::{FutureExt, future};
    use http_body_util::{BodyExt, Empty, Full};

    use super::*;
    use crate::{accept::client::Client, http::arrival::Names, refusal::Fate};

    type Inner = http_body_util::combinators::UnsyncBoxBody<Bytes, Refusal>;

    fn answer(pages: &Arc<Pages>, method: Method, accept: &str, result: Result<Response<Inner>, Refusal>) -> Response<Answered<Inner>> {
        let notes = Arc::new(Notes::new(Instant::now()));
        notes.identify(HeaderValue::from_static("id\"1"));
        let mut request = Request::builder().method(method).body(()).unwrap();
        if !accept.is_empty() {
            request.headers_mut().insert(header::ACCEPT, accept.parse().unwrap());
        }
        request.extensions_mut().insert(Arrival { client: Arc::new(Client::local()), target: Bytes::new(), notes, sent: Names::ANY });
        let mut result = Some(result);
        let service = tower::service_fn(move |_: Request<()>| future::ready(result.take().unwrap()));
        AnswerLayer::new(Arc::clone(pages), &[Method::GET, Method::POST]).layer(service).call(request).now_or_never().unwrap().unwrap()
    }

    fn refused(pages: &Arc<Pages>, accept: &str, refusal: Refusal) -> (Response<()>, String) {
        let (parts, body) = answer(pages, Method::GET, accept, Err(refusal)).into_parts();
        let bytes = body.collect().now_or_never().unwrap().unwrap().to_bytes();
        (Response::from_parts(parts, ()), String::from_utf8(bytes.to_vec()).unwrap())
    }

    fn none() -> Arc<Pages> {
        Arc::new(Pages::load(&Config::default()).unwrap())
    }

    #[test]
    fn every_refusal_has_an_answer_with_its_status_and_fate() {
        for refusal in Refusal::EACH {
            for (response, body) in [refused(&none(), "*/*", refusal), {
                let (parts, body) = bare(refusal).into_parts();
                (Response::from_parts(parts, ()), String::from_utf8(body.to_vec()).unwrap())
            }] {
                assert_eq!(response.status(), refusal.status());
                assert_eq!(response.extensions().get::<Fate>(), Some(&refusal.fate()));
                assert_eq!(response.headers()["content-length"], body.len().to_string());
                assert_eq!(response.headers()["cache-control"], "no-store");
                let after = response.headers().get("retry-after").map(|v| v.to_str().unwrap().parse().unwrap());
                assert_eq!(after, refusal.retry_after());
                assert!(body.starts_with(refusal.label()) && body.contains(refusal.sentence()), "{body}");
            }
        }
    }

    #[test]
    fn a_405_names_what_is_allowed() {
        assert_eq!(refused(&none(), "", Refusal::Denied(Rule::T1)).0.headers()["allow"], "GET, POST");
        assert!(!refused(&none(), "", Refusal::Denied(Rule::T1Unknown)).0.headers().contains_key("allow"));
    }

    #[test]
    fn json_is_for_those_who_prefer_it() {
        for (accept, is_json) in [
            ("application/json", true),
            ("Application/JSON;q=0.5", true),
            ("text/html;q=0.5, application/json;q=0.9", true),
            ("application/vnd.api+json", true),
            ("text/html, application/json;q=0.9", false),
            ("application/json;q=0", false),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", false),
            ("*/*", false),
            ("", false),
            (";;,,q=", false),
        ] {
            let (response, body) = refused(&none(), accept, Refusal::BadFraming(Rule::G13));
            assert_eq!(response.headers()["content-type"] == JSON, is_json, "{accept}");
            if is_json {
                let body: serde_json::Value = serde_json::from_str(&body).unwrap();
                let expected = serde_json::json!({
                    "error": "bad_framing", "rule": "G13", "message": Rule::G13.info().sentence, "request_id": "id\"1",
                });
                assert_eq!(body, expected);
                assert_eq!(response.headers()["x-request-id"], "id\"1");
            }
        }
    }

    #[test]
    fn rails_pages_go_out_byte_for_byte_and_change_on_reload() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { dir: Some(dir.path().to_owned()) };
        fs::write(dir.path().join("503.html"), "<h1>Ümlaut\r\n</h1>").unwrap();
        let pages = Arc::new(Pages::load(&config).unwrap());
        let (response, body) = refused(&pages, "text/html", Refusal::Maintenance);
        assert_eq!((response.headers()["content-type"].to_str().unwrap(), &*body), (HTML, "<h1>Ümlaut\r\n</h1>"));
        assert_eq!(response.headers()["retry-after"], "60");
        assert_eq!(refused(&pages, "application/json", Refusal::Maintenance).0.headers()["content-type"], JSON);
        assert!(refused(&pages, "text/html", Refusal::Sensitive).1.starts_with("sensitive_path"));

        fs::write(dir.path().join("404.html"), "gone").unwrap();
        pages.reload(&config).unwrap();
        assert_eq!(refused(&pages, "text/html", Refusal::Sensitive).1, "gone");

        fs::write(dir.path().join("404.html"), vec![b'x'; (1 << 20) + 1]).unwrap();
        assert!(pages.reload(&config).is_err());
        assert_eq!(refused(&pages, "text/html", Refusal::Sensitive).1, "gone");
        assert!(Pages::load(&Config { dir: Some(dir.path().join("503.html")) }).is_err());
    }

    #[test]
    fn an_answer_to_head_has_the_length_but_no_body() {
        let response = answer(&none(), Method::HEAD, "", Err(Refusal::UnknownHost));
        assert_eq!(response.status(), 421);
        assert_eq!(response.headers()["content-length"], bare(Refusal::UnknownHost).body().len().to_string());
        assert!(response.body().is_end_stream());
        assert_eq!(response.into_body().collect().now_or_never().unwrap().unwrap().to_bytes().len(), 0);
    }

    #[test]
    fn what_comes_from_inside_passes_untouched() {
        let full = Full::new(Bytes::from_static(b"abc")).map_err(|e: Infallible| match e {}).boxed_unsync();
        let response = answer(&none(), Method::GET, "", Ok(Response::builder().status(418).body(full).unwrap()));
        assert_eq!((response.status().as_u16(), response.headers().len(), response.body().size_hint().exact()), (418, 0, Some(3)));
        assert!(response.extensions().get::<Fate>().is_none());
        assert_eq!(response.into_body().collect().now_or_never().unwrap().unwrap().to_bytes(), "abc");
        let empty = Empty::new().map_err(|e: Infallible| match e {}).boxed_unsync();
        assert!(answer(&none(), Method::GET, "", Ok(Response::new(empty))).body().is_end_stream());
    }
}
