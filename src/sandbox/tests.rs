//! What cannot be taken back is tested in processes of their own: this binary once more, with one ignored test.

use std::{
    fs,
    io::ErrorKind,
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread,
};

use rustix::{net::AddressFamily, process::Pid};
use seccompiler::{SeccompAction, SeccompFilter};

use super::*;
use crate::config::{Config, Inputs};

#[test]
fn every_part_has_a_label_of_its_own() {
    let labels: std::collections::BTreeSet<&str> = Part::EACH.into_iter().map(Part::label).collect();
    assert_eq!(labels.len(), Part::EACH.len());
}

/// Runs one ignored test in a process of its own, with one thread.
fn alone(test: &str, folder: &Path) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "--ignored", "--test-threads=1", &format!("sandbox::tests::{test}")]).env("FOLDER", folder);
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("1 passed"), "{said}");
}

fn loaded(folder: &Path, settings: &str) -> Loaded {
    let file = folder.join("proxy.toml");
    fs::create_dir_all(folder.join("spool")).unwrap();
    fs::create_dir_all(folder.join("log")).unwrap();
    let of = |name: &str| folder.join(name).display().to_string();
    let text = format!("[buffer]\ndir = {:?}\n[log]\naccess_file = {:?}\n{settings}", of("spool"), of("log/access.log"));
    fs::write(&file, text).unwrap();
    Config::load(&Inputs { file: Some(file), ..Inputs::default() }).unwrap()
}

#[test]
fn an_intruder_finds_nothing_to_use() {
    let folder = tempfile::tempdir().unwrap();
    alone("child_that_tries_everything", folder.path());
}

#[test]
#[ignore = "started by an_intruder_finds_nothing_to_use in a process of its own"]
fn child_that_tries_everything() {
    let folder = std::path::PathBuf::from(std::env::var_os("FOLDER").unwrap());
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = elsewhere.path().join("secret");
    fs::write(&foreign, "x").unwrap();
    let inherited = TcpListener::bind("127.0.0.1:0").unwrap();
    let puma = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = format!("[server]\nsandbox = \"required\"\n[upstream]\naddress = \"{}\"\n", puma.local_addr().unwrap());
    let confinement = enter(&loaded(&folder, &settings)).unwrap();
    assert!(Part::EACH.into_iter().all(|part| confinement.has(part)), "{confinement:?}");

    let attempts = move || {
        for file in [Path::new("/etc/shadow"), Path::new("/etc/passwd"), &foreign] {
            assert_eq!(fs::read(file).unwrap_err().kind(), ErrorKind::PermissionDenied, "{}", file.display());
        }
        for file in [elsewhere.path().join("new"), "/tmp/palisade-new".into(), folder.join("log/../proxy.toml")] {
            assert_eq!(fs::write(&file, "x").unwrap_err().kind(), ErrorKind::PermissionDenied, "{}", file.display());
        }
        assert!(Command::new("/bin/true").status().is_err(), "a program was started");
        let port = other.local_addr().unwrap();
        assert_eq!(TcpStream::connect(port).unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert!(TcpListener::bind("127.0.0.1:0").is_err(), "a new listener");
        assert!(rustix::net::socket(AddressFamily::NETLINK, rustix::net::SocketType::RAW, None).is_err(), "a netlink socket");
        let parent = Pid::from_raw(1).unwrap();
        assert!(rustix::process::test_kill_process(parent).is_err(), "a signal to another process");
        assert!(rustix::process::setpriority_process(Some(rustix::process::getpid()), 19).is_err(), "the priority of another thread");
        assert!(rustix::process::nice(1).is_ok(), "one's own");
        assert!(
            rustix::process::setrlimit(rustix::process::Resource::Core, rustix::process::Rlimit { current: None, maximum: None }).is_err()
        );

        assert!(TcpStream::connect(puma.local_addr().unwrap()).is_ok(), "Puma");
        fs::write(folder.join("spool/body"), "x").unwrap();
        assert_eq!(fs::read(folder.join("spool/body")).unwrap(), b"x");
        fs::remove_file(folder.join("spool/body")).unwrap();
        let mut log = fs::File::options().append(true).create(true).open(folder.join("log/access.log")).unwrap();
        std::io::Write::write_all(&mut log, b"line\n").unwrap();
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o600, "the umask");
        assert!(fs::read_to_string(folder.join("proxy.toml")).is_ok(), "what a reload reads");
        assert!(fs::read_to_string("/proc/self/stat").is_ok(), "what the metrics read");
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.contains(line), "{line} is not in {status}");
        }
    };
    // A thread that is started later is confined as well.
    thread::spawn(attempts).join().unwrap();
    inherited.set_nonblocking(true).unwrap();
    assert_eq!(inherited.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "a listener from before accepts");
    assert_eq!(rustix::process::dumpable_behavior().ok(), None, "prctl beyond names is gone");
}

#[test]
fn what_is_required_and_not_there_prevents_the_start() {
    let folder = tempfile::tempdir().unwrap();
    alone("child_on_a_kernel_without_landlock", folder.path());
}

#[test]
#[ignore = "started by what_is_required_and_not_there_prevents_the_start in a process of its own"]
fn child_on_a_kernel_without_landlock() {
    let folder = std::path::PathBuf::from(std::env::var_os("FOLDER").unwrap());
    let rules = [(libc::SYS_landlock_create_ruleset, Vec::new())].into_iter().collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let old_kernel = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), arch).unwrap();
    let program: seccompiler::BpfProgram = old_kernel.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();

    let problem = enter(&loaded(&folder, "[server]\nsandbox = \"required\"\n")).unwrap_err();
    assert_eq!(problem.place, "server.sandbox");
    assert!(problem.cause.contains("files cannot be given up") && problem.remedy.contains("5.13"), "{problem:?}");
    let confinement = enter(&loaded(&folder, "[server]\nsandbox = \"auto\"\n")).unwrap();
    let missing: Vec<&str> = Part::EACH.into_iter().filter(|part| !confinement.has(*part)).map(Part::label).collect();
    assert_eq!(missing, ["files", "ports", "scope"]);
}

#[test]
fn off_gives_up_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let confinement = enter(&loaded(folder.path(), "[server]\nsandbox = \"off\"\n")).unwrap();
    assert!(Part::EACH.into_iter().all(|part| !confinement.has(part)));
}
