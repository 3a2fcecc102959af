//! Puma's threads, the one queue in front of them, and Puma's bad days.

use std::{
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
