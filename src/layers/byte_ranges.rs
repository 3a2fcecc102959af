//! The Range field (RFC 9110 §14.1.1, §14.2): few ranges, each byte asked for once.
//!
//! Threat: exhaustion. Overlapping ranges make an answer larger than its file (CVE-2024-26141), and Rack's reading of malformed
//! ones is quadratic (CVE-2022-44570).

use smallvec::SmallVec;

/// At most `most` well-formed ranges that do not overlap. Units other than bytes are somebody's own; only their number counts.
pub fn is_sane(value: &[u8], most: usize) -> bool {
    let Some(equals) = memchr::memchr(b'=', value) else {
        return false;
    };
    let (unit, set) = value.split_at_checked(equals).unwrap_or_default();
    let members = || set.get(1..).unwrap_or_default().split(|b| *b == b',');
    if unit.is_empty() || !unit.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-') || members().count() > most {
        return false;
    }
    if !unit.eq_ignore_ascii_case(b"bytes") {
        return true;
    }
    let mut seen: SmallVec<[(u64, u64); 4]> = SmallVec::new();
    let mut suffixes = 0_usize;
    for member in members() {
        match range(member.trim_ascii()) {
            Some(Range::Suffix) => suffixes = suffixes.saturating_add(1),
            Some(Range::Span(first, last)) => {
                if seen.iter().any(|(from, to)| first <= *to && *from <= last) {
                    return false;
                }
                seen.push((first, last));
            }
            None => return false,
        }
    }
    suffixes <= 1
}

enum Range {
    Span(u64, u64),
    Suffix,
}

fn range(member: &[u8]) -> Option<Range> {
    let dash = memchr::memchr(b'-', member)?;
    let (first, last) = (member.get(..dash)?, member.get(dash.saturating_add(1)..)?);
    match (first.is_empty(), last.is_empty()) {
        (true, true) => None,
        (true, false) => number(last).map(|_| Range::Suffix),
        (false, true) => Some(Range::Span(number(first)?, u64::MAX)),
        (false, false) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Range::Span(first, last))
        }
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    let plain = digits.len() <= 19 && digits.iter().all(u8::is_ascii_digit);
    if plain { std::str::from_utf8(digits).ok()?.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_players_and_download_tools_pass() {
        for value in ["bytes=0-", "bytes=0-499", "bytes=-500", "bytes=0-9,20-29,-5", "bytes=0-9, 10-19", "Bytes=5-5", "items=0-24"] {
            assert!(is_sane(value.as_bytes(), 16), "{value}");
        }
    }

    #[test]
    fn overlapping_malformed_or_many_ranges_do_not() {
        let many = format!("bytes={}", (0..17).map(|i| format!("{i}-{i}")).collect::<Vec<_>>().join(","));
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=1",
            "bytes=5-4",
            "bytes=a-b",
            "bytes=0-,5-",
            "bytes=0-9,9-12",
            "bytes=-1,-2",
            "=0-1",
            "bytes=+1-2",
            "bytes=0-99999999999999999999",
            "bytes=0-1,,2-3",
            &many,
        ] {
            assert!(!is_sane(value.as_bytes(), 16), "{value}");
        }
    }
}
