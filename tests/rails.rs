//! What a Rails application and its browsers rely on stays as it was, only safer.
//!
//! The cases that must not differ run twice: against Puma itself, which proves client and application, and through
//! Palisade.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::harness::{
    answer::{Answer, Framing},
    client::Client,
    noise,
    palisade::{Palisade, Setup},
    puma::{Puma, Shape},
    sha256, skip, websocket,
};

mod http2;
mod upload;

/// A case that holds with and without the proxy.
macro_rules! same_as_puma {
    ($($name:ident)*) => {
        mod direct {
            $(#[test] fn $name() {
                let Some(puma) = super::Puma::start(super::Shape::cluster(0, 5)) else { return };
                super::cases::$name(&|| puma.connect());
            })*
        }
        mod proxied {
            $(#[test] fn $name() {
                let Some((_puma, palisade)) = super::front() else { return };
                super::cases::$name(&|| palisade.connect());
            })*
        }
        mod encrypted {
            $(#[test] fn $name() {
                let Some((_puma, palisade)) = super::front_tls() else { return };
                super::cases::$name(&|| palisade.connect_tls());
            })*
        }
    };
}

same_as_puma! {
    a_head_answer_has_no_body
    nothing_follows_a_204_or_a_304
    pipelined_requests_are_answered_in_order
    the_first_event_of_a_stream_comes_at_once
    a_websocket_echoes
    an_http_1_0_client_gets_a_body_without_chunks
    a_chunked_upload_arrives_with_its_length
    a_patient_client_is_told_to_continue
    a_large_answer_arrives_whole
    a_connection_serves_a_hundred_requests
    a_hijacked_answer_arrives_whole
    unusual_but_honest_requests_pass
    two_cookies_are_set_by_two_fields
}

mod cases {
    use super::*;

    type Connect<'a> = &'a dyn Fn() -> Client;

    pub fn a_head_answer_has_no_body(connect: Connect) {
        let mut client = connect();
        let head = client.ask("HEAD /bytes/1000 HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!((head.status, head.field("content-length")), (200, Some("1000")));
        assert_eq!(client.get("/bytes/3").body, b"xxx", "the next answer on the same connection");
    }

    pub fn nothing_follows_a_204_or_a_304(connect: Connect) {
        let mut client = connect();
        for status in [204, 304] {
            let answer = client.get(&format!("/status/{status}"));
            assert_eq!((answer.status, answer.framing), (status, Framing::None));
            assert_eq!(client.get("/bytes/3").body, b"xxx", "the answer after a {status}");
        }
    }

    pub fn pipelined_requests_are_answered_in_order(connect: Connect) {
        let mut client = connect();
        let all: String = (1..=40).map(|n| format!("GET /bytes/{n} HTTP/1.1\r\nHost: localhost\r\n\r\n")).collect();
        client.send(all);
        for n in 1..=40 {
            assert_eq!(client.answer().body.len(), n);
        }
    }

    pub fn the_first_event_of_a_stream_comes_at_once(connect: Connect) {
        let mut client = connect();
        client.send("GET /sse?events=2&every=3000 HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
        let waited = client.wait_for(b"data: 0\n\n");
        assert!(waited < Duration::from_millis(2500), "the first event took {waited:?}");
        let answer = client.answer();
        assert_eq!(answer.text(), "data: 0\n\ndata: 1\n\n");
        assert_eq!(answer.field("content-type"), Some("text/event-stream"));
    }

    pub fn a_websocket_echoes(connect: Connect) {
        let mut socket = websocket::open(connect());
        websocket::echo(&mut socket, b"hello");
        websocket::echo(&mut socket, &noise(60_000));
        socket.send(websocket::frame(8, &1000_u16.to_be_bytes()));
        assert_eq!(socket.take(4), [0x88, 2, 0x03, 0xe8], "the close frame comes back");
        assert!(socket.rest().0.is_empty(), "and then the connection ends");
    }

    pub fn an_http_1_0_client_gets_a_body_without_chunks(connect: Connect) {
        for target in ["/lines", "/chunked"] {
            let mut client = connect();
            let answer = client.ask(format!("GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n"));
            assert_ne!(answer.framing, Framing::Chunked);
            let wanted = if target == "/lines" { "one\ntwo\nthree\n" } else { "part 0\npart 1\npart 2\n" };
            assert_eq!(answer.text(), wanted);
            assert!(client.rest().0.is_empty(), "the connection ends behind the answer");
        }
    }

    pub fn a_chunked_upload_arrives_with_its_length(connect: Connect) {
        let body = noise(100_000);
        let mut request = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for piece in body.chunks(7_777) {
            request.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            request.extend_from_slice(piece);
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"0\r\n\r\n");
        let mut client = connect();
        arrived_whole(&client.ask(request), &body);
        assert_eq!(client.get("/").status, 200, "the connection lives on");
    }

    pub fn a_patient_client_is_told_to_continue(connect: Connect) {
        let mut client = connect();
        client.send("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
        client.wait_for(b"HTTP/1.1 100 Continue\r\n\r\n");
        client.send("12345");
        arrived_whole(&client.answer_to("POST"), b"12345");
    }

    pub fn a_large_answer_arrives_whole(connect: Connect) {
        let answer = connect().get("/bytes/16777216");
        assert_eq!(answer.body.len(), 16_777_216);
        assert!(answer.body.iter().all(|b| *b == b'x'));
    }

    pub fn a_connection_serves_a_hundred_requests(connect: Connect) {
        let mut client = connect();
        for n in 1..=100 {
            assert_eq!(client.get(&format!("/bytes/{n}")).body.len(), n);
        }
    }

    pub fn a_hijacked_answer_arrives_whole(connect: Connect) {
        assert_eq!(connect().get("/hijack/partial").text(), "first last\n");
        assert_eq!(connect().get("/hijack/full").text(), "hijacked\n");
    }

    pub fn unusual_but_honest_requests_pass(connect: Connect) {
        let cookie = format!("session={}", "c".repeat(6_000));
        let query = "a[]=1&b[c]=%F0%9F%98%80&d={x}|y^z`'&e=%2F%0d%0a&long=".to_owned() + &"q".repeat(4_000);
        let mut request = format!("GET /env?{query} HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\n");
        for n in 0..60 {
            request += &format!("X-Field-{n}: {n}\r\n");
        }
        let mut client = connect();
        let env = client.ask(request + "\r\n").json();
        assert_eq!(env["QUERY_STRING"], query.as_str());
        assert_eq!(env["HTTP_COOKIE"], cookie.as_str());
        assert_eq!(env["HTTP_X_FIELD_59"], "59");

        let env = client.get("/env?p=%2e%2e").json();
        assert_eq!(env["QUERY_STRING"], "p=%2e%2e", "dots in a query are nobody's business");
        arrived_whole(&client.ask("GET /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody"), b"body");
        arrived_whole(&client.ask("DELETE /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody"), b"body");
        arrived_whole(&client.ask("PATCH /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"), b"");
        arrived_whole(&client.ask("QUERY /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody"), b"body");
    }

    pub fn two_cookies_are_set_by_two_fields(connect: Connect) {
        assert_eq!(connect().get("/cookies").all("set-cookie"), ["a=1; path=/", "b=2; path=/"]);
    }
}

/// A Puma with two workers and Palisade in front of it.
fn front() -> Option<(Puma, Palisade)> {
    let puma = Puma::cluster()?;
    let palisade = Setup::before(puma.address()).start();
    Some((puma, palisade))
}

fn front_tls() -> Option<(Puma, Palisade)> {
    let puma = Puma::cluster()?;
    let palisade = Setup::before(puma.address()).tls().start();
    Some((puma, palisade))
}

/// Fails unless `/echo` got exactly this body, with a Content-Length and without Transfer-Encoding.
fn arrived_whole(answer: &Answer, body: &[u8]) {
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = answer.json();
    assert_eq!(seen["length"], body.len());
    assert_eq!(seen["sha256"], sha256(body).as_str());
    assert_eq!(seen["transfer_encoding"], "");
    if !body.is_empty() {
        assert_eq!(seen["content_length"], body.len().to_string().as_str());
    }
}

#[test]
fn a_request_behind_an_upload_in_one_packet_is_a_request_of_its_own() {
    // Puma up to 6.4.1 takes it for a part of the body.
    let Some((_puma, palisade)) = front() else { return };
    let mut client = palisade.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabcGET /bytes/5 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    arrived_whole(&client.answer_to("POST"), b"abc");
    assert_eq!(client.answer().body, b"xxxxx");
}

#[test]
fn puma_never_sees_expect_or_a_transfer_coding() {
    let Some((_puma, palisade)) = front() else { return };
    let mut client = palisade.connect();
    client.send("POST /env HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\nTE: trailers\r\n\r\n");
    client.wait_for(b"100 Continue");
    client.send("3;ext=1\r\nabc\r\n0\r\nX-Trailer: dropped\r\n\r\n");
    let env = client.answer_to("POST").json();
    assert_eq!(env["CONTENT_LENGTH"], "3");
    for absent in ["HTTP_EXPECT", "HTTP_TRANSFER_ENCODING", "HTTP_TE", "HTTP_X_TRAILER", "HTTP_TRAILER"] {
        assert!(env[absent].is_null(), "{absent} reached the application");
    }
}

#[test]
fn an_answer_without_length_arrives_whole_and_its_end_is_told() {
    let Some((_puma, palisade)) = front() else { return };
    let mut client = palisade.connect();
    let answer = client.get("/chunked?parts=5");
    // One that was here at once is sent with its length.
    assert!(matches!(answer.framing, Framing::Chunked | Framing::Length(35)), "{:?}", answer.framing);
    assert_eq!(answer.text().lines().count(), 5);
    assert_eq!(client.get("/").status, 200, "the connection lives on");
}

#[test]
fn an_http_1_0_client_may_keep_its_connection() {
    let Some((_puma, palisade)) = front() else { return };
    let mut client = palisade.connect();
    for _ in 0..3 {
        let answer = client.ask("GET /bytes/4 HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!((answer.body.as_slice(), answer.framing), (&b"xxxx"[..], Framing::Length(4)));
        if answer.closes() {
            return;
        }
        assert!(answer.field("connection").is_some_and(|v| v.eq_ignore_ascii_case("keep-alive")), "{answer:?}");
    }
}

#[test]
fn connection_close_is_honoured_after_the_answer() {
    let Some((_puma, palisade)) = front() else { return };
    let mut client = palisade.connect();
    let answer = client.ask("GET /bytes/4 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(answer.closes(), "{answer:?}");
    assert!(client.rest().0.is_empty());
}

#[test]
fn open_websockets_hold_no_thread_of_puma() {
    let Some(puma) = Puma::start(Shape::cluster(0, 2)) else { return };
    let palisade = Setup::before(puma.address()).with("[upstream]\nslots = 2\n").start();
    let mut sockets: Vec<Client> = (0..8).map(|_| websocket::open(palisade.connect())).collect();
    palisade.serves();
    for socket in &mut sockets {
        websocket::echo(socket, b"still here");
    }
}

#[test]
fn early_hints_reach_an_http_1_1_client_before_the_answer() {
    let Some(puma) = Puma::start(Shape { early_hints: true, ..Shape::cluster(0, 5) }) else { return };
    let palisade = Setup::before(puma.address()).start();
    let answer = palisade.connect().get("/hints");
    assert_eq!((answer.status, answer.text().as_str()), (200, "hinted\n"));
    let hints: Vec<_> = answer.interim.iter().map(|i| (i.status, i.field("link"))).collect();
    assert_eq!(hints, [(103, Some("</app.css>; rel=preload; as=style"))]);
    let old = palisade.connect().ask("GET /hints HTTP/1.0\r\nHost: localhost\r\n\r\n");
    assert!(old.interim.is_empty(), "an HTTP/1.0 client knows no interim answers");
}

#[test]
fn a_client_that_closes_its_sending_half_still_gets_its_answer() {
    let Some((_puma, palisade)) = front() else { return };
    let mut client = palisade.connect();
    client.send("GET /sleep/200 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.half_close();
    assert_eq!(client.answer().status, 200);
}
