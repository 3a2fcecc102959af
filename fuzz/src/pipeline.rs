//! A whole client stream: every cut, the strict oracle, httparse on each head, and Puma's reading of what it would be sent.

use palisade::guard::{
    Framing, Limits,
    head::Head,
    pipeline::{Event, Pipeline},
};

use crate::{cuts, head, puma, strict};

/// A complete request as the guard read it.
pub struct Request {
    pub head: Head,
    pub bytes: Vec<u8>,
    pub body: Vec<u8>,
}

pub fn check(data: &[u8]) {
    let whole = read(&[data]);
    for pieces in cuts(data) {
        assert_eq!(read(&pieces).log, whole.log);
    }
    let oracle = strict::stream(data);
    match oracle.end {
        strict::End::Clean => assert!(!whole.refused && whole.between),
        strict::End::Cut => assert!(whole.refused || !whole.between),
        strict::End::Bad => assert!(whole.refused),
    }
    assert_eq!(whole.messages, oracle.messages);
    for request in &whole.requests {
        head::agree_with_httparse(&request.bytes, &request.head);
        puma_reads_the_same(request);
    }
}

pub struct Read {
    pub requests: Vec<Request>,
    pub messages: Vec<strict::Message>,
    pub refused: bool,
    pub between: bool,
    log: String,
}

/// Reads a stream that comes in pieces.
pub fn read(pieces: &[&[u8]]) -> Read {
    let mut pipeline = Pipeline::new(Limits::default());
    let mut read = Read { requests: Vec::new(), messages: Vec::new(), refused: false, between: true, log: String::new() };
    let mut open: Option<Request> = None;
    for piece in pieces {
        for event in pipeline.feed(piece) {
            match event {
                Event::Head { at, head, bytes } => {
                    read.log += &format!("{at} {head:?} ");
                    open = Some(Request { head, bytes, body: Vec::new() });
                }
                Event::Data { bytes } => open.as_mut().expect("data without a head").body.extend(bytes),
                Event::End { at } => {
                    let request = open.take().expect("an end without a head");
                    read.log += &format!("{at} {:?} ", request.body);
                    read.messages.push(strict::Message {
                        method: request.head.method.of(&request.bytes).to_vec(),
                        target: request.head.target.of(&request.bytes).to_vec(),
                        body: request.body.clone(),
                        end: at as usize,
                    });
                    read.requests.push(request);
                }
                Event::Refused { refusal } => {
                    read.log += &format!("{refusal:?}");
                    read.refused = true;
                }
            }
        }
    }
    read.between = pipeline.is_between_messages();
    read
}

/// Writes the request as it goes to Puma, one length and no coding, and lets Puma's rules read it with another request
/// behind it.
fn puma_reads_the_same(request: &Request) {
    let head = &request.head;
    let mut wire = [head.method.of(&request.bytes), b" ", head.target.of(&request.bytes), b" HTTP/1.1\r\n"].concat();
    for field in &head.fields {
        let (name, value) = (field.name.of(&request.bytes), field.value.of(&request.bytes));
        if !name.eq_ignore_ascii_case(b"content-length") && !name.eq_ignore_ascii_case(b"transfer-encoding") {
            wire.extend([name, b": ", value, b"\r\n"].concat());
        }
    }
    if head.framing != Framing::None {
        wire.extend(format!("Content-Length: {}\r\n", request.body.len()).into_bytes());
    }
    wire.extend_from_slice(b"\r\n");
    let end = wire.len();
    wire.extend_from_slice(&request.body);
    wire.extend_from_slice(b"GET /next HTTP/1.1\r\n\r\n");
    let upper = |b: &u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b"$-_.".contains(b);
    let method = head.method.of(&request.bytes);
    match puma::read(&wire) {
        Some(env) => {
            assert_eq!((env.head, env.length), (end, request.body.len() as u64));
            assert_eq!((env.method.as_slice(), env.target.as_slice()), (method, head.target.of(&request.bytes)));
            assert_eq!(env.fields.get("HOST").map_or(&b""[..], |v| v), head.host.of(&request.bytes));
        }
        None => assert!(method.len() > 20 || !method.iter().all(upper), "Puma refuses what the guard accepts"),
    }
}
