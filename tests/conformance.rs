//! The corpus end to end: each case gets its verdict, and an honest client beside it gets its page.

use std::time::Duration;

use palisade::guard::rule::Rule;

use crate::harness::{client::End, corpus, grammar, palisade::Setup, recorder::Recorder};

#[test]
fn every_case_of_the_corpus_gets_its_verdict() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    palisade.serves();
    let descriptors = palisade.process().descriptors();
    let mut honest = palisade.connect();
    let mut wrong = Vec::new();
    for case in corpus::all() {
        let mut client = palisade.connect();
        // The proxy may answer and close before it has read everything.
        client.try_send(&case.bytes).ok();
        let method = String::from_utf8_lossy(case.bytes.split(|b| *b == b' ').next().unwrap()).trim().to_owned();
        let Some(answer) = client.try_answer(&method) else {
            wrong.push(format!("{}: closed without an answer", case.id));
            continue;
        };
        if answer.status != case.status {
            wrong.push(format!("{}: {} instead of {}: {}", case.id, answer.status, case.status, answer.text()));
        }
        if answer.closes() != case.closes {
            wrong.push(format!("{}: the answer says close: {}", case.id, answer.closes()));
        }
        if case.closes {
            let (rest, end) = client.rest();
            if !rest.is_empty() || end != End::Finished {
                wrong.push(format!("{}: after the answer came {:?}, {end:?}", case.id, String::from_utf8_lossy(&rest)));
            }
        } else if !client.silent_for(Duration::from_millis(20)) {
            wrong.push(format!("{}: the connection did not stay open and silent", case.id));
        }
        if let Some(rule) = &case.rule
            && !palisade.log_has_soon(|line| line["rule"] == rule.as_str() && line["status"] == case.status)
        {
            wrong.push(format!("{}: no log line with rule {rule} and status {}", case.id, case.status));
        }
        assert_eq!(honest.get("/honest").status, 200, "beside {}", case.id);
    }
    assert!(wrong.is_empty(), "{} verdicts are wrong:\n{}", wrong.len(), wrong.join("\n"));
    for needle in [&b"evil"[..], b"hidden"] {
        assert!(!recorder.got(needle), "{:?} reached Puma", String::from_utf8_lossy(needle));
    }
    for connection in recorder.received() {
        grammar::read_all(&connection);
    }
    drop(honest);
    // The recorder's side may hold a few kept connections.
    palisade.descriptors_return_to(descriptors + 4);
}

#[test]
fn the_corpus_names_only_rules_that_exist() {
    for case in corpus::hostile() {
        let rule = case.rule.unwrap();
        let known: Vec<_> = Rule::ALL.into_iter().filter(|known| known.id() == rule).collect();
        assert!(!known.is_empty(), "{}: no rule {rule}", case.id);
        assert!(known.iter().any(|known| known.status().as_u16() == case.status), "{}: {rule} never answers {}", case.id, case.status);
    }
}
