//! An HTTP/1 connection: read a head, hand the request in, write the answer, and again.
//!
//! Threats: slowloris (separate deadlines for the first byte, the head, the body, the reading of the answer and the pause
//! between requests), exhaustion (no buffer and no request state while idle), smuggling (one request at a time in the order
//! of arrival; after a framing error nothing is parsed any more). RFC 9112 §9. hyper's HTTP/1 server is not used here:
//! `docs/decisions/0002-own-http1-driver.md` says why.

pub mod reader;
mod reply;
mod request;
mod response;
mod waiting;
pub mod wire;

use std::{convert::Infallible, pin::pin, sync::Arc, task::Poll, time::Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use tower_service::Service;

use self::{
    reader::Reader,
    reply::Sent,
    request::Arrived,
    waiting::{Asked, Away},
    wire::{Ended, Outgoing, Wire},
};
use crate::{
    accept::{beat::Beat, client::Client, stream::Stream},
    guard::{Framing, head::HeadScan, rule::Rule},
    http::{
        Site, Sites,
        arrival::Arrival,
        body::{Received, Relay},
        pause::others_first,
        spare, upgrade,
    },
    layers::answer,
    refusal::Refusal,
};

/// Serves one connection until it ends. Every idle connection holds the room of this future: what comes in is kept in one place,
/// which an `async fn` would keep in two, and what comes after the wait is boxed.
pub fn serve<S, B>(sites: Arc<Sites<S>>, stream: Stream, client: Arc<Client>, beat: Beat) -> impl Future<Output = ()>
where
    S: Service<Request<Received>, Response = Response<B>, Error = Infallible> + Clone,
    B: Relay,
{
    let site = sites.current();
    let born = beat.now();
    let wire = Some(Wire::new(stream, beat));
    let mut connection = Connection { stack: site.stack(), wire, sites, site, client, born, served: 0 };
    async move {
        std::future::poll_fn(|cx| {
            if let Some(wire) = &mut connection.wire {
                wire.beat.wake_by(cx.waker());
            }
            Poll::Ready(())
        })
        .await;
        loop {
            let next = match connection.next_bytes().await {
                Ok(()) => Box::pin(connection.exchange()).await,
                Err(_) => Next::Close,
            };
            match next {
                Next::Request => {}
                Next::Nothing => return,
                next @ (Next::Refuse(..) | Next::Close | Next::Linger | Next::Switch(_)) => {
                    return Box::pin(connection.end(next)).await;
                }
            }
        }
    }
}

/// What the connection keeps while it is idle.
struct Connection<S> {
    sites: Arc<Sites<S>>,
    site: Arc<Site<S>>,
    stack: S,
    client: Arc<Client>,
    /// The socket, which is away while the body of a request is read from it.
    wire: Option<Wire>,
    born: u64,
    served: u32,
}

/// What follows an exchange.
enum Next<B> {
    /// Another request may come.
    Request,
    /// No request can be made of what came since then.
    Refuse(Instant, Refusal),
    /// Nothing has come, and nothing was answered.
    Close,
    /// The last answer is out; close so that it arrives.
    Linger,
    /// The connection belongs to a WebSocket from here on.
    Switch(Box<Switch<B>>),
    /// It is gone.
    Nothing,
}

/// An answer that tells the client of another protocol, and the end of interim answers before it.
struct Switch<B> {
    hints: Bytes,
    response: Response<B>,
}

impl<S, B> Connection<S>
where
    S: Service<Request<Received>, Response = Response<B>, Error = Infallible> + Clone,
    B: Relay,
{
    /// Waits for the first byte of a request. Empty lines do not count (RFC 9112 §2.2): the guard will count them.
    ///
    /// While Palisade drains, what has come is answered, and an idle connection ends; a new one has a moment for its request.
    async fn next_bytes(&mut self) -> Result<(), Ended> {
        let wire = self.wire.as_mut().ok_or(Ended::Broken)?;
        wire.rest();
        let is_new = self.served == 0;
        let wait = if is_new { self.site.timeouts.header } else { self.site.timeouts.idle };
        let deadline = wire.beat.now().saturating_add(wait.as_millis());
        wire.beat.until(deadline);
        while wire.input.iter().all(|b| matches!(b, b'\r' | b'\n')) && wire.input.len() <= EMPTY_LINES {
            let (sites, last_call) = (&self.sites, deadline.min(self.born.saturating_add(LAST_CALL)));
            std::future::poll_fn(|cx| {
                let filled = wire.poll_fill(cx);
                if filled.is_pending() && sites.is_draining() {
                    if !is_new || wire.beat.now() >= last_call {
                        return Poll::Ready(Err(Ended::Over));
                    }
                    wire.beat.until(last_call);
                }
                filled
            })
            .await?;
        }
        Ok(())
    }

    /// One request and its answer. Whatever is named across a wait the future keeps room for, and some of it as long as its block
    /// lasts: so each wait has a block of its own.
    async fn exchange(&mut self) -> Next<B> {
        let started = Instant::now();
        if !self.sites.is_in_force(&self.site) {
            self.site = self.sites.current();
            self.stack = self.site.stack();
        }
        let (request, away, asked) = match self.next(started).await {
            Ok(Some(begun)) => begun,
            Ok(None) => return Next::Nothing,
            Err(refusal) => return Next::Refuse(started, refusal),
        };
        let outcome = {
            let (mut away, answer) = (away, pin!(self.stack.call(request)));
            away.wait_for(answer, &mut self.wire, &asked).await.map(|response| (response, away))
        };
        let sending = match self.reply(outcome, &asked) {
            Ok(sending) => sending,
            Err(next) => return next,
        };
        let sent = others_first().then(|()| sending).await;
        spare::give_notes(asked.notes);
        match sent {
            Sent::Kept => Next::Request,
            // The client has promised to send no more, and it has nothing on its way that would turn the answer into a reset.
            Sent::Last if asked.says_goodbye && self.wire.as_ref().is_some_and(Wire::closes_at_once) => Next::Nothing,
            Sent::Last => Next::Linger,
            Sent::Broken => self.abort(),
        }
    }

    /// Begins to write the answer, if there is one and somebody to have it.
    fn reply(&mut self, outcome: Option<(Response<B>, Away)>, asked: &Asked) -> Result<reply::Send<'_, B>, Next<B>> {
        let Some((response, mut away)) = outcome else { return Err(Next::Nothing) };
        away.come_home(&mut self.wire);
        let Some(wire) = &self.wire else { return Err(Next::Nothing) };
        if reply::is_to_nobody(&response) {
            return Err(Next::Nothing);
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Next::Switch(Box::new(Switch { hints: away.hints.head, response })));
        }
        // Requests that came before the client closed its side are still answered (RFC 9112 §9.6).
        let has_more = !wire.has_ended() || !wire.input.is_empty();
        let keep = asked.keep && away.clean && has_more && self.may_go_on(wire.beat.lately()) && !reply::closes(&response);
        let shape = reply::Shape { to_head: asked.is_head, is_old: asked.is_old, keep, at: asked.notes.at };
        let Some(wire) = &mut self.wire else { return Err(Next::Nothing) };
        Ok(reply::send(wire, away.hints, response, shape, &self.site.rates, &self.site.timeouts))
    }

    /// Reads a head and makes a request of it; none where the connection broke before it had come.
    async fn next(&mut self, started: Instant) -> Result<Option<(Request<Received>, Away, Asked)>, Refusal> {
        let mut arrived = None;
        self.read_head(started, &mut arrived).await?;
        Ok(arrived.and_then(|arrived| self.begin(arrived)))
    }

    /// Makes a request of its head.
    fn begin(&mut self, arrived: Arrived) -> Option<(Request<Received>, Away, Asked)> {
        let Arrived { parts, framing, expects_continue, is_head, is_old, keep } = arrived;
        self.served = self.served.saturating_add(1);
        let notes = Arc::clone(&parts.extensions.get::<Arrival>()?.notes);
        // Behind a body some clients send an empty line more than they should (RFC 9112 §2.2).
        let says_goodbye = !keep && framing == Framing::None;
        let (body, away) = self.body(framing, expects_continue)?;
        Some((Request::from_parts(parts, body), away, Asked { notes, is_head, is_old, keep, says_goodbye }))
    }

    /// Reads a head; leaves `arrived` empty where the connection broke before it had come.
    async fn read_head(&mut self, started: Instant, arrived: &mut Option<Arrived>) -> Result<(), Refusal> {
        let Some(wire) = &mut self.wire else { return Ok(()) };
        wire.beat.until(wire.beat.at(started).saturating_add(self.site.timeouts.header.as_millis()));
        let mut scan = HeadScan::default();
        while !request::take(wire, &mut scan, &self.site.limits, &self.client, started, arrived)? {
            match wire.fill().await {
                Ok(_) => {}
                Err(Ended::Over) => return Err(Refusal::SlowHeader),
                Err(Ended::Closed) => return Err(Refusal::BadFraming(Rule::G5)),
                Err(Ended::Broken) => break,
            }
        }
        Ok(())
    }

    /// The body of a request, which takes the socket along unless it has come already.
    fn body(&mut self, framing: Framing, invite: bool) -> Option<(Received, Away)> {
        let wire = self.wire.as_mut()?;
        wire.beat.unlimited();
        Some(match framing {
            Framing::None => (Received::None, Away::here()),
            Framing::Length(length) => match usize::try_from(length) {
                Ok(length) if length <= wire.input.len() => (Received::Whole(wire.take(length)), Away::here()),
                _ => {
                    let (reader, home) = Reader::of_length(self.wire.take()?, length, self.site.limits, invite);
                    (Received::One(Box::new(reader)), Away::until(home))
                }
            },
            Framing::Chunked => {
                let (reader, home) = Reader::of_chunks(self.wire.take()?, self.site.limits, invite);
                (Received::One(Box::new(reader)), Away::until(home))
            }
        })
    }

    /// Answers a request of which no layer knows, and closes.
    async fn refuse(&mut self, started: Instant, refusal: Refusal) -> Next<B> {
        let Some(wire) = &mut self.wire else { return Next::Nothing };
        let (method, target) = request::glimpse(&wire.input);
        self.site.refused(&self.client, started, method, target, refusal);
        let to_head = method == b"HEAD";
        if refusal == Refusal::ClientAbort || wire.beat.is_evicted() {
            return Next::Nothing;
        }
        if self.site.bans.shuts_out(self.client.ip) {
            return self.abort();
        }
        wire.beat.until(wire.beat.now().saturating_add(self.site.timeouts.write_stall.as_millis()));
        match wire.send(Outgoing { head: reply::whole(&answer::bare(refusal), to_head), data: Bytes::new() }).await {
            Ok(()) => Next::Linger,
            Err(_) => Next::Nothing,
        }
    }

    /// Does what is left to be done after the last exchange.
    async fn end(&mut self, mut next: Next<B>) {
        if let Next::Refuse(started, refusal) = next {
            next = self.refuse(started, refusal).await;
        }
        let Some(wire) = self.wire.take() else { return };
        match next {
            Next::Request | Next::Refuse(..) | Next::Nothing => {}
            Next::Close => wire.close().await,
            Next::Linger => wire.linger().await,
            Next::Switch(switch) => Box::pin(switch.run(wire, &self.sites, &self.site)).await,
        }
    }

    fn abort(&mut self) -> Next<B> {
        if let Some(wire) = self.wire.take() {
            wire.abort();
        }
        Next::Nothing
    }

    fn may_go_on(&self, now: u64) -> bool {
        let timeouts = &self.site.timeouts;
        let young = now.saturating_sub(self.born) < timeouts.connection_age.as_millis();
        young && self.served < timeouts.requests && !self.sites.is_draining() && !self.site.overload.ends_connections()
    }
}

impl<B> Switch<B> {
    /// Tells the client, and passes bytes between it and Puma from then on.
    async fn run<S>(self: Box<Self>, mut wire: Wire, sites: &Sites<S>, site: &Site<S>) {
        let Switch { hints, mut response } = *self;
        let Some(far) = response.extensions_mut().remove::<upgrade::FarEnd>() else { return };
        wire.beat.until(wire.beat.now().saturating_add(site.timeouts.write_stall.as_millis()));
        let (parts, body) = response.into_parts();
        if wire.send(Outgoing { head: hints, data: response::switching(&parts) }).await.is_ok() {
            drop(body);
            upgrade::tunnel(wire, far, sites, site).await;
        }
    }
}

/// Bytes of empty lines that are waited upon as if nothing had come.
const EMPTY_LINES: usize = 4;
/// Milliseconds from its start in which a connection may still bring its first request when Palisade drains.
const LAST_CALL: u64 = 1000;

#[cfg(test)]
mod tests;
