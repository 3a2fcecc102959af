//! Writing an answer to an HTTP/1 client at the client's pace, while Puma's side goes on at Puma's.
//!
//! Threat: slowloris by slow reading. When the client does not take bytes, the body goes on absorbing what Puma sends
//! ([`Absorb::poll_absorb`](crate::http::body::Absorb)), takes back what was staged for a client that stands still, and the
//! pace ends the exchange at the stall or below the minimum rate. A body that breaks off after its head went out ends in a
//! reset, never in a clean end (RFC 9112 §8).

use std::{
    cell::RefCell,
    pin::Pin,
    task::{Context, Poll, ready},
    time::SystemTime,
};

use bytes::{Buf, Bytes};
use http::{Response, response};
use pin_project_lite::pin_project;

use super::{
    response::{Frame, LAST_CHUNK, Persistence, chunk_line, write_head},
    wire::{Ended, Outgoing, Wire},
};
use crate::{
    accept::pace::{Pace, Rates, Timeouts},
    http::{body::Relay, spare},
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
    /// Every byte was handed to the client, and another request may come.
    Kept,
    /// Every byte was handed to the client, which was told that the connection ends here.
    Last,
    /// It broke off on the way; the connection is worth nothing.
    Broken,
}

/// Whether the answer asks for the connection to be closed.
pub fn closes<B>(response: &Response<B>) -> bool {
    response.extensions().get::<Fate>() == Some(&Fate::Close)
}

/// Whether it stands for a client that went away before it had sent its request: there is nobody to answer.
pub fn is_to_nobody<B>(response: &Response<B>) -> bool {
    response.status() == Refusal::ClientAbort.status() && response.extensions().get::<Fate>().is_some()
}

/// A short answer of our own in one piece.
pub fn whole(response: &Response<Bytes>, to_head: bool) -> Bytes {
    let mut out = Vec::with_capacity(512);
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = response.status();
    parts.headers = response.headers().clone();
    let frame = if to_head { Frame::Nothing } else { Frame::Length(response.body().len() as u64) };
    write_head(&mut out, &parts, frame, Persistence::Close, SystemTime::now());
    if !to_head {
        out.extend_from_slice(response.body());
    }
    out.into()
}

/// Writes `first`, the rest of interim answers, and then the answer.
pub fn send<'a, B: Relay>(
    wire: &'a mut Wire,
    first: Outgoing,
    response: Response<B>,
    shape: Shape,
    rates: &'a Rates,
    timeouts: &Timeouts,
) -> Send<'a, B> {
    let (parts, body) = response.into_parts();
    wire.was_filled = false;
    let length = body.size_hint().exact();
    let frame = Frame::of(parts.status, shape.to_head, shape.is_old, length);
    let persistence = match (shape.keep && frame != Frame::Close, shape.is_old) {
        (false, _) => Persistence::Close,
        (true, true) => Persistence::KeepOld,
        (true, false) => Persistence::Keep,
    };
    let sending = Sending {
        wire,
        out: first,
        head: Some(parts),
        frame,
        left: length.unwrap_or(0),
        owed: 0,
        in_chunk: false,
        is_last: false,
        pace: None,
        stall: timeouts.write_stall,
        rates,
    };
    Send { sending, body, persistence, at: shape.at }
}

pin_project! {
    /// The future of [`send`]; made by hand, as an `async fn` keeps room for what it is given and for what it makes of it.
    pub struct Send<'a, B> {
        sending: Sending<'a>,
        #[pin]
        body: B,
        persistence: Persistence,
        at: SystemTime,
    }
}

impl<B: Relay> Future for Send<'_, B> {
    type Output = Sent;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Sent> {
        let mut this = self.project();
        let end = ready!(this.sending.poll(cx, this.body.as_mut(), *this.persistence, *this.at));
        this.sending.wire.beat.unlimited();
        Poll::Ready(match end {
            Ok(()) => {
                this.body.settle(End::Ok);
                if *this.persistence == Persistence::Close { Sent::Last } else { Sent::Kept }
            }
            Err(end) => {
                this.body.settle(end);
                Sent::Broken
            }
        })
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
    /// Bytes of the current frame that the body has taken back.
    owed: usize,
    /// The data of a chunk is out, its CR LF is not.
    in_chunk: bool,
    is_last: bool,
    pace: Option<Pace>,
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
            let drained = self.poll_out(cx);
            if drained.is_pending() {
                let before = self.out.data.len();
                body.as_mut().poll_absorb(cx, &mut self.out.data);
                self.owed = self.owed.saturating_add(before.saturating_sub(self.out.data.len()));
                self.is_last &= self.owed == 0;
            }
            ready!(drained)?;
            if self.is_last {
                return Poll::Ready(Ok(()));
            }
            let staged = TEXT.with_borrow_mut(|text| {
                text.clear();
                if let Some(head) = self.head.take() {
                    write_head(text, &head, self.frame, persistence, at);
                    spare::give_fields(head.headers);
                }
                self.stage(cx, body.as_mut(), text)
            });
            if ready!(staged)?.is_none() {
                return Poll::Pending;
            }
        }
    }

    /// Takes the next piece of the body and puts it into its frame. `None` when Puma has the turn.
    fn stage<B: Relay>(&mut self, cx: &mut Context<'_>, body: Pin<&mut B>, text: &mut Vec<u8>) -> Poll<Result<Option<()>, End>> {
        let next = if self.frame == Frame::Nothing { Poll::Ready(None) } else { poll_data(body, cx) };
        let mut data = Bytes::new();
        match next {
            Poll::Ready(Some(Ok(piece))) => {
                self.frame_of(text, piece.len()).map_err(End::Refused)?;
                data = piece;
            }
            Poll::Ready(Some(Err(refusal))) => return Poll::Ready(Err(End::Refused(refusal))),
            Poll::Ready(None) if self.left > 0 && matches!(self.frame, Frame::Length(_)) || self.owed > 0 => {
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
        let framing = text.len();
        let mut sent = 0;
        if data.len() <= SMALL && !(text.is_empty() && data.is_empty()) {
            text.extend_from_slice(&data);
            sent = match self.wire.poll_send_some(cx, text) {
                Poll::Ready(Ok(sent)) => sent,
                Poll::Ready(Err(ended)) => return Poll::Ready(Err(end_of(ended))),
                Poll::Pending => 0,
            };
        }
        let unsent = text.get(sent..framing).unwrap_or_default();
        let head = if unsent.is_empty() { Bytes::new() } else { Bytes::copy_from_slice(unsent) };
        data.advance(sent.saturating_sub(framing).min(data.len()));
        self.out = Outgoing { head, data };
        Poll::Ready(Ok(Some(())))
    }

    fn frame_of(&mut self, text: &mut Vec<u8>, length: usize) -> Result<(), Refusal> {
        if self.owed > 0 {
            // The frame of these bytes has gone out already.
            self.owed = self.owed.checked_sub(length).ok_or(Refusal::Internal)?;
        } else {
            match self.frame {
                Frame::Chunks => {
                    if self.in_chunk {
                        text.extend_from_slice(b"\r\n");
                    }
                    chunk_line(text, length);
                    self.in_chunk = true;
                }
                // A byte more than was declared would be read as the next answer.
                Frame::Length(_) => self.left = self.left.checked_sub(length as u64).ok_or(Refusal::UpstreamReset)?,
                Frame::Nothing | Frame::Close => {}
            }
        }
        self.is_last = matches!(self.frame, Frame::Length(_)) && self.left == 0 && self.owed == 0;
        Ok(())
    }

    /// Puma has the turn: the client is not hurried, but one that leaves a stream of unknown length is let go.
    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<T>, End>> {
        // Bytes that wait inside the TLS layer wait for the client, too.
        match self.wire.poll_flush(cx) {
            Poll::Ready(Ok(())) => self.rest(0),
            Poll::Ready(Err(ended)) => return Poll::Ready(Err(end_of(ended))),
            Poll::Pending => self.hurry(0),
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

    /// Hands to the socket what is staged; the pace runs only while the client does not take it.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let before = self.out.left();
        let sent = self.wire.poll_send(cx, &mut self.out);
        let sent = match sent {
            Poll::Ready(Ok(())) if self.is_last => self.wire.poll_flush(cx),
            other @ (Poll::Ready(_) | Poll::Pending) => other,
        };
        match sent {
            Poll::Ready(Ok(())) => {
                let moved = self.made_room_for(before);
                // What only filled the kernel's buffer the client has not taken.
                if moved > 0 || before == 0 {
                    self.rest(moved);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(ended)) => Poll::Ready(Err(end_of(ended))),
            Poll::Pending => {
                self.hurry(before.saturating_sub(self.out.left()));
                Poll::Pending
            }
        }
    }

    /// How many bytes the client has made room for, when so many went out.
    fn made_room_for(&mut self, sent: usize) -> usize {
        sent.saturating_add_signed(std::mem::take(&mut self.wire.ahead))
    }

    /// The client has the turn, and `sent` bytes of it went out.
    fn hurry(&mut self, sent: usize) {
        let moved = self.made_room_for(sent);
        let now = self.wire.beat.now();
        let starts = self.pace.as_ref().is_none_or(Pace::is_paused);
        let pace = self.pace.get_or_insert_with(|| Pace::new(now, self.stall, self.rates.write_min, self.rates.grace));
        if starts || moved > 0 {
            pace.moved(moved);
            self.wire.until(pace.deadline(now));
        }
    }

    /// The client has taken everything, the last `moved` bytes just now.
    fn rest(&mut self, moved: usize) {
        if let Some(pace) = self.pace.as_mut().filter(|pace| !pace.is_paused()) {
            pace.moved(moved);
            pace.pause(self.wire.beat.now());
            self.wire.beat.unlimited();
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
