//! The meter of HTTP/2 frames: where frames begin does not depend on how their bytes are cut into reads.

use palisade::http::frames::Meter;

pub fn check(data: &[u8]) {
    let verdicts: Vec<_> = crate::cuts(data)
        .into_iter()
        .map(|reads| {
            let mut meter = Meter::new();
            reads.into_iter().try_for_each(|read| meter.see(read, 0, 0, 0))
        })
        .collect();
    assert!(verdicts.windows(2).all(|pair| pair[0] == pair[1]), "{verdicts:?}");
}
