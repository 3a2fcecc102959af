//! Sends clients of a plain listener to the same address over TLS (RFC 9110 §15.4.9).
//!
//! Threat: exposure, as a password that travels without TLS is everybody's. Nothing of the request reaches Puma, and its body is
//! not read. The host has been checked by then, so the answer cannot send anybody to a foreign one.

use std::{
    future::{Ready, ready},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use tower_service::Service;

use super::relay::Relayed;
use crate::{
    guard::rule::Rule,
    http::{arrival::Arrival, body::Received},
    refusal::Refusal,
};

/// Answers every request with 308.
#[derive(Clone, Copy, Debug)]
pub struct Redirect {
    port: u16,
}

impl Redirect {
    /// To this port of the same host.
    pub fn new(port: u16) -> Self {
        Redirect { port }
    }

    fn location(self, request: &Request<Received>) -> Option<HeaderValue> {
        let arrival = request.extensions().get::<Arrival>()?;
        let host = request.headers().get(header::HOST)?.as_bytes();
        let name = match host.iter().rposition(|b| *b == b':') {
            Some(colon) if !host.ends_with(b"]") => host.get(..colon)?,
            Some(_) | None => host,
        };
        let mut to = Vec::with_capacity(name.len().saturating_add(arrival.target.len()).saturating_add(16));
        to.extend_from_slice(b"https://");
        to.extend_from_slice(name);
        if self.port != HTTPS {
            to.push(b':');
            to.extend_from_slice(itoa::Buffer::new().format(self.port).as_bytes());
        }
        let path = arrival.target.starts_with(b"/").then_some(&arrival.target[..]);
        to.extend_from_slice(path.or_else(|| request.uri().path_and_query().map(|p| p.as_str().as_bytes())).unwrap_or(b"/"));
        HeaderValue::from_bytes(&to).ok()
    }
}

impl Service<Request<Received>> for Redirect {
    type Response = Response<Relayed<Received>>;
    type Error = Refusal;
    type Future = Ready<Result<Self::Response, Refusal>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Received>) -> Self::Future {
        let Some(location) = self.location(&request) else { return ready(Err(Refusal::BadHost(Rule::G17))) };
        let mut answer = Response::new(Relayed::Whole(Some(Bytes::new())));
        *answer.status_mut() = StatusCode::PERMANENT_REDIRECT;
        answer.headers_mut().insert(header::LOCATION, location);
        ready(Ok(answer))
    }
}

const HTTPS: u16 = 443;
