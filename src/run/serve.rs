//! A listener's connections, each to the driver of its protocol.

use std::sync::Arc;

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
        // Outside of the future, which would keep the room for them as long as the connection lives.
        let (client, beat) = (Arc::new(client), sweep.enrol(u64::MAX));
        async move {
            if client.alpn == "h2" {
                Box::pin(two::serve(sites, stream, client, beat)).await;
            } else {
                one::serve(sites, stream, client, beat).await;
            }
            drop(permit);
        }
    };
    if let Err(problem) = accept::serve(bound, gate, handler, closing).await {
        event(Level::Error, "a listener does not serve", &[("problem", &problem)]);
    }
}
