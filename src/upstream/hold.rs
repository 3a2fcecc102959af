//! Waiting out a restart: what was not sent yet is held while Puma's socket refuses or is missing.
//!
//! Each socket has a gate. A refused connection closes it and starts one prober; requests that already have a slot wait
//! at the gate, all others in the queue (their number is bounded there), until a connection succeeds or the hold is over.

use std::{
    io,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    layers::slots::Slot,
    refusal::Refusal,
    upstream::{
        Inner,
        connect::Address,
        dispatch::Socket,
        health,
        pool::{Connection, Keep},
    },
};

/// Open while the socket accepts connections.
#[derive(Debug)]
pub(super) struct Gate(watch::Sender<bool>);

impl Default for Gate {
    fn default() -> Self {
        Gate(watch::Sender::new(true))
    }
}

impl Gate {
    /// Whether the socket accepted the last time.
    pub(super) fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    /// Closes or opens it; true where that changed something.
    fn set(&self, open: bool) -> bool {
        self.0.send_if_modified(|now| std::mem::replace(now, open) != open)
    }

    /// Waits until it is open, or for that long.
    async fn opened(&self, longest: Duration) {
        let mut state = self.0.subscribe();
        // Either way the caller looks again.
        drop(tokio::time::timeout(longest, state.wait_for(|open| *open)).await);
    }
}

/// A connection to the worker whose slot this is, or to another one that is free; waits for Puma until `give_up`.
pub(super) async fn connection(
    puma: &Arc<Inner>,
    slot: &mut Slot,
    wish: Wish,
    give_up: &mut Option<Instant>,
) -> Result<(Arc<Socket>, Connection), Refusal> {
    let mut now = slot.since();
    loop {
        let socket = puma.sockets.get(slot.worker());
        if let Some(socket) = socket.as_ref().filter(|s| s.gate.is_open()) {
            if wish.allows_used(&socket.address)
                && let Some(connection) = socket.pool.take(puma.keep(), now)
            {
                return Ok((Arc::clone(socket), connection));
            }
            match socket.address.connect(puma.config.connect_timeout.get()).await {
                Ok(stream) => return Ok((Arc::clone(socket), Connection { stream, served: 0 })),
                Err(e) if ours(&e) => return Err(Refusal::Overloaded),
                Err(_) => lost(puma, socket),
            }
        }
        now = Instant::now();
        if slot.move_away() {
            continue;
        }
        let end = *give_up.get_or_insert(now + puma.config.hold_on_refused.get());
        let left = end.saturating_duration_since(now);
        if left.is_zero() {
            return Err(Refusal::UpstreamRefused);
        }
        match &socket {
            Some(socket) => socket.gate.opened(left.min(LOOK_AROUND)).await,
            None => tokio::time::sleep(left.min(LOOK_AROUND)).await,
        }
        now = Instant::now();
    }
}

/// Which connections will do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wish {
    /// A used one as well.
    Used,
    /// A used one only where it shows that a request was not read: this one must not be sent twice.
    Certain,
    /// Only a new one.
    Fresh,
}

impl Wish {
    fn allows_used(self, address: &Address) -> bool {
        match self {
            Wish::Used => true,
            Wish::Certain => address.reset_means_unread(),
            Wish::Fresh => false,
        }
    }
}

/// A socket that cannot be reached gets no more requests until its prober has been accepted.
pub(super) fn lost(puma: &Arc<Inner>, socket: &Arc<Socket>) {
    if socket.gate.set(false) {
        puma.slots.set_down(socket.index, true);
        tokio::spawn(probe(Arc::downgrade(puma), Arc::clone(socket)));
    }
}

async fn probe(puma: Weak<Inner>, socket: Arc<Socket>) {
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        let Some(puma) = puma.upgrade() else { return };
        let Ok(stream) = socket.address.connect(puma.config.connect_timeout.get()).await else {
            look_around(&puma, &socket).await;
            continue;
        };
        if !health::answers(&puma, &socket.address).await {
            continue;
        }
        if matches!(puma.keep(), Keep::For(_)) {
            socket.pool.put(Connection { stream, served: 0 }, puma.keep(), Instant::now());
        }
        socket.gate.set(true);
        puma.slots.set_down(socket.index, false);
        return;
    }
}

/// A Puma that ends closes all its sockets, but a worker whose threads are all busy gets no connection that would show it,
/// and it may take long to end. Until that is known, the queue waits for its threads, not for Puma to come back.
async fn look_around(puma: &Arc<Inner>, socket: &Arc<Socket>) {
    let all = puma.sockets.all();
    let closed = all.iter().find(|other| !other.gate.is_open());
    if closed.is_none_or(|first| first.index != socket.index) {
        return;
    }
    let busy = puma.slots.busy_workers();
    for other in all.iter().filter(|other| other.gate.is_open() && busy.contains(&other.index)) {
        if other.address.connect(puma.config.connect_timeout.get()).await.is_err_and(|e| !ours(&e)) {
            lost(puma, other);
        }
    }
}

/// Out of descriptors or memory: no fault of Puma's.
fn ours(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| ours.iter().any(|e| e.raw_os_error() == code))
}

/// A held request looks for another worker at least this often.
const LOOK_AROUND: Duration = Duration::from_millis(250);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
