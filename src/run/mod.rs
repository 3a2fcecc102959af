//! Starts everything, serves, and ends in order.
//!
//! What can fail at a start fails before a port is open to anybody: configuration, certificates, addresses, folders. From then
//! on nothing ends the process but a signal.

mod assembly;
mod exposure;
mod figures;
mod listeners;
mod notify;
pub mod rehearsal;
mod serve;

use std::{fmt, io, sync::Arc, time::Duration};

use rustix::process::Signal as ForPuma;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{
    assembly::{House, Makers, Stack},
    listeners::Listeners,
};
use crate::{
    accept::{self, listener::Inherited},
    audit,
    config::{Config, Loaded, secret::Unreadable},
    drain::emptied,
    exec::{Plan, Supervisor},
    http::{body::Relay, pause},
    layers,
    log::{Level, event},
    memory, sandbox, upstream,
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
    /// A secret cannot be read, or others can.
    Secret(accept::Problem),
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
            StartError::Resource { .. } | StartError::Sandbox(_) | StartError::Secret(_) => 1,
            StartError::Bind(_) => 4,
            StartError::Audit(_) => audit::FOUND,
            StartError::Certificate(_) => 7,
        }
    }

    fn bind(place: &'static str, remedy: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| StartError::Bind(accept::Problem { place: place.to_owned(), cause: error.to_string(), remedy: remedy.to_owned() })
    }

    /// A secret is read by the user who will read it again, and its mode is looked at before anything is served by it.
    fn token(error: Unreadable) -> Self {
        let (cause, remedy) = (error.to_string(), error.remedy());
        StartError::Secret(accept::Problem { place: "upstream.control_token_file".to_owned(), cause, remedy })
    }

    fn resource(place: &'static str, remedy: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| StartError::Resource { place, error, remedy }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Bind(problem) | StartError::Certificate(problem) | StartError::Sandbox(problem) | StartError::Secret(problem) => {
                problem.fmt(f)
            }
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
    start(loaded, None).map(drop)
}

/// Starts Puma, and serves before it until it or a signal ends that: Puma's exit code.
pub fn run_around(loaded: Loaded, plan: Plan) -> Result<u8, StartError> {
    start(loaded, Some(plan))
}

fn start(loaded: Loaded, plan: Option<Plan>) -> Result<u8, StartError> {
    let Loaded { config, .. } = &loaded;
    raise_descriptors();
    let mut inherited = Inherited::take().map_err(StartError::Bind)?;
    let listeners = Listeners::bind(config, &mut inherited)?;
    let findings = exposure::look(config)?;
    // Every thread is started after this, so that it holds for all of them.
    let confinement = if plan.is_none() { sandbox::enter(&loaded) } else { sandbox::around_puma(&loaded) };
    let confinement = confinement.map_err(StartError::Sandbox)?;
    crate::log::start_events(&config.log).map_err(StartError::resource("log", "free a thread for the log"))?;
    upstream::token(&config.upstream).map_err(StartError::token)?;
    confinement.announce();
    if let Err(error) = memory::give_back() {
        event(Level::Warn, "memory is not returned to the system", &[("error", &error)]);
    }
    exposure::report(&findings);
    // One thread alone needs no queues to be shared, and hands nothing over.
    let mut runtime = match config.server.threads() {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime
        .worker_threads(config.server.threads())
        .thread_name("palisade")
        .on_thread_park(pause::goes_to_sleep)
        .enable_all()
        .build()
        .map_err(StartError::resource("server.workers", "free memory or threads"))?;
    let outcome = runtime.block_on(async {
        let signals = Signals::install(plan.is_some()).map_err(StartError::resource("signals", "run on a system that has signals"))?;
        let makers = Makers { stack: layers::stack, redirect: layers::redirect_stack };
        let house = House::build(config, makers, plan.is_some())?;
        house.show(confinement, findings);
        // After everything that can fail: no Puma is started for nothing.
        let puma = plan.map(Plan::start).transpose().map_err(StartError::resource("exec", "name a command that can be run"))?;
        serve_until_told(&loaded, listeners, signals, Arc::new(house), puma).await
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
    mut puma: Option<Supervisor>,
) -> Result<u8, StartError>
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
        let told = tokio::select! {
            told = signals.next() => told,
            code = ended(&mut puma) => {
                event(Level::Error, "Puma has ended", &[("code", &code)]);
                notify::stopping();
                house.close();
                house.flush();
                return Ok(code);
            }
        };
        match (told, &puma) {
            (Told::Drain, _) => break,
            (Told::End, _) => {
                notify::stopping();
                house.close();
                return Ok(end(puma, ForPuma::INT, &config).await);
            }
            (Told::Reload, puma) => {
                notify::reloading();
                if puma.is_some() {
                    // Its other signal is Puma's.
                    house.reopen();
                }
                reload(loaded, &mut config, &house);
                notify::ready();
            }
            (Told::Reopen, _) => house.reopen(),
            (Told::Pass(signal), Some(puma)) => puma.pass(signal),
            (Told::Pass(_), None) => {}
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
    // Last: whoever was still served needed it.
    let code = end(puma, ForPuma::TERM, &config).await;
    house.flush();
    Ok(code)
}

/// Puma's end by itself; never, where it is not ours.
async fn ended(puma: &mut Option<Supervisor>) -> u8 {
    match puma {
        Some(puma) => puma.ended().await,
        None => std::future::pending().await,
    }
}

async fn end(puma: Option<Supervisor>, signal: ForPuma, config: &Config) -> u8 {
    match puma {
        Some(puma) => puma.end(signal, config.server.drain.get()).await,
        None => 0,
    }
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
    Pass(ForPuma),
}

/// The signals of `docs/operating.md`. As the first process of a container there is no default for them, so all are taken.
struct Signals {
    terminate: Signal,
    quit: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user1: Signal,
    /// What Puma understands and Palisade does not: USR2, TTIN, TTOU.
    for_puma: Option<[Signal; 3]>,
}

impl Signals {
    fn install(has_puma: bool) -> io::Result<Self> {
        let of = |signals: ForPuma| signal(SignalKind::from_raw(signals.as_raw()));
        let for_puma = || Ok::<_, io::Error>([of(ForPuma::USR2)?, of(ForPuma::TTIN)?, of(ForPuma::TTOU)?]);
        Ok(Signals {
            for_puma: has_puma.then(for_puma).transpose()?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Told {
        let has_puma = self.for_puma.is_some();
        let for_puma = async {
            match &mut self.for_puma {
                Some([user2, more, fewer]) => tokio::select! {
                    _ = user2.recv() => ForPuma::USR2,
                    _ = more.recv() => ForPuma::TTIN,
                    _ = fewer.recv() => ForPuma::TTOU,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            signal = for_puma => Told::Pass(signal),
            _ = self.terminate.recv() => Told::Drain,
            _ = self.quit.recv() => Told::Drain,
            _ = self.interrupt.recv() => Told::End,
            _ = self.hang_up.recv() => Told::Reload,
            _ = self.user1.recv() => if has_puma { Told::Pass(ForPuma::USR1) } else { Told::Reopen },
        }
    }

    /// A signal that ends a drain.
    async fn second(&mut self) {
        loop {
            match self.next().await {
                Told::Drain | Told::End => return,
                Told::Reload | Told::Reopen | Told::Pass(_) => {}
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
