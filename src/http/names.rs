//! Names of fields that browsers, Rails and other proxies send and the `http` crate does not know: as constants they cost no
//! allocation.

use http::{HeaderName, header::InvalidHeaderName};

/// The name that these bytes are, in lower case.
pub fn of(bytes: &[u8]) -> Result<HeaderName, InvalidHeaderName> {
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
}
