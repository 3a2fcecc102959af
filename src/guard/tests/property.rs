//! Generated streams: the whole accepted language, what lies just outside it, and httparse as another reader.

use proptest::{prelude::*, sample, string::string_regex};

use super::*;
use crate::guard::{Form, Framing, Version};

/// A request as it is meant.
#[derive(Clone, Debug)]
struct Meant {
    empty_lines: usize,
    method: String,
    form: Form,
    target: String,
    version: Version,
    host: String,
    host_at: usize,
    fields: Vec<Field>,
    body: Body,
}

/// Name, blanks, value, blanks.
type Field = (String, String, String, String);

#[derive(Clone, Debug)]
enum Body {
    None,
    Length { zeros: usize, data: Vec<u8> },
    Chunked { coding: String, chunks: Vec<(Vec<u8>, usize, String)>, last: String, trailers: Vec<Field> },
}

impl Meant {
    fn data(&self) -> Vec<u8> {
        match &self.body {
            Body::None => Vec::new(),
            Body::Length { data, .. } => data.clone(),
            Body::Chunked { chunks, .. } => chunks.iter().flat_map(|(data, ..)| data.clone()).collect(),
        }
    }

    fn framing(&self) -> Framing {
        match &self.body {
            Body::None => Framing::None,
            Body::Length { data, .. } => Framing::Length(data.len() as u64),
            Body::Chunked { .. } => Framing::Chunked,
        }
    }

    /// The head and the body as they go over the wire. Text is ISO 8859-1.
    fn wire(&self) -> (Vec<u8>, Vec<u8>) {
        let version = if self.version == Version::Http11 { "1.1" } else { "1.0" };
        let mut head = format!("{}{} {} HTTP/{version}\r\n", "\r\n".repeat(self.empty_lines), self.method, self.target);
        for (i, (name, before, value, after)) in self.fields.iter().enumerate() {
            if i == self.host_at {
                head += &format!("Host: {}\r\n", self.host);
            }
            head += &format!("{name}:{before}{value}{after}\r\n");
        }
        if self.host_at >= self.fields.len() {
            head += &format!("hOST:{}\r\n", self.host);
        }
        let mut body = Vec::new();
        match &self.body {
            Body::None => {}
            Body::Length { zeros, data } => {
                head += &format!("content-length: {}{}\r\n", "0".repeat(*zeros), data.len());
                body.clone_from(data);
            }
            Body::Chunked { coding, chunks, last, trailers } => {
                head += &format!("Transfer-Encoding:{coding}\r\n");
                for (data, zeros, extension) in chunks {
                    body.extend(latin1(&format!("{}{:x}{extension}\r\n", "0".repeat(*zeros), data.len())));
                    body.extend(data);
                    body.extend(b"\r\n");
                }
                body.extend(latin1(&format!("0{last}\r\n")));
                for (name, before, value, after) in trailers {
                    body.extend(latin1(&format!("{name}:{before}{value}{after}\r\n")));
                }
                body.extend(b"\r\n");
            }
        }
        head += "\r\n";
        (latin1(&head), body)
    }
}

fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

fn text(regex: &str) -> impl Strategy<Value = String> + use<> {
    string_regex(regex).unwrap()
}

const TCHAR: &str = "[!#$%&'*+.^_`|~0-9A-Za-z-]";
const VALUE: &str = "([!-~\u{80}-\u{ff}]([\t -~\u{80}-\u{ff}]{0,60}[!-~\u{80}-\u{ff}])?)?";

fn fields(most: usize) -> impl Strategy<Value = Vec<Field>> {
    let frames = ["contentlength", "transferencoding", "host", "connection", "upgrade"];
    let name = text(&format!("{TCHAR}{{1,20}}"))
        .prop_filter("frames", move |name| !frames.contains(&name.to_ascii_lowercase().replace(['-', '_'], "").as_str()));
    prop::collection::vec((name, text("[ \t]{0,2}"), text(VALUE), text("[ \t]{0,2}")), 0..most)
}

fn extension() -> impl Strategy<Value = String> {
    let quoted = "\"([\t !#-\\[\\]-~\u{80}-\u{ff}]|\\\\[\t -~\u{80}-\u{ff}]){0,6}\"";
    text(&format!("([ \t]?;[ \t]?{TCHAR}{{1,4}}([ \t]?=[ \t]?({TCHAR}{{1,4}}|{quoted}))?){{0,2}}"))
}

fn body() -> impl Strategy<Value = Body> {
    let data = |least: usize| prop::collection::vec(prop_oneof![any::<u8>(), sample::select(b"\r\n0;: ".to_vec())], least..40);
    let chunk = (data(1), 0_usize..10, extension());
    let coding = sample::select(vec!["chunked", " chunked", "\tCHUNKED ", " Chunked"]).prop_map(str::to_owned);
    prop_oneof![
        Just(Body::None),
        (0_usize..20, data(0)).prop_map(|(zeros, data)| Body::Length { zeros, data }),
        (coding, prop::collection::vec(chunk, 0..4), extension(), fields(3)).prop_map(|(coding, chunks, last, trailers)| Body::Chunked {
            coding,
            chunks,
            last,
            trailers
        }),
    ]
}

fn host() -> impl Strategy<Value = String> {
    let host = prop_oneof![
        text("[A-Za-z0-9._~-]{1,20}"),
        sample::select(vec!["[::1]", "[2001:DB8::1]", "[::ffff:192.0.2.1]", "192.0.2.1"]).prop_map(str::to_owned)
    ];
    (host, prop::option::of(0_u16..=u16::MAX)).prop_map(|(host, port)| port.map_or(host.clone(), |port| format!("{host}:{port}")))
}

fn target() -> impl Strategy<Value = (Form, String)> {
    prop_oneof![
        6 => text("/[!$-;=@-\\[\\]-~]{0,60}(\\?[!$-;=?-~]{0,30})?").prop_map(|target| (Form::Origin, target)),
        1 => Just((Form::Asterisk, "*".to_owned())),
        1 => (sample::select(vec!["http", "https", "HTTP"]), host(), text("(/[a-z]{0,5})?(\\?[a-z]{0,5})?"))
            .prop_map(|(scheme, host, rest)| (Form::Absolute, format!("{scheme}://{host}{rest}"))),
    ]
}

fn request() -> impl Strategy<Value = Meant> {
    let method = prop_oneof![sample::select(vec!["GET", "POST", "OPTIONS"]).prop_map(str::to_owned), text(&format!("{TCHAR}{{1,32}}"))]
        .prop_filter("cannot be read", |method| method != "CONNECT");
    (0_usize..3, method, target(), any::<bool>(), host(), 0_usize..6, fields(6), body()).prop_map(
        |(empty_lines, method, (form, target), old, host, host_at, fields, body)| Meant {
            empty_lines,
            method: if form == Form::Asterisk { "OPTIONS".to_owned() } else { method },
            form,
            target,
            version: if old && !matches!(body, Body::Chunked { .. }) { Version::Http10 } else { Version::Http11 },
            host,
            host_at,
            fields,
            body,
        },
    )
}

#[derive(Clone, Debug)]
enum Change {
    Replace(u8),
    Insert(u8),
    InsertText(&'static str),
    Delete,
    Repeat(usize),
    Swap,
}

fn change() -> impl Strategy<Value = (sample::Index, Change)> {
    let byte = || prop_oneof![any::<u8>(), sample::select(b"\r\n \t:;,=\"\\0_/#\0".to_vec())];
    let texts = vec![
        "\r\n",
        "\r\n\r\n",
        "\r\n ",
        "\n",
        "Content-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Host: b.example\r\n",
        "Content_Length: 1\r\n",
        "0\r\n\r\n",
        ", chunked",
        " HTTP/1.1",
        "GET / HTTP/1.1\r\n",
    ];
    let change = prop_oneof![
        byte().prop_map(Change::Replace),
        byte().prop_map(Change::Insert),
        sample::select(texts).prop_map(Change::InsertText),
        Just(Change::Delete),
        (1_usize..30).prop_map(Change::Repeat),
        Just(Change::Swap),
    ];
    (any::<sample::Index>(), change)
}

fn apply(bytes: &mut Vec<u8>, at: &sample::Index, change: &Change) {
    let at = at.index(bytes.len());
    match change {
        Change::Replace(byte) => bytes[at] = *byte,
        Change::Insert(byte) => bytes.insert(at, *byte),
        Change::InsertText(text) => drop(bytes.splice(at..at, text.bytes())),
        Change::Delete => drop(bytes.remove(at)),
        Change::Repeat(length) => {
            let run = bytes[at..(at + length).min(bytes.len())].to_vec();
            drop(bytes.splice(at..at, run));
        }
        Change::Swap if at > 0 => bytes.swap(at - 1, at),
        Change::Swap => {}
    }
}

/// What is accepted, httparse must read as the same method, target, version, fields and length.
fn agree_with_httparse(request: &Request, head: &Head) {
    let bytes = &request.bytes;
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut parsed = httparse::Request::new(&mut headers);
    let shown = String::from_utf8_lossy(bytes);
    match parsed.parse(bytes) {
        Ok(status) => assert_eq!(status, httparse::Status::Complete(head.len), "{shown:?}"),
        Err(error) => panic!("httparse: {error} {shown:?}"),
    }
    assert_eq!(parsed.method.unwrap().as_bytes(), head.method.of(bytes), "{shown:?}");
    assert_eq!(parsed.path.unwrap().as_bytes(), head.target.of(bytes), "{shown:?}");
    assert_eq!(parsed.version, Some(u8::from(head.version == Version::Http11)), "{shown:?}");
    let theirs: Vec<_> = parsed.headers.iter().map(|h| (h.name.as_bytes(), h.value)).collect();
    let ours: Vec<_> = head.fields.iter().map(|f| (f.name.of(bytes), f.value.of(bytes))).collect();
    assert_eq!(theirs, ours, "{shown:?}");
}

fn check(bytes: &[u8]) -> (Reading, Vec<Head>) {
    let (reading, heads) = read_at_every_cut(bytes, Limits::default());
    for (request, head) in reading.requests.iter().zip(&heads) {
        agree_with_httparse(request, head);
    }
    (reading, heads)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_valid_stream_is_read_as_it_is_meant_at_every_cut(meant in prop::collection::vec(request(), 1..3)) {
        let mut stream = Vec::new();
        let mut ends = Vec::new();
        for request in &meant {
            let (head, body) = request.wire();
            stream.extend_from_slice(&head);
            stream.extend_from_slice(&body);
            ends.push(stream.len() as u64);
        }
        let (reading, heads) = check(&stream);
        prop_assert_eq!(reading.refusal, None);
        prop_assert!(reading.between);
        prop_assert_eq!(reading.requests.iter().filter_map(|r| r.end).collect::<Vec<_>>(), ends);
        prop_assert_eq!(heads.len(), meant.len());
        for ((request, head), meant) in reading.requests.iter().zip(&heads).zip(&meant) {
            let bytes = &request.bytes;
            prop_assert_eq!(&request.body, &meant.data());
            prop_assert_eq!(head.method.of(bytes), meant.method.as_bytes());
            prop_assert_eq!(head.target.of(bytes), meant.target.as_bytes());
            prop_assert_eq!(head.host.of(bytes), meant.host.as_bytes());
            prop_assert_eq!((head.form, head.version, head.framing), (meant.form, meant.version, meant.framing()));
            let framed = usize::from(!matches!(meant.body, Body::None));
            prop_assert_eq!(head.fields.len(), meant.fields.len() + 1 + framed);
        }
    }

    #[test]
    fn a_changed_stream_has_one_verdict_at_every_cut(
        meant in prop::collection::vec(request(), 1..3),
        changes in prop::collection::vec(change(), 1..4),
    ) {
        let mut stream = Vec::new();
        for request in &meant {
            let (head, body) = request.wire();
            stream.extend_from_slice(&head);
            stream.extend_from_slice(&body);
        }
        for (at, change) in &changes {
            if !stream.is_empty() {
                apply(&mut stream, at, change);
            }
        }
        check(&stream);
    }

    #[test]
    fn any_bytes_have_one_verdict_at_every_cut(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        check(&bytes);
    }
}
