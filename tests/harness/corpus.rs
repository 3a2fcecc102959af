//! `tests/corpus/`: requests as data, with the fate that they must have. The folder itself holds what the guard judges,
//! `policy/` what the layers judge.

use std::{collections::HashSet, fs, path::Path};

use toml_edit::{DocumentMut, Item, Table};

/// Bytes of one connection and their fate.
#[derive(Debug)]
pub struct Case {
    pub id: String,
    pub bytes: Vec<u8>,
    /// Rule and status of the refusal; none for bytes that must pass.
    pub refused: Option<(String, u16)>,
    /// Whole requests, before the refusal or in all.
    pub requests: usize,
}

impl Case {
    /// The method of the first request.
    pub fn method(&self) -> String {
        String::from_utf8_lossy(self.bytes.split(|b| *b == b' ').next().unwrap()).trim().to_owned()
    }
}

/// Every case of every file, in the order of the file names.
pub fn all() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut files: Vec<_> =
        [folder.join("policy"), folder].iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|e| e.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "toml"));
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let text: DocumentMut = fs::read_to_string(&file).unwrap().parse().unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let tables = text["case"].as_array_of_tables().unwrap_or_else(|| panic!("{}: no [[case]]", file.display()));
        cases.extend(tables.iter().map(case));
    }
    let names: HashSet<&str> = cases.iter().map(|case| case.id.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "an id stands twice");
    cases
}

/// Those that are refused at their first request.
pub fn hostile() -> Vec<Case> {
    all().into_iter().filter(|case| case.refused.is_some() && case.requests == 0).collect()
}

fn case(table: &Table) -> Case {
    let id = word(table, "id");
    assert!(!word(table, "source").is_empty(), "{id}");
    let mut text: String = table["bytes"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    if let Some(fill) = table.get("fill").and_then(Item::as_str) {
        text = text.replace("{fill}", &fill.repeat(number(table, "times").unwrap()));
    }
    let bytes = text.chars().map(|c| u8::try_from(c).unwrap_or_else(|_| panic!("{id}: {c:?} is not one byte"))).collect();
    let refused = match word(table, "fate").as_str() {
        "refused" => Some((word(table, "rule"), u16::try_from(number(table, "status").unwrap()).unwrap())),
        "passes" => None,
        other => panic!("{id}: fate {other}"),
    };
    Case { bytes, refused, requests: number(table, "requests").unwrap_or(0), id }
}

/// A text that must be there.
pub fn word(table: &Table, key: &str) -> String {
    table.get(key).and_then(Item::as_str).unwrap_or_else(|| panic!("{key} is missing in {table}")).to_owned()
}

/// A number, where there is one.
pub fn number(table: &Table, key: &str) -> Option<usize> {
    table.get(key).and_then(Item::as_integer).map(|n| usize::try_from(n).unwrap())
}
