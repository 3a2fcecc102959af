//! What is counted, as Prometheus reads it.
//!
//! Threat: exhaustion. A label whose value a client can choose makes a new series for each value, here and in Prometheus, so
//! label values come from enums only: unknown methods are `_OTHER`, and no path, address or host is a label. Handles are
//! resolved before they are counted; on the way of a request there is an array index and an atomic addition. What is already
//! counted elsewhere (slots, queue, connections, budgets) is read at scrape time through [`Metrics::collect_with`].

mod process;
mod sheet;

use std::{
    fmt,
    mem::discriminant,
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ::http::{StatusCode, Version};
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder, core::Collector,
};

pub use self::sheet::Sheet;
use crate::{
    guard::rule::Rule,
    http::arrival::{Moment, Notes},
    log::End,
    refusal::Refusal,
};

/// Every metric of the process, or of one test.
pub struct Metrics {
    registry: Registry,
    started: SystemTime,
    duration: HistogramVec,
    durations: Vec<OnceLock<Histogram>>,
    active: IntGauge,
    body_size: Histogram,
    upstream_duration: Histogram,
    queue_wait: Histogram,
    rejected: Vec<IntCounter>,
    slow_reads: IntCounter,
    tls_errors: IntCounter,
    rules: Vec<[IntCounter; 2]>,
    sources: Mutex<Vec<Source>>,
}

/// Writes numbers whose truth lives elsewhere, at scrape time.
pub type Source = Box<dyn Fn(&mut Sheet) + Send + Sync>;

/// One finished request, as metrics see it.
#[derive(Clone, Copy, Debug)]
pub struct Finished<'a> {
    /// As the client sent it.
    pub method: &'a [u8],
    /// The version of the request.
    pub version: Version,
    /// The status of the answer.
    pub status: StatusCode,
    /// From the first byte of the head to the end.
    pub total: Duration,
    /// How it ended.
    pub end: End,
    /// Times and findings, where there was a request.
    pub notes: Option<&'a Notes>,
}

impl Metrics {
    /// All of them, at zero. `revision` is the commit that was built, or empty.
    pub fn new(version: &str, revision: &str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let duration = HistogramVec::new(
            HistogramOpts::new(
                "http_server_request_duration_seconds",
                "Requests, from the first byte of the head to the last of the answer.",
            )
            .buckets(SECONDS.to_vec()),
            &["method", "status_class", "protocol"],
        )?;
        registry.register(Box::new(duration.clone()))?;
        let rejected = IntCounterVec::new(
            Opts::new("palisade_requests_rejected_total", "Requests that did not end with a whole answer of Puma, by the log's end."),
            &["reason"],
        )?;
        registry.register(Box::new(rejected.clone()))?;
        let rule_hits = IntCounterVec::new(
            Opts::new("palisade_rule_hits_total", "Rules that refused (enforce), or repaired or would have refused (observe)."),
            &["rule", "mode"],
        )?;
        registry.register(Box::new(rule_hits.clone()))?;
        let metrics = Metrics {
            active: registered(&registry, IntGauge::new("http_server_active_requests", "Requests between head and end of answer.")?)?,
            body_size: histogram(&registry, "http_server_request_body_size_bytes", "Request bodies as far as read.", &BYTES)?,
            upstream_duration: histogram(
                &registry,
                "http_client_request_duration_seconds",
                "From slot to head of Puma's answer.",
                &SECONDS,
            )?,
            queue_wait: histogram(&registry, "palisade_queue_wait_seconds", "From complete request to slot.", &SECONDS)?,
            durations: (0..METHODS.len() * CLASSES.len() * PROTOCOLS.len()).map(|_| OnceLock::new()).collect(),
            rejected: Refusal::EACH.iter().map(|refusal| rejected.with_label_values(&[refusal.label()])).collect(),
            slow_reads: rejected.with_label_values(&[End::SlowRead.label()]),
            tls_errors: rejected.with_label_values(&[End::TlsError.label()]),
            rules: Rule::ALL.iter().map(|rule| MODES.map(|mode| rule_hits.with_label_values(&[rule.id(), mode]))).collect(),
            started: SystemTime::now(),
            sources: Mutex::default(),
            duration,
            registry,
        };
        let (version, revision) = (version.to_owned(), revision.to_owned());
        metrics.collect_with(Box::new(move |sheet| {
            sheet.gauge(
                "palisade_build_info",
                "Always 1; the build is in the labels.",
                &[("version", &version), ("revision", &revision)],
                1.0,
            );
        }));
        metrics.collect_with(Box::new(process::collect));
        Ok(metrics)
    }

    /// Adds numbers that are read at each scrape. A name that stands in several sources becomes one family.
    pub fn collect_with(&self, source: Source) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).push(source);
    }

    /// A request has begun.
    pub fn begin(&self) {
        self.active.inc();
    }

    /// A request that had begun is over. Follows [`Metrics::count`].
    pub fn end(&self) {
        self.active.dec();
    }

    /// Counts a request, or an answer to bytes that never became one.
    pub fn count(&self, finished: Finished<'_>) {
        if let Some(histogram) = self.duration_of(finished) {
            histogram.observe(finished.total.as_secs_f64());
        }
        self.count_end(finished.end);
        let Some(notes) = finished.notes else { return };
        if notes.body() > 0 {
            self.body_size.observe(notes.body() as f64);
        }
        let (complete, admitted) = (notes.when(Moment::Complete), notes.when(Moment::Admitted));
        if let (Some(complete), Some(admitted)) = (complete, admitted) {
            self.queue_wait.observe(admitted.saturating_sub(complete).as_secs_f64());
        }
        if let (Some(admitted), Some(answered)) = (admitted, notes.when(Moment::Answered)) {
            self.upstream_duration.observe(answered.saturating_sub(admitted).as_secs_f64());
        }
        for rule in notes.observed() {
            self.count_rule(rule, OBSERVE);
        }
    }

    /// Counts the end of a request, or of a connection that never had one.
    pub fn count_end(&self, end: End) {
        match end {
            End::Ok => {}
            End::SlowRead => self.slow_reads.inc(),
            End::TlsError => self.tls_errors.inc(),
            End::Refused(refusal) => {
                let of = Refusal::EACH.iter().position(|each| discriminant(each) == discriminant(&refusal));
                if let Some(counter) = of.and_then(|at| self.rejected.get(at)) {
                    counter.inc();
                }
                if let Some(rule) = refusal.rule() {
                    self.count_rule(rule, ENFORCE);
                }
            }
        }
    }

    /// How many requests have ended since the start.
    pub fn requests(&self) -> u64 {
        self.durations.iter().filter_map(OnceLock::get).map(Histogram::get_sample_count).fold(0, u64::saturating_add)
    }

    /// How many requests are on their way.
    pub fn active(&self) -> u64 {
        u64::try_from(self.active.get()).unwrap_or(0)
    }

    /// When counting began.
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// Everything in Prometheus' text format 0.0.4.
    pub fn text(&self) -> Vec<u8> {
        let begun = Instant::now();
        let mut out = Vec::with_capacity(16 << 10);
        // Encoding into a Vec fails only on a family without metrics; those that were written stay readable.
        TextEncoder::new().encode(&self.registry.gather(), &mut out).unwrap_or_default();
        let mut sheet = Sheet::default();
        for source in self.sources.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            source(&mut sheet);
        }
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        sheet.gauge("process_start_time_seconds", "Start of the process since the epoch.", &[], started);
        sheet.gauge("palisade_scrape_duration_seconds", "Time to gather this page.", &[], begun.elapsed().as_secs_f64());
        sheet.write(&mut out);
        out
    }

    fn count_rule(&self, rule: Rule, mode: usize) {
        if let Some(counter) = self.rules.get(rule as usize).and_then(|modes| modes.get(mode)) {
            counter.inc();
        }
    }

    /// Histograms exist from their first request on: all of them would be 1,700 series, most of them never used.
    fn duration_of(&self, finished: Finished<'_>) -> Option<&Histogram> {
        let method = METHODS.iter().position(|m| m.as_bytes() == finished.method).unwrap_or(METHODS.len() - 1);
        let class = usize::from(finished.status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        let protocol = match finished.version {
            Version::HTTP_2 => 2,
            Version::HTTP_10 | Version::HTTP_09 => 0,
            _ => 1,
        };
        let cell = self.durations.get((method * CLASSES.len() + class) * PROTOCOLS.len() + protocol)?;
        let labels = [METHODS.get(method)?, CLASSES.get(class)?, PROTOCOLS.get(protocol)?];
        Some(cell.get_or_init(|| self.duration.with_label_values(&labels)))
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("requests", &self.requests()).field("active", &self.active()).finish_non_exhaustive()
    }
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> prometheus::Result<C> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
    registered(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?)
}

/// The methods that are counted by name; the last stands for all others.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "_OTHER"];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const PROTOCOLS: [&str; 3] = ["1.0", "1.1", "2"];
const MODES: [&str; 2] = ["enforce", "observe"];
const ENFORCE: usize = 0;
const OBSERVE: usize = 1;
const SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const BYTES: [f64; 7] = [1024.0, 16384.0, 65536.0, 1048576.0, 16777216.0, 268435456.0, 4294967296.0];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn finished(method: &[u8], status: u16, end: End) -> Finished<'_> {
        let status = StatusCode::from_u16(status).unwrap();
        Finished { method, version: Version::HTTP_11, status, total: Duration::from_millis(7), end, notes: None }
    }

    fn text(metrics: &Metrics) -> String {
        String::from_utf8(metrics.text()).unwrap()
    }

    /// What promtool's lint and the text format ask for, as far as a page shows it.
    fn lint(page: &str) -> usize {
        let (mut families, mut series, mut family) = (BTreeSet::new(), BTreeSet::new(), String::new());
        let mut kind = String::new();
        for line in page.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("help has a text");
                assert!(!help.is_empty() && families.insert(name.to_owned()), "{name} stands twice");
                family = name.to_owned();
            } else if let Some(typed) = line.strip_prefix("# TYPE ") {
                let (name, k) = typed.split_once(' ').unwrap();
                assert_eq!(name, family);
                kind = k.to_owned();
                assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
            } else {
                let (id, value) = line.rsplit_once(' ').expect("a value");
                value.parse::<f64>().unwrap();
                assert!(series.insert(id.to_owned()), "{id} stands twice");
                let name = id.split('{').next().unwrap();
                let base = if kind == "histogram" {
                    name.trim_end_matches("_bucket").trim_end_matches("_sum").trim_end_matches("_count")
                } else {
                    name
                };
                assert_eq!(base, family);
            }
        }
        series.len()
    }

    #[test]
    fn a_request_is_counted_under_its_labels() {
        let metrics = Metrics::new("1.2.3", "abc").unwrap();
        metrics.begin();
        metrics.count(finished(b"GET", 200, End::Ok));
        metrics.count(finished(b"BREW", 400, End::Refused(Refusal::BadFraming(Rule::G10))));
        metrics.count(finished(b"GET", 200, End::SlowRead));
        let page = text(&metrics);
        lint(&page);
        for line in [
            "http_server_request_duration_seconds_count{method=\"GET\",protocol=\"1.1\",status_class=\"2xx\"} 2",
            "http_server_request_duration_seconds_count{method=\"_OTHER\",protocol=\"1.1\",status_class=\"4xx\"} 1",
            "palisade_requests_rejected_total{reason=\"bad_framing\"} 1",
            "palisade_requests_rejected_total{reason=\"slow_read\"} 1",
            "palisade_requests_rejected_total{reason=\"queue_full\"} 0",
            "palisade_rule_hits_total{mode=\"enforce\",rule=\"G10\"} 1",
            "http_server_active_requests 1",
            "palisade_build_info{version=\"1.2.3\",revision=\"abc\"} 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
        assert_eq!((metrics.requests(), metrics.active()), (3, 1));
        metrics.end();
        assert_eq!(metrics.active(), 0);
    }

    #[test]
    fn phases_and_findings_come_from_the_notes() {
        let metrics = Metrics::new("", "").unwrap();
        let notes = Notes::new(Instant::now());
        notes.observe(Rule::T5);
        notes.body_length(2000);
        for moment in [Moment::Complete, Moment::Admitted, Moment::Answered] {
            notes.mark(moment);
        }
        metrics.count(Finished { notes: Some(&notes), ..finished(b"POST", 201, End::Ok) });
        let page = text(&metrics);
        for line in [
            "palisade_rule_hits_total{mode=\"observe\",rule=\"T5\"} 1",
            "palisade_queue_wait_seconds_count 1",
            "http_client_request_duration_seconds_count 1",
            "http_server_request_body_size_bytes_sum 2000",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn the_number_of_series_is_bounded_whatever_clients_send() {
        let metrics = Metrics::new("1", "2").unwrap();
        let methods = METHODS.map(str::as_bytes).into_iter().chain((0..500u32).map(|i| format!("M{i}").leak().as_bytes() as &[u8]));
        for method in methods {
            for status in (100..600).step_by(7) {
                for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
                    metrics.count(Finished { version, ..finished(method, status, End::Ok) });
                }
            }
        }
        for refusal in Refusal::EACH {
            metrics.count(finished(b"GET", 400, refusal.into()));
        }
        let series = lint(&text(&metrics));
        assert!((1700..2000).contains(&series), "{series} series");
    }
}
