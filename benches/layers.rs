//! The price of the guard's parsers and of each layer, alone and together.
//!
//! ```text
//! cargo bench --bench layers            # all, in under a minute
//! cargo bench --bench layers -- guard   # what has this in its name
//! ```
//!
//! A layer's price is its line minus the one of `layer/none`: the same request through a service that answers at once. Layers
//! that take complete requests stand behind `buffer`, so theirs is the line minus `layer/buffer`. Nothing waits for a
//! socket here; the access log is formatted and written to /dev/null.

use std::{
    error::Error,
    fmt::Debug,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::BodyExt;
use palisade::{
    accept::{beat::Sweep, client::Client},
    config::Config,
    guard::{
        Limits,
        answer::{AnswerHead, AnswerLimits, AnswerScan},
        chunked::Chunked,
        head::{Head, HeadScan},
    },
    http::{
        arrival::{Arrival, Names, Notes},
        body::Received,
    },
    layers::{
        Layers, answer, backtrace, ban,
        buffer::{self, Complete},
        canonical::{self, Canonical},
        client_address::TrustedProxies,
        conceal, forwarded, host, in_flight, normalize, rate, record, relay, request_id, route, sensitive, shield, shield_body,
        slots::Slots,
        spill::Store,
        stack, websocket,
    },
    log::Recorder,
    metrics::Metrics,
    overload::Overload,
    refusal::Refusal,
};
use tower::{Layer, Service, ServiceBuilder, service_fn};

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let mut criterion = Criterion::default().configure_from_args();
    parsers(&mut criterion)?;
    prices(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}

/// The guard: bytes to their one reading.
fn parsers(criterion: &mut Criterion) -> Result<(), Box<dyn Error>> {
    let mut group = group(criterion, "guard");
    let limits = Limits::default();
    let many = (0..97).fold(CURL.trim_end().to_owned(), |head, n| format!("{head}\r\nx-field-{n}: value-{n}")) + "\r\n\r\n";
    for (name, bytes) in [("head, 3 fields", CURL), ("head, browser", BROWSER), ("head, 100 fields", &many)] {
        let mut head = Head::new();
        if HeadScan::default().advance(bytes.as_bytes(), &limits, &mut head) != Ok(true) {
            return Err(format!("{name} is refused").into());
        }
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |b| b.iter(|| HeadScan::default().advance(bytes.as_bytes(), &limits, &mut head)));
    }
    let mut head = AnswerHead::new();
    if AnswerScan::default().advance(ANSWER.as_bytes(), &AnswerLimits::default(), false, &mut head) != Ok(true) {
        return Err("the answer is refused".into());
    }
    group.throughput(Throughput::Bytes(ANSWER.len() as u64));
    let limits_of_answer = AnswerLimits::default();
    group.bench_function("answer of Puma", |b| {
        b.iter(|| AnswerScan::default().advance(ANSWER.as_bytes(), &limits_of_answer, false, &mut head))
    });
    let chunks = ["400\r\n", &"x".repeat(1024), "\r\n"].concat().repeat(64) + "0\r\n\r\n";
    group.throughput(Throughput::Bytes(chunks.len() as u64));
    group.bench_function("64 chunks of 1 KiB", |b| b.iter(|| pieces(chunks.as_bytes(), &limits)));
    group.finish();
    Ok(())
}

/// Reads a chunked body to its end.
fn pieces(mut input: &[u8], limits: &Limits) -> Result<usize, Refusal> {
    let (mut chunked, mut count) = (Chunked::new(), 0);
    while !input.is_empty() {
        let piece = chunked.advance(input, limits)?;
        input = input.get(piece.consumed..).unwrap_or_default();
        count += 1;
    }
    Ok(count)
}

/// Each layer before a service that answers at once, and the whole stack.
fn prices(criterion: &mut Criterion) -> Result<(), Box<dyn Error>> {
    let layers = layers()?;
    let puma = service_fn(|_: Request<Canonical>| std::future::ready(Ok::<_, Refusal>(answer())));
    let plain = service_fn(|_: Request<Received>| std::future::ready(Ok::<_, Refusal>(answer())));
    let whole = service_fn(|_: Request<Complete>| std::future::ready(Ok::<_, Refusal>(answer())));
    let behind = ServiceBuilder::new().layer(layers.buffer.clone());
    let mut group = group(criterion, "layer");
    price(&mut group, "none", plain)?;
    price(&mut group, "answer", layers.answer.layer(plain))?;
    price(&mut group, "record", layers.record.layer(plain))?;
    price(&mut group, "request_id", layers.request_id.layer(plain))?;
    price(&mut group, "ban", layers.ban.layer(plain))?;
    price(&mut group, "rate", layers.rate.layer(plain))?;
    price(&mut group, "host", layers.host.layer(plain))?;
    price(&mut group, "sensitive", layers.sensitive.layer(plain))?;
    price(&mut group, "normalize", layers.normalize.layer(plain))?;
    price(&mut group, "route", layers.route.layer(plain))?;
    price(&mut group, "forwarded", layers.forwarded.layer(plain))?;
    price(&mut group, "websocket", layers.websocket.layer(plain))?;
    price(&mut group, "shield", layers.shield.layer(plain))?;
    price(&mut group, "relay", layers.relay.layer(plain))?;
    price(&mut group, "conceal", layers.conceal.layer(plain))?;
    price(&mut group, "backtrace", layers.backtrace.layer(plain))?;
    price(&mut group, "buffer", behind.clone().service(whole))?;
    price(&mut group, "buffer + shield_body", behind.clone().layer(layers.shield_body.clone()).service(whole))?;
    price(&mut group, "buffer + in_flight", behind.clone().layer(layers.in_flight.clone()).service(whole))?;
    price(&mut group, "buffer + canonical", behind.layer(layers.canonical.clone()).service(puma))?;
    price(&mut group, "all of them", stack(layers, puma))?;
    group.finish();
    Ok(())
}

/// One line: the browser's request through `service`, its answer read and dropped.
fn price<S, B, E>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, service: S) -> Result<(), Box<dyn Error>>
where
    S: Service<Request<Received>, Response = Response<B>, Error = E> + Clone,
    B: http_body::Body<Data = Bytes> + Unpin,
    E: Debug,
{
    let send = |request| {
        let mut service = service.clone();
        let answer = service.call(request).now_or_never();
        match answer {
            Some(Ok(answer)) => answer.status() == 200 && matches!(answer.into_body().frame().now_or_never(), Some(Some(Ok(_)))),
            Some(Err(_)) | None => false,
        }
    };
    if !send(request()) {
        return Err(format!("{name} does not answer at once, with 200").into());
    }
    group.bench_function(name, |b| b.iter_batched(request, send, BatchSize::SmallInput));
    Ok(())
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(50);
    group
}

/// A browser's request, as the HTTP/1 driver hands it over.
fn request() -> Request<Received> {
    let mut request = Request::new(Received::None);
    *request.uri_mut() = http::Uri::from_static("/articles/17?page=2");
    for (name, value) in FIELDS {
        request.headers_mut().append(http::HeaderName::from_static(name), http::HeaderValue::from_static(value));
    }
    let mut sent = Names::NONE;
    request.headers().keys().for_each(|name| sent.add(name));
    let arrival = Arrival {
        client: Arc::new(Client { ip: [192, 0, 2, 1].into(), peer: [192, 0, 2, 1].into(), local_port: 80, ..Client::local() }),
        target: Bytes::from_static(b"/articles/17?page=2"),
        notes: Arc::new(Notes::new(Instant::now())),
        sent,
    };
    request.extensions_mut().insert(arrival);
    request
}

/// What the innermost service answers.
fn answer() -> Response<Received> {
    let mut response = Response::new(Received::Whole(BytesMut::from(&[b'x'; 1024][..])));
    for (name, value) in [("content-type", "text/html; charset=utf-8"), ("content-length", "1024"), ("x-runtime", "0.012345")] {
        response.headers_mut().append(http::HeaderName::from_static(name), http::HeaderValue::from_static(value));
    }
    response
}

/// The layers with their defaults, but for a rate limit that one client does not reach.
fn layers() -> Result<Layers, Box<dyn Error>> {
    let config = Config::default();
    let mut log = config.log.clone();
    log.access_file = "/dev/null".into();
    let store = Store::start(&config.buffer)?;
    let metrics = Arc::new(Metrics::new("bench", "")?);
    let slots = Slots::new(config.queue.policy(Duration::from_secs(1)));
    slots.set_workers(&[64]);
    let trusted = TrustedProxies::from(&config.trusted_proxies);
    let overload = Overload::new(config.overload.clone());
    let limits = (config.buffer.clone(), &config.timeouts, &config.rates, config.limits.body);
    let policy = buffer::Policy::new(limits.0, Arc::clone(&store), Sweep::new(), limits.1, limits.2, limits.3);
    let mut rules = config.rate_limit.clone();
    for rule in rules.iter_mut() {
        rule.rate.count = NonZeroU32::MAX;
        rule.burst = None;
    }
    Ok(Layers {
        answer: answer::AnswerLayer::new(Arc::new(answer::Pages::load(&config.errors)?), &[]),
        record: record::RecordLayer::new(Recorder::new(&log, metrics)?),
        request_id: request_id::RequestIdLayer::new(config.headers.request_id()),
        ban: ban::BanLayer::new(Arc::new(ban::Bans::new(config.ban.clone(), trusted.clone()))),
        rate: rate::RateLayer::new(Arc::new(rate::Limits::new(rules, trusted.clone()))),
        host: host::HostLayer::new(config.host.clone(), &[]),
        sensitive: sensitive::SensitiveLayer::new(config.sensitive.clone()),
        normalize: normalize::NormalizeLayer::new(config.framing.clone()),
        route: route::RouteLayer::new(config.route.clone(), trusted.clone(), overload),
        forwarded: forwarded::ForwardedLayer::new(config.headers.forwarded(), trusted),
        websocket: websocket::WebSocketLayer::new(config.websocket.clone(), Arc::default()),
        shield: shield::ShieldLayer::new(config.shield),
        relay: relay::RelayLayer::new(Arc::clone(&store), config.buffer.clone()),
        buffer: buffer::BufferLayer::new(policy),
        shield_body: shield_body::ShieldBodyLayer::new(config.shield),
        in_flight: in_flight::InFlightLayer::new(&config.queue, slots),
        conceal: conceal::ConcealLayer::new(config.headers.conceal(), Arc::default()),
        backtrace: backtrace::BacktraceLayer::new(config.backtrace, Arc::default()),
        canonical: canonical::CanonicalLayer::new(config.headers.canonical()),
    })
}

const CURL: &str = "GET /articles/17?page=2 HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n";

const BROWSER: &str = "GET /articles/17?page=2 HTTP/1.1\r\nHost: localhost\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) \
    Gecko/20100101 Firefox/128.0\r\nAccept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-GB,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nReferer: http://localhost/articles?page=2\r\n\
    Cookie: _session=0123456789abcdef0123456789abcdef; theme=dark; consent=all\r\nConnection: keep-alive\r\n\
    Upgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: same-origin\r\n\r\n";

/// The fields of `BROWSER` that reach the layers.
const FIELDS: [(&str, &str); 11] = [
    ("host", "localhost"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("accept-language", "en-GB,en;q=0.5"),
    ("accept-encoding", "gzip, deflate, br"),
    ("referer", "http://localhost/articles?page=2"),
    ("cookie", "_session=0123456789abcdef0123456789abcdef; theme=dark; consent=all"),
    ("upgrade-insecure-requests", "1"),
    ("sec-fetch-dest", "document"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-site", "same-origin"),
];

const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\netag: W/\"0123456789abcdef0123456789abcdef\"\r\n\
    cache-control: max-age=0, private, must-revalidate\r\nx-request-id: 0190a0f0-0000-7000-8000-000000000000\r\n\
    x-runtime: 0.012345\r\nset-cookie: _session=0123456789abcdef; path=/; HttpOnly; SameSite=Lax\r\nContent-Length: 1024\r\n\r\n";
