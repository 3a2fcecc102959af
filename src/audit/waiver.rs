//! Waivers: a finding that somebody accepted, why, and until when.
//!
//! Threat 4, exposure: a waiver without reason or date is how a hole becomes permanent, so neither may be missing, and
//! one that has expired is a finding itself.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::checks::Id;

/// A calendar day, `2027-01-31`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Date {
    year: i64,
    month: u8,
    day: u8,
}

/// One entry of `ignore` in `[audit]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Waiver {
    /// A check, for example `E08`.
    pub id: String,
    /// Only in this file or folder of the application.
    #[serde(default)]
    pub path: Option<String>,
    /// Why it is accepted.
    pub reason: String,
    /// The last day on which it holds.
    #[schemars(with = "String")]
    pub until: Date,
}

impl Waiver {
    #[must_use]
    pub fn covers(&self, id: Id, path: &Path, today: Date) -> bool {
        self.id == id.name() && self.fault(today).is_none() && self.path.as_ref().is_none_or(|only| path.starts_with(only))
    }

    /// Why it has no effect.
    #[must_use]
    pub fn fault(&self, today: Date) -> Option<String> {
        if Id::parse(&self.id).is_none() {
            Some("a waiver names no check".to_owned())
        } else if self.reason.trim().is_empty() {
            Some(format!("the waiver of {} gives no reason", self.id))
        } else if self.until < today {
            Some(format!("the waiver of {} ended on {}", self.id, self.until))
        } else {
            None
        }
    }

    /// A waiver in a comment: `# palisade:ignore S03 until 2027-01-31 the token is a dummy`.
    ///
    /// # Errors
    /// When the line has the marker but no valid waiver: the sentence says what is missing.
    pub fn inline(line: &str) -> Option<Result<Self, String>> {
        let (_, text) = line.split_once(MARKER)?;
        let mut words = text.split_whitespace();
        let id = words.next().unwrap_or_default().to_owned();
        let dated = (words.next() == Some("until")).then(|| words.next().and_then(Date::parse)).flatten();
        let reason = words.collect::<Vec<_>>().join(" ");
        Some(match dated {
            Some(until) => Ok(Self { id, path: None, reason, until }),
            None => {
                let id = Id::parse(&id).map_or("<check>", Id::name);
                Err(format!("a waiver has no date: `palisade:ignore {id} until <year>-<month>-<day> <reason>`"))
            }
        })
    }
}

impl Date {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '-');
        let year: i64 = parts.next()?.parse().ok()?;
        let month: u8 = parts.next()?.parse().ok()?;
        let day: u8 = parts.next()?.parse().ok()?;
        ((1..=12).contains(&month) && (1..=31).contains(&day)).then_some(Self { year, month, day })
    }

    #[must_use]
    pub fn today() -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self::from_days(i64::try_from(seconds / 86_400).unwrap_or(0))
    }

    /// From days since 1970-01-01, after Howard Hinnant's `civil_from_days`.
    fn from_days(days: i64) -> Self {
        let days = days.saturating_add(719_468);
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era.saturating_mul(400).saturating_add(year_of_era) + i64::from(month <= 2);
        Self { year, month: u8::try_from(month).unwrap_or(1), day: u8::try_from(day).unwrap_or(1) }
    }
}

impl From<Date> for String {
    fn from(date: Date) -> Self {
        date.to_string()
    }
}

impl TryFrom<String> for Date {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("expected a date as 2027-01-31")
    }
}

impl std::fmt::Display for Date {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

const MARKER: &str = "palisade:ignore";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (days, date) in [(0, "1970-01-01"), (59, "1970-03-01"), (11_016, "2000-02-29"), (20_454, "2026-01-01"), (20_818, "2026-12-31")]
        {
            assert_eq!(Date::from_days(days).to_string(), date);
        }
    }

    #[test]
    fn a_waiver_holds_until_its_last_day() {
        let waiver = Waiver { id: "E08".into(), path: None, reason: "lab".into(), until: Date::parse("2026-12-31").unwrap() };
        assert!(waiver.covers(Id::E08, Path::new("config/puma.rb"), Date::parse("2026-12-31").unwrap()));
        assert!(!waiver.covers(Id::E08, Path::new("config/puma.rb"), Date::parse("2027-01-01").unwrap()));
        assert!(!waiver.covers(Id::E07, Path::new("config/puma.rb"), Date::parse("2026-12-31").unwrap()));
    }

    #[test]
    fn a_comment_waives_only_with_date_and_reason() {
        let today = Date::parse("2026-06-01").unwrap();
        let good = Waiver::inline("x # palisade:ignore S03 until 2026-07-01 a dummy").unwrap().unwrap();
        assert!(good.covers(Id::S03, Path::new("x"), today));
        let mute = Waiver::inline("# palisade:ignore S03 until 2026-07-01").unwrap().unwrap();
        assert_eq!(mute.fault(today), Some("the waiver of S03 gives no reason".into()));
        assert!(Waiver::inline("# palisade:ignore S03 because").unwrap().is_err());
        assert!(Waiver::inline("workers 2").is_none());
    }
}
