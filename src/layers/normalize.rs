//! One spelling of a request from here on: one target form, one meaning for each field.
//!
//! Threat: smuggling and exposure. What two parsers could read differently is refused (400, the connection is closed); what is for
//! this hop only, or is never used honestly, is taken away and noted. Rules T1, T2 (target), T4 to T7, T9, T10, T12, T14;
//! RFC 9110 §5.3, §7.6.1, §9.1, §10.1.1; RFC 9112 §3.2; RFC 9113 §8.2.2. Stands behind `host`, before `forwarded`, as the
//! client's fields must be gone before ours are set.
//!
//! Mode `monitor` lets pass, and notes, what has one reading all the same: the path policy, the list of methods, an
//! unknown expectation. What has two readings is refused in either mode.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version, header, request::Parts};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    field_policy::{Kind, imitates_framing, is_protected, is_trust, kind},
    handshake::{self, Extended, Upgrade},
    outcome::Decided,
    path_policy::PathPolicy,
    target_view,
};
use crate::{
    guard::rule::Rule,
    http::arrival::{Arrival, Names, Notes},
    refusal::Refusal,
    units::OneOrMany,
};

/// `[framing]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `strict`, or `monitor`, which notes what strict would refuse where the request has one reading all the same.
    /// Default: strict.
    pub mode: Strictness,
    /// Fields with `_` in their name: `drop`, `reject` or `keep`. Default: drop, as Puma reads `X_Y` as `X-Y`.
    pub underscores: Underscores,
    /// Names with `_` that pass under `drop` and `reject`, such as `api_key`. Default: none.
    pub underscore_names: OneOrMany<String>,
    /// What a path may hold.
    pub path: PathPolicy,
    /// Methods that pass; empty: all but TRACE, TRACK, CONNECT and PRI, which never do. Default: empty.
    pub methods: OneOrMany<String>,
    /// Paths that may be upgraded to WebSocket, with all below them; empty: all. Default: empty.
    pub websocket_paths: OneOrMany<String>,
    /// Fields of a request after cookies were joined, from `limits.header_count`. Default: 100.
    #[serde(skip)]
    pub fields: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            mode: Strictness::Strict,
            underscores: Underscores::Drop,
            underscore_names: OneOrMany::default(),
            path: PathPolicy::default(),
            methods: OneOrMany::default(),
            websocket_paths: OneOrMany::default(),
            fields: 100,
        }
    }
}

/// How much is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Strictness {
    /// Everything that policy does not want.
    Strict,
    /// Only what has two readings.
    Monitor,
}

/// What happens to names with an underscore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Underscores {
    /// The field is dropped.
    Drop,
    /// The request is refused.
    Reject,
    /// The field passes, unless it imitates one that frames, routes, authenticates or stands beside it.
    Keep,
}

/// Makes [`Normalize`].
#[derive(Clone, Debug)]
pub struct NormalizeLayer {
    config: Arc<Config>,
}

impl NormalizeLayer {
    /// From the configuration.
    pub fn new(config: Config) -> Self {
        NormalizeLayer { config: Arc::new(config) }
    }
}

impl<S> Layer<S> for NormalizeLayer {
    type Service = Normalize<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Normalize { inner, config: Arc::clone(&self.config) }
    }
}

/// Gives a request its one spelling, or refuses it.
#[derive(Clone, Debug)]
pub struct Normalize<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S, B, R> Service<Request<B>> for Normalize<S>
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
        match self.config.normalize(&mut head) {
            Ok(()) => Decided::Passed { inner: self.inner.call(Request::from_parts(head, body)) },
            Err(refusal) => Decided::Refused { refusal },
        }
    }
}

impl Config {
    fn normalize(&self, head: &mut Parts) -> Result<(), Refusal> {
        let arrival = head.extensions.get::<Arrival>().ok_or(Refusal::Internal)?;
        let (notes, sent) = (Arc::clone(&arrival.notes), arrival.sent);
        self.method(&head.method, &notes)?;
        let reduced = self.target(&head.method, &arrival.target, &notes)?;
        if let (Some(target), Some(arrival)) = (reduced, head.extensions.get_mut::<Arrival>()) {
            arrival.target = target;
        }
        if self.fields(head, sent, &notes)? {
            head.extensions.insert(Upgrade);
        }
        Ok(())
    }

    /// T1. Puma reads fewer methods than RFC 9110 §9.1 allows: of others it answers 400 on a new connection and nothing at all on a
    /// used one (5.6.5, measured), where they would hold a thread until the response timeout. So they are refused in either mode.
    fn method(&self, method: &Method, notes: &Notes) -> Result<(), Refusal> {
        match method.as_str() {
            "TRACE" | "TRACK" => Err(Refusal::Denied(Rule::T1)),
            "CONNECT" | "PRI" => Err(Refusal::Denied(Rule::T1Unknown)),
            name if !puma_reads(name) => Err(Refusal::Denied(Rule::T1Unknown)),
            name if self.methods.0.is_empty() || self.methods.0.iter().any(|m| m == name) => Ok(()),
            _ => self.unwanted(Refusal::Denied(Rule::T1), notes),
        }
    }

    /// T2, T4, and for HTTP/2 what the guard sees to in HTTP/1 (G8). `None` where the target stays as it is.
    fn target(&self, method: &Method, target: &Bytes, notes: &Notes) -> Result<Option<Bytes>, Refusal> {
        if target.iter().any(|b| !matches!(b, 0x21..=0x7e) || matches!(b, b'"' | b'#' | b'<' | b'>')) {
            return Err(Refusal::BadTarget(Rule::G8));
        }
        let reduced = match target.first() {
            Some(b'/') => None,
            Some(b'*') if target.len() == 1 && method == Method::OPTIONS => return Ok(None),
            Some(_) | None => {
                let absolute = target_view::absolute(target).ok_or(Refusal::BadTarget(Rule::T2))?;
                if absolute.rest.is_empty() && method == Method::OPTIONS {
                    return Ok(Some(Bytes::from_static(b"*")));
                }
                Some(target_view::origin(target, absolute))
            }
        };
        match self.path.apply(reduced.as_ref().unwrap_or(target)) {
            Ok(rewritten) => Ok(rewritten.or(reduced)),
            Err(_) => self.unwanted(Refusal::BadTarget(Rule::T4), notes).map(|()| reduced),
        }
    }

    /// The fields, in one pass; true for a WebSocket handshake.
    fn fields(&self, head: &mut Parts, sent: Names, notes: &Notes) -> Result<bool, Refusal> {
        let two = head.version == Version::HTTP_2;
        let names = sent.may_have(&header::CONNECTION) && !two;
        let options = if names { connection_options(&head.headers)? } else { Options::default() };
        let extended = two && head.extensions.get::<Extended>().is_some();
        let well_formed = match extended {
            true => handshake::is_extended(&head.method, &head.headers),
            false => options.upgrade && handshake::is_websocket(&head.method, head.version, &head.headers),
        };
        let websocket = well_formed && self.may_upgrade(head.extensions.get::<Arrival>().map(|a| &a.target));
        if extended && !websocket {
            // It cannot go on as a plain request: its client would read any success as an open tunnel.
            return Err(Refusal::Denied(Rule::T12));
        }
        let mut gone: SmallVec<[HeaderName; 8]> = SmallVec::new();
        let repeated = head.headers.keys_len() < head.headers.len();
        let mut cookies = 0_usize;
        for (name, value) in &head.headers {
            if two {
                well_formed_in_http_2(name, value)?;
            }
            let drop = match kind(name.as_str()) {
                Kind::Plain => false,
                Kind::Singleton => {
                    if repeated && head.headers.get_all(name).iter().nth(1).is_some() {
                        return Err(Refusal::BadFraming(Rule::T9));
                    }
                    false
                }
                Kind::Cookie => {
                    cookies = cookies.saturating_add(1);
                    false
                }
                Kind::Expect => {
                    self.expect(head.version, value, notes)?;
                    true
                }
                Kind::HopByHop => true,
                Kind::Upgrade => {
                    if !websocket && *name == header::UPGRADE {
                        notes.observe(Rule::T12);
                    }
                    !websocket
                }
                Kind::Underscore => self.underscore(name, &head.headers, notes)?,
                Kind::Foreign => {
                    notes.observe(Rule::T6);
                    true
                }
            };
            if drop && gone.last() != Some(name) {
                gone.push(name.clone());
            }
        }
        for name in gone {
            head.headers.remove(name);
        }
        for name in options.named {
            head.headers.remove(name);
        }
        if extended {
            handshake::complete(&mut head.headers);
        }
        if cookies > 1 {
            join_cookies(&mut head.headers)?;
        }
        if head.headers.len() > self.fields
            && head.headers.len().saturating_sub(usize::from(head.headers.contains_key(X_REQUEST_ID))) > self.fields
        {
            return Err(Refusal::HeaderTooLarge(Rule::G9Size));
        }
        Ok(websocket)
    }

    fn may_upgrade(&self, target: Option<&Bytes>) -> bool {
        let paths = &self.websocket_paths.0;
        paths.is_empty()
            || target.is_some_and(|target| {
                let path = target_view::understood(target);
                paths
                    .iter()
                    .any(|allowed| path.strip_prefix(allowed.as_bytes()).is_some_and(|rest| rest.first().is_none_or(|b| *b == b'/')))
            })
    }

    /// T10. The front answers `100-continue`; HTTP/1.0 has no expectations.
    fn expect(&self, version: Version, value: &HeaderValue, notes: &Notes) -> Result<(), Refusal> {
        if version == Version::HTTP_10 || value.as_bytes().eq_ignore_ascii_case(b"100-continue") {
            return Ok(());
        }
        self.unwanted(Refusal::Denied(Rule::T10), notes)
    }

    /// T5: whether the field is dropped.
    fn underscore(&self, name: &HeaderName, headers: &HeaderMap, notes: &Notes) -> Result<bool, Refusal> {
        let text = name.as_str();
        if imitates_framing(text) {
            return Err(Refusal::BadFraming(Rule::G18));
        }
        notes.observe(Rule::T5);
        let listed = self.underscore_names.0.iter().any(|allowed| allowed.eq_ignore_ascii_case(text));
        let wanted = listed || self.underscores == Underscores::Keep;
        if !wanted && self.underscores == Underscores::Reject {
            return self.unwanted(Refusal::BadFraming(Rule::T5), notes).map(|()| true);
        }
        let bytes = text.as_bytes();
        Ok(!wanted || is_trust(bytes) || is_protected(bytes) || has_twin(text, headers))
    }

    /// Refuses in `strict`, notes in `monitor`. Only for requests that have one reading.
    fn unwanted(&self, refusal: Refusal, notes: &Notes) -> Result<(), Refusal> {
        match self.mode {
            Strictness::Strict => Err(refusal),
            Strictness::Monitor => {
                if let Some(rule) = refusal.rule() {
                    notes.observe(rule);
                }
                Ok(())
            }
        }
    }
}

/// Whether Puma's parser takes the method.
fn puma_reads(method: &str) -> bool {
    (1..=PUMAS_METHOD).contains(&method.len())
        && method.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'$' | b'-' | b'_' | b'.'))
}

/// What `Connection` says.
#[derive(Debug, Default)]
struct Options {
    upgrade: bool,
    named: SmallVec<[HeaderName; 2]>,
}

/// T7: reads `Connection`; naming a field that frames, routes or authenticates is an attempt to have it stripped.
fn connection_options(headers: &HeaderMap) -> Result<Options, Refusal> {
    let mut options = Options::default();
    let mut count = 0_usize;
    for line in headers.get_all(header::CONNECTION) {
        for option in line.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|option| !option.is_empty()) {
            count = count.saturating_add(1);
            if count > MAX_OPTIONS || is_protected(option) {
                return Err(Refusal::BadFraming(Rule::T7));
            }
            if option.eq_ignore_ascii_case(b"upgrade") {
                options.upgrade = true;
            } else if !option.eq_ignore_ascii_case(b"keep-alive") && !option.eq_ignore_ascii_case(b"close") {
                options.named.push(HeaderName::from_bytes(option).map_err(|_| Refusal::BadFraming(Rule::T7))?);
            }
        }
    }
    Ok(options)
}

/// T14: RFC 9113 §8.2.1 and §8.2.2.
fn well_formed_in_http_2(name: &HeaderName, value: &HeaderValue) -> Result<(), Refusal> {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let of_connection = match name.as_str() {
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" | "http2-settings" => true,
        "te" => !value.as_bytes().eq_ignore_ascii_case(b"trailers"),
        _ => false,
    };
    if of_connection || blank(value.as_bytes().first()) || blank(value.as_bytes().last()) {
        return Err(Refusal::BadFraming(Rule::T14));
    }
    Ok(())
}

/// Another field has the same name once underscores are dashes.
fn has_twin(name: &str, headers: &HeaderMap) -> bool {
    headers.keys().any(|other| {
        let other = other.as_str();
        other != name && other.len() == name.len() && other.bytes().zip(name.bytes()).all(|(a, b)| dashed(a) == dashed(b))
    })
}

fn dashed(byte: u8) -> u8 {
    if byte == b'_' { b'-' } else { byte }
}

/// RFC 9113 §8.2.3; Puma joins lines with a comma, and Rack then loses every cookie but the first.
fn join_cookies(headers: &mut HeaderMap) -> Result<(), Refusal> {
    let mut joined = BytesMut::new();
    for crumb in headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).filter(|crumb| !crumb.is_empty()) {
        if !joined.is_empty() {
            joined.put_slice(b"; ");
        }
        joined.put_slice(crumb);
    }
    let value = HeaderValue::from_maybe_shared(joined.freeze()).map_err(|_| Refusal::BadFraming(Rule::T14))?;
    headers.insert(header::COOKIE, value);
    Ok(())
}

/// Options that a `Connection` may name; each costs a look-up.
const MAX_OPTIONS: usize = 32;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest method that Puma reads.
const PUMAS_METHOD: usize = 20;

#[cfg(test)]
mod tests {
    use super::{super::fixture, *};

    struct Case {
        config: Config,
        version: Version,
    }

    impl Case {
        fn strict() -> Self {
            Case { config: Config::default(), version: Version::HTTP_11 }
        }

        fn monitor() -> Self {
            Case { config: Config { mode: Strictness::Monitor, ..Config::default() }, ..Case::strict() }
        }

        fn two() -> Self {
            Case { version: Version::HTTP_2, ..Case::strict() }
        }

        fn run(&self, method: &str, target: &str, fields: &[(&str, &str)]) -> Result<Parts, Refusal> {
            let mut request = fixture::arrived(target).method(method).version(self.version);
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let mut head = request.body(()).unwrap().into_parts().0;
            self.config.normalize(&mut head)?;
            Ok(head)
        }

        fn fields(&self, fields: &[(&str, &str)]) -> Result<Vec<String>, Refusal> {
            let head = self.run("GET", "/", fields)?;
            let mut list: Vec<_> = head.headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
            list.sort();
            Ok(list)
        }

        fn target(&self, method: &str, target: &str) -> Result<String, Refusal> {
            let head = self.run(method, target, &[])?;
            Ok(String::from_utf8(head.extensions.get::<Arrival>().unwrap().target.to_vec()).unwrap())
        }
    }

    fn observed(head: &Parts) -> Vec<Rule> {
        head.extensions.get::<Arrival>().unwrap().notes.observed().collect()
    }

    fn extended(config: Config, fields: &[(&str, &str)]) -> Result<Parts, Refusal> {
        let mut request = fixture::arrived("/cable").method("GET").version(Version::HTTP_2).extension(Extended);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let mut head = request.body(()).unwrap().into_parts().0;
        config.normalize(&mut head)?;
        Ok(head)
    }

    #[test]
    fn an_extended_connect_becomes_a_handshake_or_is_refused() {
        let fields = [("sec-websocket-version", "13"), ("sec-websocket-protocol", "actioncable-v1-json"), ("sec-websocket-key", "own")];
        let head = extended(Config::default(), &fields).unwrap();
        assert!(head.extensions.get::<Upgrade>().is_some());
        assert!(handshake::is_websocket(&head.method, Version::HTTP_11, &head.headers), "{:?}", head.headers);
        assert_eq!(head.headers.get("sec-websocket-protocol").unwrap(), "actioncable-v1-json");
        let elsewhere = Config { websocket_paths: OneOrMany(vec!["/other".into()]), ..Config::default() };
        let with_body = [fields[0], ("content-length", "5")];
        for (config, fields) in [(elsewhere, &fields[..1]), (Config::default(), &fields[1..2]), (Config::default(), &with_body)] {
            assert_eq!(extended(config, fields).err(), Some(Refusal::Denied(Rule::T12)));
        }
    }

    #[test]
    fn tunnels_and_echoes_are_refused_and_unusual_methods_pass() {
        let strict = Case::strict();
        for (method, rule) in [("TRACE", Rule::T1), ("TRACK", Rule::T1), ("CONNECT", Rule::T1Unknown), ("PRI", Rule::T1Unknown)] {
            assert_eq!(strict.run(method, "/", &[]).err(), Some(Refusal::Denied(rule)), "{method}");
        }
        for method in ["QUERY", "PROPFIND", "REPORT", "MKCALENDAR", "LINK", "M-SEARCH", "A$_.9", "AAAAAAAAAAAAAAAAAAAA"] {
            assert!(strict.run(method, "/", &[]).is_ok(), "{method}");
        }
        let monitor = Case { config: Config { mode: Strictness::Monitor, ..Config::default() }, ..Case::strict() };
        for method in ["get", "Get", "A!", "A|B", "AAAAAAAAAAAAAAAAAAAAA"] {
            assert_eq!(strict.run(method, "/", &[]).err(), Some(Refusal::Denied(Rule::T1Unknown)), "{method}");
            assert_eq!(monitor.run(method, "/", &[]).err(), Some(Refusal::Denied(Rule::T1Unknown)), "{method}");
        }
        let config = Config { methods: OneOrMany(vec!["GET".into()]), ..Config::default() };
        let listed = Case { config, ..Case::strict() };
        assert_eq!(listed.run("POST", "/", &[]).err(), Some(Refusal::Denied(Rule::T1)));
    }

    #[test]
    fn every_target_is_reduced_to_origin_form() {
        let strict = Case::strict();
        assert_eq!(strict.target("GET", "http://lab.example/a?b").unwrap(), "/a?b");
        assert_eq!(strict.target("GET", "http://lab.example").unwrap(), "/");
        assert_eq!(strict.target("OPTIONS", "http://lab.example").unwrap(), "*");
        assert_eq!(strict.target("OPTIONS", "*").unwrap(), "*");
        assert_eq!(strict.target("GET", "/a?[]{}|^`'").unwrap(), "/a?[]{}|^`'");
        for bad in ["*", "lab.example:80/", "@evil.example/", "", "a"] {
            assert_eq!(strict.target("GET", bad).err(), Some(Refusal::BadTarget(Rule::T2)), "{bad}");
        }
        for bad in ["/a#b", "/a\"", "/<", "/é", "/a b", "/a\u{7f}"] {
            assert_eq!(strict.target("GET", bad).err(), Some(Refusal::BadTarget(Rule::G8)), "{bad}");
        }
        assert_eq!(strict.target("GET", "http://lab.example/../a").err(), Some(Refusal::BadTarget(Rule::T4)));
    }

    #[test]
    fn monitor_notes_what_has_one_reading_and_refuses_what_has_two() {
        let monitor = Case::monitor();
        let head = monitor.run("GET", "/a/../b", &[("expect", "a miracle")]).unwrap();
        assert_eq!(observed(&head), [Rule::T4, Rule::T10]);
        assert_eq!(head.extensions.get::<Arrival>().unwrap().target, "/a/../b");
        assert!(!head.headers.contains_key("expect"));
        assert_eq!(monitor.fields(&[("range", "a"), ("range", "b")]), Err(Refusal::BadFraming(Rule::T9)));
        assert_eq!(monitor.fields(&[("connection", "cookie")]), Err(Refusal::BadFraming(Rule::T7)));
    }

    #[test]
    fn what_is_for_this_hop_ends_here() {
        let left = Case::strict().fields(&[
            ("connection", "close, X-Evil-Hop"),
            ("x-evil-hop", "1"),
            ("keep-alive", "timeout=999"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic eA=="),
            ("te", "trailers"),
            ("trailer", "X-Sum"),
            ("http2-settings", "AAMAAABk"),
            ("upgrade", "h2c"),
            ("accept", "text/html"),
            ("accept", "application/json"),
        ]);
        assert_eq!(left.unwrap(), ["accept: application/json", "accept: text/html"]);
    }

    #[test]
    fn connection_must_not_name_what_frames_routes_or_authenticates() {
        for name in
            ["Content-Length", "cookie", "Authorization", "HOST", "transfer_encoding", "X-Forwarded-For", "x-real-ip", "a b", "\"x\""]
        {
            let fields = [("connection", format!("close, {name}"))];
            let fields: Vec<_> = fields.iter().map(|(n, v)| (*n, v.as_str())).collect();
            assert_eq!(Case::strict().fields(&fields), Err(Refusal::BadFraming(Rule::T7)), "{name}");
        }
    }

    #[test]
    fn an_underscore_never_makes_a_second_spelling() {
        let fields = [("api_key", "k"), ("api-key", "j"), ("x_y", "1"), ("http_host", "evil")];
        assert_eq!(Case::strict().fields(&fields).unwrap(), ["api-key: j"]);
        let config = Config { underscore_names: OneOrMany(vec!["Api_Key".into()]), ..Config::default() };
        let listed = Case { config, ..Case::strict() };
        assert_eq!(listed.fields(&[("api_key", "k"), ("x_y", "1")]).unwrap(), ["api_key: k"]);
        assert_eq!(listed.fields(&fields).unwrap(), ["api-key: j"]);
        let keep = Case { config: Config { underscores: Underscores::Keep, ..Config::default() }, ..Case::strict() };
        assert_eq!(keep.fields(&[("x_y", "1"), ("x_forwarded_for", "6.6.6.6"), ("a_b", "1"), ("a-b", "2")]).unwrap(), ["a-b: 2", "x_y: 1"]);
        let reject = Case { config: Config { underscores: Underscores::Reject, ..Config::default() }, ..Case::strict() };
        assert_eq!(reject.fields(&[("x_y", "1")]), Err(Refusal::BadFraming(Rule::T5)));
        assert_eq!(Case::two().fields(&[("transfer_encoding", "chunked")]), Err(Refusal::BadFraming(Rule::G18)));
    }

    #[test]
    fn names_that_nobody_uses_are_dropped_and_noted() {
        let head = Case::strict().run("GET", "/", &[("x-!#$%&'*+.^`|~1", "v"), ("x_y", "1")]).unwrap();
        assert!(head.headers.is_empty());
        assert_eq!(observed(&head), [Rule::T5, Rule::T6]);
    }

    #[test]
    fn what_may_stand_once_stands_once() {
        for name in ["content-type", "authorization", "range", "if-range", "if-modified-since", "content-encoding"] {
            assert_eq!(Case::strict().fields(&[(name, "a"), (name, "a")]), Err(Refusal::BadFraming(Rule::T9)), "{name}");
        }
        assert_eq!(Case::strict().fields(&[("if-none-match", "\"a\""), ("if-none-match", "\"b\"")]).unwrap().len(), 2);
    }

    #[test]
    fn the_only_expectation_is_100_continue() {
        assert!(Case::strict().fields(&[("expect", "100-Continue")]).unwrap().is_empty());
        assert_eq!(Case::strict().fields(&[("expect", "y 100-continue")]), Err(Refusal::Denied(Rule::T10)));
        assert!(Case { version: Version::HTTP_10, ..Case::strict() }.fields(&[("expect", "x")]).unwrap().is_empty());
    }

    const WEBSOCKET: [(&str, &str); 3] =
        [("upgrade", "websocket"), ("sec-websocket-version", "13"), ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")];

    #[test]
    fn a_websocket_handshake_keeps_its_fields_and_is_marked() {
        let fields = [&WEBSOCKET[..], &[("connection", "keep-alive, Upgrade")]].concat();
        let head = Case::strict().run("GET", "/cable", &fields).unwrap();
        assert!(head.extensions.get::<Upgrade>().is_some());
        assert_eq!(head.headers.len(), 3);
        let config = Config { websocket_paths: OneOrMany(vec!["/cable".into()]), ..Config::default() };
        let routed = Case { config, ..Case::strict() };
        assert!(routed.run("GET", "/cable", &fields).unwrap().extensions.get::<Upgrade>().is_some());
        assert!(routed.run("GET", "/cables", &fields).unwrap().extensions.get::<Upgrade>().is_none());
    }

    #[test]
    fn any_other_upgrade_goes_on_as_plain_http() {
        let without_option = WEBSOCKET.to_vec();
        let with_body = [&WEBSOCKET[..], &[("connection", "upgrade"), ("content-length", "5")]].concat();
        for (version, fields) in
            [(Version::HTTP_11, without_option.clone()), (Version::HTTP_11, with_body), (Version::HTTP_10, without_option)]
        {
            let head = Case { version, ..Case::strict() }.run("GET", "/", &fields).unwrap();
            assert!(head.extensions.get::<Upgrade>().is_none());
            assert!(!head.headers.contains_key("upgrade") && !head.headers.contains_key("sec-websocket-key"));
            assert_eq!(observed(&head), [Rule::T12]);
        }
    }

    #[test]
    fn cookie_crumbs_are_joined_in_their_order() {
        let crumbs = [("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")];
        assert_eq!(Case::two().fields(&crumbs).unwrap(), ["cookie: a=1; b=2; c=3"]);
        assert_eq!(Case::strict().fields(&crumbs).unwrap(), ["cookie: a=1; b=2; c=3"]);
    }

    #[test]
    fn http_2_has_no_fields_of_a_connection() {
        for (name, value) in [
            ("connection", "close"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "identity"),
            ("upgrade", "h2c"),
            ("te", "gzip"),
            ("x-a", " b"),
            ("x-a", "b\t"),
        ] {
            assert_eq!(Case::two().fields(&[(name, value)]), Err(Refusal::BadFraming(Rule::T14)), "{name}: {value}");
        }
        assert!(Case::two().fields(&[("te", "trailers")]).unwrap().is_empty());
    }

    #[test]
    fn too_many_fields_are_431() {
        let names: Vec<_> = (0..101).map(|i| format!("x-{i}")).collect();
        let fields: Vec<_> = names.iter().map(|n| (n.as_str(), "v")).collect();
        assert_eq!(Case::two().fields(&fields), Err(Refusal::HeaderTooLarge(Rule::G9Size)));
        assert!(Case::two().fields(&fields[..100]).is_ok());
    }
}
