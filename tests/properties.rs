//! Generated connections: what the guard accepts a second parser reads in the same way, what is passed on has one reading
//! under the strictest grammar, and no input costs more than its length.
//!
//! The second parser is `fuzz/src/strict.rs`; it shares no code with the guard.

use std::{fs, time::Duration};

use palisade::{
    config::Config,
    explain::explain,
    guard::{
        Limits,
        pipeline::{Event, Pipeline},
    },
    units::ByteSize,
};
use proptest::{prelude::*, sample};

use crate::harness::grammar;

#[allow(dead_code, reason = "the fuzz targets need more of it")]
#[path = "../fuzz/src/strict.rs"]
mod strict;

/// What the guard reads: whole messages, whether it refused, whether it stands between two messages.
fn guard<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<strict::Message>, bool, bool) {
    let mut pipeline = Pipeline::new(Limits::default());
    let (mut messages, mut open, mut refused) = (Vec::new(), None::<strict::Message>, false);
    for piece in pieces {
        for event in pipeline.feed(piece) {
            match event {
                Event::Head { head, bytes, .. } => {
                    let (method, target) = (head.method.of(&bytes).to_vec(), head.target.of(&bytes).to_vec());
                    open = Some(strict::Message { method, target, body: Vec::new(), end: 0 });
                }
                Event::Data { bytes } => open.as_mut().unwrap().body.extend(bytes),
                Event::End { at } => messages.push(strict::Message { end: usize::try_from(at).unwrap(), ..open.take().unwrap() }),
                Event::Refused { .. } => refused = true,
            }
        }
    }
    (messages, refused, pipeline.is_between_messages())
}

const LINES: &[&str] = &[
    "GET /a HTTP/1.1\r\n",
    "POST /b?c=%20 HTTP/1.1\r\n",
    "POST http://a.example/d HTTP/1.1\r\n",
    "OPTIONS * HTTP/1.1\r\n",
    "DELETE /e/../f HTTP/1.0\r\n",
    "get /g HTTP/1.1\r\n",
    "Host: a.example\r\n",
    "Host: a.example\r\n",
    "Host: a.example\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 05\r\n",
    "Content-Length: 0\r\n",
    "Content_Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive, X-Hop\r\n",
    "Connection: Upgrade\r\n",
    "Upgrade: websocket\r\n",
    "Sec-WebSocket-Version: 13\r\n",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "Expect: 100-continue\r\n",
    "TE: trailers\r\n",
    "X-Hop: 1\r\n",
    "X_Y: 1\r\n",
    "X-Forwarded-For: 6.6.6.6\r\n",
    "Cookie: a=1\r\n",
    "Cookie: b=2\r\n",
    "Range: bytes=0-1,3-4\r\n",
    "Content-Type: application/x-www-form-urlencoded\r\n",
    "\r\n",
    "\r\n",
    "\r\n",
    "hello",
    "5\r\nhello\r\n0\r\n\r\n",
    "5;a=b\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
    "0\r\n\r\n",
    "\n",
    "\r",
    "\0",
    " ",
];

const WHOLE: &[&str] = &[
    "GET /a?b=[c]|{d} HTTP/1.1\r\nHost: a.example\r\nX_Y: 1\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n",
    "POST /b HTTP/1.1\r\nHost: a.example:80\r\nContent-Length: 5\r\n\r\nhello",
    "POST /c HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n5;a=\"b\"\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
    "PUT http://a.example/d HTTP/1.1\r\nHost: a.example\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nContent-Length: 0\r\n\r\n",
    "GET /cable HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "GET /e HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\n\r\n",
];

/// Whole requests and loose lines, with up to three changes in what they make together.
fn connection() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![6 => sample::select(WHOLE), 2 => sample::select(LINES)];
    let change = (any::<sample::Index>(), prop_oneof![sample::select(LINES).prop_map(str::to_owned), "[\\x00-\\x7f]{0,2}"], 0_usize..3);
    (prop::collection::vec(part, 1..5), prop::collection::vec(change, 0..4)).prop_map(|(parts, changes)| {
        let mut bytes = parts.concat().into_bytes();
        for (at, text, length) in changes {
            let at = at.index(bytes.len() + 1);
            bytes.splice(at..(at + length).min(bytes.len()), text.bytes());
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_guard_and_a_second_parser_read_the_same_boundaries_at_every_cut(bytes in connection()) {
        let read = guard([&bytes[..]]);
        for cut in 0..bytes.len() {
            prop_assert_eq!(&guard([&bytes[..cut], &bytes[cut..]]), &read, "cut at {}", cut);
        }
        prop_assert_eq!(&guard(bytes.chunks(1)), &read);
        let second = strict::stream(&bytes);
        prop_assert_eq!(&read.0, &second.messages);
        match second.end {
            strict::End::Clean => prop_assert!(!read.1 && read.2),
            strict::End::Cut => prop_assert!(read.1 || !read.2),
            strict::End::Bad => prop_assert!(read.1),
        }
    }

    #[test]
    fn what_is_passed_on_has_one_reading_and_is_what_was_sent(bytes in connection()) {
        let sent = strict::stream(&bytes).messages;
        let explained = explain(Config::default(), bytes).unwrap();
        for (n, request) in explained.iter().enumerate() {
            let Some((head, body)) = request.forwarded() else { continue };
            let read = grammar::read_all(&[head, body].concat());
            prop_assert_eq!(read.len(), 1);
            // One request at a time and in order: the nth that is passed on is the nth that was sent.
            prop_assert_eq!((read[0].method.as_bytes(), &read[0].body), (&sent[n].method[..], &sent[n].body));
            prop_assert!(!read[0].fields.iter().any(|(name, value)| name.contains('_') || value == b"6.6.6.6"));
            let upgrade = read[0].field("upgrade").is_some();
            prop_assert!(!upgrade || (read[0].method == "GET" && body.is_empty()));
        }
    }
}

#[test]
fn no_input_costs_more_than_its_length() {
    let repeat = |front: &str, fill: &str, back: &str, n: usize| [front, &fill.repeat(n / fill.len()), back].concat().into_bytes();
    let post = |kind: &str, body: Vec<u8>| {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
        [head.into_bytes(), body].concat()
    };
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (form, part) = ("multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=\"a\"; filename=\"f\"\r\n\r\n");
    type Make<'a> = Box<dyn Fn(usize) -> Vec<u8> + 'a>;
    let inputs: Vec<(&str, Make<'_>)> = vec![
        ("pipelined requests", Box::new(|n| repeat("", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "", n))),
        ("a long target", Box::new(|n| repeat("GET /", "a", " HTTP/1.1\r\nHost: a\r\n\r\n", n))),
        ("escapes in the path", Box::new(|n| repeat("GET /", "%2f", " HTTP/1.1\r\nHost: a\r\n\r\n", n))),
        ("segments", Box::new(|n| repeat("GET /", "a/", " HTTP/1.1\r\nHost: a\r\n\r\n", n))),
        ("parameters", Box::new(|n| repeat("GET /?", "a[b]=c&", " HTTP/1.1\r\nHost: a\r\n\r\n", n))),
        ("one field", Box::new(|n| repeat("GET / HTTP/1.1\r\nHost: a\r\nX: ", "v ", "v\r\n\r\n", n))),
        ("many fields", Box::new(|n| repeat("GET / HTTP/1.1\r\nHost: a\r\n", "X: 1\r\n", "\r\n", n / FEWER))),
        ("underscores", Box::new(|n| repeat("GET / HTTP/1.1\r\nHost: a\r\n", "X_Y: 1\r\n", "\r\n", n / FEWER))),
        ("cookies", Box::new(|n| repeat("GET / HTTP/1.1\r\nHost: a\r\n", "Cookie: a=1\r\n", "\r\n", n / FEWER))),
        ("a list", Box::new(|n| repeat("GET / HTTP/1.1\r\nHost: a\r\nAccept: a", " ,", "b\r\n\r\n", n))),
        ("ranges", Box::new(|n| repeat("GET / HTTP/1.1\r\nHost: a\r\nRange: bytes=0-1", ",5-6", "\r\n\r\n", n))),
        ("small chunks", Box::new(|n| repeat(chunked, "1\r\nx\r\n", "0\r\n\r\n", n))),
        ("extensions", Box::new(|n| repeat(&format!("{chunked}1"), ";a=\"b\"", "\r\nx\r\n0\r\n\r\n", n))),
        ("trailers", Box::new(|n| repeat(&format!("{chunked}0\r\n"), "X: 1\r\n", "\r\n", n))),
        ("a form", Box::new(|n| post("application/x-www-form-urlencoded", repeat("", "a[b][c]=%20&", "", n)))),
        ("near-boundaries", Box::new(|n| post(form, repeat(part, "\r\n--", "\r\n--b--\r\n", n)))),
        ("line breaks in a part", Box::new(|n| post(form, repeat(part, "\r", "\r\n--b--\r\n", n)))),
        ("parts", Box::new(|n| post(form, repeat("", "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx\r\n", "--b--\r\n", n)))),
        (
            "a part's header",
            Box::new(|n| post(form, repeat("--b\r\nContent-Disposition: form-data", "; a=\"b\\\"\"", "\r\n\r\nx\r\n--b--\r\n", n))),
        ),
    ];
    let mut steep = Vec::new();
    for (name, make) in &inputs {
        let (small, large) = (cost(&make(SMALL)), cost(&make(SMALL * GROWTH)));
        // Linear would be 8 times, quadratic 64. What is over in a moment is noise.
        if large > small.max(MOMENT) * 24 {
            steep.push(format!("{name}: {small:?} for {SMALL} bytes, {large:?} for {} times as many", GROWTH));
        }
    }
    assert!(steep.is_empty(), "{}", steep.join("\n"));
}

const MOMENT: Duration = Duration::from_millis(2);
const SMALL: usize = 24_000;
const GROWTH: usize = 8;
/// `limits.header_count` is never above 1000.
const FEWER: usize = 28;

/// Time of this thread on a processor, the lesser of two, through the guard in small pieces and through the whole stack,
/// with limits that do not get in the way.
fn cost(bytes: &[u8]) -> Duration {
    let once = || {
        let before = on_cpu();
        let limits = Limits {
            target: usize::MAX,
            head: 64 << 20,
            fields: usize::MAX,
            name: usize::MAX,
            value: usize::MAX,
            chunk_line: usize::MAX,
            chunk_extensions: usize::MAX,
            trailer: usize::MAX,
            trailer_fields: usize::MAX,
            ..Limits::default()
        };
        let mut pipeline = Pipeline::new(limits);
        let events: usize = bytes.chunks(61).map(|piece| pipeline.feed(piece).len()).sum();
        let explained = explain(generous(), bytes.to_vec()).unwrap();
        assert!(events > 0 && !explained.is_empty());
        on_cpu() - before
    };
    (0..2).map(|_| once()).min().unwrap()
}

fn generous() -> Config {
    let mut config = Config::default();
    let limits = &mut config.limits;
    let much = ByteSize(64 << 20);
    (limits.header_bytes, limits.header_value, limits.header_name, limits.uri_bytes) = (much, much, much, much);
    (limits.chunk_line, limits.chunk_extensions, limits.trailer_bytes) = (much, much, much);
    (limits.header_count, limits.trailer_count) = (u16::MAX, u16::MAX);
    config.framing.fields = usize::from(u16::MAX);
    config.timeouts.requests = u32::MAX;
    let shield = &mut config.shield;
    (shield.range.count, shield.range.bytes) = (usize::MAX, much);
    (shield.accept.items, shield.accept.bytes) = (usize::MAX, much);
    (shield.cookies.pairs, shield.cookies.bytes) = (usize::MAX, much);
    shield.query.parameters = u32::MAX;
    (shield.form.parameters, shield.form.bytes) = (u32::MAX, much);
    (shield.multipart.parts, shield.multipart.part_header, shield.multipart.disposition) = (u32::MAX, much, much);
    config
}

/// The scheduler's account of this thread, in nanoseconds.
fn on_cpu() -> Duration {
    let account = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(account.split(' ').next().unwrap().parse().unwrap())
}
