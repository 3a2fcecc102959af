//! `palisade audit --live` beside a real Puma, and `--db`.

use crate::harness::{eventually, free_port, palisade::binary, palisade::finish, process::Process, puma::command};

use super::*;

fn found(app: &Path, arguments: &[&str]) -> (Option<i32>, Vec<(String, String)>) {
    let scratch = tempfile::tempdir().unwrap();
    let output = finish(binary().arg("audit").arg(app).args(["--format", "json"]).args(arguments).current_dir(&scratch), scratch.path());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    let text = |finding: &serde_json::Value, key: &str| finding[key].as_str().unwrap().to_owned();
    (output.status.code(), findings.iter().map(|finding| (text(finding, "id"), text(finding, "detail"))).collect())
}

#[test]
fn a_running_puma_is_looked_at_and_asked() {
    let Some(mut puma) = command(Some("trixie")) else { return };
    let (port, control) = (free_port(), free_port());
    let app = application(GOOD);
    let config = format!(
        "threads 1, 1\nbind \"tcp://0.0.0.0:{port}\"\nbind \"unix://tmp/puma.sock\"\nactivate_control_app \"tcp://127.0.0.1:{control}\", no_token: true\n"
    );
    write(app.path(), &format!("--- config/puma.rb\n{config}--- .env 0600\nA=1\n--- tmp/keep\nx\n"));
    write(
        app.path(),
        "--- config.ru\nrun ->(env) { File.file?(f = \".\" + env[\"PATH_INFO\"]) ? [200, {}, [File.read(f)]] : [404, {}, [\"no\"]] }\n",
    );
    commit(app.path());
    let before = found(app.path(), &["--live"]).1;
    assert!(!before.iter().any(|(_, detail)| detail.contains("running")), "{before:?}");

    let place = tempfile::tempdir().unwrap();
    puma.arg("-C").arg(app.path().join("config/puma.rb")).current_dir(app.path());
    puma.env("RAILS_ENV", "development").env_remove("WEB_CONCURRENCY");
    let _puma = Process::start("puma", puma, place.path());
    eventually("puma listens", || {
        let all = [port, control].iter().all(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).is_ok());
        (all && app.path().join("tmp/puma.sock").exists()).then_some(())
    });

    let quiet = found(app.path(), &[]).1;
    assert!(!quiet.iter().any(|(_, detail)| detail.contains("running")), "without --live: {quiet:?}");
    let (code, live) = found(app.path(), &["--live"]);
    assert_eq!(code, Some(6));
    for (id, detail) in [
        ("E02", "the control server answered without a token"),
        ("E07", "Puma's socket has mode 0777"),
        ("E08", "Puma listens there, past the proxy"),
        ("E12", "the running Puma answers a malformed request with a backtrace"),
        ("E16", "the running application serves /.env"),
    ] {
        assert!(live.iter().any(|(found, said)| found == id && said.contains(detail)), "{id} {detail} is not in {live:#?}");
    }
    let is_root = live.iter().any(|(id, said)| id == "E17" && said.contains("is root's"));
    assert_eq!(is_root, rustix::process::geteuid().is_root());
    assert!(!live.iter().any(|(_, said)| said.contains("A=1")));
}

#[test]
fn more_advisories_come_from_a_file() {
    let app = application(GOOD);
    write(app.path(), "--- Gemfile.lock\nGEM\n  specs:\n    devise (4.9.4)\n    puma (8.0.2)\n    rack (3.2.6)\n");
    commit(app.path());
    let db = tempfile::NamedTempFile::new().unwrap();
    let path = db.path().display().to_string();
    fs::write(db.path(), r#"[{"gem": "devise", "id": "CVE-2099-1", "since": "4.0", "fixed": ["4.9.5"]}]"#).unwrap();
    let known = |arguments: &[&str]| found(app.path(), arguments).1.into_iter().filter(|(id, _)| id == "R01").collect::<Vec<_>>();
    assert_eq!(known(&[]), []);
    assert_eq!(known(&["--db", &path]), [("R01".to_owned(), "devise 4.9.4: CVE-2099-1; repaired in 4.9.5".to_owned())]);
    fs::write(db.path(), r#"[{"gem": "devise"}]"#).unwrap();
    assert_eq!(found(app.path(), &["--db", &path]).0, Some(1), "half a table is none");
}

#[test]
fn the_command_finds_all_44_and_none() {
    for (fixture, code, count) in [(BAD, 6, 44), (GOOD, 0, 0)] {
        let app = application(fixture);
        commit(app.path());
        let (ended, found) = found(app.path(), &["--fail-on", "low"]);
        let ids: BTreeSet<String> = found.into_iter().map(|(id, _)| id).collect();
        assert_eq!((ended, ids.len()), (Some(code), count), "{ids:?}");
    }
}
