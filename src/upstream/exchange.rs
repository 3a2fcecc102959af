//! One request, one answer, and when a request may be sent again.
//!
//! Threat: smuggling. Nothing is ever written behind a request, an answer that comes before its request was written costs
//! the connection, and interim answers are counted. A request goes out a second time only where Puma cannot have executed
//! the first one: it was not written whole, or it was never read; or, for idempotent methods (RFC 9110 §9.2.2), where a
//! used connection ended before the first byte of an answer, as Puma closes idle ones without a word.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode, header};
use tokio::io::AsyncWrite;

use crate::{
    guard::{
        Version,
        answer::{AnswerFraming, AnswerHead, AnswerLimits, AnswerScan},
        rule::Rule,
    },
    http::{
        arrival::{Arrival, Moment, Notes},
        pause::others_first,
        spare,
    },
    layers::{buffer::Content, canonical::Canonical},
    refusal::Refusal,
    upstream::{
        Inner, ResponseTimeout,
        answer::{Answer, Framing, Streaming, poll_read_head},
        hold::{self, Wish},
        pool::Keep,
        response,
        sweep::Watch,
        turn::Turn,
    },
};

/// What is to be sent, in the form that goes out.
struct Wire {
    bytes: Vec<u8>,
    head: usize,
    content: Content,
}

/// What must be known of the request to read its answer.
struct Purpose {
    to_head: bool,
    idempotent: bool,
    upgrade: bool,
    patience: Duration,
    notes: Option<Arc<Notes>>,
}

/// Why there is no answer.
enum Broken {
    /// Puma cannot have executed the request.
    Unread,
    /// It may have.
    Perhaps,
    /// The connection stands, but there will be no answer from it.
    Final(Refusal),
}

struct Head {
    head: AnswerHead,
    block: Bytes,
    rest: BytesMut,
    whole: bool,
}

/// Sends a request and reads the head of its answer. What the request brings is taken apart before the first wait: the future
/// keeps room for whatever it names across one.
pub(super) fn exchange(puma: Arc<Inner>, request: Request<Canonical>) -> impl Future<Output = Result<Response<Answer>, Refusal>> + Send {
    let (parts, canonical) = request.into_parts();
    let purpose = Purpose {
        to_head: canonical.is_head(),
        idempotent: canonical.is_idempotent(),
        upgrade: canonical.wants_upgrade(),
        patience: parts.extensions.get::<ResponseTimeout>().map_or(puma.config.response_timeout.get(), |t| t.0),
        notes: parts.extensions.get::<Arrival>().map(|arrival| Arc::clone(&arrival.notes)),
    };
    let mut wish = match (canonical.is_usual(), purpose.idempotent) {
        (true, true) => Wish::Used,
        (true, false) => Wish::Certain,
        (false, _) => Wish::Fresh,
    };
    let (head, body) = canonical.into_parts();
    let (mut slot, content) = body.into_parts();
    let mut wire = Wire { head: head.len(), bytes: head, content };
    let headers = parts.headers;
    spare::give_extensions(parts.extensions);
    async move {
        // Before a connection is chosen, so that between the look whether it stands and the write nothing comes.
        others_first().await;
        let mut give_up = None;
        for attempt in 0..MOST_ATTEMPTS {
            if attempt > 1 {
                Box::pin(tokio::time::sleep(RETRY_PAUSE)).await;
            }
            let (socket, connection) = hold::connection(&puma, slot.as_mut().ok_or(Refusal::Internal)?, wish, &mut give_up).await?;
            let reused = connection.served > 0;
            if let Some(notes) = &purpose.notes {
                notes.sent_to(socket.index);
            }
            // A connection that was opened for this one request would only be one more in the pool.
            let certain = purpose.idempotent || socket.address.reset_means_unread();
            let keep = if certain { puma.keep() } else { Keep::No };
            let mut turn = Turn::new(&puma, socket, connection, slot.take().ok_or(Refusal::Internal)?);
            match try_once(&puma, &mut turn, &mut wire, keep, &purpose).await {
                Ok(head) => {
                    spare::give_text(std::mem::take(&mut wire.bytes));
                    return answer(&puma, turn, head, keep, purpose, headers);
                }
                Err(Broken::Final(refusal)) => {
                    if refusal == Refusal::UpstreamTimeout {
                        turn.time_out();
                    }
                    return Err(refusal);
                }
                Err(Broken::Perhaps) if !(reused && purpose.idempotent) => {
                    turn.ended();
                    return Err(Refusal::UpstreamReset);
                }
                Err(Broken::Unread | Broken::Perhaps) => {
                    slot = turn.into_slot();
                    wish = Wish::Fresh;
                }
            }
        }
        Err(Refusal::UpstreamReset)
    }
}

async fn try_once(puma: &Arc<Inner>, turn: &mut Turn, wire: &mut Wire, keep: Keep, purpose: &Purpose) -> Result<Head, Broken> {
    let now = Instant::now();
    let mut watch = Watch::new(&puma.sweep, now, purpose.patience);
    let mut buffer = BytesMut::new();
    let close = keep == Keep::No && !purpose.upgrade;
    turn.begin(now);
    let whole = send(turn, wire, close, &mut watch, purpose.patience, &mut buffer).await?;
    receive(turn, buffer, whole, &mut watch, purpose).await
}

/// Writes the request; `false` where Puma answered before it had all of it.
async fn send(
    turn: &mut Turn,
    wire: &mut Wire,
    close: bool,
    watch: &mut Watch,
    patience: Duration,
    buffer: &mut BytesMut,
) -> Result<bool, Broken> {
    let body = wire.first(close);
    if !write(turn, &wire.bytes, &body, watch, patience, buffer).await? {
        return Ok(false);
    }
    if let Content::File(file) = &wire.content {
        let mut reader = file.reader();
        while let Some(piece) = reader.next().await.map_err(|_| Broken::Final(Refusal::Internal))? {
            if !write(turn, &piece, &[], watch, patience, buffer).await? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

impl Wire {
    /// Puts together what goes out in the first write; returns a body in memory that is too long for a copy.
    fn first(&mut self, close: bool) -> Bytes {
        self.bytes.truncate(self.head.saturating_sub(END_OF_HEAD.len()));
        self.bytes.extend_from_slice(if close { CLOSE } else { END_OF_HEAD });
        match &self.content {
            Content::Memory(body) if body.len() <= WITH_HEAD => {
                self.bytes.extend_from_slice(body);
                Bytes::new()
            }
            Content::Memory(body) => Bytes::clone(body),
            Content::None | Content::File(_) => Bytes::new(),
        }
    }
}

/// Writes both in order; stops with `false` when Puma answers meanwhile.
async fn write(
    turn: &mut Turn,
    mut bytes: &[u8],
    mut next: &[u8],
    watch: &mut Watch,
    patience: Duration,
    buffer: &mut BytesMut,
) -> Result<bool, Broken> {
    let mut waited = false;
    poll_fn(|cx| {
        let Ok(stream) = turn.stream() else { return Poll::Ready(Err(Broken::Perhaps)) };
        loop {
            let wrote = match next.is_empty() {
                true => Pin::new(&mut *stream).poll_write(cx, bytes),
                false => Pin::new(&mut *stream).poll_write_vectored(cx, &[io::IoSlice::new(bytes), io::IoSlice::new(next)]),
            };
            match wrote {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Broken::Unread)),
                Poll::Ready(Ok(written)) => {
                    if written >= bytes.len() {
                        bytes = next.get(written.saturating_sub(bytes.len())..).unwrap_or_default();
                        next = &[];
                    } else {
                        bytes = bytes.get(written..).unwrap_or_default();
                    }
                    if waited || !bytes.is_empty() {
                        watch.extend(Instant::now(), patience);
                    }
                    if bytes.is_empty() {
                        return Poll::Ready(Ok(true));
                    }
                }
                // Puma has closed, but it may have said why.
                Poll::Ready(Err(_)) => {
                    return Poll::Ready(match poll_read_head(stream, cx, buffer) {
                        Poll::Ready(Ok(read)) if read > 0 => Ok(false),
                        Poll::Ready(Ok(_) | Err(_)) | Poll::Pending => Err(Broken::Unread),
                    });
                }
                Poll::Pending => {
                    waited = true;
                    return match poll_read_head(stream, cx, buffer) {
                        Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Err(Broken::Unread)),
                        Poll::Ready(Ok(_)) => Poll::Ready(Ok(false)),
                        Poll::Pending if watch.is_due(cx) => Poll::Ready(Err(Broken::Final(Refusal::UpstreamTimeout))),
                        Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
    })
    .await
}

/// Reads heads until the final one.
async fn receive(turn: &mut Turn, mut buffer: BytesMut, whole: bool, watch: &mut Watch, purpose: &Purpose) -> Result<Head, Broken> {
    let limits = AnswerLimits { head: LONGEST_HEAD, fields: MOST_FIELDS };
    let (mut scan, mut head, mut interim) = (AnswerScan::default(), spare::head(), 0u32);
    loop {
        while !buffer.is_empty() && scan.advance(&buffer, &limits, purpose.to_head, &mut head).map_err(Broken::Final)? {
            let block = buffer.split_to(head.len.min(buffer.len())).freeze();
            turn.answered();
            match head.status {
                100 => {}
                101 if purpose.upgrade => return Ok(Head { head, block, rest: buffer, whole }),
                101 => return Err(Broken::Final(Refusal::UpstreamBad(Rule::P8))),
                103 => pass_on(&block, &head, purpose)?,
                102 | 104..=199 => return Err(Broken::Final(Refusal::UpstreamBad(Rule::P6))),
                _ => return Ok(Head { head, block, rest: buffer, whole }),
            }
            interim = interim.saturating_add(1);
            if interim > MOST_INTERIM {
                return Err(Broken::Final(Refusal::UpstreamBad(Rule::P6)));
            }
            scan = AnswerScan::default();
        }
        let silent = buffer.is_empty() && interim == 0;
        let read = poll_fn(|cx| {
            let Ok(stream) = turn.stream() else { return Poll::Ready(Ok(Err(io::ErrorKind::NotConnected.into()))) };
            match poll_read_head(stream, cx, &mut buffer) {
                Poll::Ready(read) => Poll::Ready(Ok(read)),
                Poll::Pending if watch.is_due(cx) => Poll::Ready(Err(Broken::Final(Refusal::UpstreamTimeout))),
                Poll::Pending => Poll::Pending,
            }
        })
        .await?;
        match read {
            Ok(read) if read > 0 => {}
            Ok(_) | Err(_) if !silent => {
                turn.ended();
                return Err(Broken::Final(Refusal::UpstreamReset));
            }
            Ok(_) => {
                let closed = turn.reset_means_unread() && matches!(turn.stream(), Ok(stream) if stream.was_closed_before().await);
                return Err(if closed || !whole { Broken::Unread } else { Broken::Perhaps });
            }
            Err(e) => {
                let reset = e.kind() == io::ErrorKind::ConnectionReset && turn.reset_means_unread();
                return Err(if reset || !whole { Broken::Unread } else { Broken::Perhaps });
            }
        }
    }
}

fn pass_on(block: &Bytes, head: &AnswerHead, purpose: &Purpose) -> Result<(), Broken> {
    let links = response::links(block, head).map_err(Broken::Final)?;
    if let Some(notes) = purpose.notes.as_ref().filter(|_| !links.is_empty()) {
        notes.hint(links);
    }
    Ok(())
}

/// Makes the response, and finishes the exchange where the whole answer is here.
fn answer(
    puma: &Arc<Inner>,
    mut turn: Turn,
    Head { head, block, rest, whole }: Head,
    keep: Keep,
    purpose: Purpose,
    headers: http::HeaderMap,
) -> Result<Response<Answer>, Refusal> {
    let now = Instant::now();
    if let Some(notes) = &purpose.notes {
        notes.mark_at(Moment::Answered, now);
    }
    let reading = response::read(&block, &head, headers)?;
    let mut answer = Response::new(Answer::empty());
    *answer.status_mut() = reading.status;
    *answer.headers_mut() = reading.headers;
    if reading.status == StatusCode::SWITCHING_PROTOCOLS {
        answer.extensions_mut().insert(turn.switch(rest).ok_or(Refusal::Internal)?);
        return Ok(answer);
    }
    let framing = head.framing;
    let lasting = framing != AnswerFraming::UntilClose && head.version == Version::Http11 && !head.close;
    let reusable = whole && lasting && keep != Keep::No;
    spare::give_head(head);
    if framing == AnswerFraming::None {
        if let Some(notes) = &purpose.notes {
            notes.mark_at(Moment::Finished, now);
        }
        turn.finish(reusable && rest.is_empty(), now);
        if let Some(length) = reading.length.filter(|_| purpose.to_head) {
            answer.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        }
        return Ok(answer);
    }
    let stream = reading.events || reading.unbuffered || framing == AnswerFraming::UntilClose;
    if stream {
        turn.is_stream();
    }
    let patience = if stream { puma.config.stream_timeout.get() } else { purpose.patience };
    let framing = Framing::from(framing);
    let body = Streaming {
        turn,
        at_once: framing.first(rest.len()),
        buffer: rest,
        framing,
        watch: Watch::new(&puma.sweep, now, patience),
        read: now,
        patience,
        reusable,
        notes: purpose.notes,
        pending: Bytes::new(),
    };
    *answer.body_mut() = Answer::new(body, stream)?;
    Ok(answer)
}

/// Bodies up to this length are copied behind the head, which costs less than a second piece of a vectored write.
const WITH_HEAD: usize = 2 * 1024;
const END_OF_HEAD: &[u8] = b"\r\n";
/// Puma understands exactly this spelling, and no list.
const CLOSE: &[u8] = b"Connection: close\r\n\r\n";
/// Apps send long Link and Set-Cookie fields: more than is taken from clients.
const LONGEST_HEAD: usize = 128 * 1024;
const MOST_FIELDS: usize = 200;
const MOST_INTERIM: u32 = 8;
/// Attempts with a request that Puma never read.
const MOST_ATTEMPTS: u32 = 8;
const RETRY_PAUSE: Duration = Duration::from_millis(20);
