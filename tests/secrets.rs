//! Threat: exposure. Secrets are planted wherever one may stand, and every output is searched for them; hostile values are
//! written to every form of log, and every line must still be one line.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    thread,
};

use rustix::process::Signal;

use crate::harness::{
    eventually,
    palisade::{Setup, binary, finish, write_private},
    puma::Puma,
    recorder::Recorder,
};

/// A control server that takes any token, as nobody should run it.
fn open_control_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut request = [0; 2048];
            if stream.read(&mut request).is_ok() {
                // Whoever has asked may be gone again.
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").ok();
            }
        }
    });
    format!("http://{address}")
}

#[test]
fn no_output_repeats_a_planted_secret() {
    let recorder = Recorder::start();
    let setup = Setup::before(recorder.address()).tls();
    let folder = setup.spool().parent().unwrap().to_owned();
    let token = folder.join("token");
    write_private(&token, "canary-token\n");
    let palisade = setup
        .with(&format!("[upstream]\ncontrol_url = {:?}\ncontrol_token_file = {:?}\n", open_control_server(), token.display().to_string()))
        .env("SECRET_KEY_BASE", "canary-base")
        .env("DATABASE_URL", "postgres://user:canary-url@db/app")
        .start();
    for mut client in [palisade.connect(), palisade.connect_tls()] {
        client.send(
            "GET /?token=canary-query&api_key=canary-key HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer canary-bearer\r\n\
             Cookie: session=canary-cookie\r\nX-Api-Key: canary-field\r\nReferer: http://localhost/?password=canary-referer\r\n\r\n",
        );
        client.answer();
    }
    palisade.signal(Signal::HUP);
    eventually("it reloads", || palisade.process().output().contains("reloaded").then_some(()));
    fs::write(palisade.config_file(), fs::read_to_string(palisade.config_file()).unwrap() + "\n[tls.x]\npassword = \"canary-file\"\n")
        .unwrap();
    palisade.signal(Signal::HUP);
    eventually("it refuses to reload", || palisade.process().output().contains("reload refused").then_some(()));

    let key = fs::read_to_string(folder.join("key.pem")).unwrap();
    let key_text = key.lines().nth(1).unwrap();
    let mut outputs = vec![palisade.process().output(), fs::read_to_string(folder.join("access.log")).unwrap()];
    outputs.extend(["/metrics", "/stats", "/ready"].map(|page| palisade.admin(page).unwrap().text()));
    for arguments in [&["check"][..], &["config", "show"], &["config", "schema"], &["audit", "--format", "json"]] {
        let scratch = tempfile::tempdir().unwrap();
        let output = finish(
            binary()
                .args(arguments)
                .arg("--config")
                .arg(palisade.config_file())
                .args(["--set", "tls.passphrase=canary-flag"])
                .env("PALISADE_UPSTREAM__CONTROL_TOKEN", "canary-variable")
                .env("SECRET_KEY_BASE", "canary-base"),
            scratch.path(),
        );
        outputs.push(String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap());
    }
    assert!(outputs.iter().any(|output| output.contains("token")), "the outputs say something");
    for output in outputs {
        for secret in ["canary-", key_text] {
            let at = output.find(secret);
            assert!(at.is_none(), "{secret} in {}", &output[at.unwrap_or(0).saturating_sub(200)..]);
        }
    }
}

#[test]
fn a_configuration_that_others_can_write_is_exit_3_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy.toml");
    fs::write(&file, "").unwrap();
    let check = || {
        let scratch = tempfile::tempdir().unwrap();
        let output = finish(binary().args(["check", "--config"]).arg(&file), scratch.path());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (file_mode, folder_mode, remedy) in [(0o666, 0o755, "chmod go-w"), (0o644, 0o777, "chmod go-w")] {
        fs::set_permissions(&file, fs::Permissions::from_mode(file_mode)).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(folder_mode)).unwrap();
        let (code, said) = check();
        assert_eq!(code, Some(3), "{file_mode:o} in {folder_mode:o}: {said}");
        assert!(said.contains(remedy), "{said}");
    }
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    assert_eq!(check().0, Some(0), "a sticky folder such as /tmp lets nobody replace it");
}

#[test]
fn a_control_token_that_others_can_read_is_not_used_and_refused() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "canary\n").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    let upstream = format!("[upstream]\ncontrol_url = \"http://127.0.0.1:1\"\ncontrol_token_file = {:?}\n", token.display().to_string());
    let output = Setup::before("127.0.0.1:2").with(&upstream).fails();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("0644") && said.contains("chmod 600") && !said.contains("canary"), "{said}");
}

#[test]
fn what_is_open_beside_the_proxy_is_logged_or_blocks() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.path().join("puma.sock");
    let _socket = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let control = format!("[upstream]\ncontrol_url = {:?}\n", open_control_server());
    let upstream = format!("unix:{}", path.display());

    let palisade = Setup::before(&upstream).with(&control).without_upstream().start();
    eventually("both findings", || {
        let said = palisade.process().output();
        (said.contains("\"id\":\"E07\"") && said.contains("\"id\":\"E02\"")).then_some(())
    });
    assert!(palisade.metric("palisade_audit_findings", &[]) >= 2.0);

    let output = Setup::before(&upstream).with(&control).with("[audit]\non_start = \"block\"\nfail_on = \"high\"\n").fails();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains("E07") && said.contains("E02") && said.contains("audit.ignore"), "{said}");

    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
    let palisade = Setup::before(&upstream).with("[audit]\non_start = \"block\"\nfail_on = \"low\"\n").without_upstream().start();
    assert!(!palisade.process().output().contains("\"event\":\"audit\""));
}

/// What stands open beside the proxy: settings of the proxy, and the check that must be named.
#[test]
fn each_kind_of_hole_beside_the_proxy_is_named_and_blocks() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("config")).unwrap();
    let key = folder.path().join("config/master.key");
    fs::write(&key, "canary").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = everywhere.local_addr().unwrap().port();
    let app = format!("app = {:?}\n", folder.path().display().to_string());
    for (id, upstream, settings) in [
        ("E08", format!("127.0.0.1:{port}"), String::new()),
        ("E01", "127.0.0.1:1".to_owned(), format!("[upstream]\ncontrol_url = \"http://127.0.0.1:{port}\"\n")),
        ("S02", "127.0.0.1:1".to_owned(), app),
    ] {
        let setup = || Setup::before(&upstream).with(&settings);
        let output = setup().with("[audit]\non_start = \"block\"\nfail_on = \"high\"\n").fails();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(6), "{id}: {said}");
        assert!(said.contains(id) && said.contains("audit.ignore") && !said.contains("canary"), "{id}: {said}");
        let waiver =
            format!("[audit]\non_start = \"block\"\nignore = [{{ id = \"{id}\", reason = \"a laboratory\", until = \"2999-12-31\" }}]\n");
        let palisade = setup().with(&waiver).without_upstream().start();
        assert!(palisade.metric("palisade_audit_findings", &[]) < 1.0, "{id} is waived");
        let palisade = setup().with("[audit]\non_start = \"off\"\n").without_upstream().start();
        assert!(palisade.metric("palisade_audit_findings", &[]) < 1.0, "{id}: nobody looks");
        let palisade = setup().without_upstream().start();
        eventually("the finding is said", || palisade.process().output().contains(&format!("\"id\":\"{id}\"")).then_some(()));
    }
}

#[test]
fn a_certificate_may_be_a_systemd_credential() {
    let recorder = Recorder::start();
    let setup = Setup::before(recorder.address()).tls();
    let folder = setup.cert().parent().unwrap().to_owned();
    let credentials = folder.join("credentials");
    fs::create_dir(&credentials).unwrap();
    // As systemd has them: mode 0400, in a folder of the unit's own.
    for (file, name) in [("cert.pem", "shop.crt"), ("key.pem", "shop.key")] {
        fs::rename(folder.join(file), credentials.join(name)).unwrap();
        fs::set_permissions(credentials.join(name), fs::Permissions::from_mode(0o400)).unwrap();
    }
    write_private(&credentials.join("token"), "canary");
    let settings = format!(
        "[server]\nsandbox = \"required\"\n[tls]\ncert_file = \"credential:shop.crt\"\nkey_file = \"credential:shop.key\"\n\
         [upstream]\ncontrol_url = {:?}\ncontrol_token_file = \"credential:token\"\n",
        open_control_server()
    );
    let palisade = setup.with(&settings).env("CREDENTIALS_DIRECTORY", credentials.display().to_string()).start();
    assert_eq!(palisade.connect_tls().get("/").status, 200);
    palisade.signal(Signal::HUP);
    eventually("it reads them again", || palisade.process().output().contains("\"event\":\"reloaded\"").then_some(()));
    assert_eq!(palisade.connect_tls().get("/").status, 200);
    assert!(!palisade.process().output().contains("canary"));
    drop(palisade);

    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("proxy.toml");
    fs::write(
        &file,
        "[[listener]]\naddress = \"127.0.0.1:1\"\nprotocol = \"https\"\n[tls]\ncert_file = \"credential:c\"\nkey_file = \"credential:k\"\n",
    )
    .unwrap();
    let output = finish(binary().args(["check", "--config"]).arg(&file).env_remove("CREDENTIALS_DIRECTORY"), scratch.path());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("LoadCredential="), "{said}");
}

#[test]
fn puma_s_debug_pages_do_not_leave() {
    let Some(puma) = Puma::cluster() else { return };
    let direct = puma.connect().get("/trace");
    assert!(direct.status == 500 && direct.text().contains("config.ru:"), "the application shows its trace: {direct:?}");
    let palisade = Setup::before(puma.address()).start();
    for path in ["/trace", "/raise"] {
        let answer = palisade.connect().get(path);
        assert_eq!(answer.status, 500, "{path}");
        for word in ["config.ru", "RuntimeError", "as asked", "/usr/", "puma"] {
            assert!(!answer.text().contains(word), "{word} leaves with {path}: {}", answer.text());
        }
    }
    assert!(palisade.metric("palisade_answers_concealed_total", &[("part", "backtrace")]) >= 1.0);
    let observing = Setup::before(puma.address()).with("[backtrace]\nmode = \"observe\"\n").start();
    assert!(observing.connect().get("/trace").text().contains("config.ru:"));
    assert!(observing.metric("palisade_answers_concealed_total", &[("part", "backtrace")]) >= 1.0);
}

#[test]
fn the_security_headers_of_the_application_are_its_own() {
    let Some(puma) = Puma::cluster() else { return };
    let palisade = Setup::before(puma.address()).tls().start();
    let bare = palisade.connect_tls().get("/");
    for (name, value) in [
        ("strict-transport-security", "max-age=31536000"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "SAMEORIGIN"),
        ("referrer-policy", "strict-origin-when-cross-origin"),
    ] {
        assert_eq!(bare.all(name), [value], "{name}");
    }
    assert!(palisade.connect().get("/").field("strict-transport-security").is_none(), "over plain HTTP");
    let own = palisade.connect_tls().get("/secured");
    for (name, value) in [
        ("strict-transport-security", "max-age=5"),
        ("x-content-type-options", "own"),
        ("x-frame-options", "ALLOW-FROM x"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(own.all(name), [value], "{name}");
    }
}

/// Values that try to end a field or a line, to forge one, or to command a terminal.
const HOSTILE: &[&str] = &[
    "x\" end=\"ok\" forged=\"1",
    "x\",\"end\":\"forged",
    "\\\" \\n forged",
    "a\x1b[2J\x1b[31mforged",
    "\u{2028}forged\u{202e}",
    "\u{85}\u{9b}forged",
    "%0d%0a127.0.0.1 - - [forged]",
    "- - [01/Jan/2026:00:00:00 +0000] \"GET /forged HTTP/1.1\" 200",
    "{{forged}} ${jndi:ldap://x} $(forged) `forged`",
    "'; DROP TABLE log; --",
];

fn hostile_log(format: &str) -> (usize, String) {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with(&format!("[log]\naccess = \"{format}\"\n")).start();
    let mut sent = 0;
    for value in HOSTILE {
        let encoded: String = value.bytes().map(|b| format!("%{b:02x}")).collect();
        for request in [
            format!("GET /?q={encoded} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: {value}\r\nReferer: {value}\r\n\r\n"),
            format!("GET /{value} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n"),
            format!("{value} / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: a\r\n b{value}\r\n\r\n"),
        ] {
            let mut client = palisade.connect();
            client.send(request.as_bytes());
            client.answer();
            sent += 1;
        }
    }
    let file = palisade.config_file().with_file_name("access.log");
    let text = eventually("every line is written", || {
        let text = fs::read(&file).ok()?;
        (text.iter().filter(|b| **b == b'\n').count() >= sent).then_some(text)
    });
    (sent, String::from_utf8(text).expect("the log is UTF-8"))
}

fn is_harmless(text: &str) {
    let bad = text.chars().find(|c| (c.is_control() && *c != '\n') || matches!(c, '\u{2028}'..='\u{202e}'));
    assert_eq!(bad, None, "{text}");
}

#[test]
fn hostile_requests_cannot_forge_a_line_of_json() {
    let (sent, text) = hostile_log("json");
    is_harmless(&text);
    assert_eq!(text.lines().count(), sent);
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(value["end"] != "forged" && value["ip"] == "127.0.0.1", "{line}");
    }
}

#[test]
fn hostile_requests_cannot_forge_a_line_of_logfmt() {
    let (sent, text) = hostile_log("logfmt");
    is_harmless(&text);
    assert_eq!(text.lines().count(), sent);
    for line in text.lines() {
        let keys = logfmt_keys(line);
        assert!(keys.contains(&"status".to_owned()) && !keys.iter().any(|key| key == "forged"), "{line}");
        let mut once = keys.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), keys.len(), "a key stands twice in {line}");
    }
}

#[test]
fn hostile_requests_cannot_forge_a_line_of_combined() {
    let (sent, text) = hostile_log("combined");
    is_harmless(&text);
    assert_eq!(text.lines().count(), sent);
    for line in text.lines() {
        // ip - user [time] "request" status bytes "referer" "agent": six quotes, as every inner one is written \x22.
        assert_eq!(line.matches('"').count(), 6, "{line}");
        assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
        let status = line.split('"').nth(2).and_then(|part| part.split_whitespace().next()).and_then(|word| word.parse::<u16>().ok());
        assert!(status.is_some_and(|status| (200..600).contains(&status)), "{line}");
    }
}

/// The keys of a line as a reader of logfmt sees them.
fn logfmt_keys(line: &str) -> Vec<String> {
    let (mut keys, mut rest) = (Vec::new(), line);
    while let Some((key, value)) = rest.split_once('=') {
        keys.push(key.trim_start().to_owned());
        let end = if let Some(quoted) = value.strip_prefix('"') {
            let mut escaped = false;
            let close = quoted.char_indices().find(|(_, c)| {
                let is_end = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                is_end
            });
            close.map_or(value.len(), |(at, _)| at + 2)
        } else {
            value.find(' ').unwrap_or(value.len())
        };
        rest = &value[end..];
    }
    keys
}

#[test]
fn the_reader_of_logfmt_is_one() {
    assert_eq!(logfmt_keys(r#"a=1 b="x \" c=2" d="#), ["a", "b", "d"]);
}
