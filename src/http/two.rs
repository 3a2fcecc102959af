//! An HTTP/2 connection: hyper's server, with every option in one place. RFC 9113.
//!
//! Threats: exhaustion (streams, windows, field lists and send buffers are bounded; frames that cost nothing are counted by
//! [`super::frames`]; a stream that is reset in the turn of its HEADERS is never handed in, so it never reaches Puma) and
//! slowloris (an idle connection, or one whose client stops taking what it asked for, is closed by its [`Beat`]).

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service;

use super::{
    Sites,
    arrival::{Arrival, Notes},
    body::{Received, Relay},
    frames::{CALM, Meter},
};
use crate::{
    accept::{
        client::Client,
        pace::{Beat, Pace, Pulse},
        stream::Stream,
    },
    refusal::Refusal,
};

/// Serves one connection until it ends.
pub async fn serve<S, B>(sites: Arc<Sites<S>>, stream: Stream, client: Arc<Client>, beat: Beat)
where
    S: Service<Request<Received>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
    B: Relay + Send + 'static,
{
    let site = sites.current();
    let load = Arc::new(Load::default());
    let metered = Metered { stream, meter: Meter::new(), beat: beat.share(), load: Arc::clone(&load), clock: beat.clock() };
    let streams = Streams { sites: Arc::clone(&sites), client, load: Arc::clone(&load) };
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(site.limits.head).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(LOCAL_RESETS)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .enable_connect_protocol();
    let mut connection = pin!(builder.serve_connection(TokioIo::new(metered), streams));
    let born = beat.now();
    let (mut is_leaving, mut pace, mut moved) = (false, None::<Pace>, 0);
    std::future::poll_fn(|cx| {
        beat.wake_by(cx.waker());
        if connection.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let now = beat.now();
        let is_old = now.saturating_sub(born) >= site.timeouts.connection_age.as_millis();
        if !is_leaving && (is_old || sites.is_draining() || site.overload.ends_connections()) {
            is_leaving = true;
            connection.as_mut().graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        if beat.is_over() {
            return Poll::Ready(());
        }
        let total = load.moved.load(Relaxed);
        if load.waiting.load(Relaxed) > 0 {
            let is_new = pace.is_none();
            let pace = pace.get_or_insert_with(|| Pace::new(now, site.timeouts.write_stall, site.rates.write_min, site.rates.grace));
            if is_new || total > moved {
                pace.moved(usize::try_from(total.saturating_sub(moved)).unwrap_or(usize::MAX));
                beat.until(pace.deadline(now));
            }
        } else {
            pace = None;
            let is_idle = load.streams.load(Relaxed) == 0;
            if is_idle { beat.until(now.saturating_add(site.timeouts.idle.as_millis())) } else { beat.unlimited() }
        }
        moved = total;
        Poll::Pending
    })
    .await;
}

/// What goes on in one connection.
#[derive(Debug, Default)]
struct Load {
    /// Streams that are not yet answered in full.
    streams: AtomicUsize,
    /// Answers whose next piece the client has to make room for.
    waiting: AtomicUsize,
    /// Bytes of answers that the client has made room for.
    moved: AtomicU64,
    /// Streams answered since the meter looked last.
    answered: AtomicU32,
}

/// Hands the streams of a connection in.
struct Streams<S> {
    sites: Arc<Sites<S>>,
    client: Arc<Client>,
    load: Arc<Load>,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for Streams<S>
where
    S: Service<Request<Received>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
    B: Relay + Send + 'static,
{
    type Response = Response<Watched<B>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let target = parts.uri.path_and_query().map_or(Bytes::new(), |target| Bytes::copy_from_slice(target.as_str().as_bytes()));
        let notes = Arc::new(Notes::new(Instant::now()));
        parts.extensions.insert(Arrival { client: Arc::clone(&self.client), target, notes });
        let body = if body.is_end_stream() { Received::None } else { Received::Two(body) };
        let mut stack = self.sites.current().stack();
        let open = Open::new(Arc::clone(&self.load));
        Box::pin(async move {
            // hyper looks for a reset after the first turn: a stream that was reset in the same read ends here.
            tokio::task::yield_now().await;
            let response = stack.call(Request::from_parts(parts, body)).await?;
            Ok(response.map(|body| Watched::new(body, open)))
        })
    }
}

/// Counts a stream from its head to the end of its answer.
struct Open(Arc<Load>);

impl Open {
    fn new(load: Arc<Load>) -> Self {
        load.streams.fetch_add(1, Relaxed);
        Open(load)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
        self.0.answered.fetch_add(1, Relaxed);
    }
}

pin_project! {
    /// An answer's body, which tells its connection whether the client or Puma has the turn.
    pub struct Watched<B> {
        #[pin]
        body: B,
        open: Open,
        is_waiting: bool,
    }

    impl<B> PinnedDrop for Watched<B> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if *this.is_waiting {
                this.open.0.waiting.fetch_sub(1, Relaxed);
            }
        }
    }
}

impl<B: Body> Watched<B> {
    fn new(body: B, open: Open) -> Self {
        let is_waiting = !body.is_end_stream();
        if is_waiting {
            open.0.waiting.fetch_add(1, Relaxed);
        }
        Watched { body, open, is_waiting }
    }
}

impl<B: Body<Data = Bytes, Error = Refusal>> Body for Watched<B> {
    type Data = Bytes;
    type Error = Refusal;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        let this = self.project();
        let load = &this.open.0;
        if std::mem::take(this.is_waiting) {
            load.waiting.fetch_sub(1, Relaxed);
        }
        let frame = ready!(this.body.poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            load.moved.fetch_add(frame.data_ref().map_or(0, Bytes::len) as u64, Relaxed);
            load.waiting.fetch_add(1, Relaxed);
            *this.is_waiting = true;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The bytes of a connection, counted by frames as they are read.
struct Metered {
    stream: Stream,
    meter: Meter,
    beat: Arc<Pulse>,
    load: Arc<Load>,
    clock: Arc<crate::accept::pace::Sweep>,
}

impl AsyncRead for Metered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, into))?;
        let fresh = into.filled().get(before..).unwrap_or_default();
        this.beat.advance(1);
        if this.meter.see(fresh, this.clock.now(), this.load.answered.swap(0, Relaxed)).is_err() {
            // The connection ends here; whether its last words arrive does not matter.
            if Pin::new(&mut this.stream).poll_write(cx, &CALM).is_ready() && Pin::new(&mut this.stream).poll_flush(cx).is_pending() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Streams of one connection at a time (RFC 9113 §6.5.2 recommends at least 100).
const STREAMS: u32 = 100;
/// Bytes of a request body that may be under way, by stream and by connection.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const FRAME: u32 = 16 * 1024;
/// Bytes of an answer that wait for a stream's window.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that were reset before they were looked at (rapid reset).
const RESETS: usize = 20;
/// Streams that we had to reset for errors of the client's (MadeYouReset, CVE-2025-8671).
const LOCAL_RESETS: usize = 64;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
