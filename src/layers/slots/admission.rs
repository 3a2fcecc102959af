//! Who gets the next free thread of Puma: a pure function of what was asked, what was given back, and `now`.
//!
//! Threat: exhaustion. One client, one kind of request or one slow worker must not take every thread, and a queue that
//! cannot be served in time must not grow. Sans-IO: tickets are opaque, so every order and every bound is tested instantly.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use slab::Slab;

use crate::accept::client::ClientKey;

/// What the queue is allowed to do.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Longest wait for a thread while Puma can be reached.
    pub deadline: Duration,
    /// Longest wait for Puma to come back; the time counts separately from `deadline`.
    pub hold: Duration,
    /// Waiting requests at most; fewer where the measured service time says that more could not be served in time.
    pub max: usize,
    /// Bytes of bodies that waiting requests may hold in memory.
    pub memory: u64,
    /// Newest first once the queue stands.
    pub newest_first: bool,
    /// Part of the threads, and of the queue, that one client may have where others are there as well.
    pub client_share: f64,
    /// Part of the threads that event streams may have.
    pub stream_share: f64,
    /// Threads kept free for each class, the most urgent class first.
    pub reserves: Vec<u32>,
}

/// How long a request will keep its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Until its answer is written.
    Normal,
    /// As long as the client listens.
    Stream,
    /// Until Puma has switched protocols; then it is none of Puma's threads any more.
    Upgrade,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Who asks.
    pub client: ClientKey,
    /// For how long, about.
    pub lane: Lane,
    /// Index of its class: the lower, the more urgent.
    pub class: usize,
    /// Bytes of its body in memory.
    pub memory: u64,
}

/// Why a request may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// When it is worth while to come back.
    pub after: Duration,
}

/// What a waiting request should do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Wait, and ask again after this time at the latest.
    Wait(Duration),
    /// Give up: no thread came free in time.
    Late,
    /// Give up: Puma did not come back in time.
    Away,
}

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
    workers: Vec<Worker>,
    clients: HashMap<ClientKey, Presence>,
    ready: Vec<BTreeMap<u64, usize>>,
    parked_streams: BTreeMap<u64, usize>,
    waiting: Slab<Waiting<T>>,
    by_class: Vec<u32>,
    streams: u32,
    memory: u64,
    order: u64,
    rotation: usize,
    service: Option<Duration>,
    standing_since: Option<Instant>,
    away_since: Option<Instant>,
    away_before: Duration,
    last_client: Option<ClientKey>,
    company_at: Option<Instant>,
}

/// Figures for metrics and the live page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Threads of workers that can be reached.
    pub slots: u32,
    /// Requests inside Puma.
    pub in_flight: u32,
    /// Of these, the ones whose clients were already answered 504.
    pub stuck: u32,
    /// Of these, event streams.
    pub streams: u32,
    /// Requests that wait.
    pub waiting: usize,
    /// No worker can be reached.
    pub away: bool,
    /// For each worker: threads, requests inside, whether it can be reached.
    pub workers: Vec<(u32, u32, bool)>,
    /// Mean time that a request keeps its thread.
    pub service: Option<Duration>,
}

#[derive(Debug, Default)]
struct Worker {
    limit: u32,
    in_flight: u32,
    stuck: u32,
    down: bool,
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
            workers: Vec::new(),
            clients: HashMap::new(),
            ready: (0..classes).map(|_| BTreeMap::new()).collect(),
            parked_streams: BTreeMap::new(),
            waiting: Slab::new(),
            by_class: vec![0; classes],
            streams: 0,
            memory: 0,
            order: 0,
            rotation: 0,
            service: None,
            standing_since: None,
            away_since: Some(now),
            away_before: Duration::ZERO,
            last_client: None,
            company_at: None,
        }
    }

    /// The threads of each worker. A smaller number than is in flight takes effect as requests end.
    pub fn set_workers(&mut self, limits: &[u32], now: Instant) {
        if self.workers.len() < limits.len() {
            self.workers.resize_with(limits.len(), Worker::default);
        }
        for (index, worker) in self.workers.iter_mut().enumerate() {
            worker.limit = limits.get(index).copied().unwrap_or(0);
        }
        self.unpark_all();
        self.note_away(now);
    }

    /// A worker whose socket refuses is down until it accepts again.
    pub fn set_down(&mut self, worker: u32, down: bool, now: Instant) {
        if let Some(worker) = self.workers.get_mut(worker as usize) {
            worker.down = down;
        }
        self.note_away(now);
    }

    /// A thread at once, or none.
    pub fn take(&mut self, ask: &Ask, now: Instant) -> Option<u32> {
        self.note_company(ask.client, now);
        if !self.share_left(ask, now) || !self.stream_left(ask) || !self.reserve_left(ask) {
            return None;
        }
        let worker = self.least_busy(None)?;
        self.occupy(worker, ask);
        Some(worker)
    }

    /// A thread of this worker, where it has one free.
    pub fn take_of(&mut self, worker: u32, ask: &Ask) -> Option<u32> {
        self.workers.get(worker as usize).filter(|w| !w.down && w.in_flight < w.limit)?;
        self.occupy(worker, ask);
        Some(worker)
    }

    /// Another worker's thread in exchange for the one that is held.
    pub fn move_away(&mut self, from: u32) -> Option<u32> {
        let to = self.least_busy(Some(from))?;
        if let Some(worker) = self.workers.get_mut(from as usize) {
            worker.in_flight = worker.in_flight.saturating_sub(1);
        }
        if let Some(worker) = self.workers.get_mut(to as usize) {
            worker.in_flight = worker.in_flight.saturating_add(1);
        }
        Some(to)
    }

    /// A place in the queue, or the reason why waiting would be in vain.
    pub fn enqueue(&mut self, ask: Ask, ticket: T, now: Instant) -> Result<Place, Full> {
        let room = self.room(now);
        let memory = self.memory.saturating_add(ask.memory);
        let mine = self.clients.get(&ask.client).map_or(0, |c| c.waiting as usize);
        let share = if self.in_company(now) { part(room, self.policy.client_share) } else { room };
        if self.waiting.len() >= room || mine >= share || memory > self.policy.memory {
            return Err(Full { after: self.drain_time() });
        }
        self.memory = memory;
        let order = self.order;
        self.order = self.order.wrapping_add(1);
        let away = self.away_clock(now);
        let index = self.waiting.insert(Waiting { ticket, ask, order, since: now, away });
        self.clients.entry(ask.client).or_default().waiting += 1;
        self.file(index, now);
        Ok(Place { index, order })
    }

    /// Whether a waiting request should go on waiting; `None` when it is no longer in the queue.
    pub fn patience(&self, place: Place, now: Instant) -> Option<Patience> {
        let waiting = self.waiting.get(place.index).filter(|w| w.order == place.order)?;
        let held = self.away_clock(now).saturating_sub(waiting.away);
        let waited = now.saturating_duration_since(waiting.since).saturating_sub(held);
        let (held_left, left) = (self.policy.hold.saturating_sub(held), self.policy.deadline.saturating_sub(waited));
        Some(match (held_left.is_zero(), left.is_zero(), self.away_since) {
            (true, _, Some(_)) => Patience::Away,
            (_, true, None) => Patience::Late,
            (_, _, Some(_)) => Patience::Wait(held_left.min(left.max(AWAY_RECHECK))),
            (_, _, None) => Patience::Wait(left),
        })
    }

    /// Takes a request out of the queue that no longer waits.
    pub fn leave(&mut self, place: Place, now: Instant) {
        if self.waiting.get(place.index).is_some_and(|w| w.order == place.order) {
            self.unfile(place.index, now);
        }
    }

    /// Gives a thread back. `service` is how long it was busy, where that says something about the next request.
    pub fn release(&mut self, worker: u32, ask: &Ask, stuck: bool, service: Option<Duration>) {
        if let Some(worker) = self.workers.get_mut(worker as usize) {
            worker.in_flight = worker.in_flight.saturating_sub(1);
            worker.stuck = worker.stuck.saturating_sub(u32::from(stuck));
        }
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
        self.forget(ask.client);
        if let Some(measured) = service {
            self.service = Some(self.service.map_or(measured, |mean| (mean * (SMOOTHING - 1) + measured) / SMOOTHING));
        }
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
        if let Some(worker) = self.workers.get_mut(worker as usize) {
            worker.stuck = worker.stuck.saturating_add(1);
        }
    }

    /// The next request that can have a thread, and the worker whose thread it is.
    pub fn next(&mut self, now: Instant) -> Option<(T, Ask, u32)> {
        let newest_first = self.policy.newest_first && self.standing(now);
        for class in 0..self.ready.len() {
            loop {
                let queue = self.ready.get(class)?;
                let first = if newest_first { queue.last_key_value() } else { queue.first_key_value() };
                let Some((order, index)) = first.map(|(order, index)| (*order, *index)) else { break };
                let ask = self.waiting.get(index)?.ask;
                if !self.reserve_left(&ask) {
                    break;
                }
                if !self.share_left(&ask, now) || !self.stream_left(&ask) {
                    self.park(order, index, &ask, now);
                    continue;
                }
                let worker = self.least_busy(None)?;
                let waiting = self.unfile(index, now)?;
                self.occupy(worker, &ask);
                return Some((waiting.ticket, ask, worker));
            }
        }
        None
    }

    /// Figures for metrics.
    pub fn figures(&self) -> Figures {
        Figures {
            slots: self.workers.iter().filter(|w| !w.down).map(|w| w.limit).sum(),
            in_flight: self.workers.iter().map(|w| w.in_flight).sum(),
            stuck: self.stuck(),
            streams: self.streams,
            waiting: self.waiting.len(),
            away: self.away_since.is_some(),
            workers: self.workers.iter().map(|w| (w.limit, w.in_flight, !w.down)).collect(),
            service: self.service,
        }
    }

    fn occupy(&mut self, worker: u32, ask: &Ask) {
        if let Some(worker) = self.workers.get_mut(worker as usize) {
            worker.in_flight = worker.in_flight.saturating_add(1);
        }
        if let Some(busy) = self.by_class.get_mut(ask.class) {
            *busy = busy.saturating_add(1);
        }
        self.streams = self.streams.saturating_add(u32::from(ask.lane == Lane::Stream));
        self.clients.entry(ask.client).or_default().in_flight += 1;
    }

    /// The worker with the smallest part of its threads busy; equals take turns.
    fn least_busy(&mut self, except: Option<u32>) -> Option<u32> {
        let count = self.workers.len();
        let mut best: Option<(usize, u32, u32)> = None;
        for step in 0..count {
            let index = self.rotation.wrapping_add(step) % count;
            let Some(worker) = self.workers.get(index) else { continue };
            let excepted = except.is_some_and(|e| e as usize == index);
            if worker.down || excepted || worker.in_flight >= worker.limit {
                continue;
            }
            let better = best
                .is_none_or(|(_, busy, limit)| u64::from(worker.in_flight) * u64::from(limit) < u64::from(busy) * u64::from(worker.limit));
            if better {
                best = Some((index, worker.in_flight, worker.limit));
            }
        }
        let (index, ..) = best?;
        self.rotation = index.wrapping_add(1);
        u32::try_from(index).ok()
    }

    fn stuck(&self) -> u32 {
        self.workers.iter().map(|w| w.stuck).sum()
    }

    /// Threads that can serve: of reachable workers, without the stuck ones. While all are away: what there was.
    fn capacity(&self) -> usize {
        let of = |reachable: bool| {
            let workers = self.workers.iter().filter(|w| !(reachable && w.down));
            workers.map(|w| w.limit.saturating_sub(w.stuck) as usize).sum()
        };
        if self.away_since.is_some() { of(false) } else { of(true) }
    }

    fn share_left(&self, ask: &Ask, now: Instant) -> bool {
        let Some(client) = self.clients.get(&ask.client) else { return true };
        !self.in_company(now) || (client.in_flight as usize) < part(self.capacity(), self.policy.client_share)
    }

    fn stream_left(&self, ask: &Ask) -> bool {
        ask.lane != Lane::Stream || (self.streams as usize) < part(self.capacity(), self.policy.stream_share)
    }

    fn reserve_left(&self, ask: &Ask) -> bool {
        let kept: u32 = self
            .policy
            .reserves
            .iter()
            .zip(&self.by_class)
            .enumerate()
            .filter(|(class, _)| *class != ask.class)
            .map(|(_, (reserve, busy))| reserve.saturating_sub(*busy))
            .sum();
        if kept == 0 {
            return true;
        }
        let reachable = || self.workers.iter().filter(|w| !w.down);
        let free: u32 = reachable().map(|w| w.limit.saturating_sub(w.in_flight)).sum();
        // The last thread is never reserved: on a Puma with one thread nothing else would ever be served.
        free > kept.min(reachable().map(|w| w.limit).sum::<u32>().saturating_sub(1))
    }

    /// How many may wait: as many as can be served within the deadline, fewer once the queue stands, never above `max`.
    fn room(&self, now: Instant) -> usize {
        let service = self.service.unwrap_or(ASSUMED_SERVICE).max(Duration::from_micros(100));
        let capacity = self.capacity();
        let horizon = if self.away_since.is_some() {
            self.policy.hold
        } else if self.policy.newest_first && self.standing(now) {
            self.policy.deadline / STANDING_PART
        } else {
            self.policy.deadline
        };
        if capacity == 0 {
            return if self.workers.is_empty() || self.away_since.is_some() { self.policy.max.min(UNKNOWN_ROOM) } else { 0 };
        }
        let rounds = horizon.as_micros() / service.as_micros().max(1);
        let by_time = capacity.saturating_mul(usize::try_from(rounds).unwrap_or(usize::MAX)).max(capacity);
        by_time.min(self.policy.max)
    }

    fn drain_time(&self) -> Duration {
        let service = self.service.unwrap_or(ASSUMED_SERVICE);
        let rounds = self.waiting.len().checked_div(self.capacity()).unwrap_or(1).saturating_add(1);
        service.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX)).min(LONGEST_RETRY)
    }

    /// The queue has not been empty for a while: arrivals exceed what Puma can do.
    fn standing(&self, now: Instant) -> bool {
        self.standing_since.is_some_and(|since| now.saturating_duration_since(since) >= self.policy.deadline / STANDING_AFTER)
    }

    /// A share makes sense only where there is somebody to share with: a load balancer or a lone tester may have everything.
    fn in_company(&self, now: Instant) -> bool {
        self.company_at.is_some_and(|at| now.saturating_duration_since(at) < COMPANY)
    }

    fn note_company(&mut self, client: ClientKey, now: Instant) {
        if self.last_client != Some(client) {
            if self.last_client.is_some() {
                self.company_at = Some(now);
            }
            self.last_client = Some(client);
        }
    }

    fn note_away(&mut self, now: Instant) {
        let away = !self.workers.iter().any(|w| !w.down && w.limit > 0);
        match (away, self.away_since) {
            (true, None) => self.away_since = Some(now),
            (false, Some(since)) => {
                self.away_before = self.away_before.saturating_add(now.saturating_duration_since(since));
                self.away_since = None;
                self.standing_since = self.standing_since.map(|_| now);
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// A clock that runs only while no worker can be reached.
    fn away_clock(&self, now: Instant) -> Duration {
        let current = self.away_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.away_before.saturating_add(current)
    }

    /// Puts a waiting request where it belongs: parked while its client or lane has its share, else ready.
    fn file(&mut self, index: usize, now: Instant) {
        let Some((order, ask)) = self.waiting.get(index).map(|w| (w.order, w.ask)) else { return };
        if self.share_left(&ask, now) && self.stream_left(&ask) {
            self.make_ready(order, index);
            self.standing_since.get_or_insert(now);
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
    fn unfile(&mut self, index: usize, now: Instant) -> Option<Waiting<T>> {
        let waiting = self.waiting.try_remove(index)?;
        self.memory = self.memory.saturating_sub(waiting.ask.memory);
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
        if !self.in_company(now) {
            self.unpark_clients();
        }
        Some(waiting)
    }

    fn note_standing(&mut self) {
        if self.ready.iter().all(BTreeMap::is_empty) {
            self.standing_since = None;
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

/// Weight of one measurement in the mean service time: one in this many.
const SMOOTHING: u32 = 16;
/// Before anything was measured.
const ASSUMED_SERVICE: Duration = Duration::from_millis(100);
/// The queue stands when it has not been empty for this part of the deadline ...
const STANDING_AFTER: u32 = 5;
/// ... and is then kept this much shorter: newest-first would let the rest grow stale.
const STANDING_PART: u32 = 10;
/// Room while nothing is known about Puma.
const UNKNOWN_ROOM: usize = 128;
/// How long a second client counts as company.
const COMPANY: Duration = Duration::from_secs(10);
/// While Puma is away, waiting requests look again at least this often: their own deadline goes on once it is back.
const AWAY_RECHECK: Duration = Duration::from_millis(250);
/// Longest Retry-After.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
