//! The layers that look at heads, one behind the other: what a client sends against what Puma would get.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, Version};
use proptest::prelude::*;
use tower::{ServiceBuilder, ServiceExt, service_fn};

use super::{
    ban::{BanLayer, Bans},
    buffer::{Complete, Content},
    canonical::{self, Canonical, CanonicalLayer},
    client_address::TrustedProxies,
    conceal::{self, ConcealLayer},
    fixture,
    forwarded::{self, ForwardedLayer},
    host::{self, HostLayer},
    normalize::{self, NormalizeLayer},
    rate::{Limits, RateLayer, RuleConfig},
    request_id::{self, RequestIdLayer},
    sensitive::{self, SensitiveLayer},
    shield::{self, ShieldLayer},
    shield_body::ShieldBodyLayer,
};
use crate::{guard::rule::Rule, refusal::Refusal};

/// The head that Puma would get, or the refusal.
fn send(request: Request<Complete>) -> Result<Vec<u8>, Refusal> {
    let trusted = TrustedProxies::new(&["10.0.0.0/8".parse().unwrap()]);
    let puma = service_fn(|request: Request<Canonical>| async move {
        let upgrade = request.body().wants_upgrade();
        Ok::<_, Refusal>(Response::new((request.into_body().into_parts().0, upgrade)))
    });
    let stack = ServiceBuilder::new()
        .layer(RequestIdLayer::new(request_id::Config::default()))
        .layer(BanLayer::new(Bans::new(super::ban::RuleConfig::defaults(), trusted.clone()).into()))
        .layer(RateLayer::new(Limits::new(RuleConfig::defaults(), trusted.clone()).into()))
        .layer(HostLayer::new(host::Config::default(), &[]))
        .layer(SensitiveLayer::new(sensitive::Config::default()))
        .layer(NormalizeLayer::new(normalize::Config::default()))
        .layer(ForwardedLayer::new(forwarded::Config::default(), trusted))
        .layer(ShieldLayer::new(shield::Config::default()))
        .layer(ShieldBodyLayer::new(shield::Config::default()))
        .layer(ConcealLayer::new(conceal::Config::default(), std::sync::Arc::default()))
        .layer(CanonicalLayer::new(canonical::Config::default()))
        .service(puma);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(stack.oneshot(request)).map(|answer| answer.into_body().0)
}

struct Sent {
    method: &'static str,
    target: &'static str,
    version: Version,
    fields: Vec<(&'static str, String)>,
}

impl Sent {
    fn get(target: &'static str) -> Self {
        Sent { method: "GET", target, version: Version::HTTP_11, fields: vec![("host", "lab.example".to_owned())] }
    }

    fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    fn two(mut self) -> Self {
        self.version = Version::HTTP_2;
        self.fields.clear();
        self
    }

    fn bare(mut self) -> Self {
        self.fields.clear();
        self
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// The head as text; every head is read by the independent reader first.
    fn head(self) -> Result<String, Refusal> {
        let mut request = fixture::arrived(self.target).method(self.method).version(self.version);
        if self.version == Version::HTTP_2 {
            request = request.uri("http://lab.example/");
        }
        for (name, value) in &self.fields {
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let head = send(request.body(Complete::for_test(Content::None)).unwrap())?;
        assert!(fixture::parse(&head).is_some(), "{}", String::from_utf8_lossy(&head));
        Ok(String::from_utf8_lossy(&head).into_owned())
    }
}

#[test]
fn a_plain_request_arrives_with_one_truth_about_its_client() {
    let head = Sent::get("/a?b=c").with("accept", "*/*").head().unwrap();
    let lines: Vec<_> = head.split("\r\n").collect();
    assert_eq!(lines[..2], ["GET /a?b=c HTTP/1.1", "host: lab.example"]);
    for line in [
        "accept: */*",
        "x-forwarded-for: 192.0.2.1",
        "x-forwarded-host: lab.example",
        "x-forwarded-port: 80",
        "x-forwarded-proto: http",
        "x-real-ip: 192.0.2.1",
    ] {
        assert!(lines.contains(&line), "{line} in {head}");
    }
    assert_eq!(lines.iter().filter(|line| line.starts_with("x-request-id: ")).count(), 1);
    assert_eq!(lines.len(), 12);
    assert!(lines[9].starts_with("x-request-start: t="));
}

#[test]
fn every_version_leaves_as_the_same_request() {
    let head = Sent::get("/a").two().with("cookie", "a=1").with("cookie", "b=2").with("te", "trailers").head().unwrap();
    assert!(head.starts_with("GET /a HTTP/1.1\r\nhost: lab.example\r\n") && head.contains("\r\ncookie: a=1; b=2\r\n"));
    let head = Sent::get("http://LAB.example/a").with("cookie", "a=1").with("cookie", "b=2").head().unwrap();
    assert!(head.starts_with("GET /a HTTP/1.1\r\nhost: LAB.example\r\n") && head.contains("\r\ncookie: a=1; b=2\r\n"));
    let head = Sent { version: Version::HTTP_10, ..Sent::get("/a") }.bare().head().unwrap();
    assert!(head.starts_with("GET /a HTTP/1.1\r\nhost: localhost\r\n"));
}

#[test]
fn what_must_stay_intact_does() {
    for (method, target) in [
        ("GET", "/[x]{y}|^?[a]={b}|^`'"),
        ("GET", "/group%2Fproject/%E6%97%A5/caf%C3%A9//x;y=1"),
        ("GET", "/?next=https://a.example/b?c=d&x=/../y"),
        ("OPTIONS", "*"),
        ("QUERY", "/"),
        ("MKCALENDAR", "/"),
        ("DELETE", "/a"),
    ] {
        let head = Sent::get(target).method(method).head().unwrap();
        assert!(head.starts_with(&format!("{method} {target} HTTP/1.1\r\n")), "{method} {target}");
    }
    assert!(Sent::get("/").method("POST").head().unwrap().contains("\r\ncontent-length: 0\r\n"));
    assert!(Sent::get("/").with("cookie", "s".repeat(6000)).head().unwrap().contains(&"s".repeat(6000)));
    let names: [&str; 60] = std::array::from_fn(|i| &*format!("x-custom-{i}").leak());
    let many = names.into_iter().fold(Sent::get("/"), |sent, name| sent.with(name, "v")).head().unwrap();
    assert_eq!(many.matches("\r\nx-custom-").count(), 60);
    let websocket = Sent::get("/cable")
        .with("connection", "keep-alive, Upgrade")
        .with("upgrade", "websocket")
        .with("sec-websocket-version", "13")
        .with("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let head = websocket.head().unwrap();
    assert!(head.contains("\r\nconnection: Upgrade\r\nupgrade: websocket\r\n") && head.contains("\r\nsec-websocket-key: "));
}

#[test]
fn a_forged_field_in_either_spelling_does_not_arrive() {
    for name in [
        "forwarded",
        "x-forwarded-for",
        "x_forwarded_for",
        "x-forwarded-host",
        "x_forwarded_host",
        "x-forwarded-port",
        "x-forwarded-scheme",
        "x-forwarded-prefix",
        "x-real-ip",
        "client-ip",
        "client_ip",
        "x-client-ip",
        "proxy",
        "x-rewrite-url",
        "x-request-id",
        "http_host",
        "host_",
        "h_ost",
        "x-sendfile-type",
        "x-accel-mapping",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "te",
        "trailer",
        "x-http-method-override",
        "x-request-start",
    ] {
        let head = Sent::get("/").with(name, "evil").head().unwrap();
        assert!(!head.contains("evil"), "{name}: {head}");
    }
}

#[test]
fn our_own_fields_cannot_be_stripped_by_connection() {
    for name in ["x-request-id", "x-forwarded-for", "X-Real-IP", "x_request_id", "host", "x-request-start"] {
        assert_eq!(Sent::get("/").with("connection", name).head(), Err(Refusal::BadFraming(Rule::T7)), "{name}");
    }
}

#[test]
fn what_has_two_readings_is_refused() {
    let cases = [
        (Sent::get("/a/..%2f..%2fb"), Refusal::BadTarget(Rule::T4)),
        (Sent::get("/x/..;/admin"), Refusal::BadTarget(Rule::T4)),
        (Sent::get("/a%00"), Refusal::BadTarget(Rule::T4)),
        (Sent::get("/?a=%ff%fe"), Refusal::BadTarget(Rule::T13)),
        (Sent::get("http://user@lab.example/"), Refusal::BadHost(Rule::T2)),
        (Sent::get("http:///a"), Refusal::BadHost(Rule::T2)),
        (Sent::get("file:///etc/passwd"), Refusal::BadTarget(Rule::T2)),
        (Sent::get("lab.example:80/a"), Refusal::BadTarget(Rule::T2)),
        (Sent::get("*"), Refusal::BadTarget(Rule::T2)),
        (Sent::get("*").two(), Refusal::BadTarget(Rule::T2)),
        (Sent::get("/\u{e9}").two(), Refusal::BadTarget(Rule::G8)),
        (Sent::get("/").two().with("host", "evil.example"), Refusal::BadHost(Rule::T3)),
        (Sent::get("/").two().with("connection", "close"), Refusal::BadFraming(Rule::T14)),
        (Sent::get("/").two().with("transfer_encoding", "chunked"), Refusal::BadFraming(Rule::G18)),
        (Sent::get("/").with("host", "lab.example"), Refusal::BadHost(Rule::T3)),
        (Sent::get("/").with("range", "bytes=0-1").with("range", "bytes=2-3"), Refusal::BadFraming(Rule::T9)),
        (Sent::get("/").with("expect", "y 100-continue"), Refusal::Denied(Rule::T10)),
        (Sent::get("/").method("TRACE"), Refusal::Denied(Rule::T1)),
        (Sent::get("/").method("CONNECT").two(), Refusal::Denied(Rule::T1Unknown)),
        (Sent::get("/.env"), Refusal::Sensitive),
    ];
    for (sent, refusal) in cases {
        let shown = format!("{} {} {:?}", sent.method, sent.target, sent.fields);
        assert_eq!(sent.head(), Err(refusal), "{shown}");
    }
    let crumbs = (0..2000).fold(Sent::get("/").two(), |sent, i| sent.with("cookie", format!("c{i}=1")));
    assert_eq!(crumbs.head(), Err(Refusal::HeaderTooLarge(Rule::T13Size)));
}

fn field() -> impl Strategy<Value = (String, Vec<u8>)> {
    let names = prop::sample::select(vec![
        "connection",
        "upgrade",
        "te",
        "expect",
        "cookie",
        "content-length",
        "transfer-encoding",
        "host",
        "x-forwarded-for",
        "x_forwarded_for",
        "content_length",
        "range",
        "content-type",
        "accept",
        "sec-websocket-key",
        "sec-websocket-version",
        "x-request-id",
        "forwarded",
        "x|y",
    ]);
    let values = prop_oneof![
        "[ -~]{0,24}".prop_map(String::into_bytes),
        prop::sample::select(vec![
            "close",
            "upgrade",
            "websocket",
            "13",
            "chunked",
            "0",
            "5",
            "dGhlIHNhbXBsZSBub25jZQ==",
            "100-continue",
            "a=1",
            "trailers"
        ])
        .prop_map(|v| v.as_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 0..16),
    ];
    (prop_oneof![names.prop_map(str::to_owned), "[a-z_|-]{1,10}"], values)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_is_accepted_has_one_reading(
        method in prop::sample::select(vec!["GET", "POST", "OPTIONS", "DELETE", "get", "M-SEARCH"]),
        target in prop_oneof!["/[ -~]{0,16}", "(http|https)://[a-z:@.0-9]{0,8}(/[!-~]{0,8})?", "\\*", "[!-~]{0,8}"],
        fields in proptest::collection::vec(field(), 0..6),
        body in prop::option::of(proptest::collection::vec(any::<u8>(), 0..16)),
        version in prop::sample::select(vec![Version::HTTP_10, Version::HTTP_11, Version::HTTP_2]),
        authority in any::<bool>(),
    ) {
        let content = body.map_or(Content::None, |bytes| Content::Memory(Bytes::from(bytes).into()));
        let mut request = fixture::arrived(&target).body(Complete::for_test(content)).unwrap();
        *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
        *request.version_mut() = version;
        if authority {
            *request.uri_mut() = Uri::from_static("http://lab.example/");
        } else {
            request.headers_mut().insert("host", HeaderValue::from_static("lab.example"));
        }
        for (name, value) in fields {
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(&value)) {
                request.headers_mut().append(name, value);
            }
        }
        if let Ok(head) = send(request) {
            let fields = fixture::parse(&head);
            prop_assert!(fields.is_some(), "{:?}", String::from_utf8_lossy(&head));
            for (name, value) in fields.unwrap() {
                prop_assert!(!name.contains('_'), "{}", name);
                let ours = match name.as_str() {
                    "x-forwarded-for" | "x-real-ip" => Some("192.0.2.1"),
                    "x-forwarded-proto" => Some("http"),
                    _ => None,
                };
                prop_assert!(ours.is_none_or(|ours| ours.as_bytes() == value), "{}", name);
            }
        }
    }
}
