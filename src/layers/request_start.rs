//! X-Request-Start: from when on a request waited, for Rails' queue-time middlewares (`t=<seconds>.<milliseconds>`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::http::arrival::{Moment, Notes};

/// The moment that X-Request-Start names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RequestStart {
    /// The last byte of the body had come: a slow sender's time is not the application's queue.
    #[default]
    Complete,
    /// The first byte had come.
    Received,
    /// The field is not set.
    Off,
}

impl RequestStart {
    /// The moment, from what was noted.
    pub fn moment(self, notes: &Notes) -> Option<SystemTime> {
        match self {
            RequestStart::Complete => notes.at.checked_add(notes.when(Moment::Complete).unwrap_or_default()),
            RequestStart::Received => Some(notes.at),
            RequestStart::Off => None,
        }
    }
}

/// Writes `t=1763876543.210`.
pub fn write(out: &mut Vec<u8>, at: SystemTime) {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    out.extend_from_slice(b"t=");
    out.extend_from_slice(itoa::Buffer::new().format(since.as_secs()).as_bytes());
    let millis = since.subsec_millis();
    out.extend_from_slice(match millis {
        0..=9 => b".00",
        10..=99 => b".0",
        _ => b".",
    });
    out.extend_from_slice(itoa::Buffer::new().format(millis).as_bytes());
}

/// The longest text that [`write`] makes.
pub const LONGEST: usize = 26;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_text_has_seconds_and_three_digits() {
        for (millis, text) in
            [(1_763_876_543_210_u64, "t=1763876543.210"), (1_000_000_005, "t=1000000.005"), (1_000_000_050, "t=1000000.050")]
        {
            let mut out = Vec::new();
            write(&mut out, UNIX_EPOCH + Duration::from_millis(millis));
            assert_eq!(out, text.as_bytes());
        }
    }

    #[test]
    fn completion_counts_and_not_the_first_byte() {
        let notes = Notes::new(Instant::now() - Duration::from_secs(5));
        notes.mark(Moment::Complete);
        assert!(RequestStart::Complete.moment(&notes).unwrap() >= notes.at + Duration::from_secs(5));
        assert_eq!(RequestStart::Received.moment(&notes), Some(notes.at));
        assert_eq!(RequestStart::Off.moment(&notes), None);
    }
}
