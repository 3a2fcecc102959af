//! The origin behind the proxies that are measured: answers as many bytes as the path says and discards every body.
//!
//! `GET /1024` answers 1024 bytes, `GET /5368709120` 5 GiB; the answer to a body is sent when its last byte has come. Reads
//! `Content-Length` only and keeps every connection open. A thread for each connection costs two system calls for a request,
//! so that on a machine with two processors the origin does not become what is measured. For loopback: it trusts whoever
//! connects. It needs the standard library alone and is built apart from Palisade, as the features of dev-dependencies
//! would otherwise get into the binary that is measured:
//!
//! ```text
//! rustc --edition 2024 -O benches/origin.rs -o target/release/origin
//! target/release/origin 127.0.0.1:9000 unix:/tmp/origin.sock
//! ```

use std::{
    io::{self, Read, Write},
    net::TcpListener,
    os::unix::net::UnixListener,
    thread,
};

fn main() -> io::Result<()> {
    let mut listeners = Vec::new();
    for address in std::env::args().skip(1) {
        listeners.push(match address.strip_prefix("unix:") {
            Some(path) => {
                let listener = UnixListener::bind(path)?;
                thread::spawn(move || -> io::Result<()> {
                    loop {
                        let (stream, _) = listener.accept()?;
                        start(stream)?;
                    }
                })
            }
            None => {
                let listener = TcpListener::bind(&address)?;
                thread::spawn(move || -> io::Result<()> {
                    loop {
                        let (stream, _) = listener.accept()?;
                        stream.set_nodelay(true)?;
                        start(stream)?;
                    }
                })
            }
        });
    }
    match listeners.pop().map(thread::JoinHandle::join) {
        Some(Ok(ended)) => ended,
        Some(Err(_)) => Err(io::Error::other("a listener has ended")),
        None => Err(io::Error::other("usage: origin ADDRESS:PORT|unix:PATH ...")),
    }
}

/// Serves a connection on a thread of its own.
fn start(stream: impl Read + Write + Send + 'static) -> io::Result<()> {
    thread::Builder::new().stack_size(128 * 1024).spawn(move || connection(stream)).map(drop)
}

/// Answers one request after the other. That a client leaves is no error of ours.
fn connection(mut stream: impl Read + Write) -> io::Result<()> {
    let mut read = vec![0; SMALL];
    let mut held = 0;
    let mut answer = Vec::with_capacity(SMALL);
    loop {
        let head = loop {
            if let Some(at) = read.get(..held).and_then(|bytes| bytes.windows(4).position(|four| four == b"\r\n\r\n")) {
                break at + 4;
            }
            if held == read.len() {
                return Ok(()); // no head is as large as this
            }
            let count = stream.read(read.get_mut(held..).unwrap_or_default())?;
            if count == 0 {
                return Ok(());
            }
            held += count;
        };
        let request = read.get(..head).unwrap_or_default();
        let wanted = size(request);
        let body = length(request);
        let here = body.min(held - head);
        read.copy_within(head + here..held, 0);
        held -= head + here;
        discard(&mut stream, body - here)?;
        answer.clear();
        answer.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: ");
        answer.extend_from_slice(wanted.to_string().as_bytes());
        answer.extend_from_slice(b"\r\n\r\n");
        let mut rest = wanted;
        loop {
            let now = rest.min(PIECE);
            answer.resize(answer.len() + now, b'x');
            stream.write_all(&answer)?;
            rest -= now;
            if rest == 0 {
                break;
            }
            answer.clear();
        }
    }
}

/// Reads so many bytes.
fn discard(stream: &mut impl Read, mut left: usize) -> io::Result<()> {
    let mut room = if left > 0 { vec![0; left.min(PIECE)] } else { Vec::new() };
    while left > 0 {
        let most = left.min(room.len());
        let count = stream.read(room.get_mut(..most).unwrap_or_default())?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= count;
    }
    Ok(())
}

/// The number in the request target, else 0.
fn size(head: &[u8]) -> usize {
    let target = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    number(target.strip_prefix(b"/").unwrap_or_default())
}

/// The value of `Content-Length`, else 0.
fn length(head: &[u8]) -> usize {
    let lines = head.split(|byte| *byte == b'\n');
    let mut fields = lines.filter_map(|line| Some((line.get(..15)?, line.get(15..)?)));
    fields.find(|(name, _)| name.eq_ignore_ascii_case(b"content-length:")).map_or(0, |(_, value)| number(value.trim_ascii()))
}

fn number(digits: &[u8]) -> usize {
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Room for a head, and what a body may bring along with it.
const SMALL: usize = 64 * 1024;
/// Bytes of one read or write of a large body.
const PIECE: usize = 256 * 1024;
