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
