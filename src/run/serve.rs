//! A listener's connections, each to the driver of its protocol.

use std::sync::Arc;

use futures_util::{FutureExt, future::Either};
use tokio::sync::watch;

use super::assembly::Stack;
use crate::{
    accept::{self, Gate, client::Client, limit::Permit, listener::Bound, stream::Stream},
    http::{Sites, body::Relay, one, two},
    log::{Level, event},
};

/// Serves a listener until it closes.
pub async fn listener<S, B>(bound: Bound, gate: Arc<Gate>, sites: Arc<Sites<S>>, closing: watch::Receiver<bool>)
where
    S: Stack<B>,
    B: Relay + Send + 'static,
{
    let sweep = Arc::clone(&gate.sweep);
    let handler = move |stream: Stream, client: Client, permit: Permit| {
        let sites = Arc::clone(&sites);
        let (client, beat) = (Arc::new(client), sweep.enrol(u64::MAX));
        // No block of its own around it, which would keep the room for all of this as long as the connection lives.
        let serving = match client.alpn {
            "h2" => Either::Left(Box::pin(two::serve(sites, stream, client, beat))),
            _ => Either::Right(one::serve(sites, stream, client, beat)),
        };
        serving.map(move |()| drop(permit))
    };
    if let Err(problem) = accept::serve(bound, gate, handler, closing).await {
        event(Level::Error, "a listener does not serve", &[("problem", &problem)]);
    }
}
