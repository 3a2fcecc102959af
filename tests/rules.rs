//! Every verdict names its rule: in the answer's log line and in a metric. And what `[framing] mode = "monitor"` lets pass.

use crate::harness::{
    corpus, grammar,
    palisade::{Palisade, Setup},
    recorder::Recorder,
};

/// Requests that strict refuses by policy, though they have one reading: rule and bytes.
const UNWANTED: &[(&str, &str)] = &[
    ("T4", "GET /a/../b HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ("T4", "GET /a%00b HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ("T10", "GET /c HTTP/1.1\r\nHost: localhost\r\nExpect: tea\r\n\r\n"),
];

fn hits(palisade: &Palisade, rule: &str, mode: &str) -> f64 {
    palisade.metric("palisade_rule_hits_total", &[("rule", rule), ("mode", mode)])
}

#[test]
fn a_refusal_names_its_rule_in_the_log_and_in_a_metric() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    for (rule, request) in [
        ("G10", "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("G9", "GET / HTTP/1.1\r\nHost : localhost\r\n\r\n"),
        ("T4", "GET /%2e%2e/x HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("T9", "GET / HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-1\r\nRange: bytes=2-3\r\n\r\n"),
        ("T13", "GET /?a=%ff HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ] {
        assert_eq!(hits(&palisade, rule, "enforce"), 0.0, "{rule}");
        let answer = palisade.connect().ask(request);
        assert_eq!(answer.status, 400, "{rule}");
        palisade.logged(rule, |line| line["rule"] == rule && line["status"] == 400);
        assert_eq!(hits(&palisade, rule, "enforce"), 1.0, "{rule}");
        assert_eq!(hits(&palisade, rule, "observe"), 0.0, "{rule}");
    }
}

#[test]
fn a_repair_names_its_rules_and_is_served() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    let answer = palisade.connect().ask("GET /repaired HTTP/1.1\r\nHost: localhost\r\nX_A: 1\r\nX|B: 2\r\nForwarded: for=1\r\n\r\n");
    assert_eq!(answer.status, 200);
    let line = palisade.logged("the request", |line| line["path"] == "/repaired");
    assert_eq!((line["end"].as_str(), &line["rule"]), (Some("ok"), &serde_json::Value::Null));
    assert_eq!(line["observed"], "T5,T6,T8", "{line}");
    for rule in ["T5", "T6", "T8"] {
        assert_eq!((hits(&palisade, rule, "observe"), hits(&palisade, rule, "enforce")), (1.0, 0.0), "{rule}");
    }
}

#[test]
fn monitor_lets_pass_what_has_one_reading_and_says_what_strict_would_have_done() {
    let recorder = Recorder::start();
    let strict = Setup::before(recorder.address()).start();
    let monitor = Setup::before(recorder.address()).with("[framing]\nmode = \"monitor\"\n").start();
    let long = format!("GET /long HTTP/1.1\r\nHost: localhost\r\nX-Long: {}\r\n\r\n", "v".repeat(20_000));
    for (rule, request) in UNWANTED.iter().copied().chain([("G9", long.as_str())]) {
        let refused = strict.connect().ask(request);
        assert!((400..500).contains(&refused.status), "{rule}: {}", refused.status);
        strict.logged(rule, |line| line["rule"] == rule);

        let (before, reached) = (hits(&monitor, rule, "observe"), recorder.requests().len());
        assert_eq!(monitor.connect().ask(request).status, 200, "{rule}");
        let target = request.split(' ').nth(1).unwrap();
        let line = monitor.logged(rule, |line| line["path"] == target);
        assert_eq!((line["end"].as_str(), &line["rule"]), (Some("ok"), &serde_json::Value::Null), "{line}");
        assert!(line["observed"].as_str().is_some_and(|rules| rules.split(',').any(|r| r == rule)), "{line}");
        assert_eq!((hits(&monitor, rule, "observe"), hits(&monitor, rule, "enforce")), (before + 1.0, 0.0), "{rule}");
        let arrived = recorder.requests();
        assert!(arrived[reached..].iter().any(|bytes| grammar::read_all(bytes)[0].target == target), "{rule} did not reach Puma");
    }
}

#[test]
fn monitor_never_passes_on_what_has_two_readings() {
    // Where strict refuses and monitor does not, the request must have arrived whole and in canonical form, and alone.
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).with("domains = []\n[framing]\nmode = \"monitor\"\n").start();
    let mut passed = Vec::new();
    for case in corpus::hostile() {
        let before = recorder.requests().len();
        let mut client = palisade.connect();
        client.try_send(&case.bytes).ok();
        let answer = client.try_answer(&case.method()).unwrap_or_else(|| panic!("{}: no answer", case.id));
        let reached = recorder.requests().len() - before;
        if answer.status == 200 {
            passed.push(case.refused.clone().unwrap().0);
            assert_eq!(reached, 1, "{}", case.id);
        } else {
            assert_eq!((answer.status, reached), (case.refused.clone().unwrap().1, 0), "{}", case.id);
        }
    }
    for connection in recorder.received() {
        grammar::read_all(&connection);
    }
    passed.sort();
    passed.dedup();
    assert_eq!(passed, ["G9", "T10", "T4"], "only a large value, a path and an expectation have one reading all the same");
}
