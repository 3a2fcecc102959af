//! Policy: one file, one threat, one table in `proxy.toml`. Layers do not import each other.
//!
//! [`stack`] is the way of a request through them, outermost first.

pub mod absorber;
pub mod answer;
pub mod appetite;
pub mod authority;
pub mod backlog;
pub mod backtrace;
pub mod ban;
pub mod ban_config;
mod ban_rule;
pub mod budget;
pub mod buffer;
pub mod byte_ranges;
pub mod canonical;
#[cfg(test)]
mod chain;
pub mod client_address;
pub mod conceal;
pub mod content_type;
pub mod field_policy;
#[cfg(test)]
mod fixture;
pub mod forwarded;
pub mod handshake;
pub mod host;
pub mod in_flight;
pub mod multipart;
pub mod normalize;
pub mod outcome;
pub mod parameters;
pub mod passage;
pub mod path_policy;
pub mod percent;
pub mod rate;
pub mod rate_index;
pub mod rate_rule;
pub mod rate_table;
pub mod record;
pub mod redirect;
pub mod relay;
pub mod request_id;
pub mod request_start;
pub mod route;
pub mod sensitive;
pub mod shield;
pub mod shield_body;
pub mod shield_config;
pub mod slots;
pub mod spill;
pub mod spool;
pub mod stall;
pub mod standing;
pub mod target_view;
pub mod websocket;

use std::convert::Infallible;

use http::{Request, Response};
use tower::ServiceBuilder;
use tower_service::Service;

use crate::{
    http::body::{Received, Relay, Source},
    refusal::Refusal,
};

/// Each layer as the configuration has made it.
#[derive(Clone, Debug)]
pub struct Layers {
    /// `[errors]`.
    pub answer: answer::AnswerLayer,
    /// `[log]`.
    pub record: record::RecordLayer,
    /// `[headers]`.
    pub request_id: request_id::RequestIdLayer,
    /// `[[ban]]`.
    pub ban: ban::BanLayer,
    /// `[[rate_limit]]`.
    pub rate: rate::RateLayer,
    /// `[host]`.
    pub host: host::HostLayer,
    /// `[sensitive]`.
    pub sensitive: sensitive::SensitiveLayer,
    /// `[framing]`.
    pub normalize: normalize::NormalizeLayer,
    /// `[[route]]`.
    pub route: route::RouteLayer,
    /// `[headers]`.
    pub forwarded: forwarded::ForwardedLayer,
    /// `[websocket]`.
    pub websocket: websocket::WebSocketLayer,
    /// `[shield]`, the head.
    pub shield: shield::ShieldLayer,
    /// `[buffer]`.
    pub relay: relay::RelayLayer,
    /// `[buffer]`.
    pub buffer: buffer::BufferLayer,
    /// `[shield]`, the body.
    pub shield_body: shield_body::ShieldBodyLayer,
    /// `[queue]`.
    pub in_flight: in_flight::InFlightLayer,
    /// `[headers]`.
    pub conceal: conceal::ConcealLayer,
    /// `[backtrace]`.
    pub backtrace: backtrace::BacktraceLayer,
    /// `[headers]`.
    pub canonical: canonical::CanonicalLayer,
}

/// The way of a request to `puma`, outermost first. Two orders are load-bearing: `buffer` stands outside `in_flight`, so that a
/// slow sender never holds one of Puma's threads, and `canonical` has the last word on framing.
pub fn stack<P, B>(
    layers: Layers,
    puma: P,
) -> impl Service<Request<Received>, Response = Response<impl Relay + Send + 'static>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ Sync
+ 'static
where
    P: Service<Request<canonical::Canonical>, Response = Response<B>, Error = Refusal> + Clone + Send + Sync + 'static,
    P::Future: Send,
    B: Source + Unpin + Send + 'static,
{
    ServiceBuilder::new()
        .layer(layers.answer) // above it nothing fails: from here inward errors are refusals
        .layer(layers.record) // sees every outcome, refusals too: one log line and its metrics
        .layer(layers.request_id) // names the request for all who look at it
        .layer(layers.ban) // cheapest refusal first: no byte of a body has been read
        .layer(layers.rate)
        .layer(layers.host) // an unknown host learns nothing
        .layer(layers.sensitive) // paths that must never reach an application
        .layer(layers.normalize) // from here on there is one spelling
        .layer(layers.route) // what holds for this path alone
        .layer(layers.forwarded) // the client's word on itself is gone, ours is set
        .layer(layers.websocket) // whose pages may open sockets, and how many
        .layer(layers.shield) // Rack's known weak spots in fields
        .layer(layers.relay) // outside in_flight: Puma's thread is free when Puma is done
        .layer(layers.buffer) // from here on requests are complete; slow senders wait here, without a slot
        .layer(layers.shield_body) // and in complete bodies
        .layer(layers.in_flight) // the only queue
        .layer(layers.conceal) // what the fields of an answer must not tell
        .layer(layers.backtrace) // nor the body of an error
        .layer(layers.canonical) // the last word on framing
        .service(puma)
}

/// The short way of a request to a plain listener that only sends clients to TLS.
pub fn redirect_stack(
    layers: Layers,
    to: redirect::Redirect,
) -> impl Service<Request<Received>, Response = Response<impl Relay + Send + 'static>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ Sync
+ 'static {
    ServiceBuilder::new()
        .layer(layers.answer)
        .layer(layers.record)
        .layer(layers.request_id)
        .layer(layers.ban)
        .layer(layers.rate)
        .layer(layers.host)
        .service(to)
}
