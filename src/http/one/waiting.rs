//! What a request waits for: its answer, its body on the way in, interim answers on the way out, and whether its client is still
//! there.
//!
//! Threat: exhaustion. A client that goes away before Puma has seen its request costs Puma nothing (RFC 9112 §9.6 for one that only
//! closes its sending side).

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::oneshot;

use super::{
    reader::Returned,
    response,
    wire::{Ended, Outgoing, Wire},
};
use crate::http::arrival::{Moment, Notes};

/// What must be known of a request when its answer comes.
pub struct Asked {
    pub notes: Arc<Notes>,
    pub is_head: bool,
    pub is_old: bool,
    pub keep: bool,
    /// The client sends nothing behind it (RFC 9112 §9.6).
    pub says_goodbye: bool,
}

/// What an exchange waits for beside its answer.
pub struct Away {
    /// Brings the socket back when the body has been read.
    body: Option<oneshot::Receiver<Returned>>,
    pub clean: bool,
    /// Interim answers on their way out.
    pub hints: Outgoing,
}

impl Away {
    /// Nothing but the answer: all of the request is here.
    pub fn here() -> Self {
        Away { body: None, clean: true, hints: Outgoing::default() }
    }

    /// The socket, too, which is with the body until that has been read.
    pub fn until(home: oneshot::Receiver<Returned>) -> Self {
        Away { body: Some(home), clean: false, hints: Outgoing::default() }
    }

    /// Waits for the answer, and meanwhile for the client to go away: a request that Puma has not seen yet is given up then.
    /// A client may close its sending side and still wait (RFC 9112 §9.6), so an admitted request is carried on.
    pub fn wait_for<'a, F, R>(
        &'a mut self,
        mut answer: Pin<&'a mut F>,
        wire: &'a mut Option<Wire>,
        asked: &'a Asked,
    ) -> impl Future<Output = Option<R>>
    where
        F: Future<Output = Result<R, Infallible>>,
    {
        std::future::poll_fn(move |cx| {
            let outcome = answer.as_mut().poll(cx);
            self.poll_home(cx, wire);
            let Some(wire) = wire else { return outcome.map(Result::ok) };
            if !asked.is_old {
                for fields in asked.notes.take_hints() {
                    let mut all = self.hints.head.to_vec();
                    all.extend_from_slice(&response::interim(StatusCode::EARLY_HINTS, &fields));
                    self.hints.head = Bytes::from(all);
                }
            }
            let is_gone = self.hints.has_remaining() && matches!(wire.poll_send(cx, &mut self.hints), Poll::Ready(Err(_)));
            if outcome.is_ready() {
                return outcome.map(Result::ok);
            }
            if is_gone {
                return Poll::Ready(None);
            }
            while wire.input.len() < AHEAD && !wire.has_ended() {
                match wire.poll_fill(cx) {
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(Ended::Over)) => return Poll::Ready(None),
                    Poll::Ready(Err(Ended::Closed | Ended::Broken)) if asked.notes.when(Moment::Admitted).is_none() => {
                        return Poll::Ready(None);
                    }
                    Poll::Ready(Err(Ended::Closed | Ended::Broken)) | Poll::Pending => break,
                }
            }
            Poll::Pending
        })
    }

    fn poll_home(&mut self, cx: &mut Context<'_>, wire: &mut Option<Wire>) {
        if let Some(body) = &mut self.body
            && let Poll::Ready(returned) = Pin::new(body).poll(cx)
        {
            self.has_returned(returned.ok(), wire);
        }
    }

    /// The socket is back once whoever had the body is done, as all are who have answered.
    pub fn come_home(&mut self, wire: &mut Option<Wire>) {
        if let Some(body) = &mut self.body {
            let returned = body.try_recv().ok();
            self.has_returned(returned, wire);
        }
    }

    fn has_returned(&mut self, returned: Option<Returned>, wire: &mut Option<Wire>) {
        self.body = None;
        if let Some(Returned { wire: here, clean }) = returned {
            *wire = Some(here);
            self.clean = clean;
        }
    }
}

/// Bytes that a client may send ahead while it waits for its answer.
const AHEAD: usize = 16 * 1024;
