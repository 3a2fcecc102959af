//! The head of an answer to an HTTP/1 client, and the frame around each piece of its body. RFC 9112 §4, §6, §7.1.
//!
//! Framing is decided here and nowhere else for this side: a known length, or chunks, or (HTTP/1.0) the end of the connection.

use std::{cell::RefCell, io::Write, time::SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, response};

/// How the client learns where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// There is no body.
    Nothing,
    /// So many bytes follow.
    Length(u64),
    /// Chunks follow.
    Chunks,
    /// The body ends with the connection.
    Close,
}

/// What the head says of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// It stays open, as HTTP/1.1 does without saying so.
    Keep,
    /// It stays open, which an HTTP/1.0 client must be told.
    KeepOld,
    /// It is closed after this answer.
    Close,
}

impl Frame {
    /// Decides by the status, the request and what is known of the body's length.
    pub fn of(status: StatusCode, to_head: bool, is_old: bool, length: Option<u64>) -> Self {
        let bodiless = to_head || status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
        match length {
            _ if bodiless => Frame::Nothing,
            Some(length) => Frame::Length(length),
            None if is_old => Frame::Close,
            None => Frame::Chunks,
        }
    }
}

/// Writes the head of an answer.
pub fn write_head(out: &mut Vec<u8>, parts: &response::Parts, frame: Frame, persistence: Persistence, now: SystemTime) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(parts.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(parts.status.canonical_reason().unwrap_or("Unknown").as_bytes());
    out.extend_from_slice(b"\r\n");
    // Where a body follows its length is ours to say; an answer to HEAD tells the length that GET would have.
    let own = if frame == Frame::Nothing { None } else { Some(header::CONTENT_LENGTH) };
    write_fields(out, parts.headers.iter().filter(|(name, _)| own.as_ref() != Some(*name)));
    if !parts.headers.contains_key(header::DATE) {
        write_date(out, now);
    }
    match frame {
        Frame::Length(length) => {
            out.extend_from_slice(b"content-length: ");
            out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        Frame::Chunks => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Frame::Nothing | Frame::Close => {}
    }
    match persistence {
        Persistence::Keep => {}
        Persistence::KeepOld => out.extend_from_slice(b"connection: keep-alive\r\n"),
        Persistence::Close => out.extend_from_slice(b"connection: close\r\n"),
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes an interim answer (RFC 9110 §15.2), such as 103 with its `link` fields.
pub fn interim(status: StatusCode, fields: &HeaderMap) -> Bytes {
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes());
    out.extend_from_slice(b"\r\n");
    write_fields(&mut out, fields.iter());
    out.extend_from_slice(b"\r\n");
    out.into()
}

/// Writes the field lines of a 101, whose Connection and Upgrade fields are the application's.
pub fn switching(parts: &response::Parts) -> Bytes {
    interim(StatusCode::SWITCHING_PROTOCOLS, &parts.headers)
}

/// The line before a chunk of `length` bytes.
pub fn chunk_line(out: &mut Vec<u8>, length: usize) {
    // Writing into a Vec cannot fail.
    write!(out, "{length:x}\r\n").ok();
}

/// The last chunk and the empty trailer section.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

fn write_fields<'a>(out: &mut Vec<u8>, fields: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>) {
    for (name, value) in fields {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// RFC 9110 §6.6.1: Puma sends no Date, so this server does. Formatted once a second and thread.
fn write_date(out: &mut Vec<u8>, now: SystemTime) {
    let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    DATE.with_borrow_mut(|(at, line)| {
        if *at != second {
            *at = second;
            line.clear();
            write!(line, "date: {}\r\n", httpdate::HttpDate::from(now)).ok();
        }
        out.extend_from_slice(line);
    });
}

thread_local! {
    static DATE: RefCell<(u64, Vec<u8>)> = const { RefCell::new((u64::MAX, Vec::new())) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Response;

    fn head(frame: Frame, persistence: Persistence) -> String {
        let (parts, ()) = Response::builder().status(200).header("x-a", "1").header("date", "now").body(()).unwrap().into_parts();
        let mut out = Vec::new();
        write_head(&mut out, &parts, frame, persistence, SystemTime::UNIX_EPOCH);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_head_carries_exactly_one_framing() {
        assert_eq!(head(Frame::Length(7), Persistence::Keep), "HTTP/1.1 200 OK\r\nx-a: 1\r\ndate: now\r\ncontent-length: 7\r\n\r\n");
        assert_eq!(
            head(Frame::Chunks, Persistence::Close),
            "HTTP/1.1 200 OK\r\nx-a: 1\r\ndate: now\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        );
        assert_eq!(head(Frame::Close, Persistence::Close), "HTTP/1.1 200 OK\r\nx-a: 1\r\ndate: now\r\nconnection: close\r\n\r\n");
    }

    #[test]
    fn an_http_1_0_client_never_gets_chunks() {
        assert_eq!(Frame::of(StatusCode::OK, false, true, None), Frame::Close);
        assert_eq!(Frame::of(StatusCode::OK, false, false, None), Frame::Chunks);
    }

    #[test]
    fn head_204_and_304_have_no_body() {
        assert_eq!(Frame::of(StatusCode::OK, true, false, Some(5)), Frame::Nothing);
        assert_eq!(Frame::of(StatusCode::NO_CONTENT, false, false, Some(5)), Frame::Nothing);
        assert_eq!(Frame::of(StatusCode::NOT_MODIFIED, false, false, None), Frame::Nothing);
    }

    #[test]
    fn a_date_is_added_where_puma_sent_none() {
        let (parts, ()) = Response::new(()).into_parts();
        let mut out = Vec::new();
        write_head(&mut out, &parts, Frame::Nothing, Persistence::Keep, SystemTime::UNIX_EPOCH);
        assert_eq!(out, b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n");
    }
}
