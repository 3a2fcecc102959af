//! Threat: exhaustion. Every resource has a limit, a share for each client, and comes back when the attack is over.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::harness::{
    client::{Client, tls_config},
    eventually, noise,
    palisade::Setup,
    puma::Puma,
    recorder::Recorder,
};

#[test]
fn one_address_cannot_take_all_connections() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with("[limits]\nconnections_per_ip = 5\n").start();
    let source = [127, 3, 0, 1];
    let mut held: Vec<Client> = (0..5).map(|_| Client::tcp_from(source, palisade.http())).collect();
    for client in &mut held {
        assert_eq!(client.get("/").status, 200);
    }
    for _ in 0..5 {
        let mut sixth = Client::tcp_from(source, palisade.http());
        sixth.try_send("GET /sixth HTTP/1.1\r\nHost: localhost\r\n\r\n").ok();
        let answer = sixth.try_answer("GET");
        assert!(answer.is_none_or(|a| a.status == 429 || a.status == 503), "a sixth connection of one address was served");
    }
    assert!(!recorder.got(b"/sixth"));
    assert_eq!(Client::tcp_from([127, 3, 0, 2], palisade.http()).get("/").status, 200, "another address is not touched");
    assert!(palisade.metric("palisade_connections_rejected_total", &[]) >= 5.0);
    drop(held);
    eventually("its connections come back", || {
        let mut again = Client::tcp_from(source, palisade.http());
        again.try_send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
        (again.try_answer("GET")?.status == 200).then_some(())
    });
}

#[test]
fn when_connections_run_out_the_honest_are_served() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with("[limits]\nconnections = 50\nconnections_per_ip = 50\n").start();
    palisade.serves();
    let before = palisade.process().descriptors();
    let held: Vec<Client> = (0..200_u8).map(|n| Client::tcp_from([127, 4, n, 1], palisade.http())).collect();
    for _ in 0..10 {
        eventually("an honest client is served", || {
            let mut honest = palisade.connect();
            honest.try_send("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
            (honest.try_answer("GET")?.status == 200).then_some(())
        });
    }
    assert!(palisade.process().descriptors() < before + 60, "{} descriptors", palisade.process().descriptors());
    drop(held);
    palisade.descriptors_return_to(before);
}

#[test]
fn heads_above_the_limits_are_refused_and_reach_nobody() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    let head = |fields: String| format!("GET /large HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
    for (name, bytes, status) in [
        ("one large field", head(format!("X: {}\r\n", "x".repeat(40_000))), 431),
        ("many fields", head((0..150).map(|n| format!("X-{n}: y\r\n")).collect()), 431),
        ("a large head", head((0..50).map(|n| format!("X-{n}: {}\r\n", "y".repeat(1_000))).collect()), 431),
        ("a long target", format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "l".repeat(9_000)), 414),
        ("an endless request line", "G".repeat(100_000), 414),
    ] {
        let mut client = palisade.connect();
        client.try_send(bytes).ok();
        assert_eq!(client.answer().status, status, "{name}");
        client.closed_within(Duration::from_secs(10));
    }
    assert!(!recorder.got(b"large") && !recorder.got(b"llll"));
    palisade.serves();
}

#[test]
fn a_body_above_the_limit_is_refused_before_it_is_read() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with("[limits]\nbody = \"100KiB\"\n").start();
    for (name, head) in [
        ("declared", "Content-Length: 200000\r\n\r\n"),
        ("declared and expecting", "Content-Length: 200000\r\nExpect: 100-continue\r\n\r\n"),
        ("a length beyond all limits", "Content-Length: 9999999999999999999\r\n\r\n"),
    ] {
        let mut client = palisade.connect();
        client.send(format!("POST /large HTTP/1.1\r\nHost: localhost\r\n{head}"));
        let answer = client.answer_to("POST");
        assert!(answer.interim.is_empty(), "{name}: invited and refused");
        assert_eq!(answer.status, 413, "{name}");
    }
    let mut client = palisade.connect();
    client.send("POST /large HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..20 {
        let mut chunk = b"2710\r\n".to_vec();
        chunk.extend_from_slice(&[b'x'; 10_000]);
        chunk.extend_from_slice(b"\r\n");
        if client.try_send(chunk).is_err() {
            break;
        }
    }
    assert_eq!(client.answer_to("POST").status, 413, "counted");
    palisade.logged("a line of it", |line| line["status"] == 413);
    assert!(!recorder.got(b"/large"));
    palisade.serves();
}

#[test]
fn uploads_above_the_budget_are_refused_and_everything_comes_back() {
    let Some(puma) = Puma::cluster() else { return };
    let budget = "[buffer]\nmemory_per_request = \"16KiB\"\nmemory_total = \"1MiB\"\ndisk_total = \"8MiB\"\n";
    let palisade = Setup::before(puma.address()).with(budget).start();
    palisade.serves();
    let descriptors = palisade.process().descriptors();
    let resident = palisade.process().resident_kib();
    let body = noise(2 << 20);
    let mut held: Vec<Client> = Vec::new();
    for n in 0..20_u8 {
        let mut client = Client::tcp_from([127, 6, n, 1], palisade.http());
        client.try_send("POST /flood HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4194304\r\n\r\n").ok();
        client.try_send(&body).ok();
        held.push(client);
    }
    eventually("the budget refuses", || {
        (palisade.metric("palisade_requests_rejected_total", &[("reason", "buffer_full")]) >= 1.0).then_some(())
    });
    palisade.serves();
    let grown = palisade.process().resident_kib().saturating_sub(resident);
    assert!(grown < 32 << 10, "{grown} KiB for a budget of 1 MiB");
    assert!(palisade.metric("palisade_buffer_bytes", &[("kind", "disk")]) <= f64::from(8 << 20));
    drop(held);
    eventually("the budget comes back", || (palisade.metric("palisade_buffer_bytes", &[]) < 1.0).then_some(()));
    palisade.descriptors_return_to(descriptors);
    let small = noise(1 << 20);
    let mut request = format!("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", small.len()).into_bytes();
    request.extend_from_slice(&small);
    assert_eq!(palisade.connect().ask(request).json()["length"], 1 << 20);
    assert!(puma.seen().iter().all(|seen| seen.target != "/flood"));
}

#[test]
fn chunk_extensions_without_end_are_refused() {
    // CVE-2024-21647: Puma spends seconds of CPU on them.
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    let head = "POST /ext HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    for bytes in [
        format!("{head}1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(1_000)),
        format!("{head}{}0\r\n\r\n", format!("1;{}\r\nx\r\n", "a".repeat(200)).repeat(100)),
    ] {
        let mut client = palisade.connect();
        client.try_send(bytes).ok();
        assert_eq!(client.answer_to("POST").status, 400);
    }
    assert!(!recorder.got(b"/ext"));
}

#[test]
fn a_rate_limit_stops_one_client_and_no_other() {
    let recorder = Recorder::start();
    let rule = "[[rate_limit]]\nname = \"login\"\nmatch = { method = \"POST\", path = \"/session\" }\nkey = [\"ip\"]\nrate = \"5/min\"\nburst = 5\n";
    let palisade = Setup::before(recorder.address()).with(rule).start();
    let login = "POST /session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    let mut client = palisade.connect();
    let statuses: Vec<u16> = (0..8).map(|_| client.ask(login).status).collect();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429, 429]);
    let limited = client.ask(login);
    assert!(limited.field("retry-after").is_some_and(|v| v.parse::<u32>().is_ok_and(|s| (1..=60).contains(&s))), "{limited:?}");
    assert_eq!(limited.field("ratelimit-policy"), Some("\"login\";q=5;w=60"));
    let reset = limited.field("retry-after").unwrap().to_owned();
    assert_eq!(limited.field("ratelimit"), Some(format!("\"login\";r=0;t={reset}").as_str()));
    palisade.refused("rate_limited");
    assert_eq!(client.get("/").status, 200, "other paths are not limited");
    assert_eq!(Client::tcp_from([127, 7, 0, 1], palisade.http()).ask(login).status, 200, "other clients are not limited");
    assert_eq!(recorder.requests().iter().filter(|r| r.starts_with(b"POST /session")).count(), 6);
}

#[tokio::test]
async fn streams_that_are_reset_at_once_cost_puma_next_to_nothing() {
    // CVE-2023-44487. The attack opens streams and takes them back; the honest client has a connection of its own.
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).tls().start();
    let connector = tokio_rustls::TlsConnector::from(tls_config(palisade.root(), &[b"h2"]));
    for _ in 0..5 {
        let tcp = tokio::net::TcpStream::connect(palisade.https()).await.unwrap();
        let tls = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
        let driver = tokio::spawn(connection);
        for _ in 0..400 {
            let mut sender = sender.clone();
            if sender.is_closed() {
                break;
            }
            let request = http::Request::get("https://localhost/reset").body(Empty::new()).unwrap();
            // Dropping the answer's future takes the stream back.
            tokio::time::timeout(Duration::from_micros(200), sender.send_request(request)).await.ok();
        }
        driver.abort();
    }
    assert_eq!(palisade.connect_tls().get("/").status, 200);
    let reached = recorder.requests().iter().filter(|r| r.starts_with(b"GET /reset")).count();
    assert!(reached < 2_000, "{reached} of 2,000 streams reached Puma");
}

#[test]
fn many_idle_connections_cost_little_and_come_back() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    palisade.serves();
    let (descriptors, resident) = (palisade.process().descriptors(), palisade.process().resident_kib());
    let mut held: Vec<Client> = Vec::new();
    for n in 0..500_u16 {
        let [high, low] = n.to_be_bytes();
        let mut client = Client::tcp_from([127, 8, high, low.max(1)], palisade.http());
        assert_eq!(client.get("/").status, 200);
        held.push(client);
    }
    let each = palisade.process().resident_kib().saturating_sub(resident) / 500;
    assert!(each <= 16, "{each} KiB for an idle connection");
    palisade.serves();
    drop(held);
    palisade.descriptors_return_to(descriptors);
}
