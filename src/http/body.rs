//! The body of a request as it arrives, and what an answer's body can do beyond `http_body::Body`.
//!
//! Who may make which: the two fronts make [`Received`]; only `layers::buffer` makes `Complete`; only `layers::canonical`
//! makes `Canonical`.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

use crate::{
    http::{one::reader::Reader, two::Incoming},
    log::Settle,
    refusal::Refusal,
};

/// Most bytes of an answer that come from Puma at once, unless whoever takes them has room for more and says so
/// ([`Source::at_once`]).
pub const LARGEST_PIECE: usize = 64 * 1024;

/// Most bytes of a long answer that come first: nobody knows yet whether its client takes them.
pub const FIRST_PIECE: usize = 16 * 1024;

/// A request body on its way in.
#[derive(Debug)]
pub enum Received {
    /// The request has none: neither Content-Length nor chunks.
    None,
    /// It came together with the head.
    Whole(BytesMut),
    /// It is read from an HTTP/1 connection.
    One(Box<Reader>),
    /// It is read from an HTTP/2 stream.
    Two(Incoming),
}

/// An answer's body as it comes from Puma.
pub trait Source: Body<Data = Bytes, Error = Refusal> {
    /// From here on no more than `most` bytes come at once, where that can be chosen.
    fn at_once(&mut self, _most: usize) {}
}

/// An answer's body that can be taken off Puma while its client is not reading.
pub trait Absorb {
    /// Takes in what Puma has sent, as far as the budget allows; registers for more.
    ///
    /// `unsent` is the rest of the last piece, of which the client has not taken all. A body takes it back from a
    /// client that stands still, and gives it out again before anything else; a few bytes stay, for the socket to take when it can.
    fn poll_absorb(self: Pin<&mut Self>, cx: &mut Context<'_>, unsent: &mut Bytes);
}

/// The body of an answer as the fronts get it.
pub trait Relay: Body<Data = Bytes, Error = Refusal> + Absorb + Settle {}
impl<B: Body<Data = Bytes, Error = Refusal> + Absorb + Settle> Relay for B {}

impl Received {
    /// Appends what comes next to `into`. False at the end.
    pub fn poll_append(&mut self, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<Result<bool, Refusal>> {
        if let Received::One(reader) = self {
            return reader.poll_append(cx, into);
        }
        loop {
            match ready!(Pin::new(&mut *self).poll_frame(cx)) {
                None => return Poll::Ready(Ok(false)),
                Some(Err(refusal)) => return Poll::Ready(Err(refusal)),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        into.extend_from_slice(data);
                        return Poll::Ready(Ok(true));
                    }
                }
            }
        }
    }

    /// Whether the request declared a body, even an empty one.
    pub fn is_declared(&self) -> bool {
        !matches!(self, Received::None)
    }
}

impl Source for Received {}

impl Body for Received {
    type Data = Bytes;
    type Error = Refusal;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        match self.get_mut() {
            Received::None => Poll::Ready(None),
            Received::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Received::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes).freeze())))),
            Received::One(reader) => reader.poll_data(cx).map(|next| next.map(|data| data.map(Frame::data))),
            Received::Two(incoming) => incoming.poll_data(cx).map(|next| next.map(|data| data.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Received::None => true,
            Received::Whole(bytes) => bytes.is_empty(),
            Received::One(_) => false,
            Received::Two(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Received::None => SizeHint::with_exact(0),
            Received::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Received::One(reader) => reader.size_hint(),
            Received::Two(incoming) => incoming.size_hint(),
        }
    }
}
