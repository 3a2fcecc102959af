//! Threat: smuggling. One reading or none: what has two never reaches Puma, and what reaches Puma has one form.

use std::time::Duration;

use crate::harness::{
    client::End,
    corpus, grammar,
    palisade::Setup,
    puma::Puma,
    recorder::{Recorder, Reply},
};

mod answers;
mod shapes;

#[test]
fn the_verdict_does_not_depend_on_how_the_bytes_are_cut() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with("domains = []\n").start();
    for case in corpus::hostile().iter().step_by(9) {
        let mut client = palisade.connect();
        for byte in case.bytes.chunks(1) {
            if client.try_send(byte).is_err() {
                break;
            }
        }
        let answer = client.try_answer("GET").unwrap_or_else(|| panic!("{}: closed without an answer", case.id));
        assert_eq!(Some(answer.status), case.refused.as_ref().map(|(_, status)| *status), "{}, byte by byte", case.id);
    }
    assert_eq!(recorder.requests(), Vec::<Vec<u8>>::new());
}

#[test]
fn hostile_requests_are_refused_over_tls_as_well() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with("domains = []\n").tls().start();
    for case in corpus::hostile().iter().step_by(11) {
        let mut client = palisade.connect_tls();
        client.try_send(&case.bytes).ok();
        assert_eq!(Some(client.answer_to("POST").status), case.refused.as_ref().map(|(_, status)| *status), "{}", case.id);
    }
    assert_eq!(recorder.requests(), Vec::<Vec<u8>>::new());
}

#[test]
fn behind_real_puma_no_hidden_request_is_executed() {
    let Some(puma) = Puma::cluster() else { return };
    let palisade = Setup::before(puma.address()).with("domains = []\n").start();
    for case in &corpus::hostile() {
        let mut client = palisade.connect();
        client.try_send(&case.bytes).ok();
        let method = if case.bytes.starts_with(b"HEAD ") { "HEAD" } else { "POST" };
        assert_eq!(client.try_answer(method).map(|a| a.status), case.refused.as_ref().map(|(_, status)| *status), "{}", case.id);
    }
    palisade.serves();
    let targets: Vec<String> = puma.seen().into_iter().map(|seen| seen.target).collect();
    assert!(targets.contains(&"/".to_owned()));
    // Health checks ask for /up.
    assert!(targets.iter().all(|target| target == "/" || target == "/up"), "something hidden was executed: {targets:?}");
}

#[test]
fn a_refusal_stands_in_its_place_behind_the_answers_to_earlier_requests() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    let mut client = palisade.connect();
    client.send(
        "GET /one HTTP/1.1\r\nHost: localhost\r\n\r\nGET /two HTTP/1.1\r\nHost: localhost\r\n\r\n\
         GET /evil HTTP/1.1\r\nHost : localhost\r\n\r\nGET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n",
    );
    assert_eq!([client.answer().status, client.answer().status, client.answer().status], [200, 200, 400]);
    assert_eq!(client.rest(), (Vec::new(), End::Finished), "no byte behind the error is parsed");
    assert!(!recorder.got(b"hidden") && !recorder.got(b"evil"));
}

#[test]
fn an_answer_that_refuses_survives_bytes_that_were_not_read() {
    // Closing with unread bytes sends a reset, which can destroy the answer on its way.
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    for _ in 0..20 {
        let mut client = palisade.connect();
        client.send("POST /evil HTTP/1.1\r\nHost: localhost\r\nContent-Length: +1\r\n\r\n");
        client.try_send(vec![b'x'; 100_000]).ok();
        assert_eq!(client.answer_to("POST").status, 400);
    }
}

#[test]
fn honest_variants_reach_puma_in_one_form() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    let variants: &[(&str, &str, &str, &[u8])] = &[
        ("GET", "/plain", "GET /plain HTTP/1.1\r\nHost: localhost\r\n\r\n", b""),
        ("GET", "/old", "GET /old HTTP/1.0\r\nHost: localhost\r\n\r\n", b""),
        ("GET", "/blanks", "GET /blanks HTTP/1.1\r\nHost:localhost\r\nX-A: \t a \t \r\n\r\n", b""),
        ("GET", "/absolute?q", "GET http://localhost/absolute?q HTTP/1.1\r\nHost: localhost\r\n\r\n", b""),
        ("GET", "/crlf", "\r\nGET /crlf HTTP/1.1\r\nHost: localhost\r\n\r\n", b""),
        ("OPTIONS", "*", "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", b""),
        (
            "GET",
            "/hop",
            "GET /hop HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n\r\n",
            b"",
        ),
        ("GET", "/underscore", "GET /underscore HTTP/1.1\r\nHost: localhost\r\nX_Forwarded_For: 6.6.6.6\r\n\r\n", b""),
        ("GET", "/firefox", "GET /firefox HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: h2c\r\n\r\n", b""),
        ("POST", "/length", "POST /length HTTP/1.1\r\nHost: localhost\r\nContent-Length: 00005\r\n\r\nhello", b"hello"),
        (
            "POST",
            "/chunks",
            "POST /chunks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=b;c=\"d\"\r\nhel\r\n02\r\nlo\r\n0\r\nX-Trailer: 1\r\n\r\n",
            b"hello",
        ),
        ("POST", "/none", "POST /none HTTP/1.1\r\nHost: localhost\r\n\r\n", b""),
    ];
    for (method, target, bytes, body) in variants {
        let mut client = palisade.connect();
        client.send(bytes);
        assert_eq!(client.answer_to(method).status, 200, "{target}");
        let requests: Vec<_> = recorder.received().iter().flat_map(|bytes| grammar::read_all(bytes)).collect();
        let got = requests.iter().find(|r| r.target == *target).unwrap_or_else(|| panic!("{target} did not arrive"));
        assert_eq!((got.method.as_str(), got.body.as_slice()), (*method, *body), "{target}");
        assert_eq!(got.field("host").as_deref(), Some("localhost"), "{target}");
        for absent in ["x-hop", "upgrade", "x-trailer"] {
            assert_eq!(got.field(absent), None, "{target}");
        }
        let length = matches!(*method, "POST" | "PUT" | "PATCH").then(|| body.len().to_string());
        assert_eq!(got.field("content-length"), length, "{target}");
        if *target == "/blanks" {
            assert_eq!(got.field("x-a").as_deref(), Some("a"));
        }
    }
}
