//! The body of a request on an HTTP/2 stream. RFC 9113 §8.1.
//!
//! Threat: smuggling. Only END_STREAM is the end of a body. A stream that its client resets in the middle, whatever reason it
//! gives, is a client that went away: to take CANCEL for an end would hand a torn body to Puma as a whole one.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, header};
use http_body::SizeHint;

use crate::{guard::rule::Rule, refusal::Refusal};

/// A body that is read from an HTTP/2 stream.
#[derive(Debug)]
pub struct Incoming {
    stream: RecvStream,
    /// What the declared length still promises; h2 holds the client to it.
    left: Option<u64>,
}

impl Incoming {
    /// The body behind these fields.
    pub fn new(stream: RecvStream, headers: &HeaderMap) -> Self {
        Incoming { stream, left: declared(headers) }
    }

    /// The next piece, `None` at the end. A trailer section is left unread.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Refusal>>> {
        match ready!(self.stream.poll_data(cx)) {
            Some(Ok(data)) => {
                if let Some(left) = &mut self.left {
                    *left = left.saturating_sub(data.len() as u64);
                }
                match self.stream.flow_control().release_capacity(data.len()) {
                    Ok(()) => Poll::Ready(Some(Ok(data))),
                    Err(error) => Poll::Ready(Some(Err(refusal(&error)))),
                }
            }
            Some(Err(error)) => Poll::Ready(Some(Err(refusal(&error)))),
            None => Poll::Ready(None),
        }
    }

    /// Whether END_STREAM has been read.
    pub fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// What is still to come.
    pub fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A stream that ends badly is the client going away, unless the library found its length or its frames wrong.
fn refusal(error: &h2::Error) -> Refusal {
    if error.is_library() { Refusal::BadFraming(Rule::T14) } else { Refusal::ClientAbort }
}

fn declared(headers: &HeaderMap) -> Option<u64> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let first = values.next()?.to_str().ok()?.parse().ok()?;
    values.next().is_none().then_some(first)
}
