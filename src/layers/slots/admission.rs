//! Who gets the next free thread of Puma: a pure function of what was asked, what was given back, and `now`.
//!
//! Threat: exhaustion. One client, one kind of request or one slow worker must not take every thread, and a queue that
//! cannot be served in time must not grow. Sans-IO: tickets are opaque, so every order and every bound is tested instantly.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use foldhash::quality::RandomState;
use slab::Slab;

use super::{
    company::Company,
    crowd::Crowd,
    pressure::Pressure,
    terms::{Ask, Figures, Full, Lane, Patience, Policy},
    workers::Workers,
};
use crate::accept::client::ClientKey;

/// A place in the queue. It names one request for ever: `order` is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    index: usize,
    order: u64,
}

/// Threads, who has them, who waits.
#[derive(Debug)]
pub struct Admission<T> {
    policy: Policy,
    workers: Workers,
    clients: HashMap<ClientKey, Presence, RandomState>,
    ready: Vec<BTreeMap<u64, usize>>,
    parked_streams: BTreeMap<u64, usize>,
    waiting: Slab<Waiting<T>>,
    by_class: Vec<u32>,
    streams: u32,
    memory: u64,
    order: u64,
    pressure: Pressure,
    company: Company,
    crowd: Crowd,
}

#[derive(Debug, Default)]
struct Presence {
    in_flight: u32,
    waiting: u32,
    parked: BTreeMap<u64, usize>,
}

#[derive(Debug)]
struct Waiting<T> {
    ticket: T,
    ask: Ask,
    order: u64,
    since: Instant,
    away: Duration,
}

impl<T> Admission<T> {
    /// No worker yet: everything waits until [`Admission::set_workers`].
    pub fn new(policy: Policy, now: Instant) -> Self {
        let classes = policy.reserves.len().max(1);
        Admission {
            policy,
            workers: Workers::new(now),
            clients: HashMap::default(),
            ready: (0..classes).map(|_| BTreeMap::new()).collect(),
            parked_streams: BTreeMap::new(),
            waiting: Slab::new(),
            by_class: vec![0; classes],
            streams: 0,
            memory: 0,
            order: 0,
            pressure: Pressure::default(),
            company: Company::default(),
            crowd: Crowd::default(),
        }
    }

    /// The threads of each worker. A smaller number than is in flight takes effect as requests end.
    pub fn set_workers(&mut self, limits: &[u32], now: Instant) {
        let back = self.workers.set(limits, now);
        self.unpark_all();
        self.note_back(back, now);
    }

    /// A worker whose socket refuses is down until it accepts again.
    pub fn set_down(&mut self, worker: u32, down: bool, now: Instant) {
        let back = self.workers.set_down(worker, down, now);
        self.unpark_all();
        self.note_back(back, now);
    }

    /// Whether Puma's control server is gone.
    pub fn note_control(&mut self, gone: bool, now: Instant) {
        let back = self.workers.note_control(gone, now);
        self.note_back(back, now);
    }

    /// A thread at once, or none.
    pub fn take(&mut self, ask: &Ask, now: Instant) -> Option<u32> {
        self.company.note(ask.client, now);
        if !self.share_left(ask, now) || !self.stream_left(ask) || !self.reserve_left(ask) {
            return None;
        }
        let worker = self.workers.least_busy(None, now)?;
        self.occupy(worker, ask);
        Some(worker)
    }

    /// A thread of this worker, where it has one free.
    pub fn take_of(&mut self, worker: u32, ask: &Ask) -> Option<u32> {
        self.workers.has_free(worker).then(|| self.occupy(worker, ask))?;
        Some(worker)
    }

    /// Another worker's thread in exchange for the one that is held.
    pub fn move_away(&mut self, from: u32, now: Instant) -> Option<u32> {
        let to = self.workers.least_busy(Some(from), now)?;
        self.workers.release(from, false);
        self.workers.occupy(to);
        Some(to)
    }

    /// A place in the queue, or the reason why waiting would be in vain. Where the queue is full, whoever has most of it gives
    /// one up for a client with less; the ticket of that one is dropped.
    pub fn enqueue(&mut self, ask: Ask, ticket: T, now: Instant) -> Result<Place, Full> {
        let room = self.pressure.room(&self.policy, self.workers.capacity(), self.workers.is_away(), now);
        let mine = self.clients.get(&ask.client).map_or(0, |c| c.waiting as usize);
        let share = if self.company.is_there(now) { part(room, self.policy.client_share) } else { room };
        if self.waiting.len() >= room {
            self.pressure.full(now);
        }
        let has_room = (self.waiting.len() < room && self.memory.saturating_add(ask.memory) <= self.policy.memory)
            || (room > 0 && mine < share && self.displace(&ask));
        if mine >= share || !has_room {
            return Err(Full { after: self.pressure.drain_time(self.waiting.len(), self.workers.capacity()) });
        }
        self.memory = self.memory.saturating_add(ask.memory);
        let order = self.order;
        self.order = self.order.wrapping_add(1);
        let away = self.workers.away_clock(now);
        let index = self.waiting.insert(Waiting { ticket, ask, order, since: now, away });
        self.clients.entry(ask.client).or_default().waiting += 1;
        self.crowd.join(ask.client, order, index);
        self.file(index, now);
        Ok(Place { index, order })
    }

    /// Takes one request out of the queue in favour of another; a queue that is too long, as it has begun to stand, does not become
    /// longer by it. False where that would not make room, or not be fair.
    fn displace(&mut self, ask: &Ask) -> bool {
        let Some(index) = self.crowd.excess(ask.client) else { return false };
        let Some(excess) = self.waiting.get(index).map(|w| w.ask) else { return false };
        let memory = self.memory.saturating_sub(excess.memory).saturating_add(ask.memory);
        // Behind more urgent requests a newcomer would have to wait anyway.
        memory <= self.policy.memory && excess.class >= ask.class && self.unfile(index).is_some()
    }

    /// Whether a waiting request should go on waiting; `None` when it is no longer in the queue.
    pub fn patience(&self, place: Place, now: Instant) -> Option<Patience> {
        let waiting = self.waiting.get(place.index).filter(|w| w.order == place.order)?;
        let held = self.workers.away_clock(now).saturating_sub(waiting.away);
        let waited = now.saturating_duration_since(waiting.since).saturating_sub(held);
        Some(Patience::of(&self.policy, waited, held, self.workers.is_away()))
    }

    /// Takes a request out of the queue that no longer waits.
    pub fn leave(&mut self, place: Place) {
        if self.waiting.get(place.index).is_some_and(|w| w.order == place.order) {
            self.unfile(place.index);
        }
    }

    /// Gives a thread back. `service` is how long it was busy, where that says something about the next request.
    pub fn release(&mut self, worker: u32, ask: &Ask, stuck: bool, service: Option<Duration>, now: Instant) {
        self.workers.release(worker, stuck);
        let back = self.workers.note_answer(now);
        self.note_back(back, now);
        if let Some(busy) = self.by_class.get_mut(ask.class) {
            *busy = busy.saturating_sub(1);
        }
        if ask.lane == Lane::Stream {
            self.leave_stream();
        }
        if let Some(client) = self.clients.get_mut(&ask.client) {
            client.in_flight = client.in_flight.saturating_sub(1);
            if let Some((order, index)) = client.parked.pop_first() {
                self.make_ready(order, index);
            }
        }
        self.crowd.end(ask.client);
        self.forget(ask.client);
        self.pressure.measured(service.filter(|_| !self.workers.is_away()), now);
    }

    /// The request turned out to be an event stream (or is none any more).
    pub fn change_lane(&mut self, ask: &mut Ask, lane: Lane) {
        match (ask.lane == Lane::Stream, lane == Lane::Stream) {
            (false, true) => self.streams = self.streams.saturating_add(1),
            (true, false) => self.leave_stream(),
            (true, true) | (false, false) => {}
        }
        ask.lane = lane;
    }

    /// The client of a request was answered, but its thread is still busy.
    pub fn mark_stuck(&mut self, worker: u32) {
        self.workers.mark_stuck(worker);
    }

    /// The next request that can have a thread, and the worker whose thread it is.
    pub fn next(&mut self, now: Instant) -> Option<(T, Ask, u32)> {
        if !self.company.is_there(now) {
            self.unpark_clients();
        }
        self.pressure.settle(&self.policy, self.workers.capacity(), self.waiting.len(), now);
        let newest_first = self.pressure.newest_first(&self.policy, now);
        for class in 0..self.ready.len() {
            loop {
                let queue = self.ready.get(class)?;
                let Some((order, index)) = self.first(queue, newest_first) else { break };
                let ask = self.waiting.get(index)?.ask;
                if !self.reserve_left(&ask) {
                    break;
                }
                if !self.share_left(&ask, now) || !self.stream_left(&ask) {
                    self.park(order, index, &ask, now);
                    continue;
                }
                let worker = self.workers.least_busy(None, now)?;
                let waiting = self.unfile(index)?;
                self.occupy(worker, &ask);
                return Some((waiting.ticket, ask, worker));
            }
        }
        None
    }

    /// Whose turn it is: fair by network, else by order alone.
    fn first(&self, queue: &BTreeMap<u64, usize>, newest_first: bool) -> Option<(u64, usize)> {
        let by_order = if newest_first { queue.last_key_value() } else { queue.first_key_value() };
        let by_order = by_order.map(|(order, index)| (*order, *index))?;
        Some(self.crowd.turn(newest_first, |order| queue.contains_key(&order)).unwrap_or(by_order))
    }

    /// Figures for metrics.
    pub fn figures(&self) -> Figures {
        let (in_flight, stuck) = self.workers.busy();
        Figures {
            slots: self.workers.threads(),
            in_flight,
            stuck,
            streams: self.streams,
            waiting: self.waiting.len(),
            away: self.workers.is_away(),
            workers: self.workers.each(),
            service: self.pressure.service(),
        }
    }

    fn occupy(&mut self, worker: u32, ask: &Ask) {
        self.workers.occupy(worker);
        if let Some(busy) = self.by_class.get_mut(ask.class) {
            *busy = busy.saturating_add(1);
        }
        self.streams = self.streams.saturating_add(u32::from(ask.lane == Lane::Stream));
        self.clients.entry(ask.client).or_default().in_flight += 1;
        self.crowd.begin(ask.client);
    }

    fn share_left(&self, ask: &Ask, now: Instant) -> bool {
        let Some(client) = self.clients.get(&ask.client) else { return true };
        !self.company.is_there(now) || (client.in_flight as usize) < part(self.workers.capacity(), self.policy.client_share)
    }

    fn stream_left(&self, ask: &Ask) -> bool {
        ask.lane != Lane::Stream || (self.streams as usize) < part(self.workers.capacity(), self.policy.stream_share)
    }

    fn reserve_left(&self, ask: &Ask) -> bool {
        let kept = self.policy.kept_from(ask.class, &self.by_class);
        // The last thread is never reserved: on a Puma with one thread nothing else would ever be served.
        kept == 0 || self.workers.free() > kept.min(self.workers.threads().saturating_sub(1))
    }

    /// Who waited for Puma to come back is no sign of overload.
    fn note_back(&mut self, back: bool, now: Instant) {
        if back {
            self.pressure.begin_again(now);
        }
    }

    /// Puts a waiting request where it belongs: parked while its client or lane has its share, else ready.
    fn file(&mut self, index: usize, now: Instant) {
        let Some((order, ask)) = self.waiting.get(index).map(|w| (w.order, w.ask)) else { return };
        if self.share_left(&ask, now) && self.stream_left(&ask) {
            self.make_ready(order, index);
            self.pressure.grow(&self.policy, self.workers.capacity(), self.waiting.len(), now);
        } else {
            self.park(order, index, &ask, now);
        }
    }

    fn make_ready(&mut self, order: u64, index: usize) {
        let class = self.waiting.get(index).map_or(0, |w| w.ask.class);
        let last = self.ready.len().saturating_sub(1);
        if let Some(queue) = self.ready.get_mut(class.min(last)) {
            queue.insert(order, index);
        }
    }

    fn park(&mut self, order: u64, index: usize, ask: &Ask, now: Instant) {
        for queue in &mut self.ready {
            queue.remove(&order);
        }
        if self.share_left(ask, now) {
            self.parked_streams.insert(order, index);
        } else {
            self.clients.entry(ask.client).or_default().parked.insert(order, index);
        }
        self.note_standing();
    }

    fn leave_stream(&mut self) {
        self.streams = self.streams.saturating_sub(1);
        if let Some((order, index)) = self.parked_streams.pop_first() {
            self.make_ready(order, index);
        }
    }

    fn unpark_all(&mut self) {
        for (order, index) in std::mem::take(&mut self.parked_streams) {
            self.make_ready(order, index);
        }
        self.unpark_clients();
    }

    fn unpark_clients(&mut self) {
        let parked: Vec<_> = self.clients.values_mut().flat_map(|client| std::mem::take(&mut client.parked)).collect();
        for (order, index) in parked {
            self.make_ready(order, index);
        }
    }

    /// Takes a request out of the queue; the next of its client or lane moves up, or it would wait for nobody.
    fn unfile(&mut self, index: usize) -> Option<Waiting<T>> {
        let waiting = self.waiting.try_remove(index)?;
        self.memory = self.memory.saturating_sub(waiting.ask.memory);
        self.crowd.leave(waiting.ask.client, waiting.order, index);
        for queue in &mut self.ready {
            queue.remove(&waiting.order);
        }
        let mut was_ready = self.parked_streams.remove(&waiting.order).is_none();
        let mut heirs = Vec::new();
        if let Some(client) = self.clients.get_mut(&waiting.ask.client) {
            client.waiting = client.waiting.saturating_sub(1);
            was_ready &= client.parked.remove(&waiting.order).is_none();
            if was_ready {
                heirs.extend(client.parked.pop_first());
            }
        }
        if was_ready && waiting.ask.lane == Lane::Stream {
            heirs.extend(self.parked_streams.pop_first());
        }
        for (order, index) in heirs {
            self.make_ready(order, index);
        }
        self.forget(waiting.ask.client);
        self.note_standing();
        Some(waiting)
    }

    fn note_standing(&mut self) {
        if self.ready.iter().all(BTreeMap::is_empty) {
            self.pressure.end();
        }
    }

    fn forget(&mut self, client: ClientKey) {
        if self.clients.get(&client).is_some_and(|c| c.in_flight == 0 && c.waiting == 0) {
            self.clients.remove(&client);
        }
    }
}

/// A part of a whole, at least one.
fn part(whole: usize, share: f64) -> usize {
    // The product of a count and a share in 0..=1 is within the count.
    ((whole as f64 * share).ceil() as usize).max(1)
}

#[cfg(test)]
mod tests;
