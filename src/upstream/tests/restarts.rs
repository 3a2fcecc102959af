//! Restarts and outages: nobody notices, and nothing is executed twice.

use std::collections::BTreeMap;

use rustix::process::Signal;

use super::{real::RealPuma, *};
use crate::upstream::Reuse;

/// Sends requests with ids from several clients until told to stop; every one must succeed.
struct Load {
    stop: Arc<std::sync::atomic::AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<(Vec<String>, Vec<Refusal>)>>,
}

impl Load {
    fn start(way: &Way, label: &str) -> Self {
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let clients = (0..6)
            .map(|client| {
                let (way, stop, label) = (way.clone(), Arc::clone(&stop), label.to_owned());
                tokio::spawn(async move {
                    let (mut sent, mut refused) = (Vec::new(), Vec::new());
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let id = format!("{label}-{client}-{}", sent.len());
                        let (method, body) = if sent.len() % 2 == 0 { ("GET", "") } else { ("POST", "x") };
                        let length = if body.is_empty() { "" } else { "Content-Length: 1\r\n" };
                        let head = format!("{method} /work HTTP/1.1\r\nHost: app\r\nX-Request-Id: {id}\r\n{length}\r\n");
                        match way.fetch(&head, body.as_bytes()).await {
                            Ok((200, _)) => {}
                            Ok((status, body)) => panic!("{status} {body:?}"),
                            Err(refusal) => refused.push(refusal),
                        }
                        sent.push(id);
                    }
                    (sent, refused)
                })
            })
            .collect();
        Load { stop, clients }
    }

    /// Every request was answered, and the application saw each id exactly once.
    async fn end(self, puma: &RealPuma) -> usize {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let (mut sent, mut refused) = (Vec::new(), Vec::new());
        for client in self.clients {
            let (ids, errors) = client.await.unwrap();
            sent.extend(ids);
            refused.extend(errors);
        }
        assert_eq!(refused, [], "of {}", sent.len());
        let mut seen = BTreeMap::new();
        for id in puma.seen() {
            *seen.entry(id).or_insert(0) += 1;
        }
        for id in &sent {
            assert_eq!(seen.get(id), Some(&1), "{id}");
        }
        sent.len()
    }
}

fn rounds() -> u32 {
    std::env::var("RESTARTS").ok().and_then(|n| n.parse().ok()).unwrap_or(2)
}

async fn settle(puma: &RealPuma) {
    tokio::time::sleep(Duration::from_millis(300)).await;
    puma.wait_until_it_listens();
    tokio::time::sleep(Duration::from_millis(700)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_restart_is_not_noticed() {
    for reuse in [Reuse::Close, Reuse::Keepalive] {
        let puma = RealPuma::start(&["-t", "5:5"]);
        let way = Way::new(Config { reuse, ..config(puma.address()) });
        let load = Load::start(&way, "usr2");
        for _ in 0..rounds() {
            settle(&puma).await;
            puma.signal(Signal::USR2);
        }
        settle(&puma).await;
        assert!(load.end(&puma).await > 50);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_phased_restart_is_not_noticed() {
    for reuse in [Reuse::Close, Reuse::Keepalive] {
        let puma = RealPuma::start(&["-t", "3:3", "-w", "2"]);
        let way = Way::new(Config { reuse, slots: Some(6), ..config(puma.address()) });
        let load = Load::start(&way, "usr1");
        for _ in 0..rounds() {
            settle(&puma).await;
            puma.signal(Signal::USR1);
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        settle(&puma).await;
        assert!(load.end(&puma).await > 50);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_and_start_is_held() {
    for reuse in [Reuse::Close, Reuse::Keepalive] {
        let mut puma = RealPuma::start(&["-t", "5:5"]);
        let way = Way::new(Config { reuse, ..config(puma.address()) });
        let load = Load::start(&way, "term");
        for _ in 0..rounds() {
            settle(&puma).await;
            puma.stop();
            puma.start_again();
        }
        settle(&puma).await;
        assert!(load.end(&puma).await > 50);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_over_tcp_are_not_noticed_either() {
    let mut puma = RealPuma::start_tcp(&["-t", "5:5"]);
    let way = Way::new(Config { reuse: Reuse::Keepalive, ..config(puma.address()) });
    let load = Load::start(&way, "tcp");
    for _ in 0..rounds() {
        settle(&puma).await;
        puma.stop();
        puma.start_again();
        settle(&puma).await;
        puma.signal(Signal::USR2);
    }
    settle(&puma).await;
    assert!(load.end(&puma).await > 50);
}

#[tokio::test]
async fn a_puma_that_does_not_come_back_is_refused_after_the_hold() {
    let folder = tempfile::tempdir().unwrap();
    let address = Address::Unix(folder.path().join("none.sock"));
    let way = Way::new(Config { hold_on_refused: Deadline::millis(300), ..config(address) });
    let start = Instant::now();
    let (first, second) = tokio::join!(way.get("/1"), way.get("/2"));
    assert_eq!((first.unwrap_err(), second.unwrap_err()), (Refusal::UpstreamRefused, Refusal::UpstreamRefused));
    assert!(start.elapsed() >= Duration::from_millis(300) && start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(way.all_slots_free().await);
    assert!(way.slots.figures().away);
}

#[tokio::test]
async fn a_worker_whose_socket_refuses_loses_its_requests_to_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let puma = Scripted::new((0..10).map(|_| Say::Close(ok("here"))).collect());
    let gone = Address::Unix(folder.path().join("w0.sock"));
    let way = Way::new(Config { address: OneOrMany(vec![gone, puma.address.clone()]), ..config(puma.address.clone()) });
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(way.get("/").await.unwrap().1, "here");
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn sockets_that_appear_later_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let pattern: Address = format!("unix:{}/w*.sock", folder.path().display()).parse().unwrap();
    let way = Way::new(config(pattern));
    let asked = tokio::spawn({
        let way = way.clone();
        async move { way.get("/").await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let listener = UnixListener::bind(folder.path().join("w0.sock")).unwrap();
    let (mut stream, _) = tokio::time::timeout(Duration::from_secs(5), listener.accept()).await.unwrap().unwrap();
    read_request(&mut stream).await.unwrap();
    stream.write_all(&ok("late")).await.unwrap();
    assert_eq!(asked.await.unwrap().unwrap().1, "late");
}

/// A Puma on a TCP port that closes every other connection about when the request comes, unread, as one that restarts does.
fn closing_puma() -> (Address, Arc<std::sync::atomic::AtomicU32>) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    let read = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let count = Arc::clone(&read);
    std::thread::spawn(move || {
        for connection in 0u64.. {
            let Ok((mut stream, _)) = listener.accept() else { return };
            if connection % 2 == 0 {
                // In steps of a microsecond through all moments around the one at which the request arrives.
                let moment = Instant::now() + Duration::from_micros(connection / 2 % 100);
                while Instant::now() < moment {
                    std::hint::spin_loop();
                }
                continue;
            }
            let mut request = [0; 1024];
            if stream.read(&mut request).is_ok_and(|n| n > 0) {
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                stream.write_all(&ok("once")).unwrap();
            }
        }
    });
    (address, read)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_on_a_connection_that_was_just_closing_is_sent_again_and_read_once() {
    let (address, read) = closing_puma();
    let way = Way::new(Config { reuse: Reuse::Keepalive, ..config(address) });
    for n in 0..3000 {
        let answer = way.post("/upload", b"x").await;
        assert_eq!(answer.map(|(status, _)| status), Ok(200), "request {n}");
    }
    assert_eq!(read.load(std::sync::atomic::Ordering::Relaxed), 3000);
}

/// Answers everything on this socket.
fn answering(path: &std::path::Path) {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // A prober's connection brings no request.
            if read_request(&mut stream).await.is_ok() {
                stream.write_all(&ok("back")).await.unwrap();
            }
        }
    });
}

#[tokio::test]
async fn the_queue_waits_out_a_restart_whose_last_worker_is_slow_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["w0.sock", "w1.sock"].map(|name| folder.path().join(name));
    let hold = Duration::from_secs(10);
    let queue = in_flight::Config { deadline: Deadline::millis(300), ..in_flight::Config::default() };
    let slots = Slots::new(queue.policy(hold));
    let address = OneOrMany(paths.iter().cloned().map(Address::Unix).collect());
    let config = Config { address, slots: Some(2), ..Config::default() };
    assert_eq!(config.hold_on_refused.get(), hold);
    // One worker has ended, the other goes on with what it has accepted; neither can be reached by its name.
    let slow = paths.clone().map(|path| UnixListener::bind(path).unwrap());
    let way = Way { puma: Puma::start(config, slots.clone()), slots };
    let ask = |path: &'static str| {
        let way = way.clone();
        tokio::spawn(async move { way.get(path).await })
    };
    let mut asked = vec![ask("/slow")];
    tokio::time::sleep(Duration::from_millis(50)).await;
    for path in &paths {
        std::fs::remove_file(path).unwrap();
    }
    asked.extend([ask("/held"), ask("/waits"), ask("/waits")]);
    tokio::time::sleep(Duration::from_millis(1000)).await;
    drop(slow);
    paths.iter().for_each(|path| answering(path));
    for asked in asked {
        assert_eq!(asked.await.unwrap(), Ok((200, Bytes::from("back"))));
    }
    assert!(way.all_slots_free().await);
}
