//! What bodies may take of memory and disk, in both directions: one account each, and a fair share for every client.
//!
//! Threat: exhaustion. Bytes are reserved before they are kept and given back when the [`Reserved`] is dropped, so the sum
//! can never pass the limit. A single client may hold only its share, so that it cannot starve the others.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use dashmap::DashMap;

use crate::accept::client::ClientKey;

/// One account: memory or disk.
#[derive(Debug)]
pub struct Account {
    limit: AtomicU64,
    share: AtomicU64,
    used: AtomicU64,
    clients: DashMap<ClientKey, u64>,
}

/// Bytes that are taken from an account until this is dropped.
#[derive(Debug)]
pub struct Reserved {
    account: Arc<Account>,
    client: Option<ClientKey>,
    bytes: u64,
}

impl Account {
    /// An account of `limit` bytes, of which one client may hold `share`.
    pub fn new(limit: u64, share: u64) -> Arc<Self> {
        Arc::new(Account { limit: limit.into(), share: share.into(), used: 0.into(), clients: DashMap::new() })
    }

    /// Changes the limits; what is held stays held.
    pub fn resize(&self, limit: u64, share: u64) {
        self.limit.store(limit, Relaxed);
        self.share.store(share, Relaxed);
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Bytes in all.
    pub fn limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    /// More than half of the account is in use: single requests should take less of it.
    pub fn is_tight(&self) -> bool {
        self.used() > self.limit() / 2
    }

    /// A part of it is in use that clients who keep up never need: whoever makes others wait should hold nothing.
    pub fn is_crowded(&self) -> bool {
        self.used() > self.limit() / CROWD
    }

    /// There is no room for `more` bytes, whoever asks.
    pub fn is_spent(&self, more: u64) -> bool {
        self.used().saturating_add(more) > self.limit()
    }

    /// Nothing yet, in the name of no client: for bodies that came together with their head.
    pub fn open(self: &Arc<Self>) -> Reserved {
        Reserved { account: Arc::clone(self), client: None, bytes: 0 }
    }

    /// Nothing yet, in the name of a client whose share counts.
    pub fn open_for(self: &Arc<Self>, client: ClientKey) -> Reserved {
        Reserved { account: Arc::clone(self), client: Some(client), bytes: 0 }
    }
}

impl Reserved {
    /// Takes `more` bytes; false (and nothing taken) when the account or the client's share has not so many.
    #[must_use]
    pub fn grow(&mut self, more: u64) -> bool {
        let account = &self.account;
        if more == 0 {
            return true;
        }
        if let Some(client) = self.client {
            let share = account.share.load(Relaxed);
            if more > share {
                return false;
            }
            let mut held = account.clients.entry(client).or_insert(0);
            let wanted = held.saturating_add(more);
            if wanted > share {
                return false;
            }
            *held = wanted;
        }
        let taken = account.used.fetch_add(more, Relaxed).saturating_add(more);
        if taken > account.limit() {
            account.used.fetch_sub(more, Relaxed);
            self.give_back_share(more);
            return false;
        }
        self.bytes = self.bytes.saturating_add(more);
        true
    }

    /// Takes so much that `total` bytes are reserved.
    #[must_use]
    pub fn grow_to(&mut self, total: usize) -> bool {
        self.grow((total as u64).saturating_sub(self.bytes))
    }

    /// Takes or gives back so much that `total` bytes are reserved; false (and nothing changed) where there are not so many.
    #[must_use]
    pub fn resize(&mut self, total: u64) -> bool {
        self.shrink_to(total);
        self.grow(total.saturating_sub(self.bytes))
    }

    /// Gives back what is reserved above `total` bytes.
    pub fn shrink_to(&mut self, total: u64) {
        let less = self.bytes.saturating_sub(total);
        if less > 0 {
            self.give_back(less);
        }
    }

    /// Whether nothing is reserved.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Gives everything back.
    pub fn clear(&mut self) {
        self.give_back(self.bytes);
    }

    fn give_back(&mut self, bytes: u64) {
        self.account.used.fetch_sub(bytes, Relaxed);
        self.give_back_share(bytes);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn give_back_share(&self, bytes: u64) {
        if let Some(client) = self.client
            && bytes > 0
        {
            self.account.clients.remove_if_mut(&client, |_, held| {
                *held = held.saturating_sub(bytes);
                *held == 0
            });
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.clear();
    }
}

/// An account is crowded when one part in this many is in use: 1 MiB of the 256 MiB of a large machine.
const CROWD: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u8) -> ClientKey {
        ClientKey::of(std::net::IpAddr::from([192, 0, 2, n]))
    }

    #[test]
    fn the_sum_never_passes_the_limit() {
        let account = Account::new(100, 100);
        let mut a = account.open();
        let mut b = account.open();
        assert!(a.grow(60) && !b.grow(60) && b.grow(40));
        drop(a);
        assert_eq!(account.used(), 40);
        assert!(b.grow(60));
    }

    #[test]
    fn one_client_cannot_take_more_than_its_share() {
        let account = Account::new(100, 50);
        let mut first = account.open_for(client(1));
        let mut second = account.open_for(client(1));
        let mut other = account.open_for(client(2));
        assert!(first.grow(30) && !second.grow(30) && other.grow(50));
        drop(first);
        assert!(second.grow(50));
    }

    #[test]
    fn what_is_reserved_follows_what_is_held() {
        let account = Account::new(1000, 500);
        let mut held = account.open_for(client(1));
        assert!(held.resize(400) && held.resize(100) && account.used() == 100 && account.is_crowded());
        assert!(!held.resize(501) && account.used() == 100, "above the share nothing changes");
        assert!(held.resize(0) && held.is_empty() && account.clients.is_empty() && !account.is_crowded());
    }

    #[test]
    fn the_books_are_empty_when_nobody_holds_anything() {
        let account = Account::new(100, 50);
        for n in 0..200 {
            let mut held = account.open_for(client(n));
            assert!(held.grow(50) && !held.grow(1));
            assert!(!account.open_for(client(n)).grow(51));
        }
        assert!(account.open_for(client(1)).grow(0) && !account.open_for(client(1)).grow(51));
        assert_eq!((account.used(), account.clients.len()), (0, 0));
    }
}
