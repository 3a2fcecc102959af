//! WebSocket over HTTP/2: extended CONNECT (RFC 8441) becomes the upgrade that Puma understands, and Puma's 101 the client's 200.
//!
//! Threat: smuggling and exhaustion. The request takes the way of every other one, so hosts, limits and `websocket_paths` hold;
//! `normalize` refuses what is no WebSocket handshake. Only a 101 opens the tunnel: any other success of Puma's would be read
//! as one by the client, so it becomes a 502. The tunnel counts as an open stream of its connection.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream, ext::Protocol};
use http::{HeaderMap, Method, Response, StatusCode, header, request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::upgrade::{Far, FarEnd, Life, between};
use crate::{
    accept::{beat::Beat, limit::HONEST},
    layers::handshake::Extended,
};

/// The client's end of a tunnel: the DATA of its stream, both ways.
#[derive(Debug)]
pub struct NearEnd {
    send: SendStream<Bytes>,
    receive: RecvStream,
    unread: Bytes,
}

/// What Puma's answer means for the client.
#[derive(Debug)]
pub enum Outcome {
    /// The tunnel is open.
    Open(Far),
    /// The answer is passed on.
    Answered,
    /// Puma answered as if it had been asked for a page; nothing of it is passed on.
    Ignored,
}

/// Makes a GET of an extended CONNECT for WebSocket, and says so. Other CONNECTs stay what they are, and are refused as such.
pub fn translate(parts: &mut request::Parts) -> bool {
    let is_websocket = parts.extensions.get::<Protocol>().is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case("websocket"));
    if parts.method != Method::CONNECT || !is_websocket {
        return false;
    }
    parts.method = Method::GET;
    parts.extensions.insert(Extended);
    true
}

/// Gives Puma's answer the form in which the client expects it.
pub fn outcome<B>(response: &mut Response<B>) -> Outcome {
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => {
            let Some(far) = response.extensions_mut().remove::<FarEnd>().and_then(|far| far.take()) else { return ignored(response) };
            *response.status_mut() = StatusCode::OK;
            for name in [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_ACCEPT, header::CONTENT_LENGTH] {
                response.headers_mut().remove(name);
            }
            Outcome::Open(far)
        }
        status if status.is_success() => ignored(response),
        _ => Outcome::Answered,
    }
}

fn ignored<B>(response: &mut Response<B>) -> Outcome {
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    *response.headers_mut() = HeaderMap::new();
    Outcome::Ignored
}

/// Passes bytes until either side ends, `place` being held meanwhile.
pub fn tunnel<D, P>(near: NearEnd, far: Far, beat: Beat, life: Life<D>, place: P)
where
    D: Fn() -> bool + Send + Sync + 'static,
    P: Send + 'static,
{
    // To end it would not free a connection, so it is never the one that makes room.
    beat.advance(HONEST);
    tokio::spawn(async move {
        between(Box::pin(near), Bytes::new(), far, beat, life).await;
        drop(place);
    });
}

impl NearEnd {
    /// The two directions of a stream whose 200 has been sent.
    pub fn new(send: SendStream<Bytes>, receive: RecvStream) -> Self {
        NearEnd { send, receive, unread: Bytes::new() }
    }
}

impl AsyncRead for NearEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.unread.is_empty() {
            match ready!(this.receive.poll_data(cx)) {
                Some(data) => this.unread = data.map_err(broken)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = this.unread.len().min(into.remaining());
        into.put_slice(this.unread.get(..n).unwrap_or_default());
        this.unread.advance(n);
        Poll::Ready(this.receive.flow_control().release_capacity(n).map_err(broken))
    }
}

impl AsyncWrite for NearEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.send.reserve_capacity(bytes.len());
        let room = match this.send.capacity() {
            0 => ready!(this.send.poll_capacity(cx)).ok_or(io::ErrorKind::BrokenPipe)?.map_err(broken)?,
            room => room,
        };
        let piece = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        Poll::Ready(this.send.send_data(Bytes::copy_from_slice(piece), false).map(|()| piece.len()).map_err(broken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().send.send_data(Bytes::new(), true).map_err(broken))
    }
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, error)
}
