//! `palisade exec`: a real Puma as a child, on sockets that nobody else can reach.

use std::{fs, net::TcpStream, os::unix::fs::PermissionsExt, path::PathBuf, process::Command, time::Duration};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::{
    eventually, free_port,
    palisade::{Palisade, Setup, binary, finish},
    puma::{SUITES, command},
    skip, within,
};

/// An application whose configuration, command line and environment all ask for a TCP port.
struct App {
    dir: TempDir,
    ports: [u16; 2],
}

impl App {
    fn new(workers: usize) -> App {
        let app = App { dir: TempDir::new().unwrap(), ports: [free_port(), free_port()] };
        let puma = format!("workers {workers}\nthreads 2, 2\nport {}\nenvironment \"production\"\n", app.ports[0]);
        fs::write(app.dir.path().join("puma.rb"), puma).unwrap();
        let rack = "run lambda { |env| [200, { \"content-type\" => \"text/plain\" }, [Process.pid.to_s]] }\n";
        fs::write(app.dir.path().join("config.ru"), rack).unwrap();
        app
    }

    fn with(&self, mut puma: Command) -> Command {
        puma.arg("-C").arg(self.dir.path().join("puma.rb")).arg("-b").arg(format!("tcp://127.0.0.1:{}", self.ports[1]));
        puma.arg(self.dir.path().join("config.ru"));
        puma
    }

    fn has_no_port(&self) {
        for port in self.ports {
            assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "Puma listens on port {port}");
        }
    }
}

fn setup(options: &[&str], puma: &Command) -> Setup {
    Setup::before("127.0.0.1:1").with("[server]\ndrain_delay = \"100ms\"\n[limits]\nhealth_reserve = 0\n").exec(options, puma)
}

fn private_folder(palisade: &Palisade) -> Option<PathBuf> {
    let entries = fs::read_dir(palisade.folder()).unwrap().map(|entry| entry.unwrap().path());
    entries.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with("palisade-"))
}

/// The one process that serves in single mode.
fn pid(palisade: &Palisade) -> String {
    let answer = palisade.connect().get("/");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text()
}

#[test]
fn every_puma_listens_on_private_sockets_only_and_palisade_ends_with_its_code() {
    for puma in SUITES.into_iter().filter_map(command) {
        for workers in [0, 2] {
            let app = App::new(workers);
            let mut palisade = setup(&[], &app.with(puma_of(&puma))).start();
            palisade.serves();
            app.has_no_port();
            let folder = private_folder(&palisade).expect("a private folder");
            assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
            assert_eq!(folder.join("w1.sock").exists(), workers == 2);
            palisade.signal(Signal::TERM);
            let ended = palisade.process_mut().wait(Duration::from_secs(40));
            assert_eq!(ended.code(), Some(143), "Puma ends itself by SIGTERM:\n{}", palisade.process().output());
            assert!(private_folder(&palisade).is_none(), "the folder is left behind");
        }
    }
}

/// What `bin/rails server` does: Rack's handler, with the port of PORT and an address of its own.
#[test]
fn a_puma_that_rails_starts_has_no_port_either() {
    let mut ruby = Command::new("ruby");
    let is_there = Command::new("ruby").args(["-e", "require 'rack'; require 'rack/handler/puma'"]).output();
    if !is_there.is_ok_and(|output| output.status.success()) {
        return skip("there is no Ruby with rack and puma");
    }
    let app = App::new(0);
    let script = "require 'rack'; require 'rack/handler'
        app = lambda { |env| [200, { 'content-type' => 'text/plain' }, [ENV['PORT'].to_s]] }
        Rack::Handler.get('puma').run(app, Host: '0.0.0.0', Port: Integer(ENV.fetch('PORT')), config_files: [ARGV[0]])";
    ruby.arg("-e").arg(script).arg(app.dir.path().join("puma.rb"));
    let palisade = setup(&[], &ruby).env("PORT", app.ports[1].to_string()).start();
    assert_eq!(pid(&palisade), app.ports[1].to_string(), "the application sees its environment");
    app.has_no_port();
}

#[test]
fn signals_of_puma_reach_puma() {
    let Some(puma) = command(None) else { return };
    let app = App::new(2);
    let palisade = setup(&[], &app.with(puma)).start();
    palisade.signal(Signal::USR1);
    within(Duration::from_secs(60), "a phased restart", || (palisade.process().output().matches("phase: 1").count() >= 2).then_some(()));
    palisade.serves();
    let boots = palisade.process().output().matches(" booted ").count();
    palisade.signal(Signal::USR2);
    within(Duration::from_secs(60), "a hot restart", || {
        (palisade.process().output().matches(" booted ").count() >= boots + 2).then_some(())
    });
    eventually("it is served", || (palisade.connect().get("/").status == 200).then_some(()));
    app.has_no_port();
}

#[test]
fn workers_that_come_and_go_by_signal_get_what_they_can_serve() {
    for puma in SUITES.into_iter().filter_map(command) {
        let app = App::new(3);
        let mut palisade = setup(&[], &app.with(puma_of(&puma))).start();
        let threads = |wanted: u64| {
            within(Duration::from_secs(60), &format!("{wanted} threads"), || {
                (palisade.admin("/stats").unwrap().json()["max_threads"].as_u64() == Some(wanted)).then_some(())
            });
            (0..12).for_each(|_| palisade.serves());
        };
        threads(6);
        palisade.signal(Signal::TTOU);
        threads(4);
        palisade.signal(Signal::TTIN);
        threads(6);
        // One more than there are sockets is idle: nothing is sent to where nobody listens.
        let boots = palisade.process().output().matches(" booted ").count();
        palisade.signal(Signal::TTIN);
        within(Duration::from_secs(60), "a fourth worker", || {
            (palisade.process().output().matches(" booted ").count() > boots).then_some(())
        });
        threads(6);
        palisade.signal(Signal::INT);
        let ended = palisade.process_mut().wait(Duration::from_secs(40));
        assert!(ended.code().is_some(), "{ended:?}");
    }
}

#[test]
fn a_puma_that_fails_is_started_again_where_that_is_wished() {
    let Some(puma) = command(None) else { return };
    let app = App::new(0);
    let palisade = setup(&["--restart", "on-failure"], &app.with(puma)).start();
    let first = pid(&palisade);
    let raw = rustix::process::Pid::from_raw(first.parse().unwrap()).unwrap();
    rustix::process::kill_process(raw, Signal::KILL).unwrap();
    let second = within(Duration::from_secs(40), "another Puma", || {
        let answer = palisade.connect().get("/");
        (answer.status == 200 && answer.text() != first).then(|| answer.text())
    });
    assert_ne!(first, second);
}

#[test]
fn the_code_of_a_child_that_ends_is_palisades_and_thrusters_names_are_explained() {
    let dir = TempDir::new().unwrap();
    let mut palisade = binary();
    palisade.env("HTTP_PORT", free_port().to_string()).env("TLS_DOMAIN", "shop.example").env("TMPDIR", dir.path());
    palisade.args(["exec", "--set", "admin.listen=off", "--", "sh", "-c", "exit 7"]).current_dir(dir.path());
    let output = finish(&mut palisade, dir.path());
    let told = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(7), "{told}");
    assert!(told.contains("HTTP_PORT") && told.contains("tls.cert_file"), "{told}");
}

fn puma_of(puma: &Command) -> Command {
    let mut copy = Command::new(puma.get_program());
    copy.args(puma.get_args());
    copy
}
