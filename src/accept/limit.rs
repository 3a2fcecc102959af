//! How many connections there may be: in all, of one client, of one prefix, and how fast new ones may come.
//!
//! Threat: exhaustion by idle connections, connection floods and handshake floods. Checked right after accept, so that a refused
//! connection costs four system calls and no task. A client over its own limit is refused before it can use up the common rate or
//! push others out. When `connections` is reached, the connections with the least progress go, and the new one is served. Books
//! hold open connections only: two entries each at most, removed at zero, whatever the number of addresses.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{beat::Sweep, client::ClientKey, counters::Rejected, trusted::is_in};
use crate::units::{OneOrMany, Rate};

/// The part of `[limits]` in `proxy.toml` that is about connections.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Open connections in all. Memory at worst: each held one costs 4 KiB plain and 16 KiB with TLS. Default: 20000.
    pub connections: NonZeroU32,
    /// Open connections of one IPv4 address. Too low hurts offices behind one address. Default: 64.
    pub connections_per_ip: NonZeroU32,
    /// Open connections of one network.
    pub connections_per_prefix: Prefixes,
    /// Connections kept free for `health_from`; counts only when that is not empty. Default: 16.
    pub health_reserve: u32,
    /// Networks of health checks: they may use the reserve, and `accept_rate` does not stop them. Default: none.
    #[schemars(with = "OneOrMany<crate::config::schema::Network>")]
    pub health_from: OneOrMany<IpNet>,
    /// New connections. Default: 2000/s.
    pub accept_rate: Rate,
    /// New TLS handshakes; each costs as much as ten requests. Default: 500/s.
    pub tls_rate: Rate,
    /// TLS handshakes of one client at the same time. Default: 16.
    pub handshakes_per_ip: NonZeroU32,
    /// Networks without limits per address or prefix and without rates. Peers in `trusted_proxies` have no limit per address or
    /// prefix either, as each speaks for many. Default: none.
    #[schemars(with = "OneOrMany<crate::config::schema::Network>")]
    pub exempt: OneOrMany<IpNet>,
}

/// `limits.connections_per_prefix`.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Prefixes {
    /// Of an IPv4 /24. Default: 512.
    pub v4_24: NonZeroU32,
    /// Of an IPv6 /64, which is one client. Default: 64.
    pub v6_64: NonZeroU32,
    /// Of an IPv6 /48, which is one site. Default: 1024.
    pub v6_48: NonZeroU32,
}

/// The books of open connections, shared by all listeners.
#[derive(Debug)]
pub struct Limits {
    rules: ArcSwap<Rules>,
    open: AtomicUsize,
    /// Connections that were told to go and whose places nobody has taken yet, whether they have gone or not.
    vacancies: AtomicUsize,
    books: Books,
}

/// The right to be connected, freed on drop: it moves with the connection, also through an upgrade.
#[derive(Debug)]
pub struct Permit {
    limits: Arc<Limits>,
    counted: Option<IpAddr>,
}

/// The right to shake hands, freed on drop.
#[derive(Debug)]
pub(super) struct Handshake {
    limits: Arc<Limits>,
    client: Option<ClientKey>,
}

#[derive(Debug)]
struct Rules {
    config: Config,
    accept: DefaultDirectRateLimiter,
    tls: DefaultDirectRateLimiter,
}

impl Limits {
    /// Empty books.
    pub fn new(config: Config) -> Arc<Self> {
        Arc::new(Limits {
            rules: ArcSwap::from_pointee(Rules::new(config)),
            open: AtomicUsize::new(0),
            vacancies: AtomicUsize::new(0),
            books: Books::new(),
        })
    }

    /// New limits. They hold for new connections; nobody is dropped because of them.
    pub fn reload(&self, config: Config) {
        self.rules.store(Arc::new(Rules::new(config)));
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Clients and prefixes in the books now.
    pub fn entries(&self) -> usize {
        self.books.shards.iter().map(|s| lock(s).len()).sum()
    }

    /// Takes in a connection from `peer`. With `speaks_for_others` the peer is a listed proxy (or a unix socket): its own address
    /// has no limit, and [`Permit::identify`] counts the client once the PROXY line has named it.
    pub(super) fn admit(self: &Arc<Self>, sweep: &Sweep, peer: IpAddr, speaks_for_others: bool) -> Result<Permit, Rejected> {
        let rules = self.rules.load();
        let is_health = is_in(&rules.config.health_from.0, peer);
        let is_exempt = is_in(&rules.config.exempt.0, peer);
        let counted = if is_exempt || speaks_for_others { None } else { Some(peer) };
        if let Some(ip) = counted {
            self.count(&rules.config, ip)?;
        }
        let late = if !is_exempt && !is_health && rules.accept.check().is_err() {
            Some(Rejected::AcceptRate)
        } else if !self.enter(&rules.config, sweep, is_health) {
            Some(Rejected::Connections)
        } else {
            None
        };
        match late {
            None => Ok(Permit { limits: Arc::clone(self), counted }),
            Some(reason) => {
                if let Some(ip) = counted {
                    self.uncount(ip);
                }
                Err(reason)
            }
        }
    }

    /// Whether health checks come from there.
    pub(super) fn is_health(&self, peer: IpAddr) -> bool {
        is_in(&self.rules.load().config.health_from.0, peer)
    }

    /// Drops a connection with little progress to make room for another; false where every one is worth more than a newcomer.
    pub(super) fn exchange(&self, sweep: &Sweep) -> bool {
        self.take_vacancy() || self.make_room(sweep, self.open())
    }

    /// Begins a TLS handshake, after the ClientHello and before any expensive arithmetic.
    pub(super) fn handshake(self: &Arc<Self>, client: IpAddr) -> Result<Handshake, Rejected> {
        let rules = self.rules.load();
        if is_in(&rules.config.exempt.0, client) {
            return Ok(Handshake { limits: Arc::clone(self), client: None });
        }
        let key = ClientKey::of(client);
        if !self.books.take(Class::Handshake, key, rules.config.handshakes_per_ip) {
            return Err(Rejected::Handshakes);
        }
        let begun = Handshake { limits: Arc::clone(self), client: Some(key) };
        if rules.tls.check().is_err() { Err(Rejected::TlsRate) } else { Ok(begun) }
    }

    /// Counts the connection in all, and makes room where there is none.
    fn enter(&self, config: &Config, sweep: &Sweep, is_health: bool) -> bool {
        let most = config.connections.get() as usize;
        let reserve = if is_health || config.health_from.0.is_empty() { 0 } else { config.health_reserve as usize };
        let before = self.open.fetch_add(1, Relaxed);
        if before < most.saturating_sub(reserve) {
            if self.vacancies.load(Relaxed) > 0 {
                self.take_vacancy();
            }
            return true;
        }
        // Those that were told to go hold their places for a moment longer; the slack bounds how many are believed to go.
        let slack = (most >> 3).max(1);
        if before < most.saturating_add(slack) && (self.take_vacancy() || self.make_room(sweep, most)) {
            return true;
        }
        self.open.fetch_sub(1, Relaxed);
        false
    }

    /// One pass over all connections drops several of them, so that a flood at the limit does not buy a pass with each connection;
    /// but no more than a small part, as each that goes was somebody's.
    fn make_room(&self, sweep: &Sweep, most: usize) -> bool {
        match sweep.evict(HONEST, (most >> 6).clamp(1, BATCH)) {
            0 => false,
            dropped => {
                self.vacancies.fetch_add(dropped.saturating_sub(1), Relaxed);
                true
            }
        }
    }

    fn take_vacancy(&self) -> bool {
        self.vacancies.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok()
    }

    fn count(&self, config: &Config, ip: IpAddr) -> Result<(), Rejected> {
        let (own, site) = match super::client::unmapped(ip) {
            IpAddr::V4(_) => (config.connections_per_ip, config.connections_per_prefix.v4_24),
            IpAddr::V6(_) => (config.connections_per_prefix.v6_64, config.connections_per_prefix.v6_48),
        };
        let (client, network) = (ClientKey::of(ip), network_of(ip));
        if !self.books.take(Class::Client, client, own) {
            return Err(Rejected::PerAddress);
        }
        if !self.books.take(Class::Network, network, site) {
            self.books.give(Class::Client, client);
            return Err(Rejected::PerPrefix);
        }
        Ok(())
    }

    fn uncount(&self, ip: IpAddr) {
        self.books.give(Class::Client, ClientKey::of(ip));
        self.books.give(Class::Network, network_of(ip));
    }
}

impl Permit {
    /// Counts the connection for the client that a PROXY line named.
    pub(super) fn identify(&mut self, client: IpAddr) -> Result<(), Rejected> {
        let rules = self.limits.rules.load();
        if self.counted.is_none() && !is_in(&rules.config.exempt.0, client) {
            self.limits.count(&rules.config, client)?;
            self.counted = Some(client);
        }
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(ip) = self.counted {
            self.limits.uncount(ip);
        }
        self.limits.open.fetch_sub(1, Relaxed);
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        if let Some(client) = self.client {
            self.limits.books.give(Class::Handshake, client);
        }
    }
}

impl Rules {
    fn new(config: Config) -> Self {
        Rules { accept: limiter(config.accept_rate), tls: limiter(config.tls_rate), config }
    }
}

fn limiter(rate: Rate) -> DefaultDirectRateLimiter {
    let every = rate.period.checked_div(rate.count.get()).unwrap_or(rate.period);
    let quota = Quota::with_period(every).unwrap_or_else(|| Quota::per_second(rate.count));
    RateLimiter::direct(quota.allow_burst(rate.count))
}

fn network_of(ip: IpAddr) -> ClientKey {
    ClientKey::prefix(ip, 24, 48)
}

/// What an entry counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Class {
    Client,
    Network,
    Handshake,
}

type Shard = HashMap<(Class, ClientKey), u32>;

#[derive(Debug)]
struct Books {
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
}

impl Books {
    fn new() -> Self {
        Books { hasher: RandomState::new(), shards: (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect() }
    }

    fn take(&self, class: Class, key: ClientKey, most: NonZeroU32) -> bool {
        let Some(mut shard) = self.shard(class, key) else { return false };
        let open = shard.get(&(class, key)).copied().unwrap_or(0);
        if open >= most.get() {
            return false;
        }
        shard.insert((class, key), open.saturating_add(1));
        true
    }

    fn give(&self, class: Class, key: ClientKey) {
        let Some(mut shard) = self.shard(class, key) else { return };
        match shard.get_mut(&(class, key)) {
            Some(open) if *open > 1 => *open = open.saturating_sub(1),
            Some(_) | None => {
                shard.remove(&(class, key));
                if shard.capacity() > SMALL && shard.len() < shard.capacity() >> 2 {
                    let room = shard.len().saturating_mul(2);
                    shard.shrink_to(room);
                }
            }
        }
    }

    fn shard(&self, class: Class, key: ClientKey) -> Option<MutexGuard<'_, Shard>> {
        let hash = self.hasher.hash_one((class, key));
        self.shards.get((hash as usize) & (SHARDS - 1)).map(lock)
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Config {
    fn default() -> Self {
        Config {
            connections: at_least_one(20_000),
            connections_per_ip: at_least_one(64),
            connections_per_prefix: Prefixes::default(),
            health_reserve: 16,
            health_from: OneOrMany::default(),
            accept_rate: Rate::per_second(at_least_one(2000)),
            tls_rate: Rate::per_second(at_least_one(500)),
            handshakes_per_ip: at_least_one(16),
            exempt: OneOrMany::default(),
        }
    }
}

impl Default for Prefixes {
    fn default() -> Self {
        Prefixes { v4_24: at_least_one(512), v6_64: at_least_one(64), v6_48: at_least_one(1024) }
    }
}

const fn at_least_one(n: u32) -> NonZeroU32 {
    match NonZeroU32::new(n) {
        Some(n) => n,
        None => NonZeroU32::MIN,
    }
}

/// Progress, in bytes moved in both directions, from which a connection never goes to make room for another.
pub const HONEST: u64 = 1 << 20;

/// Connections dropped by one pass, at most.
const BATCH: usize = 32;
const SHARDS: usize = 32;
const SMALL: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn limits(change: impl FnOnce(&mut Config)) -> (Arc<Limits>, Arc<Sweep>) {
        let mut config = Config::default();
        change(&mut config);
        (Limits::new(config), Sweep::new())
    }

    #[test]
    fn one_address_has_its_share_and_another_is_not_hurt() {
        let (limits, sweep) = limits(|_| ());
        let held: Vec<_> = (0..64).map(|_| limits.admit(&sweep, ip("192.0.2.7"), false).unwrap()).collect();
        assert_eq!(limits.admit(&sweep, ip("192.0.2.7"), false).unwrap_err(), Rejected::PerAddress);
        assert_eq!(limits.admit(&sweep, ip("::ffff:192.0.2.7"), false).unwrap_err(), Rejected::PerAddress);
        assert!(limits.admit(&sweep, ip("192.0.2.8"), false).is_ok());
        drop(held);
        assert!(limits.admit(&sweep, ip("192.0.2.7"), false).is_ok());
    }

    #[test]
    fn prefixes_have_their_shares() {
        let (limits, sweep) = limits(|c| c.connections_per_prefix.v6_48 = at_least_one(65));
        let held: Vec<_> =
            (0..=255).flat_map(|n| [n, n]).map(|n| limits.admit(&sweep, ip(&format!("192.0.2.{n}")), false).unwrap()).collect();
        assert_eq!(held.len(), 512);
        assert_eq!(limits.admit(&sweep, ip("192.0.2.1"), false).unwrap_err(), Rejected::PerPrefix);
        assert!(limits.admit(&sweep, ip("192.0.3.1"), false).is_ok());
        let _held: Vec<_> = (0..64).map(|n| limits.admit(&sweep, ip(&format!("2001:db8:1:2::{n:x}")), false).unwrap()).collect();
        assert_eq!(limits.admit(&sweep, ip("2001:db8:1:2::ffff"), false).unwrap_err(), Rejected::PerAddress);
        let _last = limits.admit(&sweep, ip("2001:db8:1:3::1"), false).unwrap();
        assert_eq!(limits.admit(&sweep, ip("2001:db8:1:4::1"), false).unwrap_err(), Rejected::PerPrefix);
    }

    #[test]
    fn books_are_empty_when_everybody_is_gone() {
        let (limits, sweep) = limits(|c| c.accept_rate = Rate::per_second(NonZeroU32::MAX));
        for round in 0..10u32 {
            let held: Vec<_> =
                (0..2000u32).map(|n| limits.admit(&sweep, IpAddr::from((round << 24 | n << 8).to_be_bytes()), false).unwrap()).collect();
            assert_eq!((limits.open(), limits.entries()), (2000, 4000));
            drop(held);
        }
        assert_eq!((limits.open(), limits.entries()), (0, 0));
        let room: usize = limits.books.shards.iter().map(|s| lock(s).capacity()).sum();
        assert!(room <= SHARDS * SMALL * 2, "{room}");
    }

    #[test]
    fn a_client_over_its_own_limit_does_not_use_up_the_common_rate() {
        let (limits, sweep) = limits(|c| {
            c.connections_per_ip = at_least_one(1);
            c.accept_rate = Rate { count: at_least_one(3), period: std::time::Duration::from_secs(86_400) };
        });
        let _held = limits.admit(&sweep, ip("192.0.2.7"), false).unwrap();
        for _ in 0..100 {
            assert_eq!(limits.admit(&sweep, ip("192.0.2.7"), false).unwrap_err(), Rejected::PerAddress);
        }
        let _other = limits.admit(&sweep, ip("192.0.2.8"), false).unwrap();
        let _third = limits.admit(&sweep, ip("192.0.2.9"), false).unwrap();
        assert_eq!(limits.admit(&sweep, ip("192.0.2.10"), false).unwrap_err(), Rejected::AcceptRate);
        assert_eq!((limits.open(), limits.entries()), (3, 4), "a refused one leaves no trace");
    }

    #[test]
    fn who_has_the_least_progress_makes_room_and_the_honest_one_stays() {
        let (limits, sweep) = limits(|c| c.connections = at_least_one(2));
        let (idle, honest) = (sweep.enrol(5000), sweep.enrol(5000));
        honest.advance(HONEST);
        let _held = [limits.admit(&sweep, ip("192.0.2.1"), false).unwrap(), limits.admit(&sweep, ip("192.0.2.2"), false).unwrap()];
        let _new = limits.admit(&sweep, ip("192.0.2.3"), false).unwrap();
        assert!(idle.is_evicted() && !honest.is_evicted());
        assert_eq!(limits.admit(&sweep, ip("192.0.2.4"), false).unwrap_err(), Rejected::Connections);
        assert!(!honest.is_evicted());
        assert_eq!((limits.open(), limits.entries()), (3, 4));
    }

    #[test]
    fn one_pass_makes_room_for_several_newcomers_and_slack_is_bounded() {
        let (limits, sweep) = limits(|c| {
            c.connections = at_least_one(256);
            c.exempt = OneOrMany(vec!["192.0.2.0/24".parse().unwrap()]);
        });
        let beats: Vec<_> = (0..256).map(|_| sweep.enrol(5000)).collect();
        let mut held: Vec<_> = (0..256).map(|_| limits.admit(&sweep, ip("192.0.2.1"), false).unwrap()).collect();
        let evicted = || beats.iter().filter(|b| b.is_evicted()).count();
        held.push(limits.admit(&sweep, ip("192.0.2.1"), false).unwrap());
        assert_eq!(evicted(), 4);
        held.extend((0..3).map(|_| limits.admit(&sweep, ip("192.0.2.1"), false).unwrap()));
        assert_eq!(evicted(), 4, "each dropped one makes room for one");
        while let Ok(permit) = limits.admit(&sweep, ip("192.0.2.1"), false) {
            held.push(permit);
        }
        assert_eq!((held.len(), evicted()), (288, 32), "nobody believes in more room than an eighth while nobody has gone");
    }

    #[test]
    fn health_checks_have_a_reserve() {
        let (limits, sweep) = limits(|c| {
            c.connections = at_least_one(3);
            c.health_reserve = 1;
            c.health_from = OneOrMany(vec!["10.0.0.0/8".parse().unwrap()]);
        });
        let _held = [limits.admit(&sweep, ip("192.0.2.1"), false).unwrap(), limits.admit(&sweep, ip("192.0.2.2"), false).unwrap()];
        assert_eq!(limits.admit(&sweep, ip("192.0.2.3"), false).unwrap_err(), Rejected::Connections);
        assert!(limits.admit(&sweep, ip("10.1.1.1"), false).is_ok());
    }

    #[test]
    fn a_listed_proxy_has_no_limit_of_its_own_and_its_clients_have() {
        let (limits, sweep) = limits(|c| c.connections_per_ip = at_least_one(1));
        let mut first = limits.admit(&sweep, ip("10.0.0.1"), true).unwrap();
        let mut second = limits.admit(&sweep, ip("10.0.0.1"), true).unwrap();
        first.identify(ip("192.0.2.7")).unwrap();
        assert_eq!(second.identify(ip("192.0.2.7")), Err(Rejected::PerAddress));
        second.identify(ip("192.0.2.8")).unwrap();
        drop((first, second));
        assert_eq!((limits.open(), limits.entries()), (0, 0));
    }

    #[test]
    fn handshakes_are_limited_by_client_and_by_rate() {
        let (limits, _) = limits(|c| {
            c.handshakes_per_ip = at_least_one(2);
            c.tls_rate = Rate { count: at_least_one(3), period: std::time::Duration::from_secs(86_400) };
        });
        let held = [limits.handshake(ip("192.0.2.7")).unwrap(), limits.handshake(ip("192.0.2.7")).unwrap()];
        assert_eq!(limits.handshake(ip("192.0.2.7")).unwrap_err(), Rejected::Handshakes);
        let _other = limits.handshake(ip("192.0.2.8")).unwrap();
        drop(held);
        assert_eq!(limits.handshake(ip("192.0.2.7")).unwrap_err(), Rejected::TlsRate);
        assert_eq!(limits.entries(), 1, "only the handshake that goes on is counted");
    }

    #[test]
    fn new_limits_hold_for_new_connections() {
        let (limits, sweep) = limits(|_| ());
        let _held = [limits.admit(&sweep, ip("192.0.2.7"), false).unwrap(), limits.admit(&sweep, ip("192.0.2.7"), false).unwrap()];
        limits.reload(Config { connections_per_ip: at_least_one(1), ..Config::default() });
        assert_eq!(limits.admit(&sweep, ip("192.0.2.7"), false).unwrap_err(), Rejected::PerAddress);
        assert_eq!(limits.open(), 2);
    }
}
