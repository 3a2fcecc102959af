//! What comes before HTTP on a connection: the PROXY line and the TLS handshake, both within `timeouts.tls_handshake`.
//!
//! Threat: slowloris and exhaustion, as a peer that never finishes its handshake would hold a connection for nothing. It runs in the
//! connection's own task, boxed, so that its memory is gone when HTTP begins. One deadline on the sweep covers all of it; the
//! expensive arithmetic starts only after a whole ClientHello and within the limits for handshakes.

use std::{
    future::{Future, poll_fn},
    io,
    mem::MaybeUninit,
    net::IpAddr,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use rustls::{
    ProtocolVersion,
    server::{Accepted, Acceptor},
};
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{StartHandshake, server::TlsStream};

use super::{
    Gate,
    beat::Beat,
    client::{Client, Scheme, unmapped},
    counters::{Failure, Rejected},
    limit::Permit,
    listener::Protocol,
    proxy_protocol::{Announced, LONGEST, ProxyProtocol, Verdict},
    sealing::{FLIGHT, Sealing},
    stream::{Stream, Transport},
    tls::Terminator,
};

/// How a listener greets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    pub protocol: Protocol,
    pub http2: bool,
    pub proxy_protocol: ProxyProtocol,
}

impl Manner {
    /// Whether HTTP is the first thing on a connection.
    pub fn is_plain(self) -> bool {
        self.proxy_protocol == ProxyProtocol::Off && self.protocol != Protocol::Https
    }
}

/// Greets a connection; `None` when it is not to be served, which is counted by its cause.
pub(super) async fn greet(
    gate: &Gate,
    manner: Manner,
    mut transport: Transport,
    mut client: Client,
    mut permit: Permit,
) -> Option<(Stream, Client, Permit)> {
    let deadline = gate.sweep.now().saturating_add(gate.timeouts.load().tls_handshake.as_millis());
    let beat = gate.sweep.enrol(deadline);
    if manner.proxy_protocol != ProxyProtocol::Off {
        let announced = within(&beat, header(&mut transport, manner.proxy_protocol)).await.flatten();
        let identified = announced.ok_or(Rejected::ProxyLine).and_then(|announced| adopt(gate, announced, &mut client, &mut permit));
        if let Err(reason) = identified {
            gate.counters.reject(reason);
            transport.dismiss();
            return None;
        }
    }
    let transport = match (manner.protocol, &gate.tls, transport) {
        (Protocol::Https, Some(terminator), Transport::Tcp(tcp)) => {
            let shaken = within(&beat, shake(gate, terminator, manner.http2, tcp, client.ip)).await;
            match shaken.unwrap_or(Err(Ended::Failed(Failure::Timeout))) {
                Ok(tls) => {
                    gate.counters.handshake();
                    describe(&tls, &mut client);
                    Transport::Tls(Box::new(Sealing::new(tls)))
                }
                Err(ended) => {
                    match ended {
                        Ended::Rejected(reason) => gate.counters.reject(reason),
                        Ended::Failed(cause) => gate.counters.fail(cause),
                    }
                    return None;
                }
            }
        }
        // `serve` does not start in this state; never fall back to plain HTTP where TLS was asked for.
        (Protocol::Https, _, _) => return None,
        (Protocol::Http | Protocol::Redirect, _, transport) => transport,
    };
    Some((Stream::new(transport, manner.protocol, manner.http2), client, permit))
}

/// Takes over whom a PROXY line speaks for.
fn adopt(gate: &Gate, announced: Announced, client: &mut Client, permit: &mut Permit) -> Result<(), Rejected> {
    match announced {
        Announced::Nobody => Ok(()),
        Announced::Client { source, destination } => {
            if gate.doorkeeper.turns_away(unmapped(source.ip())) {
                return Err(Rejected::Banned);
            }
            permit.identify(source.ip())?;
            client.ip = unmapped(source.ip());
            client.port = source.port();
            client.local_port = destination.port();
            // The balancer passes bytes on, so forwarding fields are the client's word and count only if the client is listed.
            client.trusted = gate.trusted.load().contains(client.ip);
            Ok(())
        }
    }
}

/// Reads a PROXY header and not one byte more: bytes are looked at first, and taken when they belong to it. What is taken at once
/// never shows again, so that a peer that closes its side in the middle of a header does not make this loop spin.
async fn header(transport: &mut Transport, expected: ProxyProtocol) -> Option<Announced> {
    let mut bytes = [0u8; LONGEST];
    let mut held = 0usize;
    loop {
        let room = bytes.get_mut(held..).filter(|room| !room.is_empty())?;
        let shown = transport.peek(room).await.ok().filter(|shown| *shown > 0)?;
        let seen = held.saturating_add(shown);
        let (length, announced) = match expected.read(bytes.get(..seen)?) {
            Verdict::Partial => (seen, None),
            Verdict::Complete(length, announced) => (length, Some(announced)),
            Verdict::Bad(_) => return None,
        };
        transport.take(bytes.get_mut(held..length)?).await.ok()?;
        held = length;
        if announced.is_some() {
            return announced;
        }
    }
}

/// How a handshake ends without a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Rejected(Rejected),
    Failed(Failure),
}

async fn shake(
    gate: &Gate,
    terminator: &Terminator,
    http2: bool,
    mut tcp: TcpStream,
    client: IpAddr,
) -> Result<TlsStream<TcpStream>, Ended> {
    let (mut acceptor, mut has_begun) = (Acceptor::default(), false);
    let accepted = match poll_fn(|cx| poll_hello(&mut tcp, &mut acceptor, &mut has_begun, cx)).await {
        Ok(accepted) => accepted,
        Err(Hello::PlainHttp) => {
            answer_in_plain(&mut tcp).await;
            return Err(Ended::Failed(Failure::PlainHttp));
        }
        Err(Hello::NotTls) => return Err(Ended::Failed(Failure::NotTls)),
        Err(Hello::Closed) => return Err(Ended::Failed(Failure::Closed)),
        Err(Hello::Malformed(alert)) => {
            say(&mut tcp, &alert).await;
            return Err(Ended::Failed(Failure::Malformed));
        }
    };
    let begun = gate.limits.handshake(client).map_err(Ended::Rejected)?;
    let is_known = terminator.knows(accepted.client_hello().server_name());
    let start = StartHandshake::from_parts(accepted, tcp);
    let shaken = start.into_stream_with(terminator.config(http2), |tls| tls.set_buffer_limit(Some(FLIGHT))).await;
    drop(begun);
    shaken.map_err(|error| Ended::Failed(if is_known { cause(&error) } else { Failure::UnknownName }))
}

/// Why there is no ClientHello.
#[derive(Debug)]
enum Hello {
    PlainHttp,
    NotTls,
    Closed,
    Malformed(Vec<u8>),
}

/// Reads the ClientHello. The bytes pass through our hands, so that HTTP on a TLS port is seen without a look of its own.
fn poll_hello(tcp: &mut TcpStream, acceptor: &mut Acceptor, has_begun: &mut bool, cx: &mut Context<'_>) -> Poll<Result<Accepted, Hello>> {
    loop {
        let mut space = [MaybeUninit::<u8>::uninit(); READ];
        let mut buf = ReadBuf::uninit(&mut space);
        if ready!(Pin::new(&mut *tcp).poll_read(cx, &mut buf)).is_err() {
            return Poll::Ready(Err(Hello::Closed));
        }
        let mut bytes = buf.filled();
        match bytes.first() {
            None => return Poll::Ready(Err(Hello::Closed)),
            Some(_) if *has_begun => {}
            Some(&HANDSHAKE) => *has_begun = true,
            Some(first) if first.is_ascii_uppercase() => return Poll::Ready(Err(Hello::PlainHttp)),
            Some(_) => return Poll::Ready(Err(Hello::NotTls)),
        }
        while !bytes.is_empty() {
            if acceptor.read_tls(&mut bytes).is_err() {
                return Poll::Ready(Err(Hello::Malformed(Vec::new())));
            }
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Poll::Ready(Ok(accepted)),
            Ok(None) => {}
            Err((_, mut alert)) => {
                let mut bytes = Vec::new();
                let written = alert.write_all(&mut bytes);
                return Poll::Ready(Err(written.map_or(Hello::Closed, |()| Hello::Malformed(bytes))));
            }
        }
    }
}

/// A person who typed `http://` for a TLS port reads why there is no page; a scanner learns nothing.
async fn answer_in_plain(tcp: &mut TcpStream) {
    say(tcp, PLAIN_ANSWER).await;
}

/// Last words. Whether they arrive does not matter, as the connection ends either way.
async fn say(tcp: &mut TcpStream, words: &[u8]) {
    if tcp.write_all(words).await.is_ok() {
        drop(tcp.shutdown().await);
    }
}

fn cause(error: &io::Error) -> Failure {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return Failure::Closed;
    };
    if matches!(error, rustls::Error::AlertReceived(_)) {
        Failure::Alert
    } else if matches!(error, rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol) {
        Failure::NothingInCommon
    } else if matches!(
        error,
        rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_) | rustls::Error::InvalidCertRevocationList(_)
    ) {
        Failure::ClientCertificate
    } else {
        Failure::Malformed
    }
}

/// What the handshake says of the client.
fn describe(tls: &TlsStream<TcpStream>, client: &mut Client) {
    let connection = tls.get_ref().1;
    client.scheme = Scheme::Https;
    client.tls = match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "",
    };
    client.alpn = match connection.alpn_protocol() {
        Some(b"h2") => "h2",
        Some(b"http/1.1") => "http/1.1",
        _ => "",
    };
    client.server_name = connection.server_name().map(|name| name.to_ascii_lowercase().into());
}

/// Runs until the beat is over: its deadline has passed, or the connection goes to make room.
async fn within<T>(beat: &Beat, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        beat.wake_by(cx.waker());
        match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if beat.is_over() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// The first byte of a TLS record that carries a handshake, RFC 8446 §5.1.
const HANDSHAKE: u8 = 0x16;

/// A ClientHello with X25519MLKEM768 has about 1.8 KiB.
const READ: usize = 4096;

const PLAIN_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 51\r\nConnection: close\r\n\r\n\
This port speaks TLS. Use https:// in the address.\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_answer_has_the_length_that_it_says() {
        let text = std::str::from_utf8(PLAIN_ANSWER).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}
