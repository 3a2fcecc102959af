//! A raw client: every byte and every pause is the test's own.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName},
};
use socket2::{Domain, SockRef, Socket, Type};

use super::{
    PATIENCE,
    answer::{Answer, Step, read},
};

/// One connection.
#[derive(Debug)]
pub struct Client {
    line: Line,
    /// Bytes that were received and not yet read as an answer.
    held: Vec<u8>,
    ended: bool,
}

#[derive(Debug)]
enum Line {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In order (FIN).
    Finished,
    /// Reset, or cut without TLS's own closing words.
    Cut,
}

impl Client {
    pub fn tcp(address: SocketAddr) -> Client {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap_or_else(|e| panic!("connect to {address}: {e}"));
        stream.set_nodelay(true).unwrap();
        Client::over(Line::Tcp(stream))
    }

    /// From an address of 127.0.0.0/8 of the test's choice: another client to every limit.
    pub fn tcp_from(source: [u8; 4], address: SocketAddr) -> Client {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
        socket.connect_timeout(&address.into(), PATIENCE).unwrap_or_else(|e| panic!("connect from {source:?}: {e}"));
        socket.set_tcp_nodelay(true).unwrap();
        Client::over(Line::Tcp(socket.into()))
    }

    /// With a small receive buffer, so that the server notices at once that nobody reads.
    pub fn tcp_narrow(source: [u8; 4], address: SocketAddr) -> Client {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
        socket.connect_timeout(&address.into(), PATIENCE).unwrap_or_else(|e| panic!("connect from {source:?}: {e}"));
        Client::over(Line::Tcp(socket.into()))
    }

    pub fn unix(path: &Path) -> Client {
        Client::over(Line::Unix(UnixStream::connect(path).unwrap_or_else(|e| panic!("connect to {}: {e}", path.display()))))
    }

    /// TLS with ALPN http/1.1; trusts `root` and nothing else.
    pub fn tls(address: SocketAddr, name: &str, root: &CertificateDer<'static>) -> Client {
        Client::tls_over(TcpStream::connect_timeout(&address, PATIENCE).unwrap(), name, root)
    }

    /// The same with a small receive buffer, so that the server notices at once that nobody reads.
    pub fn tls_narrow(address: SocketAddr, name: &str, root: &CertificateDer<'static>) -> Client {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect_timeout(&address.into(), PATIENCE).unwrap();
        Client::tls_over(socket.into(), name, root)
    }

    fn tls_over(tcp: TcpStream, name: &str, root: &CertificateDer<'static>) -> Client {
        tcp.set_nodelay(true).unwrap();
        let session = ClientConnection::new(tls_config(root, &[b"http/1.1"]), ServerName::try_from(name.to_owned()).unwrap()).unwrap();
        Client::over(Line::Tls(Box::new(StreamOwned::new(session, tcp))))
    }

    fn over(line: Line) -> Client {
        let client = Client { line, held: Vec::new(), ended: false };
        client.patience(PATIENCE);
        client
    }

    /// Sends it all, or fails.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Client {
        self.try_send(bytes).unwrap_or_else(|e| panic!("send: {e}"));
        self
    }

    /// Sends it, where the other side may already have closed.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        let out: &mut dyn Write = match &mut self.line {
            Line::Tcp(stream) => stream,
            Line::Unix(stream) => stream,
            Line::Tls(stream) => stream.as_mut(),
        };
        out.write_all(bytes.as_ref())?;
        out.flush()
    }

    /// Sends piece by piece with a pause after each.
    pub fn send_pieces<'a>(&mut self, pieces: impl IntoIterator<Item = &'a [u8]>, pause: Duration) -> &mut Client {
        for piece in pieces {
            self.send(piece);
            thread::sleep(pause);
        }
        self
    }

    /// Reads one answer to `method`, or fails.
    pub fn answer_to(&mut self, method: &str) -> Answer {
        self.try_answer(method)
            .unwrap_or_else(|| panic!("the connection ended without an answer; held: {:?}", String::from_utf8_lossy(&self.held)))
    }

    pub fn answer(&mut self) -> Answer {
        self.answer_to("GET")
    }

    /// Reads one answer; none when the connection ends before it is whole.
    pub fn try_answer(&mut self, method: &str) -> Option<Answer> {
        let start = Instant::now();
        loop {
            if let Step::Whole(answer, taken) = read(&self.held, method, self.ended) {
                self.held.drain(..taken);
                return Some(answer);
            }
            if self.ended {
                return None;
            }
            assert!(start.elapsed() < PATIENCE * 3, "no answer; held: {:?}", String::from_utf8_lossy(&self.held));
            self.fill();
        }
    }

    /// Sends a request and reads its answer.
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        let method = String::from_utf8_lossy(request.as_ref().split(|b| *b == b' ').next().unwrap()).into_owned();
        self.send(request);
        self.answer_to(&method)
    }

    pub fn get(&mut self, target: &str) -> Answer {
        self.ask(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    /// Reads until `needle` has come; what came before and with it stays held.
    pub fn wait_for(&mut self, needle: &[u8]) -> Duration {
        let start = Instant::now();
        while super::answer::find(&self.held, needle).is_none() {
            assert!(!self.ended, "ended before {:?}", String::from_utf8_lossy(needle));
            self.fill();
        }
        start.elapsed()
    }

    /// Takes exactly `count` bytes as they are.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        while self.held.len() < count {
            assert!(!self.ended, "the connection ended");
            self.fill();
        }
        self.held.drain(..count).collect()
    }

    /// Reads to the end of the connection.
    pub fn rest(&mut self) -> (Vec<u8>, End) {
        let mut end = End::Finished;
        while !self.ended {
            end = self.fill().unwrap_or(end);
        }
        (std::mem::take(&mut self.held), end)
    }

    /// Waits for the end of the connection and says how long it took; fails after `limit`. What arrives is held.
    pub fn closed_within(&mut self, limit: Duration) -> Duration {
        let start = Instant::now();
        while !self.ended {
            let left = limit.checked_sub(start.elapsed()).unwrap_or_else(|| panic!("still open after {limit:?}"));
            self.patience(left.max(Duration::from_millis(1)));
            self.fill_or_wait();
        }
        self.patience(PATIENCE);
        start.elapsed()
    }

    /// Whether the connection is still open and silent after `time`.
    pub fn silent_for(&mut self, time: Duration) -> bool {
        self.patience(time);
        let before = self.held.len();
        self.fill_or_wait();
        self.patience(PATIENCE);
        !self.ended && self.held.len() == before
    }

    pub fn half_close(&mut self) {
        match &mut self.line {
            Line::Tcp(stream) => stream.shutdown(Shutdown::Write).unwrap(),
            Line::Unix(stream) => stream.shutdown(Shutdown::Write).unwrap(),
            Line::Tls(stream) => {
                stream.conn.send_close_notify();
                stream.flush().unwrap();
            }
        }
    }

    /// Ends with a reset instead of FIN.
    pub fn reset(self) {
        if let Line::Tcp(stream) = &self.line {
            SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }

    fn patience(&self, limit: Duration) {
        match &self.line {
            Line::Tcp(stream) => stream.set_read_timeout(Some(limit)),
            Line::Unix(stream) => stream.set_read_timeout(Some(limit)),
            Line::Tls(stream) => stream.sock.set_read_timeout(Some(limit)),
        }
        .unwrap();
    }

    fn fill(&mut self) -> Option<End> {
        let (end, waited) = self.read_once();
        assert!(!waited, "nothing came within {PATIENCE:?}; held: {:?}", String::from_utf8_lossy(&self.held));
        end
    }

    fn fill_or_wait(&mut self) {
        self.read_once();
    }

    fn read_once(&mut self) -> (Option<End>, bool) {
        let mut piece = [0; 65_536];
        let input: &mut dyn Read = match &mut self.line {
            Line::Tcp(stream) => stream,
            Line::Unix(stream) => stream,
            Line::Tls(stream) => stream.as_mut(),
        };
        match input.read(&mut piece) {
            Ok(0) => {
                self.ended = true;
                (Some(End::Finished), false)
            }
            Ok(count) => {
                self.held.extend_from_slice(&piece[..count]);
                (None, false)
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => (None, true),
            Err(e) if e.kind() == ErrorKind::Interrupted => (None, false),
            Err(_) => {
                self.ended = true;
                (Some(End::Cut), false)
            }
        }
    }
}

/// A client configuration that trusts `root` and offers these protocols.
pub fn tls_config(root: &CertificateDer<'static>, protocols: &[&[u8]]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    Arc::new(config)
}
