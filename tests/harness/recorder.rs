//! A byte-exact origin: it keeps what it was sent and answers as it was told. For "what did Puma get, byte for byte".

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::answer::find;

/// The running origin.
#[derive(Debug)]
pub struct Recorder {
    address: SocketAddr,
    log: Arc<Mutex<Log>>,
    stop: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

/// What came in.
#[derive(Debug, Default)]
struct Log {
    /// The bytes of each connection, in the order of their arrival.
    connections: Vec<Vec<u8>>,
    /// Whole requests, in the order of their completion.
    requests: Vec<Vec<u8>>,
}

/// What to answer to each whole request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// 200 with a small body; the connection lives on.
    Fine,
    /// These bytes, then the connection is closed.
    Raw(Vec<u8>),
    /// These bytes, and the connection stays open.
    RawOpen(Vec<u8>),
    /// Nothing at all, for ever.
    Silence,
}

impl Recorder {
    pub fn start() -> Recorder {
        Recorder::replying(Reply::Fine)
    }

    pub fn replying(reply: Reply) -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Log::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (book, flag) = (log.clone(), stop.clone());
        let handle = thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let (book, flag, reply) = (book.clone(), flag.clone(), reply.clone());
                        let index = {
                            let mut log = book.lock().unwrap();
                            log.connections.push(Vec::new());
                            log.connections.len() - 1
                        };
                        thread::spawn(move || serve(stream, index, &book, &flag, &reply));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Recorder { address, log, stop, listener: Some(handle) }
    }

    /// The value for `upstream.address`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Every byte that came, connection by connection; connections that sent nothing are left out.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.log.lock().unwrap().connections.iter().filter(|bytes| !bytes.is_empty()).cloned().collect()
    }

    /// Every whole request.
    pub fn requests(&self) -> Vec<Vec<u8>> {
        self.log.lock().unwrap().requests.clone()
    }

    /// Whether these bytes ever came.
    pub fn got(&self, needle: &[u8]) -> bool {
        self.received().iter().any(|bytes| find(bytes, needle).is_some())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(handle) = self.listener.take() {
            handle.join().ok();
        }
    }
}

fn serve(mut stream: TcpStream, index: usize, book: &Mutex<Log>, stop: &AtomicBool, reply: &Reply) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut pending = Vec::new();
    let mut piece = [0; 16_384];
    while !stop.load(Ordering::Relaxed) {
        let count = match stream.read(&mut piece) {
            Ok(0) => return,
            Ok(count) => count,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => continue,
            Err(_) => return,
        };
        book.lock().unwrap().connections[index].extend_from_slice(&piece[..count]);
        pending.extend_from_slice(&piece[..count]);
        while let Some(length) = whole(&pending) {
            let request: Vec<u8> = pending.drain(..length).collect();
            let head_only = request.starts_with(b"HEAD ");
            book.lock().unwrap().requests.push(request);
            let bytes = match reply {
                Reply::Fine if head_only => b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n".to_vec(),
                Reply::Fine => b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n".to_vec(),
                Reply::Raw(bytes) | Reply::RawOpen(bytes) => bytes.clone(),
                Reply::Silence => continue,
            };
            // The proxy may have given up in between.
            if stream.write_all(&bytes).is_err() || matches!(reply, Reply::Raw(_)) {
                return;
            }
        }
    }
}

/// The length of the first request in `bytes`, once it is whole. A body needs a Content-Length: the proxy owes one.
fn whole(bytes: &[u8]) -> Option<usize> {
    let head = find(bytes, b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")).map_or(0, |v| v.trim().parse().unwrap_or(0));
    (bytes.len() >= head + length).then_some(head + length)
}
