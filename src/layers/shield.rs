//! Rack's known weak spots in the head of a request: ranges, lists, types, cookies, queries.
//!
//! Threat: exhaustion, by little input on which Ruby spends seconds (CVE-2022-44570, CVE-2023-27539, CVE-2024-25126,
//! CVE-2024-26141, CVE-2024-26146, CVE-2024-39316, CVE-2025-46727, CVE-2026-34230, CVE-2026-34826), and bytes on which it raises
//! (rule T13). What only asks for a better answer is dropped and noted; what the application would act on is refused: 400 or 431,
//! and the connection is closed. Stands behind `forwarded`, before a byte of the body is read; `shield_body` judges the body.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response,
    header::{ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONTENT_TYPE, COOKIE, IF_RANGE, RANGE},
    request::Parts,
};
use tower_layer::Layer;
use tower_service::Service;

pub use super::shield_config::Config;
use super::{
    byte_ranges,
    content_type::ContentType,
    outcome::Decided,
    parameters::{self, Parameters},
    percent::{Decoder, Utf8},
    target_view,
};
use crate::{
    guard::rule::Rule,
    http::arrival::{Arrival, Notes},
    refusal::Refusal,
    units::Mode,
};

/// Makes [`Shield`].
#[derive(Clone, Debug)]
pub struct ShieldLayer {
    config: Arc<Config>,
}

impl ShieldLayer {
    /// From the configuration.
    pub fn new(config: Config) -> Self {
        ShieldLayer { config: Arc::new(config) }
    }
}

impl<S> Layer<S> for ShieldLayer {
    type Service = Shield<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Shield { inner, config: Arc::clone(&self.config) }
    }
}

/// Keeps from Rack what it cannot take.
#[derive(Clone, Debug)]
pub struct Shield<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S, B, R> Service<Request<B>> for Shield<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Refusal>,
{
    type Response = Response<R>;
    type Error = Refusal;
    type Future = Decided<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        match self.config.judge(&mut head) {
            Ok(()) => Decided::Passed { inner: self.inner.call(Request::from_parts(head, body)) },
            Err(refusal) => Decided::Refused { refusal },
        }
    }
}

impl Config {
    fn judge(&self, head: &mut Parts) -> Result<(), Refusal> {
        let arrival = head.extensions.get::<Arrival>().ok_or(Refusal::Internal)?;
        let notes = &arrival.notes;
        if let Some(query) = target_view::query(&arrival.target) {
            self.query(query, notes)?;
        }
        let (headers, sent) = (&mut head.headers, arrival.sent);
        if sent.may_have(&RANGE) {
            self.ranges(headers, notes);
        }
        for (name, most) in [
            (ACCEPT, self.accept.items),
            (ACCEPT_ENCODING, self.accept.encodings),
            (ACCEPT_LANGUAGE, self.accept.items),
            (ACCEPT_CHARSET, self.accept.items),
        ] {
            if sent.may_have(&name) {
                self.list(headers, &name, most, notes);
            }
        }
        if sent.may_have(&CONTENT_TYPE) {
            self.content_type(headers, notes)?;
        }
        if sent.may_have(&COOKIE) { self.cookies(headers, notes) } else { Ok(()) }
    }

    /// Too many, overlapping or malformed ranges: the whole is asked for instead (RFC 9110 §14.2 allows to ignore Range).
    fn ranges(&self, headers: &mut HeaderMap, notes: &Notes) {
        let limit = &self.range;
        let Some(value) = headers.get(RANGE).filter(|_| limit.mode != Mode::Off) else {
            return;
        };
        if value.len() <= limit.bytes.as_usize() && byte_ranges::is_sane(value.as_bytes(), limit.count) {
            return;
        }
        notes.observe(Rule::T13);
        if limit.mode == Mode::Enforce {
            headers.remove(RANGE);
            headers.remove(IF_RANGE);
        }
    }

    /// A preference that is too long or has too many members is no preference.
    fn list(&self, headers: &mut HeaderMap, name: &HeaderName, most: usize, notes: &Notes) {
        let limit = &self.accept;
        if limit.mode == Mode::Off || !headers.contains_key(name) {
            return;
        }
        let (mut items, mut bytes) = (0_usize, 0_usize);
        for line in headers.get_all(name) {
            items = items.saturating_add(memchr::memchr_iter(b',', line.as_bytes()).count()).saturating_add(1);
            bytes = bytes.saturating_add(line.len());
        }
        if items <= most && bytes <= limit.bytes.as_usize() {
            return;
        }
        notes.observe(Rule::T13);
        if limit.mode == Mode::Enforce {
            headers.remove(name);
        }
    }

    fn content_type(&self, headers: &mut HeaderMap, notes: &Notes) -> Result<(), Refusal> {
        let limit = &self.content_type;
        let Some(value) = headers.get(CONTENT_TYPE).filter(|_| limit.mode != Mode::Off) else {
            return Ok(());
        };
        if value.is_empty() {
            headers.remove(CONTENT_TYPE);
            return Ok(());
        }
        let read = ContentType::parse(value.as_bytes(), limit.boundary).filter(|_| value.len() <= limit.bytes.as_usize());
        let fits = read.is_some_and(|read| read.boundary.is_some() || !read.media.eq_ignore_ascii_case(b"multipart/form-data"));
        if fits { Ok(()) } else { found(limit.mode, Refusal::Denied(Rule::T13), notes) }
    }

    fn cookies(&self, headers: &HeaderMap, notes: &Notes) -> Result<(), Refusal> {
        let limit = &self.cookies;
        if limit.mode == Mode::Off {
            return Ok(());
        }
        let (mut pairs, mut bytes) = (0_usize, 0_usize);
        for line in headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes) {
            pairs = pairs.saturating_add(memchr::memchr_iter(b';', line).count()).saturating_add(1);
            bytes = bytes.saturating_add(line.len());
        }
        if pairs > limit.pairs || bytes > limit.bytes.as_usize() {
            return found(limit.mode, Refusal::HeaderTooLarge(Rule::T13Size), notes);
        }
        Ok(())
    }

    fn query(&self, query: &[u8], notes: &Notes) -> Result<(), Refusal> {
        let limit = &self.query;
        if limit.mode != Mode::Off {
            let bounds = parameters::Bounds { count: limit.parameters, depth: limit.depth };
            if Parameters::new(bounds).feed(query).is_err() {
                found(limit.mode, Refusal::BadTarget(Rule::T13Size), notes)?;
            }
        }
        if limit.encoding != Mode::Off && !is_text(query) {
            found(limit.encoding, Refusal::BadTarget(Rule::T13), notes)?;
        }
        Ok(())
    }
}

/// Percent-encoded UTF-8 without NUL: anything else is an exception in Ruby.
fn is_text(query: &[u8]) -> bool {
    if memchr::memchr(b'%', query).is_none() {
        return true;
    }
    let mut utf8 = Utf8::new();
    Decoder::new(query).all(|step| step.is_ok_and(|decoded| decoded.byte != 0 && utf8.push(decoded.byte))) && utf8.is_complete()
}

/// Refuses under `enforce`, notes under `observe`.
fn found(mode: Mode, refusal: Refusal, notes: &Notes) -> Result<(), Refusal> {
    match mode {
        Mode::Enforce => Err(refusal),
        Mode::Observe => {
            notes.observe(Rule::T13);
            Ok(())
        }
        Mode::Off => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fixture, *};

    fn judge(config: &Config, target: &str, fields: &[(&str, &str)]) -> Result<Parts, Refusal> {
        let mut request = fixture::arrived(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let mut head = request.body(()).unwrap().into_parts().0;
        config.judge(&mut head).map(|()| head)
    }

    fn strict(target: &str, fields: &[(&str, &str)]) -> Result<Parts, Refusal> {
        judge(&Config::default(), target, fields)
    }

    /// The field is gone, the request goes on, and the rule is noted.
    fn drops(name: &str, value: &str) {
        let head = strict("/", &[(name, value)]).unwrap();
        assert!(!head.headers.contains_key(name), "{name}: {value:.60}");
        assert_eq!(head.extensions.get::<Arrival>().unwrap().notes.observed().collect::<Vec<_>>(), [Rule::T13]);
    }

    #[test]
    fn what_browsers_send_passes_untouched() {
        let fields = [
            ("range", "bytes=0-9,20-29,-5"),
            ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"),
            ("accept-encoding", "gzip, deflate, br, zstd"),
            ("accept-language", "de,en-US;q=0.7,en;q=0.3"),
            ("content-type", "multipart/form-data; boundary=\"a b:c\""),
            ("cookie", "_session=abc%3D%3D--def; theme=dark"),
        ];
        let head = strict("/a?q=%E6%97%A5&x[]=1&y[a][b]=2&n=%0D%0A&next=https://a.example/?b={c}|^", &fields).unwrap();
        assert_eq!(head.headers.len(), fields.len());
        assert_eq!(head.extensions.get::<Arrival>().unwrap().notes.observed().count(), 0);
        assert!(strict("/", &[("cookie", &"s".repeat(6000))]).is_ok());
    }

    #[test]
    fn cve_2022_44570_range_of_digits_without_dash() {
        drops("range", &format!("bytes={}", "1".repeat(7000)));
        drops("range", &format!("bytes={}x", " ".repeat(4000)));
    }

    #[test]
    fn cve_2024_26141_and_cve_2026_34826_many_overlapping_ranges() {
        drops("range", &format!("bytes={}", ["0-"; 20].join(",")));
        drops("range", "bytes=0-,0-");
        let head = strict("/", &[("range", "bytes=0-,0-"), ("if-range", "\"x\"")]).unwrap();
        assert!(head.headers.is_empty());
    }

    #[test]
    fn cve_2024_26146_and_cve_2023_27539_and_cve_2024_39316_lists_of_blanks() {
        drops("accept", &format!("a/b{};", " ".repeat(5000)));
        drops("accept-encoding", &format!("gzip{};q=1", " ".repeat(7000)));
    }

    #[test]
    fn cve_2026_34230_accept_encoding_of_many_members() {
        drops("accept-encoding", &(0..1500).map(|i| format!("z{i}")).collect::<Vec<_>>().join(","));
        drops("accept-encoding", &["*;q=0.5"; 17].join(","));
        drops("accept-language", &["a"; 65].join(","));
    }

    #[test]
    fn cve_2024_25126_content_type_of_blanks() {
        let value = format!("text/plain{};x", " ".repeat(5000));
        assert_eq!(strict("/", &[("content-type", &value)]).err(), Some(Refusal::Denied(Rule::T13)));
    }

    #[test]
    fn cve_2026_26961_and_other_types_with_two_readings() {
        for value in [
            ";;;,,",
            "multipart/form-data",
            "multipart/form-data; boundary=a; boundary=b",
            &format!("multipart/form-data; boundary={}", "b".repeat(99)),
        ] {
            assert_eq!(strict("/", &[("content-type", value)]).err(), Some(Refusal::Denied(Rule::T13)), "{value}");
        }
        assert!(strict("/", &[("content-type", "")]).unwrap().headers.is_empty());
    }

    #[test]
    fn cve_2025_46727_any_number_of_parameters() {
        let too_many = Some(Refusal::BadTarget(Rule::T13Size));
        assert_eq!(strict(&format!("/?{}", "a&".repeat(4097)), &[]).err(), too_many);
        assert_eq!(strict(&format!("/?{}", "a;".repeat(4097)), &[]).err(), too_many);
        assert_eq!(strict(&format!("/?a{}=1", "[x]".repeat(33)), &[]).err(), too_many);
        assert_eq!(strict(&format!("/?a{}=1", "%5Bx%5D".repeat(33)), &[]).err(), too_many);
    }

    #[test]
    fn a_query_that_ruby_cannot_read_is_refused() {
        for query in ["a=%ff%fe", "a=%00", "a=%zz", "a=%", "a=%c0%af", "a=%E6%97"] {
            assert_eq!(strict(&format!("/?{query}"), &[]).err(), Some(Refusal::BadTarget(Rule::T13)), "{query}");
        }
        let keep: Config = serde_json::from_str(r#"{"query": {"encoding": "off"}}"#).unwrap();
        assert!(judge(&keep, "/?a=%ff", &[]).is_ok());
    }

    #[test]
    fn cookies_are_counted_over_all_lines() {
        let many = (0..181).map(|i| format!("c{i}=1")).collect::<Vec<_>>().join("; ");
        assert_eq!(strict("/", &[("cookie", &many)]).err(), Some(Refusal::HeaderTooLarge(Rule::T13Size)));
        assert_eq!(strict("/", &[("cookie", &"s".repeat(9000))]).err(), Some(Refusal::HeaderTooLarge(Rule::T13Size)));
    }

    #[test]
    fn observe_notes_and_changes_nothing() {
        let json = r#"{"range": {"mode": "observe"}, "content_type": {"mode": "observe"}, "query": {"mode": "observe", "encoding": "observe"},
            "cookies": {"mode": "observe"}, "accept": {"mode": "observe"}}"#;
        let observe: Config = serde_json::from_str(json).unwrap();
        let many = "a,".repeat(100);
        let fields = [("range", "bytes=0-,0-"), ("content-type", ";;"), ("accept", &*many)];
        let head = judge(&observe, "/?%00", &fields).unwrap();
        assert_eq!(head.headers.len(), 3);
        assert_eq!(head.extensions.get::<Arrival>().unwrap().notes.observed().collect::<Vec<_>>(), [Rule::T13]);
    }
}
