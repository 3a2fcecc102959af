//! Moments as text in UTC, at the price of two divisions: the part down to the second is kept per thread.

use std::{
    cell::Cell,
    time::{SystemTime, UNIX_EPOCH},
};

/// Writes `2026-07-12T10:11:12.345Z` (RFC 3339).
pub fn rfc3339(out: &mut Vec<u8>, at: SystemTime) {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let second = since.as_secs();
    let (mut cached, mut text) = SECOND.get();
    if cached != second {
        text = whole(second);
        cached = second;
        SECOND.set((cached, text));
    }
    out.extend_from_slice(&text);
    out.push(b'.');
    let millis = since.subsec_millis();
    out.extend_from_slice(&[digit(u64::from(millis) / 100), digit(u64::from(millis) / 10), digit(u64::from(millis)), b'Z']);
}

/// Writes `12/Jul/2026:10:11:12 +0000`, nginx's `$time_local`.
pub fn common(out: &mut Vec<u8>, at: SystemTime) {
    let moment = Moment::of(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    out.extend_from_slice(&two(moment.day));
    out.push(b'/');
    let month = usize::try_from(moment.month.saturating_sub(1)).ok().and_then(|m| MONTHS.get(m)).copied().unwrap_or("Jan");
    out.extend_from_slice(month.as_bytes());
    out.push(b'/');
    out.extend_from_slice(&two(moment.year / 100));
    out.extend_from_slice(&two(moment.year % 100));
    for part in [moment.hour, moment.minute, moment.second] {
        out.push(b':');
        out.extend_from_slice(&two(part));
    }
    out.extend_from_slice(b" +0000");
}

struct Moment {
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Moment {
    /// The proleptic Gregorian calendar by eras of 400 years that begin on 1 March, so that leap days come last.
    fn of(second: u64) -> Self {
        let days = second / 86_400 + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let from_march = (5 * of_year + 2) / 153;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        Moment {
            year: year + era * 400 + u64::from(month <= 2),
            month,
            day: of_year - (153 * from_march + 2) / 5 + 1,
            hour: second / 3600 % 24,
            minute: second / 60 % 60,
            second: second % 60,
        }
    }
}

fn whole(second: u64) -> [u8; 19] {
    let m = Moment::of(second);
    let ([c0, c1], [y0, y1], [m0, m1], [d0, d1]) = (two(m.year / 100), two(m.year % 100), two(m.month), two(m.day));
    let ([h0, h1], [i0, i1], [s0, s1]) = (two(m.hour), two(m.minute), two(m.second));
    [c0, c1, y0, y1, b'-', m0, m1, b'-', d0, d1, b'T', h0, h1, b':', i0, i1, b':', s0, s1]
}

fn two(n: u64) -> [u8; 2] {
    [digit(n / 10), digit(n)]
}

fn digit(n: u64) -> u8 {
    b'0' + (n % 10) as u8
}

thread_local! {
    static SECOND: Cell<(u64, [u8; 19])> = const { Cell::new((u64::MAX, [0; 19])) };
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn both(millis: u64) -> (String, String) {
        let at = UNIX_EPOCH + Duration::from_millis(millis);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        rfc3339(&mut a, at);
        common(&mut b, at);
        (String::from_utf8(a).unwrap(), String::from_utf8(b).unwrap())
    }

    #[test]
    fn moments_read_as_in_the_calendar() {
        assert_eq!(both(0), ("1970-01-01T00:00:00.000Z".into(), "01/Jan/1970:00:00:00 +0000".into()));
        assert_eq!(both(951_782_400_007).0, "2000-02-29T00:00:00.007Z");
        assert_eq!(both(1_709_251_199_999), ("2024-02-29T23:59:59.999Z".into(), "29/Feb/2024:23:59:59 +0000".into()));
        assert_eq!(both(4_107_542_400_000).0, "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn every_day_of_two_centuries_agrees_with_the_http_date() {
        for day in 0..73_000u64 {
            let at = UNIX_EPOCH + Duration::from_secs(day * 86_400 + day % 86_400);
            let expected = httpdate::fmt_http_date(at);
            let mut ours = Vec::new();
            common(&mut ours, at);
            let ours = String::from_utf8(ours).unwrap();
            assert_eq!(&ours[..11], expected[5..16].replace(' ', "/"));
            assert_eq!(&ours[12..20], &expected[17..25]);
        }
    }
}
