//! Ending and reloading without losing anybody.

use std::{
    fs,
    net::TcpStream,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::harness::{
    client::Client,
    eventually,
    palisade::{Palisade, Setup, write_private},
    puma::Puma,
    recorder::{Recorder, Reply},
};

/// The default keeps the listeners open for five seconds, for load balancers to notice.
const QUICK: &str = "[server]\ndrain_delay = \"500ms\"\n";

fn busy(palisade: &Palisade, puma: &Puma, milliseconds: u32) -> Client {
    let mut client = palisade.connect();
    client.send(format!("GET /sleep/{milliseconds} HTTP/1.1\r\nHost: localhost\r\nX-Test-Id: busy\r\n\r\n"));
    eventually("the request is in Ruby", || (puma.count("busy") == 1).then_some(()));
    client
}

#[test]
fn sigterm_lets_what_is_running_finish() {
    let Some(puma) = Puma::cluster() else { return };
    let mut palisade = Setup::before(puma.address()).with(QUICK).start();
    let mut running = busy(&palisade, &puma, 1500);
    let mut idle = palisade.connect();
    assert_eq!(idle.get("/").status, 200);
    palisade.signal(Signal::TERM);
    let answer = running.answer();
    assert_eq!((answer.status, answer.closes()), (200, true), "{answer:?}");
    idle.closed_within(Duration::from_secs(15));
    assert!(palisade.process_mut().wait(Duration::from_secs(20)).success());
    assert!(TcpStream::connect(palisade.http()).is_err(), "the port is free again");
}

#[test]
fn a_second_sigterm_ends_it_now() {
    let recorder = Recorder::replying(Reply::Silence);
    let mut palisade = Setup::before(recorder.address()).with(QUICK).without_upstream().start();
    let mut stuck = palisade.connect();
    stuck.send("GET /stuck HTTP/1.1\r\nHost: localhost\r\n\r\n");
    eventually("the request is at Puma", || recorder.got(b"/stuck").then_some(()));
    palisade.signal(Signal::TERM);
    eventually("it drains", || palisade.admin("/ready").is_none_or(|a| a.status != 200).then_some(()));
    assert!(palisade.process_mut().ended().is_none(), "it ended with a request still running");
    let start = Instant::now();
    palisade.signal(Signal::TERM);
    palisade.process_mut().wait(Duration::from_secs(10));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn readiness_ends_before_the_listeners_do() {
    let Some(puma) = Puma::cluster() else { return };
    let palisade = Setup::before(puma.address()).with(QUICK).start();
    let mut running = busy(&palisade, &puma, 2000);
    palisade.signal(Signal::TERM);
    eventually("/ready says no", || palisade.admin("/ready").is_none_or(|a| a.status == 503).then_some(()));
    assert_eq!(running.answer().status, 200);
}

#[test]
fn a_bad_configuration_is_refused_at_reload_and_the_old_one_stays() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    palisade.serves();
    let good = fs::read_to_string(palisade.config_file()).unwrap();
    fs::write(palisade.config_file(), good.clone() + "\n[limits]\nbody = \"-3 apples\"\n").unwrap();
    palisade.signal(Signal::HUP);
    eventually("it says why", || palisade.process().output().contains("limits.body").then_some(()));
    palisade.serves();

    fs::write(palisade.config_file(), good + "\n[limits]\nbody = \"1KiB\"\n").unwrap();
    palisade.signal(Signal::HUP);
    eventually("the new limit holds", || {
        let answer =
            palisade.connect().ask(format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000\r\n\r\n{}", "x".repeat(2000)));
        (answer.status == 413).then_some(())
    });
    palisade.serves();
}

#[test]
fn a_reload_takes_up_a_new_certificate_and_keeps_the_old_when_the_new_is_bad() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).tls().start();
    assert_eq!(palisade.connect_tls().get("/").status, 200);
    let mut kept = palisade.connect_tls();
    assert_eq!(kept.get("/").status, 200);
    let (cert, key) = (palisade.cert_file(), palisade.config_file().with_file_name("key.pem"));

    fs::write(&cert, "no certificate").unwrap();
    palisade.signal(Signal::HUP);
    eventually("it says why", || palisade.process().output().contains("cert.pem").then_some(()));
    assert_eq!(palisade.connect_tls().get("/").status, 200, "the old certificate stays");

    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(&cert, made.cert.pem()).unwrap();
    write_private(&key, &made.signing_key.serialize_pem());
    palisade.signal(Signal::HUP);
    eventually("the new certificate is shown", || {
        let mut client = Client::tls(palisade.https(), "localhost", made.cert.der());
        client.try_send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
        (client.try_answer("GET")?.status == 200).then_some(())
    });
    assert_eq!(kept.get("/").status, 200, "an open connection does not notice");
}
