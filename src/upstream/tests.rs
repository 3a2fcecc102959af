//! What goes out, what comes in: against scripted sockets and against real Pumas.

use std::{
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};
use tower_service::Service;

use super::{Answer, Config, Puma, connect::Address};
use crate::{
    accept::client::{Client, ClientKey},
    http::arrival::{Arrival, Names, Notes},
    layers::{
        buffer::{Complete, Content},
        canonical::Canonical,
        in_flight,
        slots::{Ask, Lane, Slots},
    },
    refusal::Refusal,
    units::{Deadline, OneOrMany},
};

mod hostile;
mod ordinary;
mod overload;
mod real;
mod restarts;

/// A way to Puma with its slots.
#[derive(Clone)]
struct Way {
    puma: Puma,
    slots: Slots,
}

impl Way {
    fn new(config: Config) -> Self {
        let slots = Slots::new(in_flight::Config::default().policy(config.hold_on_refused.get()));
        Way { puma: Puma::start(config, slots.clone()), slots }
    }

    /// Sends a request, once there is a slot.
    async fn ask(&self, head: &str, body: &[u8]) -> Result<Response<Answer>, Refusal> {
        let ask = Ask { client: ClientKey::of(Client::local().ip), lane: Lane::Normal, class: 0, memory: 0 };
        let slot = match self.slots.try_take(&ask) {
            Some(slot) => slot,
            None => self.slots.enqueue(ask).unwrap().slot().await.map_err(|_| Refusal::UpstreamRefused)?,
        };
        let content = if body.is_empty() { Content::None } else { Content::Memory(Bytes::copy_from_slice(body).into()) };
        let mut complete = Complete::for_test(content);
        complete.admit(slot);
        let mut request = Request::new(Canonical::forged(head, complete));
        request.extensions_mut().insert(arrival());
        self.puma.clone().call(request).await
    }

    /// The status and the whole body.
    async fn fetch(&self, head: &str, body: &[u8]) -> Result<(u16, Bytes), Refusal> {
        let answer = self.ask(head, body).await?;
        Ok((answer.status().as_u16(), answer.into_body().collect().await?.to_bytes()))
    }

    async fn get(&self, path: &str) -> Result<(u16, Bytes), Refusal> {
        self.fetch(&format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n"), b"").await
    }

    async fn post(&self, path: &str, body: &[u8]) -> Result<(u16, Bytes), Refusal> {
        self.fetch(&format!("POST {path} HTTP/1.1\r\nHost: app\r\nContent-Length: {}\r\n\r\n", body.len()), body).await
    }

    /// Until no slot is taken, or a deadline.
    async fn all_slots_free(&self) -> bool {
        let end = Instant::now() + Duration::from_secs(10);
        while self.slots.figures().in_flight > 0 {
            if Instant::now() > end {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }
}

fn arrival() -> Arrival {
    let mut notes = Notes::new(Instant::now());
    notes.at = SystemTime::now();
    Arrival { client: Arc::new(Client::local()), target: Bytes::new(), notes: Arc::new(notes), sent: Names::ANY }
}

fn config(address: Address) -> Config {
    Config { address: OneOrMany(vec![address]), response_timeout: Deadline::seconds(10), ..Config::default() }
}

/// What a scripted Puma says to a request, and what it does then.
#[derive(Clone)]
enum Say {
    /// Says it and waits for the next request.
    Keep(Vec<u8>),
    /// Says it and closes.
    Close(Vec<u8>),
    /// Says it and neither closes nor reads.
    Hang(Vec<u8>),
    /// Says it before the request has come.
    Early(Vec<u8>),
    /// Closes while the request is unread.
    Unread,
}

/// A Puma that says what it was told, request by request, over whatever connections.
struct Scripted {
    address: Address,
    requests: Seen,
    _folder: tempfile::TempDir,
}

impl Scripted {
    fn new(script: Vec<Say>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("puma.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let script = Arc::new(Mutex::new(script.into_iter().collect::<std::collections::VecDeque<_>>()));
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                tokio::spawn(converse(stream, connection, Arc::clone(&script), Arc::clone(&seen)));
            }
        });
        Scripted { address: Address::Unix(path), requests, _folder: folder }
    }

    fn say(bytes: &[u8]) -> Self {
        Scripted::new(vec![Say::Close(bytes.to_vec())])
    }

    /// The connections, by number, on which requests came, in their order.
    fn connections(&self) -> Vec<usize> {
        self.requests.lock().unwrap().iter().map(|(connection, _)| *connection).collect()
    }

    fn request(&self, index: usize) -> String {
        String::from_utf8_lossy(&self.requests.lock().unwrap()[index].1).into_owned()
    }
}

/// Requests, and the number of the connection that each came on.
type Seen = Arc<Mutex<Vec<(usize, Vec<u8>)>>>;

type Script = Arc<Mutex<std::collections::VecDeque<Say>>>;

async fn converse(mut stream: UnixStream, connection: usize, script: Script, seen: Seen) -> io::Result<()> {
    let early = matches!(script.lock().unwrap().front(), Some(Say::Early(_) | Say::Unread));
    if early {
        let say = script.lock().unwrap().pop_front();
        stream.readable().await?;
        if let Some(Say::Early(bytes)) = say {
            let mut some = [0; 16];
            stream.read_exact(&mut some).await?;
            stream.write_all(&bytes).await?;
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        return Ok(());
    }
    loop {
        let request = read_request(&mut stream).await?;
        seen.lock().unwrap().push((connection, request));
        let say = script.lock().unwrap().pop_front();
        match say {
            Some(Say::Keep(bytes)) => stream.write_all(&bytes).await?,
            Some(Say::Close(bytes)) => return stream.write_all(&bytes).await,
            Some(Say::Hang(bytes)) => {
                stream.write_all(&bytes).await?;
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
            Some(Say::Early(_) | Say::Unread) | None => return Ok(()),
        }
    }
}

/// One request with its declared body.
async fn read_request(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    loop {
        if let Some(end) = memchr::memmem::find(&request, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.trim().parse::<usize>().ok());
            if request.len() >= end + 4 + length.unwrap_or(0) {
                return Ok(request);
            }
        }
        if stream.read_buf(&mut request).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}
