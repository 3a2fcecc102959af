//! Writing an answer to an HTTP/1 client at the client's pace, while Puma's side goes on at Puma's.
//!
//! Threat: slowloris by slow reading. When the client does not take bytes, the body goes on absorbing what Puma sends
//! ([`Relay::poll_absorb`]), and the pace ends the exchange at the stall or below the minimum rate. A body that breaks off
//! after its head went out ends in a reset, never in a clean end (RFC 9112 §8).

use std::{
    cell::RefCell,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::SystemTime,
};

use bytes::Bytes;
use http::{Response, response};

use super::{
    request::give_back,
    response::{Frame, LAST_CHUNK, Persistence, chunk_line, write_head},
    wire::{Ended, Outgoing, Wire},
};
use crate::{
    accept::pace::{Pace, Rates, Timeouts},
    http::body::Relay,
    log::End,
    refusal::{Fate, Refusal},
    units::Deadline,
};

/// What the request asks of its answer.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The method was HEAD.
    pub to_head: bool,
    /// The client speaks HTTP/1.0.
    pub is_old: bool,
    /// The connection stays open.
    pub keep: bool,
    /// When the request came, for Date.
    pub at: SystemTime,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Every byte was handed to the client.
    Whole,
    /// It broke off on the way; the connection is worth nothing.
    Broken,
}

/// Whether the answer asks for the connection to be closed.
pub fn closes<B>(response: &Response<B>) -> bool {
    response.extensions().get::<Fate>() == Some(&Fate::Close)
}

/// A short answer of our own in one piece.
pub fn whole(response: &Response<Bytes>) -> Bytes {
    let mut out = Vec::with_capacity(512);
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = response.status();
    parts.headers = response.headers().clone();
    let frame = Frame::Length(response.body().len() as u64);
    write_head(&mut out, &parts, frame, Persistence::Close, SystemTime::now());
    out.extend_from_slice(response.body());
    out.into()
}

/// Writes the answer.
pub async fn send<B: Relay>(wire: &mut Wire, response: Response<B>, shape: Shape, rates: &Rates, timeouts: &Timeouts) -> Sent {
    let (parts, body) = response.into_parts();
    let length = body.size_hint().exact();
    let frame = Frame::of(parts.status, shape.to_head, shape.is_old, length);
    let persistence = match (shape.keep && frame != Frame::Close, shape.is_old) {
        (false, _) => Persistence::Close,
        (true, true) => Persistence::KeepOld,
        (true, false) => Persistence::Keep,
    };
    let mut body = pin!(body);
    let mut sending = Sending {
        wire,
        out: Outgoing::default(),
        head: Some(parts),
        frame,
        left: length.unwrap_or(0),
        in_chunk: false,
        is_last: false,
        pace: None,
        until: u64::MAX,
        is_blocked: false,
        stall: timeouts.write_stall,
        rates,
    };
    let end = std::future::poll_fn(|cx| sending.poll(cx, body.as_mut(), persistence, shape.at)).await;
    wire.beat.unlimited();
    match end {
        Ok(()) => {
            body.settle(End::Ok);
            Sent::Whole
        }
        Err(end) => {
            body.settle(end);
            Sent::Broken
        }
    }
}

/// An answer on its way out.
struct Sending<'a> {
    wire: &'a mut Wire,
    out: Outgoing,
    head: Option<response::Parts>,
    frame: Frame,
    /// Bytes that the declared length still promises.
    left: u64,
    /// The data of a chunk is out, its CR LF is not.
    in_chunk: bool,
    is_last: bool,
    pace: Option<Pace>,
    /// When the client is too slow, as of the last bytes that it took.
    until: u64,
    /// The socket has no room, and what is staged went back to the body.
    is_blocked: bool,
    stall: Deadline,
    rates: &'a Rates,
}

impl Sending<'_> {
    fn poll<B: Relay>(
        &mut self,
        cx: &mut Context<'_>,
        mut body: Pin<&mut B>,
        persistence: Persistence,
        at: SystemTime,
    ) -> Poll<Result<(), End>> {
        loop {
            let drained = self.poll_out(cx, body.as_mut());
            if drained.is_pending() {
                body.as_mut().poll_absorb(cx);
            }
            ready!(drained)?;
            if self.is_last {
                return Poll::Ready(Ok(()));
            }
            let staged = TEXT.with_borrow_mut(|text| {
                text.clear();
                if let Some(head) = self.head.take() {
                    write_head(text, &head, self.frame, persistence, at);
                    give_back(head.headers);
                }
                self.stage(cx, body.as_mut(), text)
            });
            if ready!(staged)?.is_none() {
                return Poll::Pending;
            }
        }
    }

    /// Takes the next piece of the body and puts it into its frame. `None` when Puma has the turn.
    fn stage<B: Relay>(&mut self, cx: &mut Context<'_>, mut body: Pin<&mut B>, text: &mut Vec<u8>) -> Poll<Result<Option<()>, End>> {
        let next = if self.frame == Frame::Nothing { Poll::Ready(None) } else { poll_data(body.as_mut(), cx) };
        let mut data = Bytes::new();
        match next {
            Poll::Ready(Some(Ok(piece))) => {
                self.frame_of(text, piece.len());
                data = piece;
            }
            Poll::Ready(Some(Err(refusal))) => return Poll::Ready(Err(End::Refused(refusal))),
            Poll::Ready(None) if matches!(self.frame, Frame::Length(_)) && self.left > 0 => {
                return Poll::Ready(Err(End::Refused(Refusal::UpstreamReset)));
            }
            Poll::Ready(None) => {
                self.is_last = true;
                if self.frame == Frame::Chunks {
                    text.extend_from_slice(if self.in_chunk { LAST_CHUNK_AFTER_DATA } else { LAST_CHUNK });
                }
            }
            Poll::Pending if text.is_empty() => return self.wait(cx),
            Poll::Pending => {}
        }
        if data.len() <= SMALL {
            text.extend_from_slice(&data);
            let sent = match self.wire.poll_send_some(cx, text) {
                Poll::Ready(Ok(sent)) => sent,
                Poll::Ready(Err(ended)) => return Poll::Ready(Err(end_of(ended))),
                Poll::Pending => 0,
            };
            let rest = text.get(sent..).unwrap_or_default();
            if rest.is_empty() {
                self.keeps_up();
            } else if !self.gives_back() || rest.len() > data.len() {
                self.out.head = Bytes::copy_from_slice(rest);
            } else {
                let rest = data.slice(data.len().saturating_sub(rest.len())..);
                self.slowed(sent);
                self.give_back(body, rest);
            }
        } else {
            self.out = Outgoing { head: Bytes::copy_from_slice(text), data };
        }
        Poll::Ready(Ok(Some(())))
    }

    fn frame_of(&mut self, text: &mut Vec<u8>, length: usize) {
        match self.frame {
            Frame::Chunks => {
                if self.in_chunk {
                    text.extend_from_slice(b"\r\n");
                }
                chunk_line(text, length);
                self.in_chunk = true;
            }
            Frame::Length(_) => {
                self.left = self.left.saturating_sub(length as u64);
                self.is_last = self.left == 0;
            }
            Frame::Nothing | Frame::Close => {}
        }
    }

    /// Puma has the turn: the client is not hurried, but one that leaves a stream of unknown length is let go.
    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<T>, End>> {
        self.wire.beat.unlimited();
        if let Err(ended) = ready!(self.wire.poll_flush(cx)) {
            return Poll::Ready(Err(end_of(ended)));
        }
        if !matches!(self.frame, Frame::Length(_)) && self.wire.input.is_empty() {
            match self.wire.poll_fill(cx) {
                Poll::Ready(Ok(_)) => cx.waker().wake_by_ref(),
                Poll::Ready(Err(ended)) => return Poll::Ready(Err(end_of(ended))),
                Poll::Pending => {}
            }
        }
        Poll::Ready(Ok(None))
    }

    /// Where a piece may end anywhere, the rest of one that the client does not take need not be held here.
    fn gives_back(&self) -> bool {
        match self.frame {
            Frame::Length(_) | Frame::Close => true,
            Frame::Chunks | Frame::Nothing => false,
        }
    }

    fn give_back<B: Relay>(&mut self, body: Pin<&mut B>, rest: Bytes) {
        let length = rest.len() as u64;
        match body.give_back(rest) {
            Some(kept) => self.out.data = kept,
            None => {
                self.left = self.left.saturating_add(length);
                self.is_last = false;
                self.is_blocked = true;
            }
        }
    }

    /// The client has taken all that was staged.
    fn keeps_up(&mut self) {
        if self.pace.take().is_some() {
            self.wire.beat.unlimited();
        }
    }

    /// The client took only so much.
    fn slowed(&mut self, moved: usize) {
        let now = self.wire.beat.now();
        let is_new = self.pace.is_none();
        let pace = self.pace.get_or_insert_with(|| Pace::new(now, self.stall, self.rates.write_min, self.rates.grace));
        pace.moved(moved);
        if is_new || moved > 0 {
            self.until = pace.deadline(now);
            self.wire.beat.advance(moved as u64);
        }
        self.wire.beat.until(self.until);
    }

    /// Hands to the socket what is staged; the pace runs only while the client does not take it.
    fn poll_out<B: Relay>(&mut self, cx: &mut Context<'_>, body: Pin<&mut B>) -> Poll<Result<(), End>> {
        if self.is_blocked {
            if let Err(ended) = ready!(self.wire.poll_writable(cx)) {
                return Poll::Ready(Err(end_of(ended)));
            }
            self.is_blocked = false;
            return Poll::Ready(Ok(()));
        }
        let before = self.out.left();
        let sent = self.wire.poll_send(cx, &mut self.out);
        let sent = match sent {
            Poll::Ready(Ok(())) if self.is_last => self.wire.poll_flush(cx),
            other @ (Poll::Ready(_) | Poll::Pending) => other,
        };
        match sent {
            Poll::Ready(Ok(())) => {
                if before > 0 || self.is_last {
                    self.keeps_up();
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(ended)) => Poll::Ready(Err(end_of(ended))),
            Poll::Pending => {
                self.slowed(before.saturating_sub(self.out.left()));
                if self.gives_back() && self.out.head.is_empty() && !self.out.data.is_empty() {
                    let rest = std::mem::take(&mut self.out.data);
                    self.give_back(body, rest);
                }
                Poll::Pending
            }
        }
    }
}

/// The next piece of data; trailers of Puma's are not passed on.
fn poll_data<B: Relay>(mut body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Refusal>>> {
    loop {
        match ready!(body.as_mut().poll_frame(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if !data.is_empty() => return Poll::Ready(Some(Ok(data))),
                Ok(_) | Err(_) => {}
            },
            Some(Err(refusal)) => return Poll::Ready(Some(Err(refusal))),
            None => return Poll::Ready(None),
        }
    }
}

fn end_of(ended: Ended) -> End {
    match ended {
        Ended::Closed | Ended::Broken => End::Refused(Refusal::ClientAbort),
        Ended::Over => End::SlowRead,
    }
}

/// Data up to this size is copied behind its head, so that both leave in one system call.
const SMALL: usize = 16 * 1024;
const LAST_CHUNK_AFTER_DATA: &[u8] = b"\r\n0\r\n\r\n";

thread_local! {
    static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}
