//! The count of Puma's threads, and who has one.
//!
//! Threat: exhaustion. Threads, not connections, are what runs out in Puma, and what waits inside Puma can neither be
//! ordered nor given up. So no more is sent than there are threads, each worker for itself, and the rest waits here.
//! A [`Slot`] is a permit: it frees itself on drop and wakes whoever is next. The decisions are `admission`'s.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::accept::client::ClientKey;

mod admission;
mod company;
mod crowd;
mod pressure;
mod terms;
mod workers;

pub use terms::{Ask, Figures, Full, Lane, Patience, Policy};

use admission::{Admission, Place};

/// Puma's threads. Clones share them.
#[derive(Clone, Debug)]
pub struct Slots {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    admission: Mutex<Admission<oneshot::Sender<Slot>>>,
}

/// One thread of Puma, held until Puma's last byte; given back on drop.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
    worker: u32,
    ask: Ask,
    since: Instant,
    /// When Puma's last byte came, where that is known to the microsecond.
    until: Option<Instant>,
    stuck: bool,
}

/// A place in the queue for a thread; left on drop.
#[derive(Debug)]
pub struct Waiting {
    shared: Arc<Shared>,
    place: Place,
    grant: oneshot::Receiver<Slot>,
}

/// Why a request got no thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSlot {
    /// None came free within the deadline.
    Late,
    /// Puma could not be reached within the hold.
    Away,
    /// The queue was full, and others had less of it.
    Displaced,
}

impl Slots {
    /// No worker yet: everything waits until [`Slots::set_workers`].
    pub fn new(policy: Policy) -> Self {
        Slots { shared: Arc::new(Shared { admission: Mutex::new(Admission::new(policy, Instant::now())) }) }
    }

    /// The threads of each worker.
    pub fn set_workers(&self, limits: &[u32]) {
        self.shared.change(Instant::now(), |admission, now| admission.set_workers(limits, now));
    }

    /// A worker cannot be reached (or can be again).
    pub fn set_down(&self, worker: u32, down: bool) {
        self.shared.change(Instant::now(), |admission, now| admission.set_down(worker, down, now));
    }

    /// Puma's control server is gone (or there again).
    pub fn note_control(&self, gone: bool) {
        self.shared.change(Instant::now(), |admission, now| admission.note_control(gone, now));
    }

    /// A thread at once, or none.
    pub fn try_take(&self, ask: &Ask) -> Option<Slot> {
        let now = Instant::now();
        let worker = self.shared.lock().take(ask, now)?;
        Some(self.shared.slot(worker, *ask, now))
    }

    /// A thread of this worker at once, or none: for checks of our own.
    pub fn try_take_of(&self, worker: u32) -> Option<Slot> {
        let client = ClientKey::of(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let ask = Ask { client, lane: Lane::Normal, class: 0, memory: 0 };
        let worker = self.shared.lock().take_of(worker, &ask)?;
        Some(self.shared.slot(worker, ask, Instant::now()))
    }

    /// A place in the queue.
    pub fn enqueue(&self, ask: Ask) -> Result<Waiting, Full> {
        let (ticket, grant) = oneshot::channel();
        let mut place = Err(Full { after: Duration::ZERO });
        self.shared.change(Instant::now(), |admission, now| place = admission.enqueue(ask, ticket, now));
        Ok(Waiting { shared: Arc::clone(&self.shared), place: place?, grant })
    }

    /// Workers that have no thread free.
    pub fn busy_workers(&self) -> Vec<u32> {
        let each = self.figures().workers;
        (0..).zip(each).filter(|(_, (threads, in_flight, _))| in_flight >= threads).map(|(index, _)| index).collect()
    }

    /// Figures for metrics and the live page.
    pub fn figures(&self) -> Figures {
        self.shared.lock().figures()
    }
}

impl Waiting {
    /// The thread, once it is this request's turn.
    pub async fn slot(mut self) -> Result<Slot, NoSlot> {
        loop {
            let patience = self.shared.lock().patience(self.place, Instant::now());
            let pause = match patience {
                Some(Patience::Wait(pause)) => pause,
                Some(Patience::Late) => return Err(NoSlot::Late),
                Some(Patience::Away) => return Err(NoSlot::Away),
                None => LONG,
            };
            match tokio::time::timeout(pause, &mut self.grant).await {
                Ok(Ok(slot)) => return Ok(slot),
                Ok(Err(_closed)) => return Err(NoSlot::Displaced),
                Err(_elapsed) => {}
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.change(Instant::now(), |admission, _| admission.leave(self.place));
    }
}

impl Slot {
    /// The index of the worker (or socket) whose thread it is.
    pub fn worker(&self) -> u32 {
        self.worker
    }

    /// Exchanges the thread for one of another worker that is free now.
    pub fn move_away(&mut self) -> bool {
        let moved = self.shared.lock().move_away(self.worker, Instant::now());
        self.worker = moved.unwrap_or(self.worker);
        moved.is_some()
    }

    /// Since when it is held, or since when Puma has the request.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// The request goes to Puma now: what was waited before says nothing about Puma.
    pub fn sent(&mut self, now: Instant) {
        self.since = now;
    }

    /// Puma's last byte came at `now`.
    pub fn finish(mut self, now: Instant) {
        self.until = Some(now);
    }

    /// The answer is an event stream: it counts to that lane.
    pub fn is_stream(&mut self) {
        self.shared.lock().change_lane(&mut self.ask, Lane::Stream);
    }

    /// The client has its answer (504) although the thread is still busy.
    pub fn is_stuck(&mut self) {
        if !std::mem::replace(&mut self.stuck, true) {
            self.shared.lock().mark_stuck(self.worker);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let now = self.until.unwrap_or_else(Instant::now);
        let measured = (!self.stuck && self.ask.lane == Lane::Normal).then(|| now.saturating_duration_since(self.since));
        self.shared.change(now, |admission, now| admission.release(self.worker, &self.ask, self.stuck, measured, now));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Admission<oneshot::Sender<Slot>>> {
        // A panic elsewhere must not stop admission: the counts are consistent between any two calls.
        self.admission.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(self: &Arc<Self>, worker: u32, ask: Ask, now: Instant) -> Slot {
        Slot { shared: Arc::clone(self), worker, ask, since: now, until: None, stuck: false }
    }

    /// Changes something, then hands out what has become free.
    fn change(self: &Arc<Self>, now: Instant, act: impl FnOnce(&mut Admission<oneshot::Sender<Slot>>, Instant)) {
        let mut granted = SmallVec::<[(oneshot::Sender<Slot>, Slot); 2]>::new();
        let mut admission = self.lock();
        act(&mut admission, now);
        while let Some((ticket, ask, worker)) = admission.next(now) {
            granted.push((ticket, self.slot(worker, ask, now)));
        }
        drop(admission);
        for (ticket, slot) in granted {
            // The request may have gone away in between; then the thread is free again, and the next one is woken.
            if let Err(unwanted) = ticket.send(slot) {
                drop(unwanted);
            }
        }
    }
}

/// A grant is on its way: it comes at once.
const LONG: Duration = Duration::from_secs(60);
