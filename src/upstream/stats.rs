//! Puma's control server: `GET /stats`, as Puma 5 to 8 answer it, in single and in cluster mode.
//!
//! The control server has one thread and no reactor: an idle peer can delay it for half a minute. So each question has its
//! own connection and a short deadline, and no answer means that nothing is known, not that Puma is down.

use std::{io, time::Duration};

use bytes::BytesMut;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    guard::{
        self,
        answer::{AnswerFraming, AnswerHead, AnswerLimits, AnswerScan},
        chunked::Chunked,
    },
    upstream::connect::Address,
};

/// Puma's version, as far as it decides anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PumaVersion {
    /// 8 of 8.0.2.
    pub major: u32,
    /// 0 of 8.0.2.
    pub minor: u32,
}

/// What `/stats` said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Puma's version; Puma 5 does not tell its own.
    pub version: PumaVersion,
    /// One in single mode.
    pub workers: Vec<WorkerStats>,
    /// Counts phased restarts; 0 in single mode.
    pub phase: u64,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerStats {
    /// Its number, from 0.
    pub index: u32,
    /// Its process; 0 in single mode.
    pub pid: u64,
    /// It serves requests.
    pub booted: bool,
    /// The phase that it belongs to.
    pub phase: u64,
    /// Threads at most.
    pub max_threads: u32,
    /// Threads that exist.
    pub running: u64,
    /// Requests that wait inside Puma.
    pub backlog: u64,
    /// Threads that could take a request now.
    pub pool_capacity: u64,
    /// Requests since its start.
    pub requests: u64,
}

/// Asks the control server.
pub async fn fetch(control: &Address, token: &[u8], deadline: Duration) -> io::Result<Stats> {
    let ask = async {
        let mut stream = control.connect(deadline).await?;
        let query: String = token.iter().copied().map(escaped).collect();
        let request = format!("GET /stats?token={query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut buffer = BytesMut::new();
        loop {
            if let Some(body) = body(&buffer)? {
                return parse(&body).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData));
            }
            if buffer.len() > LONGEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    };
    tokio::time::timeout(deadline, ask).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The body of a complete answer; `None` while more is to come. Puma always declares the length of stats.
fn body(buffer: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let bad = |_| io::Error::from(io::ErrorKind::InvalidData);
    let mut head = AnswerHead::new();
    let limits = AnswerLimits { head: LONGEST, fields: 100 };
    if buffer.is_empty() || !AnswerScan::default().advance(buffer, &limits, false, &mut head).map_err(bad)? {
        return Ok(None);
    }
    if head.status != 200 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut rest = buffer.get(head.len..).unwrap_or_default();
    match head.framing {
        AnswerFraming::Length(length) => Ok(rest.get(..usize::try_from(length).unwrap_or(usize::MAX)).map(<[u8]>::to_vec)),
        AnswerFraming::Chunked => {
            let (mut chunks, mut body) = (Chunked::of_answer(), Vec::new());
            while !rest.is_empty() {
                let piece = chunks.advance(rest, &guard::Limits::default()).map_err(bad)?;
                body.extend_from_slice(rest.get(piece.data).unwrap_or_default());
                if piece.done {
                    return Ok(Some(body));
                }
                if piece.consumed == 0 {
                    break;
                }
                rest = rest.get(piece.consumed..).unwrap_or_default();
            }
            Ok(None)
        }
        AnswerFraming::None | AnswerFraming::UntilClose => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Reads the JSON of any version: what is missing is 0.
fn parse(json: &[u8]) -> Option<Stats> {
    let value: Value = serde_json::from_slice(json).ok()?;
    let version = value.pointer("/versions/puma").and_then(Value::as_str).and_then(version_of).unwrap_or(BEFORE_VERSIONS);
    let workers = match value.get("worker_status").and_then(Value::as_array) {
        Some(list) => list.iter().filter_map(|entry| worker(entry, entry.get("last_status")?)).collect(),
        None => {
            value.get("max_threads")?;
            vec![WorkerStats { booted: true, ..worker(&value, &value)? }]
        }
    };
    Some(Stats { version, workers, phase: number(&value, "phase") })
}

fn worker(entry: &Value, status: &Value) -> Option<WorkerStats> {
    let max_threads = status.get("max_threads").and_then(Value::as_u64);
    let booted = entry.get("booted").and_then(Value::as_bool).unwrap_or(false);
    if max_threads.is_none() && booted {
        // Booted, but its first report is still on its way.
        return None;
    }
    Some(WorkerStats {
        index: u32::try_from(number(entry, "index")).ok()?,
        pid: number(entry, "pid"),
        booted,
        phase: number(entry, "phase"),
        max_threads: u32::try_from(max_threads.unwrap_or(0)).ok()?,
        running: number(status, "running"),
        backlog: number(status, "backlog"),
        pool_capacity: number(status, "pool_capacity"),
        requests: number(status, "requests_count"),
    })
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn version_of(text: &str) -> Option<PumaVersion> {
    let mut parts = text.split('.');
    Some(PumaVersion { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
}

/// A token in a query, whatever it consists of.
fn escaped(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }
}

/// Stats have `versions` since 6.0.
const BEFORE_VERSIONS: PumaVersion = PumaVersion { major: 5, minor: 0 };
/// A cluster of 500 workers needs about 150 KiB.
const LONGEST: usize = 512 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const SINGLE_5: &str =
        r#"{"started_at":"2026-01-01T00:00:00Z","backlog":0,"running":5,"pool_capacity":4,"max_threads":5,"requests_count":12}"#;
    const SINGLE_8: &str = r#"{"started_at":"2026-01-01T00:00:00Z","backlog":1,"running":3,"pool_capacity":0,"busy_threads":3,"backlog_max":4,
        "max_threads":3,"requests_count":12,"reactor_max":2,"io_threads":0,"versions":{"puma":"8.0.2","ruby":{"engine":"ruby","version":"3.4.1"}}}"#;
    const CLUSTER: &str = r#"{"started_at":"2026-01-01T00:00:00Z","workers":3,"phase":1,"booted_workers":2,"old_workers":1,"worker_status":[
        {"started_at":"x","pid":10,"index":0,"phase":1,"booted":true,"last_checkin":"x","last_status":{"backlog":0,"running":5,"pool_capacity":5,"max_threads":5,"requests_count":1}},
        {"started_at":"x","pid":11,"index":1,"phase":0,"booted":true,"last_checkin":"x","last_status":{"backlog":0,"running":5,"pool_capacity":2,"max_threads":5,"requests_count":2}},
        {"started_at":"x","pid":12,"index":2,"phase":1,"booted":false,"last_checkin":"x","last_status":{}}],"versions":{"puma":"6.6.1"}}"#;

    #[test]
    fn stats_of_every_version_are_read() {
        let five = parse(SINGLE_5.as_bytes()).unwrap();
        assert_eq!((five.version.major, five.workers.len(), five.workers[0].max_threads), (5, 1, 5));
        let eight = parse(SINGLE_8.as_bytes()).unwrap();
        assert_eq!((eight.version, eight.workers[0].backlog), (PumaVersion { major: 8, minor: 0 }, 1));
        let cluster = parse(CLUSTER.as_bytes()).unwrap();
        let booted: Vec<_> = cluster.workers.iter().map(|w| (w.index, w.booted, w.max_threads)).collect();
        assert_eq!(booted, [(0, true, 5), (1, true, 5), (2, false, 0)]);
    }

    #[test]
    fn stats_that_are_none_are_not_understood_as_zero_threads() {
        for text in ["", "{}", "[]", "null", "{\"worker_status\":3}", "{\"backlog\":0}", "{\"max_threads\":99999999999}"] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_token_cannot_end_its_query() {
        assert_eq!("a b&c\r\n".bytes().map(escaped).collect::<String>(), "a%20b%26c%0D%0A");
    }
}
