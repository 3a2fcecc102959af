use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::oneshot,
};

use crate::{
    accept::pace::Timeouts,
    http::{
        arrival::Arrival,
        body::Received,
        fixture::{Bench, Script, WAIT, quick},
        upgrade::{Far, FarEnd},
    },
    layers::handshake::Extended,
    refusal::Refusal,
    units::Deadline,
};

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

/// Sends as much as the server takes, then reads what it says to its end.
async fn attack(bench: &mut Bench, bytes: &[u8]) -> Vec<u8> {
    let mut said = Vec::new();
    let (mut read, mut write) = bench.client.split();
    let talk = async {
        let write = async { write.write_all(bytes).await.unwrap_or_default() };
        tokio::join!(write, async { read.read_to_end(&mut said).await.unwrap_or_default() });
    };
    assert!(tokio::time::timeout(WAIT, talk).await.is_ok(), "the connection does not end");
    bench.ended().await;
    said
}

#[tokio::test]
async fn rapid_reset_ends_the_connection_and_reaches_nobody() {
    let mut bench = Bench::two(Timeouts::default(), hello_world);
    let mut bytes = hello(&[]);
    for n in 0..2000u32 {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET));
        bytes.extend(frame(RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes()));
    }
    assert_eq!(goaways(&attack(&mut bench, &bytes).await), [CALM]);
    assert_eq!(bench.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn rapid_reset_in_small_doses_ends_the_same_way() {
    let mut bench = Bench::two(Timeouts::default(), hello_world);
    bench.send(hello(&[])).await;
    for n in 0..300u32 {
        let pair = [frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET), frame(RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes())];
        if bench.client.write_all(&pair.concat()).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(goaways(&bench.read_all().await), [CALM]);
    assert_eq!(bench.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn streams_that_the_client_makes_us_reset_reach_nobody() {
    let mut bench = Bench::two(Timeouts::default(), hello_world);
    let mut bytes = hello(&[]);
    for n in 0..2000u32 {
        bytes.extend(frame(HEADERS, END_HEADERS, 2 * n + 1, GET));
        // RFC 9113 §6.9.1: a window above 2^31-1 is an error of the stream.
        bytes.extend(frame(WINDOW_UPDATE, 0, 2 * n + 1, &0x7fff_ffff_u32.to_be_bytes()));
    }
    assert_eq!(goaways(&attack(&mut bench, &bytes).await), [CALM]);
    assert_eq!(bench.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn frames_that_cost_nothing_are_counted() {
    let open = frame(HEADERS, END_HEADERS, 1, GET);
    let cases = [
        ("settings", frame(SETTINGS, 0, 0, &[])),
        ("ping", frame(PING, 0, 0, &[0; 8])),
        ("priority", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("unknown", frame(0xfa, 0, 1, &[0; 3])),
        ("window update", frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())),
        ("empty data", frame(DATA, 0, 1, &[])),
    ];
    for (name, flood) in cases {
        // Nobody reads the body, so that the stream stays open.
        let mut bench = Bench::two(Timeouts::default(), |request: Request<Received>| async move {
            tokio::time::sleep(WAIT).await;
            drop(request);
            page("late")
        });
        let bytes = [hello(&[]), open.clone(), flood.repeat(6000)].concat();
        assert_eq!(goaways(&attack(&mut bench, &bytes).await), [CALM], "{name}");
        assert!(bench.asked().len() <= 1);
    }
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    for piece in [&b""[..], &b"\x90"[..], &[0x90; 1000][..]] {
        let mut bench = Bench::two(Timeouts::default(), hello_world);
        let mut bytes = [hello(&[]), frame(HEADERS, 0, 1, GET)].concat();
        bytes.extend(frame(CONTINUATION, 0, 1, piece).repeat(5000));
        assert_eq!(goaways(&attack(&mut bench, &bytes).await), [CALM], "{} bytes each", piece.len());
        assert!(bench.asked().is_empty());
    }
}

#[tokio::test]
async fn fields_that_unfold_to_megabytes_reach_nobody() {
    let mut bench = Bench::two(quick(), hello_world);
    // A field of 4000 bytes enters the table, and is named 10,000 times by one byte: 40 MB.
    let mut block = GET.to_vec();
    block.extend(b"\x40\x01b\x7f\xa1\x1e");
    block.extend([b'x'; 4000]);
    block.extend([0xbe; 10_000]);
    let bytes = [hello(&[]), frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)].concat();
    let said = attack(&mut bench, &bytes).await;
    assert!(bench.asked().is_empty());
    let answered = frames(&said).iter().any(|(kind, _, stream, _)| *stream == 1 && matches!(*kind, HEADERS | RST_STREAM));
    assert!(answered || !goaways(&said).is_empty(), "{:?}", frames(&said));
}

#[tokio::test]
async fn a_client_that_gives_no_room_for_its_answers_is_let_go() {
    for window in [0u32, 1] {
        let mut bench = Bench::two(quick(), |_| async { Response::new(Script::of(&["some text", "and more"], true)) });
        let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
        let mut bytes = hello(&settings);
        for n in 0..50u32 {
            bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET));
        }
        let mut said = Vec::new();
        bench.send(bytes).await;
        // Answering PINGs does not save it.
        let end = tokio::time::Instant::now() + WAIT;
        loop {
            assert!(tokio::time::Instant::now() < end, "window {window}: it is still there");
            let wrote = bench.client.write_all(&frame(PING, 1, 0, &[0; 8])).await;
            let read = tokio::time::timeout(Duration::from_millis(400), bench.client.read_buf(&mut said)).await;
            if wrote.is_err() || matches!(read, Ok(Ok(0) | Err(_))) {
                break;
            }
        }
        assert_eq!(bench.asked().len(), 50);
    }
}

#[tokio::test]
async fn an_idle_connection_ends_with_goaway_whatever_it_pings() {
    let mut bench = Bench::two(quick(), hello_world);
    bench.send(hello(&[])).await;
    bench.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, GET)).await;
    let mut said = Vec::new();
    let start = tokio::time::Instant::now();
    while goaways(&said).is_empty() {
        assert!(start.elapsed() < WAIT, "PING keeps it open");
        bench.send(frame(PING, 0, 0, &[1; 8])).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        bench.client.try_read_buf(&mut said).unwrap_or_default();
    }
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(goaways(&said)[0], 0);
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

fn extended(protocol: &str) -> Vec<u8> {
    let fields = [
        (":method", "CONNECT"),
        (":protocol", protocol),
        (":scheme", "https"),
        (":path", "/cable?x=1"),
        (":authority", "a"),
        ("sec-websocket-version", "13"),
    ];
    frame(HEADERS, END_HEADERS, 1, &fields.map(|(name, value)| literal(name, value)).concat())
}

#[tokio::test]
async fn a_websocket_over_http_2_reaches_puma_as_an_upgrade_and_its_101_the_client_as_200() {
    let (mut puma, far) = UnixStream::pair().unwrap();
    let far = Mutex::new(Some(far));
    let marked = Arc::new(Mutex::new(false));
    let seen = Arc::clone(&marked);
    let mut bench = Bench::two(Timeouts::default(), move |request: Request<Received>| {
        *seen.lock().unwrap() = request.extensions().get::<Extended>().is_some() && !request.body().is_declared();
        let far = far.lock().unwrap().take().unwrap();
        async move {
            let mut response = Response::new(Script::of(&[], true));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
            response.headers_mut().insert("sec-websocket-accept", HeaderValue::from_static("x"));
            response.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("actioncable-v1-json"));
            let far = Far { stream: Box::pin(far), early: Bytes::from_static(b"welcome"), place: Box::new(()) };
            response.extensions_mut().insert(FarEnd::new(far));
            response
        }
    });
    bench.send([hello(&[]), extended("websocket")].concat()).await;
    let mut said = Vec::new();
    while !said.windows(7).any(|part| part == b"welcome") {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
    let settings = frames(&said).into_iter().find(|(kind, flags, ..)| *kind == SETTINGS && *flags == 0).unwrap().3;
    assert!(settings.chunks(6).any(|setting| setting == [0, 8, 0, 0, 0, 1]), "the client may use extended CONNECT");
    let head = frames(&said).into_iter().find(|(kind, ..)| *kind == HEADERS).unwrap();
    assert_eq!((head.1 & END_STREAM, head.3[0]), (0, 0x88), ":status 200, and the stream stays open");
    assert_eq!(bench.asked(), ["GET /cable?x=1"]);
    assert!(*marked.lock().unwrap());

    bench.send(frame(DATA, 0, 1, b"ping")).await;
    let mut four = [0; 4];
    puma.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"ping");
    puma.write_all(b"pong").await.unwrap();
    while !said.windows(4).any(|part| part == b"pong") {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
    bench.send(frame(DATA, END_STREAM, 1, b"")).await;
    assert_eq!(puma.read(&mut four).await.unwrap(), 0);
    drop(puma);
    while !frames(&said).iter().any(|(kind, flags, ..)| *kind == DATA && flags & END_STREAM != 0) {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
}

#[tokio::test]
async fn a_drain_says_goodbye_to_a_websocket_over_http_2() {
    let (mut puma, far) = UnixStream::pair().unwrap();
    let far = Mutex::new(Some(far));
    let mut bench = Bench::two(Timeouts::default(), move |_: Request<Received>| {
        let far = far.lock().unwrap().take().unwrap();
        async move {
            let mut response = Response::new(Script::of(&[], true));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let far = Far { stream: Box::pin(far), early: Bytes::from_static(b"\x81\x02hi"), place: Box::new(()) };
            response.extensions_mut().insert(FarEnd::new(far));
            response
        }
    });
    bench.send([hello(&[]), extended("websocket")].concat()).await;
    let mut said = Vec::new();
    while !said.windows(4).any(|part| part == b"\x81\x02hi") {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
    bench.sites.drain();
    bench.sweep.wake_all();
    while !said.windows(4).any(|part| part == b"\x88\x02\x03\xf4") {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
    let goodbye = b"\x88\x82\x01\x02\x03\x04\x02\xf6";
    bench.send(frame(DATA, 0, 1, goodbye)).await;
    while !frames(&said).iter().any(|(kind, flags, ..)| *kind == DATA && flags & END_STREAM != 0) {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
    let mut told = Vec::new();
    puma.read_to_end(&mut told).await.unwrap();
    assert_eq!(told, goodbye);
}

#[tokio::test]
async fn an_extended_connect_that_puma_does_not_switch_is_no_success() {
    for (status, expected) in [(StatusCode::OK, &b"502"[..]), (StatusCode::NOT_FOUND, &b"404"[..])] {
        let mut bench = Bench::two(Timeouts::default(), move |_| async move {
            let mut response = page("a page");
            *response.status_mut() = status;
            response
        });
        let (_, spare) = UnixStream::pair().unwrap();
        let stream = std::mem::replace(&mut bench.client, spare);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        // The client may send :protocol only once the server's SETTINGS are here.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let request = Request::connect("http://a/cable").extension(hyper::ext::Protocol::from_static("websocket"));
        let request = request.header("sec-websocket-version", "13").body(Full::default()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status().as_str().as_bytes(), expected);
        assert_eq!(bench.asked(), ["GET /cable"]);
    }
}

#[tokio::test]
async fn other_connects_stay_what_they_are() {
    let mut bench = Bench::two(Timeouts::default(), |request: Request<Received>| async move {
        assert!(request.extensions().get::<Extended>().is_none());
        assert!(request.extensions().get::<Arrival>().is_some());
        let mut response = page("no");
        *response.status_mut() = StatusCode::NOT_IMPLEMENTED;
        response
    });
    bench.send([hello(&[]), extended("connect-udp")].concat()).await;
    let mut said = Vec::new();
    while !frames(&said).iter().any(|(kind, ..)| *kind == HEADERS) {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
    assert_eq!(bench.asked(), ["CONNECT /cable?x=1"]);
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

#[tokio::test]
async fn who_resets_without_end_is_read_in_pauses_and_an_honest_client_goes_on_after_one() {
    let mut bench = Bench::two(Timeouts::default(), hello_world);
    let mut bytes = hello(&[]);
    for n in 0..18u32 {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, GET));
        bytes.extend(frame(RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes()));
        if n % 9 == 8 {
            bench.send(std::mem::take(&mut bytes)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let start = tokio::time::Instant::now();
    bench.send(frame(HEADERS, END_HEADERS | END_STREAM, 101, GET)).await;
    let mut said = Vec::new();
    while !said.windows(5).any(|part| part == b"hello") {
        assert!(bench.client.read_buf(&mut said).await.unwrap() > 0);
    }
    assert!((Duration::from_millis(50)..WAIT).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!((bench.asked(), goaways(&said)), (vec!["GET /".to_owned()], Vec::new()));
}
