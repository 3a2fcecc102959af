//! Puma's threads, the one queue in front of them, and Puma's bad days.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::harness::{
    client::{Client, End},
    eventually,
    palisade::{Palisade, Setup},
    puma::{Puma, Shape},
    recorder::{Recorder, Reply},
    within,
};

fn ask(client: &mut Client, id: &str, target: &str) {
    client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nX-Test-Id: {id}\r\n\r\n"));
}

/// Sends a request and waits until Ruby has it.
fn occupy(palisade: &Palisade, puma: &Puma, id: &str, target: &str) -> Client {
    let mut client = palisade.connect();
    ask(&mut client, id, target);
    eventually("the request is in Ruby", || (puma.count(id) == 1).then_some(()));
    client
}

#[test]
fn no_more_requests_are_inside_puma_than_it_has_threads() {
    let Some(puma) = Puma::start(Shape::cluster(2, 2)) else { return };
    let palisade = Setup::before(puma.address()).with("[upstream]\nslots = 4\n[queue]\ndeadline = \"20s\"\nmax = 100\n").start();
    let mut clients: Vec<Client> = (0..24).map(|_| palisade.connect()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        ask(client, &format!("slot-{n}"), "/sleep/100");
    }
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
    assert!(puma.most_at_once() <= 4, "{} at once in 4 threads", puma.most_at_once());
    for n in 0..24 {
        assert_eq!(puma.count(&format!("slot-{n}")), 1);
    }
}

#[test]
fn work_is_spread_over_the_workers_sockets() {
    let Some(puma) = Puma::start(Shape::cluster(2, 1)) else { return };
    let palisade = Setup::before(puma.address()).with("[upstream]\nslots = 2\n").start();
    let _busy = occupy(&palisade, &puma, "busy", "/sleep/2000");
    let start = Instant::now();
    for n in 0..5 {
        let mut client = palisade.connect();
        ask(&mut client, &format!("quick-{n}"), "/");
        assert_eq!(client.answer().status, 200);
    }
    assert!(start.elapsed() < Duration::from_millis(1500), "quick requests waited behind the slow one: {:?}", start.elapsed());
}

#[test]
fn a_full_queue_answers_503_at_once_and_says_when_to_come_back() {
    let Some(puma) = Puma::start(Shape::cluster(0, 1)) else { return };
    let palisade = Setup::before(puma.address()).with("[upstream]\nslots = 1\n[queue]\ndeadline = \"10s\"\nmax = 2\n").start();
    let mut waiting = vec![occupy(&palisade, &puma, "first", "/sleep/2000")];
    for n in 0..2 {
        let mut client = Client::tcp_from([127, 0, 1 + n, 1], palisade.http());
        ask(&mut client, &format!("queued-{n}"), "/");
        waiting.push(client);
        eventually("it waits in the queue", || (palisade.metric("palisade_queue_depth", &[]) >= f64::from(n) + 1.0).then_some(()));
    }
    let start = Instant::now();
    let refused = Client::tcp_from([127, 0, 3, 1], palisade.http()).get("/");
    assert_eq!(refused.status, 503);
    assert!(refused.field("retry-after").is_some_and(|v| v.parse::<u32>().is_ok_and(|s| s >= 1)), "{refused:?}");
    assert!(start.elapsed() < Duration::from_millis(1000));
    palisade.refused("queue_full");
    for mut client in waiting {
        assert_eq!(client.answer().status, 200, "whoever was in the queue is served");
    }
}

#[test]
fn a_wait_for_a_thread_ends_with_its_deadline() {
    let Some(puma) = Puma::start(Shape::cluster(0, 1)) else { return };
    let palisade = Setup::before(puma.address()).with("[upstream]\nslots = 1\n[queue]\ndeadline = \"300ms\"\n").start();
    let mut first = occupy(&palisade, &puma, "first", "/sleep/2500");
    let mut second = palisade.connect();
    ask(&mut second, "second", "/");
    let answer = second.answer();
    assert_eq!(answer.status, 503);
    assert!(answer.field("retry-after").is_some());
    palisade.refused("queue_timeout");
    assert_eq!(first.answer().status, 200);
    assert_eq!(puma.count("second"), 0, "refused and yet executed");
}

#[test]
fn a_client_that_leaves_the_queue_is_not_executed() {
    let Some(puma) = Puma::start(Shape::cluster(0, 1)) else { return };
    let palisade = Setup::before(puma.address()).with("[upstream]\nslots = 1\n[queue]\ndeadline = \"10s\"\n").start();
    let mut first = occupy(&palisade, &puma, "first", "/sleep/1500");
    let mut gone = palisade.connect();
    ask(&mut gone, "gone", "/");
    eventually("it waits in the queue", || (palisade.metric("palisade_queue_depth", &[]) >= 1.0).then_some(()));
    gone.reset();
    assert_eq!(first.answer().status, 200);
    palisade.serves();
    assert_eq!(puma.count("gone"), 0);
}

#[test]
fn an_answer_that_does_not_come_in_time_is_a_504_and_keeps_its_thread_booked() {
    let Some(puma) = Puma::start(Shape::cluster(0, 2)) else { return };
    let config = "[upstream]\nslots = 2\nresponse_timeout = \"500ms\"\n";
    let palisade = Setup::before(puma.address()).with(config).start();
    let mut client = palisade.connect();
    ask(&mut client, "late", "/sleep/2000");
    assert_eq!(client.answer().status, 504);
    palisade.refused("upstream_timeout");
    palisade.serves();
    assert_eq!(puma.count("late"), 1, "a request that may have been executed is not sent again");
}

#[test]
fn without_puma_the_answer_is_503_after_the_hold() {
    let dir = tempfile::TempDir::new().unwrap();
    let address = format!("unix:{}/w0.sock", dir.path().display());
    let palisade = Setup::before(address).with("[upstream]\nslots = 2\nhold_on_refused = \"500ms\"\n").without_upstream().start();
    let start = Instant::now();
    let answer = palisade.connect().get("/");
    assert_eq!(answer.status, 503);
    assert!(answer.field("retry-after").is_some());
    assert!(start.elapsed() >= Duration::from_millis(400), "it did not hold: {:?}", start.elapsed());
    palisade.refused("upstream_refused");
    assert_ne!(palisade.admin("/ready").unwrap().status, 200, "not ready without Puma");
}

#[test]
fn a_restart_of_puma_is_waited_out() {
    let Some(mut puma) = Puma::cluster() else { return };
    let palisade = Setup::before(puma.address()).with("[upstream]\nslots = 10\nhold_on_refused = \"15s\"\n").start();
    palisade.serves();
    puma.stop();
    let mut clients: Vec<Client> = (0..5).map(|_| palisade.connect()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(format!("POST /echo HTTP/1.1\r\nHost: localhost\r\nX-Test-Id: held-{n}\r\nContent-Length: 2\r\n\r\nhi"));
    }
    thread::sleep(Duration::from_millis(300));
    assert!(puma.boot());
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.answer_to("POST").status, 200);
        assert_eq!(puma.count(&format!("held-{n}")), 1);
    }
}

#[test]
fn a_phased_restart_loses_and_doubles_nothing() {
    let Some(puma) = Puma::cluster() else { return };
    let palisade = Setup::before(puma.address()).with("[upstream]\nslots = 10\n").start();
    let old = puma.process().children();
    puma.process().signal(Signal::USR1);
    let start = Instant::now();
    let mut sent = 0;
    // Each worker says that it has booted, in phase 1.
    while puma.process().output().matches("phase: 1").count() < 3 {
        assert!(start.elapsed() < Duration::from_secs(60), "the restart does not end:\n{}", puma.process().output());
        let mut client = palisade.connect();
        client.send(format!("POST /echo HTTP/1.1\r\nHost: localhost\r\nX-Test-Id: phased-{sent}\r\nContent-Length: 2\r\n\r\nhi"));
        assert_eq!(client.answer_to("POST").status, 200, "request {sent}");
        sent += 1;
    }
    let seen = puma.seen();
    for n in 0..sent {
        let id = format!("phased-{n}");
        assert_eq!(seen.iter().filter(|s| s.id == id).count(), 1, "{id}");
    }
    assert!(seen.iter().any(|s| !old.contains(&s.pid)), "no new worker was asked, old ones: {old:?}");
}

#[test]
fn a_request_that_kills_its_worker_is_not_sent_again() {
    let Some(puma) = Puma::cluster() else { return };
    let palisade = Setup::before(puma.address()).with("[upstream]\nslots = 10\n").start();
    for (id, method) in [("kill-get", "GET"), ("kill-post", "POST")] {
        let answer =
            palisade.connect().ask(format!("{method} /crash HTTP/1.1\r\nHost: localhost\r\nX-Test-Id: {id}\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(answer.status, 502);
        assert_eq!(puma.count(id), 1, "{id}");
    }
    palisade.refused("upstream_reset");
    eventually("the workers are back", || (palisade.connect().get("/").status == 200).then_some(()));
}

#[test]
fn a_broken_off_answer_is_not_passed_on_as_a_whole_one() {
    let Some(puma) = Puma::cluster() else { return };
    let palisade = Setup::before(puma.address()).start();
    let mut client = palisade.connect();
    client.send("GET /short HTTP/1.1\r\nHost: localhost\r\n\r\n");
    match client.try_answer("GET") {
        None => {}
        Some(answer) => assert_eq!(answer.status, 502, "a truncated answer looked whole: {answer:?}"),
    }
    palisade.serves();
}

#[test]
fn errors_of_the_application_pass_as_they_are() {
    let Some(puma) = Puma::cluster() else { return };
    let palisade = Setup::before(puma.address()).start();
    assert_eq!(palisade.connect().get("/raise").status, 500);
    assert_eq!(palisade.connect().get("/nowhere").text(), "not found\n");
    let answer = palisade.connect().get("/status/503");
    assert_eq!((answer.status, answer.text().as_str()), (503, "status\n"));
}

#[test]
fn puma_on_a_tcp_port_is_served_as_well() {
    let Some(puma) = Puma::start(Shape { tcp: true, ..Shape::cluster(2, 2) }) else { return };
    let palisade = Setup::before(puma.address()).with("[upstream]\nslots = 4\n").start();
    let env = palisade.connect().get("/env").json();
    assert_eq!(env["HTTP_X_FORWARDED_FOR"], "127.0.0.1");
}

#[test]
fn a_silent_puma_costs_one_deadline_and_one_delivery() {
    let recorder = Recorder::replying(Reply::Silence);
    let palisade =
        Setup::before(recorder.address()).with("[upstream]\nslots = 2\nresponse_timeout = \"500ms\"\n").without_upstream().start();
    let mut client = palisade.connect();
    client.send("GET /once HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(client.answer().status, 504);
    assert_eq!(recorder.requests().iter().filter(|r| r.starts_with(b"GET /once ")).count(), 1);
}

#[test]
fn a_puma_that_closes_without_a_word_is_asked_at_most_twice_and_an_upload_once() {
    let recorder = Recorder::replying(Reply::Raw(Vec::new()));
    let palisade = Setup::before(recorder.address()).with("[upstream]\nslots = 2\n").without_upstream().start();
    let answer = palisade.connect().ask("POST /once HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!(answer.status, 502);
    assert_eq!(recorder.requests().iter().filter(|r| r.starts_with(b"POST /once ")).count(), 1);
    let mut client = palisade.connect();
    client.send("GET /again HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(client.answer().status, 502);
    assert!(client.rest().1 == End::Finished);
    assert!(recorder.requests().iter().filter(|r| r.starts_with(b"GET /again ")).count() <= 2);
}

/// Its id, its status, how long it took.
type Sent = (String, Option<u16>, Duration);

/// Sends uploads and, between them, questions with ids from several clients, each on a connection of its own, until it is
/// told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    clients: Vec<thread::JoinHandle<Vec<Sent>>>,
}

impl Load {
    fn start(palisade: &Palisade, label: &str) -> Load {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients = (0..4).map(|client| {
            let (stop, count, address, label) = (Arc::clone(&stop), Arc::clone(&count), palisade.http(), label.to_owned());
            thread::spawn(move || {
                let mut sent = Vec::new();
                while !stop.load(Relaxed) {
                    let id = format!("{label}-{client}-{}", sent.len());
                    let begin = Instant::now();
                    let method = if sent.len() % 2 == 0 { "POST" } else { "GET" };
                    sent.push((id.clone(), send(address, method, &id), begin.elapsed()));
                    count.fetch_add(1, Relaxed);
                }
                sent
            })
        });
        Load { clients: clients.collect(), stop, count }
    }

    /// Every request was answered with 200, and the application saw each exactly once, questions on kept connections perhaps
    /// twice; how many, and the longest wait.
    fn end(self, puma: &Puma, kept: bool) -> (usize, Duration) {
        self.stop.store(true, Relaxed);
        let sent: Vec<_> = self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        let mut seen: HashMap<String, (u32, u32)> = HashMap::new();
        for request in puma.seen() {
            let most = if kept && request.method == "GET" { 2 } else { 1 };
            seen.entry(request.id).or_insert((0, most)).0 += 1;
        }
        let was_seen = |id| seen.get(id).is_some_and(|(times, most)| times <= most);
        let wrong: Vec<_> = sent.iter().filter(|(id, status, _)| *status != Some(200) || !was_seen(id)).collect();
        assert!(wrong.is_empty(), "of {}: {wrong:?}", sent.len());
        (sent.len(), sent.iter().map(|(.., wait)| *wait).max().unwrap_or_default())
    }
}

/// The status; none where no answer came. As patient as the hold: on a busy machine Puma boots that long.
fn send(address: SocketAddr, method: &str, id: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(40))).ok()?;
    let (length, body) = if method == "POST" { ("Content-Length: 2\r\n", "hi") } else { ("", "") };
    let head = format!("{method} /sleep/5 HTTP/1.1\r\nHost: localhost\r\nX-Test-Id: {id}\r\n{length}Connection: close\r\n\r\n{body}");
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

/// `RESTARTS` rounds of each kind, 1 by default; `RESTART_KIND` names one alone.
fn restart(shape: Shape, reuse: &str) {
    let rounds = std::env::var("RESTARTS").map_or(1, |rounds| rounds.parse().unwrap());
    let kept = reuse == "keepalive";
    for mut puma in Puma::each(shape) {
        let old = ["5.", "6."].iter().any(|version| puma.process().output().contains(&format!("Puma version: {version}")));
        if kept && old {
            puma.stop();
            continue;
        }
        let settings = format!("[upstream]\nslots = 4\nhold_on_refused = \"30s\"\nreuse = \"{reuse}\"\n");
        let palisade = Setup::before(puma.address()).with(&settings).start();
        let only = std::env::var("RESTART_KIND").ok();
        for kind in ["phased", "hot", "stop"].into_iter().filter(|kind| only.as_deref().is_none_or(|only| only == *kind)) {
            let load = Load::start(&palisade, kind);
            let mut longest = Duration::ZERO;
            for _ in 0..rounds {
                let start = Instant::now();
                let boots = puma.process().output().matches(" booted ").count();
                match kind {
                    "phased" => puma.process().signal(Signal::USR1),
                    "hot" => puma.process().signal(Signal::USR2),
                    _ => {
                        puma.process().signal(Signal::TERM);
                        puma.wait();
                        assert!(puma.boot());
                    }
                }
                within(Duration::from_secs(60), "the workers boot", || {
                    (kind == "stop" || puma.process().output().matches(" booted ").count() >= boots + 2).then_some(())
                });
                longest = longest.max(start.elapsed());
                thread::sleep(Duration::from_millis(300));
            }
            within(Duration::from_secs(60), "there was load", || (load.count.load(Relaxed) > 20).then_some(()));
            let (sent, wait) = load.end(&puma, kept);
            eprintln!("{} {kind}: {rounds} restarts, the longest {longest:?}; {sent} requests, the longest {wait:?}", puma.address());
        }
        puma.stop();
    }
}

#[test]
fn every_puma_gets_each_request_once_over_restarts_of_every_kind() {
    restart(Shape::cluster(2, 2), "close");
}

/// Up to Puma 6.6 a worker that ends fails requests on kept connections, so `auto` keeps none there; from 7 on it keeps those
/// of questions (docs/deploying.md). Uploads are as safe as ever.
#[test]
fn every_puma_from_7_on_answers_each_request_over_restarts_on_kept_connections() {
    for tcp in [false, true] {
        restart(Shape { tcp, ..Shape::cluster(2, 2) }, "keepalive");
    }
}

#[test]
fn the_number_of_threads_follows_pumas_configuration() {
    let app = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(app.path().join("config")).unwrap();
    let file = app.path().join("config/puma.rb");
    let puma = |threads: u32| format!("workers 2\nthreads {threads}, {threads}\nbind \"unix://{}/puma.sock\"\n", app.path().display());
    std::fs::write(&file, puma(3)).unwrap();
    // As an operator writes it: the address and the number of threads come from config/puma.rb.
    let config = format!("app = {:?}\n", app.path().display().to_string());
    let palisade = Setup::before("puma").with(&config).without_upstream().start();
    let threads = || palisade.admin("/stats").unwrap().json()["max_threads"].as_u64();
    eventually("two workers with three threads", || (threads() == Some(6)).then_some(()));
    std::fs::write(&file, puma(8)).unwrap();
    eventually("two workers with eight threads", || (threads() == Some(16)).then_some(()));
}
