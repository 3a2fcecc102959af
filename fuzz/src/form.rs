//! The scanners over bodies: parameters and multipart, fed with any cut, say the same.

use palisade::layers::{
    multipart::{self, Scanner},
    parameters::{self, Parameters},
};

pub fn check(data: &[u8]) {
    let counted: Vec<_> = crate::cuts(data)
        .into_iter()
        .map(|pieces| {
            let mut parameters = Parameters::new(parameters::Bounds { count: 50, depth: 5 });
            pieces.into_iter().try_for_each(|piece| parameters.feed(piece)).is_ok()
        })
        .collect();
    assert!(counted.windows(2).all(|pair| pair[0] == pair[1]), "parameters: {counted:?}");
    let scanned: Vec<_> = crate::cuts(data).into_iter().map(|pieces| scan(&pieces)).collect();
    assert!(scanned.windows(2).all(|pair| pair[0] == pair[1]), "multipart: {scanned:?}");
}

/// Feeds windows as the layer does: what was not taken stands in front of the next piece.
fn scan(pieces: &[&[u8]]) -> Result<(), multipart::Fault> {
    let bounds = multipart::Bounds { parts: 20, files: 10, part_header: 256, disposition: 128, preamble: 64, fields: 4096 };
    let mut scanner = Scanner::new(b"b", bounds);
    let mut window = Vec::new();
    for piece in pieces {
        window.extend_from_slice(piece);
        let taken = scanner.feed(&window, false)?;
        assert!(taken <= window.len());
        window.drain(..taken);
    }
    scanner.feed(&window, true).map(|_| ())
}
