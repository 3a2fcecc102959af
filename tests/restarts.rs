//! Puma starts anew while requests come: nobody notices, and each request reaches the application once.

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
    palisade::{Palisade, Setup},
    puma::{Puma, Shape, is_before_7},
    within,
};

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

    /// Every request was answered with 200, and the application saw each exactly once; how many, and the longest wait.
    fn end(self, pumas: &[&Puma]) -> (usize, Duration) {
        self.stop.store(true, Relaxed);
        let sent: Vec<_> = self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        let mut seen: HashMap<String, u32> = HashMap::new();
        for request in pumas.iter().flat_map(|puma| puma.seen()) {
            *seen.entry(request.id).or_default() += 1;
        }
        let wrong: Vec<_> = sent.iter().filter(|(id, status, _)| *status != Some(200) || seen.get(id) != Some(&1)).collect();
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
    for mut puma in Puma::each(shape) {
        if reuse == "keepalive" && is_before_7(puma.process()) {
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
            let (sent, wait) = load.end(&[&puma]);
            eprintln!("{} {kind}: {rounds} restarts, the longest {longest:?}; {sent} requests, the longest {wait:?}", puma.address());
        }
        puma.stop();
    }
}

#[test]
fn every_puma_gets_each_request_once_over_restarts_of_every_kind() {
    restart(Shape::cluster(2, 2), "close");
}

/// Up to Puma 6.6 a worker that ends fails requests on kept connections, so `auto` keeps none there (docs/deploying.md).
#[test]
fn every_puma_from_7_on_gets_each_request_once_over_restarts_on_kept_connections() {
    for tcp in [false, true] {
        restart(Shape { tcp, ..Shape::cluster(2, 2) }, "keepalive");
    }
}

/// Behind a list of addresses one Puma can be away: the other takes its part, and gives it back.
#[test]
fn of_two_pumas_one_is_stopped_and_comes_back_and_nobody_notices() {
    let shape = Shape { tcp: true, ..Shape::cluster(0, 2) };
    let (Some(mut one), Some(other)) = (Puma::start(shape), Puma::start(shape)) else { return };
    let addresses = format!("[upstream]\naddress = [\"{}\", \"{}\"]\nslots = 4\n", one.address(), other.address());
    let palisade = Setup::before(one.address()).without_upstream().with(&addresses).start();
    let load = Load::start(&palisade, "two");
    let since = |puma: &Puma, before: usize| puma.seen().len().saturating_sub(before);
    let served = |puma: &Puma, before: usize| within(Duration::from_secs(30), "it is asked", || (since(puma, before) > 20).then_some(()));
    served(&one, 0);
    served(&other, 0);
    one.process().signal(Signal::TERM);
    one.wait();
    served(&other, other.seen().len());
    assert!(one.boot());
    served(&one, one.seen().len());
    let (sent, longest) = load.end(&[&one, &other]);
    eprintln!("{sent} requests, the longest {longest:?}");
}
