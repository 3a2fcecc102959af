//! WebSocket tunnels: after a 101 the bytes of both sides are passed on unread.
//!
//! Threat: exhaustion. A tunnel holds its client's connection permit and a lane of its own, no thread of Puma; it ends when
//! neither side has sent a byte for `timeouts.tunnel_idle`. When Palisade drains, tunnels end one by one over a part of the
//! drain: clients that all come back in one moment are a load that no application is made for. RFC 9110 §7.8, RFC 6455.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Site, Sites, one::wire::Wire};
use crate::{accept::pace::Beat, units::Deadline};

/// Puma's end of a tunnel, as an extension of the 101.
#[derive(Clone)]
pub struct FarEnd(Arc<Mutex<Option<Far>>>);

/// Puma's end: the stream, what it sent behind its 101, and what is counted as long as it lives.
pub struct Far {
    /// The stream to Puma.
    pub stream: Pin<Box<dyn Duplex>>,
    /// Bytes that came with the 101.
    pub early: Bytes,
    /// The place in the lane of upgrades.
    pub place: Box<dyn std::any::Any + Send>,
}

/// Anything that can be read and written.
pub trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

impl FarEnd {
    /// Puma's end, to be taken once.
    pub fn new(far: Far) -> Self {
        FarEnd(Arc::new(Mutex::new(Some(far))))
    }

    /// Takes it.
    pub fn take(&self) -> Option<Far> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl std::fmt::Debug for Far {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Far").field("early", &self.early.len()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for FarEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FarEnd")
    }
}

/// Passes bytes between an HTTP/1 client and Puma until one side ends.
pub async fn tunnel<S>(wire: Wire, far: FarEnd, sites: &Sites<S>, site: &Site<S>) {
    let Some(far) = far.take() else { return };
    let (stream, read_ahead, beat) = wire.into_parts();
    let life = Life { idle: site.tunnel_idle, spread: site.tunnel_spread, is_draining: || sites.is_draining() };
    between(Box::pin(stream), read_ahead, far, beat, life).await;
}

/// When a tunnel ends that neither side closes.
#[derive(Clone, Copy, Debug)]
pub struct Life<D> {
    /// The longest silence.
    pub idle: Deadline,
    /// Over this long the tunnels of a draining process end, each at a moment of its own.
    pub spread: Duration,
    /// Whether Palisade is shutting down; whoever waits is woken then.
    pub is_draining: D,
}

/// Passes bytes between any client stream and Puma until both have closed, or its life is over.
pub async fn between<D: Fn() -> bool>(client: Pin<Box<dyn Duplex>>, read_ahead: Bytes, far: Far, beat: Beat, life: Life<D>) {
    let mut upward = Pipe::new(read_ahead);
    let mut downward = Pipe::new(far.early);
    let (mut client, mut puma) = (client, far.stream);
    let place = far.place;
    let idle = life.idle.as_millis();
    let mut last = u64::MAX;
    beat.until(beat.now().saturating_add(idle));
    std::future::poll_fn(|cx| {
        beat.wake_by(cx.waker());
        let up = upward.poll(cx, client.as_mut(), puma.as_mut());
        let down = downward.poll(cx, puma.as_mut(), client.as_mut());
        let leaves = last == u64::MAX && (life.is_draining)();
        if leaves {
            let spread = u64::try_from(life.spread.as_millis()).unwrap_or(u64::MAX);
            last = beat.now().saturating_add(fastrand::u64(..=spread));
        }
        if leaves | upward.took_moved() | downward.took_moved() {
            beat.until(beat.now().saturating_add(idle).min(last));
        }
        match (up, down) {
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) | (Poll::Ready(Err(())), _) | (_, Poll::Ready(Err(()))) => Poll::Ready(()),
            _ if beat.is_over() => Poll::Ready(()),
            _ => Poll::Pending,
        }
    })
    .await;
    drop(place);
}

/// One direction.
struct Pipe {
    pending: BytesMut,
    moved: bool,
    ended: bool,
    closed: bool,
}

impl Pipe {
    fn new(first: Bytes) -> Self {
        Pipe { pending: BytesMut::from(&first[..]), moved: false, ended: false, closed: false }
    }

    fn took_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    fn poll(&mut self, cx: &mut Context<'_>, mut from: Pin<&mut dyn Duplex>, mut to: Pin<&mut dyn Duplex>) -> Poll<Result<(), ()>> {
        loop {
            while !self.pending.is_empty() {
                match ready!(to.as_mut().poll_write(cx, &self.pending)) {
                    Ok(n) if n > 0 => self.pending.advance(n.min(self.pending.len())),
                    Ok(_) | Err(_) => return Poll::Ready(Err(())),
                }
                self.moved = true;
            }
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            if self.ended {
                return to.as_mut().poll_shutdown(cx).map(|done| {
                    self.closed = true;
                    done.map_err(|_| ())
                });
            }
            self.pending = BytesMut::new();
            let mut space = [0u8; PIECE];
            let mut into = ReadBuf::new(&mut space);
            match from.as_mut().poll_read(cx, &mut into) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(())),
                Poll::Pending => {
                    return match to.as_mut().poll_flush(cx) {
                        Poll::Ready(Err(_)) => Poll::Ready(Err(())),
                        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                    };
                }
            }
            self.ended = into.filled().is_empty();
            self.pending.extend_from_slice(into.filled());
        }
    }
}

const PIECE: usize = 8 * 1024;
