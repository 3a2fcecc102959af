//! Threat: exhaustion of Palisade itself, of its descriptors, its time and its disk. It gives up what is worth least first, says
//! so, and recovers by itself; nothing of it ends the process.

use std::{path::Path, process::Command, thread, time::Duration};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::harness::{
    client::Client,
    eventually, noise,
    palisade::{Palisade, Setup},
    recorder::Recorder,
    skip,
};

/// The limit of open files of the process from now on; the one before.
fn descriptors(palisade: &Palisade, most: Option<u64>) -> Option<u64> {
    let pid = Pid::from_raw(i32::try_from(palisade.process().pid()).unwrap()).unwrap();
    let now = rustix::process::getrlimit(Resource::Nofile);
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: most, maximum: now.maximum }).unwrap().current
}

/// Lowers the limit of open files until this part of it is in use.
fn press(palisade: &Palisade, part: f64, step: f64) {
    let most = palisade.process().descriptors() as f64 / part;
    descriptors(palisade, Some(most as u64));
    eventually(&format!("step {step} with {part} of the descriptors in use"), || is_at(palisade, step));
}

fn is_at(palisade: &Palisade, step: f64) -> Option<()> {
    ((palisade.metric("palisade_overload_step", &[]) - step).abs() < 0.5).then_some(())
}

/// Connections that say nothing.
fn silent(palisade: &Palisade, network: u8, count: u8) -> Vec<Client> {
    (0..count).map(|n| Client::tcp_from([127, network, n, 1], palisade.http())).collect()
}

#[test]
fn what_is_worth_least_is_given_up_first_and_comes_back_by_itself() {
    let recorder = Recorder::start();
    let route = "[[route]]\nmatch = { path = \"/export\" }\nlow_priority = true\n";
    let palisade = Setup::before(recorder.address()).tls().with(route).start();
    let mut honest = palisade.connect();
    assert_eq!(honest.get("/").status, 200);
    let held = silent(&palisade, 9, 200);
    eventually("they are in", || (palisade.metric("palisade_connections", &[]) >= 201.0).then_some(()));

    press(&palisade, 0.87, 1.0);
    let before = palisade.process().descriptors();
    let more = silent(&palisade, 10, 40);
    thread::sleep(Duration::from_millis(300));
    assert!(palisade.process().descriptors() <= before + 4, "newcomers come in only instead of others");
    palisade.serves();
    assert_eq!(palisade.connect_tls().get("/").status, 200);
    assert!(!honest.get("/").closes(), "keep-alive is not given up yet");
    assert_eq!(palisade.connect().get("/export").status, 200);

    press(&palisade, 0.92, 2.0);
    assert_eq!(palisade.connect().get("/export").status, 200);
    assert!(honest.get("/").closes(), "connections end with their answer");

    press(&palisade, 0.98, 3.0);
    assert_eq!(palisade.connect().get("/export").status, 503);
    palisade.refused("overloaded");
    palisade.serves();

    descriptors(&palisade, Some(10_000));
    eventually("nothing is given up", || is_at(&palisade, 0.0));
    let mut honest = palisade.connect();
    assert!(!honest.get("/").closes());
    assert_eq!(honest.get("/export").status, 200);
    for step in ["newcomers", "keep_alive", "low_priority", "nothing"] {
        let told = palisade.process().output();
        assert!(told.contains(&format!("\"event\":\"overload\",\"gives_up\":\"{step}\"")), "{step} is not in {told}");
    }
    drop((held, more));
}

#[test]
fn for_want_of_time_handshakes_are_given_up_and_open_connections_are_not() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).tls().with("[overload]\nlag = \"20ms\"\n").start();
    let mut honest = palisade.connect();
    let mut secure = palisade.connect_tls();
    assert!(honest.get("/").status == 200 && secure.get("/").status == 200);
    // The process gets no time at all for two seconds: its event loop is as late as if it had too much to do.
    palisade.signal(Signal::STOP);
    thread::sleep(Duration::from_millis(2200));
    palisade.signal(Signal::CONT);
    eventually("it knows that it is late", || (palisade.metric("palisade_overload_step", &[]) >= 1.0).then_some(()));
    Client::tcp(palisade.https()).closed_within(Duration::from_secs(2));
    assert!(palisade.metric("palisade_connections_rejected_total", &[("reason", "overload")]) >= 1.0);
    assert!(!honest.get("/").closes() && !secure.get("/").closes(), "a close would only bring on a handshake");
    palisade.serves();
    eventually("it recovers", || is_at(&palisade, 0.0));
    assert_eq!(palisade.connect_tls().get("/").status, 200);
}

#[test]
fn running_out_of_descriptors_is_survived() {
    let recorder = Recorder::start();
    // Without the watermark, which would see it coming.
    let palisade = Setup::before(recorder.address()).with("[overload]\ndescriptors = 1.0\n").start();
    palisade.serves();
    let before = palisade.process().descriptors();
    descriptors(&palisade, Some(before as u64 + 30));
    let held = silent(&palisade, 5, 200);
    eventually("accept fails", || palisade.process().output().contains("cannot accept").then_some(()));
    for _ in 0..5 {
        eventually("an honest client is served in between", || {
            let mut client = palisade.connect();
            client.try_send("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
            (client.try_answer("GET")?.status == 200).then_some(())
        });
    }
    drop(held);
    eventually("it serves again", || {
        let mut client = palisade.connect();
        client.try_send("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        (client.try_answer("GET")?.status == 200).then_some(())
    });
    assert!(palisade.metric("palisade_accept_errors_total", &[]) >= 1.0);
    palisade.descriptors_return_to(before);
}

/// A file system of one MiB.
struct Tiny<'a>(&'a Path);

impl<'a> Tiny<'a> {
    fn mount(folder: &'a Path) -> Option<Self> {
        let made = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(folder).output();
        made.is_ok_and(|out| out.status.success()).then_some(Tiny(folder))
    }
}

impl Drop for Tiny<'_> {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg("--lazy").arg(self.0).status().unwrap().success());
    }
}

#[test]
fn a_full_disk_is_an_answer_and_a_line_in_the_log() {
    let recorder = Recorder::start();
    let setup = Setup::before(recorder.address()).with("[buffer]\nmemory_per_request = \"16KiB\"\n");
    let spool = setup.spool();
    let Some(_tiny) = Tiny::mount(&spool) else { return skip("only root can mount a small file system") };
    let palisade = setup.start();
    let upload = |length: usize| {
        let mut client = palisade.connect();
        client.try_send(format!("POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n")).ok();
        client.try_send(noise(length)).ok();
        client.answer_to("POST").status
    };
    assert_eq!(upload(300_000), 200);
    for _ in 0..3 {
        assert_eq!(upload(3_000_000), 503);
    }
    palisade.refused("buffer_full");
    let told = palisade.process().output();
    assert!(told.contains("a body cannot be kept on disk") && told.contains("No space left on device"), "{told}");
    assert_eq!(upload(300_000), 200, "the room of those that failed is free again");
    assert!(std::fs::read_dir(&spool).unwrap().next().is_none(), "nothing has a name");
    palisade.serves();
    drop(palisade);
}
