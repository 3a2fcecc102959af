//! Names of fields, each made once: one that the `http` crate does not know would take memory in every request.
//!
//! Threat: exhaustion; names of one kind have a few places, where the next one replaces another, and a long one has none.

use std::cell::RefCell;

use http::{HeaderName, header::InvalidHeaderName};

/// The name that these bytes are, in lower case.
pub fn of(bytes: &[u8]) -> Result<HeaderName, InvalidHeaderName> {
    if bytes.len() > LONGEST {
        return HeaderName::from_bytes(bytes);
    }
    let hash = hash(bytes);
    SEEN.with_borrow_mut(|seen| {
        let Some(places) = seen.get_mut(hash % KINDS) else { return anew(bytes) };
        let is_it = |name: &&HeaderName| name.as_str().as_bytes().eq_ignore_ascii_case(bytes);
        if let Some(name) = places.iter().flatten().find(is_it) {
            return Ok(name.clone());
        }
        let name = anew(bytes)?;
        let free = places.iter().position(Option::is_none).unwrap_or(hash / KINDS % PLACES);
        if let Some(place) = places.get_mut(free) {
            *place = Some(name.clone());
        }
        Ok(name)
    })
}

/// Of the first and the last eight bytes, in either case.
fn hash(bytes: &[u8]) -> usize {
    let (first, last) = match (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        (Some(first), Some(last)) => (u64::from_le_bytes(*first), u64::from_le_bytes(*last)),
        _ => bytes.iter().fold((0, 0), |(all, _), byte| (all << 8 | u64::from(*byte), 0)),
    };
    let mixed = (first | LOWER).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (last | LOWER).wrapping_mul(0xc2b2_ae3d_27d4_eb4f).rotate_left(32);
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize
}

fn anew(bytes: &[u8]) -> Result<HeaderName, InvalidHeaderName> {
    let end = bytes.last().map(u8::to_ascii_lowercase);
    let is_it = |name: &&HeaderName| {
        let name = name.as_str().as_bytes();
        name.last().copied() == end && name.eq_ignore_ascii_case(bytes)
    };
    match known(bytes.len()).iter().find(is_it) {
        Some(name) => Ok(name.clone()),
        None => HeaderName::from_bytes(bytes),
    }
}

/// Those that browsers, Rails and other proxies send and the `http` crate does not know: as constants they are cheapest.
fn known(length: usize) -> &'static [HeaderName] {
    match length {
        8 => &LENGTH_8,
        9 => &LENGTH_9,
        11 => &LENGTH_11,
        12 => &LENGTH_12,
        14 => &LENGTH_14,
        15 => &LENGTH_15,
        16 => &LENGTH_16,
        17 => &LENGTH_17,
        18 => &LENGTH_18,
        _ => &[],
    }
}

static LENGTH_8: [HeaderName; 1] = [HeaderName::from_static("priority")];
static LENGTH_9: [HeaderName; 2] = [HeaderName::from_static("sec-ch-ua"), HeaderName::from_static("x-real-ip")];
static LENGTH_11: [HeaderName; 2] = [HeaderName::from_static("traceparent"), HeaderName::from_static("turbo-frame")];
static LENGTH_12: [HeaderName; 2] = [HeaderName::from_static("x-csrf-token"), HeaderName::from_static("x-request-id")];
static LENGTH_14: [HeaderName; 4] = [
    HeaderName::from_static("sec-fetch-dest"),
    HeaderName::from_static("sec-fetch-mode"),
    HeaderName::from_static("sec-fetch-site"),
    HeaderName::from_static("sec-fetch-user"),
];
static LENGTH_15: [HeaderName; 2] = [HeaderName::from_static("x-forwarded-for"), HeaderName::from_static("x-amzn-trace-id")];
static LENGTH_16: [HeaderName; 4] = [
    HeaderName::from_static("sec-ch-ua-mobile"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-requested-with"),
    HeaderName::from_static("cf-connecting-ip"),
];
static LENGTH_17: [HeaderName; 1] = [HeaderName::from_static("x-forwarded-proto")];
static LENGTH_18: [HeaderName; 2] = [HeaderName::from_static("sec-ch-ua-platform"), HeaderName::from_static("x-turbo-request-id")];

thread_local! {
    static SEEN: RefCell<[[Option<HeaderName>; PLACES]; KINDS]> = const { RefCell::new([const { [const { None }; PLACES] }; KINDS]) };
}

/// Kinds of names, by their hash, and places for each.
const KINDS: usize = 128;
const PLACES: usize = 4;
/// Bytes of the longest name that has a place.
const LONGEST: usize = 40;
/// Makes letters small, and of some other bytes others.
const LOWER: u64 = 0x2020_2020_2020_2020;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_it_would_be_without_them() {
        let names: Vec<_> = (0..32).flat_map(|length| known(length).iter().map(move |name| (length, name))).collect();
        assert_eq!(names.len(), 20);
        for (length, name) in names {
            assert_eq!(name.as_str().len(), length, "{name} is in the wrong table");
            let shouted = name.as_str().to_ascii_uppercase();
            assert_eq!(of(shouted.as_bytes()).unwrap(), HeaderName::from_bytes(shouted.as_bytes()).unwrap());
        }
        for other in ["Host", "sec-fetch-nose", "X-Anything-At-All", "priorita"] {
            assert_eq!(of(other.as_bytes()).unwrap(), HeaderName::from_bytes(other.as_bytes()).unwrap());
        }
        assert!(of(b"").is_err() && of(b"sec fetch mode").is_err());
    }

    proptest::proptest! {
        #[test]
        fn whatever_was_seen_before_it_is_the_same_name(names in proptest::collection::vec("[A-Za-z0-9_ @-]{0,6}[a-cA-C-]{0,44}", 0..600)) {
            for name in names {
                proptest::prop_assert_eq!(of(name.as_bytes()).ok(), HeaderName::from_bytes(name.as_bytes()).ok());
            }
        }
    }

    #[test]
    fn names_that_differ_by_a_number_find_places() {
        for (first, last) in [("x-field-", ""), ("", "-of-mine"), ("x-forwarded-", "-id"), ("a", "")] {
            let mut kinds = [0; KINDS];
            (0..100).for_each(|n| kinds[hash(format!("{first}{n}{last}").as_bytes()) % KINDS] += 1);
            let lost: usize = kinds.iter().map(|names: &usize| names.saturating_sub(PLACES)).sum();
            assert!(lost <= 3, "{first}{last}: {lost} of 100");
        }
        assert_eq!(hash(b"Sec-Fetch-Mode"), hash(b"sec-fetch-mode"));
    }
}
