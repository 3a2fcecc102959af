//! `tests/corpus/*.toml`: requests as data, with the verdict that they must get.

use std::{collections::HashSet, fs, path::Path};

use toml_edit::{DocumentMut, Table};

/// One request and its verdict.
#[derive(Debug)]
pub struct Case {
    pub id: String,
    pub bytes: Vec<u8>,
    /// None for a request that must be served.
    pub rule: Option<String>,
    pub status: u16,
    pub closes: bool,
}

/// Every case of every file, in the order of the file names.
pub fn all() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
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

/// Those that must be refused.
pub fn hostile() -> Vec<Case> {
    all().into_iter().filter(|case| case.rule.is_some()).collect()
}

fn case(table: &Table) -> Case {
    let word = |key: &str| table.get(key).and_then(|v| v.as_str()).unwrap_or_else(|| panic!("{key} is missing in {table}")).to_owned();
    assert!(!word("source").is_empty());
    let rule = word("rule");
    let fate = word("fate");
    assert!(fate == "close" || fate == "keep", "fate in {table}");
    let bytes = word("bytes").chars().map(|c| u8::try_from(c).unwrap_or_else(|_| panic!("{c:?} is not one byte in {table}"))).collect();
    let status = table.get("status").and_then(|v| v.as_integer()).unwrap_or_else(|| panic!("status is missing in {table}"));
    let status = u16::try_from(status).unwrap();
    Case { id: word("id"), bytes, rule: (rule != "none").then_some(rule), status, closes: fate == "close" }
}
