//! Sockets that listen: bound here, or inherited from systemd.
//!
//! Threat: exhaustion, as what a slow client may hold in the kernel is set here. Options are set on the listening socket, and
//! Linux gives them to every accepted one, so that a connection costs no call for them (a test measures it). Place: before the
//! runtime and the sandbox start; nothing is accepted until `serve`.

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use rustix::io::Errno;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::{Problem, proxy_protocol::ProxyProtocol};

/// `[[listener]]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `"0.0.0.0:443"`, `"[::]:443"` (IPv6 only), `":443"` (both), `"unix:/run/palisade/http.sock"`, or `"fd:NAME"` for a socket of
    /// that name from systemd. A socket from systemd that has the address already is used whatever its name.
    pub address: Address,
    /// What is served there.
    pub protocol: Protocol,
    /// Whether HTTP/2 is taken, by ALPN or by its preface. Default: true.
    #[serde(default = "yes")]
    pub http2: bool,
    /// The PROXY header that peers in `trusted_proxies` must send first. All other peers are closed. Default: off.
    #[serde(default)]
    pub proxy_protocol: ProxyProtocol,
    /// Connections that wait in the kernel to be accepted; the kernel's own limit is net.core.somaxconn. Default: 4096.
    #[serde(default = "backlog")]
    pub backlog: u32,
}

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP without TLS.
    Http,
    /// HTTP over TLS that ends here.
    Https,
    /// A redirect of everything to https.
    Redirect,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A port on every address, IPv6 and IPv4.
    Any(u16),
    /// One address.
    Ip(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
    /// A socket that systemd passes under this name.
    Inherited(String),
}

/// A socket that listens, and how it is served.
#[derive(Debug)]
pub struct Bound {
    pub(super) socket: Listening,
    pub(super) config: Config,
}

/// Sockets that systemd passed and that no listener has taken yet.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(String, Listening)>);

#[derive(Debug)]
pub(super) enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Bound {
    /// Takes the socket over, or binds it, and listens.
    pub fn bind(config: &Config, inherited: &mut Inherited) -> Result<Self, Problem> {
        if config.protocol == Protocol::Https && matches!(config.address, Address::Unix(_)) {
            return Err(problem(
                &config.address,
                "TLS on a unix socket is not supported",
                "use protocol = \"http\": who may connect is said by the socket's mode",
            ));
        }
        let socket = match inherited.find(&config.address) {
            Some(socket) => socket,
            None => match &config.address {
                Address::Any(port) => any(*port, config.backlog),
                Address::Ip(address) => tcp(*address, address.is_ipv6(), config.backlog),
                Address::Unix(path) => unix(path, config.backlog),
                Address::Inherited(_) => {
                    return Err(problem(
                        &config.address,
                        "systemd passed no socket of this name",
                        "set FileDescriptorName= in the .socket unit, and start the .socket unit first",
                    ));
                }
            }
            .map_err(|error| explain(&config.address, &error))?,
        };
        socket.prepare(config.backlog).map_err(|error| explain(&config.address, &error))?;
        Ok(Bound { socket, config: config.clone() })
    }

    /// The address with its port; `None` for unix sockets.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.socket.address()
    }

    /// How it was configured.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

impl Inherited {
    /// Takes what systemd passed by `LISTEN_FDS`, if it was meant for this process. Call it once, before threads are started.
    pub fn take() -> Result<Self, Problem> {
        let is_ours = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
        if !is_ours {
            return Ok(Inherited::default());
        }
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = listenfd::ListenFd::from_env();
        let mut sockets = Vec::new();
        for n in 0..passed.len() {
            let name = names.next().unwrap_or_default().to_owned();
            let tcp = passed.take_tcp_listener(n).map(|s| s.map(Listening::Tcp));
            let socket = tcp.or_else(|_| passed.take_unix_listener(n).map(|s| s.map(Listening::Unix)));
            match socket {
                Ok(Some(socket)) => sockets.push((name, socket)),
                Ok(None) => {}
                Err(error) => {
                    return Err(Problem {
                        place: format!("socket {n} ({name}) from systemd"),
                        cause: error.to_string(),
                        remedy: "use ListenStream= in the .socket unit, for TCP or unix sockets only".into(),
                    });
                }
            }
        }
        Ok(Inherited(sockets))
    }

    /// Names of sockets that no listener took: most likely a mistake in the unit or in `proxy.toml`.
    pub fn unused(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    fn find(&mut self, address: &Address) -> Option<Listening> {
        let found = self.0.iter().position(|(name, socket)| match address {
            Address::Inherited(wanted) => name == wanted,
            Address::Any(port) => socket.address().is_some_and(|a| a.ip().is_unspecified() && a.port() == *port),
            Address::Ip(wanted) => socket.address() == Some(*wanted),
            Address::Unix(path) => socket.path().as_deref() == Some(path),
        })?;
        Some(self.0.swap_remove(found).1)
    }
}

impl Listening {
    fn address(&self) -> Option<SocketAddr> {
        match self {
            Listening::Tcp(s) => s.local_addr().ok(),
            Listening::Unix(_) => None,
        }
    }

    fn path(&self) -> Option<PathBuf> {
        match self {
            Listening::Tcp(_) => None,
            Listening::Unix(s) => s.local_addr().ok().and_then(|a| a.as_pathname().map(Path::to_owned)),
        }
    }

    /// Options for the accepted sockets, and a backlog also for an inherited one.
    fn prepare(&self, backlog: u32) -> io::Result<()> {
        match self {
            Listening::Tcp(s) => {
                let socket = SockRef::from(s);
                socket.set_tcp_nodelay(true)?;
                socket.set_tcp_notsent_lowat(NOT_SENT)?;
                let probes = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES);
                socket.set_tcp_keepalive(&probes)?;
                socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
                s.set_nonblocking(true)
            }
            Listening::Unix(s) => {
                SockRef::from(s).listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
                s.set_nonblocking(true)
            }
        }
    }
}

/// IPv6 with IPv4 mapped into it; IPv4 alone where the kernel has no IPv6.
fn any(port: u16, backlog: u32) -> io::Result<Listening> {
    match tcp(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), false, backlog) {
        Err(error) if [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].iter().any(|e| error.raw_os_error() == Some(e.raw_os_error())) => {
            tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), false, backlog)
        }
        bound => bound,
    }
}

fn tcp(address: SocketAddr, only_v6: bool, backlog: u32) -> io::Result<Listening> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    // A restart must not wait for connections of its predecessor in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(Listening::Tcp(socket.into()))
}

/// The mode is set between bind and listen: before `listen` nobody can connect, so there is no moment with a wider mode.
fn unix(path: &Path, backlog: u32) -> io::Result<Listening> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(Listening::Unix(socket.into()))
}

/// Removes the socket of a process that is gone, and nothing else.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(what) if !what.file_type().is_socket() => Err(io::ErrorKind::AlreadyExists.into()),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
            Ok(_) | Err(_) => Err(io::ErrorKind::AddrInUse.into()),
        },
    }
}

fn explain(address: &Address, error: &io::Error) -> Problem {
    let is_unix = matches!(address, Address::Unix(_));
    let (cause, remedy) = if error.kind() == io::ErrorKind::AddrInUse {
        ("another process listens there", "stop it (`ss -ltnpx` shows it), or choose another address")
    } else if error.kind() == io::ErrorKind::PermissionDenied && is_unix {
        ("no permission to make the socket", "make its folder writable for Palisade's user, such as by RuntimeDirectory=")
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        (
            "no permission to bind this port",
            "use the .socket unit, or give CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start",
        )
    } else if error.kind() == io::ErrorKind::AddrNotAvailable {
        ("no interface has this address", "use an address of this machine, or \":PORT\" for all of them")
    } else if error.kind() == io::ErrorKind::NotFound && is_unix {
        ("its folder does not exist", "make the folder, such as by RuntimeDirectory=")
    } else if error.kind() == io::ErrorKind::AlreadyExists {
        ("a file that is not a socket is in its place", "remove the file, or choose another path")
    } else {
        return problem(address, error, "check the address");
    };
    problem(address, cause, remedy)
}

fn problem(address: &Address, cause: impl fmt::Display, remedy: &str) -> Problem {
    Problem { place: format!("listener {address}"), cause: cause.to_string(), remedy: remedy.into() }
}

impl FromStr for Address {
    type Err = NotAnAddress;
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() { Ok(Address::Unix(path)) } else { Err(NotAnAddress) };
        }
        if let Some(name) = text.strip_prefix("fd:") {
            return if name.is_empty() { Err(NotAnAddress) } else { Ok(Address::Inherited(name.into())) };
        }
        if let Some(port) = text.strip_prefix(':') {
            return port.parse().map(Address::Any).map_err(|_| NotAnAddress);
        }
        text.parse().map(Address::Ip).map_err(|_| NotAnAddress)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Any(port) => write!(f, ":{port}"),
            Address::Ip(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Inherited(name) => write!(f, "fd:{name}"),
        }
    }
}

/// An address that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnAddress;

impl fmt::Display for NotAnAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "expected an address such as \":443\", \"127.0.0.1:8080\", \"[::1]:8080\", \"unix:/run/palisade/http.sock\" or \"fd:NAME\"",
        )
    }
}

impl std::error::Error for NotAnAddress {}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

fn yes() -> bool {
    true
}

fn backlog() -> u32 {
    4096
}

/// Unsent bytes above which the kernel calls a socket not writable: what a slow reader may keep in the kernel beyond its window.
const NOT_SENT: u32 = 128 * 1024;

/// A peer that vanished without a word is noticed after 2 minutes, also where no deadline runs (an open WebSocket).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, process::Command};

    use super::*;

    fn config(address: &str) -> Config {
        toml_like(&format!(r#"{{"address":"{address}","protocol":"http"}}"#))
    }

    fn toml_like(json: &str) -> Config {
        serde_json::from_str(json).unwrap()
    }

    fn bind(address: &str) -> Result<Bound, Problem> {
        Bound::bind(&config(address), &mut Inherited::default())
    }

    #[test]
    fn addresses_are_read_and_printed() {
        for text in [":443", "0.0.0.0:443", "[::]:443", "unix:/run/x.sock", "fd:https"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for bad in ["", "443", ":", ":x", ":65536", "localhost:80", "unix:", "unix:x.sock", "fd:", "[::]", "0.0.0.0"] {
            assert_eq!(bad.parse::<Address>(), Err(NotAnAddress), "{bad}");
        }
    }

    #[test]
    fn a_listener_has_hardened_defaults_and_no_unknown_keys() {
        let config = config(":443");
        assert!(config.http2 && config.backlog == 4096 && config.proxy_protocol == ProxyProtocol::Off);
        assert!(serde_json::from_str::<Config>(r#"{"address":":1","protocol":"http","http3":true}"#).is_err());
    }

    #[test]
    fn accepted_sockets_inherit_the_options_of_the_listener() {
        let bound = bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(bound.local_addr().unwrap()).unwrap();
        let Listening::Tcp(listener) = &bound.socket else { panic!("not TCP") };
        listener.set_nonblocking(false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().unwrap());
        assert_eq!(accepted.tcp_notsent_lowat().unwrap(), NOT_SENT);
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
    }

    #[test]
    fn a_port_alone_listens_on_both_families() {
        let bound = bind(":0").unwrap();
        let port = bound.local_addr().unwrap().port();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        if bound.local_addr().unwrap().is_ipv6() {
            assert!(TcpStream::connect((Ipv6Addr::LOCALHOST, port)).is_ok());
        }
    }

    #[test]
    fn an_address_in_use_is_named_with_its_remedy() {
        let first = bind("127.0.0.1:0").unwrap();
        let address = first.local_addr().unwrap().to_string();
        let problem = bind(&address).unwrap_err();
        assert!(problem.place.contains(&address) && problem.cause.contains("another process") && problem.remedy.contains("ss -ltnpx"));
        assert!(bind("192.0.2.1:0").unwrap_err().cause.contains("no interface"));
    }

    #[test]
    fn a_unix_socket_has_mode_0660_and_replaces_a_stale_one_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("http.sock");
        let address = format!("unix:{}", path.display());
        let first = bind(&address).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(bind(&address).unwrap_err().cause.contains("another process"));
        drop(first);
        drop(bind(&address).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(bind(&address).unwrap_err().cause.contains("not a socket"));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn tls_on_a_unix_socket_is_refused() {
        let config = toml_like(r#"{"address":"unix:/x","protocol":"https"}"#);
        assert!(Bound::bind(&config, &mut Inherited::default()).unwrap_err().cause.contains("TLS"));
    }

    #[test]
    fn a_socket_from_systemd_is_taken_by_name_or_by_address() {
        for address in ["name", "address"] {
            let socket = TcpListener::bind("127.0.0.1:0").unwrap();
            let local = socket.local_addr().unwrap().to_string();
            let wanted = if address == "name" { "fd:https".to_owned() } else { local.clone() };
            let run = r#"exec 3<&0; LISTEN_PID=${PID:-$$} LISTEN_FDS=1 LISTEN_FDNAMES=https exec "$0" --exact --ignored \
                accept::listener::tests::child_of_systemd"#;
            for (pid, expected) in [(None, true), (Some("1"), false)] {
                let mut child = Command::new("sh");
                child.arg("-c").arg(run).arg(std::env::current_exe().unwrap());
                child.env("WANTED", &wanted).env("LOCAL", &local).stdin(std::os::fd::OwnedFd::from(socket.try_clone().unwrap()));
                if let Some(pid) = pid {
                    child.env("PID", pid);
                }
                let output = child.output().unwrap();
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(text.contains("1 passed") == expected, "{address} {pid:?}: {text}");
            }
        }
    }

    #[test]
    #[ignore = "started by a_socket_from_systemd_is_taken_by_name_or_by_address in a process of its own"]
    fn child_of_systemd() {
        let mut inherited = Inherited::take().unwrap();
        assert_eq!(inherited.unused().collect::<Vec<_>>(), ["https"]);
        let bound = Bound::bind(&config(&std::env::var("WANTED").unwrap()), &mut inherited).unwrap();
        assert_eq!(bound.local_addr().unwrap().to_string(), std::env::var("LOCAL").unwrap());
        assert_eq!(inherited.unused().count(), 0);
    }
}
