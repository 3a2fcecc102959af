use super::*;

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
