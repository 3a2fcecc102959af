//! An HTTP/2 connection: h2's frames, with every option in one place, and its streams in one task. RFC 9113.
//!
//! Threats: exhaustion (streams, windows, field lists and send buffers are bounded; frames that cost nothing are counted by
//! [`super::frames`]; a stream that is reset before its turn is never handed in, so it never reaches Puma) and slowloris (an
//! idle connection, or one whose client stops taking what it asked for, is closed by its [`Beat`]; an answer that stands still
//! is ended alone). Frames that ask for nothing, such as PING, do not keep a connection from being idle.
//!
//! Streams are not tasks of their own: what comes in one turn of the event loop is answered in one write, which is most of the
//! price of a request (`docs/decisions/0007-http-2-in-one-task.md`).

mod alive;
mod bell;
mod incoming;
mod slots;
mod stalls;
mod stream;
mod watch;
mod wire;

use std::{
    convert::Infallible,
    pin::pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{
    Reason,
    server::{Builder, Connection},
};
use http::{Request, Response};
use tower_service::Service;

pub use self::incoming::Incoming;
use self::{
    alive::Alive,
    bell::{Bells, Half},
    slots::Slots,
    stream::Front,
    watch::{Load, Verdict, Watch},
    wire::Wire,
};
use super::{
    Sites,
    body::{Received, Relay},
};
use crate::accept::{beat::Beat, client::Client, stream::Stream};

/// Serves one connection until it ends.
pub async fn serve<S, B>(sites: Arc<Sites<S>>, stream: Stream, client: Arc<Client>, beat: Beat)
where
    S: Service<Request<Received>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
    B: Relay + Send + 'static,
{
    let site = sites.current();
    let load = Load::new();
    let wire = Wire::new(stream, beat.share(), Arc::clone(&load), beat.clock());
    let mut watch = Watch::new(Arc::clone(&site), Arc::clone(&sites), Arc::clone(&load), beat.now());
    let head = u32::try_from(site.limits.head).unwrap_or(u32::MAX);
    let Some(mut connection) = greet(&wire, head, &mut watch, &beat).await else { return };
    let mut alive = Alive::new(connection.ping_pong());
    let stack = Mutex::new((Arc::clone(&site), site.stack()));
    let front = Arc::new(Front { sites, client, load, clock: beat.clock(), stack });
    let bells = std::future::poll_fn(|cx| Poll::Ready(Bells::new(cx.waker()))).await;
    let mut streams = Slots::new(bells.streams.clone());
    std::future::poll_fn(|cx| {
        bells.enter();
        let mut frames = Context::from_waker(&bells.frames);
        if front.load.pause() < u64::MAX && front.load.resume(beat.now()) {
            bells.frames.wake_by_ref();
        }
        for _ in 0..ROUNDS {
            let has_frames = bells.take(Half::Frames);
            if has_frames {
                loop {
                    match connection.poll_accept(&mut frames) {
                        Poll::Ready(Some(Ok((request, mut respond)))) => {
                            if respond.poll_reset(&mut frames).is_ready() {
                                front.load.reset();
                            } else if streams.is_full() {
                                respond.send_reset(Reason::REFUSED_STREAM);
                            } else {
                                let open = front.load.open();
                                streams.push(stream::serve(Arc::clone(&front), open, request, respond));
                            }
                        }
                        Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                        Poll::Pending => break,
                    }
                }
            }
            let has_streams = bells.take(Half::Streams);
            if has_streams {
                streams.poll();
            }
            if !has_frames && !has_streams {
                break;
            }
        }
        let sent = wire.poll_send(&mut frames);
        if matches!(sent, Poll::Ready(Err(_))) || beat.is_evicted() {
            return Poll::Ready(());
        }
        let (now, is_blocked) = (beat.now(), sent.is_pending());
        let Some(silent) = alive.look(&mut frames, now, &front.load) else { return Poll::Ready(()) };
        let verdict = match watch.look(now, is_blocked) {
            Verdict::End if is_blocked && wire.push(cx) => watch.look(now, true),
            other @ (Verdict::Until(_) | Verdict::Leave | Verdict::End) => other,
        };
        match verdict {
            Verdict::Until(deadline) => {
                let fill = if is_blocked { wire.fill(cx, now, deadline) } else { u64::MAX };
                beat.until(deadline.min(silent).min(streams.rest(now)).min(front.load.pause()).min(fill));
            }
            Verdict::Leave => {
                connection.graceful_shutdown();
                bells.frames.wake_by_ref();
            }
            Verdict::End => return Poll::Ready(()),
        }
        if bells.leave() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await;
}

/// The connection once the client has said that it speaks HTTP/2; `None` where it does not in time.
async fn greet<S>(wire: &Wire, head: u32, watch: &mut Watch<S>, beat: &Beat) -> Option<Connection<Wire, Bytes>> {
    let mut greeting = pin!(
        Builder::new()
            .max_concurrent_streams(STREAMS)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(head)
            .max_pending_accept_reset_streams(RESETS)
            .max_local_error_reset_streams(Some(LOCAL_RESETS))
            .enable_connect_protocol()
            .handshake::<_, Bytes>(wire.share())
    );
    let mut is_leaving = false;
    std::future::poll_fn(|cx| {
        beat.wake_by(cx.waker());
        let greeted = greeting.as_mut().poll(cx);
        let sent = wire.poll_send(cx);
        if matches!(sent, Poll::Ready(Err(_))) || beat.is_evicted() {
            return Poll::Ready(None);
        }
        if let Poll::Ready(greeted) = greeted {
            return Poll::Ready(greeted.ok().map(|mut connection| {
                if is_leaving {
                    connection.graceful_shutdown();
                }
                connection
            }));
        }
        match watch.look(beat.now(), sent.is_pending()) {
            Verdict::Until(deadline) => beat.until(deadline),
            Verdict::Leave => {
                is_leaving = true;
                cx.waker().wake_by_ref();
            }
            Verdict::End => return Poll::Ready(None),
        }
        Poll::Pending
    })
    .await
}

/// How often a turn goes back to frames and streams that ring for each other, before others have theirs.
const ROUNDS: usize = 4;
/// Streams of one connection at a time (RFC 9113 §6.5.2 recommends at least 100).
const STREAMS: u32 = 100;
/// Bytes of a request body that may be under way, by stream and by connection.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const FRAME: u32 = 16 * 1024;
/// Bytes of an answer that wait in h2 for the socket.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that were reset before they were looked at (rapid reset).
const RESETS: usize = 20;
/// Streams that we had to reset for errors of the client's (MadeYouReset, CVE-2025-8671).
const LOCAL_RESETS: usize = 64;

#[cfg(test)]
mod tests;
