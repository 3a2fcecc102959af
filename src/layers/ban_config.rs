//! `[[ban]]` in `proxy.toml`: what counts, for whom, and what follows.

use std::{
    net::IpAddr,
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use http::StatusCode;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::{
    accept::trusted::private,
    refusal::Refusal,
    units::{Deadline, Mode, OneOrMany, Rate},
};

/// One `[[ban]]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// The name in logs, metrics and the administration.
    pub name: Box<str>,
    /// What counts: `severe`, a refusal by its label (`rate_limited`), or an answer by its status (`status:404`).
    pub on: OneOrMany<Trigger>,
    /// How many in how long lead to a ban. Default: `20/min`.
    #[serde(default = "threshold")]
    pub threshold: Rate,
    /// How long the first ban lasts; each further one twice as long as the one before. Default: 15 min.
    #[serde(rename = "for", default = "first")]
    pub time: Deadline,
    /// How long a ban lasts at most, and after how long without one the first is the first again. Default: 24 h.
    #[serde(default = "longest")]
    pub longest: Deadline,
    /// Who is counted: `ip` (for IPv6 the /64), `ip_prefix` (/24, /48), or `all`: everybody together, and from the threshold on
    /// until the end of the period each address that adds to it is banned. Default: ip.
    #[serde(default)]
    pub key: Key,
    /// What is refused: `request`, with 429 and Retry-After, or `connection`: it is closed before TLS. Default: request.
    #[serde(default)]
    pub refuse: Refuse,
    /// `enforce`, `observe` (counted and listed, not refused) or `off`. Default: enforce.
    #[serde(default)]
    pub mode: Mode,
    /// Networks that are never banned. Default: loopback, where another proxy speaks for everybody.
    #[serde(default = "loopback")]
    #[schemars(with = "OneOrMany<crate::config::schema::Network>")]
    pub allow: OneOrMany<IpNet>,
    /// Clients that are remembered. Memory: about 100 bytes each. Default: 65536.
    #[serde(default = "keys")]
    pub keys: NonZeroUsize,
}

impl RuleConfig {
    /// The rules that hold where none is configured: 20 severe refusals or requests for sensitive paths of one client in a minute,
    /// and those who take part when 600 slow requests are ended in a minute. The latter come again at once, and each handshake
    /// costs as much as ten requests. They are never private addresses: a balancer or NAT that is not in `trusted_proxies` would be
    /// shut out with everybody behind it.
    pub fn defaults() -> Vec<RuleConfig> {
        let scanner = RuleConfig {
            name: "scanner".into(),
            on: OneOrMany(vec![Trigger::Severe, Trigger::Refusal(Refusal::Sensitive.label())]),
            threshold: threshold(),
            time: first(),
            longest: longest(),
            key: Key::Ip,
            refuse: Refuse::Request,
            mode: Mode::Enforce,
            allow: loopback(),
            keys: keys(),
        };
        let slow = RuleConfig {
            name: "slow".into(),
            on: OneOrMany(vec![Trigger::Refusal(Refusal::SlowHeader.label()), Trigger::Refusal(Refusal::SlowBody.label())]),
            threshold: Rate { count: NonZeroU32::MIN.saturating_add(599), period: Duration::from_secs(60) },
            time: Deadline::seconds(60),
            longest: first(),
            key: Key::All,
            refuse: Refuse::Connection,
            allow: OneOrMany(private()),
            ..scanner.clone()
        };
        vec![scanner, slow]
    }
}

/// Who is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// One address, for IPv6 its /64.
    #[default]
    Ip,
    /// The /24 or /48 around it.
    IpPrefix,
    /// Everybody together.
    All,
}

/// What is refused to who is banned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Refuse {
    /// Each request, with an answer that says for how long.
    #[default]
    Request,
    /// Each connection, before it costs a handshake.
    Connection,
}

/// What counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// `severe`: bytes that no honest client sends.
    Severe,
    /// A refusal of ours by its label.
    Refusal(&'static str),
    /// `status:NNN`: an answer of the application.
    Status(StatusCode),
}

impl Serialize for Trigger {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Trigger::Severe => s.serialize_str("severe"),
            Trigger::Refusal(label) => s.serialize_str(label),
            Trigger::Status(status) => s.collect_str(&format_args!("status:{}", status.as_str())),
        }
    }
}

impl<'de> Deserialize<'de> for Trigger {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if text == "severe" {
            return Ok(Trigger::Severe);
        }
        if let Some(status) = text.strip_prefix("status:").and_then(|digits| digits.parse().ok()) {
            return Ok(Trigger::Status(status));
        }
        let label = Refusal::EACH.iter().map(|refusal| refusal.label()).find(|label| *label == text);
        label.map(Trigger::Refusal).ok_or_else(|| D::Error::custom("expected severe, status:NNN or the label of a refusal"))
    }
}

fn threshold() -> Rate {
    Rate { count: std::num::NonZeroU32::MIN.saturating_add(19), period: Duration::from_secs(60) }
}

fn first() -> Deadline {
    Deadline::seconds(900)
}

fn longest() -> Deadline {
    Deadline::seconds(86_400)
}

fn loopback() -> OneOrMany<IpNet> {
    let six = IpNet::from(IpAddr::from(std::net::Ipv6Addr::LOCALHOST));
    OneOrMany(vec![IpNet::from(ipnet::Ipv4Net::new_assert([127, 0, 0, 0].into(), 8)), six])
}

fn keys() -> NonZeroUsize {
    NonZeroUsize::MIN.saturating_add(65_535)
}
