//! The audit starts nothing and connects to nobody: it runs under a filter that kills it for trying, over an application that
//! would leave a trace if any of it were run.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Is, SeccompCondition, SeccompFilter, SeccompRule};

use super::*;

/// Everything by which files of an application or of its repository may ask to be run.
fn trapped(trace: &Path) -> tempfile::TempDir {
    let app = application(GOOD);
    commit(app.path());
    let touch = format!("touch {}", trace.display());
    write(
        app.path(),
        &format!(
            "--- config/puma.rb\nsystem(\"{touch}\")\nFile.write(\"{0}\", \"\")\nworkers `{touch}; echo 2`.to_i\nbefore_fork {{ exec \"{touch}\" }}\n\
             --- config/database.yml\nproduction:\n  password: <%= File.write(\"{0}\", \"\") %>\n\
             --- config/environments/production.rb\n`{touch}`\n\
             --- Gemfile\nsystem(\"{touch}\")\n\
             --- Rakefile\nsystem(\"{touch}\")\n\
             --- .gitattributes\n* filter=trap diff=trap\n\
             --- .git/hooks/post-index-change 0755\n#!/bin/sh\n{touch}\n\
             --- bin/rails 0755\n#!/bin/sh\n{touch}\n",
            trace.display()
        ),
    );
    for (key, value) in [
        ("core.fsmonitor", touch.as_str()),
        ("core.sshCommand", &touch),
        ("core.pager", &touch),
        ("filter.trap.clean", &touch),
        ("filter.trap.smudge", &touch),
        ("filter.trap.process", &touch),
        ("diff.trap.textconv", &touch),
        ("diff.external", &touch),
        ("credential.helper", &touch),
        ("gpg.program", &touch),
    ] {
        git(app.path(), &["config", key, value]);
    }
    app
}

#[test]
fn nothing_of_the_application_is_executed() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let app = trapped(&trace);
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "--ignored", "--test-threads=1", "audit::confined::child_that_may_start_nothing"]);
    let output = child.env("APP", app.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("1 passed"), "{:?}: {said}", output.status);
    assert!(!trace.exists(), "something was run");
}

#[test]
fn the_filter_kills_what_it_is_meant_to_kill() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "--ignored", "--test-threads=1", "audit::confined::child_that_starts_something"]);
    let output = child.output().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(libc::SIGSYS));
}

/// From here on this thread, and what it starts, is killed for starting a process or opening a socket.
fn confine() {
    let calls = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_ptrace,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_vfork,
    ];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let no_thread = SeccompCondition::new(0, Width::Qword, Is::MaskedEq(libc::CLONE_THREAD as u64), 0).unwrap();
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![no_thread]).unwrap()]);
    // The flags of clone3 cannot be seen; without it glibc takes clone.
    apply(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), SeccompAction::Errno(libc::ENOSYS.unsigned_abs()));
    apply(rules, SeccompAction::KillProcess);
}

fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>, action: SeccompAction) {
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, std::env::consts::ARCH.try_into().unwrap()).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
#[ignore = "started by nothing_of_the_application_is_executed in a process of its own"]
fn child_that_may_start_nothing() {
    let app = std::path::PathBuf::from(std::env::var_os("APP").unwrap());
    confine();
    let report = audit::run(&app, &options());
    assert!(report.notes.iter().any(|note| note.contains("config/puma.rb:3")), "{:?}", report.notes);
    for format in [Format::Table, Format::Json, Format::Sarif] {
        report.write(format, &mut Vec::new()).unwrap();
    }
}

#[test]
#[ignore = "started by the_filter_kills_what_it_is_meant_to_kill in a process of its own"]
fn child_that_starts_something() {
    confine();
    assert!(Command::new("/bin/true").status().is_err());
}
