//! One stream: a request, its answer, and the pace at which the client takes it. RFC 9113 §8.1.
//!
//! Threats: exhaustion (a stream that was reset before its turn is never handed in; h2 is given no more of an answer than
//! the client has made room for, and an answer that waits is absorbed so that Puma is free) and slowloris (an answer that
//! stands still is reset alone).

use std::{
    cell::RefCell,
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use tower_service::Service;

use super::{
    incoming::Incoming,
    stalls::Stall,
    watch::{Load, Open},
};
use crate::{
    accept::{beat::Sweep, client::Client},
    http::{
        Site, Sites,
        arrival::{Arrival, Names, Notes},
        body::{Received, Relay},
        extended_connect::{self, NearEnd, Outcome},
        spare,
        upgrade::Life,
    },
    log::End,
};

/// What all streams of a connection share.
#[derive(Debug)]
pub struct Front<S> {
    pub sites: Arc<Sites<S>>,
    pub client: Arc<Client>,
    pub load: Arc<Load>,
    pub clock: Arc<Sweep>,
    /// The configuration that the last stream found in force, with its stack.
    pub stack: Mutex<(Arc<Site<S>>, S)>,
}

impl<S: Clone> Front<S> {
    /// The configuration in force.
    fn site(&self) -> Arc<Site<S>> {
        let mut place = self.stack();
        if !self.sites.is_in_force(&place.0) {
            let site = self.sites.current();
            *place = (Arc::clone(&site), site.stack());
        }
        Arc::clone(&place.0)
    }

    fn call<F>(&self, request: Request<Received>) -> F
    where
        S: Service<Request<Received>, Future = F>,
    {
        self.stack().1.call(request)
    }

    fn stack(&self) -> MutexGuard<'_, (Arc<Site<S>>, S)> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves one stream until its answer has been handed over or there is nobody to answer. Each of thousands of streams holds the room
/// of this future, so what is named across a wait is only what is needed behind it.
pub fn serve<S, B>(
    front: Arc<Front<S>>,
    open: Open,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> impl Future<Output = ()>
where
    S: Service<Request<Received>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    B: Relay,
{
    let started = Instant::now();
    async move {
        if front.load.resets.load(Relaxed) > 0 {
            // Who has reset a stream gets the time to reset this one, too, before it costs anything.
            tokio::task::yield_now().await;
        }
        if poll_fn(|cx| Poll::Ready(respond.poll_reset(cx).is_ready())).await {
            return front.load.reset();
        }
        let (site, notes) = (front.site(), spare::notes(started));
        let outcome = {
            let (request, near) = arrived(&front, Arc::clone(&notes), request);
            let mut answer = pin!(front.call(request));
            poll_fn(|cx| match respond.poll_reset(cx) {
                Poll::Ready(_) => Poll::Ready(None),
                Poll::Pending => {
                    let outcome = answer.as_mut().poll(cx);
                    for fields in notes.take_hints() {
                        let mut hint = Response::new(());
                        (*hint.status_mut(), *hint.headers_mut()) = (StatusCode::EARLY_HINTS, fields);
                        if respond.send_informational(hint).is_err() {
                            return Poll::Ready(None);
                        }
                    }
                    outcome.map(Result::ok)
                }
            })
            .await
            .map(|response| (response, near))
        };
        let Some((mut answer, body, open)) = begin(&front, &site, outcome, respond, open) else { return };
        {
            let mut body = pin!(body);
            let end = match &mut answer {
                Some(answer) => poll_fn(|cx| answer.poll(cx, body.as_mut())).await,
                None => Some(End::Ok),
            };
            match end {
                Some(End::Ok) => {
                    // Only a whole answer earns anything, or a flood of resets would pay for itself.
                    front.load.answer();
                    body.settle(End::Ok);
                }
                Some(end) => body.settle(end),
                None => front.load.reset(),
            }
        }
        spare::give_notes(notes);
        drop(open);
    }
}

/// Sends the head of an answer. What is left to be done: the body, and how it goes to the client unless it has ended with the head.
fn begin<'a, S: Send + Sync + 'static, B: Relay>(
    front: &'a Front<S>,
    site: &Site<S>,
    outcome: Option<(Response<B>, Option<RecvStream>)>,
    mut respond: SendResponse<Bytes>,
    open: Open,
) -> Option<(Option<Answer<'a>>, B, Open)> {
    let Some((mut response, near)) = outcome else {
        front.load.reset();
        return None;
    };
    if let Some(near) = near {
        match extended_connect::outcome(&mut response) {
            Outcome::Open(far) => {
                let head = Response::from_parts(response.into_parts().0, ());
                match respond.send_response(head, false) {
                    Ok(send) => {
                        let (idle, spread, sites) = (site.tunnel_idle, site.tunnel_spread, Arc::clone(&front.sites));
                        let life = Life { idle, spread, is_draining: move || sites.is_draining() };
                        extended_connect::tunnel(NearEnd::new(send, near), far, front.clock.enrol(u64::MAX), life, open);
                    }
                    Err(_) => respond.send_reset(Reason::INTERNAL_ERROR),
                }
                return None;
            }
            Outcome::Ignored => {
                if respond.send_response(Response::from_parts(response.into_parts().0, ()), true).is_err() {
                    respond.send_reset(Reason::INTERNAL_ERROR);
                }
                return None;
            }
            Outcome::Answered => {}
        }
    }
    let (mut parts, body) = response.into_parts();
    complete(&mut parts.headers, &body);
    let is_end = body.is_end_stream();
    let Ok(send) = respond.send_response(Response::from_parts(parts, ()), is_end) else {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return None;
    };
    let patience = site.timeouts.write_stall.as_millis();
    let answer = Answer { send, rest: Bytes::new(), stall: None, patience, load: &front.load, clock: &front.clock };
    Some(((!is_end).then_some(answer), body, open))
}

/// The request as the stack gets it; of an extended CONNECT also the client's side of its stream.
fn arrived<S>(front: &Front<S>, notes: Arc<Notes>, request: Request<RecvStream>) -> (Request<Received>, Option<RecvStream>) {
    let (mut parts, stream) = request.into_parts();
    let target = parts.uri.path_and_query().map_or(Bytes::new(), |target| spare::cut(target.as_str().as_bytes()));
    let mut sent = Names::NONE;
    parts.headers.keys().for_each(|name| sent.add(name));
    let arrival = Arrival { client: Arc::clone(&front.client), target, notes, sent };
    if parts.extensions.is_empty() {
        parts.extensions = spare::extensions(arrival);
    } else {
        parts.extensions.insert(arrival);
    }
    let (body, near) = if extended_connect::translate(&mut parts) {
        (Received::None, Some(stream))
    } else if parts.method == Method::CONNECT || stream.is_end_stream() {
        (Received::None, None)
    } else {
        (Received::Two(Incoming::new(stream, &parts.headers)), None)
    };
    (Request::from_parts(parts, body), near)
}

/// An answer's body on its way to h2.
struct Answer<'a> {
    send: SendStream<Bytes>,
    /// The rest of the last piece.
    rest: Bytes,
    /// The client makes no room.
    stall: Option<Stall>,
    patience: u64,
    load: &'a Load,
    clock: &'a Sweep,
}

impl Answer<'_> {
    /// How it ended, once it has; `None` where the client has reset the stream.
    fn poll<B: Relay>(&mut self, cx: &mut Context<'_>, mut body: Pin<&mut B>) -> Poll<Option<End>> {
        loop {
            if self.rest.is_empty() && self.stall.is_none() {
                match body.as_mut().poll_frame(cx) {
                    Poll::Pending => return if self.send.poll_reset(cx).is_ready() { Poll::Ready(None) } else { Poll::Pending },
                    Poll::Ready(Some(Ok(frame))) => self.rest = frame.into_data().unwrap_or_default(),
                    Poll::Ready(Some(Err(refusal))) => {
                        self.send.send_reset(Reason::INTERNAL_ERROR);
                        return Poll::Ready(Some(refusal.into()));
                    }
                    Poll::Ready(None) => return Poll::Ready(self.send.send_data(Bytes::new(), true).ok().map(|()| End::Ok)),
                }
                if self.rest.is_empty() {
                    if body.is_end_stream() {
                        return Poll::Ready(self.send.send_data(Bytes::new(), true).ok().map(|()| End::Ok));
                    }
                    continue;
                }
            }
            let room = match self.poll_room(cx) {
                Poll::Ready(Some(room)) => room,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return self.stand_still(cx, body),
            };
            self.stall = None;
            if self.rest.is_empty() {
                continue;
            }
            let piece = self.rest.split_to(self.rest.len().min(room).min(PIECE));
            self.load.make_room(piece.len() as u64);
            let is_last = self.rest.is_empty() && body.is_end_stream();
            if self.send.send_data(piece, is_last).is_err() {
                return Poll::Ready(None);
            }
            if is_last {
                return Poll::Ready(Some(End::Ok));
            }
        }
    }

    /// Bytes that the client has room for now.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Option<usize>> {
        self.send.reserve_capacity(self.rest.len().clamp(1, PIECE));
        match self.send.capacity() {
            0 => self.send.poll_capacity(cx).map(|room| room.and_then(Result::ok)),
            room => Poll::Ready(Some(room)),
        }
    }

    /// The client has the turn: it is given time, and meanwhile Puma is relieved of the answer.
    fn stand_still<B: Relay>(&mut self, cx: &mut Context<'_>, body: Pin<&mut B>) -> Poll<Option<End>> {
        let now = self.clock.now();
        let stall = self.stall.get_or_insert_with(|| self.load.stalls.wait(now, self.patience, cx.waker()));
        if now >= stall.end {
            let busy = self.load.busy_until();
            if now >= busy {
                self.send.send_reset(Reason::CANCEL);
                return Poll::Ready(Some(End::SlowRead));
            }
            stall.wait_until(busy.min(now.saturating_add(self.patience)));
        }
        body.poll_absorb(cx, &mut self.rest);
        Poll::Pending
    }
}

/// What the head says besides: Puma sends no Date (RFC 9110 §6.6.1), and a length that is known is told.
fn complete<B: Body>(headers: &mut HeaderMap, body: &B) {
    if !headers.contains_key(header::DATE) {
        headers.insert(header::DATE, date());
    }
    leave_out(headers);
    if !body.is_end_stream()
        && !headers.contains_key(header::CONTENT_LENGTH)
        && let Some(length) = body.size_hint().exact()
    {
        let text = spare::cut(itoa::Buffer::new().format(length).as_bytes());
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_maybe_shared(text).unwrap_or_else(|_| HeaderValue::from(length)));
    }
}

/// Values that never come again take no place in the connection's table (RFC 7541 §6.2.3): there they push out what does come
/// again, and the next of their name is compared with each of them.
fn leave_out(headers: &mut HeaderMap) {
    for (name, value) in headers {
        let comes_never_again = match name.as_str() {
            "x-request-id" | "x-runtime" => true,
            "content-security-policy" => memchr::memmem::find(value.as_bytes(), b"'nonce-").is_some(),
            _ => false,
        };
        if comes_never_again {
            value.set_sensitive(true);
        }
    }
}

/// Formatted once a second and thread.
fn date() -> HeaderValue {
    let now = SystemTime::now();
    let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    DATE.with_borrow_mut(|(at, value)| {
        if *at != second
            && let Ok(fresh) = HeaderValue::from_str(&httpdate::fmt_http_date(now))
        {
            (*at, *value) = (second, fresh);
        }
        value.clone()
    })
}

thread_local! {
    static DATE: RefCell<(u64, HeaderValue)> = const { RefCell::new((u64::MAX, HeaderValue::from_static(""))) };
}

/// Bytes of an answer that are handed to h2 at once.
const PIECE: usize = 16 * 1024;
