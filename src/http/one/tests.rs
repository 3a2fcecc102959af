use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::oneshot,
};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    Arrived, Connection,
    reply::{self, Sent, Shape},
    wire::{Outgoing, Wire},
};
use crate::{
    accept::{
        beat::Sweep,
        pace::{Rates, Timeouts},
        stream::Stream,
    },
    guard::{Limits, chunked::Chunked, head::HeadScan, rule::Rule},
    http::{
        arrival::{Arrival, Moment},
        body::{Absorb, Received},
        fixture::{Bench, Script, Stack, quick},
        upgrade::{Far, FarEnd},
    },
    layers::{
        relay::{RelayLayer, Relayed},
        spill::{self, Store},
    },
    log::{End, Settle},
    refusal::{Fate, Refusal},
};

mod pace;
mod tunnels;

fn slow() -> Timeouts {
    Timeouts::default()
}

fn page(text: &'static str) -> Response<Script> {
    Response::new(Script::of(&[text], true))
}

/// Reads a body as `buffer` does.
async fn whole(body: &mut Received) -> Result<Bytes, Refusal> {
    let mut all = BytesMut::new();
    while std::future::poll_fn(|cx| body.poll_append(cx, &mut all)).await? {}
    Ok(all.freeze())
}

/// Answers with the target, or with the body where there is one.
async fn echo(mut request: Request<Received>) -> Response<Script> {
    let target = request.extensions().get::<Arrival>().unwrap().target.clone();
    let (body, status) = match whole(request.body_mut()).await {
        Ok(body) => (body, StatusCode::OK),
        Err(refusal) => (Bytes::from(format!("{refusal:?}")), refusal.status()),
    };
    let text = if body.is_empty() { target } else { body };
    let (sender, script) = Script::open(Some(text.len() as u64));
    sender.send(Ok(text)).unwrap();
    let mut response = Response::new(script);
    *response.status_mut() = status;
    if status != StatusCode::OK {
        response.extensions_mut().insert(Fate::Close);
    }
    response
}

/// The answer without its Date.
fn plain(answer: &str) -> String {
    answer.split_inclusive("\r\n").filter(|line| !line.starts_with("date: ")).collect()
}

/// Thousands of clients hold one each, and every request moves one.
#[test]
fn an_exchange_has_room_for_what_it_waits_for_and_for_little_else() {
    fn size<F>(_: impl FnOnce(&'static mut Connection<Stack>) -> F) -> usize {
        size_of::<F>()
    }
    let exchange = size(|connection| connection.exchange());
    let (head, answer) = (size_of::<Arrived>() + size_of::<HeadScan>(), size_of::<reply::Send<'_, Script>>());
    assert!(exchange <= head.max(answer) + 160, "{exchange} bytes; a head takes {head}, an answer {answer}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let mut bench = Bench::one(slow(), echo);
    bench.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody\r\nGET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /4 HTTP/1.1\r\n").await;
    assert_eq!(
        plain(&bench.read_all_text().await),
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n/1HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody\
         HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n/3"
    );
    assert_eq!(bench.asked(), ["GET /1", "POST /2", "GET /3"]);
}

#[tokio::test]
async fn requests_that_came_before_the_client_closed_its_side_are_all_answered() {
    let mut bench = Bench::one(slow(), echo);
    bench.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    bench.client.shutdown().await.unwrap();
    let all = bench.read_all_text().await;
    assert!(all.contains("/1HTTP/1.1 200") && all.ends_with("/2"), "{all}");
}

#[tokio::test]
async fn a_chunked_body_arrives_in_one_piece_however_it_is_cut_and_the_next_request_is_read() {
    let bytes = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n4\r\ndefg\r\n0\r\nT: u\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n";
    for step in [1, 7, 64, bytes.len()] {
        let mut bench = Bench::one(slow(), echo);
        for part in bytes.chunks(step) {
            bench.send(part).await;
            tokio::task::yield_now().await;
        }
        let all = bench.read_to("/b").await;
        assert!(all.contains("content-length: 7\r\n\r\nabcdefgHTTP/1.1 200"), "{all}");
    }
}

#[tokio::test]
async fn the_end_of_the_connection_in_a_chunked_body_is_bad_framing() {
    let mut bench = Bench::one(slow(), echo);
    bench.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc").await;
    bench.client.shutdown().await.unwrap();
    let all = bench.read_all_text().await;
    assert!(all.starts_with("HTTP/1.1 400") && all.contains("BadFraming(G15)") && all.contains("connection: close"), "{all}");
}

#[tokio::test]
async fn a_client_that_goes_away_in_its_body_is_answered_nothing() {
    let mut bench = Bench::one(slow(), echo);
    bench.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc").await;
    bench.client.shutdown().await.unwrap();
    assert_eq!(bench.read_all().await, b"");
    bench.ended().await;
}

#[tokio::test]
async fn after_a_framing_error_nothing_is_parsed_any_more() {
    let mut bench = Bench::one(slow(), echo);
    bench.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\nHost: a\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let all = bench.read_all_text().await;
    assert!(all.contains("/1HTTP/1.1 400 Bad Request\r\n") && all.contains("connection: close\r\n"), "{all}");
    assert_eq!(bench.asked(), ["GET /1"]);
}

#[tokio::test]
async fn a_body_that_nobody_read_ends_the_connection_after_the_answer() {
    let mut bench = Bench::one(slow(), |_| async { page("no") });
    bench.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\nabc").await;
    let all = bench.read_all_text().await;
    assert!(all.ends_with("connection: close\r\n\r\nno"), "{all}");
}

#[tokio::test]
async fn continue_is_sent_when_the_body_is_asked_for_and_not_before() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    let mut bench = Bench::one(slow(), echo);
    bench.send(head).await;
    assert_eq!(bench.read_to("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    bench.send("body").await;
    assert!(bench.read_to("body").await.starts_with("HTTP/1.1 200"));

    let mut early = Bench::one(slow(), echo);
    early.send(format!("{head}bo")).await;
    early.send("dy").await;
    assert!(early.read_to("body").await.starts_with("HTTP/1.1 200"), "a body that comes on its own is not asked for");

    let mut refused = Bench::one(slow(), |_| async { page("too large") });
    refused.send(head).await;
    assert!(refused.read_all_text().await.starts_with("HTTP/1.1 200"), "a refusal stands for the invitation");

    let mut old = Bench::one(slow(), echo);
    old.send(head.replace("1.1", "1.0")).await;
    old.send("body").await;
    assert!(old.read_to("body").await.starts_with("HTTP/1.1 200"), "HTTP/1.0 has no interim answers");
}

#[tokio::test]
async fn an_answer_of_unknown_length_comes_in_chunks() {
    let mut bench = Bench::one(slow(), |_| async { Response::new(Script::of(&["hello", "", "world!"], false)) });
    bench.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let all = bench.read_to("0\r\n\r\n").await;
    assert_eq!(plain(&all), "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\nworld!\r\n0\r\n\r\n");
    bench.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    bench.read_to("0\r\n\r\n").await;
}

#[tokio::test]
async fn an_http_1_0_client_is_told_the_end_of_an_answer_by_the_end_of_the_connection() {
    let ends = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&ends);
    let mut bench = Bench::one(slow(), move |_| {
        let script = Script::of(&["hello", "world"], false);
        *seen.lock().unwrap() = Some(Arc::clone(&script.ends));
        async { Response::new(script) }
    });
    bench.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").await;
    assert_eq!(plain(&bench.read_all_text().await), "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhelloworld");
    assert_eq!(*ends.lock().unwrap().take().unwrap().lock().unwrap(), [End::Ok]);
}

#[tokio::test]
async fn an_http_1_0_client_keeps_its_connection_where_the_length_is_known() {
    let mut bench = Bench::one(slow(), echo);
    for _ in 0..2 {
        bench.send("GET /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").await;
        assert!(bench.read_to("/x").await.contains("connection: keep-alive\r\n"));
    }
    bench.send("GET /y HTTP/1.0\r\nHost: a\r\n\r\n").await;
    assert!(bench.read_all_text().await.ends_with("connection: close\r\n\r\n/y"));
}

#[tokio::test]
async fn answers_to_head_and_204_and_304_carry_no_body() {
    let mut bench = Bench::one(slow(), |request: Request<Received>| async move {
        let mut response = page("hello");
        match request.uri().path() {
            "/204" => *response.status_mut() = StatusCode::NO_CONTENT,
            "/304" => *response.status_mut() = StatusCode::NOT_MODIFIED,
            _ => {}
        }
        response
    });
    bench.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET /204 HTTP/1.1\r\nHost: a\r\n\r\nGET /304 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let all = plain(&bench.read_all_text().await);
    assert_eq!(all, "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 304 Not Modified\r\nconnection: close\r\n\r\n");
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_ends_cleanly() {
    let mut bench = Bench::one(slow(), |_| async {
        let (sender, script) = Script::open(None);
        sender.send(Ok(Bytes::from_static(b"half"))).unwrap();
        sender.send(Err(Refusal::UpstreamReset)).unwrap();
        Response::new(script)
    });
    bench.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let all = bench.read_all_text().await;
    assert!(all.ends_with("4\r\nhalf"), "{all}");

    let mut short = Bench::one(slow(), |_| async {
        let (sender, script) = Script::open(Some(9));
        sender.send(Ok(Bytes::from_static(b"half"))).unwrap();
        Response::new(script)
    });
    short.send("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(short.read_all_text().await.ends_with("content-length: 9\r\n\r\nhalf"));
    assert_eq!(short.asked(), ["GET /"]);
}

#[tokio::test]
async fn a_body_longer_than_its_length_never_reaches_the_next_answer() {
    let mut bench = Bench::one(slow(), |_| async {
        let (sender, script) = Script::open(Some(4));
        sender.send(Ok(Bytes::from_static(b"1234HTTP/1.1 200 OK\r\n\r\n"))).unwrap();
        Response::new(script)
    });
    bench.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let all = bench.read_all_text().await;
    assert!(!all.contains("1234"), "{all}");
}

#[tokio::test]
async fn early_hints_pass_to_http_1_1_and_not_to_1_0() {
    let app = |request: Request<Received>| async move {
        let notes = Arc::clone(&request.extensions().get::<Arrival>().unwrap().notes);
        let link = |value| HeaderMap::from_iter([(http::header::LINK, HeaderValue::from_static(value))]);
        notes.hint(link("</a.css>"));
        if request.uri().path() == "/slow" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // This one comes in the same turn as the answer.
        notes.hint(link("</b.css>"));
        page("done")
    };
    let mut bench = Bench::one(slow(), app);
    for target in ["/", "/slow"] {
        bench.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let all = bench.read_to("done").await;
        let hints =
            "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </b.css>\r\n\r\nHTTP/1.1 200 OK\r\n";
        assert!(all.starts_with(hints), "{all}");
    }
    let mut old = Bench::one(slow(), app);
    old.send("GET /slow HTTP/1.0\r\nHost: a\r\n\r\n").await;
    assert!(old.read_all_text().await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn hints_that_the_client_has_not_taken_are_never_mixed_with_the_answer() {
    let mut bench = Bench::one(slow(), |request: Request<Received>| async move {
        let notes = Arc::clone(&request.extensions().get::<Arrival>().unwrap().notes);
        // More than the socket takes at once.
        let value = HeaderValue::from_bytes(&[b'x'; 400_000]).unwrap();
        notes.hint(HeaderMap::from_iter([(http::header::LINK, value)]));
        tokio::task::yield_now().await;
        page("done")
    });
    bench.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let all = bench.read_to("done").await;
    let (hint, answer) = all.split_once("\r\n\r\n").unwrap();
    assert_eq!(hint.len(), "HTTP/1.1 103 Early Hints\r\nlink: ".len() + 400_000);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{}", &answer[..20]);
}

#[tokio::test]
async fn draining_ends_idle_connections_and_answers_what_has_come() {
    let mut idle = Bench::one(slow(), echo);
    idle.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    idle.read_to("/x").await;
    idle.sites.drain();
    idle.sweep.wake_all();
    idle.ended().await;

    let mut fresh = Bench::one(slow(), echo);
    fresh.sites.drain();
    fresh.sweep.wake_all();
    tokio::time::sleep(Duration::from_millis(50)).await;
    fresh.send("GET /y HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(fresh.read_all_text().await.ends_with("connection: close\r\n\r\n/y"), "a new connection has a moment");

    let mut unused = Bench::one(slow(), echo);
    unused.sites.drain();
    unused.sweep.wake_all();
    unused.ended().await;
}

#[tokio::test]
async fn a_refusal_of_a_body_is_the_last_answer() {
    let mut bench = Bench::one(slow(), echo);
    bench.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let all = bench.read_all_text().await;
    assert!(all.contains(&format!("{:?}", Refusal::BadFraming(Rule::G14))), "{all}");
    assert_eq!(bench.asked().len(), 1);
}
