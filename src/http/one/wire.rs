//! The two directions of an HTTP/1 connection: bytes that wait to be read, and bytes on their way out.
//!
//! Threat: exhaustion. Reads go into one scratch buffer per thread, taken inside `poll` and never held across an await;
//! what arrived is copied, or takes the buffer along where it fills half of it, so an idle connection holds none. Every wait ends at
//! the connection's [`Beat`].

use std::{
    cell::RefCell,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::accept::{
    beat::Beat,
    pace::fill_at,
    stream::{Stream, Transport},
};

/// A connection between two of its bytes.
#[derive(Debug)]
pub struct Wire {
    stream: Stream,
    /// Bytes that arrived and are not yet read by a parser.
    pub input: BytesMut,
    /// Until when the connection may go on as it is.
    pub beat: Beat,
    /// How many bytes more the client has made room for than were taken from what is on its way: some had left that before.
    pub ahead: isize,
    /// When it is over for a client that takes nothing.
    due: u64,
    /// The kernel's buffer has been full in this answer: what it takes from then on, the client has made room for.
    pub was_filled: bool,
    ended: bool,
}

/// Why nothing more can be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The client closed its side in order.
    Closed,
    /// The connection broke.
    Broken,
    /// The deadline passed, or the connection was chosen to make room.
    Over,
}

impl Wire {
    /// A connection of which nothing has been read.
    pub fn new(stream: Stream, beat: Beat) -> Self {
        Wire { stream, input: BytesMut::new(), beat, ahead: 0, due: 0, was_filled: false, ended: false }
    }

    /// Takes the first bytes of what has arrived, in the memory in which they are. Where that is small, the next request comes to the
    /// same place.
    pub fn take(&mut self, length: usize) -> BytesMut {
        match length >= self.input.len() && self.input.capacity() > KEPT {
            true => std::mem::take(&mut self.input),
            false => self.input.split_to(length.min(self.input.len())),
        }
    }

    /// Nothing is read for now: only a small buffer stays.
    pub fn rest(&mut self) {
        if self.input.is_empty() && self.input.try_reclaim(KEPT.saturating_add(1)) {
            self.input = BytesMut::new();
        }
    }

    /// The client has closed its side.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Reads once and appends what came. Ready with the number of new bytes, never zero.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Ended>> {
        if self.ended {
            return Poll::Ready(Err(Ended::Closed));
        }
        let read = poll_copy(cx, &mut self.stream, &mut self.input, SCRATCH_SIZE);
        self.outcome(read)
    }

    fn outcome(&mut self, read: Poll<io::Result<usize>>) -> Poll<Result<usize, Ended>> {
        match read {
            Poll::Ready(Ok(0)) => {
                self.ended = true;
                Poll::Ready(Err(Ended::Closed))
            }
            Poll::Ready(Ok(n)) => {
                self.beat.advance(n as u64);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(_)) => {
                self.ended = true;
                Poll::Ready(Err(Ended::Broken))
            }
            Poll::Pending if self.beat.is_over() => Poll::Ready(Err(Ended::Over)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Reads at most `most` bytes to the end of `into`: the first ones by way of the scratch buffer, so that a client that drips
    /// holds only what it sent, then straight, into room that grows with what has come so far.
    pub fn poll_fill_into(&mut self, cx: &mut Context<'_>, into: &mut BytesMut, most: usize) -> Poll<Result<usize, Ended>> {
        if self.ended {
            return Poll::Ready(Err(Ended::Closed));
        }
        let read = if into.len() < SCRATCH_SIZE {
            poll_copy(cx, &mut self.stream, into, most)
        } else {
            if into.capacity() == into.len() {
                into.reserve(into.len().saturating_mul(3).min(MOST_ROOM).min(most));
            }
            let mut limited = into.limit(most);
            pin!(self.stream.read_buf(&mut limited)).poll(cx)
        };
        self.outcome(read)
    }

    /// Waits for more bytes.
    pub async fn fill(&mut self) -> Result<usize, Ended> {
        std::future::poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Writes from `out` until it is empty.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, out: &mut Outgoing) -> Poll<Result<(), Ended>> {
        while out.has_remaining() {
            let wrote = if out.head.has_remaining() && out.data.has_remaining() {
                let slices = [io::IoSlice::new(&out.head), io::IoSlice::new(&out.data)];
                Pin::new(&mut self.stream).poll_write_vectored(cx, &slices)
            } else if out.head.has_remaining() {
                Pin::new(&mut self.stream).poll_write(cx, &out.head)
            } else {
                Pin::new(&mut self.stream).poll_write(cx, &out.data)
            };
            match wrote {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.beat.advance(n as u64);
                    out.advance(n);
                }
                Poll::Ready(_) => return Poll::Ready(Err(Ended::Broken)),
                Poll::Pending if self.beat.is_over() => {
                    if !self.push(out) {
                        return Poll::Ready(Err(Ended::Over));
                    }
                    if out.has_remaining() {
                        return Poll::Pending;
                    }
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The client has the turn, until `deadline` if it takes nothing.
    pub fn until(&mut self, deadline: u64) {
        self.due = deadline;
        self.beat.until(if self.stream.is_full() { deadline } else { fill_at(self.beat.now(), deadline) });
    }

    /// Offers the next bytes to the kernel when the time is over. Whether the connection goes on: not when the kernel takes none,
    /// or when the connection has to make room.
    fn push(&mut self, out: &mut Outgoing) -> bool {
        if self.beat.is_evicted() {
            return false;
        }
        let Ok(pushed) = self.stream.push(if out.head.is_empty() { &out.data } else { &out.head }) else { return false };
        out.advance(pushed.taken);
        if !pushed.was_full && !self.was_filled {
            self.ahead = self.ahead.saturating_sub_unsigned(pushed.taken);
            self.was_filled = self.stream.is_full();
            let now = self.beat.now();
            self.beat.until(if self.was_filled { self.due } else { now });
            return now < self.due;
        }
        self.ahead = self.ahead.saturating_add_unsigned(pushed.sealed);
        let moved = pushed.taken.saturating_add(pushed.sealed);
        self.beat.advance(moved as u64);
        moved > 0
    }

    /// Writes once; ready with how much left.
    pub fn poll_send_some(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Ended>> {
        match Pin::new(&mut self.stream).poll_write(cx, bytes) {
            Poll::Ready(Ok(n)) if n > 0 => {
                self.beat.advance(n as u64);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(_) => Poll::Ready(Err(Ended::Broken)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Hands bytes that the TLS layer still holds to the socket.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(_)) => Poll::Ready(Err(Ended::Broken)),
            Poll::Pending if self.beat.is_over() && !self.push(&mut Outgoing::default()) => Poll::Ready(Err(Ended::Over)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Sends a short answer whole.
    pub async fn send(&mut self, mut out: Outgoing) -> Result<(), Ended> {
        std::future::poll_fn(|cx| self.poll_send(cx, &mut out)).await?;
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Whether to close is all it takes: nothing was read ahead, and there is no goodbye of TLS to be said.
    pub fn closes_at_once(&self) -> bool {
        self.input.is_empty() && !matches!(self.stream.transport(), Transport::Tls(_))
    }

    /// Lingering close (RFC 9112 §9.6): says that nothing more will come, then reads away what is still on its way, so that
    /// unread bytes do not turn the last answer into a reset. Bounded in bytes and in time.
    pub async fn linger(mut self) {
        self.beat.until(self.beat.now().saturating_add(LINGER_TIME));
        if self.shut_down().await.is_err() {
            return;
        }
        let mut left = LINGER;
        while left > 0 {
            self.input.clear();
            match self.fill().await {
                Ok(n) => left = left.saturating_sub(n),
                Err(Ended::Closed | Ended::Broken | Ended::Over) => return,
            }
        }
    }

    async fn shut_down(&mut self) -> Result<(), Ended> {
        std::future::poll_fn(|cx| match Pin::new(&mut self.stream).poll_shutdown(cx) {
            Poll::Ready(done) => Poll::Ready(done.map_err(|_| Ended::Broken)),
            Poll::Pending if self.beat.is_over() => Poll::Ready(Err(Ended::Over)),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Ends the connection by a reset, so that the client cannot take a broken answer for a whole one.
    pub fn abort(self) {
        self.stream.reset();
    }

    /// Closes in order where nothing can be in flight any more.
    pub async fn close(mut self) {
        self.beat.until(self.beat.now().saturating_add(LINGER_TIME));
        // A client that is gone already needs no goodbye.
        self.shut_down().await.unwrap_or_default();
    }

    /// Gives the connection away: its stream and the bytes read ahead.
    pub fn into_parts(self) -> (Stream, Bytes, Beat) {
        // Without bytes it would still keep the room for the next request.
        let early = if self.input.is_empty() { Bytes::new() } else { self.input.freeze() };
        (self.stream, early, self.beat)
    }
}

/// Up to two pieces of bytes on their way out; a head and the first data leave in one system call.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Bytes that go first.
    pub head: Bytes,
    /// Bytes that follow.
    pub data: Bytes,
}

impl Outgoing {
    /// Whether bytes are left.
    pub fn has_remaining(&self) -> bool {
        !self.head.is_empty() || !self.data.is_empty()
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.head.len().saturating_add(self.data.len())
    }

    fn advance(&mut self, n: usize) {
        let first = n.min(self.head.len());
        self.head.advance(first);
        self.data.advance(n.saturating_sub(first).min(self.data.len()));
    }
}

/// Reads once into the scratch buffer of this thread, and appends a copy of at most `most` bytes. Where they fill much of it and
/// nothing is there yet, the buffer itself is handed over instead.
fn poll_copy(cx: &mut Context<'_>, stream: &mut Stream, into: &mut BytesMut, most: usize) -> Poll<io::Result<usize>> {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        scratch.reserve(SCRATCH_SIZE);
        let came = ready!(pin!(stream.read_buf(&mut (&mut *scratch).limit(most.min(SCRATCH_SIZE)))).poll(cx))?;
        // What comes first gets room for itself and nothing else, or the room of what was there before.
        match into.is_empty() && !into.try_reclaim(came) {
            true if came >= HANDED_OVER => std::mem::swap(into, scratch),
            true => *into = BytesMut::from(&scratch[..]),
            false => into.extend_from_slice(scratch),
        }
        Poll::Ready(Ok(came))
    })
}

const SCRATCH_SIZE: usize = 32 * 1024;
/// Bytes that are worth a scratch buffer of their own: half of its room at least is then in use.
const HANDED_OVER: usize = SCRATCH_SIZE / 2;
/// Bytes of a buffer that an idle connection may keep for its next request.
const KEPT: usize = 1024;
/// The largest step by which the room of a body grows. Each step costs a copy of what is there, so few steps make it: the
/// room is at most four times of what has come.
const MOST_ROOM: usize = 768 * 1024;
/// Bytes read away after the last answer; beyond it the client gets a reset.
const LINGER: usize = 256 * 1024;
/// Milliseconds for it.
const LINGER_TIME: u64 = 900;

thread_local! {
    static SCRATCH: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::UnixStream};

    use super::*;
    use crate::accept::beat::Sweep;

    #[tokio::test]
    async fn little_is_copied_and_much_keeps_the_buffer_in_which_it_came() {
        let sweep = Sweep::new();
        let mut held = Vec::new();
        for (length, most) in [(100, 100), (HANDED_OVER, SCRATCH_SIZE), (HANDED_OVER - 1, HANDED_OVER - 1), (SCRATCH_SIZE, SCRATCH_SIZE)] {
            let (mut near, far) = UnixStream::pair().unwrap();
            let mut wire = Wire::new(Stream::of_unix(far), sweep.enrol(u64::MAX));
            let sent: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            near.write_all(&sent).await.unwrap();
            assert_eq!(wire.fill().await.unwrap(), length);
            assert_eq!(wire.input.capacity(), most);
            held.push((sent, wire.input));
        }
        assert!(held.iter().all(|(sent, came)| sent[..] == came[..]));
    }

    #[tokio::test]
    async fn what_comes_later_is_appended_and_no_more_than_wanted() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(Stream::of_unix(far), Sweep::new().enrol(u64::MAX));
        let mut into = BytesMut::from(&b"a"[..]);
        near.write_all(&[b'b'; SCRATCH_SIZE]).await.unwrap();
        let most = HANDED_OVER + 1;
        assert_eq!(std::future::poll_fn(|cx| wire.poll_fill_into(cx, &mut into, most)).await.unwrap(), most);
        assert!(into.len() == most + 1 && into[0] == b'a' && into[1..].iter().all(|b| *b == b'b'));
    }
}
