//! A parsed head becomes an `http::Request`. Nothing is decided here: the guard has read the bytes, the layers judge them.

use std::{cell::RefCell, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, Version, request};

use crate::{
    accept::client::Client,
    guard::{
        self, Framing, Limits,
        head::{Head, HeadScan},
        rule::Rule,
    },
    http::{
        arrival::{Arrival, Names},
        names,
        one::wire::Wire,
        spare,
    },
    refusal::Refusal,
};

/// A request without its body, and what the connection must know of it.
#[derive(Debug)]
pub struct Arrived {
    /// Method, target, fields, extensions.
    pub parts: request::Parts,
    /// How the body is framed.
    pub framing: Framing,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// The method is HEAD.
    pub is_head: bool,
    /// The client speaks HTTP/1.0: no chunks, no interim answers.
    pub is_old: bool,
    /// The client wants the connection to stay open.
    pub keep: bool,
}

/// Looks for a whole head in what has arrived, and puts it into `arrived`; `false` as long as it is not complete.
pub fn take(
    wire: &mut Wire,
    scan: &mut HeadScan,
    limits: &Limits,
    client: &Arc<Client>,
    started: Instant,
    arrived: &mut Option<Arrived>,
) -> Result<bool, Refusal> {
    HEAD.with_borrow_mut(|head| {
        if !scan.advance(&wire.input, limits, head)? {
            return Ok(false);
        }
        let bytes = wire.take(head.len).freeze();
        let is_old = matches!(head.version, guard::Version::Http10);
        let arrived = arrived.insert(Arrived {
            parts: Request::new(()).into_parts().0,
            framing: head.framing,
            expects_continue: head.expect_continue && !is_old,
            is_head: head.method.of(&bytes) == Method::HEAD.as_str().as_bytes(),
            is_old,
            keep: !head.close && (!is_old || head.keep_alive),
        });
        build(head, &bytes, client, started, &mut arrived.parts).map(|()| true)
    })
}

/// Method and target of a head that was refused, as far as they can be told, for the log.
pub fn glimpse(input: &[u8]) -> (&[u8], &[u8]) {
    let line = input.split(|b| *b == b'\r' || *b == b'\n').find(|line| !line.is_empty()).unwrap_or_default();
    let mut words = line.splitn(3, |b| *b == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    (method.get(..32).unwrap_or(method), target.get(..1024).unwrap_or(target))
}

/// Puts into `parts` what the head says.
fn build(head: &Head, bytes: &Bytes, client: &Arc<Client>, started: Instant, parts: &mut request::Parts) -> Result<(), Refusal> {
    let slice = |span: guard::Span| -> Bytes {
        let (start, end) = (span.start as usize, span.end as usize);
        if start <= end && end <= bytes.len() { bytes.slice(start..end) } else { Bytes::new() }
    };
    parts.method = Method::from_bytes(head.method.of(bytes)).map_err(|_| Refusal::BadFraming(Rule::G6))?;
    let target = slice(head.target);
    // http::Uri refuses some bytes that browsers send raw; layers read `Arrival::target`.
    parts.uri = Uri::from_maybe_shared(target.clone()).unwrap_or_default();
    parts.headers = spare::fields();
    // Room for what the layers add, so that the map never grows.
    // A field map has a limit of its own, which `limits.header_count` may exceed; above it everything but `try_` panics.
    parts.headers.try_reserve(head.fields.len().saturating_add(ADDED)).map_err(|_| Refusal::HeaderTooLarge(Rule::G9Size))?;
    let mut sent = Names::NONE;
    for field in &head.fields {
        let name = names::of(field.name.of(bytes)).map_err(|_| Refusal::BadFraming(Rule::G9))?;
        let value = HeaderValue::from_maybe_shared(slice(field.value)).map_err(|_| Refusal::BadFraming(Rule::G2))?;
        sent.add(&name);
        parts.headers.try_append(name, value).map_err(|_| Refusal::HeaderTooLarge(Rule::G9Size))?;
    }
    parts.version = match head.version {
        guard::Version::Http10 => Version::HTTP_10,
        guard::Version::Http11 => Version::HTTP_11,
    };
    let notes = spare::notes(started);
    notes.observe_all(head.observed);
    parts.extensions = spare::extensions(Arrival { client: Arc::clone(client), target, notes, sent });
    Ok(())
}

/// Fields that layers add to a request or to its answer, which takes over the map.
const ADDED: usize = 12;

thread_local! {
    static HEAD: RefCell<Head> = RefCell::new(Head::new());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_head_shows_its_first_line_at_most() {
        assert_eq!(glimpse(b"\r\nGET /x HTTP/9\r\nA: b"), (&b"GET"[..], &b"/x"[..]));
        assert_eq!(glimpse(b""), (&b""[..], &b""[..]));
        assert_eq!(glimpse(&[b'x'; 99]).0.len(), 32);
    }
}
