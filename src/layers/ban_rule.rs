//! One ban rule: what it counts, for whom, and since when.

use std::{
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use dashmap::{DashMap, mapref::entry::Entry};
use http::StatusCode;

use super::ban_config::{Key, Refuse, RuleConfig, Trigger};
use crate::{
    accept::client::ClientKey,
    refusal::Refusal,
    units::{Mode, Rate},
};

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub enum Seen {
    /// Palisade refused it.
    Refused(Refusal),
    /// The application answered it.
    Answered(StatusCode),
}

/// A ban that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Banned {
    /// The client or its network.
    pub client: ClientKey,
    /// The name of the rule.
    pub rule: Box<str>,
    /// Whole seconds until it ends.
    pub seconds: u32,
    /// The how manieth ban in a row it is.
    pub strikes: u32,
}

/// A rule with its books.
#[derive(Debug)]
pub struct Rule {
    config: RuleConfig,
    clients: DashMap<ClientKey, Record>,
    /// What everybody adds to, where they count together.
    together: Mutex<Window>,
    held: AtomicUsize,
    banned: AtomicUsize,
    swept: AtomicU64,
}

/// What is known of a client; times are since the epoch of the books.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    window: Window,
    strikes: u32,
    until: Option<Duration>,
}

/// How many there were since when.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    since: Duration,
    count: u32,
}

impl Window {
    /// Counts one; true from the threshold on.
    fn add(&mut self, now: Duration, threshold: Rate) -> bool {
        if self.is_over(now, threshold) {
            *self = Window { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count >= threshold.count.get()
    }

    fn is_over(&self, now: Duration, threshold: Rate) -> bool {
        now.saturating_sub(self.since) >= threshold.period
    }
}

impl Rule {
    /// Empty books.
    pub fn new(config: RuleConfig) -> Self {
        Rule {
            config,
            clients: DashMap::new(),
            together: Mutex::default(),
            held: AtomicUsize::new(0),
            banned: AtomicUsize::new(0),
            swept: AtomicU64::new(0),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// There is no ban at all.
    pub fn is_quiet(&self) -> bool {
        self.banned.load(Relaxed) == 0 || self.config.mode != Mode::Enforce
    }

    /// Whether who is banned does not even get a connection.
    pub fn refuses_connections(&self) -> bool {
        self.config.refuse == Refuse::Connection
    }

    /// Whether the rule counts this.
    pub fn counts(&self, seen: Seen) -> bool {
        self.config.mode != Mode::Off
            && self.config.on.0.iter().any(|trigger| match (trigger, seen) {
                (Trigger::Severe, Seen::Refused(refusal)) => is_severe(refusal),
                (Trigger::Refusal(label), Seen::Refused(refusal)) => *label == refusal.label(),
                (Trigger::Status(status), Seen::Answered(answered)) => *status == answered,
                (Trigger::Severe | Trigger::Refusal(_), Seen::Answered(_)) | (Trigger::Status(_), Seen::Refused(_)) => false,
            })
    }

    /// Whole seconds of the ban that holds now.
    pub fn check(&self, client: IpAddr, now: Duration) -> Option<u32> {
        if self.is_quiet() {
            return None;
        }
        let until = self.clients.get(&self.key(client))?.until?;
        left(until, now)
    }

    /// Counts one; bans at the threshold.
    pub fn note(&self, client: IpAddr, now: Duration) {
        if self.config.allow.0.iter().any(|network| network.contains(&client)) {
            return;
        }
        let Some(mut record) = self.record(self.key(client), now) else {
            return;
        };
        if record.until.is_some_and(|until| until > now) {
            return;
        }
        let is_reached = match self.config.key {
            Key::All => self.together.lock().unwrap_or_else(PoisonError::into_inner).add(now, self.config.threshold),
            Key::Ip | Key::IpPrefix => record.window.add(now, self.config.threshold),
        };
        if is_reached {
            if record.until.is_some_and(|until| now.saturating_sub(until) > self.config.longest.get()) {
                record.strikes = 0;
            }
            let doubled = 1_u32.checked_shl(record.strikes).unwrap_or(u32::MAX);
            let time = self.config.time.get().saturating_mul(doubled).min(self.config.longest.get());
            self.ban(&mut record, now.saturating_add(time));
        }
    }

    /// Bans by hand.
    pub fn add(&self, client: IpAddr, time: Duration, now: Duration) {
        if let Some(mut record) = self.record(self.key(client), now) {
            self.ban(&mut record, now.saturating_add(time));
        }
    }

    /// Forgets a client; true where it was banned.
    pub fn remove(&self, client: IpAddr) -> bool {
        let Some((_, record)) = self.clients.remove(&self.key(client)) else {
            return false;
        };
        self.held.fetch_sub(1, Relaxed);
        if record.until.is_some() {
            self.banned.fetch_sub(1, Relaxed);
        }
        record.until.is_some()
    }

    /// The bans that hold.
    pub fn list(&self, now: Duration) -> Vec<Banned> {
        let held = self.clients.iter().filter_map(|entry| {
            let seconds = left(entry.until?, now)?;
            Some(Banned { client: *entry.key(), rule: self.config.name.clone(), seconds, strikes: entry.strikes })
        });
        held.collect()
    }

    /// Takes over what another rule knows.
    pub fn inherit(&self, old: &Rule) {
        for entry in old.clients.iter().take(self.config.keys.get()) {
            if self.clients.insert(*entry.key(), *entry.value()).is_none() {
                self.held.fetch_add(1, Relaxed);
                self.banned.fetch_add(usize::from(entry.until.is_some()), Relaxed);
            }
        }
    }

    fn key(&self, client: IpAddr) -> ClientKey {
        match self.config.key {
            Key::Ip | Key::All => ClientKey::of(client),
            Key::IpPrefix => ClientKey::prefix(client, 24, 48),
        }
    }

    fn ban(&self, record: &mut Record, until: Duration) {
        if record.until.is_none() {
            self.banned.fetch_add(1, Relaxed);
        }
        record.until = Some(until);
        record.strikes = record.strikes.saturating_add(1);
        record.window.count = 0;
    }

    /// The record of a client, new where there is room or room can be made.
    fn record(&self, key: ClientKey, now: Duration) -> Option<dashmap::mapref::one::RefMut<'_, ClientKey, Record>> {
        if let Some(record) = self.clients.get_mut(&key) {
            return Some(record);
        }
        if self.held.load(Relaxed) >= self.config.keys.get() {
            self.make_room(now);
            if self.held.load(Relaxed) >= self.config.keys.get() {
                return None;
            }
        }
        match self.clients.entry(key) {
            Entry::Occupied(occupied) => Some(occupied.into_ref()),
            Entry::Vacant(vacant) => {
                self.held.fetch_add(1, Relaxed);
                Some(vacant.insert(Record { window: Window { since: now, count: 0 }, ..Record::default() }))
            }
        }
    }

    /// Forgets who has been quiet for a period, at most once a second; then, if nobody was, one who is not banned.
    fn make_room(&self, now: Duration) {
        let second = now.as_secs().saturating_add(1);
        if self.swept.swap(second, Relaxed) != second {
            self.clients.retain(|_, record| {
                let banned = record.until.is_some_and(|until| until > now);
                let keep = banned || !record.window.is_over(now, self.config.threshold);
                if !keep {
                    self.held.fetch_sub(1, Relaxed);
                    self.banned.fetch_sub(usize::from(record.until.is_some()), Relaxed);
                }
                keep
            });
        }
        if self.held.load(Relaxed) < self.config.keys.get() {
            return;
        }
        let victim = self.clients.iter().take(LOOKED_AT).find(|entry| entry.until.is_none()).map(|entry| *entry.key());
        if let Some(victim) = victim
            && self.clients.remove_if(&victim, |_, record| record.until.is_none()).is_some()
        {
            self.held.fetch_sub(1, Relaxed);
        }
    }
}

fn left(until: Duration, now: Duration) -> Option<u32> {
    let left = until.checked_sub(now).filter(|left| !left.is_zero())?;
    u32::try_from(left.as_millis().div_ceil(1000)).ok()
}

/// Refusals that no honest client earns: the message had no single reading, or imitated another.
fn is_severe(refusal: Refusal) -> bool {
    match refusal {
        Refusal::BadFraming(_) | Refusal::BadHost(_) | Refusal::HeaderTooLarge(_) => true,
        Refusal::BadTarget(_)
        | Refusal::SlowHeader
        | Refusal::SlowBody
        | Refusal::ClientAbort
        | Refusal::BodyTooLarge
        | Refusal::UnknownHost
        | Refusal::Denied(_)
        | Refusal::Sensitive
        | Refusal::Forbidden
        | Refusal::RateLimited { .. }
        | Refusal::Banned { .. }
        | Refusal::QueueFull { .. }
        | Refusal::QueueTimeout { .. }
        | Refusal::BufferFull
        | Refusal::Overloaded
        | Refusal::Maintenance
        | Refusal::Draining
        | Refusal::Internal
        | Refusal::UpstreamRefused
        | Refusal::UpstreamTimeout
        | Refusal::UpstreamReset
        | Refusal::WebSocketFull
        | Refusal::UpstreamBad(_) => false,
    }
}

/// Clients that are looked at for one to forget.
const LOOKED_AT: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(json: serde_json::Value) -> Rule {
        Rule::new(serde_json::from_value(json).unwrap())
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn v4(number: u32) -> IpAddr {
        IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 | number))
    }

    #[test]
    fn each_ban_lasts_twice_as_long_until_the_longest() {
        let rule = rule(serde_json::json!({ "name": "s", "on": "severe", "threshold": "1/min", "for": "10s", "longest": "35s" }));
        let mut now = 0;
        for expected in [10, 20, 35, 35] {
            rule.note(v4(1), at(now));
            assert_eq!(rule.check(v4(1), at(now)), Some(expected));
            now += u64::from(expected);
            assert_eq!(rule.check(v4(1), at(now)), None);
        }
        rule.note(v4(1), at(now + 36));
        assert_eq!(rule.check(v4(1), at(now + 36)), Some(10));
    }

    #[test]
    fn everybody_counts_together_and_who_adds_to_it_is_banned() {
        let rule = rule(serde_json::json!({ "name": "s", "on": "slow_header", "threshold": "100/min", "for": "30s", "key": "all" }));
        for number in 0..99 {
            rule.note(v4(number), at(0));
        }
        rule.note(v4(7), at(30));
        rule.note(v4(8), at(59));
        assert_eq!((0..100).filter(|number| rule.check(v4(*number), at(59)).is_some()).collect::<Vec<_>>(), [7, 8]);
        rule.note(v4(9), at(61));
        assert_eq!(rule.check(v4(9), at(61)), None, "another minute");
        assert_eq!((rule.check(v4(7), at(61)), rule.check(v4(8), at(61))), (None, Some(28)));
    }

    #[test]
    fn the_slow_of_an_attack_are_banned_by_default_and_a_private_network_never_is() {
        let rule = Rule::new(RuleConfig::defaults().pop().unwrap());
        assert!(rule.refuses_connections() && rule.counts(Seen::Refused(Refusal::SlowBody)));
        let public = |number: u8| IpAddr::from([192, 0, 2, number]);
        for number in 0..=255 {
            for second in 0..3 {
                rule.note(public(number), at(second));
                rule.note(v4(u32::from(number)), at(second));
            }
        }
        let banned: Vec<u8> = (0..=255).filter(|number| rule.check(public(*number), at(3)).is_some()).collect();
        assert_eq!(banned, (199..=255).collect::<Vec<_>>(), "the 600th is the third of number 199");
        assert!((0..=255).all(|number| rule.check(v4(number), at(3)).is_none()));
    }

    #[test]
    fn only_what_comes_within_a_period_counts_together() {
        let rule = rule(serde_json::json!({ "name": "s", "on": "severe", "threshold": "2/min" }));
        rule.note(v4(1), at(0));
        rule.note(v4(1), at(61));
        assert_eq!(rule.check(v4(1), at(61)), None);
        rule.note(v4(1), at(62));
        assert_eq!(rule.check(v4(1), at(62)), Some(900));
    }

    #[test]
    fn memory_is_bounded_and_bans_are_kept() {
        let rule = rule(serde_json::json!({ "name": "s", "on": "severe", "threshold": "2/min", "keys": 100 }));
        for _ in 0..2 {
            rule.note(v4(1), at(0));
        }
        for number in 2..100_000 {
            rule.note(v4(number), at(1));
        }
        assert!(rule.clients.len() <= 100 && rule.held.load(Relaxed) == rule.clients.len());
        assert!(rule.check(v4(1), at(1)).is_some());
        for number in 0..100 {
            rule.note(v4(number), at(100));
        }
        assert!(rule.check(v4(1), at(100)).is_some());
    }

    #[test]
    fn observe_lists_and_does_not_refuse_and_loopback_is_left_alone() {
        let observe = rule(serde_json::json!({ "name": "s", "on": "severe", "threshold": "1/min", "mode": "observe", "key": "ip_prefix" }));
        observe.note("192.0.2.77".parse().unwrap(), at(0));
        assert_eq!(observe.check("192.0.2.1".parse().unwrap(), at(0)), None);
        assert_eq!(observe.list(at(0))[0].client.to_string(), "192.0.2.0");
        let rule = Rule::new(RuleConfig::defaults().remove(0));
        for _ in 0..100 {
            rule.note("127.0.0.1".parse().unwrap(), at(0));
        }
        assert!(rule.clients.is_empty());
    }

    #[test]
    fn triggers_are_read_by_their_names() {
        let rule = rule(serde_json::json!({ "name": "s", "on": ["severe", "rate_limited", "status:404"] }));
        assert!(rule.counts(Seen::Refused(Refusal::RateLimited { after: 9 })));
        assert!(rule.counts(Seen::Answered(StatusCode::NOT_FOUND)));
        assert!(!rule.counts(Seen::Answered(StatusCode::OK)) && !rule.counts(Seen::Refused(Refusal::Sensitive)));
        for bad in ["status:9", "nonsense", "status:x"] {
            assert!(serde_json::from_value::<RuleConfig>(serde_json::json!({ "name": "s", "on": bad })).is_err(), "{bad}");
        }
        let text = serde_json::to_value(RuleConfig::defaults()).unwrap();
        assert_eq!(text[0]["on"], serde_json::json!(["severe", "sensitive_path"]));
    }
}
