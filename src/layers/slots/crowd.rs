//! Who waits for a thread and who has one, by network and by client, so that a full queue can tell a flood from a newcomer.
//!
//! Threat: exhaustion. Attackers with an address each keep within the share of one client and fill the queue together; a
//! newcomer would be refused because of them, or wait behind them. So a free thread goes to the network that has the fewest; and
//! where the queue is full, the network with the most waiting requests gives one up for a network with fewer, and inside a
//! network the client with the most. Bounded by what waits and is in flight.

use std::collections::{BTreeSet, HashMap};

use foldhash::quality::RandomState;

use crate::accept::client::ClientKey;

/// All networks of which a request waits or is in flight.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    networks: HashMap<ClientKey, Network, RandomState>,
    by_waiting: BTreeSet<(usize, ClientKey)>,
    /// Those of which a request waits, by their threads.
    by_threads: BTreeSet<(u32, ClientKey)>,
}

#[derive(Debug, Default)]
struct Network {
    in_flight: u32,
    /// All that waits: order and index.
    waiting: BTreeSet<(u64, usize)>,
    /// Each client's waiting requests: their order and their index.
    clients: HashMap<ClientKey, BTreeSet<(u64, usize)>, RandomState>,
    by_waiting: BTreeSet<(usize, ClientKey)>,
}

impl Crowd {
    /// A client's request waits.
    pub(super) fn join(&mut self, client: ClientKey, order: u64, index: usize) {
        self.change(client, |network| {
            network.waiting.insert((order, index));
            let mine = network.clients.entry(client).or_default();
            mine.insert((order, index));
            rank(&mut network.by_waiting, client, mine.len().saturating_sub(1), mine.len());
        });
    }

    /// It waits no longer.
    pub(super) fn leave(&mut self, client: ClientKey, order: u64, index: usize) {
        self.change(client, |network| {
            network.waiting.remove(&(order, index));
            let Some(mine) = network.clients.get_mut(&client) else { return };
            let before = mine.len();
            mine.remove(&(order, index));
            rank(&mut network.by_waiting, client, before, mine.len());
            if mine.is_empty() {
                network.clients.remove(&client);
            }
        });
    }

    /// A client's request has a thread.
    pub(super) fn begin(&mut self, client: ClientKey) {
        self.change(client, |network| network.in_flight = network.in_flight.saturating_add(1));
    }

    /// It has given it back.
    pub(super) fn end(&mut self, client: ClientKey) {
        self.change(client, |network| network.in_flight = network.in_flight.saturating_sub(1));
    }

    fn change(&mut self, client: ClientKey, act: impl FnOnce(&mut Network)) {
        let name = client.network();
        let network = self.networks.entry(name).or_default();
        let (waiting, threads) = (network.waiting.len(), network.in_flight);
        act(network);
        rank(&mut self.by_waiting, name, waiting, network.waiting.len());
        self.by_threads.remove(&(threads, name));
        if !network.waiting.is_empty() {
            self.by_threads.insert((network.in_flight, name));
        } else if network.in_flight == 0 {
            self.networks.remove(&name);
        }
    }

    /// The request whose turn it is: of the networks with the fewest threads the newest, or the oldest, that is ready. Looks at so
    /// few that it costs the same however many wait; `None` where there is none among those.
    pub(super) fn turn(&self, newest_first: bool, is_ready: impl Fn(u64) -> bool) -> Option<(u64, usize)> {
        let mut found: Option<(u32, (u64, usize))> = None;
        for (threads, name) in self.by_threads.iter().take(LOOKED_AT) {
            if found.is_some_and(|(fewest, _)| fewest < *threads) {
                break;
            }
            let Some(waiting) = self.networks.get(name).map(|network| &network.waiting) else { continue };
            let ready = |place: &&(u64, usize)| is_ready(place.0);
            let first = match newest_first {
                true => waiting.iter().rev().take(LOOKED_AT).find(ready),
                false => waiting.iter().take(LOOKED_AT).find(ready),
            };
            let is_before = |place: &(u64, usize)| found.is_none_or(|(_, other)| (*place > other) == newest_first);
            found = first.filter(|place| is_before(place)).map(|place| (*threads, *place)).or(found);
        }
        found.map(|(_, place)| place)
    }

    /// The waiting request that has to give way to a newcomer: the newest of those who have most, where they have far more than the
    /// newcomer. Who is driven out has waited for nothing, so equals must not do that to each other in turn.
    pub(super) fn excess(&self, newcomer: ClientKey) -> Option<usize> {
        let own = newcomer.network();
        let mine = self.networks.get(&own).map_or(0, |network| network.waiting.len());
        let (most, largest) = self.by_waiting.last()?;
        let is_foreign = has_far_more(*most, mine);
        let network = self.networks.get(if is_foreign { largest } else { &own })?;
        let (most, client) = network.by_waiting.last()?;
        let mine = network.clients.get(&newcomer).map_or(0, BTreeSet::len);
        if !is_foreign && !has_far_more(*most, mine) {
            return None;
        }
        network.clients.get(client)?.last().map(|(_, index)| *index)
    }
}

/// Two against none, and else more than four times as much.
fn has_far_more(theirs: usize, mine: usize) -> bool {
    theirs > if mine == 0 { 1 } else { mine.saturating_add(1).saturating_mul(4) }
}

fn rank(ranks: &mut BTreeSet<(usize, ClientKey)>, who: ClientKey, before: usize, after: usize) {
    ranks.remove(&(before, who));
    if after > 0 {
        ranks.insert((after, who));
    }
}

/// Networks, and requests of each, that are compared for one free thread.
const LOOKED_AT: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn client(block: u8, host: u8) -> ClientKey {
        ClientKey::of(std::net::IpAddr::from([198, 51, block, host]))
    }

    #[test]
    fn the_largest_network_gives_way_and_in_it_the_newest_of_its_largest_client() {
        let mut crowd = Crowd::default();
        for (index, who) in [client(1, 1), client(1, 2), client(1, 2), client(2, 1), client(2, 2)].into_iter().enumerate() {
            crowd.join(who, index as u64, index);
        }
        assert_eq!(crowd.excess(client(3, 1)), Some(2));
        assert_eq!(crowd.excess(client(2, 9)), None, "as many, or a few more, do not give way");
        crowd.leave(client(1, 2), 2, 2);
        assert_eq!(crowd.excess(client(3, 1)), Some(4), "of equals one, and the newest of it");
    }

    #[test]
    fn inside_a_network_the_client_with_most_gives_way_to_one_with_less() {
        let mut crowd = Crowd::default();
        for index in 0..3 {
            crowd.join(client(1, 1), index as u64, index);
        }
        assert_eq!(crowd.excess(client(1, 2)), Some(2));
        assert_eq!(crowd.excess(client(1, 1)), None, "never for itself");
    }

    #[test]
    fn a_free_thread_goes_to_a_network_with_the_fewest_however_many_wait_before_or_behind() {
        let mut crowd = Crowd::default();
        for order in 0..1000u16 {
            crowd.join(client(1, order as u8), order.into(), order.into());
        }
        crowd.join(client(2, 1), 1000, 1000);
        crowd.join(client(2, 1), 1001, 1001);
        for order in 1002..2000u16 {
            crowd.join(client(1, order as u8), order.into(), order.into());
        }
        crowd.begin(client(1, 1));
        assert_eq!((crowd.turn(true, |_| true), crowd.turn(false, |_| true)), (Some((1001, 1001)), Some((1000, 1000))));
        assert_eq!(crowd.turn(true, |order| order != 1001), Some((1000, 1000)), "the other one is parked");
        crowd.begin(client(2, 1));
        assert_eq!((crowd.turn(true, |_| true), crowd.turn(false, |_| true)), (Some((1999, 1999)), Some((0, 0))));
        assert_eq!(crowd.turn(true, |_| false), None);
    }

    #[test]
    fn the_books_are_empty_when_nobody_waits_and_nothing_is_in_flight() {
        let mut crowd = Crowd::default();
        for n in 0..50u8 {
            crowd.join(client(n % 7, n), u64::from(n), usize::from(n));
            crowd.begin(client(n % 5, n));
        }
        assert_eq!((crowd.networks.len(), crowd.by_threads.len(), crowd.by_waiting.len()), (7, 7, 7));
        for n in 0..50u8 {
            crowd.leave(client(n % 7, n), u64::from(n), usize::from(n));
            crowd.end(client(n % 5, n));
        }
        assert!(crowd.networks.is_empty() && crowd.by_waiting.is_empty() && crowd.by_threads.is_empty());
    }
}
