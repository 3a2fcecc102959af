use super::*;

mod away;
mod shares;

fn client(n: u8) -> ClientKey {
    ClientKey::of(std::net::IpAddr::from([192, 0, 2, n]))
}

fn ask(n: u8) -> Ask {
    Ask { client: client(n), lane: Lane::Normal, class: 1, memory: 0 }
}

fn policy() -> Policy {
    Policy {
        deadline: SECOND * 5,
        hold: SECOND * 10,
        max: 100,
        memory: 1000,
        newest_first: true,
        client_share: 1.0,
        stream_share: 0.5,
        reserves: vec![0, 0],
    }
}

const SECOND: Duration = Duration::from_secs(1);

struct Case {
    core: Admission<u32>,
    now: Instant,
}

impl Case {
    fn new(policy: Policy, limits: &[u32]) -> Self {
        let now = Instant::now();
        let mut core = Admission::new(policy, now);
        core.set_workers(limits, now);
        // Long after Puma has come: what was measured is true.
        Case { core, now: now + SECOND * 60 }
    }

    fn take(&mut self, ask: Ask) -> Option<u32> {
        self.core.take(&ask, self.now)
    }

    fn enqueue(&mut self, ask: Ask, ticket: u32) -> Result<Place, Full> {
        self.core.take(&ask, self.now).map_or(Ok(()), |worker| panic!("worker {worker} was free"))?;
        self.core.enqueue(ask, ticket, self.now)
    }

    fn release(&mut self, worker: u32, ask: Ask, service: u64) {
        self.core.release(worker, &ask, false, Some(Duration::from_millis(service)), self.now);
    }

    /// The tickets that get a thread now, in order.
    fn next(&mut self) -> Vec<u32> {
        std::iter::from_fn(|| self.core.next(self.now).map(|(ticket, ..)| ticket)).collect()
    }
}

#[test]
fn the_least_busy_worker_is_next_and_no_worker_gets_more_than_its_threads() {
    let mut case = Case::new(policy(), &[2, 1, 3]);
    let mut taken = [0u32; 3];
    for _ in 0..6 {
        taken[case.take(ask(1)).unwrap() as usize] += 1;
    }
    assert_eq!(taken, [2, 1, 3]);
    assert_eq!(case.take(ask(1)), None);
    case.release(2, ask(1), 10);
    assert_eq!(case.take(ask(1)), Some(2));
}

#[test]
fn equals_take_turns() {
    let mut case = Case::new(policy(), &[5, 5, 5]);
    let order: Vec<_> = (0..6).map(|_| case.take(ask(1)).unwrap()).collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn the_queue_is_served_in_order_by_urgency_first() {
    let mut case = Case::new(policy(), &[1]);
    case.take(ask(1)).unwrap();
    for ticket in 0..3 {
        case.enqueue(ask(1), ticket).unwrap();
    }
    case.enqueue(Ask { class: 0, ..ask(1) }, 9).unwrap();
    let mut order = Vec::new();
    for _ in 0..4 {
        case.release(0, ask(1), 10);
        order.extend(case.next());
    }
    assert_eq!(order, [9, 0, 1, 2]);
}

#[test]
fn a_standing_queue_is_served_newest_first_and_a_fifo_never() {
    for (newest_first, expected) in [(true, [29, 28, 27]), (false, [0, 1, 2])] {
        let mut case = Case::new(Policy { newest_first, ..policy() }, &[1]);
        case.take(ask(1)).unwrap();
        for ticket in 0..30 {
            case.enqueue(ask(1), ticket).unwrap();
        }
        case.now += SECOND * 2;
        let mut order = Vec::new();
        for _ in 0..3 {
            case.release(0, ask(1), 100);
            order.extend(case.next());
        }
        assert_eq!(order, expected);
    }
}

#[test]
fn nobody_starves_in_a_queue_that_is_never_empty_and_never_long() {
    // Sixteen clients that ask again as soon as they are answered: before four threads each waits for 150 ms, before one for
    // 750 ms. As long as nothing was measured that looks like more.
    for (threads, longest) in [(4, 200), (1, 800)] {
        let mut case = Case::new(policy(), &[threads]);
        let mut at = HashMap::new();
        let mut busy: Vec<_> = (0..threads).map(|_| case.take(ask(1)).unwrap()).collect();
        for ticket in 0..16 - threads {
            case.enqueue(ask(1), ticket).unwrap();
            at.insert(ticket, case.now);
        }
        for round in 1..200u32 {
            case.now += Duration::from_millis(50);
            for (n, worker) in std::mem::take(&mut busy).into_iter().enumerate() {
                case.release(worker, ask(1), 50);
                busy.push(worker);
                let served = case.next();
                assert_eq!(served.len(), 1);
                let waited = case.now - at[&served[0]];
                assert!(waited <= Duration::from_millis(longest), "{threads}: waited {waited:?}");
                let ticket = round * 100 + u32::try_from(n).unwrap();
                case.enqueue(ask(1), ticket).unwrap();
                at.insert(ticket, case.now);
            }
        }
    }
}

#[test]
fn the_oldest_come_first_again_when_there_has_been_room_for_a_while() {
    let mut case = Case::new(policy(), &[1]);
    case.take(ask(1)).unwrap();
    for ticket in 0..30 {
        case.enqueue(ask(1), ticket).unwrap();
    }
    case.now += SECOND * 2;
    assert!(case.enqueue(ask(1), 30).is_err(), "it stands, and what may wait is less");
    let mut order = Vec::new();
    for _ in 0..24 {
        case.release(0, ask(1), 100);
        order.extend(case.next());
        case.now += Duration::from_millis(100);
    }
    let expected: Vec<u32> = (12..30).rev().chain(0..6).collect();
    assert_eq!(order, expected, "the oldest once less waits than a quarter of the deadline can serve");
}

#[test]
fn who_left_the_queue_gets_no_thread() {
    let mut case = Case::new(policy(), &[1]);
    case.take(ask(1)).unwrap();
    let first = case.enqueue(ask(1), 0).unwrap();
    case.enqueue(ask(1), 1).unwrap();
    case.core.leave(first);
    case.release(0, ask(1), 10);
    assert_eq!(case.next(), [1]);
    // A place is never mistaken for a later one with the same index.
    case.core.leave(first);
    assert_eq!(case.core.patience(first, case.now), None);
}

#[test]
fn nine_hundred_of_a_thousand_that_leave_cost_no_thread() {
    let mut case = Case::new(Policy { max: 1000, deadline: SECOND * 600, ..policy() }, &[5]);
    for _ in 0..5 {
        case.take(ask(1)).unwrap();
    }
    let places: Vec<_> = (0..1000).map(|ticket| case.enqueue(ask(1), ticket).unwrap()).collect();
    for place in &places[..900] {
        case.core.leave(*place);
    }
    let mut served = Vec::new();
    loop {
        case.release(0, ask(1), 10);
        let next = case.next();
        if next.is_empty() {
            break;
        }
        served.extend(next);
    }
    assert_eq!(served, (900..1000).collect::<Vec<_>>());
}

#[test]
fn a_queue_that_cannot_be_served_in_time_does_not_grow() {
    let mut case = Case::new(Policy { max: 10_000, ..policy() }, &[2]);
    case.take(ask(1)).unwrap();
    case.release(0, ask(1), 500);
    case.take(ask(1)).unwrap();
    case.take(ask(1)).unwrap();
    // 2 threads, 5 s, 0.5 s each: 20 can be served.
    for ticket in 0..20 {
        case.enqueue(ask(1), ticket).unwrap();
    }
    let full = case.enqueue(ask(1), 20).unwrap_err();
    assert!(full.after >= SECOND * 5, "{full:?}");
}

#[test]
fn the_queue_is_bounded_by_number_and_by_memory() {
    let mut case = Case::new(Policy { max: 3, ..policy() }, &[1]);
    case.take(ask(1)).unwrap();
    let heavy = Ask { memory: 600, ..ask(1) };
    let first = case.enqueue(heavy, 0).unwrap();
    assert!(case.enqueue(heavy, 1).is_err());
    case.core.leave(first);
    case.enqueue(heavy, 2).unwrap();
    case.enqueue(ask(1), 3).unwrap();
    case.enqueue(ask(1), 4).unwrap();
    assert!(case.enqueue(ask(1), 5).is_err());
}

#[test]
fn ten_times_overload_keeps_every_thread_busy_and_admits_no_more_than_can_be_served() {
    for newest_first in [true, false] {
        let mut case = Case::new(Policy { newest_first, max: 4096, ..policy() }, &[5]);
        let service = Duration::from_millis(10);
        let mut busy: std::collections::VecDeque<(Instant, u32)> = std::collections::VecDeque::new();
        let mut waits: HashMap<u32, (Instant, Place)> = HashMap::new();
        let (start, mut served, mut longest, mut late) = (case.now, 0u32, Duration::ZERO, 0u32);
        // 500 a second can be served, 5000 come: one each 200 µs, for 20 s.
        for n in 0..100_000u32 {
            case.now = start + Duration::from_micros(200) * n;
            while let Some((end, worker)) = busy.front().copied().filter(|(end, _)| *end <= case.now) {
                busy.pop_front();
                served += 1;
                let now = case.now;
                case.core.release(worker, &ask(1), false, Some(service), case.now);
                while let Some((ticket, _, worker)) = case.core.next(now) {
                    longest = longest.max(now - waits.remove(&ticket).unwrap().0);
                    busy.push_back((end + service, worker));
                }
            }
            match case.take(ask(1)) {
                Some(worker) => busy.push_back((case.now + service, worker)),
                None => {
                    if let Ok(place) = case.core.enqueue(ask(1), n, case.now) {
                        waits.insert(n, (case.now, place));
                    }
                }
            }
            if n % 100 == 0 {
                let (core, now) = (&mut case.core, case.now);
                waits.retain(|_, (_, place)| {
                    let stays = core.patience(*place, now) != Some(Patience::Late);
                    if !stays {
                        core.leave(*place);
                        late += 1;
                    }
                    stays
                });
            }
        }
        assert!(served >= 9_500, "{served} of 10000");
        assert!(longest <= SECOND * 5 + Duration::from_millis(50), "{longest:?}");
        // Refusals after a wait are the exception: 90 000 are refused at once.
        assert!(late <= 4_000, "{late}");
    }
}

#[test]
fn no_order_of_events_loses_a_thread() {
    fastrand::seed(7);
    for _ in 0..200 {
        let mut case = Case::new(Policy { client_share: 0.34, reserves: vec![1, 0], ..policy() }, &[2, 3]);
        let (mut held, mut places, mut ticket) = (Vec::new(), Vec::new(), 0);
        for _ in 0..300 {
            case.now += Duration::from_millis(fastrand::u64(0..300));
            let lane = if fastrand::u8(0..4) == 0 { Lane::Stream } else { Lane::Normal };
            let one = Ask { lane, class: fastrand::usize(0..2), ..ask(fastrand::u8(0..4)) };
            match fastrand::u8(0..6) {
                0..=2 => match case.take(one) {
                    Some(worker) => held.push((worker, one)),
                    None => {
                        ticket += 1;
                        places.extend(case.core.enqueue(one, ticket, case.now));
                    }
                },
                3 if !held.is_empty() => {
                    let (worker, ask) = held.swap_remove(fastrand::usize(..held.len()));
                    case.core.release(worker, &ask, false, None, case.now);
                }
                4 if !places.is_empty() => {
                    let place = places.swap_remove(fastrand::usize(..places.len()));
                    case.core.leave(place);
                }
                _ => {
                    let down = fastrand::bool();
                    case.core.set_down(fastrand::u32(0..2), down, case.now);
                }
            }
            held.extend(std::iter::from_fn(|| case.core.next(case.now)).map(|(_, ask, worker)| (worker, ask)));
            let figures = case.core.figures();
            assert_eq!(figures.in_flight as usize, held.len());
            assert!(figures.workers.iter().all(|(limit, busy, _)| busy <= limit), "{figures:?}");
        }
        case.core.set_down(0, false, case.now);
        case.core.set_down(1, false, case.now);
        for _ in 0..1000 {
            held.extend(std::iter::from_fn(|| case.core.next(case.now)).map(|(_, ask, worker)| (worker, ask)));
            let Some((worker, ask)) = held.pop() else { break };
            case.core.release(worker, &ask, false, None, case.now);
        }
        let figures = case.core.figures();
        assert_eq!((figures.waiting, figures.in_flight, figures.streams), (0, 0, 0));
        assert!(case.core.clients.is_empty() && case.core.parked_streams.is_empty() && case.core.memory == 0);
    }
}
