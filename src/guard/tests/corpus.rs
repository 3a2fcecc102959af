//! The requests in `tests/corpus/`, each at every cut.

use std::{collections::BTreeMap, path::Path};

use toml_edit::{DocumentMut, Item, Table};

use super::*;
use crate::guard::rule::Rule;

struct Case {
    id: String,
    bytes: Vec<u8>,
    /// Rule id and status.
    refused: Option<(String, u16)>,
    requests: Option<usize>,
    bodies: Option<Vec<Vec<u8>>>,
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "toml") {
            let document: DocumentMut = std::fs::read_to_string(&path).unwrap().parse().unwrap();
            cases.extend(document["case"].as_array_of_tables().unwrap().iter().map(case));
        }
    }
    cases
}

fn case(table: &Table) -> Case {
    const KEYS: [&str; 10] = ["id", "source", "bytes", "fill", "times", "fate", "rule", "status", "requests", "bodies"];
    let id = table["id"].as_str().unwrap().to_owned();
    for (key, _) in table {
        assert!(KEYS.contains(&key), "{id}: {key}");
    }
    assert!(!table["source"].as_str().unwrap().is_empty(), "{id}");
    let text: String = strings(&table["bytes"]).concat();
    let text = match table.get("fill").and_then(Item::as_str) {
        Some(fill) => text.replace("{fill}", &fill.repeat(usize::try_from(table["times"].as_integer().unwrap()).unwrap())),
        None => text,
    };
    let refused = match table["fate"].as_str().unwrap() {
        "refused" => Some((table["rule"].as_str().unwrap().to_owned(), u16::try_from(table["status"].as_integer().unwrap()).unwrap())),
        "passes" => None,
        other => panic!("{id}: {other}"),
    };
    Case {
        bytes: latin1(&text),
        refused,
        requests: table.get("requests").and_then(Item::as_integer).map(|n| usize::try_from(n).unwrap()),
        bodies: table.get("bodies").map(|item| strings(item).iter().map(|body| latin1(body)).collect()),
        id,
    }
}

fn strings(item: &Item) -> Vec<String> {
    item.as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_owned()).collect()
}

fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

#[test]
fn every_case_has_its_fate_at_every_cut() {
    let cases = cases();
    for case in &cases {
        let (reading, _) = read_at_every_cut(&case.bytes, Limits::default());
        let refused = reading.refusal.map(|refusal| (refusal.rule().unwrap().id().to_owned(), refusal.status().as_u16()));
        assert_eq!(refused, case.refused, "{}", case.id);
        let complete = reading.requests.iter().filter(|r| r.end.is_some()).count();
        assert_eq!(complete, case.requests.unwrap_or(0), "{}: complete requests", case.id);
        if case.refused.is_none() {
            assert!(reading.between, "{}: the last request is cut off", case.id);
        }
        if let Some(bodies) = &case.bodies {
            assert_eq!(&reading.requests.iter().map(|r| r.body.clone()).collect::<Vec<_>>(), bodies, "{}", case.id);
        }
    }
    assert!(cases.len() >= 150);
}

#[test]
fn every_rule_about_requests_has_a_case() {
    let mut seen = BTreeMap::<String, usize>::new();
    for case in cases() {
        if let Some((rule, _)) = case.refused {
            *seen.entry(rule).or_default() += 1;
        }
    }
    for rule in Rule::ALL.iter().filter(|rule| rule.id().starts_with('G')) {
        assert!(seen.get(rule.id()).is_some_and(|n| *n >= 1), "{}", rule.id());
    }
}

#[test]
fn no_two_cases_share_an_id() {
    let mut ids: Vec<_> = cases().into_iter().map(|case| case.id).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all);
}

#[test]
fn what_stands_behind_a_refusal_is_never_read() {
    for case in cases().into_iter().filter(|case| case.refused.is_some()) {
        let mut bytes = case.bytes.clone();
        bytes.extend_from_slice(b"\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n");
        let (reading, _) = read([bytes.as_slice()], Limits::default());
        assert!(reading.refusal.is_some(), "{}", case.id);
        assert!(!reading.requests.iter().any(|r| r.bytes.windows(9).any(|w| w == b"/smuggled")), "{}", case.id);
    }
}

#[test]
fn monitoring_changes_only_what_has_one_reading() {
    let monitor = Limits { monitor: true, ..Limits::default() };
    let mut noted = 0;
    for case in cases() {
        let (strict, _) = read([case.bytes.as_slice()], Limits::default());
        let (lenient, heads) = read_at_every_cut(&case.bytes, monitor);
        let observed = heads.iter().fold(0, |bits, head| bits | head.observed);
        if observed == 0 {
            assert_eq!(strict, lenient, "{}", case.id);
        } else {
            let rule = strict.refusal.and_then(Refusal::rule).unwrap();
            assert_eq!(rule, Rule::G9Size, "{}", case.id);
            assert_eq!(observed, 1 << rule as u8, "{}", case.id);
            assert_eq!(lenient.refusal, None, "{}", case.id);
            noted += 1;
        }
    }
    assert_eq!(noted, 1);
}
