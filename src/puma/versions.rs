//! Versions: what changes between Pumas as far as a proxy must know it, and `Gemfile.lock`.
//!
//! Threat 4, exposure, and the pool's policy towards Puma: each fact is from Puma's source or measured on 3.12.1 to
//! 8.0.2.

use std::cmp::Ordering;
use std::fmt;

/// A RubyGems version: numbers, and perhaps a pre-release such as `8.0.0.beta1`, which sorts before its release.
#[derive(Clone, Debug, Default)]
pub struct Version {
    numbers: Vec<u32>,
    prerelease: bool,
    text: String,
}

/// How connections to Puma are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// `Connection: close` on each request: up to 6.6 a kept connection parks a thread for 0.2 s after each answer.
    Close,
    /// Kept alive: from 7.0 on a thread is free as soon as its answer is written.
    KeepAlive,
}

/// What differs between versions of Puma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    pub reuse: Reuse,
    /// Seconds an idle connection is kept, unless `persistent_timeout` says otherwise.
    pub persistent_timeout: u32,
    /// Requests after which Puma closes a connection.
    pub max_keep_alive: Option<u32>,
    /// `http_content_length_limit` exists (6.1).
    pub content_length_limit: bool,
    /// The control server can be limited to statistics with `data_only` (7.2).
    pub data_only: bool,
    /// The PROXY line is read once and in bounds (CVE-2026-47736, CVE-2026-47737).
    pub proxy_protocol_sound: bool,
    /// Bytes behind a body are the next request, not part of the body: up to 6.4.1 they were read as body.
    pub pipelining_sound: bool,
    /// `Transfer-Encoding: gzip, chunked` is not taken for "no body" (fixed in 7.0).
    pub transfer_encoding_sound: bool,
}

impl Facts {
    /// The facts of a version; for an unknown version, those that are safe with all.
    #[must_use]
    pub fn of(version: Option<&Version>) -> Self {
        let at_least = |floor: &str| version.is_some_and(|version| *version >= Version::from(floor));
        let seven = at_least("7.0.0");
        Self {
            reuse: if seven { Reuse::KeepAlive } else { Reuse::Close },
            persistent_timeout: if seven { 65 } else { 20 },
            max_keep_alive: seven.then_some(999),
            content_length_limit: at_least("6.1.0"),
            data_only: at_least("7.2.0"),
            proxy_protocol_sound: version.is_some_and(|version| PROXY_PROTOCOL.fixed_in(version)),
            pipelining_sound: at_least("6.5.0"),
            transfer_encoding_sound: seven,
        }
    }
}

/// The versions that repair a defect, one for each series that got the repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repair {
    pub id: &'static str,
    /// The first version that has the defect; empty for all.
    pub since: &'static str,
    pub fixed: &'static [&'static str],
}

impl Repair {
    /// Whether a version is free of the defect.
    #[must_use]
    pub fn fixed_in(&self, version: &Version) -> bool {
        is_repaired(version, self.since, self.fixed)
    }

    /// The nearest version that repairs it.
    #[must_use]
    pub fn remedy(&self, version: &Version) -> Option<Version> {
        self.fixed.iter().map(|text| Version::from(*text)).filter(|fixed| fixed > version).min()
    }
}

/// Whether a version is free of a defect that came with `since` (empty: always there) and that each series in `fixed` has repaired.
#[must_use]
pub fn is_repaired(version: &Version, since: &str, fixed: &[impl AsRef<str>]) -> bool {
    if !since.is_empty() && *version < Version::from(since) {
        return true;
    }
    let fixed = || fixed.iter().map(|text| Version::from(text.as_ref()));
    fixed().any(|fixed| fixed.series() == version.series() && *version >= fixed) || fixed().max().is_some_and(|last| *version >= last)
}

/// PROXY v1 re-read on every request and without bounds.
pub const PROXY_PROTOCOL: Repair = Repair { id: "CVE-2026-47736, CVE-2026-47737", since: "5.5.0", fixed: &["7.2.1", "8.0.2"] };

impl Version {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if !text.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let mut numbers = Vec::new();
        let mut prerelease = false;
        // A platform follows a hyphen: `1.16.0-x86_64-linux`.
        let plain = text.split_once('-').map_or(text, |(version, _)| version);
        for part in plain.split('.') {
            if let Ok(number) = part.parse() {
                numbers.push(number);
            } else {
                prerelease = true;
                break;
            }
        }
        Some(Self { numbers, prerelease, text: plain.to_owned() })
    }

    fn series(&self) -> (u32, u32) {
        (self.number(0), self.number(1))
    }

    fn number(&self, index: usize) -> u32 {
        self.numbers.get(index).copied().unwrap_or(0)
    }
}

impl From<&str> for Version {
    /// Anything that is no version is the lowest one.
    fn from(text: &str) -> Self {
        Self::parse(text).unwrap_or_default()
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let length = self.numbers.len().max(other.numbers.len());
        (0..length)
            .map(|index| self.number(index).cmp(&other.number(index)))
            .find(|order| order.is_ne())
            .unwrap_or_else(|| other.prerelease.cmp(&self.prerelease))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Version {}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The gems of a `Gemfile.lock`.
#[derive(Clone, Debug, Default)]
pub struct Lockfile {
    gems: Vec<Locked>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locked {
    pub name: String,
    pub version: Version,
    pub line: u32,
}

impl Lockfile {
    /// Gems stand as `    name (version)`, four blanks deep; their dependencies stand deeper.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let gems = text
            .lines()
            .zip(1_u32..)
            .filter_map(|(line, number)| {
                let entry = line.strip_prefix("    ").filter(|rest| !rest.starts_with(' '))?;
                let (name, rest) = entry.split_once(" (")?;
                let version = Version::parse(rest.strip_suffix(')')?)?;
                Some(Locked { name: name.to_owned(), version, line: number })
            })
            .collect();
        Self { gems }
    }

    #[must_use]
    pub fn gem(&self, name: &str) -> Option<&Locked> {
        self.gems.iter().find(|gem| gem.name == name)
    }

    #[must_use]
    pub fn version(&self, name: &str) -> Option<&Version> {
        self.gem(name).map(|gem| &gem.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_rubygems_sorts_them() {
        let sorted = ["4.3.12", "5.6.5", "5.6.9", "6.4.2", "7.0.0.beta1", "7.0.0", "7.0.4.3", "8.0.2", "10.0"];
        for (lower, higher) in sorted.iter().zip(sorted.iter().skip(1)) {
            assert!(Version::from(*lower) < Version::from(*higher), "{lower} {higher}");
        }
        assert_eq!(Version::from("7.0"), Version::from("7.0.0"));
        assert_eq!(Version::parse("1.16.0-x86_64-linux").unwrap().to_string(), "1.16.0");
        assert_eq!(Version::parse("!= 3"), None);
    }

    #[test]
    fn a_repair_counts_within_its_series() {
        let repair = Repair { id: "X", since: "5.5.0", fixed: &["5.6.9", "6.4.3"] };
        for (version, fixed) in [
            ("5.4.9", true),
            ("5.5.0", false),
            ("5.6.8", false),
            ("5.6.9", true),
            ("6.0.0", false),
            ("6.4.2", false),
            ("6.4.3", true),
            ("8.0", true),
        ] {
            assert_eq!(repair.fixed_in(&Version::from(version)), fixed, "{version}");
        }
        assert_eq!(repair.remedy(&Version::from("5.6.1")), Some(Version::from("5.6.9")));
    }

    #[test]
    fn connections_are_closed_up_to_6_6_and_kept_from_7_on() {
        let facts = |version: &str| Facts::of(Some(&Version::from(version)));
        assert_eq!(facts("6.6.1").reuse, Reuse::Close);
        assert_eq!((facts("7.0.0").reuse, facts("7.0.0").persistent_timeout), (Reuse::KeepAlive, 65));
        assert_eq!((facts("6.6.1").persistent_timeout, facts("6.6.1").max_keep_alive), (20, None));
        assert!(!facts("8.0.1").proxy_protocol_sound && facts("8.0.2").proxy_protocol_sound && facts("5.4.0").proxy_protocol_sound);
        assert_eq!(Facts::of(None).reuse, Reuse::Close);
    }

    #[test]
    fn a_lockfile_names_gems_and_not_their_dependencies() {
        let text = "GEM\n  remote: https://rubygems.org/\n  specs:\n    puma (6.4.2)\n      nio4r (~> 2.0)\n    nio4r (2.7.0)\n\nDEPENDENCIES\n  puma (>= 5)\n";
        let lock = Lockfile::parse(text);
        assert_eq!(lock.gem("puma").map(|gem| (gem.version.to_string(), gem.line)), Some(("6.4.2".into(), 4)));
        assert_eq!(lock.version("nio4r"), Some(&Version::from("2.7.0")));
        assert!(lock.gem("rack").is_none());
    }
}
