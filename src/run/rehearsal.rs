//! The whole way of a request without a port: the layers of a configuration, and whatever is put in Puma's place.

use std::{convert::Infallible, io, sync::Arc};

use http::{Request, Response};
use tower_service::Service;

use super::assembly::{Concealed, Shared, layers, site};
use crate::{
    accept::beat::Sweep,
    config::Config,
    http::{
        Sites,
        body::{Received, Relay, Source},
    },
    layers::{self, answer, ban, canonical::Canonical, client_address::TrustedProxies, rate, slots::Slots, spill::Store},
    log::Recorder,
    overload::Overload,
    refusal::Refusal,
};

/// What a front needs to serve connections by a configuration.
#[derive(Debug)]
pub struct Rehearsal<S> {
    /// The stack and its limits.
    pub sites: Arc<Sites<S>>,
    /// The clock of all deadlines.
    pub sweep: Arc<Sweep>,
}

/// Builds the way of a request to `puma`, within the runtime. Pages of refusals are not read; nothing is listened on.
pub fn rehearse<P, B>(
    config: &Config,
    recorder: &Arc<Recorder>,
    puma: P,
) -> io::Result<
    Rehearsal<
        impl Service<Request<Received>, Response = Response<impl Relay + Send + 'static>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    >,
>
where
    P: Service<Request<Canonical>, Response = Response<B>, Error = Refusal> + Clone + Send + Sync + 'static,
    P::Future: Send,
    B: Source + Unpin + Send + 'static,
{
    let trusted = TrustedProxies::from(&config.trusted_proxies);
    let sweep = Sweep::new();
    tokio::spawn(Arc::clone(&sweep).run());
    let slots = Slots::new(config.queue.policy(config.upstream.hold_on_refused.get()));
    slots.set_workers(&[1]);
    let bans = Arc::new(ban::Bans::new(config.ban.clone(), trusted.clone()));
    let shared = Shared {
        store: &Store::start(&config.buffer)?,
        sweep: &sweep,
        recorder,
        pages: &Arc::new(answer::Pages::load(&answer::Config::default())?),
        bans: Arc::clone(&bans),
        rates: Arc::new(rate::Limits::new(config.rate_limit.clone(), trusted)),
        slots: &slots,
        overload: &Overload::new(config.overload.clone()),
        concealed: &Concealed::default(),
        websockets: &Default::default(),
    };
    let layers = layers(config, &shared);
    let sites = Sites::new(site(config, layers::stack(layers, puma), &shared));
    Ok(Rehearsal { sites, sweep })
}
