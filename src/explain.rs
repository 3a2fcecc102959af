//! `palisade explain`: what becomes of these bytes, by which rule, and what Puma would get of them.
//!
//! The bytes go the real way: through the HTTP/1 driver, the guard and every layer of the configuration, to a Puma of paper
//! that keeps what it is given and answers 200. Only what depends on time instead of bytes is left out: `rate_limit` and `ban`.

use std::{
    fmt::Write,
    io,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::mpsc,
};
use tower_service::Service;

use crate::{
    accept::{
        client::Client,
        listener::Protocol,
        stream::{Stream, Transport},
    },
    config::Config,
    guard::rule::Rule,
    http::{body::Received, one},
    layers::{
        buffer::{Complete, Content},
        canonical::Canonical,
    },
    log::{End, Recorder, Verdict},
    metrics::Metrics,
    refusal::{Fate, Refusal},
    run::rehearsal::rehearse,
    units::{Auto, ByteSize},
};

/// What became of one request.
#[derive(Debug)]
pub struct Explained {
    verdict: Verdict,
    forwarded: Option<Forwarded>,
}

/// What Puma would have got.
#[derive(Debug)]
struct Forwarded {
    head: Vec<u8>,
    body: Vec<u8>,
}

/// Sends the bytes of one connection through `config`, and tells of each request in its order.
pub fn explain(mut config: Config, bytes: Vec<u8>) -> io::Result<Vec<Explained>> {
    config.rate_limit.clear();
    config.ban.clear();
    let room = ByteSize(bytes.len() as u64).0.saturating_mul(4).max(ByteSize::mib(64).0);
    config.buffer.memory_per_request = ByteSize(room);
    config.buffer.memory_total = Auto::Value(ByteSize(room.saturating_mul(4)));
    config.buffer.client_share = 1.0;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(send(config, bytes))
}

async fn send(config: Config, bytes: Vec<u8>) -> io::Result<Vec<Explained>> {
    let (witness, mut verdicts) = mpsc::unbounded_channel();
    let (keep, mut kept) = mpsc::unbounded_channel();
    let metrics = Arc::new(Metrics::new("", "").map_err(io::Error::other)?);
    let recorder = Recorder::before(witness, metrics)?;
    let rehearsal = rehearse(&config, &recorder, Paper { keep })?;
    let (near, far) = UnixStream::pair()?;
    let stream = Stream::new(Transport::Unix(far), Protocol::Http, false);
    let serve = one::serve(rehearsal.sites, stream, Arc::new(client()), rehearsal.sweep.enrol(u64::MAX));
    let (mut answers, mut requests) = near.into_split();
    let ask = async move {
        // A connection that was closed over an earlier request takes no more bytes; its verdict says why.
        requests.write_all(&bytes).await.unwrap_or_default();
        requests.shutdown().await.unwrap_or_default();
    };
    let listen = async move {
        let mut away = Vec::new();
        answers.read_to_end(&mut away).await.map_or(0, |length| length)
    };
    tokio::join!(serve, ask, listen);
    let mut all = Vec::new();
    while let Ok(verdict) = verdicts.try_recv() {
        // One request at a time: what Puma was given last belongs to the verdict that passed.
        let forwarded = if has_passed(&verdict) { kept.try_recv().ok() } else { None };
        all.push(Explained { verdict, forwarded });
    }
    Ok(all)
}

fn has_passed(verdict: &Verdict) -> bool {
    match verdict.end {
        End::Ok | End::SlowRead => true,
        End::Refused(_) | End::TlsError => false,
    }
}

/// Somebody on the Internet (RFC 5737), so that no list of trusted addresses applies.
fn client() -> Client {
    let ip = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    Client { ip, peer: ip, port: 49152, local_port: 80, ..Client::local() }
}

/// A Puma of paper.
#[derive(Clone, Debug)]
struct Paper {
    keep: mpsc::UnboundedSender<Forwarded>,
}

impl Service<Request<Canonical>> for Paper {
    type Response = Response<Received>;
    type Error = Refusal;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Refusal>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Canonical>) -> Self::Future {
        let keep = self.keep.clone();
        Box::pin(async move {
            let (head, body) = request.into_body().into_parts();
            let body = whole(body).await.map_err(|_| Refusal::Internal)?;
            keep.send(Forwarded { head, body }).map_err(|_| Refusal::Internal)?;
            Ok(Response::new(Received::None))
        })
    }
}

async fn whole(body: Complete) -> io::Result<Vec<u8>> {
    let (_slot, content) = body.into_parts();
    match content {
        Content::None => Ok(Vec::new()),
        Content::Memory(held) => Ok(held.to_vec()),
        Content::File(file) => {
            let mut all = Vec::new();
            let mut reader = file.reader();
            while let Some(piece) = reader.next().await? {
                all.extend_from_slice(&piece);
            }
            Ok(all)
        }
    }
}

/// For people.
pub fn text(all: &[Explained]) -> String {
    let mut out = String::new();
    for (n, explained) in all.iter().enumerate() {
        if n > 0 {
            out.push('\n');
        }
        explained.text(n.saturating_add(1), &mut out);
    }
    if all.is_empty() {
        out.push_str("There is no request in these bytes.\n");
    }
    out
}

/// For programs: one object a line. In `puma_gets` each character is one byte.
pub fn lines(all: &[Explained]) -> String {
    all.iter().zip(1_usize..).map(|(explained, n)| format!("{}\n", explained.json(n))).collect()
}

impl Explained {
    fn word(&self) -> &'static str {
        match (&self.forwarded, self.verdict.observed.is_empty()) {
            (Some(_), true) => "passes",
            (Some(_), false) => "passes with repairs",
            (None, _) => "refused",
        }
    }

    /// Head and body as Puma would have got them.
    pub fn forwarded(&self) -> Option<(&[u8], &[u8])> {
        self.forwarded.as_ref().map(|forwarded| (&forwarded.head[..], &forwarded.body[..]))
    }

    /// Why it was refused.
    pub fn refusal(&self) -> Option<Refusal> {
        match self.verdict.end {
            End::Refused(refusal) => Some(refusal),
            End::Ok | End::SlowRead | End::TlsError => None,
        }
    }

    fn text(&self, n: usize, out: &mut String) {
        let Verdict { method, target, status, observed, .. } = &self.verdict;
        let mut line = |words: std::fmt::Arguments<'_>| writeln!(out, "{words}").unwrap_or_default();
        line(format_args!("request {n}: {} {}", shown(method), shown(target)));
        match self.refusal() {
            None => line(format_args!("verdict:   {}", self.word())),
            Some(refusal) => {
                let fate = match refusal.fate() {
                    Fate::Keep => "the connection stays open",
                    Fate::Close => "the connection is closed, nothing behind it is parsed",
                };
                line(format_args!("verdict:   {} ({}, {}); {fate}", self.word(), refusal.label(), status.as_u16()));
                match refusal.rule() {
                    Some(rule) => line(format_args!("rule:      {}", sentence(rule))),
                    None => line(format_args!("reason:    {refusal}")),
                }
            }
        }
        for rule in observed {
            line(format_args!("noted:     {}", sentence(*rule)));
        }
        match &self.forwarded {
            None => line(format_args!("Puma gets nothing.")),
            Some(Forwarded { head, body }) => {
                line(format_args!("Puma gets a head of {} bytes and a body of {}:", head.len(), body.len()));
                for bytes in [head, body] {
                    for piece in bytes.split_inclusive(|b| *b == b'\n') {
                        line(format_args!("    {}", shown(piece)));
                    }
                }
            }
        }
    }

    fn json(&self, n: usize) -> Value {
        let Verdict { method, target, status, observed, end } = &self.verdict;
        let refusal = self.refusal();
        json!({
            "request": n,
            "method": latin1(method),
            "target": latin1(target),
            "verdict": self.word(),
            "end": end.label(),
            "status": status.as_u16(),
            "connection": match refusal.map(Refusal::fate) {
                Some(Fate::Close) => "close",
                Some(Fate::Keep) | None => "keep",
            },
            "rule": refusal.and_then(Refusal::rule).map(described),
            "reason": refusal.map(Refusal::sentence),
            "noted": observed.iter().copied().map(described).collect::<Vec<_>>(),
            "puma_gets": self.forwarded.as_ref().map(|forwarded| latin1(&[&forwarded.head[..], &forwarded.body[..]].concat())),
        })
    }
}

fn sentence(rule: Rule) -> String {
    let info = rule.info();
    format!("{} ({}): {}", info.id, info.source, info.sentence)
}

fn described(rule: Rule) -> Value {
    let info = rule.info();
    json!({ "id": info.id, "source": info.source, "sentence": info.sentence })
}

/// Bytes as text in which none can hide or move the cursor of a terminal.
fn shown(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        match byte {
            b'\r' => text.push_str("\\r"),
            b'\n' => text.push_str("\\n"),
            b'\t' => text.push_str("\\t"),
            b'\\' => text.push_str("\\\\"),
            0x20..=0x7e => text.push(char::from(*byte)),
            0x00..=0x1f | 0x7f..=0xff => write!(text, "\\x{byte:02x}").unwrap_or_default(),
        }
        text
    })
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(bytes: &[u8]) -> Vec<(&'static str, String, Option<Vec<u8>>)> {
        let all = explain(Config::default(), bytes.to_vec()).unwrap();
        let rule = |e: &Explained| e.refusal().and_then(Refusal::rule).map_or(String::new(), |rule| rule.id().to_owned());
        all.iter().map(|e| (e.word(), rule(e), e.forwarded.as_ref().map(|f| f.body.clone()))).collect()
    }

    #[test]
    fn each_request_of_a_connection_has_its_verdict_and_nothing_behind_a_refusal_has_one() {
        let bytes = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nPOST /b HTTP/1.1\r\nHost: a\r\nX_Y: 1\r\nTransfer-Encoding: chunked\r\n\r\n\
            3\r\nabc\r\n0\r\n\r\nGET /c HTTP/1.1\r\nHost : a\r\n\r\nGET /d HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(
            words(bytes),
            [
                ("passes", String::new(), Some(Vec::new())),
                ("passes with repairs", String::new(), Some(b"abc".to_vec())),
                ("refused", "G9".to_owned(), None),
            ]
        );
    }

    #[test]
    fn a_body_above_the_memory_of_a_request_is_told_whole() {
        let body = vec![b'x'; 3 << 20];
        let bytes = [format!("POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes(), body.clone()].concat();
        assert_eq!(words(&bytes), [("passes", String::new(), Some(body))]);
    }

    #[test]
    fn a_request_that_does_not_end_is_refused() {
        assert_eq!(words(b"GET /a HT"), [("refused", "G5".to_owned(), None)]);
        assert_eq!(words(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc"), [("refused", String::new(), None)]);
        assert!(words(b"").is_empty() && words(b"\r\n").is_empty());
        assert_eq!(text(&[]), "There is no request in these bytes.\n");
    }

    #[test]
    fn more_fields_than_a_map_can_hold_are_refused_whatever_the_limit_is() {
        let mut config = Config::default();
        config.limits.header_count = u16::MAX;
        config.limits.header_bytes = ByteSize::mib(1);
        let bytes = ["GET / HTTP/1.1\r\nHost: a\r\n", &"X: 1\r\n".repeat(40_000), "\r\n"].concat();
        let all = explain(config, bytes.into_bytes()).unwrap();
        assert_eq!(all[0].refusal(), Some(Refusal::HeaderTooLarge(Rule::G9Size)));
    }

    #[test]
    fn no_byte_of_a_request_reaches_the_terminal_as_it_is() {
        assert_eq!(shown(b"a\\\x1b[2J\r\n\t\xff"), "a\\\\\\x1b[2J\\r\\n\\t\\xff");
    }
}
