//! Starts everything, serves, and ends in order.
//!
//! What can fail at a start fails before a port is open to anybody: configuration, certificates, addresses, folders. From then
//! on nothing ends the process but a signal.

mod assembly;
mod exposure;
mod figures;
mod notify;
mod serve;

use std::{fmt, io, sync::Arc, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};

use self::assembly::{House, Listeners, Makers, Stack};
use crate::{
    accept::{self, listener::Inherited},
    audit,
    config::{Config, Loaded},
    drain::emptied,
    http::body::Relay,
    layers,
    log::{Level, event},
    sandbox,
};

/// Why Palisade cannot start: place, cause, remedy, exit code.
#[derive(Debug)]
pub enum StartError {
    /// An address cannot be listened on.
    Bind(accept::Problem),
    /// A certificate or key cannot be used.
    Certificate(accept::Problem),
    /// Privileges cannot be given up as the configuration requires.
    Sandbox(accept::Problem),
    /// `audit.on_start` is `"block"`, and this was found.
    Audit(Vec<audit::Finding>),
    /// A file, folder or other resource is not there.
    Resource {
        /// The key or path.
        place: &'static str,
        /// What the system said.
        error: io::Error,
        /// What helps.
        remedy: &'static str,
    },
}

impl StartError {
    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            StartError::Resource { .. } | StartError::Sandbox(_) => 1,
            StartError::Bind(_) => 4,
            StartError::Audit(_) => audit::FOUND,
            StartError::Certificate(_) => 7,
        }
    }

    fn bind(place: &'static str, remedy: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| StartError::Bind(accept::Problem { place: place.to_owned(), cause: error.to_string(), remedy: remedy.to_owned() })
    }

    fn resource(place: &'static str, remedy: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| StartError::Resource { place, error, remedy }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Bind(problem) | StartError::Certificate(problem) | StartError::Sandbox(problem) => problem.fmt(f),
            StartError::Audit(findings) => {
                findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))?;
                f.write_str("audit.on_start is \"block\": repair these, waive them in audit.ignore, or set it to \"warn\"")
            }
            StartError::Resource { place, error, remedy } => write!(f, "{place}: {error}; {remedy}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Serves until a signal ends it.
pub fn run(loaded: Loaded) -> Result<(), StartError> {
    let Loaded { config, .. } = &loaded;
    raise_descriptors();
    let mut inherited = Inherited::take().map_err(StartError::Bind)?;
    let listeners = Listeners::bind(config, &mut inherited)?;
    let findings = exposure::look(config)?;
    // Every thread is started after this, so that it holds for all of them.
    let confinement = sandbox::enter(&loaded).map_err(StartError::Sandbox)?;
    crate::log::start_events(&config.log).map_err(StartError::resource("log", "free a thread for the log"))?;
    confinement.announce();
    exposure::report(&findings);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.server.threads())
        .thread_name("palisade")
        .enable_all()
        .build()
        .map_err(StartError::resource("server.workers", "free memory or threads"))?;
    let outcome = runtime.block_on(async {
        let signals = Signals::install().map_err(StartError::resource("signals", "run on a system that has signals"))?;
        let house = House::build(config, Makers { stack: layers::stack, redirect: layers::redirect_stack })?;
        house.show(confinement, findings);
        serve_until_told(&loaded, listeners, signals, Arc::new(house)).await
    });
    // Connections that outlived the drain are cut here.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

async fn serve_until_told<S, R, B, C>(
    loaded: &Loaded,
    listeners: Listeners,
    mut signals: Signals,
    house: Arc<House<S, R>>,
) -> Result<(), StartError>
where
    S: Stack<B>,
    R: Stack<C>,
    B: Relay + Send + 'static,
    C: Relay + Send + 'static,
{
    let mut config = loaded.config.clone();
    let serving = listeners.start(&house);
    house.announce(&config);
    notify::watch();
    notify::ready();
    loop {
        match signals.next().await {
            Told::Drain => break,
            Told::End => {
                notify::stopping();
                house.close();
                return Ok(());
            }
            Told::Reload => {
                notify::reloading();
                reload(loaded, &mut config, &house);
                notify::ready();
            }
            Told::Reopen => house.reopen(),
        }
    }
    notify::stopping();
    event(Level::Info, "draining", &[("grace", &config.server.drain)]);
    house.drain.leave();
    let leave = async {
        tokio::time::sleep(config.server.drain_delay.get()).await;
        house.close();
        emptied(|| house.open_connections(), config.server.drain.get()).await
    };
    tokio::select! {
        is_empty = leave => {
            if !is_empty {
                event(Level::Warn, "drain ended with connections open", &[("connections", &house.open_connections())]);
            }
        }
        () = signals.second() => event(Level::Warn, "drain cut short by a second signal", &[]),
    }
    drop(serving);
    house.flush();
    Ok(())
}

/// Takes over a new configuration, or keeps the old one and says why.
fn reload<S: Clone, R: Clone>(loaded: &Loaded, config: &mut Config, house: &House<S, R>) {
    let fresh = match loaded.again() {
        Ok(loaded) => loaded.config,
        Err(invalid) => {
            figures::reload_failed();
            return event(Level::Error, "reload refused, the old configuration stays", &[("why", &invalid)]);
        }
    };
    match house.reload(config, &fresh) {
        Ok(restart) => {
            event(Level::Info, "reloaded", &[("needs_restart", &restart.join(","))]);
            *config = fresh;
        }
        Err(error) => {
            figures::reload_failed();
            event(Level::Error, "reload refused, the old configuration stays", &[("why", &error), ("sandbox", &REACH)]);
        }
    }
}

/// What a signal asks for.
enum Told {
    Drain,
    End,
    Reload,
    Reopen,
}

/// The signals of `docs/operating.md`. As the first process of a container there is no default for them, so all are taken.
struct Signals {
    terminate: Signal,
    quit: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user1: Signal,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Drain,
            _ = self.quit.recv() => Told::Drain,
            _ = self.interrupt.recv() => Told::End,
            _ = self.hang_up.recv() => Told::Reload,
            _ = self.user1.recv() => Told::Reopen,
        }
    }

    /// A signal that ends a drain.
    async fn second(&mut self) {
        loop {
            match self.next().await {
                Told::Drain | Told::End => return,
                Told::Reload | Told::Reopen => {}
            }
        }
    }
}

/// Why a file that is there may be out of reach.
const REACH: &str = "files outside the folders of the start can be read after a restart only";

/// As many descriptors as the hard limit allows; a soft limit of 1024 would end at a thousand clients.
fn raise_descriptors() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.current < limit.maximum || limit.maximum.is_none() {
        let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
            event(Level::Warn, "the limit of open files cannot be raised", &[("error", &error), ("remedy", &"set LimitNOFILE")]);
        }
    }
}
