//! The body of Puma's answer, read by the strict rules. What ends too early is an error, never a clean end (RFC 9112 §8).
//!
//! Threat: smuggling and exhaustion. The slot and the connection are held here until Puma's last byte and not a moment
//! longer; bytes behind the answer cost the connection.

use std::{
    cell::RefCell,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use crate::{
    guard::{self, answer::AnswerFraming, chunked::Chunked},
    http::{
        arrival::{Moment, Notes},
        body::{FIRST_PIECE, LARGEST_PIECE, Source},
        spare,
    },
    refusal::Refusal,
    upstream::{connect::Stream, sweep::Watch, turn::Turn},
};

/// The body of an answer.
#[derive(Debug)]
pub struct Answer {
    kind: Kind,
    stream: bool,
}

#[derive(Debug)]
enum Kind {
    /// Nothing (any more).
    Empty,
    /// All of it came with the head.
    Whole(Bytes),
    /// Puma is still writing.
    Streaming(Box<Streaming>),
}

/// What is needed to read the rest of a body.
#[derive(Debug)]
pub(super) struct Streaming {
    pub(super) turn: Turn,
    /// Read, but not yet judged.
    pub(super) buffer: BytesMut,
    pub(super) framing: Framing,
    pub(super) watch: Watch,
    /// When something was read last.
    pub(super) read: Instant,
    /// Longest silence.
    pub(super) patience: Duration,
    /// The connection may carry another request if this answer ends as it should.
    pub(super) reusable: bool,
    pub(super) notes: Option<Arc<Notes>>,
    /// Judged, but not yet given out.
    pub(super) pending: Bytes,
    /// Most bytes that are given out at once, where the length is known.
    pub(super) at_once: usize,
}

/// Where the body ends.
#[derive(Debug)]
pub(super) enum Framing {
    /// After so many more bytes.
    Length(u64),
    /// After the last chunk.
    Chunked(Chunked),
    /// Where Puma closes.
    UntilClose,
}

/// What the buffer holds.
enum Step {
    /// Nothing that could be given out.
    More,
    /// A part of the body.
    Data(Bytes),
    /// Its last part, which may be empty.
    Last(Bytes),
}

impl Answer {
    /// Nothing follows the head.
    pub(super) fn empty() -> Self {
        Answer { kind: Kind::Empty, stream: false }
    }

    /// The body behind a head, from what came with the head and whatever is still to come.
    pub(super) fn new(mut body: Streaming, stream: bool) -> Result<Self, Refusal> {
        if body.has_more_to_gather() {
            return Ok(Answer { kind: Kind::Streaming(Box::new(body)), stream });
        }
        let kind = match body.step()? {
            Step::Last(bytes) => Kind::Whole(bytes),
            Step::Data(bytes) => {
                body.pending = bytes;
                Kind::Streaming(Box::new(body))
            }
            Step::More => Kind::Streaming(Box::new(body)),
        };
        Ok(Answer { kind, stream })
    }

    /// To be passed on as it comes: an event stream, an answer without a known end, or one that asks for it.
    pub fn is_stream(&self) -> bool {
        self.stream
    }
}

impl Framing {
    /// How much of the body is read at first, of which so much came with the head. What fits into one piece comes in one, and of
    /// what is longer the client may begin with what is here.
    pub(super) fn first(&self, came: usize) -> usize {
        match self {
            Framing::Length(left) if *left > LARGEST_PIECE as u64 => match came {
                ..WORTH_A_PIECE => FIRST_PIECE,
                _ => came,
            },
            Framing::Length(_) | Framing::Chunked(_) | Framing::UntilClose => LARGEST_PIECE,
        }
    }
}

impl From<AnswerFraming> for Framing {
    fn from(framing: AnswerFraming) -> Self {
        match framing {
            AnswerFraming::None => Framing::Length(0),
            AnswerFraming::Length(length) => Framing::Length(length),
            AnswerFraming::Chunked => Framing::Chunked(Chunked::of_answer()),
            AnswerFraming::UntilClose => Framing::UntilClose,
        }
    }
}

impl Source for Answer {
    fn at_once(&mut self, most: usize) {
        if let Kind::Streaming(body) = &mut self.kind {
            body.at_once = most;
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Refusal;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        let (next, end) = match &mut self.kind {
            Kind::Empty => return Poll::Ready(None),
            Kind::Whole(bytes) => (Ok(std::mem::take(bytes)), true),
            Kind::Streaming(body) => match ready!(body.poll_step(cx)) {
                Ok(Step::Last(bytes)) => (Ok(bytes), true),
                Ok(Step::Data(bytes)) => (Ok(bytes), false),
                Ok(Step::More) => (Ok(Bytes::new()), false),
                Err(refusal) => (Err(refusal), true),
            },
        };
        if end {
            self.kind = Kind::Empty;
        }
        Poll::Ready(match next {
            Ok(bytes) if bytes.is_empty() => None,
            Ok(bytes) => Some(Ok(Frame::data(bytes))),
            Err(refusal) => Some(Err(refusal)),
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Whole(bytes) => bytes.is_empty(),
            Kind::Streaming(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Streaming(body) => match &body.framing {
                Framing::Length(left) => SizeHint::with_exact(left.saturating_add(body.pending.len() as u64)),
                Framing::Chunked(_) | Framing::UntilClose => SizeHint::default(),
            },
        }
    }
}

impl Streaming {
    /// The next part; never [`Step::More`].
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, Refusal>> {
        if !self.pending.is_empty() {
            return Poll::Ready(Ok(Step::Data(std::mem::take(&mut self.pending))));
        }
        loop {
            if !self.has_more_to_gather() {
                match self.step()? {
                    Step::More => {}
                    step @ (Step::Data(_) | Step::Last(_)) => return Poll::Ready(Ok(step)),
                }
            }
            let Ok(stream) = self.turn.stream() else { return Poll::Ready(Err(Refusal::UpstreamReset)) };
            let read = match self.framing {
                Framing::Length(left) => {
                    let most = left.min(self.at_once as u64).saturating_sub(self.buffer.len() as u64);
                    // With room for a byte behind the last one the socket is known to be empty without being asked again.
                    let most = most.saturating_add(u64::from(left <= self.at_once as u64));
                    poll_read_up_to(stream, cx, &mut self.buffer, most)
                }
                Framing::Chunked(_) | Framing::UntilClose => poll_read(stream, cx, &mut self.buffer, SCRATCH_SIZE),
            };
            match read {
                // What is here is not kept waiting; an end that came too early shows itself again.
                Poll::Pending | Poll::Ready(Ok(0) | Err(_)) if !self.buffer.is_empty() && matches!(self.framing, Framing::Length(_)) => {
                    return Poll::Ready(self.step());
                }
                Poll::Pending if self.watch.is_due(cx) => return Poll::Ready(Err(Refusal::UpstreamTimeout)),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) if matches!(self.framing, Framing::UntilClose) => {
                    self.read = Instant::now();
                    self.finish(false);
                    return Poll::Ready(Ok(Step::Last(Bytes::new())));
                }
                Poll::Ready(Ok(0) | Err(_)) => {
                    self.turn.ended();
                    return Poll::Ready(Err(Refusal::UpstreamReset));
                }
                Poll::Ready(Ok(_)) => {
                    self.read = Instant::now();
                    self.watch.extend(self.read, self.patience);
                }
            }
        }
    }

    /// A long body is passed on in pieces as large as what is there, so that its client is woken seldom.
    fn has_more_to_gather(&self) -> bool {
        match self.framing {
            Framing::Length(left) => (self.buffer.len() as u64) < left.min(self.at_once as u64),
            Framing::Chunked(_) | Framing::UntilClose => false,
        }
    }

    /// Judges what was read. At the last byte the thread is given back, before anybody has taken that byte from here.
    fn step(&mut self) -> Result<Step, Refusal> {
        let (mut done, mut is_short) = (false, false);
        let data = match &mut self.framing {
            Framing::Length(left) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(self.buffer.len());
                *left = left.saturating_sub(here as u64);
                done = *left == 0;
                is_short = done && self.buffer.capacity() <= spare::LARGEST_BUFFER;
                if is_short {
                    self.buffer.split_to(here).freeze()
                } else {
                    // Split off, a rest without bytes would keep the whole allocation for as long as Puma has nothing more.
                    let rest = if here < self.buffer.len() { self.buffer.split_off(here) } else { BytesMut::new() };
                    std::mem::replace(&mut self.buffer, rest).freeze()
                }
            }
            Framing::Chunked(chunks) => {
                let mut data = BytesMut::new();
                while !done && !self.buffer.is_empty() {
                    let piece = chunks.advance(&self.buffer, &guard::Limits::default())?;
                    data.extend_from_slice(self.buffer.get(piece.data).unwrap_or_default());
                    done = piece.done;
                    drop(self.buffer.split_to(piece.consumed.min(self.buffer.len())));
                    if piece.consumed == 0 {
                        break;
                    }
                }
                data.freeze()
            }
            Framing::UntilClose => std::mem::take(&mut self.buffer).freeze(),
        };
        if done {
            self.finish(self.reusable && self.buffer.is_empty());
            if is_short {
                spare::give_buffer(std::mem::take(&mut self.buffer));
            }
            return Ok(Step::Last(data));
        }
        Ok(if data.is_empty() { Step::More } else { Step::Data(data) })
    }

    fn finish(&mut self, reusable: bool) {
        if let Some(notes) = &self.notes {
            notes.mark_at(Moment::Finished, self.read);
        }
        self.turn.finish(reusable, self.read);
    }
}

/// Reads the head of an answer, and the body with it where that is short: the rest of a long one is better read to where it stays.
pub(super) fn poll_read_head(stream: &mut Stream, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<io::Result<usize>> {
    poll_read(stream, cx, into, WITH_HEAD)
}

/// Reads what is there by way of this thread's scratch buffer, so that a connection that waits holds none.
fn poll_read(stream: &mut Stream, cx: &mut Context<'_>, into: &mut BytesMut, most: usize) -> Poll<io::Result<usize>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut read = ReadBuf::new(scratch.get_mut(..most).unwrap_or_default());
        ready!(Pin::new(stream).poll_read(cx, &mut read))?;
        match into.is_empty() {
            true => *into = spare::buffer(read.filled()),
            false => into.extend_from_slice(read.filled()),
        }
        Poll::Ready(Ok(read.filled().len()))
    })
}

/// Reads a part of a long body straight to where it stays; memory is taken only when there is something to read.
fn poll_read_up_to(stream: &mut Stream, cx: &mut Context<'_>, into: &mut BytesMut, most: u64) -> Poll<io::Result<usize>> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    if most <= SCRATCH_SIZE / 4 {
        // Surplus bytes then come along and show themselves.
        return poll_read(stream, cx, into, SCRATCH_SIZE);
    }
    ready!(stream.poll_read_ready(cx))?;
    if !into.is_empty() {
        into.reserve(most);
        return pin!(stream.read_buf(&mut into.limit(most))).poll(cx);
    }
    let mut piece = BytesMut::with_capacity(most);
    let read = ready!(pin!(stream.read_buf(&mut (&mut piece).limit(most))).poll(cx))?;
    if read < most / 4 {
        into.extend_from_slice(&piece);
    } else {
        *into = piece;
    }
    Poll::Ready(Ok(read))
}

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_SIZE].into_boxed_slice());
}

const SCRATCH_SIZE: usize = 32 * 1024;
/// Large enough for nearly every head, with the body of most answers that are no pages.
const WITH_HEAD: usize = 8 * 1024;
/// Bytes behind a head for which a write of their own pays.
const WORTH_A_PIECE: usize = 4 * 1024;
