//! The last word on framing: writes the head that Puma gets, byte by byte.
//!
//! Threat: smuggling. Puma 5 to 8 read transfer codings, repeated lengths and odd names in different ways (rule
//! T11), so none of them is ever sent: whatever came in, over whatever version, leaves in this grammar, and a head that would not
//! fit it is never written. Stands last before `upstream`, which takes nothing else.
//!
//! ```text
//! head      = method SP target SP "HTTP/1.1" CRLF host *field [ length ] [ upgrade ] [ start ] CRLF
//! method    = 1*tchar
//! target    = "/" *uchar / "*"                            ; "*" only with OPTIONS
//! uchar     = %x21 / %x24-3B / %x3D / %x3F-7E             ; no control, blank, DQUOTE, "#", "<", ">"
//! host      = "host: " 1*hchar CRLF                       ; always the first field, always once
//! hchar     = ALPHA / DIGIT / "-" / "." / "_" / "~" / ":" / "[" / "]"
//! field     = name ": " [ value ] CRLF                    ; never a name of the other rules, nor of one connection only
//! name      = 1*( %x61-7A / DIGIT / "-" / "_" )           ; lower case
//! value     = vchar [ *( vchar / SP / HTAB ) vchar ]      ; vchar = %x21-7E / %x80-FF
//! length    = "content-length: " ( "0" / ( %x31-39 *DIGIT ) ) CRLF
//! upgrade   = "connection: Upgrade" CRLF "upgrade: websocket" CRLF
//! start     = "x-request-start: t=" 1*DIGIT "." 3DIGIT CRLF
//! ```
//!
//! `length` stands exactly once where there is a body, and as 0 with POST, PUT and PATCH without one. `upgrade` stands only in a
//! WebSocket handshake without a body.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderMap, Method, Request, Response, header};
use serde::{Deserialize, Serialize};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    buffer::{Complete, Content},
    handshake::Upgrade,
    outcome::Decided,
    request_start::{self, RequestStart},
};
use crate::{
    guard::rule::Rule,
    http::{arrival::Arrival, spare},
    refusal::Refusal,
};

/// `[canonical]` in `proxy.toml`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// X-Request-Start: when the request was `complete`, when it was first `received`, or `off`. Default: complete.
    pub request_start: RequestStart,
}

/// A request as Puma will read it: one head in one spelling, one framing, and the whole body. Only this layer makes one.
#[derive(Debug)]
pub struct Canonical {
    head: Vec<u8>,
    body: Complete,
    head_only: bool,
    idempotent: bool,
    upgrade: bool,
}

impl Canonical {
    /// The bytes of the head, ending in an empty line.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// The method is HEAD: the answer has no body whatever it says.
    pub fn is_head(&self) -> bool {
        self.head_only
    }

    /// May be sent again where Puma cannot have answered (RFC 9110 §9.2.2; QUERY counts as safe).
    pub fn is_idempotent(&self) -> bool {
        self.idempotent
    }

    /// The method is one that every Puma serves. What Puma refuses by itself it answers only on a new connection.
    pub fn is_usual(&self) -> bool {
        USUAL.iter().any(|method| self.head.strip_prefix(method.as_bytes()).is_some_and(|rest| rest.first() == Some(&b' ')))
    }

    /// Asks for WebSocket: 101 is an answer to it.
    pub fn wants_upgrade(&self) -> bool {
        self.upgrade
    }

    /// The head and the body. The head has room for a small body behind it, so that both go out in one write.
    pub fn into_parts(self) -> (Vec<u8>, Complete) {
        (self.head, self.body)
    }
}

#[cfg(test)]
impl Canonical {
    /// As if the layer had made it, for tests of what comes behind it.
    pub(crate) fn forged(head: &str, body: Complete) -> Self {
        let method = head.split(' ').next().unwrap_or_default();
        Canonical {
            head_only: method == "HEAD",
            idempotent: matches!(method, "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS"),
            upgrade: head.contains("Upgrade: websocket"),
            head: head.as_bytes().to_vec(),
            body,
        }
    }
}

/// Makes [`Write`].
#[derive(Clone, Debug)]
pub struct CanonicalLayer {
    config: Arc<Config>,
}

impl CanonicalLayer {
    /// From the configuration.
    pub fn new(config: Config) -> Self {
        CanonicalLayer { config: Arc::new(config) }
    }
}

impl<S> Layer<S> for CanonicalLayer {
    type Service = Write<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Write { inner, config: Arc::clone(&self.config) }
    }
}

/// Writes each request anew.
#[derive(Clone, Debug)]
pub struct Write<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S, R> Service<Request<Complete>> for Write<S>
where
    S: Service<Request<Canonical>, Response = Response<R>, Error = Refusal>,
{
    type Response = Response<R>;
    type Error = Refusal;
    type Future = Decided<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Complete>) -> Self::Future {
        match write(*self.config, request) {
            Ok(request) => Decided::Passed { inner: self.inner.call(request) },
            Err(refusal) => Decided::Refused { refusal },
        }
    }
}

/// The request in canonical form. Method, fields and extensions stay readable on it, for dispatch and the log.
fn write(config: Config, request: Request<Complete>) -> Result<Request<Canonical>, Refusal> {
    let (parts, body) = request.into_parts();
    let arrival = parts.extensions.get::<Arrival>().ok_or(Refusal::Internal)?;
    let target: &[u8] = &arrival.target;
    if !is_target(target, &parts.method) {
        return Err(Refusal::BadTarget(Rule::G8));
    }
    let host = sole_host(&parts.headers)?;
    let length = length(&parts.method, &body);
    let upgrade = length.is_none() && parts.extensions.get::<Upgrade>().is_some();

    let family = arrival.notes.family(&arrival.client);
    let ours = family.map_or(0, |family| family.len().saturating_add(host.len()).saturating_add(FORWARDED_HOST.len()));
    let mut head = spare::text(capacity(&parts.method, target, &parts.headers, &body).saturating_add(ours));
    head.extend_from_slice(parts.method.as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(target);
    head.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    head.extend_from_slice(host);
    head.extend_from_slice(CRLF);
    if let Some(family) = family {
        head.extend_from_slice(FORWARDED_HOST);
        head.extend_from_slice(host);
        head.extend_from_slice(CRLF);
        head.extend_from_slice(family);
    }
    for (name, value) in &parts.headers {
        let name = name.as_str();
        if is_ours(name) || !is_name(name) {
            continue;
        }
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes().trim_ascii());
        head.extend_from_slice(CRLF);
    }
    if let Some(length) = length {
        head.extend_from_slice(b"content-length: ");
        head.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
        head.extend_from_slice(CRLF);
    }
    if upgrade {
        head.extend_from_slice(b"connection: Upgrade\r\nupgrade: websocket\r\n");
    }
    if let Some(moment) = config.request_start.moment(&arrival.notes) {
        head.extend_from_slice(b"x-request-start: ");
        request_start::write(&mut head, moment);
        head.extend_from_slice(CRLF);
    }
    head.extend_from_slice(CRLF);

    let head_only = parts.method == Method::HEAD;
    let idempotent = parts.method.is_idempotent();
    Ok(Request::from_parts(parts, Canonical { head, body, head_only, idempotent, upgrade }))
}

/// One length or none. RFC 9110 §8.6: a method that means something by its content says so also when it is empty.
fn length(method: &Method, body: &Complete) -> Option<u64> {
    body.length().or_else(|| matches!(*method, Method::POST | Method::PUT | Method::PATCH).then_some(0))
}

fn sole_host(headers: &HeaderMap) -> Result<&[u8], Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if is_host(host.as_bytes()) => Ok(host.as_bytes()),
        (Some(_) | None, _) => Err(Refusal::BadHost(Rule::T3)),
    }
}

fn is_host(host: &[u8]) -> bool {
    !host.is_empty() && all(host, |b| matches!(b, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']'))
}

fn is_target(target: &[u8], method: &Method) -> bool {
    match target.split_first() {
        Some((b'/', rest)) => all(rest, |b| matches!(b, 0x21 | 0x24..=0x3b | b'=' | 0x3f..=0x7e)),
        Some((b'*', [])) => method == Method::OPTIONS,
        Some(_) | None => false,
    }
}

/// Fields that this layer writes, or that no request of ours has.
fn is_ours(name: &str) -> bool {
    matches!(
        name,
        "host"
            | "content-length"
            | "transfer-encoding"
            | "connection"
            | "upgrade"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "expect"
            | "http2-settings"
            | "x-request-start"
    )
}

fn is_name(name: &str) -> bool {
    all(name.as_bytes(), |b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

/// Without short-circuit, so that the compiler looks at 16 bytes at once.
fn all(bytes: &[u8], allowed: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |so_far, b| so_far & allowed(*b))
}

/// Enough for the head, and for a small body behind it.
fn capacity(method: &Method, target: &[u8], headers: &HeaderMap, body: &Complete) -> usize {
    let sum = method.as_str().len().saturating_add(target.len()).saturating_add(FIXED);
    let sum = sum.saturating_add(headers.len().saturating_mul(USUAL_FIELD));
    match body.content() {
        Content::Memory(bytes) if bytes.len() <= SMALL_BODY => sum.saturating_add(bytes.len()),
        Content::Memory(_) | Content::File(_) | Content::None => sum,
    }
}

const CRLF: &[u8] = b"\r\n";
const FORWARDED_HOST: &[u8] = b"x-forwarded-host: ";
/// Methods of RFC 9110 and RFC 5789 that pass `normalize`; from 6.3 on Puma answers 501 to what it does not know.
const USUAL: [&str; 7] = ["GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"];
/// Bodies up to here are copied behind the head.
const SMALL_BODY: usize = 2 * 1024;
/// A field of usual length; a head of longer ones grows once or twice.
const USUAL_FIELD: usize = 64;
/// What a head has besides its method, target and fields: version, length, upgrade, start, line ends.
const FIXED: usize = " HTTP/1.1\r\n".len()
    + "content-length: 18446744073709551615\r\n".len()
    + "connection: Upgrade\r\nupgrade: websocket\r\n".len()
    + "x-request-start: \r\n".len()
    + request_start::LONGEST
    + "\r\n".len();

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderName, HeaderValue, Version};
    use proptest::prelude::*;

    use super::{
        super::fixture::{self, parse},
        *,
    };

    fn canonical(request: http::request::Builder, content: Content) -> Result<Canonical, Refusal> {
        let request = request.body(Complete::for_test(content)).unwrap();
        write(Config { request_start: RequestStart::Off }, request).map(Request::into_body)
    }

    fn text(canonical: &Canonical) -> &str {
        std::str::from_utf8(canonical.head()).unwrap()
    }

    #[test]
    fn a_head_is_host_fields_length_and_nothing_of_a_connection() {
        let request = fixture::arrived("/a?b=[c]")
            .method("POST")
            .header("accept", "*/*")
            .header("transfer-encoding", "chunked")
            .header("content-length", "99")
            .header("connection", "keep-alive, x")
            .header("te", "trailers")
            .header("expect", "100-continue")
            .header("host", "shop.example")
            .header("x-empty", "");
        let written = canonical(request, Content::Memory(Bytes::from_static(b"hello").into())).unwrap();
        assert_eq!(text(&written), "POST /a?b=[c] HTTP/1.1\r\nhost: shop.example\r\naccept: */*\r\nx-empty: \r\ncontent-length: 5\r\n\r\n");
        assert!(parse(written.head()).is_some());
        assert!(written.head.capacity() >= written.head.len() + 5);
    }

    #[test]
    fn a_method_that_wants_a_body_says_that_there_is_none() {
        let of = |method: &str, content| {
            let written = canonical(fixture::arrived("/").method(method).header("host", "a"), content).unwrap();
            text(&written).to_owned()
        };
        for method in ["POST", "PUT", "PATCH"] {
            assert!(of(method, Content::None).ends_with("\r\ncontent-length: 0\r\n\r\n"), "{method}");
        }
        for method in ["GET", "HEAD", "DELETE", "OPTIONS", "QUERY"] {
            assert!(!of(method, Content::None).contains("content-length"), "{method}");
            assert!(of(method, Content::Memory(Bytes::from_static(b"x").into())).contains("\r\ncontent-length: 1\r\n"), "{method}");
        }
    }

    #[test]
    fn an_upgrade_is_spelled_in_one_way_and_never_has_a_body() {
        let request = || {
            fixture::arrived("/cable")
                .header("host", "a")
                .header("upgrade", "WebSocket")
                .header("connection", "keep-alive, Upgrade")
                .extension(Upgrade)
        };
        let written = canonical(request(), Content::None).unwrap();
        assert_eq!(text(&written), "GET /cable HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n");
        assert!(written.wants_upgrade());
        let written = canonical(request(), Content::Memory(Bytes::from_static(b"GET /x HTTP/1.1\r\n\r\n").into())).unwrap();
        assert!(!written.wants_upgrade() && !text(&written).contains("upgrade"));
        let unmarked = fixture::arrived("/").header("host", "a").header("upgrade", "h2c").header("connection", "Upgrade");
        assert_eq!(text(&canonical(unmarked, Content::None).unwrap()), "GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    }

    #[test]
    fn what_does_not_fit_the_grammar_is_never_written() {
        let get = |target: &str, hosts: &[&str]| {
            let request = hosts.iter().fold(fixture::arrived(target), |request, host| request.header("host", *host));
            canonical(request, Content::None).map(|c| text(&c).to_owned())
        };
        for target in ["", "a", "*", "/a b", "/a\r\nx: y", "/a#b", "http://a/", "/\u{e9}", "/\0"] {
            assert_eq!(get(target, &["a"]), Err(Refusal::BadTarget(Rule::G8)), "{target:?}");
        }
        for hosts in [&[][..], &["a", "a"], &[""], &["a b"], &["u@a"]] {
            assert_eq!(get("/", hosts), Err(Refusal::BadHost(Rule::T3)), "{hosts:?}");
        }
    }

    #[test]
    fn only_methods_that_may_be_repeated_are_idempotent() {
        for (method, idempotent) in [("GET", true), ("PUT", true), ("DELETE", true), ("POST", false), ("PATCH", false), ("QUERY", true)] {
            let written = canonical(fixture::arrived("/").method(method).header("host", "a"), Content::None).unwrap();
            assert_eq!(written.is_idempotent(), idempotent, "{method}");
        }
        assert!(canonical(fixture::arrived("/").method("HEAD").header("host", "a"), Content::None).unwrap().is_head());
    }

    #[test]
    fn the_start_stands_last() {
        let request =
            fixture::arrived("/").header("host", "a").header("x-request-start", "t=1").body(Complete::for_test(Content::None)).unwrap();
        let written = write(Config::default(), request).unwrap().into_body();
        let fields = parse(written.head()).unwrap();
        assert_eq!(fields.len(), 2);
        assert!(fields[1].0 == "x-request-start" && fields[1].1.starts_with(b"t=") && fields[1].1.len() > 14);
    }

    proptest! {
        #[test]
        fn what_is_written_has_one_reading(
            method in "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}",
            target in "/?[ -~é\\r\\n]{0,24}",
            fields in proptest::collection::vec(("[!#$%&'*+.^_`|~0-9a-z-]{1,12}", proptest::collection::vec(any::<u8>(), 0..20)), 0..12),
            framing in proptest::collection::vec((prop::sample::select(vec!["content-length", "transfer-encoding", "connection", "upgrade", "host", "te"]), "[a-z0-9, ]{0,9}"), 0..6),
            body in prop::option::of(proptest::collection::vec(any::<u8>(), 0..32)),
            upgrade in any::<bool>(),
            two in any::<bool>(),
        ) {
            let mut request = fixture::arrived(&target).method(method.as_str()).header("host", "shop.example:80");
            request = request.version(if two { Version::HTTP_2 } else { Version::HTTP_11 });
            for (name, value) in &fields {
                if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
                    request = request.header(name, value);
                }
            }
            for (name, value) in &framing {
                request = request.header(*name, value.as_str());
            }
            if upgrade {
                request = request.extension(Upgrade);
            }
            let content = body.clone().map_or(Content::None, |bytes| Content::Memory(Bytes::from(bytes).into()));
            if let Ok(written) = canonical(request, content) {
                let read = parse(written.head());
                prop_assert!(read.is_some(), "{:?}", String::from_utf8_lossy(written.head()));
                let length = read.unwrap().into_iter().find(|(n, _)| n == "content-length").map(|(_, v)| v);
                if let Some(bytes) = body {
                    prop_assert_eq!(length, Some(bytes.len().to_string().into_bytes()));
                }
            }
        }
    }
}
