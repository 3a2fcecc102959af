//! Threat: smuggling. One reading or none: what has two never reaches Puma, and what reaches Puma has one form.

use std::time::Duration;

use crate::harness::{
    client::{Client, End},
    grammar,
    palisade::{Palisade, Setup},
    puma::Puma,
    recorder::{Recorder, Reply},
};

mod answers;
mod shapes;

/// A request that must be refused.
struct Hostile {
    name: &'static str,
    bytes: &'static [u8],
    status: u16,
    rule: &'static str,
}

const fn hostile(name: &'static str, rule: &'static str, status: u16, bytes: &'static [u8]) -> Hostile {
    Hostile { name, bytes, status, rule }
}

/// Each asks for `/evil`, and most hide a request for `/hidden` where a laxer reader would find it.
const HOSTILE: &[Hostile] = &[
    hostile("CL and TE", "G10", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("TE and CL", "G10", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("TE gzip, chunked (Puma 5.6.4 to 6.6.1)", "G11", 501, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("TE twice", "G11", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    hostile("TE chunked, chunked", "G11", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    hostile("TE identity", "G11", 501, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: identity\r\n\r\n"),
    hostile("TE in HTTP/1.0", "G12", 400, b"POST /evil HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    hostile("Transfer_Encoding (CVE-2020-11077)", "G18", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    hostile("Content_Length", "G18", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nContent_Length: 3\r\n\r\nabc"),
    hostile("CL with sign (CVE-2022-24790)", "G13", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nContent-Length: +3\r\n\r\nabc"),
    hostile("CL in hexadecimal (CVE-2022-24790)", "G13", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x24\r\n\r\nGET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("CL empty (CVE-2023-40175)", "G13", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nContent-Length:\r\n\r\nGET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("two different CL", "G13", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 0\r\n\r\nabc"),
    hostile("CL list", "G13", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3, 4\r\n\r\nabc"),
    hostile("CL with underscore digit", "G13", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1_0\r\n\r\n0123456789"),
    hostile("bare LF in the head (CVE-2021-41136)", "G1", 400, b"GET /evil HTTP/1.1\r\nHost: localhost\r\nX: a\nTransfer-Encoding: chunked\r\n\r\n"),
    hostile("bare LF behind the request line", "G1", 400, b"GET /evil HTTP/1.1\nHost: localhost\r\n\r\n"),
    hostile("bare CR", "G1", 400, b"GET /evil HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n"),
    hostile("NUL in a value", "G2", 400, b"GET /evil HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n"),
    hostile("folded line", "G3", 400, b"GET /evil HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n"),
    hostile("folded first line", "G3", 400, b"GET /evil HTTP/1.1\r\n Host: localhost\r\n\r\n"),
    hostile("blank before the colon", "G9", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nContent-Length : 3\r\n\r\nabc"),
    hostile("no colon", "G9", 400, b"GET /evil HTTP/1.1\r\nHost: localhost\r\nnonsense\r\n\r\n"),
    hostile("two blanks in the request line", "G5", 400, b"GET  /evil HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("no version", "G5", 400, b"GET /evil\r\nHost: localhost\r\n\r\n"),
    hostile("version 2.0", "G5", 505, b"GET /evil HTTP/2.0\r\nHost: localhost\r\n\r\n"),
    hostile("three empty lines", "G4", 400, b"\r\n\r\n\r\nGET /evil HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("fragment", "G8", 400, b"GET /evil#a HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("raw UTF-8 in the target", "G8", 400, b"GET /evil\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("two Hosts", "G17", 400, b"GET /evil HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"),
    hostile("no Host", "G17", 400, b"GET /evil HTTP/1.1\r\nX: y\r\n\r\n"),
    hostile("Host with a path (CVE-2026-34835)", "G17", 400, b"GET /evil HTTP/1.1\r\nHost: localhost/a\r\n\r\n"),
    hostile("Host with userinfo", "G17", 400, b"GET /evil HTTP/1.1\r\nHost: a@localhost\r\n\r\n"),
    hostile("chunk size in C's spelling (CVE-2022-24790)", "G14", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("chunk size of 17 digits", "G14", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n00000000000000003\r\nabc\r\n0\r\n\r\n"),
    hostile("blank behind a chunk size", "G14", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n"),
    hostile("LF behind a chunk size", "G1", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n"),
    hostile("two bytes instead of a chunk's end (CVE-2022-24790)", "G15", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n"),
    hostile("a request where a trailer belongs (CVE-2023-40175)", "G16", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nGET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("TRACE", "T1", 405, b"TRACE /evil HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("CONNECT", "T1", 501, b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n"),
    hostile("absolute form against Host", "T2", 400, b"GET http://other.example/evil HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("dot segments, encoded", "T4", 400, b"GET /evil/%2e%2e/admin HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("NUL, encoded", "T4", 400, b"GET /evil%00 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("line break, encoded, in the path", "T4", 400, b"GET /evil%0d%0aX:y HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("overlong UTF-8", "T4", 400, b"GET /evil/%c0%ae%c0%ae/ HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    hostile("Connection names a framing field", "T7", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nConnection: close, Content-Length\r\nContent-Length: 3\r\n\r\nabc"),
    hostile("Authorization twice", "T9", 400, b"GET /evil HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic YTpi\r\nAuthorization: Basic YzpkCg==\r\n\r\n"),
    hostile("Content-Type twice", "T9", 400, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n"),
    hostile("an expectation nobody can meet", "T10", 417, b"POST /evil HTTP/1.1\r\nHost: localhost\r\nExpect: 200-ok\r\nContent-Length: 3\r\n\r\nabc"),
];

/// Sends hostile bytes and checks answer, end of the connection and log.
fn refused(palisade: &Palisade, mut client: Client, case: &Hostile) {
    // The proxy may answer and close before it has read everything.
    client.try_send(case.bytes).ok();
    let method = String::from_utf8_lossy(case.bytes.split(|b| *b == b' ').next().unwrap()).trim().to_owned();
    let answer = client.try_answer(&method).unwrap_or_else(|| panic!("{}: closed without an answer", case.name));
    assert_eq!(answer.status, case.status, "{}: {answer:?}", case.name);
    assert!(answer.closes(), "{}: the answer does not say that it closes", case.name);
    let (rest, end) = client.rest();
    assert!(rest.is_empty(), "{}: a second answer: {:?}", case.name, String::from_utf8_lossy(&rest));
    assert_eq!(end, End::Finished, "{}", case.name);
    palisade.logged(&format!("{}: a line with rule {}", case.name, case.rule), |line| {
        line["rule"] == case.rule && line["status"] == case.status
    });
}

#[test]
fn hostile_requests_are_refused_by_their_rule_and_no_byte_of_them_passes() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    let descriptors = { palisade.serves(); palisade.process().descriptors() };
    let mut honest = palisade.connect();
    for case in HOSTILE {
        refused(&palisade, palisade.connect(), case);
        assert_eq!(honest.get("/honest").status, 200, "beside: {}", case.name);
    }
    for needle in [&b"evil"[..], b"hidden"] {
        assert!(!recorder.got(needle), "{:?} reached Puma", String::from_utf8_lossy(needle));
    }
    for connection in recorder.received() {
        grammar::read_all(&connection);
    }
    drop(honest);
    palisade.descriptors_return_to(descriptors + 4);
}

#[test]
fn the_verdict_does_not_depend_on_how_the_bytes_are_cut() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    for case in HOSTILE.iter().step_by(4) {
        let mut client = palisade.connect();
        for byte in case.bytes.chunks(1) {
            if client.try_send(byte).is_err() {
                break;
            }
        }
        let answer = client.try_answer("GET").unwrap_or_else(|| panic!("{}: closed without an answer", case.name));
        assert_eq!(answer.status, case.status, "{}, byte by byte", case.name);
    }
    assert!(!recorder.got(b"evil") && !recorder.got(b"hidden"));
}

#[test]
fn hostile_requests_are_refused_over_tls_as_well() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).tls().start();
    for case in HOSTILE.iter().step_by(5) {
        let mut client = palisade.connect_tls();
        client.try_send(case.bytes).ok();
        assert_eq!(client.answer_to("POST").status, case.status, "{}", case.name);
    }
    assert!(!recorder.got(b"evil") && !recorder.got(b"hidden"));
}

#[test]
fn behind_real_puma_no_hidden_request_is_executed() {
    let Some(puma) = Puma::cluster() else { return };
    let palisade = Setup::before(puma.address()).start();
    for case in HOSTILE {
        let mut client = palisade.connect();
        client.try_send(case.bytes).ok();
        assert_eq!(client.try_answer("POST").map(|a| a.status), Some(case.status), "{}", case.name);
    }
    palisade.serves();
    let targets: Vec<String> = puma.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, ["/"], "only the honest request was executed");
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
        ("GET", "/hop", "GET /hop HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n\r\n", b""),
        ("GET", "/underscore", "GET /underscore HTTP/1.1\r\nHost: localhost\r\nX_Forwarded_For: 6.6.6.6\r\n\r\n", b""),
        ("GET", "/firefox", "GET /firefox HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: h2c\r\n\r\n", b""),
        ("POST", "/length", "POST /length HTTP/1.1\r\nHost: localhost\r\nContent-Length: 00005\r\n\r\nhello", b"hello"),
        ("POST", "/equal", "POST /equal HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        ("POST", "/chunks", "POST /chunks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=b;c=\"d\"\r\nhel\r\n02\r\nlo\r\n0\r\nX-Trailer: 1\r\n\r\n", b"hello"),
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
