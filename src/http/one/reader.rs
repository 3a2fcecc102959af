//! The body of one HTTP/1 request. It owns the connection while it is read, and gives it back when it ends or is dropped.
//!
//! Threat: smuggling and slowloris. RFC 9112 §6, §7.1; RFC 9110 §10.1.1 for `100 Continue`, which is written when the body is
//! asked for, so that every limit on the head has passed by then. Nothing behind the end of the body is looked at here.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http_body::SizeHint;
use tokio::sync::oneshot;

use crate::{
    guard::{Limits, chunked::Chunked, rule::Rule},
    http::one::wire::{Ended, Outgoing, Wire},
    refusal::Refusal,
};

/// A body that is being read.
#[derive(Debug)]
pub struct Reader {
    wire: Option<Wire>,
    home: Option<oneshot::Sender<Returned>>,
    rest: Rest,
    limits: Limits,
    /// `100 Continue`, until it is out.
    invitation: Option<Box<Outgoing>>,
}

/// The connection when its body is done with it.
#[derive(Debug)]
pub struct Returned {
    /// The connection.
    pub wire: Wire,
    /// The body was read to its end, so the next request may follow.
    pub clean: bool,
}

/// What is still to come.
#[derive(Debug)]
enum Rest {
    Length(u64),
    Chunks(Chunked),
    Nothing,
    Failed(Refusal),
}

impl Reader {
    /// A body of a known length.
    pub fn of_length(wire: Wire, length: u64, limits: Limits, invite: bool) -> (Self, oneshot::Receiver<Returned>) {
        Self::new(wire, Rest::Length(length), limits, invite)
    }

    /// A body in chunks.
    pub fn of_chunks(wire: Wire, limits: Limits, invite: bool) -> (Self, oneshot::Receiver<Returned>) {
        Self::new(wire, Rest::Chunks(Chunked::new()), limits, invite)
    }

    fn new(wire: Wire, rest: Rest, limits: Limits, invite: bool) -> (Self, oneshot::Receiver<Returned>) {
        let (home, returned) = oneshot::channel();
        let invite = invite && wire.input.is_empty();
        let invitation = invite.then(|| Box::new(Outgoing { head: Bytes::from_static(CONTINUE), data: Bytes::new() }));
        (Reader { wire: Some(wire), home: Some(home), rest, limits, invitation }, returned)
    }

    /// How much is still to come, where that is known.
    pub fn size_hint(&self) -> SizeHint {
        match &self.rest {
            Rest::Length(left) => SizeHint::with_exact(*left),
            Rest::Chunks(_) => SizeHint::default(),
            Rest::Nothing | Rest::Failed(_) => SizeHint::with_exact(0),
        }
    }

    /// The next piece; `None` at the end.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Refusal>>> {
        loop {
            let Some(wire) = &mut self.wire else {
                return Poll::Ready(match self.rest {
                    Rest::Failed(refusal) => Some(Err(refusal)),
                    Rest::Nothing | Rest::Length(_) | Rest::Chunks(_) => None,
                });
            };
            if let Some(invitation) = &mut self.invitation {
                if let Err(ended) = ready!(wire.poll_send(cx, invitation)) {
                    return Poll::Ready(Some(Err(self.fail(refusal_of(ended)))));
                }
                self.invitation = None;
            }
            match &mut self.rest {
                Rest::Length(0) | Rest::Nothing => {
                    self.rest = Rest::Nothing;
                    self.go_home(true);
                    return Poll::Ready(None);
                }
                Rest::Length(left) if !wire.input.is_empty() => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(wire.input.len());
                    *left = left.saturating_sub(n as u64);
                    let data = wire.input.split_to(n).freeze();
                    if matches!(self.rest, Rest::Length(0)) {
                        self.rest = Rest::Nothing;
                        self.go_home(true);
                    }
                    return Poll::Ready(Some(Ok(data)));
                }
                Rest::Chunks(chunks) if !wire.input.is_empty() => match chunks.advance(&wire.input, &self.limits) {
                    Err(refusal) => return Poll::Ready(Some(Err(self.fail(refusal)))),
                    Ok(piece) => {
                        let mut taken = wire.input.split_to(piece.consumed.min(wire.input.len()));
                        if piece.done {
                            self.rest = Rest::Nothing;
                            continue;
                        }
                        if !piece.data.is_empty() {
                            taken.advance(piece.data.start.min(taken.len()));
                            taken.truncate(piece.data.len());
                            return Poll::Ready(Some(Ok(taken.freeze())));
                        }
                        if piece.consumed > 0 {
                            continue;
                        }
                    }
                },
                Rest::Length(_) | Rest::Chunks(_) => {}
                Rest::Failed(refusal) => return Poll::Ready(Some(Err(*refusal))),
            }
            if let Err(ended) = ready!(wire.poll_fill(cx)) {
                let refusal = match (&self.rest, ended) {
                    (Rest::Chunks(_), Ended::Closed) => Refusal::BadFraming(Rule::G15),
                    _ => refusal_of(ended),
                };
                return Poll::Ready(Some(Err(self.fail(refusal))));
            }
        }
    }

    /// Appends what comes next to `into`; a body of known length is read from the socket straight to its place.
    pub fn poll_append(&mut self, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<Result<bool, Refusal>> {
        if let (Rest::Length(left), Some(wire)) = (&mut self.rest, &mut self.wire)
            && *left > 0
            && wire.input.is_empty()
            && self.invitation.is_none()
        {
            let most = usize::try_from(*left).unwrap_or(usize::MAX);
            return match ready!(wire.poll_fill_into(cx, into, most)) {
                Ok(n) => {
                    *left = left.saturating_sub(n as u64);
                    Poll::Ready(Ok(true))
                }
                Err(ended) => Poll::Ready(Err(self.fail(refusal_of(ended)))),
            };
        }
        match ready!(self.poll_data(cx)) {
            None => Poll::Ready(Ok(false)),
            Some(Err(refusal)) => Poll::Ready(Err(refusal)),
            Some(Ok(data)) => {
                into.extend_from_slice(&data);
                Poll::Ready(Ok(true))
            }
        }
    }

    fn fail(&mut self, refusal: Refusal) -> Refusal {
        self.rest = Rest::Failed(refusal);
        self.go_home(false);
        refusal
    }

    fn go_home(&mut self, clean: bool) {
        if let (Some(wire), Some(home)) = (self.wire.take(), self.home.take()) {
            // A driver that is gone does not want its connection back: dropping it closes it.
            drop(home.send(Returned { wire, clean }));
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let clean = matches!(self.rest, Rest::Nothing | Rest::Length(0));
        self.go_home(clean);
    }
}

fn refusal_of(ended: Ended) -> Refusal {
    match ended {
        Ended::Closed | Ended::Broken => Refusal::ClientAbort,
        Ended::Over => Refusal::SlowBody,
    }
}

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
