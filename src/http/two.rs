//! An HTTP/2 connection: hyper's server, with every option in one place. RFC 9113.
//!
//! Threats: exhaustion (streams, windows, field lists and send buffers are bounded; frames that cost nothing are counted by
//! [`super::frames`]; a stream that is reset in the turn of its HEADERS is never handed in, so it never reaches Puma) and
//! slowloris (an idle connection, or one whose client stops taking what it asked for, is closed by its [`Beat`]). Frames that
//! ask for nothing, such as PING, do not keep a connection from being idle.

mod watch;

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering::Relaxed},
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

use self::watch::{Load, Verdict, Watch};
use super::{
    Sites,
    arrival::{Arrival, Notes},
    body::{Received, Relay},
    extended_connect::{self, Outcome},
    frames::{CALM, Meter, UPDATE_EVERY},
    upgrade::Life,
};
use crate::{
    accept::{
        client::Client,
        pace::{Beat, Pulse, Sweep},
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
    let metered =
        Metered { stream, meter: Meter::new(), beat: beat.share(), load: Arc::clone(&load), clock: beat.clock(), sent: 0, is_torn: false };
    let streams = Streams { sites: Arc::clone(&sites), client, load: Arc::clone(&load), clock: beat.clock() };
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
    let mut watch = Watch::new(site, sites, load, beat.now());
    std::future::poll_fn(|cx| {
        beat.wake_by(cx.waker());
        if connection.as_mut().poll(cx).is_ready() || beat.is_evicted() {
            return Poll::Ready(());
        }
        match watch.look(beat.now()) {
            Verdict::Until(deadline) => beat.until(deadline),
            Verdict::Leave => {
                connection.as_mut().graceful_shutdown();
                cx.waker().wake_by_ref();
            }
            Verdict::End => return Poll::Ready(()),
        }
        Poll::Pending
    })
    .await;
}

/// Hands the streams of a connection in.
struct Streams<S> {
    sites: Arc<Sites<S>>,
    client: Arc<Client>,
    load: Arc<Load>,
    clock: Arc<Sweep>,
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
        let near = extended_connect::translate(&mut parts);
        let body = if body.is_end_stream() { Received::None } else { Received::Two(body) };
        let (sites, clock) = (Arc::clone(&self.sites), Arc::clone(&self.clock));
        let open = Open::new(Arc::clone(&self.load));
        Box::pin(async move {
            // hyper looks for a reset after the first turn: a stream that was reset in the same read ends here.
            tokio::task::yield_now().await;
            let site = sites.current();
            let mut response = site.stack().call(Request::from_parts(parts, body)).await?;
            if let Some(near) = near {
                match extended_connect::outcome(&mut response) {
                    Outcome::Open(far) => {
                        let place = Open::new(Arc::clone(&open.0));
                        let (idle, spread) = (site.tunnel_idle, site.tunnel_spread);
                        let life = Life { idle, spread, is_draining: move || sites.is_draining() };
                        extended_connect::tunnel(near, far, clock.enrol(u64::MAX), life, place);
                    }
                    Outcome::Ignored => return Ok(response.map(|_| Watched::nothing(open))),
                    Outcome::Answered => {}
                }
            }
            Ok(response.map(|body| Watched::new(body, open)))
        })
    }
}

/// Counts a stream from its head to the end of its answer.
struct Open(Arc<Load>);

impl Open {
    fn new(load: Arc<Load>) -> Self {
        load.streams.fetch_add(1, Relaxed);
        load.seen.fetch_add(1, Relaxed);
        Open(load)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
    }
}

pin_project! {
    /// An answer's body, which tells its connection whether the client or Puma has the turn.
    ///
    /// It gives out small pieces: h2 keeps a whole piece for a client that has room for one byte, and after the last piece
    /// nobody watches how fast the client takes it.
    pub struct Watched<B: Body> {
        #[pin]
        body: Option<B>,
        // The rest of the last piece.
        rest: Bytes,
        open: Open,
        is_waiting: bool,
    }

    impl<B: Body> PinnedDrop for Watched<B> {
        fn drop(this: Pin<&mut Self>) {
            let is_whole = this.is_end_stream();
            let this = this.project();
            if *this.is_waiting {
                this.open.0.waiting.fetch_sub(1, Relaxed);
            }
            // A stream that was reset earns nothing, or a flood of resets would pay for itself.
            if is_whole {
                this.open.0.answered.fetch_add(1, Relaxed);
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
        Watched { body: Some(body), rest: Bytes::new(), open, is_waiting }
    }

    fn nothing(open: Open) -> Self {
        Watched { body: None, rest: Bytes::new(), open, is_waiting: false }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.as_ref().is_none_or(Body::is_end_stream)
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
        if this.rest.is_empty() {
            let Some(body) = this.body.as_pin_mut() else { return Poll::Ready(None) };
            match ready!(body.poll_frame(cx)) {
                Some(Ok(frame)) => *this.rest = frame.into_data().unwrap_or_default(),
                Some(Err(refusal)) => return Poll::Ready(Some(Err(refusal))),
                None => return Poll::Ready(None),
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        load.moved.fetch_add(piece.len() as u64, Relaxed);
        load.waiting.fetch_add(1, Relaxed);
        *this.is_waiting = true;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        Watched::is_end_stream(self)
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        match self.body.as_ref().map_or(Some(0), |body| body.size_hint().exact()) {
            Some(length) => SizeHint::with_exact(length.saturating_add(rest)),
            None => SizeHint::default(),
        }
    }
}

/// The bytes of a connection, counted by frames as they are read.
struct Metered {
    stream: Stream,
    meter: Meter,
    beat: Arc<Pulse>,
    load: Arc<Load>,
    clock: Arc<Sweep>,
    /// Bytes that were written and have not yet earned anything.
    sent: u64,
    /// The last write took only a part of what it was given.
    is_torn: bool,
}

impl Metered {
    /// The connection's last words. They are left out where they would stand in the middle of a frame; bytes that nobody
    /// reads would turn the close into a reset, so what is here is read away.
    fn calm(&mut self, cx: &mut Context<'_>) {
        let stream = &mut self.stream;
        let said = !self.is_torn
            && matches!(Pin::new(&mut *stream).poll_write(cx, &CALM), Poll::Ready(Ok(_)))
            && matches!(Pin::new(&mut *stream).poll_flush(cx), Poll::Ready(Ok(())))
            && matches!(Pin::new(&mut *stream).poll_shutdown(cx), Poll::Ready(Ok(())));
        let mut away = [0; 4096];
        for _ in 0..if said { READ_AWAY } else { 0 } {
            let mut into = ReadBuf::new(&mut away);
            if !matches!(Pin::new(&mut *stream).poll_read(cx, &mut into), Poll::Ready(Ok(()))) || into.filled().is_empty() {
                return;
            }
        }
    }

    fn wrote(&mut self, wrote: Poll<io::Result<usize>>, offered: usize) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &wrote {
            self.is_torn = *n < offered;
            self.sent = self.sent.saturating_add(*n as u64);
            self.beat.advance(*n as u64);
        }
        wrote
    }
}

impl AsyncRead for Metered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, into))?;
        let fresh = into.filled().get(before..).unwrap_or_default();
        this.beat.advance(fresh.len() as u64);
        let (answered, sent) = (this.load.answered.swap(0, Relaxed), this.sent);
        this.sent = sent % UPDATE_EVERY;
        if this.meter.see(fresh, this.clock.now(), answered, sent).is_err() {
            into.set_filled(before);
            this.calm(cx);
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.wrote(wrote, bytes.len())
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.wrote(wrote, slices.iter().map(|slice| slice.len()).sum())
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
/// Bytes of an answer that are handed to a stream at once.
const PIECE: usize = 16 * 1024;
/// Bytes of an answer that wait for a stream's window.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that were reset before they were looked at (rapid reset).
const RESETS: usize = 20;
/// Streams that we had to reset for errors of the client's (MadeYouReset, CVE-2025-8671).
const LOCAL_RESETS: usize = 64;
/// Reads after the last words, each of 4 KiB.
const READ_AWAY: usize = 64;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
