//! The origin behind the proxies that are measured: answers as many bytes as the path says and discards every body.
//!
//! `GET /1024` answers 1024 bytes, `GET /5368709120` 5 GiB; the answer to a body is sent when its last byte has come. Reads
//! `Content-Length` only, keeps every connection open, and needs no more than a few system calls for a request, so that on a
//! machine with two processors it does not become what is measured. For loopback: it trusts whoever connects.
//!
//! ```text
//! target/release/examples/origin 127.0.0.1:9000 unix:/tmp/origin.sock
//! ```

use std::io;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};

fn main() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(serve(std::env::args().skip(1)))
}

/// Listens on every address until one of them fails.
async fn serve(addresses: impl Iterator<Item = String>) -> io::Result<()> {
    let mut listeners = JoinSet::new();
    for address in addresses {
        match address.strip_prefix("unix:") {
            Some(path) => {
                let listener = UnixListener::bind(path)?;
                listeners.spawn(async move {
                    loop {
                        let (stream, _) = listener.accept().await?;
                        tokio::spawn(connection(stream));
                    }
                })
            }
            None => {
                let listener = TcpListener::bind(&address).await?;
                listeners.spawn(async move {
                    loop {
                        let (stream, _) = listener.accept().await?;
                        stream.set_nodelay(true)?;
                        tokio::spawn(connection(stream));
                    }
                })
            }
        };
    }
    match listeners.join_next().await {
        Some(ended) => ended?,
        None => Err(io::Error::other("usage: origin ADDRESS:PORT|unix:PATH ...")),
    }
}

/// Answers one request after the other. That a client leaves is no error of ours.
async fn connection(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut read = Vec::with_capacity(PIECE);
    let mut answer = Vec::with_capacity(PIECE);
    loop {
        let head = loop {
            if let Some(at) = memchr::memmem::find(&read, b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        let request = read.get(..head).unwrap_or_default();
        let wanted = size(request);
        let mut body = length(request);
        let here = body.min(read.len() - head);
        read.drain(..head + here);
        body -= here;
        while body > 0 {
            answer.clear();
            let room = body.min(PIECE);
            let count = (&mut stream).take(u64::try_from(room).unwrap_or(u64::MAX)).read_buf(&mut answer).await?;
            if count == 0 {
                return Ok(());
            }
            body -= count;
        }
        answer.clear();
        answer.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: ");
        answer.extend_from_slice(wanted.to_string().as_bytes());
        answer.extend_from_slice(b"\r\n\r\n");
        let mut rest = wanted;
        loop {
            let now = rest.min(PIECE - answer.len().min(PIECE));
            answer.resize(answer.len() + now, b'x');
            stream.write_all(&answer).await?;
            rest -= now;
            if rest == 0 {
                break;
            }
            answer.clear();
        }
    }
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

/// Bytes of one read or write of a large body.
const PIECE: usize = 256 * 1024;
