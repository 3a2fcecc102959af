//! Threat: slow clients. Whoever holds a connection without moving is gone at its deadline, and the honest never notice.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::harness::{
    client::Client,
    eventually, noise,
    palisade::{Palisade, Setup},
    puma::{Puma, Shape},
    recorder::Recorder,
};

/// Deadlines short enough for a test; a slack for a loaded machine stands beside each use.
const SHORT: &str = "[timeouts]\nheader = \"1s\"\nbody_stall = \"1s\"\nwrite_stall = \"1s\"\nidle = \"1s\"\ntls_handshake = \"1s\"\n\
    [rates]\nbody_min = \"500B/s\"\nwrite_min = \"500B/s\"\ngrace = \"1s\"\n";

/// What a deadline may take on a loaded machine, above itself.
const SLACK: Duration = Duration::from_secs(4);

/// Attackers come from addresses of their own, so that no limit on connections per address takes part.
fn attacker(palisade: &Palisade, number: usize) -> Client {
    let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
    Client::tcp_from([127, 1, high, low.max(1)], palisade.http())
}

#[test]
fn a_slow_head_ends_at_its_deadline_however_it_drips() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with(SHORT).start();
    palisade.serves();
    let before = palisade.process().descriptors();
    let mut client = attacker(&palisade, 1);
    let start = Instant::now();
    for byte in b"GET /slow HTTP/1.1\r\nHost: localhost\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".chunks(1) {
        if client.try_send(byte).is_err() || start.elapsed() > Duration::from_secs(1) + SLACK {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert!(start.elapsed() < Duration::from_secs(1) + SLACK, "still dripping after {:?}", start.elapsed());
    // A client that goes on sending may lose the answer to a reset; the log has it all the same.
    client.closed_within(SLACK);
    assert_eq!(palisade.refused("slow_header")["status"], 408);
    assert!(!recorder.got(b"/slow"));
    palisade.serves();
    palisade.descriptors_return_to(before);
}

#[test]
fn who_was_slow_in_an_attack_does_not_get_as_far_as_a_handshake_again() {
    let recorder = Recorder::start();
    let ban = "[[ban]]\nname = \"slow\"\non = \"slow_header\"\nthreshold = \"3/min\"\nfor = \"4s\"\nkey = \"all\"\nrefuse = \"connection\"\nallow = []\n";
    let palisade = Setup::before(recorder.address()).tls().with(SHORT).with(ban).start();
    for wave in [1..=2, 3..=3] {
        let mut slow: Vec<Client> = wave.map(|number| attacker(&palisade, number)).collect();
        for client in &mut slow {
            client.send("GET /half HTTP/1.1\r\nHost: local");
        }
        for client in &mut slow {
            client.closed_within(Duration::from_secs(1) + SLACK);
        }
    }
    assert!((palisade.metric("palisade_bans", &[("rule", "slow")]) - 1.0).abs() < 0.5, "the third");
    let shaken = palisade.metric("palisade_tls_handshakes_total", &[]);
    Client::tcp_from([127, 1, 0, 3], palisade.https()).closed_within(Duration::from_secs(1));
    assert!(palisade.metric("palisade_connections_rejected_total", &[("reason", "banned")]) >= 1.0);
    assert!((palisade.metric("palisade_tls_handshakes_total", &[]) - shaken).abs() < 0.5);
    assert_eq!(palisade.connect_tls().get("/").status, 200, "another address is served");
    assert!(!recorder.got(b"/half"));
    eventually("it may come again", || {
        let mut again = Client::tcp_from([127, 1, 0, 3], palisade.http());
        again.try_send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
        (again.try_answer("GET")?.status == 200).then_some(())
    });
}

#[test]
fn half_a_head_is_answered_408_at_its_deadline() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with(SHORT).start();
    let mut client = palisade.connect();
    let start = Instant::now();
    client.send("GET /half HTTP/1.1\r\nHost: local");
    let answer = client.answer();
    assert_eq!(answer.status, 408);
    assert!(answer.closes());
    assert!((Duration::from_millis(800)..Duration::from_secs(1) + SLACK).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert!(!recorder.got(b"/half"));
}

#[test]
fn a_silent_connection_ends_without_a_word() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with(SHORT).start();
    let mut fresh = palisade.connect();
    let mut kept = palisade.connect();
    assert_eq!(kept.get("/").status, 200);
    kept.closed_within(Duration::from_secs(1) + SLACK);
    assert_eq!(kept.rest().0, b"", "an idle connection ends without an answer: there is no request to answer");
    fresh.closed_within(Duration::from_secs(1) + SLACK);
}

#[test]
fn idle_time_is_not_head_time() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with("[timeouts]\nidle = \"20s\"\nheader = \"1s\"\n").start();
    let mut client = palisade.connect();
    assert_eq!(client.get("/").status, 200);
    assert!(client.silent_for(Duration::from_millis(2500)), "the head deadline closed an idle connection");
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn a_stalled_body_is_answered_408_and_puma_never_hears_of_it() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with(SHORT).start();
    let start = Instant::now();
    for head in
        ["Content-Length: 1000\r\n\r\nsome", "Transfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n", "Transfer-Encoding: chunked\r\n\r\n4"]
    {
        let mut client = palisade.connect();
        client.send(format!("POST /stall HTTP/1.1\r\nHost: localhost\r\n{head}"));
        let answer = client.answer_to("POST");
        assert_eq!(answer.status, 408, "{head:?}");
        assert!(answer.closes());
    }
    assert!(start.elapsed() < 3 * (Duration::from_secs(1) + SLACK));
    palisade.refused("slow_body");
    assert!(!recorder.got(b"/stall"));
}

#[test]
fn a_trickle_that_never_stalls_is_refused_by_its_rate() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with(SHORT).start();
    let mut client = attacker(&palisade, 2);
    client.send("POST /trickle HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n");
    let start = Instant::now();
    while client.try_send("x").is_ok() {
        assert!(start.elapsed() < Duration::from_secs(3) + SLACK, "ten bytes a second live on after {:?}", start.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
    palisade.refused("slow_body");
    assert!(!recorder.got(b"/trickle"));
}

#[test]
fn an_honest_upload_may_take_longer_than_any_deadline() {
    let Some(puma) = Puma::cluster() else { return };
    let palisade = Setup::before(puma.address()).with(SHORT).start();
    let body = noise(60_000);
    let mut client = palisade.connect();
    client.send(format!("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len()));
    let start = Instant::now();
    client.send_pieces(body.chunks(3_000), Duration::from_millis(200));
    assert!(start.elapsed() > Duration::from_secs(3));
    assert_eq!(client.answer_to("POST").json()["length"], 60_000);
}

#[test]
fn a_tls_handshake_has_a_deadline() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with(SHORT).tls().start();
    // A ClientHello that announces 512 bytes and sends four.
    for bytes in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"] {
        let mut client = Client::tcp(palisade.https());
        client.send(bytes);
        client.closed_within(Duration::from_secs(1) + SLACK);
    }
    assert_eq!(palisade.connect_tls().get("/").status, 200);
}

#[test]
fn slow_senders_hold_no_thread_of_puma() {
    let Some(puma) = Puma::start(Shape::cluster(0, 2)) else { return };
    let palisade =
        Setup::before(puma.address()).with("[upstream]\nslots = 2\n[timeouts]\nbody_stall = \"20s\"\nheader = \"20s\"\n").start();
    palisade.serves();
    let before = palisade.process().descriptors();
    let mut held: Vec<Client> = Vec::new();
    for n in 0..300 {
        let mut client = attacker(&palisade, n);
        match n % 3 {
            0 => client.send("GET /held HTTP/1.1\r\nHost: localhost\r\n"),
            1 => client.send("POST /held HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx"),
            _ => client.send("POST /held HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"),
        };
        held.push(client);
    }
    for _ in 0..50 {
        palisade.serves();
    }
    assert!(puma.seen().iter().all(|seen| seen.target != "/held"), "a half request reached Ruby");
    drop(held);
    palisade.descriptors_return_to(before);
}

#[test]
fn slow_readers_hold_no_thread_of_puma() {
    // Puma alone stands still with as many of them as it has threads; most proxies pass the attack on.
    let Some(puma) = Puma::start(Shape::cluster(0, 2)) else { return };
    let palisade = Setup::before(puma.address()).with("[upstream]\nslots = 2\n[timeouts]\nwrite_stall = \"20s\"\n").start();
    palisade.serves();
    let before = palisade.process().descriptors();
    let mut held: Vec<Client> = Vec::new();
    for n in 0..20 {
        let [_, low] = u16::try_from(n + 1).unwrap().to_be_bytes();
        let mut client = Client::tcp_narrow([127, 2, 0, low], palisade.http());
        client.send("GET /bytes/8388608 HTTP/1.1\r\nHost: localhost\r\n\r\n");
        held.push(client);
    }
    let start = Instant::now();
    for _ in 0..30 {
        palisade.serves();
    }
    assert!(start.elapsed() < Duration::from_secs(15), "honest requests took {:?}", start.elapsed());
    eventually("Puma is done with all large answers", || {
        let seen = puma.seen();
        (seen.iter().filter(|s| s.target.starts_with("/bytes") && s.end.is_some()).count() == 20).then_some(())
    });
    drop(held);
    palisade.descriptors_return_to(before);
}

#[test]
fn a_reader_that_stands_still_is_cut_off() {
    let Some(puma) = Puma::cluster() else { return };
    let palisade = Setup::before(puma.address()).with(SHORT).start();
    let mut client = Client::tcp_narrow([127, 2, 0, 1], palisade.http());
    client.send("GET /bytes/8388608 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    palisade.logged("the reader's end", |line| line["end"] == "slow_read");
    let (bytes, _) = client.rest();
    assert!(bytes.len() < 8_388_608, "the whole answer arrived");
    palisade.serves();
}

#[test]
fn a_reader_that_trickles_is_cut_off_by_its_rate() {
    let Some(puma) = Puma::cluster() else { return };
    let palisade = Setup::before(puma.address()).with(SHORT).with("[rates]\nwrite_min = \"100KiB/s\"\n").start();
    let mut client = Client::tcp_narrow([127, 2, 0, 1], palisade.http());
    client.send("GET /bytes/33554432 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let start = Instant::now();
    while !palisade.log().iter().any(|line| line["end"] == "slow_read") {
        client.take(2_000);
        assert!(start.elapsed() < Duration::from_secs(20), "20 kB/s live on");
        thread::sleep(Duration::from_millis(100));
    }
    palisade.serves();
}

#[test]
fn a_reader_over_tls_for_whom_the_kernels_buffer_is_too_large_is_not_cut_off() {
    let Some(puma) = Puma::cluster() else { return };
    let palisade = Setup::before(puma.address()).tls().with(SHORT).start();
    let mut client = Client::tls_narrow(palisade.https(), "localhost", palisade.root());
    client.send("GET /bytes/8388608 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    // The kernel calls a socket writable when a third of its buffer is free: at this rate after more than the second that a pause may take.
    let mut read = 0;
    for _ in 0..60 {
        read += client.take(2_000).len();
        thread::sleep(Duration::from_millis(100));
    }
    read += client.rest().0.len();
    assert!(read > 8_388_608, "cut off after {read} bytes");
    palisade.logged("the answer's end", |line| line["end"] == "ok");
}
