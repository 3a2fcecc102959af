//! WebSocket tunnels: after a 101 the bytes of both sides are passed on as they are; only the lengths of frames are read.
//!
//! Threat: exhaustion. A tunnel holds its client's connection permit and a lane of its own, no thread of Puma; it ends when
//! neither side has sent a byte for `timeouts.tunnel_idle`. When Palisade drains, tunnels end one by one over a part of the
//! drain: clients that all come back in one moment are a load that no application is made for. Each is told so by a Close
//! frame 1012 behind the application's last whole frame, and has a moment to say goodbye itself. RFC 9110 §7.8, RFC 6455 §7.1.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Site, Sites,
    one::wire::Wire,
    websocket::{Frames, RESTARTING},
};
use crate::{accept::beat::Beat, units::Deadline};

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

    /// Has something counted as long as the tunnel lives.
    pub fn hold(&self, more: impl std::any::Any + Send) {
        if let Some(far) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let place = std::mem::replace(&mut far.place, Box::new(()));
            far.place = Box::new((place, more));
        }
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
    let mut silent_until = beat.now().saturating_add(idle);
    let mut leave = Leave::NotYet;
    std::future::poll_fn(|cx| {
        beat.wake_by(cx.waker());
        let now = beat.now();
        leave = leave.next(now, &life);
        downward.is_last |= matches!(leave, Leave::Until(_));
        let up = upward.poll(cx, client.as_mut(), puma.as_mut());
        let down = downward.poll(cx, puma.as_mut(), client.as_mut());
        if upward.took_moved() | downward.took_moved() {
            silent_until = now.saturating_add(idle);
        }
        beat.until(leave.at().min(silent_until));
        match (up, down) {
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) | (Poll::Ready(Err(())), _) | (_, Poll::Ready(Err(()))) => return Poll::Ready(()),
            _ if beat.is_evicted() || now >= silent_until || matches!(leave, Leave::Until(last) if now >= last) => return Poll::Ready(()),
            _ => {}
        }
        // Both have said goodbye: the server closes first (RFC 6455 §7.1.1).
        if downward.is_last && downward.has_said_goodbye() && upward.has_said_goodbye() {
            return client.as_mut().poll_shutdown(cx).map(|_| ());
        }
        Poll::Pending
    })
    .await;
    drop(place);
}

/// How far the tunnel of a draining process is with its end; times in milliseconds of the sweep.
#[derive(Clone, Copy, Debug)]
enum Leave {
    /// Nothing drains.
    NotYet,
    /// The moment that was drawn for it.
    At(u64),
    /// Goodbye is being said, until then at the latest.
    Until(u64),
}

impl Leave {
    fn next<D: Fn() -> bool>(self, now: u64, life: &Life<D>) -> Self {
        match self {
            Leave::NotYet if (life.is_draining)() => {
                let spread = u64::try_from(life.spread.as_millis()).unwrap_or(u64::MAX);
                Leave::At(now.saturating_add(fastrand::u64(..=spread))).next(now, life)
            }
            Leave::At(moment) if now >= moment => Leave::Until(now.saturating_add(GOODBYE)),
            Leave::NotYet | Leave::At(_) | Leave::Until(_) => self,
        }
    }

    fn at(self) -> u64 {
        match self {
            Leave::NotYet => u64::MAX,
            Leave::At(moment) | Leave::Until(moment) => moment,
        }
    }
}

/// One direction.
struct Pipe {
    pending: BytesMut,
    frames: Frames,
    moved: bool,
    /// Nothing goes out any more behind the frame that has begun, but our goodbye.
    is_last: bool,
    ended: bool,
    closed: bool,
}

impl Pipe {
    fn new(first: Bytes) -> Self {
        let mut frames = Frames::default();
        frames.advance(&first);
        Pipe { pending: BytesMut::from(&first[..]), frames, moved: false, is_last: false, ended: false, closed: false }
    }

    fn took_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// A Close frame, the application's, the client's or ours, has gone out in this direction.
    fn has_said_goodbye(&self) -> bool {
        self.pending.is_empty() && self.frames.has_closed()
    }

    fn poll(&mut self, cx: &mut Context<'_>, mut from: Pin<&mut dyn Duplex>, mut to: Pin<&mut dyn Duplex>) -> Poll<Result<(), ()>> {
        loop {
            if self.is_last && self.frames.is_between() && !self.frames.has_closed() {
                self.frames.advance(&RESTARTING);
                self.pending.extend_from_slice(&RESTARTING);
            }
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
            if self.is_last && self.frames.has_closed() {
                return self.flushed(cx, to);
            }
            let mut space = [0u8; PIECE];
            let mut into = ReadBuf::new(&mut space);
            match from.as_mut().poll_read(cx, &mut into) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(())),
                Poll::Pending => return self.flushed(cx, to),
            }
            let read = into.filled();
            self.ended = read.is_empty();
            let used = if self.is_last { self.frames.advance_to_end(read) } else { read.len() };
            if !self.is_last {
                self.frames.advance(read);
            }
            self.pending.extend_from_slice(read.get(..used).unwrap_or_default());
        }
    }

    fn flushed(&mut self, cx: &mut Context<'_>, to: Pin<&mut dyn Duplex>) -> Poll<Result<(), ()>> {
        match to.poll_flush(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(Err(())),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }
}

const PIECE: usize = 8 * 1024;
/// Longest wait for a client's Close frame, and for the end of the application's frame before ours, in milliseconds.
const GOODBYE: u64 = 3000;
