//! The configuration: what an operator may set, read from every source, checked once, explained on demand.
//!
//! Threat: exposure, and every other one that a mistyped limit lets in. An unknown key, a value without its unit, two settings
//! that contradict each other refuse the start, all of them named at once with place and remedy. After [`Config::load`]
//! nothing is validated again. No sentence and no listing contains a secret: secrets are files ([`secret`]).

mod check;
mod cross;
mod document;
pub mod explain;
pub mod headers;
pub mod limits;
mod listeners;
pub mod problem;
pub mod profile;
mod puma;
pub mod reference;
pub mod schema;
pub mod secret;
pub mod server;
mod source;

use std::{net::SocketAddr, path::PathBuf};

use figment::{Figment, providers::Serialized};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    explain::Loaded,
    problem::{Invalid, Kind, Place, Problem},
    profile::Profile,
    source::Inputs,
};
use self::{headers::Headers, limits::Limits, server::Server, source::Layer};
use crate::{
    accept::{listener, pace, tls, trusted::TrustedProxies},
    admin,
    layers::{
        answer, backtrace, ban_config, conceal, host, in_flight, normalize, rate_rule, route, sensitive, shield_config, spill, websocket,
    },
    log, overload,
    units::OneOrMany,
    upstream,
};

/// Everything that `proxy.toml` may say. Each table belongs to the module that obeys it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses to listen on, `":443"` for all of the machine's. With a certificate, ports 443 and 8443 speak https and port 80
    /// redirects to it; everything else speaks http. `[[listener]]` says more about each.
    pub listen: OneOrMany<listener::Address>,
    /// Host names that are answered for, `*.example.com` for one label more; others get 421. Empty: every name.
    pub domains: OneOrMany<String>,
    /// Root of the application: `config/puma.rb` and the audit's subject are found under it.
    pub app: PathBuf,
    /// Peers before Palisade whose word on the client counts. Nobody by default.
    pub trusted_proxies: TrustedProxies,
    /// Settings for a place to stand in, weaker than any other source.
    pub profile: Profile,
    /// The process.
    pub server: Server,
    /// Listeners in full; with any, `listen` has no default.
    pub listener: Vec<listener::Config>,
    /// TLS, which is on as soon as there is a certificate.
    pub tls: tls::Config,
    /// Puma. `upstream = "puma"` is short for its address, as `config/puma.rb` binds it.
    pub upstream: upstream::Config,
    /// The one queue, before Puma's threads.
    pub queue: in_flight::Config,
    /// Deadlines of connections.
    pub timeouts: pace::Timeouts,
    /// The least that a transfer must achieve, against clients that trickle.
    pub rates: pace::Rates,
    /// How much of anything clients may have.
    pub limits: Limits,
    /// When Palisade itself runs short, what it gives up: first newcomers, then keep-alive, then routes of low priority.
    pub overload: overload::Config,
    /// Bodies that wait to be complete, or to be read.
    pub buffer: spill::Config,
    /// What a request may look like.
    pub framing: normalize::Config,
    /// Who may open WebSockets, and how many.
    pub websocket: websocket::Config,
    /// Which hosts are answered for, besides `domains`.
    pub host: host::Config,
    /// Fields that Palisade sets or takes away.
    pub headers: Headers,
    /// Paths that must never reach an application, such as `/.env` and `/.git`.
    pub sensitive: sensitive::Config,
    /// Debug pages and traces in errors.
    pub backtrace: backtrace::Config,
    /// What Rack can take, each part with a mode of its own.
    pub shield: shield_config::Config,
    /// What holds for some requests only, the first that matches.
    pub route: Vec<route::Config>,
    /// Limits on requests by client; every rule that matches counts, and the first that is exceeded refuses.
    pub rate_limit: Vec<rate_rule::RuleConfig>,
    /// Rules by which clients are shut out for a time.
    pub ban: Vec<ban_config::RuleConfig>,
    /// The part of `headers` that is about answers.
    #[serde(skip)]
    pub conceal: conceal::Config,
    /// Pages of refusals.
    pub errors: answer::Config,
    /// Access lines and events.
    pub log: log::Config,
    /// The operator's listener: `/live`, `/ready`, `/metrics`, `/stats`.
    pub admin: admin::Config,
    /// What findings about the application's set-up do.
    pub audit: server::Audit,
}

impl Config {
    /// Reads and checks every source. All problems come back at once, in the order of the sources.
    pub fn load(inputs: &Inputs) -> Result<Loaded, Invalid> {
        let mut problems = Vec::new();
        let mut layers = inputs.read(&mut problems);
        puma::resolve(&mut layers, inputs, &mut problems);
        for layer in &mut layers {
            problems.extend(check::check(layer));
        }
        layers.insert(0, profile_layer(&layers)?);
        let mut loaded = Loaded::new(merge(&layers)?, inputs.clone(), layers);
        if !loaded.config.listener.is_empty() && loaded.origin("listen") == Place::BuiltIn {
            loaded.config.listen.0.clear();
        }
        loaded.config.hand_down();
        let clear = |problem: &Problem| !problems.iter().any(|known| is_in_one_table(&known.key, &problem.key));
        let contradictions = cross::check(&loaded).into_iter().filter(clear).collect::<Vec<_>>();
        problems.extend(contradictions);
        if problems.is_empty() { Ok(loaded) } else { Err(Invalid(problems)) }
    }
}

impl Config {
    /// Tells modules what stands elsewhere in the file.
    fn hand_down(&mut self) {
        self.host.domains = self.domains.clone();
        self.websocket.domains = self.domains.clone();
        self.conceal = self.headers.conceal();
        self.framing.fields = usize::from(self.limits.header_count);
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: OneOrMany(vec![listener::Address::Ip(SocketAddr::from(([127, 0, 0, 1], 8080)))]),
            domains: OneOrMany::default(),
            app: PathBuf::from("."),
            trusted_proxies: TrustedProxies::default(),
            profile: Profile::default(),
            server: Server::default(),
            listener: Vec::new(),
            tls: tls::Config::default(),
            upstream: upstream::Config::default(),
            queue: in_flight::Config::default(),
            timeouts: pace::Timeouts::default(),
            rates: pace::Rates::default(),
            limits: Limits::default(),
            buffer: spill::Config::default(),
            framing: normalize::Config::default(),
            websocket: websocket::Config::default(),
            host: host::Config::default(),
            headers: Headers::default(),
            sensitive: sensitive::Config::default(),
            route: Vec::new(),
            overload: overload::Config::default(),
            rate_limit: rate_rule::RuleConfig::defaults(),
            ban: ban_config::RuleConfig::defaults(),
            backtrace: backtrace::Config::default(),
            shield: shield_config::Config::default(),
            conceal: conceal::Config::default(),
            errors: answer::Config::default(),
            log: log::Config::default(),
            admin: admin::Config::default(),
            audit: server::Audit::default(),
        }
    }
}

fn merge(layers: &[Layer]) -> Result<Config, Invalid> {
    let built_in = Figment::from(Serialized::defaults(Config::default()));
    let all = layers.iter().fold(built_in, |all, layer| all.merge(layer));
    // Each source alone has been read before, so what is left are keys that are only together too few.
    all.extract().map_err(|error| {
        let key = error.path.join(".");
        Invalid(vec![Problem::new(
            Place::BuiltIn,
            key,
            "is not complete when all sources are put together",
            "write the whole table in one place",
        )])
    })
}

fn profile_layer(layers: &[Layer]) -> Result<Layer, Invalid> {
    let profile = merge(layers)?.profile;
    let place = Place::Profile(profile.name());
    Layer::of_text(profile.settings(), &place).map_err(|bad| Invalid(vec![Problem::new(place, "", bad.why, "")]))
}

/// A contradiction is not reported where a key of the same table could not be read: it may be due to that alone.
fn is_in_one_table(one: &str, other: &str) -> bool {
    let table = |key: &str| key.split('.').next().map(str::to_owned);
    table(one) == table(other)
}

#[cfg(test)]
mod tests;
