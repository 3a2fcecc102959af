//! R01: Puma, Rack, Rails and nio4r against the versions that repair what is published.
//!
//! The table names each gem's advisories with the version of every series that got the repair. nio4r has none. Two of
//! Puma's need `set_remote_address proxy_protocol` and are E11's.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;

use super::application::Application;
use super::checks::Id;
use crate::puma::versions::{Repair, Version, is_repaired};

/// One advisory of a file that `--db` names, a JSON list of such. Between two releases of Palisade a hole is found this way.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advisory {
    /// The gem's name in `Gemfile.lock`.
    pub gem: String,
    /// Its CVE or GHSA number.
    pub id: String,
    /// The first version that has the defect; left out: all have it.
    #[serde(default)]
    pub since: String,
    /// The version of each series that repairs it.
    pub fixed: Vec<String>,
}

impl Advisory {
    /// Reads a file of advisories.
    ///
    /// # Errors
    /// When it cannot be read, or an entry is not whole: half a table would be a false comfort.
    pub fn read(path: &Path) -> io::Result<Vec<Self>> {
        let mut text = String::new();
        File::open(path)?.take(LARGEST).read_to_string(&mut text)?;
        let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()));
        let all: Vec<Self> = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let is_whole = |advisory: &Self| {
            let mut versions = advisory.fixed.iter().chain(Some(&advisory.since).filter(|since| !since.is_empty()));
            !advisory.fixed.is_empty() && versions.all(|text| Version::parse(text).is_some())
        };
        match all.iter().find(|advisory| !is_whole(advisory)) {
            Some(advisory) => Err(bad(format!("{}: `fixed` and `since` must be versions, `fixed` at least one", advisory.id))),
            None => Ok(all),
        }
    }
}

/// An advisory of either origin.
struct Open<'a> {
    id: &'a str,
    since: &'a str,
    fixed: Vec<&'a str>,
}

impl Open<'_> {
    fn repaired_in(&self, version: &Version) -> bool {
        is_repaired(version, self.since, &self.fixed)
    }
}

pub(super) fn check(app: &mut Application<'_>) {
    let given = &app.options.advisories;
    let gems: BTreeSet<&str> = ADVISORIES.iter().map(|(gem, _)| *gem).chain(given.iter().map(|advisory| &*advisory.gem)).collect();
    for gem in gems {
        let Some(locked) = app.lock.gem(gem).cloned() else { continue };
        let compiled = ADVISORIES.iter().filter(|(of, _)| *of == gem).flat_map(|(_, repairs)| repairs.iter());
        let compiled = compiled.map(|repair| Open { id: repair.id, since: repair.since, fixed: repair.fixed.to_vec() });
        let given = given.iter().filter(|advisory| advisory.gem == gem);
        let given = given.map(|a| Open { id: &a.id, since: &a.since, fixed: a.fixed.iter().map(String::as_str).collect() });
        let open: Vec<Open<'_>> = compiled.chain(given).filter(|advisory| !advisory.repaired_in(&locked.version)).collect();
        if open.is_empty() {
            continue;
        }
        let mut ids: Vec<&str> = open.iter().map(|advisory| advisory.id).collect();
        ids.dedup();
        let remedy = remedy(&open, &locked.version).map_or_else(String::new, |version| format!("; repaired in {version}"));
        app.find(Id::R01, "Gemfile.lock", Some(locked.line), format!("{gem} {}: {}{remedy}", locked.version, ids.join(", ")));
    }
}

/// The nearest version that repairs all of them.
fn remedy(open: &[Open<'_>], version: &Version) -> Option<Version> {
    let all = open.iter().flat_map(|advisory| advisory.fixed.iter());
    let mut candidates: Vec<Version> = all.map(|text| Version::from(*text)).filter(|fixed| fixed > version).collect();
    candidates.sort();
    candidates.into_iter().find(|candidate| open.iter().all(|advisory| advisory.repaired_in(candidate)))
}

/// A file of advisories above is none.
const LARGEST: u64 = 16 * 1024 * 1024;

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
        let open = PUMA.iter().filter(|repair| !repair.fixed_in(&version));
        let open: Vec<Open<'_>> = open.map(|r| Open { id: r.id, since: r.since, fixed: r.fixed.to_vec() }).collect();
        assert_eq!(open.len(), 3);
        assert_eq!(remedy(&open, &version), Some(Version::from("5.6.9")));
    }

    #[test]
    fn a_table_of_advisories_is_read_whole_or_not_at_all() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            Advisory::read(file.path())
        };
        let one = read(r#"[{"gem": "devise", "id": "CVE-1", "fixed": ["4.9.5"]}]"#).unwrap();
        assert_eq!(one, [Advisory { gem: "devise".into(), id: "CVE-1".into(), since: String::new(), fixed: vec!["4.9.5".into()] }]);
        for bad in [
            "",
            "{}",
            r#"[{"gem": "devise", "id": "CVE-1"}]"#,
            r#"[{"gem": "devise", "id": "CVE-1", "fixed": []}]"#,
            r#"[{"gem": "devise", "id": "CVE-1", "fixed": ["soon"]}]"#,
            r#"[{"gem": "devise", "id": "CVE-1", "fixed": ["1.0"], "sinse": "1.0"}]"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
