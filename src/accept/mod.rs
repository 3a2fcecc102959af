//! Connections: sockets become decrypted bytes of a known client, within limits and deadlines.
//!
//! Threat: exhaustion and slowloris, before there is any HTTP. [`listener`] binds or inherits; [`serve`] accepts, asks [`limit`], and
//! gives each connection a task, in which `greet` reads the PROXY line and shakes hands under one deadline and the caller's handler
//! goes on. Nothing in here ends the process: when descriptors run out, the connection with the least progress goes.

pub mod beat;
pub mod certificate;
pub mod client;
pub mod counters;
mod greet;
pub mod limit;
pub mod listener;
pub mod pace;
pub mod proxy_protocol;
mod sealing;
pub mod stream;
pub mod tls;
pub mod trusted;

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use rustix::{io::Errno, net::SocketFlags};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
};

use self::{
    beat::Sweep,
    client::{Client, Scheme, unmapped},
    counters::Counters,
    greet::Manner,
    limit::{HONEST, Limits, Permit},
    listener::{Bound, Listening, Protocol},
    pace::Timeouts,
    proxy_protocol::ProxyProtocol,
    stream::{Stream, Transport},
    tls::Terminator,
    trusted::TrustedProxies,
};
use crate::overload::{Overload, Relief};

/// What all listeners share. What a reload may change is behind a pointer that is replaced as a whole.
#[derive(Debug)]
pub struct Gate {
    /// Deadlines.
    pub timeouts: ArcSwap<Timeouts>,
    /// Limits and books of open connections.
    pub limits: Arc<Limits>,
    /// Whose PROXY lines and forwarding fields count.
    pub trusted: ArcSwap<TrustedProxies>,
    /// The deadlines of all connections. [`Sweep::run`] must be spawned.
    pub sweep: Arc<Sweep>,
    /// What happened, for the metrics.
    pub counters: Counters,
    /// Whether Palisade itself is short.
    pub overload: Arc<Overload>,
    /// Who gets no connection.
    pub doorkeeper: Arc<dyn Doorkeeper>,
    /// TLS, if any listener speaks it.
    pub tls: Option<Arc<Terminator>>,
    /// Takes a line for the operator, at most one a second from each listener.
    pub report: fn(&str),
}

/// Knows whom to turn away before anything is spent on them.
pub trait Doorkeeper: fmt::Debug + Send + Sync {
    /// Whether this client gets no connection.
    fn turns_away(&self, client: IpAddr) -> bool;
}

/// What prevents a start or a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, the address or the key.
    pub place: String,
    /// What is wrong there.
    pub cause: String,
    /// What helps.
    pub remedy: String,
}

/// Accepts until `closing` turns true (or its sender is gone), then takes in what has already connected, and stops listening.
/// Connections go on in their own tasks; [`Limits::open`] says how many there are.
pub async fn serve<H, F>(bound: Bound, gate: Arc<Gate>, handler: H, mut closing: watch::Receiver<bool>) -> Result<(), Problem>
where
    H: Fn(Stream, Client, Permit) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    check(&bound, &gate)?;
    let config = bound.config();
    let manner = Manner { protocol: config.protocol, http2: config.http2, proxy_protocol: config.proxy_protocol };
    let (place, backlog) = (config.address.to_string(), config.backlog);
    let local_port = bound.local_addr().map_or(0, |a| a.port());
    let door = Door::open(bound.socket).map_err(|error| Problem {
        place: format!("listener {place}"),
        cause: error.to_string(),
        remedy: "raise the limit of open files".into(),
    })?;
    let mut closed = pin!(async move {
        // An error says that the sender is gone, and with it whoever could close this listener later.
        drop(closing.wait_for(|closing| *closing).await);
    });
    let mut backoff = Backoff::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut closed => break,
            accepted = door.accept() => accepted,
        };
        match accepted {
            Ok((transport, peer)) => {
                backoff.succeed();
                admit(&gate, &handler, manner, local_port, transport, peer);
            }
            Err(error) => {
                let Some((wait, is_news)) = refused(&gate, &mut backoff, &error) else { continue };
                if is_news {
                    (gate.report)(&format!("listener {place} cannot accept: {error}; it tries again, {} open", gate.limits.open()));
                }
                tokio::select! {
                    biased;
                    () = &mut closed => break,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
    for _ in 0..backlog {
        match door.try_accept() {
            Ok((transport, peer)) => admit(&gate, &handler, manner, local_port, transport, peer),
            Err(_) => break,
        }
    }
    Ok(())
}

fn check(bound: &Bound, gate: &Gate) -> Result<(), Problem> {
    let config = bound.config();
    let problem = |cause: &str, remedy: &str| {
        Err(Problem { place: format!("listener {}", config.address), cause: cause.into(), remedy: remedy.into() })
    };
    let is_unix = matches!(bound.socket, Listening::Unix(_));
    if config.protocol == Protocol::Https && (gate.tls.is_none() || is_unix) {
        return problem("it is to speak TLS and cannot", "set [tls] cert_file and key_file, and use a TCP address");
    }
    let trusted = gate.trusted.load();
    let nobody = if is_unix { !trusted.contains_unix() } else { trusted.is_empty() };
    if config.proxy_protocol != ProxyProtocol::Off && nobody {
        return problem(
            "it requires a PROXY line and nobody may send one",
            "list the balancers in trusted_proxies (\"unix\" for unix sockets)",
        );
    }
    Ok(())
}

/// Admits a connection, or closes it at once.
fn admit<H, F>(gate: &Arc<Gate>, handler: &H, manner: Manner, local_port: u16, transport: Transport, peer: Option<SocketAddr>)
where
    H: Fn(Stream, Client, Permit) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let ip = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| unmapped(peer.ip()));
    let trusted = gate.trusted.load();
    let is_trusted = if peer.is_some() { trusted.contains(ip) } else { trusted.contains_unix() };
    if manner.proxy_protocol != ProxyProtocol::Off && !is_trusted {
        gate.counters.reject(counters::Rejected::ProxyUnlisted);
        return transport.dismiss();
    }
    if !is_trusted && gate.doorkeeper.turns_away(ip) {
        gate.counters.reject(counters::Rejected::Banned);
        return transport.dismiss();
    }
    if !has_room(gate, manner, ip) {
        gate.counters.reject(counters::Rejected::Overload);
        return transport.dismiss();
    }
    let speaks_for_others = is_trusted || peer.is_none();
    let permit = match gate.limits.admit(&gate.sweep, ip, speaks_for_others) {
        Ok(permit) => permit,
        Err(reason) => {
            gate.counters.reject(reason);
            return transport.dismiss();
        }
    };
    gate.counters.accept();
    let client = Client {
        ip,
        port: peer.map_or(0, |peer| peer.port()),
        peer: ip,
        local_port,
        scheme: Scheme::Http,
        trusted: is_trusted,
        ..Client::local()
    };
    if manner.is_plain() {
        tokio::spawn(handler(Stream::new(transport, manner.protocol, manner.http2), client, permit));
    } else {
        let (gate, handler) = (Arc::clone(gate), handler.clone());
        // Boxed out here: what a block takes in stays in it as long as the connection lives.
        let greeting = Box::pin(async move { greet::greet(&gate, manner, transport, client, permit).await });
        tokio::spawn(async move {
            if let Some((stream, client, permit)) = greeting.await {
                handler(stream, client, permit).await;
            }
        });
    }
}

/// Whether Palisade is well enough for one more connection. When descriptors or memory are short, it comes in only instead of one
/// with less progress; when CPU is, no handshake begins. Health checks always come in.
fn has_room(gate: &Gate, manner: Manner, peer: IpAddr) -> bool {
    if gate.overload.relief() == Relief::None || gate.limits.is_health(peer) {
        return true;
    }
    if gate.overload.lacks_cpu() { manner.protocol != Protocol::Https } else { gate.limits.exchange(&gate.sweep) }
}

/// What to do about an error of accept: nothing, or to wait, and whether the operator should hear of it.
fn refused(gate: &Gate, backoff: &mut Backoff, error: &io::Error) -> Option<(Duration, bool)> {
    let is = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    // The peer was gone before we came; Linux also passes on errors of the network that are pending on the new socket.
    if [Errno::CONNABORTED, Errno::CONNRESET, Errno::INTR, Errno::PROTO, Errno::PERM, Errno::NETDOWN, Errno::NETUNREACH]
        .into_iter()
        .chain([Errno::HOSTDOWN, Errno::HOSTUNREACH, Errno::NONET, Errno::NOPROTOOPT, Errno::OPNOTSUPP])
        .any(is)
    {
        return None;
    }
    gate.counters.accept_error();
    if [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM].into_iter().any(is) {
        gate.sweep.evict(HONEST, (gate.limits.open() >> 4).clamp(1, AT_ONCE));
    }
    Some(backoff.fail(Instant::now()))
}

/// Waits between attempts that grow, and one line a second.
#[derive(Debug, Default)]
struct Backoff {
    wait: Duration,
    said: Option<Instant>,
}

impl Backoff {
    fn succeed(&mut self) {
        self.wait = Duration::ZERO;
    }

    fn fail(&mut self, now: Instant) -> (Duration, bool) {
        self.wait = self.wait.saturating_mul(2).clamp(SHORTEST, LONGEST);
        let is_news = self.said.is_none_or(|said| now.saturating_duration_since(said) >= QUIET);
        if is_news {
            self.said = Some(now);
        }
        (self.wait, is_news)
    }
}

/// A listening socket on the runtime.
#[derive(Debug)]
enum Door {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Door {
    fn open(socket: Listening) -> io::Result<Self> {
        match socket {
            Listening::Tcp(s) => TcpListener::from_std(s).map(Door::Tcp),
            Listening::Unix(s) => UnixListener::from_std(s).map(Door::Unix),
        }
    }

    async fn accept(&self) -> io::Result<(Transport, Option<SocketAddr>)> {
        match self {
            Door::Tcp(s) => s.accept().await.map(|(stream, peer)| (Transport::Tcp(stream), Some(peer))),
            Door::Unix(s) => s.accept().await.map(|(stream, _)| (Transport::Unix(stream), None)),
        }
    }

    /// Accepts what has connected already. It asks the kernel, as the runtime may not have heard of it yet.
    fn try_accept(&self) -> io::Result<(Transport, Option<SocketAddr>)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match self {
            Door::Tcp(s) => {
                let (socket, peer) = rustix::net::acceptfrom_with(s, flags)?;
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(io::ErrorKind::ConnectionAborted)?;
                Ok((Transport::Tcp(TcpStream::from_std(socket.into())?), Some(peer)))
            }
            Door::Unix(s) => {
                let socket = rustix::net::accept_with(s, flags)?;
                Ok((Transport::Unix(UnixStream::from_std(socket.into())?), None))
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.place, self.cause, self.remedy)
    }
}

impl std::error::Error for Problem {}

const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_millis(100);
const QUIET: Duration = Duration::from_secs(1);

/// Connections dropped when descriptors run out, at most: some more than the next accept needs, as Puma's connections need some too.
const AT_ONCE: usize = 16;

#[cfg(test)]
mod tests;
