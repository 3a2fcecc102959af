//! WebSocket over HTTP/2: extended CONNECT (RFC 8441) becomes the upgrade that Puma understands, and Puma's 101 the client's 200.
//!
//! Threat: smuggling and exhaustion. The request takes the way of every other one, so hosts, limits and `websocket_paths` hold;
//! `normalize` refuses what is no WebSocket handshake. Only a 101 opens the tunnel: any other success of Puma's would be read
//! as one by the client, so it becomes a 502. The tunnel counts as an open stream of its connection.

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header, request};
use hyper::{ext::Protocol, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;

use super::upgrade::{Far, FarEnd, Life, between};
use crate::{
    accept::{limit::HONEST, pace::Beat},
    layers::handshake::Extended,
};

/// The client's end of a tunnel that may be opened.
#[derive(Debug)]
pub struct NearEnd(OnUpgrade);

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

/// Makes a GET of an extended CONNECT for WebSocket. Other CONNECTs stay what they are, and are refused as such.
pub fn translate(parts: &mut request::Parts) -> Option<NearEnd> {
    let is_websocket = parts.extensions.get::<Protocol>().is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case("websocket"));
    if parts.method != Method::CONNECT || !is_websocket {
        return None;
    }
    let near = parts.extensions.remove::<OnUpgrade>()?;
    parts.method = Method::GET;
    parts.extensions.insert(Extended);
    Some(NearEnd(near))
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
        if let Ok(client) = near.0.await {
            between(Box::pin(TokioIo::new(client)), Bytes::new(), far, beat, life).await;
        }
        drop(place);
    });
}
