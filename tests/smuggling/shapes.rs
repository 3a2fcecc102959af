//! The Rack shield: for each CVE of Rack whose shape is a request, that shape never reaches Ruby.

use super::*;

/// What must become of it.
enum Fate {
    /// Refused with a status of 4xx.
    Refused,
    /// Served, but Ruby never sees the field.
    Dropped(&'static str),
}

fn shapes() -> Vec<(&'static str, Fate, Vec<u8>)> {
    let get = |fields: String| format!("GET /shape HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n\r\n").into_bytes();
    let post = |kind: &str, body: String| {
        format!("POST /shape HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .into_bytes()
    };
    let form = "multipart/form-data; boundary=b";
    vec![
        ("CVE-2022-44570: digits without dash in Range", Fate::Dropped("range"), get(format!("Range: bytes={}", "1".repeat(7_500)))),
        ("CVE-2026-34826: many ranges", Fate::Dropped("range"), get(format!("Range: bytes={}0-1", "0-1,".repeat(100)))),
        ("CVE-2024-26141: overlapping ranges", Fate::Dropped("range"), get(format!("Range: bytes={}0-", "0-,".repeat(20)))),
        (
            "CVE-2023-27539: blanks in Accept-Encoding",
            Fate::Dropped("accept-encoding"),
            get(format!("Accept-Encoding: a{}b", " ".repeat(7_000))),
        ),
        (
            "CVE-2026-34230: many members in Accept-Encoding",
            Fate::Dropped("accept-encoding"),
            get(format!("Accept-Encoding: {}*", "*,".repeat(500))),
        ),
        ("CVE-2024-26146: blanks in Accept", Fate::Dropped("accept"), get(format!("Accept: a{}b", " ".repeat(7_000)))),
        ("CVE-2026-32762: Forwarded", Fate::Dropped("forwarded"), get("Forwarded: for=1;host=\"a;host=evil\"".into())),
        ("CVE-2025-61780: X-Sendfile-Type", Fate::Dropped("x-sendfile-type"), get("X-Sendfile-Type: X-Accel-Redirect".into())),
        ("CVE-2026-34830: X-Accel-Mapping", Fate::Dropped("x-accel-mapping"), get("X-Accel-Mapping: /=/".into())),
        ("CVE-2024-25126: blanks in Content-Type", Fate::Refused, post(&format!("a{}b", " ".repeat(7_000)), "x".into())),
        ("CVE-2026-26961: two boundaries", Fate::Refused, post("multipart/form-data; boundary=a; boundary=b", "--a--\r\n".into())),
        (
            "CVE-2022-30122: long part header",
            Fate::Refused,
            post(form, format!("--b\r\nContent-Disposition: form-data; name=a; filename=\"{}\r\n\r\nx\r\n--b--\r\n", "\\".repeat(60_000))),
        ),
        (
            "CVE-2023-27530: any number of parts",
            Fate::Refused,
            post(form, "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx\r\n".repeat(5_000) + "--b--\r\n"),
        ),
        (
            "CVE-2025-61770: endless preamble",
            Fate::Refused,
            post(form, "p".repeat(100_000) + "\r\n--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx\r\n--b--\r\n"),
        ),
        ("CVE-2025-46727: any number of parameters", Fate::Refused, post("application/x-www-form-urlencoded", "a&".repeat(20_000))),
        ("nesting without end", Fate::Refused, post("application/x-www-form-urlencoded", format!("a{}=1", "[a]".repeat(200)))),
        ("many cookies", Fate::Refused, get(format!("Cookie: {}z=1", "a=1; ".repeat(500)))),
    ]
}

/// What reached the origin, without health checks.
fn arrived(recorder: &Recorder) -> Vec<Vec<u8>> {
    recorder.requests().into_iter().filter(|request| crate::harness::answer::find(request, b" /shape").is_some()).collect()
}

#[test]
fn shapes_on_which_rack_spends_too_much_never_reach_it() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    for (name, fate, bytes) in shapes() {
        let before = arrived(&recorder).len();
        let mut client = palisade.connect();
        client.try_send(&bytes).ok();
        let answer = client.answer_to("POST");
        match fate {
            Fate::Refused => {
                assert!((400..500).contains(&answer.status), "{name}: {}", answer.status);
                assert_eq!(arrived(&recorder).len(), before, "{name} reached Puma");
            }
            Fate::Dropped(field) => {
                assert_eq!(answer.status, 200, "{name}");
                let requests = arrived(&recorder);
                let forwarded = grammar::read_all(&requests[before]);
                assert_eq!(forwarded[0].field(field), None, "{name} reached Puma");
            }
        }
    }
    palisade.serves();
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
            "POST /shape HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nRange: bytes=0-99,200-299\r\n\
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
