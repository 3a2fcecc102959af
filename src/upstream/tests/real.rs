//! Debian's Puma 5.6 over a unix socket: the normal ways of an application.

use std::{
    os::unix::net::UnixStream as Probe,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::*;
use crate::{http::upgrade::FarEnd, upstream::Reuse};

/// A real Puma with the application of these tests, in a folder of its own.
pub(super) struct RealPuma {
    child: Child,
    folder: tempfile::TempDir,
    address: Address,
    arguments: Vec<String>,
}

impl RealPuma {
    /// On a unix socket.
    pub(super) fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::Unix(folder.path().join("puma.sock"));
        RealPuma::at(address, folder, arguments)
    }

    /// On a TCP port of the loopback.
    pub(super) fn start_tcp(arguments: &[&str]) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        RealPuma::at(Address::Tcp(free), tempfile::tempdir().unwrap(), arguments)
    }

    /// A socket for each worker: `w0.sock`, `w1.sock`, ...
    fn start_per_worker(workers: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = PER_WORKER.replace("WORKERS", &workers.to_string()).replace("FOLDER", &folder.path().display().to_string());
        std::fs::write(folder.path().join("puma.rb"), config).unwrap();
        // The last one is ready when its worker has booted.
        let last = Address::Unix(folder.path().join(format!("w{}.sock", workers - 1)));
        RealPuma::at(last, folder, &["-C", "puma.rb"])
    }

    fn at(address: Address, folder: tempfile::TempDir, arguments: &[&str]) -> Self {
        std::fs::write(folder.path().join("config.ru"), APPLICATION).unwrap();
        let mut all: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        if !arguments.contains(&"-C") {
            let bind = match &address {
                Address::Tcp(address) => format!("tcp://{address}"),
                Address::Unix(path) => format!("unix://{}", path.display()),
            };
            all.extend(["-b".to_owned(), bind]);
        }
        let puma = RealPuma { child: launch(folder.path(), &all), folder, address, arguments: all };
        puma.wait_until_it_listens();
        puma
    }

    pub(super) fn address(&self) -> Address {
        self.address.clone()
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Sends it a signal by its process id.
    pub(super) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Ends it as an operator would, and waits for it.
    pub(super) fn stop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        self.child.wait().unwrap();
    }

    /// Starts it again on the same socket.
    pub(super) fn start_again(&mut self) {
        self.child = launch(self.folder.path(), &self.arguments);
    }

    pub(super) fn wait_until_it_listens(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        let listens = || match &self.address {
            Address::Tcp(address) => std::net::TcpStream::connect(address).is_ok(),
            Address::Unix(path) => Probe::connect(path).is_ok(),
        };
        while !listens() {
            assert!(Instant::now() < end, "Puma does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The request ids that the application has seen.
    pub(super) fn seen(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("seen")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for RealPuma {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn launch(folder: &Path, arguments: &[String]) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    Command::new("puma")
        .current_dir(folder)
        .args(["-e", "production"])
        .args(arguments)
        .arg("config.ru")
        .env("SEEN", folder.join("seen"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// The stock lines that give each worker a socket of its own, as Puma 5 and 6 name the hook.
const PER_WORKER: &str = r##"
require "puma/plugin"
workers WORKERS
threads 1, 1
WORKERS.times { |i| bind "unix://FOLDER/w#{i}.sock?umask=0077" }
keep = Class.new(Puma::Plugin) { define_method(:start) { |launcher| $worker_binder = launcher.binder } }
Puma::Plugins.register "per_worker_socket", keep
plugin "per_worker_socket"
on_worker_boot { |i| $worker_binder.ios.select! { |io| io.local_address.unix_path.end_with?("/w#{i}.sock") } }
"##;

const APPLICATION: &str = r##"
seen = File.open(ENV["SEEN"], "a"); seen.sync = true
run(lambda do |env|
  id = env["HTTP_X_REQUEST_ID"]
  seen.syswrite("#{id}\n") if id
  text = { "Content-Type" => "text/plain" }
  case env["PATH_INFO"]
  when "/echo" then [200, text, [env["rack.input"].read]]
  when "/work" then sleep 0.02; [200, text, ["done"]]
  when "/fast" then sleep 0.01; [200, text, [Process.pid.to_s]]
  when "/slow" then sleep 0.4; [200, text, ["slow"]]
  when "/204" then [204, {}, []]
  when "/304" then [304, { "ETag" => "x" }, []]
  when "/large" then [200, text, ["x" * 3_000_000]]
  when "/chunked" then [200, text, Enumerator.new { |out| 3.times { |n| out << "part#{n};" } }]
  when "/sse" then [200, { "Content-Type" => "text/event-stream" }, Enumerator.new { |out| 3.times { |n| out << "data: #{n}\n\n"; sleep 0.3 } }]
  when "/partial"
    [200, text.merge("rack.hijack" => lambda { |io| io.write("partial"); io.close }), []]
  when "/full"
    io = env["rack.hijack"].call
    io.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfull"); io.close
    [200, {}, []]
  when "/socket"
    io = env["rack.hijack"].call
    io.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    Thread.new { io.write(io.readpartial(100).upcase); io.close }
    [200, {}, []]
  else [200, text, ["ok"]]
  end
end)
"##;

fn modes() -> [Reuse; 2] {
    [Reuse::Close, Reuse::Keepalive]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_normal_ways_of_an_application_work_closed_and_kept_alive() {
    let puma = RealPuma::start(&["-t", "5:5"]);
    for reuse in modes() {
        let way = Way::new(Config { reuse, ..config(puma.address()) });
        for _ in 0..3 {
            assert_eq!(way.get("/").await.unwrap(), (200, Bytes::from("ok")), "{reuse:?}");
        }
        assert_eq!(way.post("/echo", b"hello").await.unwrap().1, "hello");
        let long = vec![b'y'; 1_000_000];
        assert!(way.post("/echo", &long).await.unwrap().1 == long);
        assert_eq!(way.get("/204").await.unwrap(), (204, Bytes::new()));
        assert_eq!(way.get("/304").await.unwrap(), (304, Bytes::new()));
        assert_eq!(way.get("/chunked").await.unwrap().1, "part0;part1;part2;");
        assert_eq!(way.get("/large").await.unwrap().1.len(), 3_000_000);
        assert_eq!(way.get("/partial").await.unwrap().1, "partial");
        assert_eq!(way.get("/full").await.unwrap().1, "full");
        let head = way.ask("HEAD / HTTP/1.1\r\nHost: app\r\n\r\n", b"").await.unwrap();
        assert_eq!(head.into_body().collect().await.unwrap().to_bytes().len(), 0);
        assert!(way.all_slots_free().await);
        let expected = if reuse == Reuse::Close { 0 } else { 1 };
        assert_eq!(way.puma.idle_connections(), expected, "{reuse:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_event_of_a_stream_comes_at_once() {
    let puma = RealPuma::start(&["-t", "5:5"]);
    let way = Way::new(config(puma.address()));
    way.get("/").await.unwrap();
    let start = Instant::now();
    let mut body = way.ask("GET /sse HTTP/1.1\r\nHost: app\r\nAccept: text/event-stream\r\n\r\n", b"").await.unwrap().into_body();
    assert!(body.is_stream());
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: 0\n\n");
    assert!(start.elapsed() < Duration::from_millis(200), "{:?}", start.elapsed());
    assert_eq!(way.slots.figures().streams, 1);
    drop(body);
    assert!(way.all_slots_free().await);
    assert_eq!(way.slots.figures().streams, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_socket_goes_through_and_takes_no_thread() {
    let puma = RealPuma::start(&["-t", "1:1"]);
    let way = Way::new(Config { slots: Some(1), ..config(puma.address()) });
    let answer = way.ask("GET /socket HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", b"").await.unwrap();
    assert_eq!(answer.status(), 101);
    let mut tunnel = answer.extensions().get::<FarEnd>().unwrap().take().unwrap();
    assert_eq!(way.get("/").await.unwrap().1, "ok", "the one thread is free");
    tunnel.stream.write_all(b"hello").await.unwrap();
    let mut said = Vec::new();
    tunnel.stream.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"HELLO");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_is_inside_puma_than_it_has_threads() {
    let puma = RealPuma::start(&["-t", "2:2"]);
    let way = Way::new(Config { slots: Some(2), ..config(puma.address()) });
    let asked: Vec<_> = (0..10)
        .map(|_| {
            let way = way.clone();
            tokio::spawn(async move { way.get("/work").await })
        })
        .collect();
    let watched = tokio::spawn({
        let way = way.clone();
        async move {
            let mut most = 0;
            for _ in 0..100 {
                most = most.max(way.slots.figures().in_flight);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            most
        }
    });
    for answer in asked {
        assert_eq!(answer.await.unwrap().unwrap().1, "done");
    }
    assert_eq!(watched.await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capacity_and_version_come_from_the_control_server() {
    let folder = tempfile::tempdir().unwrap();
    let control = format!("unix://{}/control.sock", folder.path().display());
    let token = folder.path().join("token");
    std::fs::write(&token, "s3cret\n").unwrap();
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let puma = RealPuma::start(&["-t", "3:3", "-w", "2", "--control-url", &control, "--control-token", "s3cret"]);
    let way = Way::new(Config { control_url: Some(control.parse().unwrap()), control_token_file: Some(token), ..config(puma.address()) });
    let end = Instant::now() + Duration::from_secs(20);
    while way.slots.figures().slots != 6 {
        assert!(Instant::now() < end, "{:?}", way.puma.reported());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(way.puma.version().unwrap().major, 5);
    assert_eq!(way.puma.reported().unwrap().stats.workers.len(), 2);
    assert!(!puma.folder().join("nothing").exists());
    assert_eq!(way.get("/").await.unwrap().1, "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fast_requests_never_wait_behind_slow_ones_where_each_worker_has_its_socket() {
    let puma = RealPuma::start_per_worker(4);
    let pattern: Address = format!("unix:{}/w*.sock", puma.folder().display()).parse().unwrap();
    let way = Way::new(Config { slots: Some(4), ..config(pattern) });
    while way.slots.figures().workers.len() < 4 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..20 {
        way.get("/fast").await.unwrap();
    }
    let clients: Vec<_> = (0..4u32)
        .map(|client| {
            let way = way.clone();
            tokio::spawn(async move {
                let mut fast = Vec::new();
                for n in 0..60u32 {
                    if (n + client * 3) % 10 == 0 {
                        way.get("/slow").await.unwrap();
                        continue;
                    }
                    let start = Instant::now();
                    way.get("/fast").await.unwrap();
                    fast.push(start.elapsed());
                }
                fast
            })
        })
        .collect();
    let mut fast = Vec::new();
    for client in clients {
        fast.extend(client.await.unwrap());
    }
    fast.sort_unstable();
    let at = |part: usize| fast[(fast.len() * part / 100).min(fast.len() - 1)];
    println!("fast: p50 {:?}, p99 {:?}, worst {:?}", at(50), at(99), at(100));
    assert!(at(100) < Duration::from_millis(200), "p50 {:?}, p99 {:?}, worst {:?}", at(50), at(99), at(100));
}
