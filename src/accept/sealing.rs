//! The writing side of a TLS connection: how far encryption may run ahead of the socket.
//!
//! Threat: slowloris by slow reading. What is encrypted can no longer go to a file: it waits in memory until the client takes it.
//! tokio-rustls encrypts until its buffer is full, in chunks that keep their room until they are gone as a whole; measured, that
//! was 60 KiB more for each slow reader than without TLS. Here nothing is encrypted before the socket has taken everything that
//! was, nor without having asked it every few records whether it has room; what it leaves all the same is kept in room of just its size.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::stream::{Pushed, offer};

/// A TLS connection after its handshake.
#[derive(Debug)]
pub struct Sealing {
    tls: TlsStream<TcpStream>,
    /// Records, or the rest of one, that the socket has not taken.
    unsent: Vec<u8>,
    /// How much of `unsent` the socket has taken meanwhile.
    sent: usize,
    /// Plaintext that was encrypted since the socket was asked for room.
    unasked: usize,
}

/// Takes all that rustls has: the socket what it can, `unsent` the rest.
struct Outlet<'a, 'b> {
    tcp: Pin<&'a mut TcpStream>,
    cx: &'a mut Context<'b>,
    unsent: &'a mut Vec<u8>,
}

impl Sealing {
    /// What a handshake ended with.
    pub fn new(tls: TlsStream<TcpStream>) -> Self {
        Sealing { tls, unsent: Vec::new(), sent: 0, unasked: 0 }
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        self.tls.get_ref().0
    }

    /// The socket, and nothing of what waits for it.
    pub fn into_tcp(self) -> TcpStream {
        self.tls.into_inner().0
    }

    /// Waits until the socket has room for another flight. Looks at the socket itself: a write that it took whole says nothing
    /// about the next one.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let tcp = self.tcp();
        loop {
            ready!(tcp.poll_write_ready(cx))?;
            match tcp.try_io(Interest::WRITABLE, || has_room(tcp)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                seen => return Poll::Ready(seen),
            }
        }
    }

    /// Whether the kernel is known to have no room: it has left some of what is encrypted.
    pub fn is_full(&self) -> bool {
        self.sent < self.unsent.len()
    }

    /// Offers to the kernel what is encrypted, then `bytes`, in small records until it takes no more, without asking it for room.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<Pushed> {
        let was_full = self.is_full();
        let mut pushed = Pushed { was_full, taken: 0, sealed: self.offer()? };
        for record in bytes.chunks(SHORT_RECORD) {
            if self.is_full() {
                break;
            }
            let session = self.tls.get_mut().1;
            pushed.taken = pushed.taken.saturating_add(io::Write::write(&mut session.writer(), record)?);
            (self.unsent, self.sent) = (Vec::new(), 0);
            while session.wants_write() {
                session.write_tls(&mut self.unsent)?;
            }
            self.offer()?;
        }
        Ok(pushed)
    }

    /// One attempt to write what is encrypted.
    fn offer(&mut self) -> io::Result<usize> {
        let rest = self.unsent.get(self.sent..).unwrap_or_default();
        let n = if rest.is_empty() { 0 } else { offer(self.tcp(), rest)? };
        self.sent = self.sent.saturating_add(n);
        Ok(n)
    }

    /// Hands to the socket what is encrypted; ready when it has taken everything.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (tcp, session) = self.tls.get_mut();
        loop {
            while let Some(rest) = self.unsent.get(self.sent..).filter(|rest| !rest.is_empty()) {
                match ready!(Pin::new(&mut *tcp).poll_write(cx, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    n => self.sent = self.sent.saturating_add(n),
                }
            }
            if !session.wants_write() {
                (self.unsent, self.sent) = (Vec::new(), 0);
                return Poll::Ready(Ok(()));
            }
            self.unsent.clear();
            self.sent = 0;
            session.write_tls(&mut Outlet { tcp: Pin::new(&mut *tcp), cx, unsent: &mut self.unsent })?;
        }
    }
}

impl io::Write for Outlet<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let total = slices.iter().map(|slice| slice.len()).sum::<usize>();
        let mut gone = match self.tcp.as_mut().poll_write_vectored(self.cx, slices) {
            Poll::Ready(n) => n?,
            Poll::Pending => 0,
        };
        if gone < total {
            self.unsent.reserve_exact(total.saturating_sub(gone));
            for slice in slices {
                self.unsent.extend_from_slice(slice.get(gone..).unwrap_or_default());
                gone = gone.saturating_sub(slice.len());
            }
        }
        Ok(total)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Sealing {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Sealing {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        let mut taken = 0usize;
        while let Some(rest) = buf.get(taken..).filter(|rest| !rest.is_empty()) {
            if this.unasked >= FLIGHT {
                match this.poll_room(cx) {
                    Poll::Ready(asked) => asked?,
                    Poll::Pending if taken == 0 => return Poll::Pending,
                    Poll::Pending => break,
                }
                this.unasked = 0;
            }
            let piece = rest.get(..FLIGHT.saturating_sub(this.unasked)).unwrap_or(rest);
            let n = io::Write::write(&mut this.tls.get_mut().1.writer(), piece)?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            taken = taken.saturating_add(n);
            this.unasked = this.unasked.saturating_add(n);
            match this.poll_drain(cx) {
                Poll::Ready(drained) => drained?,
                Poll::Pending => {
                    this.unasked = FLIGHT;
                    break;
                }
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_drain(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.tls).poll_shutdown(cx)
    }
}

/// Whether the kernel would call the socket writable: at most half of [`NOT_SENT`](super::listener) is unsent, and a third of
/// the send buffer is free.
fn has_room(tcp: &TcpStream) -> io::Result<()> {
    let mut asked = [PollFd::new(tcp, PollFlags::OUT)];
    match poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        _ => Ok(()),
    }
}

/// Plaintext that is encrypted, and leaves in one system call, between two looks at the socket: two records (RFC 8446 §5.1).
pub(super) const FLIGHT: usize = 32 * 1024;
/// Plaintext of a record that may have to wait: a slow client holds no more of them than one.
const SHORT_RECORD: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName};
    use socket2::SockRef;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_rustls::{TlsAcceptor, TlsConnector, client};

    use super::*;
    use crate::accept::{
        certificate,
        tls::{Config, Terminator},
    };

    async fn pair(receive: usize) -> (Sealing, client::TlsStream<TcpStream>) {
        let folder = tempfile::tempdir().unwrap();
        let certificate = certificate::tests::write(folder.path(), "a.test", &["a.test"]);
        let mut roots = RootCertStore::empty();
        roots.add(certificate::certificates(&folder.path().join("a.test.pem")).unwrap().remove(0)).unwrap();
        let terminator = Terminator::load(&Config { certificate: vec![certificate], ..Config::default() }).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        SockRef::from(&listener).set_tcp_notsent_lowat(128 * 1024).unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        SockRef::from(&near).set_recv_buffer_size(receive).unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let acceptor = TlsAcceptor::from(terminator.config(false));
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from("a.test").unwrap();
        let (far, near) =
            tokio::join!(acceptor.accept_with(far, |session| session.set_buffer_limit(Some(FLIGHT))), connector.connect(name, near));
        (Sealing::new(far.unwrap()), near.unwrap())
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_holds_less_than_a_flight_and_hears_the_end_of_the_connection() {
        let (mut far, near) = pair(4096).await;
        let data = vec![7; 100_000];
        let mut taken = 0;
        while let Ok(n) = tokio::time::timeout(Duration::from_millis(200), far.write(&data)).await {
            taken += n.unwrap();
        }
        assert!(taken >= 64 * 1024, "{taken}");
        let (rest, room) = (far.unsent.len() - far.sent, far.unsent.capacity());
        assert!(rest <= FLIGHT + 100 && room <= rest + far.sent, "{rest} {room}");
        assert!(!far.tls.get_ref().1.wants_write(), "rustls holds nothing");
        drop(near);
        let ended = tokio::time::timeout(Duration::from_secs(5), async { while far.write(&data).await.is_ok() {} }).await;
        assert!(ended.is_ok(), "a connection that broke must wake who waits for room");
    }

    #[tokio::test]
    async fn what_is_pushed_fills_the_kernel_and_says_from_then_on_what_the_client_takes() {
        let (mut far, mut near) = pair(32 * 1024).await;
        let data: Vec<u8> = (0..1_000_000usize).map(|n| (n / 13 % 251) as u8).collect();
        let mut sent = 0;
        while let Ok(n) = tokio::time::timeout(Duration::from_millis(200), far.write(&data[sent..])).await {
            sent += n.unwrap();
        }
        sent += far.push(&data[sent..]).unwrap().taken;
        assert!(far.is_full() && far.unsent.len() - far.sent <= SHORT_RECORD + 100, "no more than a record waits");
        assert_eq!(far.push(&data[sent..]).unwrap(), Pushed { was_full: true, taken: 0, sealed: 0 }, "nobody has read");
        let mut got = vec![0; sent / 2];
        near.read_exact(&mut got).await.unwrap();
        let moved = async {
            loop {
                let pushed = far.push(&data[sent..]).unwrap();
                sent += pushed.taken;
                if pushed.sealed > 0 {
                    break pushed;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(5), moved).await.unwrap().was_full);
        let write = async {
            far.write_all(&data[sent..]).await.unwrap();
            far.shutdown().await.unwrap();
        };
        let (read, ()) = tokio::join!(near.read_to_end(&mut got), write);
        read.unwrap();
        assert!(got == data);
    }

    #[tokio::test]
    async fn every_byte_arrives_once_and_in_order_however_the_client_reads() {
        let (mut far, mut near) = pair(128 * 1024).await;
        fastrand::seed(3);
        let sent: Vec<u8> = (0..3_000_000usize).map(|n| (n / 13 % 251) as u8).collect();
        let expected = sent.clone();
        let write = async move {
            let mut rest = &sent[..];
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(fastrand::usize(1..100_000).min(rest.len()));
                far.write_all(piece).await.unwrap();
                rest = after;
            }
            far.shutdown().await.unwrap();
        };
        let read = async move {
            let mut got = Vec::new();
            loop {
                let mut room = vec![0; fastrand::usize(1..200_000)];
                // An end without close_notify is an error.
                match near.read(&mut room).await.unwrap() {
                    0 => return got,
                    n => got.extend_from_slice(&room[..n]),
                }
                if fastrand::u8(..) < 40 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        };
        let (got, ()) = tokio::join!(read, write);
        assert!(got == expected);
    }
}
