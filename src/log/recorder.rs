//! One event, one line and its metrics: whatever ends a request comes through here, and only here.

use std::{
    cell::RefCell,
    io,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Version, uri::Authority};
use tokio::sync::mpsc;

use super::{
    Config, End, Format,
    line::{Line, Scratch},
    redact::Redaction,
    sink::{Sink, Target},
};
use crate::{
    accept::client::Client,
    guard::rule::Rule,
    http::arrival::Notes,
    metrics::{Finished, Metrics},
    refusal::Refusal,
};

/// Writes the access log and counts.
#[derive(Debug)]
pub struct Recorder {
    style: ArcSwap<Style>,
    sink: Sink,
    metrics: Arc<Metrics>,
    witness: Option<Witness>,
}

/// Hears of every end.
type Witness = mpsc::UnboundedSender<Verdict>;

/// How one request ended, and by which rules.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// As the client sent it, as far as it was read.
    pub method: Vec<u8>,
    /// As the client sent it, as far as it was read.
    pub target: Vec<u8>,
    /// The status of the answer.
    pub status: StatusCode,
    /// How it ended.
    pub end: End,
    /// Rules that repaired something, or would have refused.
    pub observed: Vec<Rule>,
}

/// What a client said, as the log tells it: references to its bytes, no copies.
#[derive(Debug)]
pub struct Said {
    /// Who sent it.
    pub client: Arc<Client>,
    /// Its method.
    pub method: Method,
    /// Its version.
    pub version: Version,
    /// Its target as the client sent it.
    pub target: Bytes,
    /// Where it was sent to.
    pub host: Host,
    /// User-Agent.
    pub agent: Option<HeaderValue>,
    /// Referer.
    pub referer: Option<HeaderValue>,
}

/// Host as HTTP/1 has it, or the authority of HTTP/2.
#[derive(Debug)]
pub enum Host {
    /// There was none.
    None,
    /// The Host field.
    Field(HeaderValue),
    /// `:authority`, or the authority of an absolute target.
    Authority(Authority),
}

#[derive(Debug)]
struct Style {
    format: Format,
    redaction: Redaction,
}

impl Recorder {
    /// Opens the access log. Its drop counter becomes a metric.
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> io::Result<Arc<Self>> {
        let sink = Sink::open(Target::parse(&config.access_file))?;
        let dropped = sink.drop_counter();
        metrics.collect_with(Box::new(move |sheet| {
            let help = "Access lines that found no room or could not be written.";
            sheet.counter("palisade_log_lines_dropped_total", help, &[], dropped());
        }));
        Ok(Arc::new(Recorder { style: ArcSwap::from_pointee(Style::of(config)), sink, metrics, witness: None }))
    }

    /// Writes no line, and tells `witness` of every end.
    pub fn before(witness: mpsc::UnboundedSender<Verdict>, metrics: Arc<Metrics>) -> io::Result<Arc<Self>> {
        let config = Config { access: Format::Off, ..Config::default() };
        let sink = Sink::open(Target::Stderr)?;
        Ok(Arc::new(Recorder { style: ArcSwap::from_pointee(Style::of(&config)), sink, metrics, witness: Some(witness) }))
    }

    /// Takes over the form and the redactions of a new configuration, and opens the file again. Another file takes a restart.
    pub fn reload(&self, config: &Config) {
        self.style.store(Arc::new(Style::of(config)));
        self.sink.reopen();
    }

    /// Opens the file again, after a log rotation has moved it away.
    pub fn reopen(&self) {
        self.sink.reopen();
    }

    /// Waits until every line is written, at most for `patience`. Whether they were.
    pub fn flush(&self, patience: Duration) -> bool {
        self.sink.flush(patience)
    }

    /// What this counts into.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// A recorded request is over.
    pub fn finish(&self, notes: &Notes, end: End) {
        let Some(said) = notes.said() else { return };
        let status = notes.status().or(end.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let total = notes.started.elapsed();
        self.tell(|| Verdict {
            method: said.method.as_str().as_bytes().to_vec(),
            target: said.target.to_vec(),
            status,
            end,
            observed: notes.observed().collect(),
        });
        self.metrics.count(Finished {
            method: said.method.as_str().as_bytes(),
            version: said.version,
            status,
            total,
            end,
            notes: Some(notes),
        });
        self.write(&Line {
            at: notes.at,
            id: notes.id().map_or(&[], HeaderValue::as_bytes),
            client: &said.client,
            http: match said.version {
                Version::HTTP_09 => "0.9",
                Version::HTTP_10 => "1.0",
                Version::HTTP_2 => "2",
                Version::HTTP_3 => "3",
                _ => "1.1",
            },
            method: said.method.as_str().as_bytes(),
            host: said.host.as_bytes(),
            target: &said.target,
            status: status.as_u16(),
            bytes_in: notes.body(),
            bytes_out: notes.sent(),
            agent: said.agent.as_ref().map_or(&[], HeaderValue::as_bytes),
            referer: said.referer.as_ref().map_or(&[], HeaderValue::as_bytes),
            notes: Some(notes),
            total,
            end,
        });
    }

    /// Bytes that never became a request were answered. `method` and `target` are what was read of them, if anything.
    pub fn refused_bytes(&self, client: &Client, started: Instant, method: &[u8], target: &[u8], refusal: Refusal) {
        let (status, end, total) = (refusal.status(), End::Refused(refusal), started.elapsed());
        self.tell(|| Verdict { method: method.to_vec(), target: target.to_vec(), status, end, observed: Vec::new() });
        self.metrics.count(Finished { method, version: Version::HTTP_11, status, total, end, notes: None });
        let now = SystemTime::now();
        self.write(&Line {
            at: now.checked_sub(total).unwrap_or(now),
            id: &[],
            client,
            http: "",
            method,
            host: &[],
            target,
            status: status.as_u16(),
            bytes_in: 0,
            bytes_out: 0,
            agent: &[],
            referer: &[],
            notes: None,
            total,
            end,
        });
    }

    fn tell(&self, verdict: impl FnOnce() -> Verdict) {
        if let Some(witness) = &self.witness {
            // A witness that has gone does not want to know.
            witness.send(verdict()).unwrap_or_default();
        }
    }

    fn write(&self, line: &Line<'_>) {
        let style = self.style.load();
        if style.format == Format::Off {
            return;
        }
        DESK.with_borrow_mut(|(text, scratch)| {
            text.clear();
            line.write(text, style.format, &style.redaction, scratch);
            self.sink.push(text);
        });
    }
}

impl Host {
    /// As the client sent it.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Host::None => &[],
            Host::Field(value) => value.as_bytes(),
            Host::Authority(authority) => authority.as_str().as_bytes(),
        }
    }
}

impl Style {
    fn of(config: &Config) -> Self {
        Style { format: config.access, redaction: Redaction::new(&config.redact) }
    }
}

thread_local! {
    static DESK: RefCell<(Vec<u8>, Scratch)> = RefCell::default();
}
