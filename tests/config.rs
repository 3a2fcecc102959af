//! The operator's side: what is wrong is named with its place and its remedy, and the exit code says whose fault it is.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt, path::Path, process::Output};

use tempfile::TempDir;

use crate::harness::palisade::{Setup, binary, finish};

fn check(toml: &str) -> Output {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("proxy.toml");
    fs::write(&file, toml).unwrap();
    finish(binary().args(["check", "--config"]).arg(&file), dir.path())
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn every_mistake_is_named_with_its_key_and_what_was_expected() {
    for (toml, key, hint) in [
        ("[limits]\nbodi = \"1MiB\"\n", "bodi", "body"),
        ("[timeout]\nheader = \"1s\"\n", "timeout", "timeouts"),
        ("upstraem = \"127.0.0.1:3000\"\n", "upstraem", "upstream"),
        ("[timeouts]\nheader = 10\n", "timeouts.header", "s"),
        ("[timeouts]\nheader = \"0s\"\n", "timeouts.header", ""),
        ("[limits]\nbody = \"big\"\n", "limits.body", "MiB"),
        ("[[listener]]\naddress = \"nonsense\"\nprotocol = \"http\"\n", "address", ""),
        ("[[listener]]\naddress = \"127.0.0.1:1\"\nprotocol = \"gopher\"\n", "protocol", "https"),
        ("[[rate_limit]]\nname = \"a\"\nrate = \"many\"\n", "rate", "/min"),
        ("this is no TOML\n", "", "1"),
    ] {
        let output = check(toml);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(3), "{toml}: {said}");
        assert!(said.contains(key) && said.contains(hint), "{toml}: {said}");
    }
}

#[test]
fn an_unknown_key_gets_a_suggestion_and_a_place() {
    let said = text(&check("listen = [\"127.0.0.1:1\"]\n\n[limits]\nhedaer_bytes = \"1KiB\"\n"));
    assert!(said.contains("header_bytes"), "{said}");
    assert!(said.contains("4"), "the line: {said}");
}

#[test]
fn all_mistakes_are_said_at_once() {
    let said = text(&check("[limits]\nbodi = \"1MiB\"\n[timeouts]\nheadr = \"1s\"\n"));
    assert!(said.contains("bodi") && said.contains("headr"), "{said}");
}

#[test]
fn a_mistake_never_prints_the_value_of_a_secret() {
    let said = text(&check("[tls]\nkey_file = 12345678\n[upstream]\ncontrol_token = \"canary\"\n"));
    assert!(!said.contains("canary") && !said.contains("12345678"), "{said}");
}

#[test]
fn the_defaults_written_out_are_the_defaults() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = TempDir::new().unwrap();
    let empty = dir.path().join("empty.toml");
    fs::write(&empty, "").unwrap();
    let show = |file: &Path| {
        let output = finish(binary().args(["config", "show", "--config"]).arg(file), dir.path());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let split = |shown: &str| -> Vec<(String, String)> {
        shown
            .lines()
            .filter_map(|line| line.rsplit_once(" # "))
            .map(|(key, origin)| (key.trim_end().to_owned(), origin.to_owned()))
            .collect()
    };
    let (written, built_in) = (split(&show(&root.join("proxy.toml"))), split(&show(&empty)));
    assert!(built_in.len() > 30, "{built_in:?}");
    for ((key, origin), (default, _)) in written.iter().zip(&built_in) {
        assert_eq!(key, default, "proxy.toml differs from the built-in default");
        // What is not set, and lists of tables without an entry, cannot be written down as a default.
        let is_absent = key.starts_with('#') || key.ends_with("= []");
        assert!(is_absent || origin.contains("proxy.toml"), "proxy.toml does not list {key}");
    }
    assert_eq!(written.len(), built_in.len());
}

#[test]
fn six_lines_are_enough() {
    let dir = TempDir::new().unwrap();
    let output = check(&format!(
        "listen = [\"127.0.0.1:8080\"]\ndomains = [\"shop.example.com\"]\nupstream = \"unix:{0}/w*.sock\"\napp = {0:?}\ntrusted_proxies = []\nprofile = \"rails\"\n",
        dir.path().display()
    ));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

#[test]
fn a_wrong_command_line_is_exit_2() {
    let dir = TempDir::new().unwrap();
    for arguments in [&["frobnicate"][..], &["run", "--no-such-flag"], &["check", "--config"]] {
        let output = finish(binary().args(arguments), dir.path());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
    }
}

#[test]
fn the_version_is_said() {
    let dir = TempDir::new().unwrap();
    let output = finish(binary().arg("--version"), dir.path());
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output).contains(env!("CARGO_PKG_VERSION")), "{}", text(&output));
}

#[test]
fn a_missing_configuration_is_exit_3_and_names_the_file() {
    let dir = TempDir::new().unwrap();
    let output = finish(binary().args(["run", "--config", "/nonexistent/proxy.toml"]), dir.path());
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("/nonexistent/proxy.toml"));
}

#[test]
fn a_port_that_is_taken_is_exit_4_and_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let listener = format!("[[listener]]\naddress = \"{address}\"\nprotocol = \"http\"\n");
    let output = Setup::before("127.0.0.1:1").with(&listener).fails();
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(text(&output).contains(&address), "{}", text(&output));
}

#[test]
fn a_bad_certificate_or_a_key_that_others_can_read_is_exit_7() {
    let setup = Setup::before("127.0.0.1:1").tls();
    fs::write(setup.cert(), "no certificate").unwrap();
    let output = setup.fails();
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));

    let setup = Setup::before("127.0.0.1:1").tls();
    let key = setup.cert().with_file_name("key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let output = setup.fails();
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
    assert!(text(&output).contains("key.pem"), "{}", text(&output));
}

#[test]
fn the_environment_wins_over_the_file() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("proxy.toml");
    fs::write(&file, "listen = [\"127.0.0.1:8080\"]\nupstream = \"127.0.0.1:3000\"\n[limits]\nbody = \"1MiB\"\n").unwrap();
    let output = finish(binary().env("PALISADE_LIMITS__BODY", "nonsense").args(["check", "--config"]).arg(&file), dir.path());
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("PALISADE_LIMITS__BODY"), "the place of the mistake: {}", text(&output));
    let output = finish(binary().env("PALISADE_LIMITS__BODY", "2MiB").args(["check", "--config"]).arg(&file), dir.path());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}
