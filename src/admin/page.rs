//! What the admin listener answers.

use std::{net::IpAddr, time::SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;

use super::Admin;
use crate::log::calendar;

/// Puma's threads and the queue in front of them, in Puma's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Requests that wait here for a thread.
    pub backlog: u64,
    /// Threads that Puma runs.
    pub running: u64,
    /// Threads that Puma may run.
    pub max_threads: u64,
    /// Threads that have a request.
    pub busy_threads: u64,
}

/// One answer. The body of a request is never read.
pub(super) fn answer<B>(admin: &Admin, request: &Request<B>, is_loopback: bool) -> Response<Full<Bytes>> {
    if is_loopback && !is_local(request.headers().get(header::HOST)) {
        return page(StatusCode::MISDIRECTED_REQUEST, TEXT, "on loopback, Host must be localhost or an address\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/live" => page(StatusCode::OK, TEXT, "ok\n"),
        "/ready" => match (admin.ready)() {
            Ok(()) => page(StatusCode::OK, TEXT, "ok\n"),
            Err(why) => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
        },
        "/metrics" => page(StatusCode::OK, METRICS, admin.metrics.text()),
        "/stats" => page(StatusCode::OK, JSON, stats(admin)),
        _ => page(StatusCode::NOT_FOUND, TEXT, "there are /live, /ready, /metrics and /stats\n"),
    }
}

/// The keys of Puma's `/stats` in single mode, so that tools made for Puma can read it, and ours behind them.
fn stats(admin: &Admin) -> String {
    let capacity = (admin.capacity)();
    let stats = serde_json::json!({
        "started_at": moment(admin.metrics.started()),
        "backlog": capacity.backlog,
        "running": capacity.running,
        "pool_capacity": capacity.max_threads.saturating_sub(capacity.busy_threads),
        "max_threads": capacity.max_threads,
        "busy_threads": capacity.busy_threads,
        "requests_count": admin.metrics.requests(),
        "active_requests": admin.metrics.active(),
        "ready": (admin.ready)().is_ok(),
        "versions": { "palisade": env!("CARGO_PKG_VERSION") },
    });
    format!("{stats}\n")
}

fn moment(at: SystemTime) -> String {
    let mut text = Vec::new();
    calendar::rfc3339(&mut text, at);
    String::from_utf8(text).unwrap_or_default()
}

/// An address or `localhost` cannot be a name that someone else's DNS points at this machine. No Host at all is HTTP/1.0,
/// which no browser sends.
fn is_local(host: Option<&HeaderValue>) -> bool {
    let Some(host) = host else { return true };
    let host = host.to_str().unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

fn page(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
