//! Takes an answer off Puma as fast as Puma can write it, whatever the client does.
//!
//! Threat: slowloris by slow reading, which stops Puma with one client a thread (measured on 5.6 to 8.0; puma/puma#3110). It
//! stands outside `in_flight`: when the last byte has come from Puma, Puma's thread is free, and what the client has not yet
//! taken waits in an unlinked file within the budget. When the budget is spent there is back-pressure, and the minimum rate
//! of the client decides. Answers that come at once, and streams whose client keeps up, pass without a detour.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::sync::mpsc;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    absorber::{Absorber, Place},
    appetite,
    spill::{Config, Store},
};
use crate::{
    accept::client::ClientKey,
    http::{
        arrival::Arrival,
        body::{Absorb, LARGEST_PIECE, Source},
    },
    refusal::Refusal,
};

/// Makes [`Relay`]s.
#[derive(Clone, Debug)]
pub struct RelayLayer {
    store: Arc<Store>,
    config: Arc<Config>,
}

/// The service.
#[derive(Clone, Debug)]
pub struct Relay<S> {
    inner: S,
    layer: RelayLayer,
}

/// An answer's body on its way from Puma to the client.
#[derive(Debug)]
pub enum Relayed<B> {
    /// It was complete at once.
    Whole(Option<Bytes>),
    /// The front takes in what comes while it writes.
    Live(Box<Absorber<B>>),
    /// A task takes in what comes, as HTTP/2 asks for data only when the client has room.
    Pumped {
        /// Pieces, one at a time.
        pieces: mpsc::Receiver<Result<Bytes, Refusal>>,
        /// Bytes to come, where that is known.
        left: Option<u64>,
    },
}

impl RelayLayer {
    /// A layer that keeps what clients have not yet taken in `store`.
    pub fn new(store: Arc<Store>, config: Config) -> Self {
        RelayLayer { store, config: Arc::new(config) }
    }
}

impl<S> Layer<S> for RelayLayer {
    type Service = Relay<S>;
    fn layer(&self, inner: S) -> Relay<S> {
        Relay { inner, layer: self.clone() }
    }
}

impl<S, A, B> Service<Request<A>> for Relay<S>
where
    S: Service<Request<A>, Response = Response<B>, Error = Refusal>,
    B: Source + Unpin + Send + 'static,
{
    type Response = Response<Relayed<B>>;
    type Error = Refusal;
    type Future = Relaying<S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let client = request.extensions().get::<Arrival>().map(|arrival| ClientKey::of(arrival.client.ip));
        let is_pumped = request.version() == Version::HTTP_2;
        Relaying { future: self.inner.call(request), layer: self.layer.clone(), client, is_pumped }
    }
}

pin_project! {
    /// An answer that is awaited.
    pub struct Relaying<F> {
        #[pin]
        future: F,
        layer: RelayLayer,
        client: Option<ClientKey>,
        is_pumped: bool,
    }
}

impl<F, B> Future for Relaying<F>
where
    F: Future<Output = Result<Response<B>, Refusal>>,
    B: Source + Unpin + Send + 'static,
{
    type Output = Result<Response<Relayed<B>>, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (parts, mut body) = ready!(this.future.poll(cx))?.into_parts();
        let left = body.size_hint().exact();
        let first = match Pin::new(&mut body).poll_frame(cx) {
            Poll::Ready(None) => return Poll::Ready(Ok(Response::from_parts(parts, Relayed::Whole(None)))),
            Poll::Ready(Some(Err(refusal))) => return Poll::Ready(Err(refusal)),
            Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
            Poll::Pending => None,
        };
        if body.is_end_stream() {
            return Poll::Ready(Ok(Response::from_parts(parts, Relayed::Whole(first))));
        }
        let client = this.client.unwrap_or(ClientKey::of(std::net::Ipv4Addr::LOCALHOST.into()));
        // A stream's piece waits for the client's window, where nobody takes it back; and without a length pieces are as they come.
        let largest = if *this.is_pumped || left.is_none() { LARGEST_PIECE } else { appetite::MOST };
        let place = Place::new(&this.layer.store, &this.layer.config, client);
        // In a place of its own, as whoever is handed it would keep room for it twice.
        let absorber = Box::new(Absorber::new(body, first, left, largest, place));
        let relayed = if *this.is_pumped {
            let (out, pieces) = mpsc::channel(1);
            tokio::spawn(pump(absorber, out));
            Relayed::Pumped { pieces, left }
        } else {
            Relayed::Live(absorber)
        };
        Poll::Ready(Ok(Response::from_parts(parts, relayed)))
    }
}

/// Absorbs until the client's stream has room for a piece, hands it over, and again.
async fn pump<B: Source + Unpin>(mut absorber: Box<Absorber<B>>, out: mpsc::Sender<Result<Bytes, Refusal>>) {
    loop {
        let mut room = std::pin::pin!(out.reserve());
        let room = std::future::poll_fn(|cx| {
            absorber.poll_absorb(cx, &mut Bytes::new());
            room.as_mut().poll(cx)
        });
        let Ok(room) = room.await else { return };
        let mut gone = std::pin::pin!(out.closed());
        let piece = std::future::poll_fn(|cx| match gone.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => absorber.poll_piece(cx),
        });
        match piece.await {
            Some(piece) => room.send(piece),
            None => return,
        }
    }
}

impl<B: Source + Unpin> Body for Relayed<B> {
    type Data = Bytes;
    type Error = Refusal;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        let piece = match self.get_mut() {
            Relayed::Whole(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Relayed::Live(absorber) => ready!(absorber.poll_piece(cx)),
            Relayed::Pumped { pieces, left } => {
                let piece = ready!(pieces.poll_recv(cx));
                if let (Some(left), Some(Ok(bytes))) = (left, &piece) {
                    *left = left.saturating_sub(bytes.len() as u64);
                }
                piece
            }
        };
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Relayed::Whole(bytes) => bytes.is_none(),
            Relayed::Live(absorber) => absorber.is_end(),
            Relayed::Pumped { left, .. } => *left == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Relayed::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Relayed::Live(absorber) => absorber.left().map_or_else(SizeHint::default, SizeHint::with_exact),
            Relayed::Pumped { left, .. } => left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl<B: Source + Unpin> Absorb for Relayed<B> {
    fn poll_absorb(self: Pin<&mut Self>, cx: &mut Context<'_>, unsent: &mut Bytes) {
        match self.get_mut() {
            Relayed::Live(absorber) => absorber.poll_absorb(cx, unsent),
            Relayed::Whole(_) | Relayed::Pumped { .. } => {}
        }
    }
}
