//! Puma's sockets: one shared by all workers, or one for each.
//!
//! Which worker gets a request is decided with its slot (least busy first, never more than it has threads); here each
//! index has its socket, its idle connections and its state.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::upstream::{connect::Address, hold::Gate, pool::Pool};

/// One of Puma's sockets.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) index: u32,
    pub(super) address: Address,
    pub(super) pool: Pool,
    pub(super) gate: Gate,
}

/// All of them. An index, once given to a socket, stays its own.
#[derive(Debug)]
pub(super) struct Sockets {
    addresses: Vec<Address>,
    list: ArcSwap<Vec<Arc<Socket>>>,
}

impl Sockets {
    /// The sockets that exist now; those of a pattern may be none yet.
    pub(super) fn new(addresses: Vec<Address>) -> Self {
        let sockets = Sockets { addresses, list: ArcSwap::default() };
        sockets.look();
        sockets
    }

    /// Looks for sockets that have appeared since; true where there are new ones.
    pub(super) fn look(&self) -> bool {
        let known = self.list.load();
        let mut list: Vec<Arc<Socket>> = known.as_ref().clone();
        for address in self.addresses.iter().flat_map(Address::expand) {
            if !list.iter().any(|socket| socket.address == address) {
                let index = u32::try_from(list.len()).unwrap_or(u32::MAX);
                list.push(Arc::new(Socket { index, address, pool: Pool::default(), gate: Gate::default() }));
            }
        }
        let grown = list.len() > known.len();
        if grown {
            self.list.store(Arc::new(list));
        }
        grown
    }

    /// Some of them may appear later.
    pub(super) fn may_grow(&self) -> bool {
        self.addresses.iter().any(Address::is_pattern)
    }

    /// All sockets, by index.
    pub(super) fn all(&self) -> Arc<Vec<Arc<Socket>>> {
        self.list.load_full()
    }

    /// The socket of a worker.
    pub(super) fn get(&self, index: u32) -> Option<Arc<Socket>> {
        self.list.load().get(index as usize).cloned()
    }
}
