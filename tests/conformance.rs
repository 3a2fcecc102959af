//! The corpus end to end: each case has its fate, and an honest client beside it gets its page.

use palisade::guard::rule::Rule;

use crate::harness::{
    PATIENCE,
    answer::Answer,
    client::End,
    corpus::{self, Case},
    grammar,
    palisade::{Palisade, Setup},
    recorder::Recorder,
};

/// Any host: the corpus is about bytes.
const ANY_HOST: &str = "domains = []\n";

#[test]
fn every_refused_case_is_refused_by_its_rule() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with(ANY_HOST).start();
    palisade.serves();
    let descriptors = palisade.process().descriptors();
    let mut wrong = Vec::new();
    let mut whole = 0;
    for case in corpus::all().iter().filter(|case| case.refused.is_some()) {
        if let Err(why) = refuse(&palisade, case) {
            wrong.push(format!("{}: {why}", case.id));
        }
        whole += case.requests;
        assert_eq!(palisade.connect().get("/honest").status, 200, "beside {}", case.id);
    }
    assert!(wrong.is_empty(), "{} verdicts are wrong:\n{}", wrong.len(), wrong.join("\n"));
    let arrived = recorder.requests().into_iter().filter(|r| !r.starts_with(b"GET /honest ") && !r.starts_with(b"GET / ")).count();
    assert!(arrived <= whole, "{arrived} requests reached Puma, of {whole} that were whole before their refusal");
    for connection in recorder.received() {
        grammar::read_all(&connection);
    }
    // The recorder's side may hold a few kept connections.
    palisade.descriptors_return_to(descriptors + 4);
}

#[test]
fn every_honest_case_passes_in_canonical_form() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with(ANY_HOST).start();
    let mut wrong = Vec::new();
    for case in corpus::all().iter().filter(|case| case.refused.is_none()) {
        let mut client = palisade.connect();
        client.send(&case.bytes);
        for number in 0..case.requests {
            let method = if number == 0 { case.method() } else { "GET".to_owned() };
            match client.try_answer(&method) {
                Some(answer) if answer.status == 200 => {}
                Some(answer) => wrong.push(format!("{}, request {}: {} {}", case.id, number + 1, answer.status, answer.text())),
                None => wrong.push(format!("{}, request {}: no answer", case.id, number + 1)),
            }
        }
    }
    assert!(wrong.is_empty(), "{} honest requests were not served:\n{}", wrong.len(), wrong.join("\n"));
    for connection in recorder.received() {
        grammar::read_all(&connection);
    }
}

#[test]
fn the_corpus_names_only_rules_that_exist() {
    for case in corpus::all() {
        let Some((rule, status)) = case.refused else { continue };
        let known: Vec<_> = Rule::ALL.into_iter().filter(|known| known.id() == rule).collect();
        assert!(!known.is_empty(), "{}: no rule {rule}", case.id);
        assert!(known.iter().any(|known| known.status().as_u16() == status), "{}: {rule} never answers {status}", case.id);
    }
}

/// Sends the bytes and looks at answers, end and log.
fn refuse(palisade: &Palisade, case: &Case) -> Result<(), String> {
    let (rule, status) = case.refused.as_ref().unwrap();
    let lines = palisade.log().len();
    let mut client = palisade.connect();
    // The proxy may answer and close before it has read everything.
    client.try_send(&case.bytes).ok();
    for number in 0..case.requests {
        let method = if number == 0 { case.method() } else { "GET".to_owned() };
        let answer = client.try_answer(&method).ok_or_else(|| format!("no answer to request {}", number + 1))?;
        if answer.status != 200 {
            return Err(format!("request {}: {}", number + 1, answer.status));
        }
    }
    let method = if case.requests == 0 { case.method() } else { "GET".to_owned() };
    let answer: Answer = client.try_answer(&method).ok_or("closed without an answer")?;
    if answer.status != *status {
        return Err(format!("{} instead of {status}: {}", answer.status, answer.text()));
    }
    if !answer.closes() {
        return Err("the answer does not say that the connection ends".into());
    }
    let (rest, end) = client.rest();
    if !rest.is_empty() || end != End::Finished {
        return Err(format!("after the answer came {:?}, {end:?}", String::from_utf8_lossy(&rest)));
    }
    let start = std::time::Instant::now();
    while start.elapsed() < PATIENCE {
        if palisade.log().iter().skip(lines).any(|line| line["rule"] == rule.as_str() && line["status"] == *status) {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Err(format!("no log line with rule {rule} and status {status}"))
}
