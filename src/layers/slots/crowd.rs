//! Who waits for a thread and who has one, by network and by client, so that a full queue can tell a flood from a newcomer.
//!
//! Threat: exhaustion. Attackers with an address each keep within the share of one client and fill the queue together; a
//! newcomer would be refused because of them. So where the queue is full, the network with the most waiting requests gives
//! one up for a network with fewer, and inside a network the client with the most. Bounded by what waits and is in flight.

use std::collections::{BTreeSet, HashMap};

use foldhash::quality::RandomState;

use crate::accept::client::ClientKey;

/// All networks of which a request waits or is in flight.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    networks: HashMap<ClientKey, Network, RandomState>,
    by_waiting: BTreeSet<(usize, ClientKey)>,
}

#[derive(Debug, Default)]
struct Network {
    in_flight: u32,
    waiting: usize,
    /// Each client's waiting requests: their order and their index.
    clients: HashMap<ClientKey, BTreeSet<(u64, usize)>, RandomState>,
    by_waiting: BTreeSet<(usize, ClientKey)>,
}

impl Crowd {
    /// A client's request waits.
    pub(super) fn join(&mut self, client: ClientKey, order: u64, index: usize) {
        self.change(client, |waiting| {
            waiting.insert((order, index));
        });
    }

    /// It waits no longer.
    pub(super) fn leave(&mut self, client: ClientKey, order: u64, index: usize) {
        self.change(client, |waiting| {
            waiting.remove(&(order, index));
        });
    }

    fn change(&mut self, client: ClientKey, act: impl FnOnce(&mut BTreeSet<(u64, usize)>)) {
        let name = client.network();
        let network = self.networks.entry(name).or_default();
        let waiting = network.clients.entry(client).or_default();
        let before = waiting.len();
        act(waiting);
        let after = waiting.len();
        if after == 0 {
            network.clients.remove(&client);
        }
        rank(&mut network.by_waiting, client, before, after);
        let all = network.waiting;
        network.waiting = all.saturating_sub(before).saturating_add(after);
        rank(&mut self.by_waiting, name, all, network.waiting);
        self.forget(name);
    }

    /// A client's request has a thread.
    pub(super) fn begin(&mut self, client: ClientKey) {
        let network = self.networks.entry(client.network()).or_default();
        network.in_flight = network.in_flight.saturating_add(1);
    }

    /// It has given it back.
    pub(super) fn end(&mut self, client: ClientKey) {
        if let Some(network) = self.networks.get_mut(&client.network()) {
            network.in_flight = network.in_flight.saturating_sub(1);
        }
        self.forget(client.network());
    }

    /// Threads that the client's network has.
    pub(super) fn in_flight(&self, client: ClientKey) -> u32 {
        self.networks.get(&client.network()).map_or(0, |network| network.in_flight)
    }

    /// The waiting request that has to give way to a newcomer: the newest of those who have most, where they have at least two
    /// more than the newcomer, so that two never drive each other out in turn.
    pub(super) fn excess(&self, newcomer: ClientKey) -> Option<usize> {
        let own = newcomer.network();
        let mine = self.networks.get(&own).map_or(0, |network| network.waiting);
        let (most, largest) = self.by_waiting.last()?;
        let is_foreign = *most > mine.saturating_add(1);
        let network = self.networks.get(if is_foreign { largest } else { &own })?;
        let (most, client) = network.by_waiting.last()?;
        let mine = network.clients.get(&newcomer).map_or(0, BTreeSet::len);
        if !is_foreign && *most <= mine.saturating_add(1) {
            return None;
        }
        network.clients.get(client)?.last().map(|(_, index)| *index)
    }

    fn forget(&mut self, name: ClientKey) {
        if self.networks.get(&name).is_some_and(|network| network.in_flight == 0 && network.waiting == 0) {
            self.networks.remove(&name);
        }
    }
}

fn rank(ranks: &mut BTreeSet<(usize, ClientKey)>, who: ClientKey, before: usize, after: usize) {
    ranks.remove(&(before, who));
    if after > 0 {
        ranks.insert((after, who));
    }
}

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
        assert_eq!(crowd.excess(client(2, 9)), None, "a difference of one is none");
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
    fn the_books_are_empty_when_nobody_waits_and_nothing_is_in_flight() {
        let mut crowd = Crowd::default();
        for n in 0..50u8 {
            crowd.join(client(n % 7, n), u64::from(n), usize::from(n));
            crowd.begin(client(n % 5, n));
        }
        assert_eq!(crowd.in_flight(client(3, 200)), 10);
        for n in 0..50u8 {
            crowd.leave(client(n % 7, n), u64::from(n), usize::from(n));
            crowd.end(client(n % 5, n));
        }
        assert!(crowd.networks.is_empty() && crowd.by_waiting.is_empty());
    }
}
