//! A request inside Puma: a connection and a slot that belong together until Puma's last byte.
//!
//! Threat: exhaustion. When the client is gone or was answered 504, Puma's thread is still busy; a slot that were free
//! then would send Puma more than it has threads. So the two are watched until Puma lets go.

use std::{
    io,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use bytes::BytesMut;

use crate::{
    http::upgrade::FarEnd,
    layers::slots::Slot,
    upstream::{Inner, connect::Stream, dispatch::Socket, pool::Connection, upgrade::far_end},
};

/// A connection in use and the thread behind it.
#[derive(Debug)]
pub(super) struct Turn(Option<Held>);

#[derive(Debug)]
struct Held {
    puma: Weak<Inner>,
    socket: Arc<Socket>,
    connection: Connection,
    slot: Slot,
    /// Puma has got something of the request.
    begun: bool,
    /// Puma has answered something.
    answered: bool,
}

impl Turn {
    pub(super) fn new(puma: &Arc<Inner>, socket: Arc<Socket>, connection: Connection, slot: Slot) -> Self {
        Turn(Some(Held { puma: Arc::downgrade(puma), socket, connection, slot, begun: false, answered: false }))
    }

    pub(super) fn stream(&mut self) -> io::Result<&mut Stream> {
        self.0.as_mut().map(|held| &mut held.connection.stream).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    pub(super) fn reset_means_unread(&self) -> bool {
        self.0.as_ref().is_some_and(|held| held.socket.address.reset_means_unread())
    }

    /// From here on Puma may be working on it.
    pub(super) fn begin(&mut self, now: Instant) {
        if let Some(held) = &mut self.0 {
            held.begun = true;
            held.slot.sent(now);
        }
    }

    pub(super) fn answered(&mut self) {
        if let Some(held) = &mut self.0 {
            held.answered = true;
        }
    }

    pub(super) fn is_stream(&mut self) {
        if let Some(held) = &mut self.0 {
            held.slot.is_stream();
        }
    }

    /// The client gets 504; the thread stays counted until Puma ends the connection.
    pub(super) fn time_out(mut self) {
        if let Some(held) = &mut self.0 {
            held.slot.is_stuck();
        }
    }

    /// Puma has ended the connection: there is nobody to wait for.
    pub(super) fn ended(&mut self) {
        self.0 = None;
    }

    /// Puma has ended the connection and has not executed the request: the slot is good for another attempt.
    pub(super) fn into_slot(mut self) -> Option<Slot> {
        self.0.take().map(|held| held.slot)
    }

    /// Puma's last byte: the thread is free; so is the connection, where it is `reusable`.
    pub(super) fn finish(&mut self, reusable: bool, now: Instant) {
        let Some(Held { puma, socket, connection, slot, .. }) = self.0.take() else { return };
        if reusable && let Some(puma) = puma.upgrade() {
            socket.pool.put(connection, puma.keep(), now);
        }
        // Last: whoever is woken by it finds the connection in the pool.
        slot.finish(now);
    }

    /// Puma has switched protocols: the connection goes on, its thread is free.
    pub(super) fn switch(mut self, leftover: BytesMut) -> Option<FarEnd> {
        let held = self.0.take()?;
        let puma = held.puma.upgrade()?;
        Some(far_end(held.connection.stream, leftover.freeze(), &puma.upgrades))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(held) = self.0.take().filter(|held| held.begun) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(let_go(held));
        }
    }
}

/// Reads what Puma still writes, for a while; then makes its writes fail, and waits until it has noticed where that can be
/// seen (unix sockets). The slot ends with it.
async fn let_go(held: Held) {
    let stream = &held.connection.stream;
    stream.end_writing();
    let mut read = 0usize;
    let mut until = held.answered.then(|| Instant::now() + DRAIN_TIME);
    let mut scratch = vec![0; DRAIN_BUFFER];
    loop {
        let ready = std::future::poll_fn(|cx| stream.poll_read_ready(cx));
        let woken = match until {
            None => ready.await,
            Some(end) => match tokio::time::timeout_at(end.into(), ready).await {
                Ok(woken) => woken,
                Err(_elapsed) => break,
            },
        };
        if woken.is_err() {
            return;
        }
        match stream.try_read(&mut scratch) {
            Ok(0) => return,
            Ok(n) => {
                read = read.saturating_add(n);
                until.get_or_insert_with(|| Instant::now() + DRAIN_TIME);
                if read > DRAIN_BYTES {
                    break;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
    stream.refuse_reading().await;
}

/// An answer that nobody wants is read for this long, counted from its first byte ...
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// ... and to this length; most are shorter, and then Puma's thread is free at the usual time.
const DRAIN_BYTES: usize = 1024 * 1024;
const DRAIN_BUFFER: usize = 16 * 1024;
