//! Sees every request to its end, however it ends, and reports it once.
//!
//! Threat: all of them, as an attack that nobody sees goes on. Place: directly inside `answer`, outside everything that can
//! refuse. A request ends when its response body is dropped: then the connection has handed on the last byte, or has given
//! up. Ended whole is `ok`, an error from inside is that refusal, dropped early is `client_abort`, and a panic on the way is
//! `internal`. The connection may know better and says so by [`Settle`].

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::{Buf, Bytes};
use http::{Request, Response, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    accept::client::Client,
    http::{
        arrival::{Arrival, Names, Notes},
        body::Absorb,
    },
    log::{End, Recorder, Said, Settle, recorder::Host},
    refusal::Refusal,
};

/// Records every request.
#[derive(Clone, Debug)]
pub struct RecordLayer {
    recorder: Arc<Recorder>,
}

/// Records every request to `S`.
#[derive(Clone, Debug)]
pub struct Record<S> {
    inner: S,
    recorder: Arc<Recorder>,
}

pin_project! {
    /// A request on its way.
    #[derive(Debug)]
    pub struct RecordFuture<F> {
        #[pin]
        inner: F,
        pending: Option<Pending>,
    }
}

pin_project! {
    /// A response body whose end is reported when it is dropped.
    #[derive(Debug)]
    pub struct Recorded<B> {
        #[pin]
        inner: B,
        pending: Option<Pending>,
    }
}

impl RecordLayer {
    /// A layer that reports to `recorder`.
    pub fn new(recorder: Arc<Recorder>) -> Self {
        RecordLayer { recorder }
    }
}

impl<S> Layer<S> for RecordLayer {
    type Service = Record<S>;
    fn layer(&self, inner: S) -> Record<S> {
        Record { inner, recorder: Arc::clone(&self.recorder) }
    }
}

impl<S, A, B> Service<Request<A>> for Record<S>
where
    S: Service<Request<A>, Response = Response<B>, Error = Refusal>,
    B: Body<Error = Refusal>,
{
    type Response = Response<Recorded<B>>;
    type Error = Refusal;
    type Future = RecordFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let pending = Pending::new(&self.recorder, &request);
        RecordFuture { inner: self.inner.call(request), pending: Some(pending) }
    }
}

impl<F, B> Future for RecordFuture<F>
where
    F: Future<Output = Result<Response<B>, Refusal>>,
    B: Body<Error = Refusal>,
{
    type Output = Result<Response<Recorded<B>>, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let inner = this.inner;
        match ready!(guarded(this.pending, || inner.poll(cx))) {
            Ok(response) => {
                let mut pending = this.pending.take();
                if let Some(pending) = &mut pending {
                    pending.notes.answer(response.status());
                    pending.ended_if(response.body().is_end_stream());
                }
                Poll::Ready(Ok(response.map(|inner| Recorded { inner, pending })))
            }
            Err(refusal) => {
                if let Some(mut pending) = this.pending.take() {
                    pending.end = refusal.into();
                }
                Poll::Ready(Err(refusal))
            }
        }
    }
}

impl<B> Body for Recorded<B>
where
    B: Body<Error = Refusal>,
{
    type Data = B::Data;
    type Error = Refusal;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, Refusal>>> {
        let mut this = self.project();
        let polled = ready!(guarded(this.pending, || this.inner.as_mut().poll_frame(cx)));
        if let Some(pending) = this.pending {
            match &polled {
                None => pending.ended_if(true),
                Some(Err(refusal)) => pending.end = (*refusal).into(),
                Some(Ok(frame)) => {
                    let length = frame.data_ref().map_or(0, Buf::remaining);
                    pending.notes.send(length as u64);
                    pending.ended_if(this.inner.is_end_stream());
                }
            }
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B> Settle for Recorded<B> {
    fn settle(self: Pin<&mut Self>, end: End) {
        if let Some(pending) = self.project().pending {
            pending.end = end;
        }
    }
}

impl<B: Absorb> Absorb for Recorded<B> {
    fn poll_absorb(self: Pin<&mut Self>, cx: &mut Context<'_>, unsent: &mut Bytes) {
        let this = self.project();
        let before = unsent.len();
        this.inner.poll_absorb(cx, unsent);
        if let Some(pending) = this.pending {
            pending.notes.take_back(before.saturating_sub(unsent.len()) as u64);
        }
    }
}

/// A request that has not ended yet. Dropping it is its end.
#[derive(Debug)]
struct Pending {
    notes: Arc<Notes>,
    recorder: Arc<Recorder>,
    /// How it ended, as far as is known.
    end: End,
}

impl Pending {
    fn new<A>(recorder: &Arc<Recorder>, request: &Request<A>) -> Self {
        recorder.metrics().begin();
        let headers = request.headers();
        let (client, notes, target, sent) = match request.extensions().get::<Arrival>() {
            Some(arrival) => (Arc::clone(&arrival.client), Arc::clone(&arrival.notes), arrival.target.clone(), arrival.sent),
            None => (Arc::new(Client::local()), Arc::new(Notes::new(Instant::now())), Bytes::new(), Names::ANY),
        };
        let field = |name| if sent.may_have(&name) { headers.get(name).cloned() } else { None };
        let host = match (request.uri().authority(), headers.get(header::HOST)) {
            (Some(authority), _) => Host::Authority(authority.clone()),
            (None, Some(host)) => Host::Field(host.clone()),
            (None, None) => Host::None,
        };
        notes.say(Said {
            client,
            method: request.method().clone(),
            version: request.version(),
            target,
            host,
            agent: field(header::USER_AGENT),
            referer: field(header::REFERER),
        });
        Pending { notes, recorder: Arc::clone(recorder), end: End::Refused(Refusal::ClientAbort) }
    }

    fn ended_if(&mut self, is_end: bool) {
        if is_end && self.end == End::Refused(Refusal::ClientAbort) {
            self.end = End::Ok;
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.recorder.finish(&self.notes, self.end);
        self.recorder.metrics().end();
    }
}

/// Runs a step that may panic: if it does, `internal` is what stays noted.
fn guarded<T>(pending: &mut Option<Pending>, step: impl FnOnce() -> T) -> T {
    let end = pending.as_mut().map(|pending| std::mem::replace(&mut pending.end, End::Refused(Refusal::Internal)));
    let result = step();
    if let (Some(pending), Some(end)) = (pending, end) {
        pending.end = end;
    }
    result
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, convert::Infallible, panic::AssertUnwindSafe};

    use futures_util::{FutureExt, future};
    use http_body_util::BodyExt;
    use serde_json::Value;

    use super::*;
    use crate::{guard::rule::Rule, log::Config, metrics::Metrics};

    /// A body of prepared frames; `None` panics.
    #[derive(Debug)]
    struct Frames(VecDeque<Option<Result<&'static str, Refusal>>>);

    impl Body for Frames {
        type Data = Bytes;
        type Error = Refusal;
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
            Poll::Ready(self.0.pop_front().map(|frame| frame.expect("boom").map(|data| Frame::data(Bytes::from(data)))))
        }
        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }
    }

    struct Bench {
        _dir: tempfile::TempDir,
        path: std::path::PathBuf,
        recorder: Arc<Recorder>,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("access.log");
            let config = Config { access_file: path.to_str().unwrap().to_owned(), ..Config::default() };
            let recorder = Recorder::new(&config, Arc::new(Metrics::new("", "").unwrap())).unwrap();
            Bench { _dir: dir, path, recorder }
        }

        fn call<F, B>(&self, answer: F) -> RecordFuture<F>
        where
            F: Future<Output = Result<Response<B>, Refusal>> + 'static,
            B: Body<Error = Refusal> + 'static,
        {
            let notes = Arc::new(Notes::new(Instant::now()));
            notes.identify(header::HeaderValue::from_static("id-1"));
            let target = Bytes::from_static(b"/a?token=hunter2");
            let request = Request::get("/a?token=hunter2")
                .header("host", "shop.example")
                .header("user-agent", "curl")
                .header("authorization", "Bearer hunter2")
                .header("cookie", "s=hunter2")
                .extension(Arrival { client: Arc::new(Client::local()), target, notes, sent: Names::ANY })
                .body(())
                .unwrap();
            let mut answer = Some(answer);
            let service = tower::service_fn(move |_: Request<()>| answer.take().unwrap());
            RecordLayer::new(Arc::clone(&self.recorder)).layer(service).call(request)
        }

        fn ok(&self, frames: impl IntoIterator<Item = Option<Result<&'static str, Refusal>>>) -> Recorded<Frames> {
            let body = Frames(frames.into_iter().collect());
            self.call(future::ready(Ok(Response::new(body)))).now_or_never().unwrap().unwrap().into_body()
        }

        /// The one line that was written.
        fn line(&self) -> Value {
            assert!(self.recorder.flush(std::time::Duration::from_secs(5)));
            assert_eq!((self.recorder.metrics().requests(), self.recorder.metrics().active()), (1, 0));
            let text = std::fs::read_to_string(&self.path).unwrap();
            assert!(!text.contains("hunter2"), "{text}");
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
        }

        fn ending(&self) -> (String, u64, u64) {
            let line = self.line();
            (line["end"].as_str().unwrap().to_owned(), line["status"].as_u64().unwrap(), line["bytes_out"].as_u64().unwrap())
        }
    }

    #[test]
    fn an_answer_that_was_read_whole_is_ok() {
        let bench = Bench::new();
        let body = bench.ok([Some(Ok("hello ")), Some(Ok("world"))]);
        let body = body.collect().now_or_never().unwrap().unwrap();
        assert_eq!(body.to_bytes(), "hello world");
        let line = bench.line();
        assert_eq!(
            (&line["id"], &line["host"], &line["path"], &line["ua"]),
            (&"id-1".into(), &"shop.example".into(), &"/a".into(), &"curl".into())
        );
        assert_eq!(bench.ending(), ("ok".to_owned(), 200, 11));
    }

    #[test]
    fn a_body_that_nobody_needs_to_read_is_ok() {
        let bench = Bench::new();
        drop(bench.ok([]));
        assert_eq!(bench.ending(), ("ok".to_owned(), 200, 0));
    }

    #[test]
    fn a_body_whose_last_frame_was_taken_is_ok_without_another_poll() {
        let bench = Bench::new();
        let mut body = bench.ok([Some(Ok("x"))]);
        assert!(body.frame().now_or_never().unwrap().unwrap().is_ok());
        drop(body);
        assert_eq!(bench.ending(), ("ok".to_owned(), 200, 1));
    }

    #[test]
    fn a_body_that_is_dropped_early_is_an_abort() {
        let bench = Bench::new();
        let mut body = bench.ok([Some(Ok("hello ")), Some(Ok("world"))]);
        assert!(body.frame().now_or_never().unwrap().unwrap().is_ok());
        drop(body);
        assert_eq!(bench.ending(), ("client_abort".to_owned(), 200, 6));
    }

    #[test]
    fn an_error_inside_the_body_is_its_refusal() {
        let bench = Bench::new();
        let body = bench.ok([Some(Ok("x")), Some(Err(Refusal::UpstreamBad(Rule::P4)))]);
        assert!(body.collect().now_or_never().unwrap().is_err());
        assert_eq!(bench.line()["rule"], "P4");
        assert_eq!(bench.ending(), ("upstream_bad".to_owned(), 200, 1));
    }

    #[test]
    fn a_refusal_has_its_own_status_and_rule() {
        let bench = Bench::new();
        let refused = bench.call(future::ready(Err::<Response<Frames>, _>(Refusal::BadTarget(Rule::T4))));
        assert_eq!(refused.now_or_never().unwrap().unwrap_err(), Refusal::BadTarget(Rule::T4));
        assert_eq!(bench.line()["rule"], "T4");
        assert_eq!(bench.ending(), ("bad_target".to_owned(), 400, 0));
    }

    #[test]
    fn a_client_that_leaves_before_the_answer_is_an_abort() {
        let bench = Bench::new();
        drop(bench.call(future::pending::<Result<Response<Frames>, Refusal>>()));
        assert_eq!(bench.ending(), ("client_abort".to_owned(), 499, 0));
    }

    #[test]
    fn a_panic_is_an_internal_error_and_one_line() {
        let bench = Bench::new();
        let panicking = bench.call(future::lazy(|_| -> Result<Response<Frames>, Refusal> { panic!("boom") }));
        assert!(AssertUnwindSafe(panicking).catch_unwind().now_or_never().unwrap().is_err());
        assert_eq!(bench.ending(), ("internal".to_owned(), 500, 0));
        let bench = Bench::new();
        let body = bench.ok([None]);
        assert!(AssertUnwindSafe(body.collect()).catch_unwind().now_or_never().unwrap().is_err());
        assert_eq!(bench.ending(), ("internal".to_owned(), 200, 0));
    }

    #[test]
    fn the_connection_has_the_last_word() {
        let bench = Bench::new();
        let mut body = bench.ok([Some(Ok("x"))]);
        assert!(body.frame().now_or_never().unwrap().unwrap().is_ok());
        Pin::new(&mut body).settle(End::SlowRead);
        drop(body);
        assert_eq!(bench.ending(), ("slow_read".to_owned(), 200, 1));
    }

    #[test]
    fn refused_bytes_are_a_line_too() {
        let bench = Bench::new();
        let client = Client::local();
        bench.recorder.refused_bytes(&client, Instant::now(), b"G\0T", b"/x?token=hunter2\n", Refusal::BadFraming(Rule::G2));
        let line = bench.line();
        assert_eq!((&line["method"], &line["query"], &line["rule"]), (&"G\0T".into(), &"token=[redacted]".into(), &"G2".into()));
        assert_eq!(bench.ending(), ("bad_framing".to_owned(), 400, 0));
    }

    #[test]
    fn size_and_end_are_those_of_the_inner_body() {
        let bench = Bench::new();
        let inner = http_body_util::Full::new(Bytes::from_static(b"abc")).map_err(|e: Infallible| match e {});
        let body = bench.call(future::ready(Ok(Response::new(inner)))).now_or_never().unwrap().unwrap().into_body();
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(3), false));
    }
}
