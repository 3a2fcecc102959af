//! The operator's listener: `/live`, `/ready`, `/metrics`, `/stats`.
//!
//! Threat: exposure, as numbers tell an attacker when an attack works. So the default address is loopback, a unix socket is
//! 0600 before anyone can connect to it, and on loopback a Host that is a name is refused: a page in a browser on this machine
//! could reach us by DNS rebinding. Exhaustion: 64 connections, 5 s for a head, 10 s for a connection; what is beyond is
//! closed. hyper reads HTTP/1 here, as no byte goes on to anyone.

mod page;
mod probe;
mod socket;

use std::{convert::Infallible, fmt, io, net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};

pub use self::{page::Capacity, probe::probe};
use crate::metrics::Metrics;

/// `[admin]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen: an address with a port, `unix:` with a path (mode 0600), or `off`. Whoever reaches it can read
    /// numbers and nothing else, but do not open it to the Internet. Default: `127.0.0.1:9394`.
    pub listen: Listen,
}

/// Where the admin listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// An address with a port.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
    /// Nowhere.
    Off,
}

/// What the pages show.
pub struct Admin {
    /// `/metrics`.
    pub metrics: Arc<Metrics>,
    /// `/ready`: whether a request would be served now, or the word that says why not (`draining`, `upstream_down`).
    pub ready: Box<dyn Fn() -> Result<(), &'static str> + Send + Sync>,
    /// `/stats`: Puma's threads and the queue in front of them.
    pub capacity: Box<dyn Fn() -> Capacity + Send + Sync>,
}

/// An open admin listener.
#[derive(Debug)]
pub enum Listener {
    /// On an address.
    Tcp {
        /// The socket.
        listener: std::net::TcpListener,
        /// Whether only this machine can reach it.
        is_loopback: bool,
    },
    /// On a unix socket.
    Unix(std::os::unix::net::UnixListener),
}

impl Listener {
    /// Opens the listener, if there is to be one. Needs no runtime yet: what comes after it may not bind any more.
    pub fn bind(config: &Config) -> io::Result<Option<Self>> {
        match &config.listen {
            Listen::Off => Ok(None),
            Listen::Tcp(address) => Ok(Some(Listener::Tcp { listener: socket::tcp(*address)?, is_loopback: address.ip().is_loopback() })),
            Listen::Unix(path) => Ok(Some(Listener::Unix(socket::unix(path)?))),
        }
    }

    /// Where it is, for logs and tests; `None` for unix sockets.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Listener::Tcp { listener, .. } => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        }
    }

    /// Serves until it is dropped; within a runtime.
    pub async fn serve(self, admin: Arc<Admin>) -> io::Result<Infallible> {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        match self {
            Listener::Tcp { listener, is_loopback } => {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => serve_in(&room, stream, &admin, is_loopback),
                        Err(_) => tokio::time::sleep(BACK_OFF).await,
                    }
                }
            }
            Listener::Unix(listener) => {
                let listener = UnixListener::from_std(listener)?;
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => serve_in(&room, stream, &admin, false),
                        Err(_) => tokio::time::sleep(BACK_OFF).await,
                    }
                }
            }
        }
    }
}

impl FromStr for Listen {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        if text == "off" {
            return Ok(Listen::Off);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') { Ok(Listen::Unix(PathBuf::from(path))) } else { Err(LISTEN) };
        }
        match text.strip_prefix("localhost:") {
            Some(port) => port.parse().map(|port| Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], port)))).map_err(|_| LISTEN),
            None => text.parse().map(Listen::Tcp).map_err(|_| LISTEN),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "{address}"),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
            Listen::Off => f.write_str("off"),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 9394)))
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("metrics", &self.metrics).finish_non_exhaustive()
    }
}

/// Serves one connection in a task of its own, or closes it when there is no room.
fn serve_in<T>(room: &Arc<Semaphore>, stream: T, admin: &Arc<Admin>, is_loopback: bool)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ok(place) = Arc::clone(room).try_acquire_owned() else { return };
    let admin = Arc::clone(admin);
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let response = page::answer(&admin, &request, is_loopback);
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        // A probe that goes away or takes too long is nobody's concern; its connection ends here.
        drop(tokio::time::timeout(CONNECTION_AGE, connection).await);
        drop(place);
    });
}

const CONNECTIONS: usize = 64;
const HEADER: Duration = Duration::from_secs(5);
const CONNECTION_AGE: Duration = Duration::from_secs(10);
const BACK_OFF: Duration = Duration::from_millis(100);
const HEAD_BYTES: usize = 16 << 10;
const LISTEN: &str = "an address with a port such as \"127.0.0.1:9394\", \"unix:/absolute/path\" or \"off\"";

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt,
        sync::atomic::{AtomicBool, Ordering::Relaxed},
    };

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        task::JoinHandle,
    };

    use super::*;

    struct Running {
        listen: Listen,
        is_ready: Arc<AtomicBool>,
        task: JoinHandle<io::Result<Infallible>>,
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    fn run(listen: Listen) -> Running {
        let is_ready = Arc::new(AtomicBool::new(true));
        let seen = Arc::clone(&is_ready);
        let admin = Arc::new(Admin {
            metrics: Arc::new(Metrics::new("1", "").unwrap()),
            ready: Box::new(move || if seen.load(Relaxed) { Ok(()) } else { Err("draining") }),
            capacity: Box::new(|| Capacity { backlog: 3, running: 5, max_threads: 5, busy_threads: 4 }),
        });
        let listener = Listener::bind(&Config { listen: listen.clone() }).unwrap().unwrap();
        let listen = listener.address().map_or(listen, Listen::Tcp);
        Running { listen, is_ready, task: tokio::spawn(listener.serve(admin)) }
    }

    fn loopback() -> Running {
        run("127.0.0.1:0".parse().unwrap())
    }

    async fn send(running: &Running, request: &str) -> String {
        let Listen::Tcp(address) = running.listen else { panic!("not an address") };
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    async fn get(running: &Running, path: &str) -> String {
        send(running, &format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")).await
    }

    #[tokio::test]
    async fn the_four_pages_answer() {
        let running = loopback();
        assert!(get(&running, "/live").await.starts_with("HTTP/1.1 200 "));
        assert!(get(&running, "/ready").await.starts_with("HTTP/1.1 200 "));
        running.is_ready.store(false, Relaxed);
        let answer = get(&running, "/ready").await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\ndraining\n"), "{answer}");
        let metrics = get(&running, "/metrics").await;
        assert!(metrics.contains("text/plain; version=0.0.4") && metrics.contains("\npalisade_build_info{"), "{metrics}");
        let stats = get(&running, "/stats?x").await;
        let stats: serde_json::Value = serde_json::from_str(stats.split_once("\r\n\r\n").unwrap().1).unwrap();
        for (key, value) in
            [("backlog", 3), ("running", 5), ("pool_capacity", 1), ("max_threads", 5), ("busy_threads", 4), ("requests_count", 0)]
        {
            assert_eq!(stats[key], value, "{key} in {stats}");
        }
        assert_eq!(stats["ready"], false);
    }

    #[tokio::test]
    async fn everything_else_is_refused() {
        let running = loopback();
        assert!(get(&running, "/").await.starts_with("HTTP/1.1 404 "));
        assert!(get(&running, "/metrics/../live").await.starts_with("HTTP/1.1 404 "));
        let post = send(&running, "POST /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
        assert!(post.starts_with("HTTP/1.1 405 ") && post.contains("allow: GET, HEAD"), "{post}");
        let head = send(&running, "HEAD /live HTTP/1.1\r\nHost: [::1]:9394\r\nConnection: close\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[tokio::test]
    async fn a_rebound_name_reads_nothing_on_loopback() {
        let running = loopback();
        for host in ["evil.example", "evil.example:9394", "localhost.evil.example", ""] {
            let answer = send(&running, &format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 421 "), "{host}: {answer}");
        }
        let answer = send(&running, "GET /live HTTP/1.1\r\nHost: localhost:9394\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn connections_beyond_the_limit_are_closed_and_room_comes_back() {
        let running = loopback();
        let Listen::Tcp(address) = running.listen else { panic!("not an address") };
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let mut beyond = TcpStream::connect(address).await.unwrap();
        let read = tokio::time::timeout(Duration::from_secs(2), beyond.read(&mut [0; 1])).await.unwrap();
        assert!(matches!(read, Ok(0) | Err(_)));
        drop(idle);
        let until = std::time::Instant::now() + Duration::from_secs(5);
        while probe(&running.listen).is_err() {
            assert!(std::time::Instant::now() < until, "no room came back");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_unix_socket_is_for_its_owner_and_replaces_a_dead_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let running = run(Listen::Unix(path.clone()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(probe(&running.listen), Ok(()));
        let again = Listener::bind(&Config { listen: running.listen.clone() });
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AddrInUse, "a live socket is not taken away");
        running.is_ready.store(false, Relaxed);
        assert_eq!(probe(&running.listen), Err("not ready: draining".to_owned()));
    }

    #[tokio::test]
    async fn a_file_is_never_removed_for_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "x").unwrap();
        assert!(Listener::bind(&Config { listen: Listen::Unix(path.clone()) }).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }

    #[test]
    fn nobody_there_is_not_healthy() {
        assert!(probe(&Listen::Unix("/nonexistent/admin.sock".into())).is_err());
        assert!(probe(&Listen::Off).is_err());
    }

    #[test]
    fn the_table_reads_as_documented() {
        assert_eq!(serde_json::from_str::<Config>("{}").unwrap(), Config::default());
        assert_eq!(serde_json::from_str::<Config>(r#"{"listen":"off"}"#).unwrap().listen, Listen::Off);
        assert!(serde_json::from_str::<Config>(r#"{"socket":"x"}"#).is_err());
        assert_eq!(serde_json::to_string(&Config::default()).unwrap(), r#"{"listen":"127.0.0.1:9394"}"#);
    }

    #[test]
    fn places_are_read_and_written_alike() {
        for text in ["127.0.0.1:9394", "[::1]:80", "unix:/run/palisade/admin.sock", "off"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        assert_eq!("localhost:1".parse::<Listen>().unwrap().to_string(), "127.0.0.1:1");
        for text in ["", "9394", "unix:", "unix:relative", "example.com:80", "localhost:x"] {
            assert_eq!(text.parse::<Listen>(), Err(LISTEN), "{text}");
        }
    }
}
