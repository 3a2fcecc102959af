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
        let Some(places) = seen.get_mut(hash % KINDS) else { return HeaderName::from_bytes(bytes) };
        let is_it = |name: &&HeaderName| name.as_str().as_bytes().eq_ignore_ascii_case(bytes);
        if let Some(name) = places.iter().flatten().find(is_it) {
            return Ok(name.clone());
        }
        let name = HeaderName::from_bytes(bytes)?;
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
    fn a_name_is_what_it_would_be_by_itself() {
        for name in ["Host", "Sec-Fetch-Mode", "sec-fetch-nose", "X-Anything-At-All", "priorita", "", "sec fetch mode"] {
            for name in [name.to_owned(), name.to_ascii_uppercase(), name.to_ascii_lowercase()] {
                assert_eq!(of(name.as_bytes()).ok(), HeaderName::from_bytes(name.as_bytes()).ok());
            }
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
