//! A broken or hostile Puma never poisons the next client.

use super::*;

/// What a Puma might send, and why it must not be passed on.
const BROKEN: &[(&str, &[u8])] = &[
    ("both framings", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    ("two different lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabc"),
    ("a length that is no number", b"HTTP/1.1 200 OK\r\nContent-Length: 3x\r\n\r\nabc"),
    ("an unknown transfer coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("no status line", b"<html>hello</html>\r\n\r\n"),
    ("a status of two digits", b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"),
    ("a status above 599", b"HTTP/1.1 999 OK\r\nContent-Length: 0\r\n\r\n"),
    ("a foreign protocol", b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ("a bare LF in a field", b"HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: evil=1\r\nContent-Length: 0\r\n\r\n"),
    ("a bare CR in a field (CVE-2020-5247)", b"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: evil=1\r\nContent-Length: 0\r\n\r\n"),
    (
        "a bare CR in early hints (CVE-2020-5249)",
        b"HTTP/1.1 103 Early Hints\r\nLink: a\rSet-Cookie: evil=1\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ),
    ("a chunk size that is no number", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n"),
    ("chunks in HTTP/1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("a list of lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 3, 5\r\n\r\nabc"),
    ("NUL in a field", b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n"),
    ("a blank before the colon", b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n"),
    ("a folded field", b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n"),
    ("a 101 nobody asked for", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
];

#[test]
fn answers_with_two_readings_become_a_502() {
    for (name, bytes) in BROKEN {
        let recorder = Recorder::replying(Reply::Raw(bytes.to_vec()));
        let palisade = Setup::before(recorder.address()).without_upstream().start();
        let mut client = palisade.connect();
        client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = client.answer();
        assert_eq!(answer.status, 502, "{name}: {answer:?}");
        assert!(answer.all("set-cookie").is_empty());
        let line = palisade.refused("upstream_bad");
        assert!(line["rule"].as_str().is_some_and(|rule| rule.starts_with('P')), "{name}: {line}");
    }
}

#[test]
fn no_broken_answer_reaches_the_next_client_of_a_kept_connection() {
    // Behind each broken answer lies a whole one, as if for the next client; the connection stays open.
    for (name, bytes) in BROKEN {
        let poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
        let recorder = Recorder::replying(Reply::RawOpen([bytes, &poison[..]].concat()));
        let palisade = Setup::before(recorder.address()).with("[upstream]\nreuse = \"keepalive\"\n").without_upstream().start();
        for _ in 0..3 {
            let mut client = palisade.connect();
            client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let answer = client.try_answer("GET");
            // Where the head was already out, the answer is cut off instead.
            if let Some(answer) = answer {
                assert_eq!(answer.status, 502, "{name}: {answer:?}");
                assert!(!answer.text().contains("poison"), "{name}: {answer:?}");
            }
        }
        let asked = recorder.received().iter().filter(|bytes| bytes.starts_with(b"GET / ")).count();
        assert_eq!(asked, recorder.requests().iter().filter(|r| r.starts_with(b"GET / ")).count(), "{name}: a connection was used again");
    }
}

#[test]
fn bytes_behind_an_answer_are_nobodys_answer() {
    let poisoned = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let recorder = Recorder::replying(Reply::RawOpen(poisoned.to_vec()));
    let palisade = Setup::before(recorder.address()).without_upstream().start();
    for _ in 0..10 {
        let answer = palisade.connect().get("/");
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok\n"));
    }
}

#[test]
fn a_body_on_an_answer_that_has_none_is_nobodys_answer() {
    for (request, bytes) in [
        ("HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n", &b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"[..]),
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"),
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\nbad"),
    ] {
        let recorder = Recorder::replying(Reply::RawOpen(bytes.to_vec()));
        let palisade = Setup::before(recorder.address()).without_upstream().start();
        let mut client = palisade.connect();
        for _ in 0..3 {
            let answer = client.ask(request);
            assert!(answer.body.is_empty() && answer.status < 400, "{answer:?}");
        }
        assert!(client.silent_for(Duration::from_millis(200)));
    }
}

#[test]
fn an_endless_head_is_cut_off() {
    let mut bytes = b"HTTP/1.1 200 OK\r\n".to_vec();
    for n in 0..20_000 {
        bytes.extend_from_slice(format!("X-Field-{n}: value\r\n").as_bytes());
    }
    let recorder = Recorder::replying(Reply::Raw(bytes));
    let palisade = Setup::before(recorder.address()).without_upstream().start();
    assert_eq!(palisade.connect().get("/").status, 502);
    palisade.refused("upstream_bad");
}

#[test]
fn interim_answers_without_end_are_cut_off() {
    let recorder = Recorder::replying(Reply::Raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(1_000)));
    let palisade = Setup::before(recorder.address()).without_upstream().start();
    assert_eq!(palisade.connect().get("/").status, 502);
}

#[test]
fn a_cut_off_body_cuts_off_the_answer() {
    for bytes in
        [&b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart"[..], b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"]
    {
        let recorder = Recorder::replying(Reply::Raw(bytes.to_vec()));
        let palisade = Setup::before(recorder.address()).without_upstream().start();
        let mut client = palisade.connect();
        client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        match client.try_answer("GET") {
            None => {}
            Some(answer) => assert_eq!(answer.status, 502, "a truncated answer ended cleanly: {answer:?}"),
        }
    }
}

#[test]
fn an_answer_without_framing_lasts_until_puma_closes() {
    let recorder = Recorder::replying(Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it".to_vec()));
    let palisade = Setup::before(recorder.address()).without_upstream().start();
    let mut client = palisade.connect();
    let answer = client.get("/");
    assert_eq!((answer.status, answer.text().as_str()), (200, "all of it"));
}
