mod broken;
mod shape;

use std::{ffi::OsString, os::unix::fs::PermissionsExt, path::Path};

use super::*;
use crate::accept::listener::Protocol;

fn load(text: &str) -> Result<Loaded, Invalid> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("proxy.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&Inputs { file: Some(path), ..Inputs::default() })
}

#[test]
fn nothing_at_all_is_the_built_in_defaults() {
    let loaded = Config::load(&Inputs::default()).unwrap();
    assert_eq!(serde_json::to_value(&loaded.config).unwrap(), serde_json::to_value(Config::default()).unwrap());
    assert!(loaded.entries().iter().all(|entry| entry.origin == Place::BuiltIn));
}

#[test]
fn everything_wrong_is_named_at_once() {
    let text = "listne = 1\n[limits]\nbody = true\nheader_count = 70000\nheader_bytes = \"10 parsecs\"\n[server]\nworkers = \"many\"\n\
                [[audit.ignore]]\nid = 5\nreason = \"x\"\n[[audit.ignore]]\nid = \"a\"\nreson = \"\"\n";
    let invalid = load(text).unwrap_err();
    let found = invalid.0.iter().map(|p| (p.place.position().unwrap().line, p.key.as_str())).collect::<Vec<_>>();
    let expected = [
        (1, "listne"),
        (3, "limits.body"),
        (4, "limits.header_count"),
        (5, "limits.header_bytes"),
        (7, "server.workers"),
        (8, "audit.ignore.0.until"),
        (9, "audit.ignore.0.id"),
        (11, "audit.ignore.1.reason"),
        (11, "audit.ignore.1.until"),
        (13, "audit.ignore.1.reson"),
    ];
    assert_eq!(found, expected);
}

fn committed(name: &str) -> String {
    std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap_or_default()
}

/// Compares a committed file with what it should say; `PALISADE_WRITE=1` writes it instead.
fn is_current(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os("PALISADE_WRITE").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert!(committed(name) == text, "{name} is not current: PALISADE_WRITE=1 cargo test --lib config::tests::the_reference");
}

#[test]
fn the_reference_is_current() {
    is_current("proxy.toml", &reference::proxy_toml());
    is_current("docs/configuration.md", &reference::markdown());
}

#[test]
fn proxy_toml_is_the_built_in_defaults() {
    let text = committed("proxy.toml");
    let mut layer = Layer::of_text(&text, &Place::Flag).unwrap();
    assert_eq!(check::check(&mut layer), []);
    let config = merge(&[layer]).unwrap();
    assert_eq!(serde_json::to_value(&config).unwrap(), serde_json::to_value(Config::default()).unwrap());
}

#[test]
fn every_key_stands_in_proxy_toml() {
    let text = committed("proxy.toml");
    let leaves = schema::leaves();
    assert!(leaves.len() > 30, "{leaves:?}");
    for path in leaves {
        let key = path.rsplit('.').find(|part| part.parse::<usize>().is_err()).unwrap();
        let is_there = text.lines().any(|line| {
            let written = line.trim_start_matches(['#', ' ']).split(" = ").next().unwrap_or("");
            line.contains(" = ") && (written == key || written.ends_with(&format!(".{key}")))
        });
        assert!(is_there, "{path}");
    }
}

fn environment(variables: &[(&str, &str)]) -> Inputs {
    let pairs = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Inputs { environment: pairs.collect(), ..Inputs::default() }
}

#[test]
fn the_environment_has_the_type_that_its_key_asks_for() {
    let loaded = Config::load(&environment(&[
        ("PALISADE_SERVER__USER", "00123"),
        ("PALISADE_APP", "true"),
        ("PALISADE_SERVER__WORKERS", "3"),
        ("PALISADE_LIMITS__BODY", "5GiB"),
        ("PALISADE_LIMITS__HEADER_BYTES", "65536"),
        ("PALISADE_LIMITS__CONNECTIONS_PER_PREFIX", "{ v4_24 = 7 }"),
        ("PALISADE_LISTEN", ":8080, 127.0.0.1:81"),
        ("PALISADE_DOMAINS", "[\"a.example\", \"b.example\"]"),
        ("PALISADE_AUDIT__IGNORE", "[{ id = \"R09\", reason = \"WebDAV\", until = 2027-03-31 }]"),
        ("PALISADE_TIMEOUTS__HEADER", "\"7s\""),
    ]))
    .unwrap();
    let config = &loaded.config;
    assert_eq!(config.server.user, "00123");
    assert_eq!(config.app, Path::new("true"));
    assert_eq!(config.server.threads(), 3);
    assert_eq!(config.limits.body.to_string(), "5GiB");
    assert_eq!(config.limits.header_bytes.0, 65536);
    assert_eq!(config.limits.connections_per_prefix.v4_24.get(), 7);
    assert_eq!(config.limits.connections_per_prefix.v6_48.get(), 1024);
    assert_eq!(config.listen.0.iter().map(ToString::to_string).collect::<Vec<_>>(), [":8080", "127.0.0.1:81"]);
    assert_eq!(config.domains.0, ["a.example", "b.example"]);
    assert_eq!(config.audit.ignore[0].until.to_string(), "2027-03-31");
    assert_eq!(config.timeouts.header.to_string(), "7s");
    assert_eq!(loaded.origin("limits.body"), Place::Environment("PALISADE_LIMITS__BODY".into()));
}

#[test]
fn a_scalar_from_the_environment_may_stand_for_a_list_and_a_quoted_number_for_a_text() {
    let inputs = environment(&[("PALISADE_DOMAINS", "shop.example"), ("PALISADE_SERVER__USER", "\"5\"")]);
    let config = Config::load(&inputs).unwrap().config;
    assert_eq!((config.domains.0, config.server.user), (vec!["shop.example".to_owned()], "5".to_owned()));
}

#[test]
fn a_variable_that_is_no_setting_is_refused_but_for_those_of_kubernetes() {
    let fine = [("PALISADE_PORT", "tcp://10.0.0.1:80"), ("PALISADE_SERVICE_HOST", "10.0.0.1"), ("PALISADE_PORT_80_TCP_ADDR", "10.0.0.1")];
    assert!(Config::load(&environment(&fine)).is_ok());
    let invalid = Config::load(&environment(&[("PALISADE_LIMITS__BDY", "planted")])).unwrap_err();
    assert_eq!(
        invalid.to_string(),
        "environment PALISADE_LIMITS__BDY: limits.bdy: unknown key\n  remedy: did you mean limits.body?\n1 problem in the configuration"
    );
}

#[test]
fn a_variable_may_name_a_file_that_has_the_value() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("body");
    std::fs::write(&path, "3MiB\n").unwrap();
    let inputs = environment(&[("PALISADE_LIMITS__BODY_FILE", path.to_str().unwrap())]);
    assert_eq!(Config::load(&inputs).unwrap().config.limits.body.to_string(), "3MiB");
    let missing = environment(&[("PALISADE_LIMITS__BODY_FILE", "/nowhere/at/all")]);
    let invalid = Config::load(&missing).unwrap_err();
    assert_eq!((invalid.0[0].key.as_str(), invalid.exit_code()), ("limits.body", 3));
}

#[test]
fn the_stronger_source_wins_key_by_key_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("proxy.toml");
    std::fs::create_dir(dir.path().join("conf.d")).unwrap();
    std::fs::write(&file, "profile = \"siege\"\n[limits]\nbody = \"1MiB\"\nheader_count = 50\nuri_bytes = 100\n").unwrap();
    std::fs::write(dir.path().join("conf.d/20.toml"), "[limits]\nheader_count = 70\n").unwrap();
    std::fs::write(dir.path().join("conf.d/10.toml"), "domains = [\"a\", \"b\"]\n[limits]\nheader_count = 60\n").unwrap();
    std::fs::write(dir.path().join("conf.d/30.conf"), "not = [toml").unwrap();
    let inputs = Inputs {
        file: Some(file.clone()),
        set: vec!["limits.uri_bytes=3KiB".to_owned(), "domains=c".to_owned()],
        ..environment(&[("PALISADE_LIMITS__URI_BYTES", "2KiB"), ("PALISADE_RATES__GRACE", "9s")])
    };
    let loaded = Config::load(&inputs).unwrap();
    let config = &loaded.config;
    assert_eq!(config.limits.header_count, 70);
    assert_eq!(config.limits.uri_bytes.to_string(), "3KiB");
    assert_eq!(config.limits.connections_per_ip.get(), 16);
    assert_eq!(config.domains.0, ["c"]);
    let from = |key: &str| loaded.origin(key).to_string().replace(dir.path().to_str().unwrap(), "");
    assert_eq!(from("limits.body"), "/proxy.toml:3:8");
    assert_eq!(from("limits.header_count"), "/conf.d/20.toml:2:16");
    assert_eq!(from("limits.uri_bytes"), "--set");
    assert_eq!(from("limits.connections_per_ip"), "profile siege");
    assert_eq!(from("rates.grace"), "environment PALISADE_RATES__GRACE");
    assert_eq!(from("limits.header_bytes"), "built-in");
    let shown = loaded.show().replace(dir.path().to_str().unwrap(), "");
    assert!(shown.lines().any(|line| line.starts_with("limits.body = \"1MiB\" ") && line.ends_with("  # /proxy.toml:3:8")), "{shown}");
}

#[test]
fn every_profile_is_right() {
    for name in ["rails", "api", "sidecar", "ingress", "siege"] {
        let profile = load(&format!("profile = \"{name}\"\n")).unwrap().config.profile;
        assert_eq!(profile.name(), name);
        let mut layer = Layer::of_text(profile.settings(), &Place::Profile(name)).unwrap();
        assert_eq!(check::check(&mut layer), []);
    }
}

#[test]
fn a_file_that_others_may_write_refuses_the_start_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("proxy.toml");
    std::fs::write(&path, "").unwrap();
    let inputs = Inputs { file: Some(path.clone()), ..Inputs::default() };
    for (mode, is_fine) in [(0o600, true), (0o644, true), (0o646, false), (0o777, false), (0o602, false)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        match Config::load(&inputs) {
            Ok(_) => assert!(is_fine, "{mode:o}"),
            Err(invalid) => {
                assert!(!is_fine, "{mode:o}");
                assert_eq!(invalid.0[0].remedy, format!("chmod go-w {}", path.display()));
            }
        }
    }
}

#[test]
fn a_reload_says_what_changed_and_what_needs_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("proxy.toml");
    std::fs::write(&path, "[limits]\nbody = \"1MiB\"\n").unwrap();
    let loaded = Config::load(&Inputs { file: Some(path.clone()), ..Inputs::default() }).unwrap();
    std::fs::write(&path, "listen = \"127.0.0.1:1\"\n[server]\nworkers = 9\n").unwrap();
    let changes = loaded.changes(&loaded.again().unwrap().config);
    let found = changes.iter().map(|change| (change.key.as_str(), change.needs_restart)).collect::<Vec<_>>();
    assert_eq!(found, [("limits.body", false), ("listen", true), ("server.workers", true)]);
    std::fs::write(&path, "listen = [\n").unwrap();
    assert!(loaded.again().is_err());
}

/// A value at every key, in the file, the environment and on the command line: no sentence may contain it.
#[test]
fn no_sentence_contains_a_value() {
    const PLANTED: &str = "hunter2-planted";
    let mut complained = 0;
    for leaf in schema::leaves() {
        let flag = Inputs {
            set: vec![format!("{leaf}={PLANTED}"), format!("{leaf}=[\"{PLANTED}\", 5]"), PLANTED.to_owned()],
            ..Inputs::default()
        };
        let name = format!("PALISADE_{}", leaf.to_uppercase().replace('.', "__"));
        let variable = environment(&[(name.as_str(), PLANTED)]);
        for inputs in [flag, variable] {
            if let Err(invalid) = Config::load(&inputs) {
                complained += 1;
                assert!(!format!("{invalid}").contains(PLANTED), "{leaf}: {invalid}");
            }
        }
    }
    assert!(complained > 40, "{complained}");
    for text in ["x = hunter2-planted\n", "[hunter2-planted\n", "x = \"hunter2-planted\n", "[limits]\nbody = { a = \"hunter2-planted\" }\n"]
    {
        let invalid = load(text).unwrap_err();
        assert!(!format!("{invalid}").contains(PLANTED), "{invalid}");
    }
}

/// The short form of `../README.md`: six lines, a certificate, a Puma.
#[test]
fn six_lines_are_enough() {
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().to_str().unwrap();
    std::fs::create_dir(dir.path().join("config")).unwrap();
    std::fs::write(dir.path().join("config/puma.rb"), "workers 2\nthreads 5, 5\nbind 'unix:///run/shop/puma.sock'\nport 3000\n").unwrap();
    let text = format!(
        "listen = [\":443\", \":80\"]\ndomains = [\"shop.example.com\"]\nupstream = \"puma\"\napp = \"{app}\"\ntrusted_proxies = []\nprofile = \"rails\"\n"
    );
    let invalid = load(&text).unwrap_err();
    assert_eq!((invalid.0.len(), invalid.0[0].key.as_str(), invalid.exit_code()), (1, "listen", 7));
    assert!(invalid.0[0].remedy.contains("cert_file") && invalid.0[0].remedy.contains("shop.example.com"));

    let loaded = load(&format!("{text}[tls]\ncert_file = \"c.pem\"\nkey_file = \"k.pem\"\n")).unwrap();
    let config = &loaded.config;
    let found = config.listeners().into_iter().map(|l| (l.address.to_string(), l.protocol)).collect::<Vec<_>>();
    assert_eq!(found, [(":443".to_owned(), Protocol::Https), (":80".to_owned(), Protocol::Redirect)]);
    assert_eq!(config.host.domains.0, ["shop.example.com"]);
    assert_eq!(config.upstream.address.0.iter().map(ToString::to_string).collect::<Vec<_>>(), ["unix:/run/shop/puma.sock"]);
    assert_eq!(config.upstream.puma_config.as_deref(), Some(dir.path().join("config/puma.rb").as_path()));
}

#[test]
fn puma_is_found_where_its_file_makes_it_listen() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("config")).unwrap();
    let load = |ruby: &str| {
        std::fs::write(dir.path().join("config/puma.rb"), ruby).unwrap();
        let set = vec!["upstream=puma".to_owned(), format!("app={}", dir.path().display())];
        let environment = vec![("PORT".into(), "4000".into())];
        Config::load(&Inputs { set, environment, ..Inputs::default() })
    };
    let addresses = |ruby: &str| load(ruby).unwrap().config.upstream.address.0.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(addresses("port ENV.fetch('PORT', 3000)\n"), ["http://127.0.0.1:4000"]);
    assert_eq!(addresses("bind 'tcp://127.0.0.1:9000'\n"), ["http://127.0.0.1:9000"]);
    assert_eq!(addresses("bind 'unix://tmp/puma.sock'\n"), [format!("unix:{}/tmp/puma.sock", dir.path().display())]);
    for unknown in ["bind compute_it\n", "bind 'ssl://127.0.0.1:9000?key=k&cert=c'\n", "bind \"\n"] {
        let invalid = load(unknown).unwrap_err();
        assert_eq!((invalid.0[0].key.as_str(), invalid.0.len()), ("upstream.address", 1), "{unknown}: {invalid}");
    }
}

#[test]
fn a_port_means_what_it_says() {
    let protocols = |text: &str| load(text).unwrap().config.listeners().into_iter().map(|l| l.protocol).collect::<Vec<_>>();
    assert_eq!(protocols(""), [Protocol::Http]);
    assert_eq!(protocols("listen = [\":80\", \":8080\", \":8443\"]"), [Protocol::Http; 3]);
    let tls = "[tls]\ncert_file = \"c\"\nkey_file = \"k\"\n";
    let expected = [Protocol::Redirect, Protocol::Http, Protocol::Https];
    assert_eq!(protocols(&format!("listen = [\":80\", \":8080\", \":8443\"]\n{tls}")), expected);
    assert_eq!(protocols("[[listener]]\naddress = \":9\"\nprotocol = \"http\"\n"), [Protocol::Http]);
}

#[test]
fn the_lab_configuration_is_right() {
    let mut text = committed("benches/lab.toml.in");
    let values = [("http", "1"), ("https", "2"), ("up", "unix:/x"), ("cert", "/c"), ("key", "/k"), ("dir", "/tmp"), ("workers", "2")];
    for (name, value) in values {
        text = text.replace(&format!("{{{name}}}"), value);
    }
    let config = load(&text).unwrap().config;
    assert_eq!((config.server.threads(), config.listeners().len(), config.rate_limit.len()), (2, 2, 1));
}

#[test]
fn credentials_in_an_address_are_never_shown() {
    let mut loaded = load("").unwrap();
    loaded.config.log.access_file = "https://user:hunter2-planted@host/x".to_owned();
    let shown = loaded.show();
    assert!(!shown.contains("hunter2-planted") && shown.contains("https://[redacted]@host/x"), "{shown}");
}
