//! Known weaknesses of Puma and Rack whose shape is a request: the shape never reaches Ruby, or reaches it repaired.
//! The shapes are data, in `tests/corpus/cve/`.

use std::{fs, path::Path};

use toml_edit::{DocumentMut, Item, Table};

use super::*;
use crate::harness::{
    answer::find,
    corpus::{number, word},
};

/// What must become of a shape.
#[derive(Debug)]
enum Fate {
    /// Refused with this status, by the rule or under the label that is given.
    Refused { status: u16, rule: Option<String>, label: Option<String> },
    /// One request reaches Puma, without these fields, and with this body where one is given.
    Repaired { gone: Vec<String>, body: Option<Vec<u8>> },
}

#[derive(Debug)]
struct Shape {
    id: String,
    head: Vec<u8>,
    body: Vec<u8>,
    /// The body comes in a packet of its own.
    later: bool,
    fate: Fate,
}

fn shapes() -> Vec<Shape> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/cve");
    let mut shapes = Vec::new();
    for file in ["puma.toml", "rack.toml"] {
        let document: DocumentMut = fs::read_to_string(folder.join(file)).unwrap().parse().unwrap();
        shapes.extend(document["case"].as_array_of_tables().unwrap().iter().map(shape));
    }
    shapes
}

fn shape(table: &Table) -> Shape {
    const KEYS: [&str; 14] =
        ["id", "source", "what", "bytes", "body", "body_later", "fill", "times", "fate", "rule", "label", "status", "gone", "got"];
    let id = word(table, "id");
    assert!(!word(table, "source").is_empty() && !word(table, "what").is_empty(), "{id}");
    for (key, _) in table {
        assert!(KEYS.contains(&key), "{id}: {key}");
    }
    let lines = |key: &str| -> String {
        let text: String = table.get(key).and_then(Item::as_array).into_iter().flatten().map(|line| line.as_str().unwrap()).collect();
        match table.get("fill").and_then(Item::as_str) {
            Some(fill) => text.replace("{fill}", &fill.repeat(number(table, "times").unwrap())),
            None => text,
        }
    };
    let text = |key: &str| table.get(key).and_then(Item::as_str).map(str::to_owned);
    let body = latin1(&lines("body"));
    let fate = match word(table, "fate").as_str() {
        "refused" => {
            let (rule, label) = (text("rule"), text("label"));
            assert!(rule.is_some() != label.is_some(), "{id}: a rule or a label");
            Fate::Refused { status: u16::try_from(number(table, "status").unwrap()).unwrap(), rule, label }
        }
        "repaired" => {
            let gone: Vec<_> =
                table.get("gone").and_then(Item::as_array).into_iter().flatten().map(|name| name.as_str().unwrap().to_owned()).collect();
            assert!(!gone.is_empty(), "{id}: repaired in what");
            Fate::Repaired { gone, body: text("got").map(|got| latin1(&got)) }
        }
        other => panic!("{id}: fate {other}"),
    };
    let later = table.get("body_later").and_then(Item::as_bool).unwrap_or(false);
    Shape { head: latin1(&lines("bytes").replace("{length}", &body.len().to_string())), body, later, fate, id }
}

fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(c).unwrap()).collect()
}

/// What reached the origin, without health checks.
fn arrived(recorder: &Recorder) -> Vec<Vec<u8>> {
    recorder.requests().into_iter().filter(|request| find(request, b" /cve").is_some()).collect()
}

#[test]
fn no_published_shape_reaches_puma_as_it_is() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    let shapes = shapes();
    let (mut wrong, mut answered) = (Vec::new(), 0);
    for shape in &shapes {
        // Lines are written a moment after the answer: the last shape's must be there before this one's can be told from it.
        crate::harness::eventually("every answer is logged", || (palisade.log().len() >= answered).then_some(()));
        let (before, lines) = (arrived(&recorder).len(), palisade.log().len());
        let mut client = palisade.connect();
        // The proxy may answer and close before it has read everything.
        client.try_send(&shape.head).ok();
        if shape.later {
            client.silent_for(Duration::from_millis(50));
        }
        client.try_send(&shape.body).ok();
        let method = if shape.head.starts_with(b"GET") { "GET" } else { "POST" };
        let Some(answer) = client.try_answer(method) else {
            wrong.push(format!("{}: no answer", shape.id));
            continue;
        };
        answered = lines + 1;
        let requests = arrived(&recorder);
        match &shape.fate {
            Fate::Refused { status, rule, label } => {
                if answer.status != *status || requests.len() != before {
                    wrong.push(format!("{}: {} and {} requests at Puma", shape.id, answer.status, requests.len() - before));
                    continue;
                }
                let line = palisade.logged(&shape.id, |line| line["status"] == *status && palisade.log().len() > lines);
                let last = palisade.log().pop().unwrap_or(line);
                if rule.as_ref().is_some_and(|rule| last["rule"] != rule.as_str())
                    || label.as_ref().is_some_and(|label| last["end"] != label.as_str())
                {
                    wrong.push(format!("{}: logged as {last}", shape.id));
                }
            }
            Fate::Repaired { gone, body } => {
                if answer.status != 200 || requests.len() != before + 1 {
                    wrong.push(format!("{}: {} and {} requests at Puma", shape.id, answer.status, requests.len() - before));
                    continue;
                }
                let all = grammar::read_all(&requests[before]);
                assert_eq!(all.len(), 1, "{}", shape.id);
                for (name, value) in &all[0].fields {
                    if gone.iter().any(|gone| gone.eq_ignore_ascii_case(name)) {
                        wrong.push(format!("{}: Puma got {name}: {:?}", shape.id, String::from_utf8_lossy(value)));
                    }
                }
                if body.as_ref().is_some_and(|body| *body != all[0].body) {
                    wrong.push(format!("{}: another body", shape.id));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} shapes:\n{}", wrong.len(), shapes.len(), wrong.join("\n"));
    assert!(!recorder.got(b"/hidden"), "a hidden request reached Puma");
    palisade.serves();
}

#[test]
fn a_proxy_line_in_a_body_stays_a_body_and_puma_is_sent_no_proxy_line() {
    // CVE-2026-47737: Puma 5.5 to 8.0.1 with set_remote_address proxy_protocol looks for the line in all it has read. The
    // request is honest, so it passes; `palisade audit` tells of the setting.
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    let body = "PROXY TCP4 6.6.6.6 127.0.0.1 1 80\r\nGET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let request = format!("POST /cve HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    assert_eq!(palisade.connect().ask(request).status, 200);
    let requests = grammar::read_all(&arrived(&recorder)[0]);
    assert_eq!((requests.len(), requests[0].body.as_slice()), (1, body.as_bytes()));
    assert!(recorder.received().iter().all(|bytes| !bytes.starts_with(b"PROXY")));
}

#[test]
fn honest_forms_and_lists_pass() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    let form =
        "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a b.txt\"\r\nContent-Type: text/plain\r\n\r\nhello\r\n--b--\r\n";
    for (kind, body) in
        [("multipart/form-data; boundary=b", form), ("application/x-www-form-urlencoded", "user[name]=a&user[roles][]=x&q=%0d%0a")]
    {
        let answer = palisade.connect().ask(format!(
            "POST /cve HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nRange: bytes=0-99,200-299\r\n\
             Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert_eq!(answer.status, 200, "{kind}");
        let last = grammar::read_all(arrived(&recorder).last().unwrap()).remove(0);
        assert_eq!(last.body, body.as_bytes());
        assert_eq!(last.field("range").as_deref(), Some("bytes=0-99,200-299"));
        assert_eq!(last.field("accept-encoding").as_deref(), Some("gzip, deflate, br, zstd"));
    }
}
