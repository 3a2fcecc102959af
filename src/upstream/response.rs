//! From Puma's head to a response: what belongs to the connection or to this proxy stays behind (RFC 9110 §7.6.1).

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::{
    guard::{Field, Span, answer::AnswerHead, rule::Rule},
    http::names,
    refusal::Refusal,
};

/// What a head says.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// The answer to HEAD declares this length.
    pub(super) length: Option<u64>,
    /// `Content-Type: text/event-stream`.
    pub(super) events: bool,
    /// `X-Accel-Buffering: no`.
    pub(super) unbuffered: bool,
}

/// Reads the fields of a head into `headers`, which keeps its memory from the request.
pub(super) fn read(block: &Bytes, head: &AnswerHead, mut headers: HeaderMap) -> Result<Reading, Refusal> {
    headers.clear();
    let mut reading = Reading {
        status: StatusCode::from_u16(head.status).map_err(|_| Refusal::UpstreamBad(Rule::P1))?,
        headers,
        length: None,
        events: false,
        unbuffered: false,
    };
    let switching = reading.status == StatusCode::SWITCHING_PROTOCOLS;
    let mut named: Vec<Span> = Vec::new();
    for field in &head.fields {
        let name = names::of(field.name.of(block)).map_err(|_| Refusal::UpstreamBad(Rule::P2))?;
        let value = value(block, field)?;
        if name == header::CONTENT_LENGTH {
            reading.length = value.to_str().ok().and_then(|v| v.parse().ok());
            continue;
        }
        if name == header::CONNECTION {
            named.push(field.value);
        }
        if is_ours(name.as_str()) || (!switching && is_hop_by_hop(name.as_str())) {
            reading.unbuffered |= name == "x-accel-buffering" && value.as_bytes().eq_ignore_ascii_case(b"no");
            continue;
        }
        reading.events |= name == header::CONTENT_TYPE && starts_with(value.as_bytes(), b"text/event-stream");
        reading.headers.try_append(name, value).map_err(|_| Refusal::UpstreamBad(Rule::P5))?;
    }
    if !switching {
        for list in named {
            for name in list.of(block).split(|byte| *byte == b',') {
                if let Ok(name) = names::of(name.trim_ascii()) {
                    reading.headers.remove(name);
                }
            }
        }
    }
    Ok(reading)
}

/// The `Link` fields of a 103: the only ones that an interim answer may pass on (CVE-2020-5249).
pub(super) fn links(block: &Bytes, head: &AnswerHead) -> Result<HeaderMap, Refusal> {
    let mut headers = HeaderMap::new();
    for field in head.fields.iter().filter(|field| field.name.of(block).eq_ignore_ascii_case(b"link")) {
        headers.append(header::LINK, value(block, field)?);
    }
    Ok(headers)
}

fn value(block: &Bytes, field: &Field) -> Result<HeaderValue, Refusal> {
    let bytes = block.get(field.value.start as usize..field.value.end as usize).unwrap_or_default();
    HeaderValue::from_maybe_shared(block.slice_ref(bytes)).map_err(|_| Refusal::UpstreamBad(Rule::P2))
}

/// Of one connection only.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(name, "connection" | "keep-alive" | "te" | "trailer" | "transfer-encoding" | "upgrade") || name.starts_with("proxy-")
}

/// Orders to a front server, of no use to a client: they name files and internal addresses.
fn is_ours(name: &str) -> bool {
    matches!(name, "x-sendfile" | "x-sendfile-type") || name.starts_with("x-accel-")
}

fn starts_with(value: &[u8], beginning: &[u8]) -> bool {
    value.get(..beginning.len()).is_some_and(|part| part.eq_ignore_ascii_case(beginning))
}
