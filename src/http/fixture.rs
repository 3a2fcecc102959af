//! A connection with a scripted stack behind it, for the tests of the two drivers.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::mpsc,
    task::JoinHandle,
};

use super::{
    Site, Sites,
    arrival::Arrival,
    body::{Absorb, Received, Source},
    one, two,
};
use crate::{
    accept::{
        beat::Sweep,
        client::Client,
        pace::{Rates, Timeouts},
        stream::Stream,
    },
    guard::Limits,
    layers::{ban::Bans, client_address::TrustedProxies},
    log::{Config, End, Format, Recorder, Settle},
    metrics::Metrics,
    refusal::Refusal,
    units::{ByteRate, Deadline},
};

/// What a scripted application answers: pieces as they are sent, or an error in their middle.
#[derive(Debug)]
pub struct Script {
    pieces: mpsc::UnboundedReceiver<Result<Bytes, Refusal>>,
    length: Option<u64>,
    pub ends: Arc<Mutex<Vec<End>>>,
}

pub type Answer = Pin<Box<dyn Future<Output = Response<Script>> + Send>>;
type App = Arc<dyn Fn(Request<Received>) -> Answer + Send + Sync>;

/// The stack: notes what it is asked and answers by the script.
#[derive(Clone)]
pub struct Stack {
    app: App,
    pub asked: Arc<Mutex<Vec<String>>>,
}

/// Both ends of a connection.
pub struct Bench {
    pub client: UnixStream,
    pub sites: Arc<Sites<Stack>>,
    pub sweep: Arc<Sweep>,
    pub asked: Arc<Mutex<Vec<String>>>,
    pub task: JoinHandle<()>,
    ticker: JoinHandle<()>,
}

impl Script {
    /// A body of these pieces, whose length is known or not.
    pub fn of(pieces: &[&'static str], is_known: bool) -> Self {
        let (sender, body) = Self::open(is_known.then(|| pieces.iter().map(|p| p.len() as u64).sum()));
        pieces.iter().for_each(|piece| sender.send(Ok(Bytes::from_static(piece.as_bytes()))).unwrap());
        body
    }

    /// A body that is still being written.
    pub fn open(length: Option<u64>) -> (mpsc::UnboundedSender<Result<Bytes, Refusal>>, Self) {
        let (sender, pieces) = mpsc::unbounded_channel();
        (sender, Script { pieces, length, ends: Arc::default() })
    }
}

impl Source for Script {}

impl Body for Script {
    type Data = Bytes;
    type Error = Refusal;
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        self.pieces.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
    fn is_end_stream(&self) -> bool {
        self.pieces.is_closed() && self.pieces.is_empty()
    }
    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Absorb for Script {
    fn poll_absorb(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut Bytes) {}
}

impl Settle for Script {
    fn settle(self: Pin<&mut Self>, end: End) {
        self.ends.lock().unwrap().push(end);
    }
}

impl tower_service::Service<Request<Received>> for Stack {
    type Response = Response<Script>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Script>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Received>) -> Self::Future {
        let target = request.extensions().get::<Arrival>().unwrap().target.clone();
        self.asked.lock().unwrap().push(format!("{} {}", request.method(), String::from_utf8_lossy(&target)));
        let answer = (self.app)(request);
        Box::pin(async move { Ok(answer.await) })
    }
}

/// Deadlines that tests can wait for.
pub fn quick() -> Timeouts {
    let ms = Deadline::millis;
    Timeouts { header: ms(300), body_stall: ms(300), write_stall: ms(300), idle: ms(300), tunnel_idle: ms(300), ..Timeouts::default() }
}

impl Bench {
    /// HTTP/1, with these deadlines.
    pub fn one<F>(timeouts: Timeouts, app: impl Fn(Request<Received>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Script>> + Send + 'static,
    {
        Self::new(timeouts, app, false)
    }

    /// HTTP/2, with these deadlines.
    pub fn two<F>(timeouts: Timeouts, app: impl Fn(Request<Received>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Script>> + Send + 'static,
    {
        Self::new(timeouts, app, true)
    }

    fn new<F>(timeouts: Timeouts, app: impl Fn(Request<Received>) -> F + Send + Sync + 'static, is_two: bool) -> Self
    where
        F: Future<Output = Response<Script>> + Send + 'static,
    {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stack = Stack { app: Arc::new(move |request| Box::pin(app(request))), asked: Arc::clone(&asked) };
        let log = Config { access: Format::Off, ..Config::default() };
        let grace = timeouts.write_stall;
        let sites = Sites::new(Site {
            limits: Limits::default(),
            tunnel_idle: timeouts.tunnel_idle,
            tunnel_spread: std::time::Duration::ZERO,
            timeouts,
            rates: Rates { write_min: ByteRate(500), body_min: ByteRate(500), grace },
            stack,
            recorder: Recorder::new(&log, Arc::new(Metrics::new("", "").unwrap())).unwrap(),
            overload: crate::overload::Overload::new(crate::overload::Config::default()),
            bans: Arc::new(Bans::new(Vec::new(), TrustedProxies::default())),
        });
        let sweep = Sweep::new();
        let (client, far) = UnixStream::pair().unwrap();
        let beat = sweep.enrol(u64::MAX);
        let (stream, site) = (Stream::of_unix(far), Arc::clone(&sites));
        let who = Arc::new(Client::local());
        let task =
            if is_two { tokio::spawn(two::serve(site, stream, who, beat)) } else { tokio::spawn(one::serve(site, stream, who, beat)) };
        let ticking = Arc::clone(&sweep);
        let ticker = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                ticking.tick();
            }
        });
        Bench { client, sites, sweep, asked, task, ticker }
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.client.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads until `end` has come; everything so far.
    pub async fn read_to(&mut self, end: &str) -> String {
        let mut all = Vec::new();
        let read = async {
            while !all.windows(end.len()).any(|part| part == end.as_bytes()) {
                let n = self.client.read_buf(&mut all).await.unwrap();
                assert!(n > 0, "it ended with {:?}", String::from_utf8_lossy(&all));
            }
        };
        let came = tokio::time::timeout(WAIT, read).await;
        assert!(came.is_ok(), "{end:?} never came, but {:?}", String::from_utf8_lossy(&all));
        String::from_utf8(all).unwrap()
    }

    /// Reads to the end of the connection.
    pub async fn read_all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        match tokio::time::timeout(WAIT, self.client.read_to_end(&mut all)).await {
            Ok(Ok(_)) => all,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => all,
            Ok(Err(error)) => panic!("{error}"),
            Err(_) => panic!("it does not end: {:?}", String::from_utf8_lossy(&all)),
        }
    }

    pub async fn read_all_text(&mut self) -> String {
        String::from_utf8(self.read_all().await).unwrap()
    }

    /// Waits for the end of the server's side.
    pub async fn ended(&mut self) {
        tokio::time::timeout(WAIT, &mut self.task).await.expect("the connection does not end").unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.ticker.abort();
        self.task.abort();
    }
}

/// The longest wait of any test.
pub const WAIT: Duration = Duration::from_secs(10);
