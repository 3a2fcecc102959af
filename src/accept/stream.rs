//! A connection's bytes after PROXY line and TLS: one type for TCP, TLS and unix sockets, small, without a box for plain ones.

use std::{
    io::{self, IoSlice},
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll},
};

use rustix::{
    io::Errno,
    net::{SendFlags, send},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
};

use super::{listener::Protocol, sealing::Sealing};

/// A client's connection.
#[derive(Debug)]
pub struct Stream {
    transport: Transport,
    protocol: Protocol,
    http2: bool,
}

/// What carries the bytes.
#[derive(Debug)]
pub enum Transport {
    /// TCP without TLS.
    Tcp(TcpStream),
    /// TLS that ends here.
    Tls(Box<Sealing>),
    /// A unix socket.
    Unix(UnixStream),
}

/// What became of bytes that were pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The kernel had no room before, so what it took now the client has made room for.
    pub was_full: bool,
    /// So many of them are on their way.
    pub taken: usize,
    /// So many went out that had been encrypted before.
    pub sealed: usize,
}

impl Stream {
    /// A connection after its greeting.
    pub fn new(transport: Transport, protocol: Protocol, http2: bool) -> Self {
        Stream { transport, protocol, http2 }
    }

    /// A plain connection for the tests of what comes behind.
    #[cfg(test)]
    pub fn of_unix(stream: UnixStream) -> Self {
        Stream { transport: Transport::Unix(stream), protocol: Protocol::Http, http2: true }
    }

    /// What its listener serves.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether its listener takes HTTP/2.
    pub fn http2(&self) -> bool {
        self.http2
    }

    /// What carries the bytes.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Ends the connection by a reset: what is unsent is thrown away, and the client learns that its answer is not whole.
    pub fn reset(self) {
        let tcp = match self.transport {
            Transport::Tcp(tcp) => tcp,
            Transport::Tls(tls) => tls.into_tcp(),
            Transport::Unix(_) => return,
        };
        // Where the option cannot be set the peer has reset already.
        tcp.set_zero_linger().unwrap_or_default();
    }

    /// Offers to the kernel what comes next, whatever it says of room: it calls a socket writable only when much of its buffer is
    /// free again, for which a slow client takes longer than it may pause.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<Pushed> {
        let taken = match &mut self.transport {
            Transport::Tcp(s) => offer(s, bytes)?,
            Transport::Unix(s) => offer(s, bytes)?,
            Transport::Tls(s) => return s.push(bytes),
        };
        Ok(Pushed { was_full: true, taken, sealed: 0 })
    }

    /// Whether the kernel has no room, as far as is known of a socket that waits for some. Under TLS it is asked before anything is
    /// encrypted, and says no long before that.
    pub fn is_full(&self) -> bool {
        match &self.transport {
            Transport::Tcp(_) | Transport::Unix(_) => true,
            Transport::Tls(s) => s.is_full(),
        }
    }

    /// Reads what is there without registering for more. Under TLS always `WouldBlock`: what is there is known after decryption
    /// only, so `poll_read` has to be asked.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match &self.transport {
            Transport::Tcp(s) => s.try_read(buf),
            Transport::Unix(s) => s.try_read(buf),
            Transport::Tls(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Transport {
    /// Waits for bytes and looks at them without taking them.
    pub(super) async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Tcp(s) => s.peek(buf).await,
            Transport::Unix(s) => {
                let look = || rustix::net::recv(s, &mut *buf, rustix::net::RecvFlags::PEEK).map(|(n, _)| n).map_err(io::Error::from);
                s.async_io(Interest::READABLE, look).await
            }
            Transport::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Takes bytes that a peek has shown.
    pub(super) async fn take(&mut self, shown: &mut [u8]) -> io::Result<()> {
        match self {
            Transport::Tcp(s) => s.read_exact(shown).await.map(|_| ()),
            Transport::Unix(s) => s.read_exact(shown).await.map(|_| ()),
            Transport::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Closes a connection that is not served. Bytes that nobody read would turn the close into a reset, so what is there is
    /// read once and thrown away.
    pub(super) fn dismiss(&self) {
        let mut away = [0u8; 2048];
        let read = match self {
            Transport::Tcp(s) => rustix::net::recv(s, &mut away[..], rustix::net::RecvFlags::DONTWAIT),
            Transport::Unix(s) => rustix::net::recv(s, &mut away[..], rustix::net::RecvFlags::DONTWAIT),
            Transport::Tls(_) => return,
        };
        // Nothing there and gone already are as good: the descriptor is closed by the drop that follows.
        read.map(drop).unwrap_or_default();
    }
}

/// One attempt to write, without waiting: how much the kernel took. What joins a packet that is there already it takes beyond its
/// bound, up to 64 KiB, and then nothing for as long as a slow client is at that: so each piece ends its packet.
pub(super) fn offer(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let mut taken = 0usize;
    for piece in bytes.chunks(PACKET) {
        let n = match send(&socket, piece, SendFlags::DONTWAIT | SendFlags::NOSIGNAL | SendFlags::EOR) {
            Err(Errno::WOULDBLOCK) => 0,
            sent => sent?,
        };
        taken = taken.saturating_add(n);
        if n < piece.len() {
            break;
        }
    }
    Ok(taken)
}

/// Bytes that are offered at once: more than a short record of TLS has.
const PACKET: usize = 8 * 1024;

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Transport::Tls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
            Transport::Unix(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Transport::Tls(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
            Transport::Unix(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Transport::Tls(s) => Pin::new(s.as_mut()).poll_write_vectored(cx, bufs),
            Transport::Unix(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    /// Not under TLS, where one buffer makes fuller records and was measured a shade faster.
    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Tcp(_) | Transport::Unix(_) => true,
            Transport::Tls(_) => false,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(s) => Pin::new(s).poll_flush(cx),
            Transport::Tls(s) => Pin::new(s.as_mut()).poll_flush(cx),
            Transport::Unix(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Transport::Tls(s) => Pin::new(s.as_mut()).poll_shutdown(cx),
            Transport::Unix(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn a_stream_is_small() {
        assert!(size_of::<Stream>() <= 56, "{}", size_of::<Stream>());
    }

    #[tokio::test]
    async fn as_much_is_offered_as_there_is_room_for_and_it_arrives_in_order() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n / 7) as u8).collect();
        let taken = offer(&far, &bytes).unwrap();
        assert!(taken > 2 * PACKET && taken < bytes.len() && offer(&far, &bytes).unwrap() == 0, "{taken}");
        drop(far);
        let mut came = Vec::new();
        near.read_to_end(&mut came).await.unwrap();
        assert!(came == bytes[..taken]);
        assert_eq!(offer(&near, b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_peek_takes_nothing_and_take_takes_as_much_as_it_is_asked() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut far = Transport::Unix(far);
        near.write_all(b"PROXY rest").await.unwrap();
        let mut seen = [0; 64];
        assert_eq!(far.peek(&mut seen).await.unwrap(), 10);
        assert_eq!(far.peek(&mut seen).await.unwrap(), 10);
        let mut shown = [0; 6];
        far.take(&mut shown).await.unwrap();
        assert_eq!(&shown, b"PROXY ");
        let stream = Stream::new(far, Protocol::Http, true);
        assert_eq!(stream.try_read(&mut seen).unwrap(), 4);
        assert_eq!(&seen[..4], b"rest");
        assert_eq!(stream.try_read(&mut seen).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
