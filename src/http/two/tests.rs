use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::oneshot,
};

use super::{
    stream::{self, Front},
    watch::Open,
};
use crate::{
    accept::pace::Timeouts,
    http::{
        arrival::Arrival,
        body::Received,
        fixture::{Bench, Script, Stack, WAIT, quick},
        upgrade::{Far, FarEnd},
    },
    layers::handshake::Extended,
    refusal::Refusal,
    units::Deadline,
};

mod attacks;
mod slow;
mod websocket;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const CALM: u32 = 11;

/// GET / of http://a, from the static table (RFC 7541 appendix A).
const GET: &[u8] = b"\x82\x86\x84\x41\x01a";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn hello(settings: &[u8]) -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, settings)].concat()
}

fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0, u8::try_from(name.len()).unwrap()];
    bytes.extend(name.as_bytes());
    bytes.push(u8::try_from(value.len()).unwrap());
    bytes.extend(value.as_bytes());
    bytes
}

/// Kind, flags, stream and payload of each frame.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut all = Vec::new();
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
        let Some(payload) = bytes.get(9..9 + length) else { break };
        all.push((bytes[3], bytes[4], stream, payload.to_vec()));
        bytes = &bytes[9 + length..];
    }
    all
}

/// The error codes of the GOAWAYs.
fn goaways(bytes: &[u8]) -> Vec<u32> {
    let of = |payload: &[u8]| u32::from_be_bytes(payload[4..8].try_into().unwrap());
    frames(bytes).iter().filter(|(kind, ..)| *kind == GOAWAY).map(|(.., payload)| of(payload)).collect()
}

fn page(text: &'static str) -> Response<Script> {
    Response::new(Script::of(&[text], true))
}

async fn hello_world(_: Request<Received>) -> Response<Script> {
    page("hello")
}

#[tokio::test]
async fn draining_answers_what_is_under_way_and_ends() {
    let (tell, told) = oneshot::channel::<()>();
    let told = Mutex::new(Some(told));
    let mut bench = Bench::two(Timeouts::default(), move |_| {
        let told = told.lock().unwrap().take().unwrap();
        async move {
            told.await.unwrap();
            page("late")
        }
    });
    bench.send(hello(&[])).await;
    bench.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, GET)).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    bench.sites.drain();
    bench.sweep.wake_all();
    tokio::time::sleep(Duration::from_millis(50)).await;
    tell.send(()).unwrap();
    let mut said = Vec::new();
    while !said.windows(4).any(|part| part == b"late") {
        bench.client.read_buf(&mut said).await.unwrap();
    }
    // The client acknowledges the PING of the graceful shutdown.
    let ping = frames(&said).into_iter().find(|(kind, flags, ..)| *kind == PING && *flags == 0).unwrap().3;
    bench.send(frame(PING, 1, 0, &ping)).await;
    bench.ended().await;
    assert_eq!(goaways(&said), [0]);

    let mut unused = Bench::two(Timeouts::default(), hello_world);
    unused.sites.drain();
    unused.sweep.wake_all();
    unused.ended().await;
}

/// A connection has room for a hundred of them.
#[test]
fn a_stream_has_room_for_its_request_and_for_one_stage_of_its_answer() {
    fn size<F>(_: impl FnOnce(Arc<Front<Stack>>, Open, Request<RecvStream>, SendResponse<Bytes>) -> F) -> usize {
        size_of::<F>()
    }
    let stream = size(stream::serve::<Stack, Script>);
    assert!(stream <= size_of::<Request<RecvStream>>() + size_of::<Script>() + 240, "{stream} bytes");
}

#[tokio::test]
async fn what_never_comes_again_does_not_push_out_of_the_table_what_does() {
    let count = std::sync::atomic::AtomicU32::new(0);
    let mut bench = Bench::two(Timeouts::default(), move |_| {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut answer = page("hello");
        let policy = format!("script-src 'nonce-{n:04}'; report-uri /{}", "p".repeat(600));
        for (name, value) in [("x-runtime", format!("0.{n:06}")), ("content-security-policy", policy), ("x-fixed", "f".repeat(200))] {
            answer.headers_mut().insert(name, HeaderValue::from_str(&value).unwrap());
        }
        async move { answer }
    });
    bench.send(hello(&[])).await;
    let (mut lengths, mut said) = (Vec::new(), Vec::new());
    for n in 0..20u32 {
        bench.send(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET)).await;
        while lengths.len() <= n as usize {
            bench.client.read_buf(&mut said).await.unwrap();
            lengths = frames(&said).into_iter().filter(|(kind, ..)| *kind == HEADERS).map(|(.., payload)| payload.len()).collect();
        }
    }
    // The second may have changed, and Date with it.
    assert!(lengths[0] > lengths[1] + 100 && lengths.iter().skip(2).all(|length| *length < lengths[1] + 50), "{lengths:?}");
}

/// Sends requests as hyper's client does.
async fn client(stream: UnixStream) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn an_honest_client_is_served_in_parallel() {
    let mut bench = Bench::two(quick(), |mut request: Request<Received>| async move {
        let mut all = BytesMut::new();
        while std::future::poll_fn(|cx| request.body_mut().poll_append(cx, &mut all)).await.unwrap() {}
        let (sender, script) = Script::open(Some(all.len() as u64));
        sender.send(Ok(all.freeze())).unwrap();
        Response::new(script)
    });
    let (_, spare) = UnixStream::pair().unwrap();
    let sender = client(std::mem::replace(&mut bench.client, spare)).await;
    let sent: Vec<_> = (0..40usize)
        .map(|n| {
            let mut sender = sender.clone();
            tokio::spawn(async move {
                let body = Bytes::from(vec![n as u8; n * 10_000]);
                let request = Request::post("http://a/").body(Full::new(body.clone())).unwrap();
                let response = sender.send_request(request).await.unwrap();
                assert_eq!(response.status(), StatusCode::OK);
                assert!(response.into_body().collect().await.unwrap().to_bytes() == body);
            })
        })
        .collect();
    for task in sent {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn an_answer_that_begins_long_after_the_drain_arrives_whole() {
    let mut bench = Bench::two(quick(), |_| async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let (sender, script) = Script::open(Some(500_000));
        sender.send(Ok(Bytes::from(vec![7; 500_000]))).unwrap();
        Response::new(script)
    });
    let (_, spare) = UnixStream::pair().unwrap();
    let mut sender = client(std::mem::replace(&mut bench.client, spare)).await;
    let request = Request::get("http://a/").body(Full::default()).unwrap();
    let answer = tokio::spawn(sender.send_request(request));
    tokio::time::sleep(Duration::from_millis(50)).await;
    bench.sites.drain();
    bench.sweep.wake_all();
    let response = answer.await.unwrap().unwrap();
    // A client that is busy for a moment.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), 500_000);
    bench.ended().await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_resets_its_stream() {
    let mut bench = Bench::two(Timeouts::default(), |_| async {
        let (sender, script) = Script::open(None);
        sender.send(Ok(Bytes::from_static(b"half"))).unwrap();
        sender.send(Err(Refusal::UpstreamReset)).unwrap();
        Response::new(script)
    });
    let (_, spare) = UnixStream::pair().unwrap();
    let mut sender = client(std::mem::replace(&mut bench.client, spare)).await;
    let request = Request::get("http://a/").body(Full::default()).unwrap();
    // Whether the head or the body tells is a matter of time.
    if let Ok(response) = sender.send_request(request).await {
        assert!(response.into_body().collect().await.is_err());
    }
}

#[tokio::test]
async fn a_body_that_its_client_cancels_is_never_a_whole_one() {
    for reason in [0u32, 8, 1] {
        let ends = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&ends);
        let mut bench = Bench::two(Timeouts::default(), move |mut request: Request<Received>| {
            let seen = Arc::clone(&seen);
            async move {
                let (post, mut all) = (request.method() == "POST", BytesMut::new());
                while let Ok(true) = std::future::poll_fn(|cx| request.body_mut().poll_append(cx, &mut all)).await {}
                if post {
                    seen.lock().unwrap().push(all);
                }
                page("hello")
            }
        });
        // POST / of http://a without a length, half of its body, and then the reset in a read of its own.
        let post = frame(HEADERS, END_HEADERS, 1, b"\x83\x86\x84\x41\x01a");
        bench.send([hello(&[]), post, frame(DATA, 0, 1, b"half")].concat()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        bench.send(frame(RST_STREAM, 0, 1, &reason.to_be_bytes())).await;
        bench.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, GET)).await;
        let mut said = Vec::new();
        while !said.windows(5).any(|part| part == b"hello") {
            assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
        }
        assert_eq!(bench.asked(), ["POST /", "GET /"]);
        assert!(ends.lock().unwrap().is_empty(), "reason {reason}");
    }
}

#[tokio::test]
async fn an_answer_that_stands_still_is_ended_alone() {
    let timeouts = Timeouts { write_stall: Deadline::millis(1000), ..quick() };
    let mut bench = Bench::two(timeouts, |_| async {
        let (sender, script) = Script::open(Some(1_000_000));
        sender.send(Ok(Bytes::from(vec![7; 1_000_000]))).unwrap();
        Response::new(script)
    });
    bench.send(hello(&[0, 4, 0, 0, 0, 0])).await;
    for stream in [1, 3] {
        bench.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, GET)).await;
    }
    let room = [0, 3].map(|stream| frame(WINDOW_UPDATE, 0, stream, &2000u32.to_be_bytes())).concat();
    let (mut said, start) = (Vec::new(), tokio::time::Instant::now());
    let reset = |said: &[u8]| frames(said).into_iter().find(|(kind, ..)| *kind == RST_STREAM);
    let read = |said: &[u8]| frames(said).iter().filter(|(kind, _, stream, _)| (*kind, *stream) == (DATA, 3)).count();
    while reset(&said).is_none() {
        assert!(start.elapsed() < WAIT, "it stands still for ever");
        bench.send(&room).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        bench.client.try_read_buf(&mut said).unwrap_or_default();
    }
    assert!(start.elapsed() >= Duration::from_millis(990));
    let (_, _, stream, reason) = reset(&said).unwrap();
    assert_eq!((stream, reason), (1, 8u32.to_be_bytes().to_vec()), "CANCEL for the one that stood still");
    let before = read(&said);
    bench.send(&room).await;
    while read(&said) == before {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
    assert_eq!(goaways(&said), Vec::<u32>::new());
}

#[tokio::test]
async fn answers_of_one_turn_come_in_one_read() {
    let mut bench = Bench::two(Timeouts::default(), |_| async { Response::new(Script::of(&["0123456789"], true)) });
    let mut bytes = hello(&[]);
    for n in 0..50u32 {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET));
    }
    bench.send(bytes).await;
    let (mut said, mut reads) = (Vec::new(), 0);
    while frames(&said).iter().filter(|(kind, flags, ..)| *kind == DATA && flags & END_STREAM != 0).count() < 50 {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
        said.reserve(64 * 1024);
        reads += 1;
    }
    assert!(reads <= 4, "{reads} reads");
}

#[tokio::test]
async fn early_hints_come_before_the_answer() {
    let mut bench = Bench::two(Timeouts::default(), |request: Request<Received>| async move {
        let links = HeaderMap::from_iter([(header::LINK, HeaderValue::from_static("</a.css>; rel=preload"))]);
        request.extensions().get::<Arrival>().unwrap().notes.hint(links);
        tokio::task::yield_now().await;
        page("late")
    });
    bench.send([hello(&[]), frame(HEADERS, END_HEADERS | END_STREAM, 1, GET)].concat()).await;
    let mut said = Vec::new();
    while !said.windows(4).any(|part| part == b"late") {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
    let heads: Vec<_> = frames(&said).into_iter().filter(|(kind, ..)| *kind == HEADERS).collect();
    assert_eq!(heads.iter().map(|(_, flags, ..)| flags & END_STREAM).collect::<Vec<_>>(), [0, 0]);
    // :status as a literal with the name of index 8, 103 in three bytes or two by Huffman; and then index 8, 200.
    assert_eq!((heads[0].3[0], heads[1].3[0]), (0x48, 0x88));
}
