//! One request as one line: JSON, logfmt or nginx's `combined`.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use super::{
    End, Format, calendar,
    redact::{self, Redaction},
    text,
};
use crate::{
    accept::client::Client,
    guard::rule::Rule,
    http::arrival::{Moment, Notes},
};

/// What a line shows. Borrowed: a line is made in one go and forgotten.
#[derive(Debug)]
pub struct Line<'a> {
    /// The first byte of the head, by the calendar.
    pub at: SystemTime,
    /// The request id, where one was given.
    pub id: &'a [u8],
    /// Who sent it.
    pub client: &'a Client,
    /// `1.0`, `1.1`, `2`, or nothing where no version was read.
    pub http: &'static str,
    /// As the client sent it.
    pub method: &'a [u8],
    /// Host or authority as the client sent it.
    pub host: &'a [u8],
    /// The request target as the client sent it.
    pub target: &'a [u8],
    /// The status of the answer.
    pub status: u16,
    /// Length of the request body as far as it was read.
    pub bytes_in: u64,
    /// Length of the response body as far as it was sent.
    pub bytes_out: u64,
    /// User-Agent.
    pub agent: &'a [u8],
    /// Referer.
    pub referer: &'a [u8],
    /// Times and findings, where there was a request.
    pub notes: Option<&'a Notes>,
    /// From the first byte of the head to the end.
    pub total: Duration,
    /// How it ended.
    pub end: End,
}

/// Room for work that a line needs beside itself.
#[derive(Debug, Default)]
pub struct Scratch {
    query: Vec<u8>,
    referer: Vec<u8>,
}

impl Line<'_> {
    /// Appends the line, with its line feed.
    pub fn write(&self, out: &mut Vec<u8>, format: Format, redaction: &Redaction, scratch: &mut Scratch) {
        match format {
            Format::Json => {
                out.extend_from_slice(b"{\"ts\":\"");
                calendar::rfc3339(out, self.at);
                out.push(b'"');
                self.fields(Fields::<true>(out), redaction, scratch);
                out.extend_from_slice(b"}\n");
            }
            Format::Logfmt => {
                out.extend_from_slice(b"ts=");
                calendar::rfc3339(out, self.at);
                self.fields(Fields::<false>(out), redaction, scratch);
                out.push(b'\n');
            }
            Format::Combined => self.combined(out, redaction, scratch),
            Format::Off => {}
        }
    }

    /// The client, also where a trusted peer speaks for it.
    fn ip(&self) -> IpAddr {
        self.notes.and_then(Notes::client).unwrap_or(self.client.ip)
    }

    fn fields<const JSON: bool>(&self, mut fields: Fields<'_, JSON>, redaction: &Redaction, scratch: &mut Scratch) {
        fields.text(key!("id"), self.id);
        fields.address(key!("ip"), self.ip());
        if self.client.peer != self.ip() {
            fields.address(key!("peer"), self.client.peer);
        }
        fields.number(key!("port"), u64::from(self.client.port));
        fields.word(key!("tls"), self.client.tls);
        fields.word(key!("alpn"), self.client.alpn);
        fields.word(key!("http"), self.http);
        fields.text(key!("method"), self.method);
        fields.text(key!("host"), self.host);
        match redact::split(self.target) {
            Some((path, query)) => {
                fields.text(key!("path"), path);
                fields.text(key!("query"), redaction.query(query, &mut scratch.query));
            }
            None => fields.text(key!("path"), self.target),
        }
        fields.number(key!("status"), u64::from(self.status));
        fields.number(key!("bytes_in"), self.bytes_in);
        fields.number(key!("bytes_out"), self.bytes_out);
        fields.text(key!("ua"), self.agent);
        fields.text(key!("ref"), redaction.url(self.referer, &mut scratch.query, &mut scratch.referer));
        if let Some(notes) = self.notes {
            self.times(&mut fields, notes);
        }
        fields.millis(key!("total_ms"), self.total);
        fields.word(key!("end"), self.end.label());
        fields.word(key!("rule"), self.end.rule().map_or("", Rule::id));
        if let Some(notes) = self.notes {
            fields.text(key!("limit"), notes.limit().unwrap_or_default().as_bytes());
            fields.rules(key!("observed"), notes);
        }
    }

    /// The phases follow each other, so that they add up to the total: receive, queue, Puma up to its head, send.
    fn times<const JSON: bool>(&self, fields: &mut Fields<'_, JSON>, notes: &Notes) {
        if let Some(route) = notes.route() {
            fields.number(key!("route"), u64::from(route));
        }
        if let Some(worker) = notes.worker() {
            fields.number(key!("worker"), u64::from(worker));
        }
        let mut since = Duration::ZERO;
        for (key, moment) in
            [(key!("recv_ms"), Moment::Complete), (key!("queue_ms"), Moment::Admitted), (key!("upstream_ms"), Moment::Answered)]
        {
            let Some(until) = notes.when(moment) else { continue };
            fields.millis(key, until.saturating_sub(since));
            since = until;
        }
        if notes.when(Moment::Answered).is_some() {
            fields.millis(key!("send_ms"), self.total.saturating_sub(since));
        }
    }

    fn combined(&self, out: &mut Vec<u8>, redaction: &Redaction, scratch: &mut Scratch) {
        text::address(out, self.ip());
        out.extend_from_slice(b" - - [");
        calendar::common(out, self.at);
        out.extend_from_slice(b"] \"");
        text::combined(out, self.method);
        out.push(b' ');
        text::combined(out, redaction.url(self.target, &mut scratch.query, &mut scratch.referer));
        out.extend_from_slice(match self.http {
            "2" => b" HTTP/2.0\" ",
            "1.0" => b" HTTP/1.0\" ",
            _ => b" HTTP/1.1\" ",
        });
        text::number(out, u64::from(self.status));
        out.push(b' ');
        text::number(out, self.bytes_out);
        out.extend_from_slice(b" \"");
        text::combined(out, redaction.url(self.referer, &mut scratch.query, &mut scratch.referer));
        out.extend_from_slice(b"\" \"");
        text::combined(out, self.agent);
        out.extend_from_slice(b"\"\n");
    }
}

/// A key with what stands around it in either form, put together by the compiler.
#[derive(Clone, Copy)]
struct Key {
    json: &'static str,
    logfmt: &'static str,
}

macro_rules! key {
    ($name:literal) => {
        Key { json: concat!(",\"", $name, "\":"), logfmt: concat!(" ", $name, "=") }
    };
}
use key;

/// The pairs of a JSON object or of a logfmt line. A pair without a value is left out.
struct Fields<'a, const JSON: bool>(&'a mut Vec<u8>);

impl<const JSON: bool> Fields<'_, JSON> {
    /// Inlined where the key is written down, so that it is stored as a constant of known length.
    #[inline(always)]
    fn key(&mut self, key: Key) {
        self.0.extend_from_slice(if JSON { key.json } else { key.logfmt }.as_bytes());
    }

    fn quote(&mut self) {
        if JSON {
            self.0.push(b'"');
        }
    }

    fn text(&mut self, key: Key, value: &[u8]) {
        if value.is_empty() {
            return;
        }
        self.key(key);
        if JSON {
            text::json(self.0, value);
        } else {
            text::logfmt(self.0, value);
        }
    }

    /// A word of ours, which needs neither a look nor quotes of its own in logfmt.
    #[inline(always)]
    fn word(&mut self, key: Key, word: &'static str) {
        if word.is_empty() {
            return;
        }
        self.key(key);
        self.quote();
        self.0.extend_from_slice(word.as_bytes());
        self.quote();
    }

    fn number(&mut self, key: Key, n: u64) {
        self.key(key);
        text::number(self.0, n);
    }

    fn millis(&mut self, key: Key, duration: Duration) {
        self.key(key);
        text::millis(self.0, duration);
    }

    fn address(&mut self, key: Key, ip: IpAddr) {
        self.key(key);
        self.quote();
        text::address(self.0, ip);
        self.quote();
    }

    fn rules(&mut self, key: Key, notes: &Notes) {
        let mut rules = notes.observed().map(Rule::id).peekable();
        if rules.peek().is_none() {
            return;
        }
        self.key(key);
        self.quote();
        for (i, id) in rules.enumerate() {
            if i > 0 {
                self.0.push(b',');
            }
            self.0.extend_from_slice(id.as_bytes());
        }
        self.quote();
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Instant};

    use super::*;
    use crate::{log::Redact, refusal::Refusal};

    struct Hostile {
        client: Client,
        notes: Notes,
        values: [Vec<u8>; 6],
    }

    impl Hostile {
        fn line(&self) -> Line<'_> {
            let [id, method, host, target, agent, referer] = &self.values;
            Line {
                at: self.notes.at,
                id,
                client: &self.client,
                http: "1.1",
                method,
                host,
                target,
                status: 400,
                bytes_in: 1,
                bytes_out: 2,
                agent,
                referer,
                notes: Some(&self.notes),
                total: Duration::from_millis(9),
                end: End::Refused(Refusal::BadFraming(Rule::G1)),
            }
        }

        fn write(&self, format: Format) -> String {
            let mut out = Vec::new();
            self.line().write(&mut out, format, &Redaction::new(&Redact::default()), &mut Scratch::default());
            String::from_utf8(out).expect("a line is UTF-8")
        }
    }

    fn plain() -> Hostile {
        let values = [&b"id-1"[..], b"GET", b"shop.example", b"/a/b?q=1&token=hunter2", b"curl/8", b"https://a.example/?code=hunter2"];
        Hostile { client: Client::local(), notes: Notes::new(Instant::now()), values: values.map(<[u8]>::to_vec) }
    }

    /// Reads a logfmt line back, by its own grammar.
    fn parse_logfmt(line: &str) -> BTreeMap<String, String> {
        let mut pairs = BTreeMap::new();
        let mut rest = line.trim_end_matches('\n');
        while !rest.is_empty() {
            let (key, value) = rest.split_once('=').expect("a key and a value");
            assert!(key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{key:?}");
            let end = if value.starts_with('"') {
                let mut stream = serde_json::Deserializer::from_str(value).into_iter::<String>();
                let text = stream.next().unwrap().unwrap();
                assert!(pairs.insert(key.to_owned(), text).is_none());
                stream.byte_offset()
            } else {
                let end = value.find(' ').unwrap_or(value.len());
                assert!(pairs.insert(key.to_owned(), value[..end].to_owned()).is_none());
                end
            };
            rest = value[end..].strip_prefix(' ').unwrap_or(&value[end..]);
        }
        pairs
    }

    #[test]
    fn a_plain_request_reads_as_documented() {
        let line: serde_json::Value = serde_json::from_str(&plain().write(Format::Json)).unwrap();
        for (key, value) in [
            ("id", "id-1"),
            ("ip", "127.0.0.1"),
            ("http", "1.1"),
            ("method", "GET"),
            ("host", "shop.example"),
            ("path", "/a/b"),
            ("query", "q=1&token=[redacted]"),
            ("ua", "curl/8"),
            ("ref", "https://a.example/?code=[redacted]"),
            ("end", "bad_framing"),
            ("rule", "G1"),
        ] {
            assert_eq!(line[key], value, "{key}");
        }
        assert_eq!((&line["status"], &line["bytes_in"], &line["bytes_out"]), (&400.into(), &1.into(), &2.into()));
        assert_eq!(line["total_ms"], 9.0);
        assert!(line.get("worker").is_none() && line.get("tls").is_none() && line.get("observed").is_none());
    }

    #[test]
    fn the_phases_add_up_and_findings_are_named() {
        let hostile = plain();
        for moment in [Moment::Complete, Moment::Admitted, Moment::Answered] {
            hostile.notes.mark(moment);
        }
        hostile.notes.sent_to(3);
        hostile.notes.routed_by(2);
        hostile.notes.limited_by(&"login".into());
        hostile.notes.observe(Rule::T5);
        hostile.notes.observe(Rule::T8);
        let line: serde_json::Value = serde_json::from_str(&hostile.write(Format::Json)).unwrap();
        let sum: f64 = ["recv_ms", "queue_ms", "upstream_ms", "send_ms"].iter().map(|key| line[key].as_f64().unwrap()).sum();
        assert!((sum - 9.0).abs() < 0.01, "{line}");
        assert_eq!((&line["worker"], &line["observed"]), (&3.into(), &"T5,T8".into()));
        assert_eq!((&line["route"], &line["limit"]), (&2.into(), &"login".into()));
    }

    #[test]
    fn the_combined_line_is_nginxs() {
        let line = plain().write(Format::Combined);
        assert!(line.starts_with("127.0.0.1 - - ["));
        let behind = " +0000] \"GET /a/b?q=1&token=[redacted] HTTP/1.1\" 400 2 \"https://a.example/?code=[redacted]\" \"curl/8\"\n";
        assert!(line.ends_with(behind), "{line}");
    }

    #[test]
    fn ten_thousand_hostile_values_forge_no_line() {
        let forged = "\r\n{\"end\":\"ok\"}\n\",\"end\":\"ok\" end=ok \\\" \u{85}\u{2028}\u{0}\u{1b}[31m".as_bytes();
        let mut random = fastrand::Rng::with_seed(7);
        for i in 0..10_000 {
            let mut hostile = plain();
            for value in &mut hostile.values {
                let from = random.usize(..forged.len());
                *value = match i % 3 {
                    0 => (0..random.usize(1..60)).map(|_| random.u8(..)).collect(),
                    1 => forged[from..].to_vec(),
                    _ => (0..random.usize(1..20))
                        .map(|_| *random.choice(b"\r\n\"\\=& ?;{}[]\x00\x7f\xc2\x85\xe2\x80\xa8u").unwrap())
                        .collect(),
                };
            }
            let json = hostile.write(Format::Json);
            let parsed: BTreeMap<String, serde_json::Value> = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json:?}"));
            assert_eq!(parsed["end"], "bad_framing");
            let keys = json.matches("\"end\":\"bad_framing\"").count();
            assert_eq!(keys, 1, "{json}");
            let logfmt = hostile.write(Format::Logfmt);
            assert_eq!(parse_logfmt(&logfmt)["end"], "bad_framing");
            let combined = hostile.write(Format::Combined);
            assert_eq!(combined.matches('"').count(), 6, "{combined}");
            assert!(combined.is_ascii());
            for line in [&json, &logfmt, &combined] {
                assert_eq!(line.matches('\n').count(), 1);
                assert!(line.ends_with('\n'));
                assert!(!line.trim_end_matches('\n').chars().any(|c| c.is_control() || c == '\u{2028}'), "{line:?}");
            }
        }
    }
}
