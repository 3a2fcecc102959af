//! No backtrace of the application leaves with an error.
//!
//! Threat: exposure. Puma's and Rails' debug pages, and traces in JSON, name files, gems, queries and settings. The start of each
//! answer with a 5xx status and a text as its body is looked at; where it has a trace, one sentence stands in its place. The status
//! and the other fields stay. Compressed bodies cannot be looked into and pass. Stands next to `conceal`, where Puma's thread is
//! still busy: at most 64 KiB are held back, and only of errors.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Request, Response,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG},
    response::Parts,
};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use serde::{Deserialize, Serialize};
use tower_layer::Layer;
use tower_service::Service;

use crate::{http::body::Source, refusal::Refusal, units::Mode};

/// `[backtrace]` in `proxy.toml`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `enforce`, `observe` (counted, nothing changed) or `off`. Default: enforce.
    ///
    /// Memory: at most 64 KiB for each error that is being answered.
    pub mode: Mode,
}

/// Makes [`Backtrace`].
#[derive(Clone, Debug)]
pub struct BacktraceLayer {
    mode: Mode,
    found: Arc<AtomicU64>,
}

impl BacktraceLayer {
    /// From the configuration; `found` counts answers with a trace, also where they are only observed.
    pub fn new(config: Config, found: Arc<AtomicU64>) -> Self {
        BacktraceLayer { mode: config.mode, found }
    }
}

impl<S> Layer<S> for BacktraceLayer {
    type Service = Backtrace<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Backtrace { inner, mode: self.mode, found: Arc::clone(&self.found) }
    }
}

/// Looks at errors before they leave.
#[derive(Clone, Debug)]
pub struct Backtrace<S> {
    inner: S,
    mode: Mode,
    found: Arc<AtomicU64>,
}

impl<S, B, R> Service<Request<B>> for Backtrace<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Refusal>,
    R: Body<Data = Bytes>,
{
    type Response = Response<Shown<R>>;
    type Error = Refusal;
    type Future = Looking<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Looking { inner: self.inner.call(request), mode: self.mode, found: Arc::clone(&self.found), held: None }
    }
}

pin_project! {
    /// Waits for the head, and of an error for the start of its body.
    #[derive(Debug)]
    pub struct Looking<F, R> {
        #[pin]
        inner: F,
        mode: Mode,
        found: Arc<AtomicU64>,
        held: Option<Box<Held<R>>>,
    }
}

/// An error whose start is being read.
#[derive(Debug)]
struct Held<R> {
    head: Parts,
    start: BytesMut,
    rest: Pin<Box<R>>,
}

impl<F, R> Future for Looking<F, R>
where
    F: Future<Output = Result<Response<R>, Refusal>>,
    R: Body<Data = Bytes>,
{
    type Output = Result<Response<Shown<R>>, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if this.held.is_none() {
            let answer = ready!(this.inner.poll(cx))?;
            if *this.mode == Mode::Off || !is_readable_error(&answer) {
                return Poll::Ready(Ok(answer.map(|body| Shown::Untouched { body })));
            }
            let (head, body) = answer.into_parts();
            *this.held = Some(Box::new(Held { head, start: BytesMut::new(), rest: Box::pin(body) }));
        }
        let Some(held) = this.held.as_mut() else {
            return Poll::Ready(Err(Refusal::Internal));
        };
        let next = loop {
            if held.start.len() >= LOOKED_AT {
                break None;
            }
            match ready!(held.rest.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => held.start.extend_from_slice(&data),
                    Err(trailers) => break Some(Ok(trailers)),
                },
                Some(Err(error)) => break Some(Err(error)),
                None => break None,
            }
        };
        let Some(held) = this.held.take() else {
            return Poll::Ready(Err(Refusal::Internal));
        };
        let Held { mut head, start, rest } = *held;
        if has_trace(&start) {
            this.found.fetch_add(1, Relaxed);
            if *this.mode == Mode::Enforce {
                replace(&mut head.headers);
                return Poll::Ready(Ok(Response::from_parts(head, Shown::Sentence { text: Some(Bytes::from_static(SENTENCE)) })));
            }
        }
        let start = Some(start.freeze()).filter(|start| !start.is_empty());
        Poll::Ready(Ok(Response::from_parts(head, Shown::Resumed { start, next, rest })))
    }
}

pin_project! {
    /// The body of an answer behind this layer.
    #[project = ShownProjection]
    pub enum Shown<R>
    where
        R: Body<Data = Bytes>,
    {
        /// As it came.
        Untouched {
            #[pin]
            body: R,
        },
        /// What was held back, then the rest.
        Resumed {
            start: Option<Bytes>,
            next: Option<Result<Frame<Bytes>, R::Error>>,
            rest: Pin<Box<R>>,
        },
        /// One sentence in its place.
        Sentence {
            text: Option<Bytes>,
        },
    }
}

impl<R: Body<Data = Bytes>> std::fmt::Debug for Shown<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Shown::Untouched { .. } => "Untouched",
            Shown::Resumed { .. } => "Resumed",
            Shown::Sentence { .. } => "Sentence",
        })
    }
}

impl<R: Source + Unpin> Source for Shown<R> {
    fn at_once(&mut self, most: usize) {
        match self {
            Shown::Untouched { body } => body.at_once(most),
            Shown::Resumed { rest, .. } => rest.at_once(most),
            Shown::Sentence { .. } => {}
        }
    }
}

impl<R: Body<Data = Bytes>> Body for Shown<R> {
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        match self.project() {
            ShownProjection::Untouched { body } => body.poll_frame(cx),
            ShownProjection::Resumed { start, next, rest } => match start.take() {
                Some(start) => Poll::Ready(Some(Ok(Frame::data(start)))),
                None => match next.take() {
                    Some(next) => Poll::Ready(Some(next)),
                    None if rest.is_end_stream() => Poll::Ready(None),
                    None => rest.as_mut().poll_frame(cx),
                },
            },
            ShownProjection::Sentence { text } => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Shown::Untouched { body } => body.is_end_stream(),
            Shown::Resumed { start, next, rest } => start.is_none() && next.is_none() && rest.is_end_stream(),
            Shown::Sentence { text } => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let length = |text: &Option<Bytes>| text.as_ref().map_or(0, |text| u64::try_from(text.len()).unwrap_or(u64::MAX));
        match self {
            Shown::Untouched { body } => body.size_hint(),
            Shown::Resumed { start, rest, .. } => {
                let (held, rest) = (length(start), rest.size_hint());
                let mut hint = SizeHint::new();
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper.saturating_add(held));
                }
                hint.set_lower(rest.lower().saturating_add(held));
                hint
            }
            Shown::Sentence { text } => SizeHint::with_exact(length(text)),
        }
    }
}

fn is_readable_error<R: Body>(answer: &Response<R>) -> bool {
    answer.status().is_server_error()
        && !answer.body().is_end_stream()
        && !answer.headers().contains_key(CONTENT_ENCODING)
        && answer.headers().get(CONTENT_TYPE).is_none_or(|value| {
            let media = value.as_bytes().to_ascii_lowercase();
            media.starts_with(b"text/") || memchr::memmem::find(&media, b"json").is_some()
        })
}

fn replace(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(SENTENCE.len()));
    headers.remove(ETAG);
}

/// A known debug page, or a line of Ruby's backtrace: `path.rb:12:in`.
fn has_trace(text: &[u8]) -> bool {
    PAGES.iter().any(|page| memchr::memmem::find(text, page).is_some())
        || memchr::memmem::find_iter(text, b".rb:").any(|at| {
            let behind = text.get(at.saturating_add(4)..).unwrap_or_default();
            let digits = behind.iter().take_while(|b| b.is_ascii_digit()).take(LONGEST_LINE).count();
            digits > 0 && behind.get(digits..).is_some_and(|rest| rest.starts_with(b":in"))
        })
}

const PAGES: [&[u8]; 3] = [b"Puma caught this error", b"<title>Action Controller: Exception caught", b"Rack::ShowExceptions"];
const SENTENCE: &[u8] = b"The application made a mistake.\n";
/// Bytes of an error's body that are looked at.
const LOOKED_AT: usize = 64 * 1024;
/// Digits of a line number.
const LONGEST_LINE: usize = 9;

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};
    use tower::{ServiceExt, service_fn};

    use super::*;

    async fn answered(mode: Mode, status: u16, content_type: &'static str, body: &str) -> (HeaderMap, String) {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let app = service_fn(move |_: Request<()>| {
            let body = body.clone();
            async move {
                let answer = Response::builder().status(status).header("content-type", content_type).header("content-length", body.len());
                Ok::<_, Refusal>(answer.body(Full::new(body)).unwrap())
            }
        });
        let (head, body) =
            BacktraceLayer::new(Config { mode }, Arc::default()).layer(app).oneshot(Request::new(())).await.unwrap().into_parts();
        let text = body.collect().await.unwrap().to_bytes();
        assert_eq!(head.headers["content-length"], text.len().to_string());
        assert_eq!(head.status, status);
        (head.headers, String::from_utf8(text.to_vec()).unwrap())
    }

    const TRACES: [(&str, &str); 4] = [
        ("text/html", "<title>Action Controller: Exception caught</title>"),
        ("text/plain", "Puma caught this error: secret (RuntimeError)"),
        ("application/json", r#"{"error":"x","trace":["app/models/user.rb:12:in `save'"]}"#),
        ("text/html; charset=utf-8", "config.ru:1 /srv/app/lib/a.rb:7:in block"),
    ];

    #[tokio::test]
    async fn a_trace_becomes_one_sentence() {
        for (content_type, body) in TRACES {
            let (headers, text) = answered(Mode::Enforce, 500, content_type, body).await;
            assert_eq!(text.as_bytes(), SENTENCE, "{body}");
            assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
        }
    }

    #[tokio::test]
    async fn errors_without_a_trace_and_other_answers_pass_untouched() {
        let long = "x".repeat(200_000);
        for (status, content_type, body) in [
            (500, "text/html", "<h1>We're sorry, but something went wrong.</h1> see app.rb:12"),
            (503, "application/json", r#"{"error":"try later"}"#),
            (200, "text/html", "app/models/user.rb:12:in `save'"),
            (500, "image/png", "app/models/user.rb:12:in `save'"),
            (502, "text/plain", long.as_str()),
            (500, "text/plain", ""),
        ] {
            assert_eq!(answered(Mode::Enforce, status, content_type, body).await.1, body, "{status} {content_type}");
        }
    }

    #[tokio::test]
    async fn observe_and_off_change_nothing() {
        for mode in [Mode::Observe, Mode::Off] {
            assert_eq!(answered(mode, 500, TRACES[0].0, TRACES[0].1).await.1, TRACES[0].1);
        }
    }

    #[tokio::test]
    async fn what_was_held_back_comes_before_the_rest() {
        let pieces: Vec<_> = (0..40).map(|i| format!("{i}").repeat(4000)).collect();
        let expected = pieces.concat();
        let app = service_fn(move |_: Request<()>| {
            let frames = pieces.clone().into_iter().map(|piece| Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(piece))));
            let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
            async move { Ok::<_, Refusal>(Response::builder().status(500).body(body).unwrap()) }
        });
        let answer = BacktraceLayer::new(Config::default(), Arc::default()).layer(app).oneshot(Request::new(())).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), expected);
    }
}
