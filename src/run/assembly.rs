//! From a configuration to everything that serves by it.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{Request, Response};
use tower_service::Service;

use super::{StartError, figures};
use crate::{
    accept::{
        Gate,
        beat::Sweep,
        counters::Counters,
        limit,
        listener::{self, Protocol},
        tls::Terminator,
    },
    admin,
    audit::Finding,
    config::Config,
    drain::{Drain, Phase},
    http::{Site, Sites, body::Received},
    layers::{
        Layers, answer, backtrace, ban, buffer, canonical, client_address, conceal, forwarded, host, in_flight, normalize, rate, record,
        redirect, relay, request_id, route, sensitive, shield, shield_body,
        slots::Slots,
        spill::{Store, available_memory},
        websocket,
    },
    log::{Level, Recorder, event},
    metrics::Metrics,
    overload::Overload,
    sandbox::Confinement,
    upstream::Puma,
};

/// A stack as the fronts call it.
pub trait Stack<B>:
    Service<Request<Received>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}
impl<S, B> Stack<B> for S where
    S: Service<Request<Received>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

/// What makes the two stacks; their types have no names.
#[derive(Debug)]
pub struct Makers<S, R> {
    /// The way to Puma.
    pub stack: fn(Layers, Puma) -> S,
    /// The way to TLS.
    pub redirect: fn(Layers, redirect::Redirect) -> R,
}

/// What lives as long as the process, and the sites that a reload replaces.
pub struct House<S, R> {
    /// The way to Puma.
    pub sites: Arc<Sites<S>>,
    /// The way to TLS.
    pub redirects: Arc<Sites<R>>,
    /// How far the process is with leaving.
    pub drain: Arc<Drain>,
    /// What all listeners share.
    pub gate: Arc<Gate>,
    /// Threads of Puma.
    pub puma: Puma,
    /// Memory and disk for bodies.
    pub store: Arc<Store>,
    metrics: Arc<Metrics>,
    recorder: Arc<Recorder>,
    pages: Arc<answer::Pages>,
    bans: Arc<ArcSwap<ban::Bans>>,
    rates: Arc<ArcSwap<rate::Limits>>,
    slots: Slots,
    concealed: Concealed,
    websockets: Arc<websocket::Open>,
    makers: Makers<S, R>,
    /// Puma is ours: it is there once it says so itself.
    awaits_puma: bool,
}

/// The parts that layers share with the rest and keep over a reload.
pub(super) struct Shared<'a> {
    pub(super) store: &'a Arc<Store>,
    pub(super) sweep: &'a Arc<Sweep>,
    pub(super) recorder: &'a Arc<Recorder>,
    pub(super) pages: &'a Arc<answer::Pages>,
    pub(super) bans: Arc<ban::Bans>,
    pub(super) rates: Arc<rate::Limits>,
    pub(super) slots: &'a Slots,
    pub(super) overload: &'a Arc<Overload>,
    pub(super) concealed: &'a Concealed,
    pub(super) websockets: &'a Arc<websocket::Open>,
}

/// Answers that told too much, counted over reloads.
#[derive(Debug, Default)]
pub struct Concealed {
    /// In fields.
    pub fields: Arc<AtomicU64>,
    /// In the body of an error.
    pub backtraces: Arc<AtomicU64>,
}

impl<S: Clone, R: Clone> House<S, R> {
    /// Builds everything, within the runtime.
    pub fn build(config: &Config, makers: Makers<S, R>, awaits_puma: bool) -> Result<Self, StartError> {
        let tls = match config.tls.is_on() {
            true => Some(Arc::new(Terminator::load(&config.tls).map_err(StartError::Certificate)?)),
            false => None,
        };
        let store = Store::start(&config.buffer).map_err(StartError::resource("buffer.dir", "name a folder that can be written to"))?;
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), option_env!("PALISADE_REVISION").unwrap_or(""));
        let metrics = metrics.map_err(|error| StartError::resource("metrics", "report this")(std::io::Error::other(error)))?;
        let metrics = Arc::new(metrics);
        let recorder = Recorder::new(&config.log, Arc::clone(&metrics));
        let recorder = recorder.map_err(StartError::resource("log.access_file", "name a file that can be written to"))?;
        let pages = answer::Pages::load(&config.errors).map_err(StartError::resource("errors.dir", "name a folder that can be read"))?;
        let pages = Arc::new(pages);
        let sweep = Sweep::new();
        let overload = Overload::new(config.overload.clone());
        let trusted = client_address::TrustedProxies::from(&config.trusted_proxies);
        let bans = Arc::new(ArcSwap::from_pointee(ban::Bans::new(config.ban.clone(), trusted.clone())));
        let gate = Arc::new(Gate {
            timeouts: ArcSwap::from_pointee(config.timeouts.clone()),
            limits: limit::Limits::new(config.limits.connections()),
            trusted: ArcSwap::from_pointee(config.trusted_proxies.clone()),
            sweep: Arc::clone(&sweep),
            counters: Counters::default(),
            overload: Arc::clone(&overload),
            doorkeeper: Arc::clone(&bans) as _,
            tls,
            report: |line| event(Level::Warn, "listener", &[("problem", &line)]),
        });
        tokio::spawn(Arc::clone(&sweep).run());
        tokio::spawn(Arc::clone(&overload).run(available_memory()));
        let slots = Slots::new(config.queue.policy(config.upstream.hold_on_refused.get()));
        let puma = Puma::start(config.upstream.clone(), slots.clone());
        let rates = Arc::new(rate::Limits::new(config.rate_limit.clone(), trusted));
        let concealed = Concealed::default();
        let websockets = Arc::<websocket::Open>::default();
        let shared = Shared {
            store: &store,
            sweep: &sweep,
            recorder: &recorder,
            pages: &pages,
            bans: bans.load_full(),
            rates: Arc::clone(&rates),
            slots: &slots,
            overload: &overload,
            concealed: &concealed,
            websockets: &websockets,
        };
        let layers = layers(config, &shared);
        let redirect = (makers.redirect)(layers.clone(), redirect::Redirect::new(tls_port(config)));
        let sites = Sites::new(site(config, (makers.stack)(layers, puma.clone()), &shared));
        let redirects = Sites::new(site(config, redirect, &shared));
        let house = House {
            sites,
            redirects,
            drain: Drain::new(),
            gate,
            puma,
            store,
            metrics,
            recorder,
            pages,
            bans,
            rates: Arc::new(ArcSwap::new(rates)),
            slots,
            concealed,
            websockets,
            makers,
            awaits_puma,
        };
        figures::register(&house.metrics, &house.gate, &house.puma, &house.store);
        figures::register_concealed(&house.metrics, &house.concealed);
        figures::register_rules(&house.metrics, &house.rates, &house.bans);
        Ok(house)
    }

    /// Follows a new configuration; names the keys that wait for a restart.
    pub fn reload(&self, old: &Config, new: &Config) -> Result<Vec<&'static str>, StartError> {
        if let Some(tls) = &self.gate.tls {
            tls.reconfigure(&new.tls).map_err(StartError::Certificate)?;
        }
        self.pages.reload(&new.errors).map_err(StartError::resource("errors.dir", "name a folder that can be read"))?;
        self.gate.timeouts.store(Arc::new(new.timeouts.clone()));
        self.gate.limits.reload(new.limits.connections());
        self.gate.trusted.store(Arc::new(new.trusted_proxies.clone()));
        self.gate.overload.reconfigure(new.overload.clone());
        self.store.resize(&new.buffer);
        self.recorder.reload(&new.log);
        let trusted = client_address::TrustedProxies::from(&new.trusted_proxies);
        self.bans.store(Arc::new(self.bans.load().reconfigured(new.ban.clone(), trusted.clone())));
        if old.rate_limit != new.rate_limit || old.trusted_proxies != new.trusted_proxies {
            self.rates.store(Arc::new(rate::Limits::new(new.rate_limit.clone(), trusted)));
        }
        let shared = Shared {
            store: &self.store,
            sweep: &self.gate.sweep,
            recorder: &self.recorder,
            pages: &self.pages,
            bans: self.bans.load_full(),
            rates: self.rates.load_full(),
            slots: &self.slots,
            overload: &self.gate.overload,
            concealed: &self.concealed,
            websockets: &self.websockets,
        };
        let layers = layers(new, &shared);
        let redirect = (self.makers.redirect)(layers.clone(), redirect::Redirect::new(tls_port(new)));
        self.redirects.replace(site(new, redirect, &shared));
        self.sites.replace(site(new, (self.makers.stack)(layers, self.puma.clone()), &shared));
        figures::reloaded();
        Ok(needs_restart(old, new))
    }

    /// Says what runs.
    pub fn announce(&self, config: &Config) {
        let listeners: Vec<String> = config.listeners().iter().map(|l| l.address.to_string()).collect();
        event(Level::Info, "serving", &[("version", &env!("CARGO_PKG_VERSION")), ("listeners", &listeners.join(" "))]);
        if let Some(tls) = &self.gate.tls {
            for warning in tls.warnings() {
                event(Level::Warn, "certificate", &[("warning", &warning)]);
            }
        }
    }

    /// Shows what the process has given up, and what was found about Puma.
    pub fn show(&self, confinement: Confinement, findings: Vec<Finding>) {
        figures::register_start(&self.metrics, confinement, findings);
    }

    /// Accepts no more; connections end with the answer that they are at.
    pub fn close(&self) {
        self.drain.close();
        self.sites.drain();
        self.redirects.drain();
        self.gate.sweep.wake_all();
    }

    /// Opens log files again.
    pub fn reopen(&self) {
        self.recorder.reopen();
    }

    /// Open client connections.
    pub fn open_connections(&self) -> usize {
        self.gate.limits.open()
    }

    /// Waits for the log to be written.
    pub fn flush(&self) {
        let written = self.recorder.flush(PATIENCE) & crate::log::flush_events(PATIENCE);
        debug_assert!(written || cfg!(not(test)), "the log is written within its patience");
    }

    /// What the admin pages show.
    pub fn admin(&self) -> admin::Admin {
        let (puma, capacity, drain) = (self.puma.clone(), self.puma.clone(), Arc::clone(&self.drain));
        let awaits_puma = self.awaits_puma;
        admin::Admin {
            metrics: Arc::clone(&self.metrics),
            ready: Box::new(move || match drain.phase() {
                Phase::Serving if puma.figures().away || awaits_puma && !puma.has_booted() => Err("upstream_down"),
                Phase::Serving => Ok(()),
                Phase::Leaving | Phase::Closing => Err("draining"),
            }),
            capacity: Box::new(move || figures::capacity(&capacity)),
        }
    }
}

pub(super) fn layers(config: &Config, shared: &Shared<'_>) -> Layers {
    let trusted = client_address::TrustedProxies::from(&config.trusted_proxies);
    let policy = buffer::Policy::new(
        config.buffer.clone(),
        Arc::clone(shared.store),
        Arc::clone(shared.sweep),
        &config.timeouts,
        &config.rates,
        config.limits.body,
    );
    Layers {
        answer: answer::AnswerLayer::new(Arc::clone(shared.pages), &[]),
        record: record::RecordLayer::new(Arc::clone(shared.recorder)),
        request_id: request_id::RequestIdLayer::new(config.headers.request_id()),
        ban: ban::BanLayer::new(Arc::clone(&shared.bans)),
        rate: rate::RateLayer::new(Arc::clone(&shared.rates)),
        host: host::HostLayer::new(config.host.clone(), &[]),
        sensitive: sensitive::SensitiveLayer::new(config.sensitive.clone()),
        normalize: normalize::NormalizeLayer::new(config.framing.clone()),
        route: route::RouteLayer::new(config.route.clone(), trusted.clone(), Arc::clone(shared.overload)),
        forwarded: forwarded::ForwardedLayer::new(config.headers.forwarded(), trusted),
        websocket: websocket::WebSocketLayer::new(config.websocket.clone(), Arc::clone(shared.websockets)),
        shield: shield::ShieldLayer::new(config.shield),
        relay: relay::RelayLayer::new(Arc::clone(shared.store), config.buffer.clone()),
        buffer: buffer::BufferLayer::new(policy),
        shield_body: shield_body::ShieldBodyLayer::new(config.shield),
        in_flight: in_flight::InFlightLayer::new(&config.queue, shared.slots.clone()),
        conceal: conceal::ConcealLayer::new(config.conceal.clone(), Arc::clone(&shared.concealed.fields)),
        backtrace: backtrace::BacktraceLayer::new(config.backtrace, Arc::clone(&shared.concealed.backtraces)),
        canonical: canonical::CanonicalLayer::new(config.headers.canonical()),
    }
}

pub(super) fn site<S>(config: &Config, stack: S, shared: &Shared<'_>) -> Site<S> {
    Site {
        limits: config.limits.guard(config.framing.mode == normalize::Strictness::Monitor),
        timeouts: config.timeouts.clone(),
        rates: config.rates.clone(),
        tunnel_idle: config.timeouts.tunnel_idle,
        // The rest of the drain is for them to say goodbye.
        tunnel_spread: (config.server.drain.get() * 3 / 4).min(LONGEST_SPREAD),
        stack,
        recorder: Arc::clone(shared.recorder),
        bans: Arc::clone(&shared.bans),
        overload: Arc::clone(shared.overload),
    }
}

/// The port to which redirects lead.
fn tls_port(config: &Config) -> u16 {
    let tls = config.listeners().into_iter().find(|listener| listener.protocol == Protocol::Https);
    match tls.map(|listener| listener.address) {
        Some(listener::Address::Ip(address)) => address.port(),
        Some(listener::Address::Any(port)) => port,
        Some(listener::Address::Unix(_) | listener::Address::Inherited(_)) | None => 443,
    }
}

/// What a running process cannot change.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let differs = [
        ("listen", old.listeners() != new.listeners()),
        ("server", old.server != new.server),
        ("upstream", old.upstream != new.upstream),
        ("queue", old.queue != new.queue),
        ("admin", old.admin != new.admin),
        ("log.access_file", old.log.access_file != new.log.access_file),
    ];
    differs.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
}

/// WebSockets end over at most this long.
const LONGEST_SPREAD: Duration = Duration::from_secs(30);
/// How long the end of the process waits for its log.
const PATIENCE: Duration = Duration::from_secs(2);
