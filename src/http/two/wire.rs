//! The bytes of an HTTP/2 connection: counted by frames as they are read, gathered as they are written.
//!
//! Threat: exhaustion; [`Meter`] says by what. h2 flushes after every DATA frame, which would be a TLS record and a system call
//! for each answer. Here a flush only marks; the connection's task writes what has gathered at the end of its turn. What
//! gathers is bounded: beyond [`ROOM`] a write waits for the socket.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::watch::Load;
use crate::{
    accept::{
        beat::{Pulse, Sweep},
        pace::fill_at,
        stream::Stream,
    },
    http::frames::{CALM, Meter, UPDATE_EVERY},
};

/// The connection's bytes, shared by h2 and the task that it runs in; no two of them use it at a time.
#[derive(Debug)]
pub struct Wire(Arc<Mutex<Line>>);

#[derive(Debug)]
struct Line {
    stream: Stream,
    meter: Meter,
    beat: Arc<Pulse>,
    load: Arc<Load>,
    clock: Arc<Sweep>,
    /// Whole frames that are not yet written.
    out: BytesMut,
    /// Bytes that were written and have not yet earned anything.
    sent: u64,
    /// The stream may still hold what it took.
    is_unflushed: bool,
    /// h2 waits for room.
    is_awaited: bool,
    /// Since when the socket has been taking nothing.
    blocked: Option<u64>,
    /// The kernel's buffer has been full: what it takes from then on, the client has made room for.
    was_filled: bool,
    /// A flood was seen; its connection ends when the pause is over.
    is_flood: bool,
}

impl Wire {
    /// A connection of which nothing has been read.
    pub fn new(stream: Stream, beat: Arc<Pulse>, load: Arc<Load>, clock: Arc<Sweep>) -> Self {
        load.heard.store(clock.now(), Relaxed);
        let line = Line {
            stream,
            meter: Meter::new(),
            beat,
            load,
            clock,
            out: BytesMut::new(),
            sent: 0,
            is_unflushed: false,
            is_awaited: false,
            blocked: None,
            was_filled: false,
            is_flood: false,
        };
        Wire(Arc::new(Mutex::new(line)))
    }

    /// Another handle to the same bytes.
    pub fn share(&self) -> Self {
        Wire(Arc::clone(&self.0))
    }

    /// Writes what has gathered. Wakes whoever waits for room when there is some.
    pub fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut line = self.line();
        let sent = line.poll_send(cx);
        if sent.is_ready() && std::mem::take(&mut line.is_awaited) {
            cx.waker().wake_by_ref();
        }
        sent
    }

    /// Fills the kernel's buffer when it is time for that (see [`fill_at`]); says when to look again.
    pub fn fill(&self, cx: &mut Context<'_>, now: u64, deadline: u64) -> u64 {
        let mut line = self.line();
        let Some(blocked) = line.blocked.filter(|_| !line.stream.is_full()) else { return u64::MAX };
        let due = fill_at(blocked, deadline);
        if now < due {
            return due;
        }
        line.push();
        cx.waker().wake_by_ref();
        u64::MAX
    }

    /// Offers the next bytes to the kernel, which calls a socket writable only when much of its buffer is free again. Whether the
    /// client has made room for any.
    pub fn push(&self, cx: &mut Context<'_>) -> bool {
        let goes_on = self.line().push();
        if goes_on {
            cx.waker().wake_by_ref();
        }
        goes_on
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let wrote = Pin::new(&mut self.stream).poll_write(cx, &self.out);
            let n = ready!(self.or_blocked(wrote))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(n);
            self.take_turn(n);
        }
        if self.is_unflushed {
            let flushed = Pin::new(&mut self.stream).poll_flush(cx);
            ready!(self.or_blocked(flushed))?;
            self.is_unflushed = false;
            if self.load.streams.load(Relaxed) == 0 {
                // An idle connection holds no buffer.
                self.out = BytesMut::new();
            }
        }
        self.blocked = None;
        Poll::Ready(Ok(()))
    }

    /// Remembers since when nothing has been taken.
    fn or_blocked<T>(&mut self, written: Poll<T>) -> Poll<T> {
        if written.is_pending() {
            self.blocked.get_or_insert_with(|| self.clock.now());
        }
        written
    }

    /// The client, for whom this waited, has made room for so many bytes: it is there, whatever it says.
    fn take_turn(&mut self, n: usize) {
        if self.blocked.is_some() && n > 0 {
            let now = self.clock.now();
            self.blocked = Some(now);
            self.load.heard.store(now, Relaxed);
            self.load.run_ahead(n as u64, n as u64);
        }
    }

    /// So many bytes of what has gathered are on their way.
    fn advance(&mut self, n: usize) {
        self.out.advance(n.min(self.out.len()));
        self.is_unflushed = true;
        self.sent = self.sent.saturating_add(n as u64);
        self.beat.advance(n as u64);
    }

    /// Offers what has gathered to the kernel without asking it for room; whether the client has made room for some of it.
    fn push(&mut self) -> bool {
        let Ok(pushed) = self.stream.push(&self.out) else { return false };
        self.advance(pushed.taken);
        let is_room = pushed.was_full || self.was_filled;
        self.was_filled |= self.stream.is_full();
        let moved = if is_room { pushed.taken.saturating_add(pushed.sealed) } else { 0 };
        if is_room {
            self.take_turn(moved);
        } else {
            self.load.run_ahead(pushed.taken as u64, 0);
        }
        moved > 0
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.len() >= ROOM {
            self.is_awaited = true;
            ready!(self.poll_send(cx))?;
            self.is_awaited = false;
        }
        Poll::Ready(Ok(()))
    }

    /// The connection's last words, behind the last whole frame. Bytes that nobody reads would turn the close into a reset, so
    /// what is here is read away.
    fn calm(&mut self, cx: &mut Context<'_>) {
        self.out.extend_from_slice(&CALM);
        let said = matches!(self.poll_send(cx), Poll::Ready(Ok(())))
            && matches!(Pin::new(&mut self.stream).poll_shutdown(cx), Poll::Ready(Ok(())));
        let mut away = [0; 4096];
        for _ in 0..if said { READ_AWAY } else { 0 } {
            let mut into = ReadBuf::new(&mut away);
            if !matches!(Pin::new(&mut self.stream).poll_read(cx, &mut into), Poll::Ready(Ok(()))) || into.filled().is_empty() {
                return;
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let line = &mut *self.line();
        if line.load.must_wait(&line.clock) {
            return Poll::Pending;
        }
        if line.is_flood {
            line.calm(cx);
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut line.stream).poll_read(cx, into))?;
        let fresh = into.filled().get(before..).unwrap_or_default();
        let now = line.clock.now();
        line.load.heard.store(now, Relaxed);
        line.beat.advance(fresh.len() as u64);
        let (answered, sent) = (line.load.answered.swap(0, Relaxed), line.sent);
        line.sent = sent % UPDATE_EVERY;
        if line.meter.see(fresh, now, answered, sent).is_err() {
            into.set_filled(before);
            line.is_flood = true;
            line.load.wait_until(now.saturating_add(PENANCE));
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    /// Takes all or nothing, so that what has gathered ends with a frame.
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut line = self.line();
        ready!(line.poll_room(cx))?;
        let before = line.out.len();
        for slice in slices {
            line.out.extend_from_slice(slice);
        }
        let taken = line.out.len().saturating_sub(before);
        line.load.write(taken as u64, line.clock.lately());
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let line = &mut *self.line();
        ready!(line.poll_send(cx))?;
        Pin::new(&mut line.stream).poll_shutdown(cx)
    }
}

/// Bytes that gather before a write waits for the socket.
const ROOM: usize = 48 * 1024;
/// Milliseconds for which a flood is not even read before it hears that its connection ends. Ended at once it comes again at once,
/// and then handshakes, not frames, are what it costs: 14 µs for each SETTINGS frame, measured, instead of 3.
const PENANCE: u64 = 1000;
/// Reads after the last words, each of 4 KiB.
const READ_AWAY: usize = 64;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
    };

    use super::*;

    fn wire() -> (UnixStream, Wire) {
        let (client, far) = UnixStream::pair().unwrap();
        let clock = Sweep::new();
        let beat = clock.enrol(u64::MAX).share();
        (client, Wire::new(Stream::of_unix(far), beat, Load::new(), clock))
    }

    #[tokio::test]
    async fn what_is_written_in_one_turn_leaves_at_its_end() {
        let (mut client, mut wire) = wire();
        for piece in ["one ", "two ", "three"] {
            wire.write_all(piece.as_bytes()).await.unwrap();
            wire.flush().await.unwrap();
        }
        let mut said = [0; 64];
        assert_eq!(client.try_read(&mut said).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        std::future::poll_fn(|cx| wire.poll_send(cx)).await.unwrap();
        let n = client.read(&mut said).await.unwrap();
        assert_eq!(&said[..n], b"one two three");
    }

    #[tokio::test]
    async fn what_gathers_is_bounded_and_arrives_in_order() {
        let (mut client, mut wire) = wire();
        let sent: Vec<u8> = (0..4_000_000u32).map(|n| (n / 7) as u8).collect();
        let all = sent.clone();
        let writing = tokio::spawn(async move {
            for frame in all.chunks(16 * 1024) {
                wire.write_all(frame).await.unwrap();
                assert!(wire.line().out.len() < ROOM + 16 * 1024);
            }
            wire.shutdown().await.unwrap();
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!writing.is_finished(), "the client reads nothing");
        let mut came = Vec::new();
        client.read_to_end(&mut came).await.unwrap();
        writing.await.unwrap();
        assert!(came == sent);
    }
}
