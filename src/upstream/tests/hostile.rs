//! A Puma that was taken over, or an application that writes to the socket itself.

use super::*;
use crate::guard::rule::Rule;

/// The refusal of an answer, and that its thread comes back.
async fn refusal(said: &[u8]) -> Refusal {
    let puma = Scripted::say(said);
    let way = Way::new(config(puma.address.clone()));
    let refusal = way.get("/").await.unwrap_err();
    assert!(way.all_slots_free().await);
    refusal
}

#[tokio::test]
async fn an_answer_with_two_readings_is_refused() {
    for (said, rule) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"[..], Rule::P3),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", Rule::P3),
        (b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nab", Rule::P3),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Rule::P3),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Rule::P3),
        (b"HTTP/1.1 20 OK\r\n\r\n", Rule::P1),
        (b"HELLO\r\n\r\n", Rule::P1),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Rule::P1),
        (b"HTTP/1.1 200 OK\r\nX-A: b\rSet-Cookie: c\r\n\r\n", Rule::P2),
        (b"HTTP/1.1 200 OK\r\nX A: b\r\n\r\n", Rule::P2),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", Rule::P8),
        (b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", Rule::P6),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Rule::P4),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabX\r\n0\r\n\r\n", Rule::P4),
    ] {
        assert_eq!(refusal(said).await, Refusal::UpstreamBad(rule), "{}", String::from_utf8_lossy(said));
    }
}

#[tokio::test]
async fn an_answer_that_ends_too_early_is_never_a_clean_end() {
    for said in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"H",
        b"",
    ] {
        assert_eq!(refusal(said).await, Refusal::UpstreamReset, "{}", String::from_utf8_lossy(said));
    }
}

#[tokio::test]
async fn endless_interim_answers_are_cut_after_eight() {
    let nine = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(9);
    assert_eq!(refusal(&nine).await, Refusal::UpstreamBad(Rule::P6));
    let mut eight = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(8);
    eight.extend_from_slice(&ok("end"));
    let puma = Scripted::say(&eight);
    assert_eq!(Way::new(config(puma.address.clone())).get("/").await.unwrap().1, "end");
}

#[tokio::test]
async fn an_endless_head_is_cut_at_the_limit() {
    let mut endless = b"HTTP/1.1 200 OK\r\n".to_vec();
    for n in 0..20_000 {
        endless.extend_from_slice(format!("X-{n}: yyyyyyyy\r\n").as_bytes());
    }
    assert_eq!(refusal(&endless).await, Refusal::UpstreamBad(Rule::P5));
}

#[tokio::test]
async fn a_long_but_honest_head_passes() {
    let said = format!("HTTP/1.1 200 OK\r\nLink: {}\r\nContent-Length: 2\r\n\r\nok", "l".repeat(100 * 1024));
    let puma = Scripted::say(said.as_bytes());
    assert_eq!(Way::new(config(puma.address.clone())).get("/").await.unwrap().1, "ok");
}

#[tokio::test]
async fn a_puma_that_trickles_its_head_meets_the_deadline() {
    let puma = Scripted::new(vec![Say::Hang(b"HTTP/1.1 200 OK\r\nX-".to_vec())]);
    let way = Way::new(Config { response_timeout: Deadline::millis(200), ..config(puma.address.clone()) });
    assert_eq!(way.get("/").await.unwrap_err(), Refusal::UpstreamTimeout);
}

#[tokio::test]
async fn a_puma_that_stops_within_a_body_meets_the_deadline() {
    let puma = Scripted::new(vec![Say::Hang(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc".to_vec())]);
    let way = Way::new(Config { response_timeout: Deadline::millis(200), ..config(puma.address.clone()) });
    assert_eq!(way.get("/").await.unwrap_err(), Refusal::UpstreamTimeout);
}
