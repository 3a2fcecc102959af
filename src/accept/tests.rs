use std::{path::Path, process::Command};

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    counters::{Failure, Rejected},
    listener::Inherited,
    *,
};
use crate::{
    overload::{self, Overload},
    units::Deadline,
};

mod encrypted;
mod proxied;

/// A running listener, and what its gate counts.
struct Site {
    gate: Arc<Gate>,
    address: SocketAddr,
    closing: watch::Sender<bool>,
    served: tokio::task::JoinHandle<Result<(), Problem>>,
    _sweep: tokio::task::JoinHandle<()>,
}

/// Turns one client away.
#[derive(Debug)]
struct TurnsAway(Option<IpAddr>);

impl Doorkeeper for TurnsAway {
    fn turns_away(&self, client: IpAddr) -> bool {
        self.0 == Some(client)
    }
}

fn gate() -> Gate {
    Gate {
        timeouts: ArcSwap::from_pointee(Timeouts { tls_handshake: Deadline::millis(400), ..Timeouts::default() }),
        limits: Limits::new(limit::Config::default()),
        trusted: ArcSwap::default(),
        sweep: Sweep::new(),
        counters: Counters::default(),
        overload: Overload::new(overload::Config::default()),
        doorkeeper: Arc::new(TurnsAway(None)),
        tls: None,
        report: |_| (),
    }
}

/// Serves by telling who the client is, then echoing, until the client or its time is over.
async fn tell(gate: Arc<Gate>, mut stream: Stream, client: Client, permit: Permit) {
    let beat = gate.sweep.enrol(gate.sweep.now() + 60_000);
    let told = format!(
        "{} {} {} {}/{}/{} {}\n",
        client.ip,
        client.peer,
        client.local_port,
        client.tls,
        client.alpn,
        client.server_name.as_deref().unwrap_or("-"),
        client.trusted
    );
    stream.write_all(told.as_bytes()).await.unwrap();
    let echo = async {
        let mut buf = [0; 1024];
        while let Ok(n @ 1..) = stream.read(&mut buf).await {
            beat.advance(n as u64);
            stream.write_all(&buf[..n]).await.unwrap();
        }
    };
    let mut echo = pin!(echo);
    std::future::poll_fn(|cx| {
        beat.wake_by(cx.waker());
        if beat.is_over() { std::task::Poll::Ready(()) } else { echo.as_mut().poll(cx) }
    })
    .await;
    drop(permit);
}

fn bind(listener: &str) -> Bound {
    Bound::bind(&serde_json::from_str(listener).unwrap(), &mut Inherited::default()).unwrap()
}

fn start(gate: Gate, listener: &str) -> Site {
    let bound = bind(listener);
    let address = bound.local_addr().unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
    let gate = Arc::new(gate);
    let (closing, closed) = watch::channel(false);
    let handler = {
        let gate = Arc::clone(&gate);
        move |stream, client, permit| tell(Arc::clone(&gate), stream, client, permit)
    };
    let served = tokio::spawn(serve(bound, Arc::clone(&gate), handler, closed));
    let sweep = tokio::spawn(Arc::clone(&gate.sweep).run());
    Site { gate, address, closing, served, _sweep: sweep }
}

impl Site {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn until(&self, what: impl Fn(&Gate) -> bool) {
        let reached = async {
            while !what(&self.gate) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        soon(reached).await;
    }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work).await.expect("it takes too long")
}

async fn line(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    while text.last() != Some(&b'\n') {
        match soon(stream.read_u8()).await {
            Ok(byte) => text.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(text).unwrap()
}

/// The connection ends, and not by a reset.
async fn ends(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> bool {
    soon(stream.read(&mut [0; 64])).await.is_ok_and(|n| n == 0)
}

#[tokio::test]
async fn a_plain_connection_is_served_with_its_address() {
    let site = start(gate(), r#"{"address":"127.0.0.1:0","protocol":"http"}"#);
    let mut client = site.connect().await;
    assert_eq!(line(&mut client).await, format!("127.0.0.1 127.0.0.1 {} //- false\n", site.address.port()));
    client.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    soon(client.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, b"hello");
    drop(client);
    site.until(|gate| gate.limits.open() == 0 && gate.limits.entries() == 0).await;
    assert_eq!(site.gate.counters.accepted(), 1);
}

#[tokio::test]
async fn a_connection_over_the_limit_ends_without_a_reset_although_it_has_spoken() {
    let limits = Limits::new(limit::Config { connections_per_ip: 1.try_into().unwrap(), ..Default::default() });
    let site = start(Gate { limits, ..gate() }, r#"{"address":"127.0.0.1:0","protocol":"http"}"#);
    let mut first = site.connect().await;
    line(&mut first).await;
    let speak = async || {
        let mut socket = site.connect().await;
        socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        ends(&mut socket).await
    };
    assert!(speak().await);
    assert_eq!(site.gate.counters.rejected(Rejected::PerAddress), 1);
    drop(first);
    site.until(|gate| gate.limits.open() == 0).await;
    assert!(!line(&mut site.connect().await).await.is_empty());
}

#[tokio::test]
async fn at_the_limit_the_idle_one_goes_and_the_newcomer_is_served() {
    let limits = Limits::new(limit::Config { connections: 2.try_into().unwrap(), ..Default::default() });
    let site = start(Gate { limits, ..gate() }, r#"{"address":"127.0.0.1:0","protocol":"http"}"#);
    let (mut idle, mut busy) = (site.connect().await, site.connect().await);
    line(&mut idle).await;
    line(&mut busy).await;
    busy.write_all(b"x").await.unwrap();
    soon(busy.read_u8()).await.unwrap();
    // Only one may go: the other has made progress, and one place is needed.
    let mut newcomer = site.connect().await;
    assert!(!line(&mut newcomer).await.is_empty());
    assert!(ends(&mut idle).await);
    busy.write_all(b"y").await.unwrap();
    assert_eq!(soon(busy.read_u8()).await.unwrap(), b'y');
}

/// Connects from an address of its own: all of 127.0.0.0/8 is this machine.
async fn connect_from(source: [u8; 4], site: &Site) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    socket.connect(site.address).await.unwrap()
}

#[tokio::test]
async fn a_flood_from_one_network_is_held_at_its_share_and_another_client_is_served_at_once() {
    let connections_per_prefix = limit::Prefixes { v4_24: 32.try_into().unwrap(), ..Default::default() };
    let limits = Limits::new(limit::Config { connections_per_prefix, ..Default::default() });
    let site = start(Gate { limits, ..gate() }, r#"{"address":"127.0.0.1:0","protocol":"http"}"#);
    let mut flood = Vec::new();
    for n in 0..200 {
        flood.push(connect_from([127, 0, 1, n], &site).await);
    }
    site.until(|gate| gate.counters.rejected(Rejected::PerPrefix) == 168).await;
    let begun = Instant::now();
    let mut honest = connect_from([127, 0, 2, 1], &site).await;
    assert!(line(&mut honest).await.starts_with("127.0.2.1 "));
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!(site.gate.limits.open(), 33);
}

#[tokio::test]
async fn an_ipv4_client_of_a_dual_listener_has_its_ipv4_address() {
    let site = start(gate(), r#"{"address":":0","protocol":"http"}"#);
    let mut client = TcpStream::connect(("127.0.0.1", site.address.port())).await.unwrap();
    assert!(line(&mut client).await.starts_with("127.0.0.1 127.0.0.1 "));
}

const PROXIED: &str = r#"{"address":"127.0.0.1:0","protocol":"http","proxy_protocol":"any"}"#;

const HTTPS: &str = r#"{"address":"127.0.0.1:0","protocol":"https"}"#;

#[tokio::test]
async fn a_listener_that_cannot_work_does_not_start() {
    let (_closing, closed) = watch::channel(false);
    let handler = |_: Stream, _: Client, _: Permit| async {};
    let tls = serve(bind(HTTPS), Arc::new(gate()), handler, closed.clone()).await.unwrap_err();
    assert!(tls.remedy.contains("cert_file"));
    let proxy = serve(bind(PROXIED), Arc::new(gate()), handler, closed).await.unwrap_err();
    assert!(proxy.remedy.contains("trusted_proxies"));
}

#[tokio::test]
async fn closing_takes_in_who_has_connected_and_then_refuses() {
    let bound = bind(r#"{"address":"127.0.0.1:0","protocol":"http"}"#);
    let address = bound.local_addr().unwrap();
    let waiting = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    let (_closing, closed) = watch::channel(true);
    let gate = Arc::new(gate());
    let handler = |mut stream: Stream, _: Client, permit: Permit| async move {
        stream.write_all(b"served\n").await.unwrap();
        drop(permit);
    };
    serve(bound, gate, handler, closed).await.unwrap();
    for mut client in waiting {
        assert_eq!(line(&mut client).await, "served\n");
    }
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_listener_stops_when_closing_turns_true() {
    let site = start(gate(), r#"{"address":"127.0.0.1:0","protocol":"http"}"#);
    let mut held = site.connect().await;
    line(&mut held).await;
    site.closing.send(true).unwrap();
    soon(site.served).await.unwrap().unwrap();
    held.write_all(b"x").await.unwrap();
    assert_eq!(soon(held.read_u8()).await.unwrap(), b'x', "what is open goes on");
}

#[test]
fn waits_grow_and_the_log_is_quiet() {
    let (mut backoff, now) = (Backoff::default(), Instant::now());
    let waits: Vec<_> = (0..6).map(|_| backoff.fail(now).0.as_millis()).collect();
    assert_eq!(waits, [10, 20, 40, 80, 100, 100]);
    assert!(!backoff.fail(now + Duration::from_millis(999)).1);
    assert!(backoff.fail(now + Duration::from_secs(1)).1);
    backoff.succeed();
    assert_eq!(backoff.fail(now).0.as_millis(), 10);
}

#[test]
fn running_out_of_descriptors_drops_the_idle_and_ends_nothing() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "accept::tests::child_with_few_descriptors"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test]
#[ignore = "started by running_out_of_descriptors_drops_the_idle_and_ends_nothing in a process of its own"]
async fn child_with_few_descriptors() {
    let site = start(gate(), r#"{"address":"127.0.0.1:0","protocol":"http"}"#);
    // The clients connect before the limit falls, so that only the accepting side runs out.
    let clients: Vec<TcpStream> = {
        let mut clients = Vec::new();
        for _ in 0..40 {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            clients.push(tokio::net::TcpSocket::from_std_stream(socket.into()));
        }
        let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        let limit = rustix::process::Rlimit { current: Some(used + 10), maximum: Some(used + 10) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
        let mut connected = Vec::new();
        for client in clients {
            connected.push(client.connect(site.address).await.unwrap());
        }
        connected
    };
    site.until(|gate| gate.counters.accept_errors() > 0 && gate.counters.accepted() == 40).await;
    assert!(!site.served.is_finished());
    drop(clients);
    site.until(|gate| gate.limits.open() == 0).await;
}
