//! The house keeps its shape: stages know only what lies before them, layers do not know each other, files stay readable.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The stages in the order in which bytes pass them.
const STAGES: [&str; 5] = ["accept", "guard", "http", "layers", "upstream"];

/// The layers of the stack. Files beside them are shared parts.
const LAYERS: [&str; 16] = [
    "answer",
    "record",
    "request_id",
    "ban",
    "rate",
    "host",
    "sensitive",
    "normalize",
    "forwarded",
    "websocket",
    "shield",
    "relay",
    "buffer",
    "in_flight",
    "conceal",
    "canonical",
];

/// Every source file with its text before the tests.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("\n#[cfg(test)]").next().unwrap().to_owned();
                all.push((path, code));
            }
        }
    }
    assert!(!all.is_empty(), "no file under {folder}");
    all
}

/// Lines of code: what is neither empty nor a comment.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"))
}

#[test]
fn no_file_is_above_four_hundred_lines_of_code() {
    let long: Vec<String> = sources("src")
        .into_iter()
        .filter(|(path, _)| !path.ends_with("tests.rs"))
        .map(|(path, text)| (path, code(&text).count()))
        .filter(|(_, lines)| *lines > 400)
        .map(|(path, lines)| format!("{}: {lines}", path.display()))
        .collect();
    assert!(long.is_empty(), "split by concept: {long:?}");
}

#[test]
fn every_file_begins_with_what_it_does() {
    let all = sources("src").into_iter().chain(sources("tests"));
    for (path, text) in all.filter(|(path, _)| !path.ends_with("tests.rs")) {
        assert!(text.starts_with("//! "), "{} has no module documentation", path.display());
    }
}

#[test]
fn layers_do_not_import_each_other() {
    let mut wrong = Vec::new();
    for layer in LAYERS {
        let folder = format!("src/layers/{layer}");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("{folder}.rs"));
        // Layers that a later issue brings are not there yet.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let text = text.split("\n#[cfg(test)]").next().unwrap();
        for other in LAYERS.iter().filter(|other| **other != layer) {
            for spelling in [format!("layers::{other}::"), format!("super::{other}::")] {
                if code(text).any(|line| line.contains(&spelling)) {
                    wrong.push(format!("{layer} imports {other}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn the_parser_knows_neither_sockets_nor_frameworks() {
    for (path, text) in sources("src/guard") {
        for foreign in ["tokio", "hyper", "tower", "std::net::Tcp", "std::io::Read"] {
            assert!(!code(&text).any(|line| line.contains(foreign)), "{} knows {foreign}", path.display());
        }
    }
}

#[test]
fn upstream_knows_no_clients_and_guard_no_policy() {
    for (stage, later) in [("accept", &STAGES[2..]), ("guard", &STAGES[3..])] {
        for (path, text) in sources(&format!("src/{stage}")) {
            for name in later {
                assert!(!code(&text).any(|line| line.contains(&format!("crate::{name}::"))), "{} knows {name}", path.display());
            }
        }
    }
}
