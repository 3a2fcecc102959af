//! What an operator reads: one access line per request, one event line per thing that happened to Palisade itself.
//!
//! Threats: exposure (secrets in logs) and forged lines. Values of a client reach a line only through [`text`], which lets no
//! control byte through, and query parameters that carry secrets only through [`redact`]. Authorization and Cookie are never
//! handed to this module. Lines are formatted by the thread that ends the request and written by a thread of their own, which
//! a full disk or a slow terminal may stop: then lines are dropped and counted, and no request waits.

pub mod calendar;
pub mod end;
pub mod event;
pub mod line;
pub mod recorder;
pub mod redact;
pub mod sink;
pub mod text;

pub use end::{End, Settle};
pub use event::{event, flush_events, start_events};
pub use recorder::{Recorder, Said, Verdict};

use serde::{Deserialize, Serialize};

use crate::units::OneOrMany;

/// `[log]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The form of access lines: `json`, `logfmt`, `combined` (nginx's) or `off`. Default: `json`.
    pub access: Format,
    /// Where access lines go: `-` is standard output, `stderr` is standard error, everything else is the path of a file, which
    /// is opened again on SIGUSR1 and SIGHUP. Waiting lines hold at most 4 MiB; beyond that they are dropped and counted in
    /// `palisade_log_lines_dropped_total`. Default: `-`.
    pub access_file: String,
    /// The least level of events on standard error: `error`, `warn`, `info` or `debug`. Default: `info`.
    pub level: Level,
    /// What is not written.
    pub redact: Redact,
}

/// `[log.redact]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Redact {
    /// Names of query parameters (also of Referer's) whose values are written as `[redacted]`. A name matches where its words
    /// stand in the parameter's name, whatever their case: `token` matches `token`, `accessToken`, `user[reset-token]`, not
    /// `tokens`. A list of your own replaces the built-in one. Default: token, password, secret, key, signature, code and
    /// their like.
    pub query: OneOrMany<String>,
}

/// The form of access lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object per line.
    #[default]
    Json,
    /// `key=value` pairs, as lograge writes them.
    Logfmt,
    /// nginx's `combined`.
    Combined,
    /// No access lines.
    Off,
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something does not work.
    Error,
    /// Something works, but not as it should.
    Warn,
    /// Something happened that an operator wants to find again.
    #[default]
    Info,
    /// Something happened that helps to find a fault.
    Debug,
}

impl Level {
    /// The word in event lines.
    pub fn label(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config { access: Format::Json, access_file: "-".to_owned(), level: Level::Info, redact: Redact::default() }
    }
}

impl Default for Redact {
    fn default() -> Self {
        Redact { query: OneOrMany(redact::SECRETS.iter().map(|name| (*name).to_owned()).collect()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads_as_documented() {
        assert_eq!(serde_json::from_str::<Config>("{}").unwrap(), Config::default());
        let text = r#"{"access":"combined","access_file":"/var/log/palisade.log","level":"warn","redact":{"query":"pin"}}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        assert_eq!((config.access, config.level, config.redact.query.0), (Format::Combined, Level::Warn, vec!["pin".to_owned()]));
        for text in [r#"{"acess":"json"}"#, r#"{"access":"xml"}"#, r#"{"redact":{"header":[]}}"#] {
            assert!(serde_json::from_str::<Config>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn levels_are_ordered_by_weight() {
        assert!(Level::Error < Level::Warn && Level::Warn < Level::Info && Level::Info < Level::Debug);
    }
}
