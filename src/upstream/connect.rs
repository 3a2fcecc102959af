//! Where Puma listens, and connections to there.

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    str::FromStr,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use rustix::net::Shutdown;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready},
    net::{TcpStream, UnixStream},
};

/// A place to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// A unix socket; `*` in the last part of its path stands for several.
    Unix(PathBuf),
}

/// A text that names no address. The value is not repeated: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAddress;

/// A connection to Puma.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP, without Nagle's delay.
    Tcp(TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
}

impl Address {
    /// Connects within the deadline. A unix socket whose backlog is full is tried again until then.
    pub async fn connect(&self, deadline: Duration) -> io::Result<Stream> {
        let connect = async {
            match self {
                Address::Tcp(address) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    Ok(Stream::Tcp(stream))
                }
                Address::Unix(path) => loop {
                    match UnixStream::connect(path).await {
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(BACKLOG_PAUSE).await,
                        other => return other.map(Stream::Unix),
                    }
                },
            }
        };
        tokio::time::timeout(deadline, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// The addresses that it stands for now, in the order of the numbers in their names.
    pub fn expand(&self) -> Vec<Address> {
        let Address::Unix(pattern) = self else { return vec![self.clone()] };
        let name = pattern.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let Some((before, after)) = name.split_once('*') else { return vec![self.clone()] };
        let folder = pattern.parent().unwrap_or(Path::new("."));
        let matches = |candidate: &str| {
            candidate.len() >= before.len().saturating_add(after.len()) && candidate.starts_with(before) && candidate.ends_with(after)
        };
        let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|candidate| matches(candidate))
            .map(|candidate| folder.join(candidate))
            .collect();
        found.sort_by_key(|path| (number_of(path), path.clone()));
        found.into_iter().map(Address::Unix).collect()
    }

    /// The index of Puma's worker that a socket belongs to, where its name ends in one: `w3.sock`.
    pub fn worker_index(&self) -> Option<u32> {
        match self {
            Address::Tcp(_) => None,
            Address::Unix(path) => number_of(path),
        }
    }

    /// On this machine the kernel resets a connection only while bytes of ours are unread, and closes it otherwise. Puma
    /// reads a request whole before it executes it, so a reset says that it did not: a request on a connection that was just
    /// closing is known not to have been executed. A remote reset may be anybody's. The connection itself cannot be asked: after
    /// a reset it has forgotten its other end.
    pub fn reset_means_unread(&self) -> bool {
        match self {
            Address::Tcp(address) => address.ip().is_loopback(),
            Address::Unix(_) => true,
        }
    }

    /// It stands for sockets that may appear later.
    pub fn is_pattern(&self) -> bool {
        match self {
            Address::Tcp(_) => false,
            Address::Unix(path) => path.to_string_lossy().contains('*'),
        }
    }
}

/// The number at the end of a file's name, before its extension.
fn number_of(path: &Path) -> Option<u32> {
    let stem = path.file_stem()?.to_str()?;
    let name = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    stem.get(name.len()..)?.parse().ok()
}

impl Stream {
    /// Reads what is there, never waits.
    pub fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(s) => s.try_read(into),
            Stream::Unix(s) => s.try_read(into),
        }
    }

    /// Whether there may be something to read.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(s) => s.poll_read_ready(cx),
            Stream::Unix(s) => s.poll_read_ready(cx),
        }
    }

    /// Neither byte nor end is there to read, as far as the runtime has heard: the connection is as it was left.
    pub fn is_quiet(&self) -> bool {
        matches!(self.try_read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    /// Tells Puma that nothing more will be sent.
    pub fn end_writing(&self) {
        self.shutdown(Shutdown::Write);
    }

    /// Makes Puma's next write fail, and returns once Puma has closed its end. Only a unix socket can show that; over TCP
    /// the connection must be dropped instead.
    pub async fn refuse_reading(&self) {
        let Stream::Unix(stream) = self else { return };
        self.shutdown(Shutdown::Read);
        loop {
            match stream.ready(Interest::WRITABLE).await {
                Ok(state) if closed(state) => return,
                Ok(_) => {
                    // Forget that it is writable: the next event is the hang-up.
                    let forget = stream.try_io(Interest::WRITABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
                    debug_assert!(forget.is_err(), "the closure never succeeds");
                }
                Err(_) => return,
            }
        }
    }

    /// Puma had closed before our bytes came: behind its FIN a reset shows in the socket's error alone, reads just end. The
    /// reset may come after the end (in 18 of 100 cases on a quiet machine, and more than 0.1 s late on a starved one). So our
    /// end is closed as well: then the connection is over once all was acknowledged or once it was reset.
    pub async fn was_closed_before(&self) -> bool {
        let Stream::Tcp(stream) = self else { return false };
        self.end_writing();
        let end = Instant::now() + LONGEST_GOODBYE;
        while stream.peer_addr().is_ok() && Instant::now() < end {
            tokio::time::sleep(GOODBYE_PAUSE).await;
        }
        stream.take_error().is_ok_and(|error| error.is_some())
    }

    fn shutdown(&self, how: Shutdown) {
        // It fails only where the other end is gone already, which the next read shows.
        match self {
            Stream::Tcp(s) => rustix::net::shutdown(s, how).unwrap_or_default(),
            Stream::Unix(s) => rustix::net::shutdown(s, how).unwrap_or_default(),
        }
    }
}

fn closed(state: Ready) -> bool {
    state.is_write_closed() || state.is_error()
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Stream::Unix(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_write(cx, bytes),
            Stream::Unix(s) => Pin::new(s).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_write_vectored(cx, slices),
            Stream::Unix(s) => Pin::new(s).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = match self.get_mut() {
            Stream::Tcp(s) => ready!(Pin::new(s).poll_shutdown(cx)),
            Stream::Unix(s) => ready!(Pin::new(s).poll_shutdown(cx)),
        };
        Poll::Ready(done)
    }
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(BadAddress) } else { Ok(Address::Unix(PathBuf::from(path))) };
        }
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("tcp://")).unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let rest = if rest.starts_with("localhost:") { rest.replacen("localhost", "127.0.0.1", 1) } else { rest.to_owned() };
        rest.parse().map(Address::Tcp).map_err(|_| BadAddress)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "http://{address}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for BadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected \"http://IP:PORT\" or \"unix:/path\" (with * in the file's name for several)")
    }
}

impl std::error::Error for BadAddress {}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// On one machine it takes microseconds, but a lost segment is sent again after 0.2 s, 0.4 s and so on.
const LONGEST_GOODBYE: Duration = Duration::from_secs(5);
const GOODBYE_PAUSE: Duration = Duration::from_millis(1);
/// Puma's backlog is full: it is alive and busy.
const BACKLOG_PAUSE: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_in_its_four_spellings() {
        let tcp = Address::Tcp("127.0.0.1:3000".parse().unwrap());
        for text in ["http://127.0.0.1:3000", "127.0.0.1:3000", "tcp://127.0.0.1:3000", "http://localhost:3000/"] {
            assert_eq!(text.parse(), Ok(tcp.clone()), "{text}");
        }
        let unix = Address::Unix("/run/w0.sock".into());
        assert_eq!("unix:/run/w0.sock".parse(), Ok(unix.clone()));
        assert_eq!("unix:///run/w0.sock".parse(), Ok(unix.clone()));
        assert_eq!(unix.to_string().parse(), Ok(unix));
        for text in ["", "unix:", "https://127.0.0.1:1", "example.com:80", "127.0.0.1", "127.0.0.1:99999"] {
            assert_eq!(text.parse::<Address>(), Err(BadAddress), "{text}");
        }
    }

    #[test]
    fn a_pattern_stands_for_its_sockets_in_the_order_of_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["w10.sock", "w2.sock", "w0.sock", "other.sock", "w.txt"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let pattern: Address = format!("unix:{}/w*.sock", folder.path().display()).parse().unwrap();
        assert!(pattern.is_pattern());
        let found = pattern.expand();
        assert_eq!(found.iter().map(Address::worker_index).collect::<Vec<_>>(), [Some(0), Some(2), Some(10)]);
    }

    #[tokio::test]
    async fn a_quiet_connection_is_told_from_a_closed_one() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = Stream::Unix(ours);
        assert!(ours.is_quiet());
        drop(theirs);
        tokio::time::timeout(Duration::from_secs(2), std::future::poll_fn(|cx| ours.poll_read_ready(cx))).await.unwrap().unwrap();
        assert!(!ours.is_quiet());
    }

    #[tokio::test]
    async fn refused_reading_ends_when_the_other_end_closes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = Stream::Unix(ours);
        let mut refused = Box::pin(ours.refuse_reading());
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut refused).await.is_err());
        assert_eq!(theirs.try_write(b"event").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        drop(theirs);
        tokio::time::timeout(Duration::from_secs(2), refused).await.unwrap();
    }
}
