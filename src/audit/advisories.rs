//! R01: Puma, Rack, Rails and nio4r against the versions that repair what is published.
//!
//! The table names each gem's advisories with the version of every series that got the repair. nio4r has none. Two of
//! Puma's need `set_remote_address proxy_protocol` and are E11's.

use super::application::Application;
use super::checks::Id;
use crate::puma::versions::{Repair, Version};

pub(super) fn check(app: &mut Application<'_>) {
    for (gem, repairs) in ADVISORIES {
        let Some(locked) = app.lock.gem(gem).cloned() else { continue };
        let open: Vec<&Repair> = repairs.iter().filter(|repair| !repair.fixed_in(&locked.version)).collect();
        if open.is_empty() {
            continue;
        }
        let ids: Vec<&str> = open.iter().map(|repair| repair.id).collect();
        let remedy = remedy(&open, &locked.version).map_or_else(String::new, |version| format!("; repaired in {version}"));
        app.find(Id::R01, "Gemfile.lock", Some(locked.line), format!("{gem} {}: {}{remedy}", locked.version, ids.join(", ")));
    }
}

/// The nearest version that repairs all of them.
fn remedy(open: &[&Repair], version: &Version) -> Option<Version> {
    let mut candidates: Vec<Version> =
        open.iter().flat_map(|repair| repair.fixed.iter()).map(|text| Version::from(*text)).filter(|fixed| fixed > version).collect();
    candidates.sort();
    candidates.into_iter().find(|candidate| open.iter().all(|repair| repair.fixed_in(candidate)))
}

const fn all(id: &'static str, fixed: &'static [&'static str]) -> Repair {
    Repair { id, since: "", fixed }
}

const fn since(id: &'static str, since: &'static str, fixed: &'static [&'static str]) -> Repair {
    Repair { id, since, fixed }
}

const ADVISORIES: &[(&str, &[Repair])] = &[
    ("puma", PUMA),
    ("rack", RACK),
    ("actionpack", ACTIONPACK),
    ("actionview", ACTIONVIEW),
    ("activerecord", ACTIVERECORD),
    ("activestorage", ACTIVESTORAGE),
    ("activesupport", ACTIVESUPPORT),
    ("nio4r", &[]),
];

const PUMA: &[Repair] = &[
    all("CVE-2019-16770", &["3.12.2", "4.3.1"]),
    all("CVE-2020-5247", &["3.12.4", "4.3.3"]),
    all("CVE-2020-5249", &["3.12.4", "4.3.3"]),
    all("CVE-2020-11076", &["3.12.5", "4.3.4"]),
    all("CVE-2020-11077", &["3.12.6", "4.3.5"]),
    all("CVE-2021-29509", &["4.3.8", "5.3.1"]),
    all("CVE-2021-41136", &["4.3.9", "5.5.1"]),
    all("CVE-2022-23634", &["4.3.11", "5.6.2"]),
    all("CVE-2022-24790", &["4.3.12", "5.6.4"]),
    all("CVE-2023-40175", &["5.6.7", "6.3.1"]),
    all("CVE-2024-21647", &["5.6.8", "6.4.2"]),
    all("CVE-2024-45614", &["5.6.9", "6.4.3"]),
];

const RACK: &[Repair] = &[
    all("CVE-2022-30122", &["2.0.9.1", "2.1.4.1", "2.2.3.1"]),
    all("CVE-2022-30123", &["2.0.9.1", "2.1.4.1", "2.2.3.1"]),
    all("CVE-2022-44570", &["2.0.9.2", "2.1.4.2", "2.2.6.2", "3.0.4.1"]),
    all("CVE-2022-44571", &["2.0.9.2", "2.1.4.2", "2.2.6.1", "3.0.4.1"]),
    all("CVE-2022-44572", &["2.0.9.2", "2.1.4.2", "2.2.6.1", "3.0.4.1"]),
    all("CVE-2023-27530", &["2.0.9.3", "2.1.4.3", "2.2.6.3", "3.0.4.2"]),
    since("CVE-2023-27539", "2.0.0", &["2.2.6.4", "3.0.6.1"]),
    all("CVE-2024-25126", &["2.2.8.1", "3.0.9.1"]),
    all("CVE-2024-26141", &["2.2.8.1", "3.0.9.1"]),
    all("CVE-2024-26146", &["2.0.9.4", "2.1.4.4", "2.2.8.1", "3.0.9.1"]),
    since("CVE-2024-39316", "3.1.0", &["3.1.5"]),
    all("CVE-2025-25184", &["2.2.11", "3.0.12", "3.1.10"]),
    all("CVE-2025-27111", &["2.2.12", "3.0.13", "3.1.11"]),
    all("CVE-2025-27610", &["2.2.13", "3.0.14", "3.1.12"]),
    all("CVE-2025-46727", &["2.2.14", "3.0.16", "3.1.14"]),
    since("CVE-2025-49007", "3.1.0", &["3.1.16"]),
    all("CVE-2025-59830", &["2.2.18"]),
    all("CVE-2025-61770", &["2.2.19", "3.1.17", "3.2.2"]),
    all("CVE-2025-61771", &["2.2.19", "3.1.17", "3.2.2"]),
    all("CVE-2025-61772", &["2.2.19", "3.1.17", "3.2.2"]),
    all("CVE-2025-61780", &["2.2.20", "3.1.18", "3.2.3"]),
    all("CVE-2025-61919", &["2.2.20", "3.1.18", "3.2.3"]),
    all("CVE-2026-22860", &["2.2.22", "3.1.20", "3.2.5"]),
    all("CVE-2026-25500", &["2.2.22", "3.1.20", "3.2.5"]),
    all("CVE-2026-26961", &["2.2.23", "3.1.21", "3.2.6"]),
    all("CVE-2026-34230", &["2.2.23", "3.1.21", "3.2.6"]),
    all("CVE-2026-34826", &["2.2.23", "3.1.21", "3.2.6"]),
    all("CVE-2026-34829", &["2.2.23", "3.1.21", "3.2.6"]),
    all("CVE-2026-34830", &["2.2.23", "3.1.21", "3.2.6"]),
    since("CVE-2026-32762", "3.0.0", &["3.1.21", "3.2.6"]),
    since("CVE-2026-34835", "3.0.0", &["3.1.21", "3.2.6"]),
];

const ACTIONPACK: &[Repair] = &[
    all("CVE-2023-22792", &["6.1.7.1", "7.0.4.1"]),
    all("CVE-2023-22795", &["6.1.7.1", "7.0.4.1"]),
    all("CVE-2023-28362", &["6.1.7.4", "7.0.5.1"]),
    since("CVE-2024-26142", "7.1.0", &["7.1.3.1"]),
    since("CVE-2024-26143", "7.0.0", &["7.0.8.1", "7.1.3.1"]),
    since("CVE-2024-28103", "6.1.0", &["6.1.7.8", "7.0.8.4", "7.1.3.4"]),
    all("CVE-2024-41128", &["6.1.7.9", "7.0.8.5", "7.1.4.1", "7.2.1.1"]),
    all("CVE-2024-47887", &["6.1.7.9", "7.0.8.5", "7.1.4.1", "7.2.1.1"]),
    since("CVE-2024-54133", "5.2.0", &["7.0.8.7", "7.1.5.1", "7.2.2.1", "8.0.0.1"]),
    since("CVE-2026-33167", "8.1.0", &["8.1.2.1"]),
];

const ACTIONVIEW: &[Repair] = &[all("CVE-2026-33168", &["7.2.3.1", "8.0.4.1", "8.1.2.1"])];

const ACTIVERECORD: &[Repair] = &[
    all("CVE-2022-32224", &["5.2.8.1", "6.0.5.1", "6.1.6.1", "7.0.3.1"]),
    all("CVE-2022-44566", &["6.1.7.1", "7.0.4.1"]),
    all("CVE-2025-55193", &["7.1.5.2", "7.2.2.2", "8.0.2.1"]),
];

const ACTIVESTORAGE: &[Repair] = &[
    since("CVE-2024-26144", "5.2.0", &["6.1.7.7", "7.0.8.1"]),
    since("CVE-2025-24293", "5.2.0", &["7.1.5.2", "7.2.2.2", "8.0.2.1"]),
    all("CVE-2026-33173", &["7.2.3.1", "8.0.4.1", "8.1.2.1"]),
    all("CVE-2026-33174", &["7.2.3.1", "8.0.4.1", "8.1.2.1"]),
    all("CVE-2026-33195", &["7.2.3.1", "8.0.4.1", "8.1.2.1"]),
    all("CVE-2026-33202", &["7.2.3.1", "8.0.4.1", "8.1.2.1"]),
    all("CVE-2026-33658", &["7.2.3.1", "8.0.4.1", "8.1.2.1"]),
    since("CVE-2026-66066", "7.0.0", &["7.2.3.2", "8.0.5.1", "8.1.3.1"]),
];

const ACTIVESUPPORT: &[Repair] = &[
    all("CVE-2023-22796", &["6.1.7.1", "7.0.4.1"]),
    all("CVE-2023-28120", &["6.1.7.3", "7.0.4.3"]),
    all("CVE-2023-38037", &["6.1.7.5", "7.0.7.1"]),
    all("CVE-2026-33169", &["7.2.3.1", "8.0.4.1", "8.1.2.1"]),
    all("CVE-2026-33170", &["7.2.3.1", "8.0.4.1", "8.1.2.1"]),
    all("CVE-2026-33176", &["7.2.3.1", "8.0.4.1", "8.1.2.1"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_advisory_has_a_repair_that_is_a_version() {
        for (gem, repairs) in ADVISORIES {
            for repair in *repairs {
                assert!(!repair.fixed.is_empty(), "{gem} {}", repair.id);
                assert!(repair.fixed.iter().all(|text| Version::parse(text).is_some()), "{gem} {}", repair.id);
                assert!(repair.fixed.iter().all(|text| repair.fixed_in(&Version::from(*text))), "{gem} {}", repair.id);
            }
        }
    }

    #[test]
    fn the_remedy_repairs_everything_in_the_nearest_series() {
        let version = Version::from("5.6.5");
        let open: Vec<&Repair> = PUMA.iter().filter(|repair| !repair.fixed_in(&version)).collect();
        assert_eq!(open.len(), 3);
        assert_eq!(remedy(&open, &version), Some(Version::from("5.6.9")));
    }
}
