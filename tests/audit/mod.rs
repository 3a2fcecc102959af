//! `palisade audit` over applications made of the fixtures in `tests/fixtures/audit/`, each in a real repository.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod confined;
mod planted;
mod reading;
mod running;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use palisade::audit::{self, Date, Format, Id, Options, Proxy, Report, Severity, Waiver};

const GOOD: &str = include_str!("../fixtures/audit/good.txt");
const BAD: &str = include_str!("../fixtures/audit/bad.txt");
const CASES: &str = include_str!("../fixtures/audit/cases.txt");

/// Write the files of a fixture.
fn write(app: &Path, fixture: &str) {
    for file in format!("\n{fixture}").split("\n--- ").skip(1) {
        let (header, content) = file.split_once('\n').unwrap_or((file, ""));
        let mut words = header.split_whitespace();
        let path = app.join(words.next().unwrap());
        let mode = words.next().map_or(0o644, |mode| u32::from_str_radix(mode, 8).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("{}\n", content.trim_end())).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
}

fn git(app: &Path, arguments: &[&str]) {
    let output = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"])
        .args(arguments)
        .current_dir(app)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .output()
        .unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn application(fixture: &str) -> tempfile::TempDir {
    let app = tempfile::tempdir().unwrap();
    fs::set_permissions(app.path(), Permissions::from_mode(0o755)).unwrap();
    write(app.path(), fixture);
    git(app.path(), &["init", "--quiet"]);
    app
}

fn commit(app: &Path) {
    git(app, &["add", "."]);
    git(app, &["commit", "--quiet", "--message", "x"]);
}

fn ids(report: &Report) -> BTreeSet<&'static str> {
    report.findings.iter().map(|finding| finding.id.name()).collect()
}

fn options() -> Options {
    Options { today: Date::parse("2026-06-01").unwrap(), ..Options::default() }
}

#[test]
fn a_good_application_has_no_findings() {
    let app = application(GOOD);
    commit(app.path());
    let report = audit::run(app.path(), &options());
    assert_eq!(report.findings, []);
    assert_eq!(report.notes, Vec::<String>::new());
    assert_eq!(report.worst(), None);
}

#[test]
fn a_bad_application_has_all_44() {
    let app = application(BAD);
    commit(app.path());
    let report = audit::run(app.path(), &options());
    let found = ids(&report);
    let missing: Vec<_> = Id::ALL.iter().map(|id| id.name()).filter(|id| *id != "W01" && !found.contains(id)).collect();
    assert_eq!(missing, Vec::<&str>::new());
    assert_eq!(found.len(), 44);
    assert_eq!(report.worst(), Some(Severity::Critical));
}

#[test]
fn each_check_finds_its_case_and_nothing_else() {
    let mut covered = BTreeSet::new();
    for case in CASES.split("\n=== ").skip(1) {
        let (header, body) = case.split_once('\n').unwrap();
        let words: Vec<&str> = header.split_whitespace().collect();
        let (id, place) = (words[0], words[1]);
        let also: BTreeSet<&str> = words.iter().skip(3).copied().collect();
        let app = application(GOOD);
        commit(app.path());
        write(app.path(), body);
        for line in body.lines() {
            if let Some(path) = line.strip_prefix("git: ") {
                git(app.path(), &["add", "--force", path]);
                git(app.path(), &["commit", "--quiet", "--message", "y"]);
            }
            if let Some(path) = line.strip_prefix("past: ") {
                git(app.path(), &["add", "--force", path]);
                git(app.path(), &["commit", "--quiet", "--message", "y"]);
                git(app.path(), &["rm", "--quiet", path]);
                git(app.path(), &["commit", "--quiet", "--message", "z"]);
            }
        }
        let report = audit::run(app.path(), &options());
        let at: Vec<String> =
            report.findings.iter().filter(|finding| finding.id.name() == id).map(|finding| finding.place.to_string()).collect();
        assert!(at.iter().any(|found| found == place), "{header}: found at {at:?}; all: {:?}", report.findings);
        let mut allowed = also.clone();
        allowed.insert(id);
        assert_eq!(ids(&report).difference(&allowed).collect::<Vec<_>>(), Vec::<&&str>::new(), "{header}: {:?}", report.findings);
        covered.insert(id.to_owned());
    }
    assert_eq!(covered.len(), 44);
}

#[test]
fn no_secret_is_ever_printed() {
    let app = application(BAD);
    commit(app.path());
    let report = audit::run(app.path(), &options());
    for format in [Format::Table, Format::Json, Format::Sarif] {
        let mut out = Vec::new();
        report.write(format, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for secret in ["not-a-real", "bm90IGEga2V5", "0123456789abcdef"] {
            assert!(!text.contains(secret), "{format:?} prints {secret}");
        }
        assert!(text.contains("fingerprint"));
    }
}

#[test]
fn sarif_names_every_rule_and_place() {
    let app = application(BAD);
    let report = audit::run(app.path(), &options());
    let mut out = Vec::new();
    report.write(Format::Sarif, &mut out).unwrap();
    let sarif: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(sarif["version"], "2.1.0");
    let run = &sarif["runs"][0];
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), Id::ALL.len());
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), report.findings.len());
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"]);
        for key in result.as_object().unwrap().keys() {
            let known = ["ruleId", "ruleIndex", "level", "message", "locations", "partialFingerprints", "suppressions"];
            assert!(known.contains(&key.as_str()), "SARIF 2.1.0 has no {key} in a result, or this test does not know it");
        }
        assert!(["error", "warning", "note"].contains(&result["level"].as_str().unwrap()));
        assert!(!result["message"]["text"].as_str().unwrap().is_empty());
        let region = &result["locations"][0]["physicalLocation"]["region"];
        assert!(region.is_null() || region["startLine"].as_u64().unwrap() >= 1);
        assert!(!result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].as_str().unwrap().is_empty());
    }
}

#[test]
fn the_exit_code_follows_the_threshold() {
    let app = application(GOOD);
    commit(app.path());
    write(app.path(), "--- .env 0644\nA=1\n");
    let code = |fail_on| audit::command(app.path(), Format::Json, fail_on, &Options::default(), &mut Vec::new()).unwrap();
    assert_eq!(code(None), 0);
    assert_eq!(code(Some(Severity::Critical)), 0);
    assert_eq!(code(Some(Severity::High)), 6);
    assert_eq!(code(Some(Severity::Low)), 6);
    assert!(audit::command(&app.path().join("nothing"), Format::Table, None, &Options::default(), &mut Vec::new()).is_err());
}

#[test]
fn the_configuration_takes_waivers_only_with_reason_and_date() {
    let read = |ignore: &str| {
        serde_json::from_str::<palisade::config::server::Audit>(&format!("{{\"on_start\": \"block\", \"ignore\": [{ignore}]}}"))
    };
    let config = read(r#"{"id": "E08", "reason": "a laboratory", "until": "2027-01-31"}"#).unwrap();
    assert_eq!((config.on_start, config.ignore.len()), (palisade::config::server::OnStart::Block, 1));
    assert!(read(r#"{"id": "E08", "until": "2027-01-31"}"#).is_err());
    assert!(read(r#"{"id": "E08", "reason": "x"}"#).is_err());
    assert!(read(r#"{"id": "E08", "reason": "x", "until": "soon"}"#).is_err());
    assert_eq!("high".parse(), Ok(Severity::High));
    assert_eq!("sarif".parse(), Ok(Format::Sarif));
    assert!("bad".parse::<Severity>().is_err() && "xml".parse::<Format>().is_err());
}

#[test]
fn a_waiver_holds_until_it_expires() {
    let app = application(GOOD);
    commit(app.path());
    write(app.path(), "--- .env 0644\nA=1\n");
    let waiver = |until: &str, path: Option<&str>| Waiver {
        id: "S07".into(),
        path: path.map(Into::into),
        reason: "a laboratory".into(),
        until: Date::parse(until).unwrap(),
    };
    let run = |waiver: Waiver| audit::run(app.path(), &Options { waivers: vec![waiver], ..options() });
    let held = run(waiver("2026-06-01", Some(".env")));
    assert_eq!((held.findings.len(), held.waived.len()), (0, 1));
    let elsewhere = run(waiver("2026-06-01", Some("config")));
    assert_eq!(ids(&elsewhere), BTreeSet::from(["S07"]));
    let expired = run(waiver("2026-05-31", None));
    assert_eq!(ids(&expired), BTreeSet::from(["S07", "W01"]));
}

#[test]
fn a_comment_waives_its_line_only() {
    let app = application(GOOD);
    commit(app.path());
    let source = "bind \"unix://a.sock\" # palisade:ignore E07 until 2026-12-31 behind a closed folder\nbind \"unix://b.sock\"\nhttp_content_length_limit 1000\n";
    write(app.path(), &format!("--- config/puma.rb\n{source}"));
    let report = audit::run(app.path(), &options());
    assert_eq!(report.waived.len(), 2, "{:?}", report.findings);
    write(app.path(), &format!("--- config/puma.rb\n\n\n{}", source.replace('\n', "\n\n")));
    let report = audit::run(app.path(), &options());
    assert_eq!((report.waived.len(), ids(&report)), (1, BTreeSet::from(["E07"])));
    write(app.path(), "--- config/puma.rb\nbind \"unix://a.sock\" # palisade:ignore E07 later\nhttp_content_length_limit 1000\n");
    assert_eq!(ids(&audit::run(app.path(), &options())), BTreeSet::from(["E07", "W01"]));
}

#[test]
fn the_proxy_s_own_settings_count() {
    let app = application(GOOD);
    commit(app.path());
    write(app.path(), "--- config/puma.rb\nbind \"unix://tmp/puma.sock?umask=0117\"\n");
    let with = |proxy: Proxy| ids(&audit::run(app.path(), &Options { proxy, ..options() })).into_iter().collect::<Vec<_>>();
    assert_eq!(with(Proxy::default()), ["R02"]);
    assert_eq!(with(Proxy { body_limit: Some(1), ..Proxy::default() }), Vec::<&str>::new());
    let slow = Proxy { body_limit: Some(1), upstream_idle: Some(Duration::from_secs(65)), ..Proxy::default() };
    assert_eq!(with(slow), ["R04"]);
    let elsewhere = Proxy { body_limit: Some(1), address: "10.9.0.1".parse().ok(), ..Proxy::default() };
    assert_eq!(with(elsewhere), ["R07"]);
}

#[test]
fn an_application_inside_a_larger_repository_is_found() {
    let app = application("");
    write(&app.path().join("services/shop"), GOOD);
    git(app.path(), &["add", "--force", "."]);
    git(app.path(), &["commit", "--quiet", "--message", "x"]);
    let report = audit::run(&app.path().join("services/shop"), &options());
    assert_eq!(ids(&report), BTreeSet::from(["S01", "S06"]), "{:?}", report.findings);
}

#[test]
fn a_key_on_another_branch_is_in_the_history() {
    let app = application(GOOD);
    commit(app.path());
    git(app.path(), &["checkout", "--quiet", "-b", "other"]);
    git(app.path(), &["add", "--force", "config/master.key"]);
    git(app.path(), &["commit", "--quiet", "--message", "y"]);
    git(app.path(), &["checkout", "--quiet", "-"]);
    write(app.path(), "--- config/master.key 0600\nx\n");
    git(app.path(), &["pack-refs", "--all"]);
    git(app.path(), &["gc", "--quiet"]);
    let report = audit::run(app.path(), &options());
    assert_eq!(ids(&report), BTreeSet::from(["S01"]));
    assert!(report.findings[0].detail.contains("history"));
    let shallow = audit::run(app.path(), &Options { history: false, ..options() });
    assert_eq!(ids(&shallow), BTreeSet::new());
}

#[test]
fn certificates_are_checked_against_their_keys_and_dates() {
    let app = application(GOOD);
    commit(app.path());
    let make = |name: &str, not_after: (i32, u8, u8)| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["shop.example".into()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(not_after.0, not_after.1, not_after.2);
        write(app.path(), &format!("--- {name}.key 0600\n{}", key.serialize_pem()));
        fs::write(app.path().join(format!("{name}.crt")), parameters.self_signed(&key).unwrap().pem()).unwrap();
    };
    make("tmp/good", (2100, 1, 1));
    make("tmp/old", (2020, 1, 1));
    let found = |certificate: &str, key: &str| {
        let pair = (app.path().join(certificate), app.path().join(key));
        let proxy = Proxy { certificates: vec![pair], ..Proxy::default() };
        audit::run(app.path(), &Options { proxy, ..options() }).findings.into_iter().map(|finding| finding.detail).collect::<Vec<_>>()
    };
    assert_eq!(found("tmp/good.crt", "tmp/good.key"), Vec::<String>::new());
    assert_eq!(found("tmp/good.crt", "tmp/old.key"), ["the private key does not belong to the certificate"]);
    assert_eq!(found("tmp/old.crt", "tmp/old.key"), ["a certificate of the chain has expired"]);
    make("tmp/soon", in_days(7));
    assert_eq!(found("tmp/soon.crt", "tmp/soon.key"), ["a certificate of the chain expires in 6 days"]);
    for (end, mode) in [("crt", 0o644), ("key", 0o640)] {
        let path = app.path().join(format!("tmp/rsa.{end}"));
        fs::copy(format!("{}/tests/fixtures/audit/rsa1024.{end}", env!("CARGO_MANIFEST_DIR")), &path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    assert_eq!(found("tmp/rsa.crt", "tmp/rsa.key"), ["an RSA key of 1024 bits", "the private key has mode 0640"]);
}

/// The calendar day so many days from now.
fn in_days(days: u32) -> (i32, u8, u8) {
    let output = Command::new("date").args(["-u", "-d", &format!("{days} days"), "+%Y %m %d"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let numbers: Vec<i32> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
    (numbers[0], u8::try_from(numbers[1]).unwrap(), u8::try_from(numbers[2]).unwrap())
}

#[test]
fn a_link_out_of_public_is_found() {
    let app = application(GOOD);
    commit(app.path());
    std::os::unix::fs::symlink("../config", app.path().join("public/settings")).unwrap();
    std::os::unix::fs::symlink(".", app.path().join("public/again")).unwrap();
    let report = audit::run(app.path(), &options());
    let places: Vec<String> = report.findings.iter().map(|finding| finding.place.to_string()).collect();
    assert_eq!(places, ["public/settings"]);
}

#[test]
fn what_cannot_be_read_is_said_and_not_guessed() {
    let app = application(GOOD);
    commit(app.path());
    write(app.path(), "--- config/puma.rb\nworkers(\n--- config/database.yml\na: [\n");
    let report = audit::run(app.path(), &options());
    assert!(report.notes.iter().any(|note| note.contains("config/puma.rb")), "{:?}", report.notes);
    assert!(report.notes.iter().any(|note| note.contains("config/database.yml")), "{:?}", report.notes);
}

#[test]
fn hostile_names_and_trees_end_the_audit_in_order() {
    let app = application(GOOD);
    commit(app.path());
    write(app.path(), "--- public/\u{1b}[2Jx.sql\nx\n");
    fs::write(app.path().join("config/secrets.yml"), "[".repeat(100_000)).unwrap();
    fs::write(app.path().join("config/routes.rb"), "(".repeat(100_000)).unwrap();
    fs::write(app.path().join("Gemfile.lock"), [0xff; 4096]).unwrap();
    let started = Instant::now();
    let report = audit::run(app.path(), &options());
    assert!(started.elapsed() < Duration::from_secs(20));
    let mut out = Vec::new();
    report.write(Format::Table, &mut out).unwrap();
    assert!(!out.contains(&0x1b));
}
