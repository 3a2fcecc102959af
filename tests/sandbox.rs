//! A confined process serves as before: reloads, rotated logs, bodies on disk, systemd; and who it is can be seen from outside.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixDatagram},
    path::Path,
    time::Duration,
};

use rustix::process::Signal;

use crate::harness::{
    eventually, noise,
    palisade::{Palisade, Setup, binary, finish, write_private},
    recorder::Recorder,
    sha256,
};

const REQUIRED: &str = "[server]\nsandbox = \"required\"\ndrain_delay = \"100ms\"\n";

fn every_thread(palisade: &Palisade, line: &str) {
    let tasks = fs::read_dir(format!("/proc/{}/task", palisade.process().pid())).unwrap();
    let mut count = 0;
    for task in tasks {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(status.contains(line), "{line} is not in\n{status}");
        count += 1;
    }
    assert!(count >= 4, "{count} threads");
}

#[test]
fn every_thread_is_confined_and_it_says_so() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with(REQUIRED).start();
    palisade.serves();
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"] {
        // Without root there is no right to empty the bounding set; no_new_privs then says the same.
        if !line.starts_with("CapBnd") || rustix::process::geteuid().is_root() {
            every_thread(&palisade, line);
        }
    }
    for part in ["dumps", "capabilities", "privileges", "files", "ports", "scope", "calls"] {
        assert!((palisade.metric("palisade_sandbox", &[("part", part)]) - 1.0).abs() < f64::EPSILON, "{part}");
    }
    // Events are written by a thread of their own, a moment later.
    let line = eventually("the event is written", || {
        palisade.process().output().lines().find(|line| line.contains("\"event\":\"sandbox\"")).map(str::to_owned)
    });
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((event["reached"].as_str(), event["level"].as_str()), (Some("full"), Some("info")));
    assert!(palisade.metric("process_open_fds", &[]) > 0.0, "the figures of the process are still there");
}

#[test]
fn the_threads_of_the_disk_stand_back() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with(REQUIRED).start();
    let nice = |task: &Path| -> i32 {
        let stat = fs::read_to_string(task.join("stat")).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        fields.split_whitespace().nth(16).unwrap().parse().unwrap()
    };
    let process = Path::new("/proc").join(palisade.process().pid().to_string());
    eventually("both have made room for the others", || {
        let tasks = fs::read_dir(process.join("task")).unwrap().map(|task| task.unwrap().path());
        let disks: Vec<i32> = tasks
            .filter(|task| fs::read_to_string(task.join("comm")).unwrap().starts_with("palisade-disk-"))
            .map(|task| nice(&task))
            .collect();
        (disks == [(nice(&process) + 19).min(19); 2]).then_some(())
    });
}

#[test]
fn certificates_behind_links_are_reloaded_and_logs_reopened() {
    let recorder = Recorder::start();
    let setup = Setup::before(recorder.address()).tls().with(REQUIRED);
    // As certbot has it: live/ holds links into archive/.
    let folder = setup.cert().parent().unwrap().to_owned();
    for name in ["live", "archive"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    let place = |number: u32| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        for (name, text) in [("cert", made.cert.pem()), ("key", made.signing_key.serialize_pem())] {
            let file = folder.join(format!("archive/{name}{number}.pem"));
            write_private(&file, &text);
            let link = folder.join(format!("live/{name}.pem"));
            fs::remove_file(&link).ok();
            symlink(&file, &link).unwrap();
        }
        made
    };
    let first = place(1);
    let of = |name: &str| folder.join("live").join(name).display().to_string();
    let palisade = setup.with(&format!("[tls]\ncert_file = {:?}\nkey_file = {:?}\n", of("cert.pem"), of("key.pem"))).start();
    let shown = |der: &[u8]| {
        let root = rustls::pki_types::CertificateDer::from(der.to_vec());
        eventually("the certificate is shown", || {
            let mut client = crate::harness::client::Client::tls(palisade.https(), "localhost", &root);
            client.try_send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
            (client.try_answer("GET")?.status == 200).then_some(())
        });
    };
    shown(first.cert.der());
    let second = place(2);
    palisade.signal(Signal::HUP);
    shown(second.cert.der());

    let log = folder.join("access.log");
    fs::rename(&log, folder.join("access.log.1")).unwrap();
    palisade.signal(Signal::USR1);
    eventually("a new log file", || {
        palisade.serves();
        log.exists().then_some(())
    });
}

#[test]
fn bodies_go_to_disk_and_arrive() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with(REQUIRED).with("[buffer]\nmemory_per_request = \"64KiB\"\n").start();
    let body = noise(1 << 20);
    let mut client = palisade.connect();
    client.send(format!("POST /big HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len()));
    client.send(&body);
    assert_eq!(client.answer().status, 200);
    assert!(recorder.got(&body[body.len() - 64..]), "{}", sha256(&body));
    assert_eq!(fs::read_dir(palisade.spool()).unwrap().count(), 0);
}

#[test]
fn root_becomes_the_user_for_good() {
    if !rustix::process::geteuid().is_root() {
        return crate::harness::skip("only root can become another user");
    }
    let recorder = Recorder::start();
    let setup = Setup::before(recorder.address()).with(REQUIRED).with("[server]\nuser = \"65534:65534\"\n");
    let folder = setup.spool().parent().unwrap().to_owned();
    for path in [folder.as_path(), &setup.spool()] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
    let palisade = setup.start();
    palisade.serves();
    every_thread(&palisade, "Uid:\t65534\t65534\t65534\t65534");
    every_thread(&palisade, "Gid:\t65534\t65534\t65534\t65534");
    every_thread(&palisade, "Groups:\t65534");
    // The kernel gives the files of a process that must not be dumped to root.
    let environ = format!("/proc/{}/environ", palisade.process().pid());
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(environ).unwrap()), 0, "it can be dumped");
    palisade.logged("a line in its own log", |line| line["status"] == 200);
}

#[test]
fn a_user_who_does_not_exist_is_exit_1_with_the_remedy() {
    let output = Setup::before("127.0.0.1:1").with("[server]\nuser = \"no-such-user\"\n").fails();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("server.user") && said.contains("useradd"), "{said}");
}

#[test]
fn a_folder_for_bodies_that_cannot_be_written_to_is_exit_1_at_the_start() {
    let output = Setup::before("127.0.0.1:1").with("[buffer]\ndir = \"/nonexistent/spool\"\n").fails();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("buffer.dir"), "{said}");
}

#[test]
fn systemd_hears_of_the_start_the_reload_the_watchdog_and_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let hear = |wanted: &str| {
        let mut seen = Vec::new();
        loop {
            let mut message = [0; 512];
            let length = socket.recv(&mut message).unwrap_or_else(|e| panic!("{wanted} did not come ({e}), but {seen:?}"));
            let text = String::from_utf8(message[..length].to_vec()).unwrap();
            if text.lines().any(|line| line == wanted) {
                return text;
            }
            seen.push(text);
        }
    };
    let recorder = Recorder::start();
    let mut palisade = Setup::before(recorder.address())
        .with(REQUIRED)
        .env("NOTIFY_SOCKET", path.display().to_string())
        .env("WATCHDOG_USEC", "400000")
        .start();
    hear("READY=1");
    hear("WATCHDOG=1");
    palisade.signal(Signal::HUP);
    assert!(hear("RELOADING=1").contains("MONOTONIC_USEC="));
    hear("READY=1");
    palisade.signal(Signal::TERM);
    hear("STOPPING=1");
    assert!(palisade.process_mut().wait(Duration::from_secs(20)).success());
}

#[test]
fn a_health_check_is_exit_0_or_8() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    let ask = |file: &Path| {
        let folder = tempfile::tempdir().unwrap();
        finish(binary().args(["healthcheck", "--config"]).arg(file), folder.path())
    };
    assert_eq!(ask(&palisade.config_file()).status.code(), Some(0));
    let folder = tempfile::tempdir().unwrap();
    let nobody = folder.path().join("proxy.toml");
    fs::write(&nobody, format!("[admin]\nlisten = \"127.0.0.1:{}\"\n", crate::harness::free_port())).unwrap();
    let output = ask(&nobody);
    assert_eq!(output.status.code(), Some(8));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no answer"));
}
