//! A chunked body: every cut and the strict oracle.

use palisade::{
    guard::{Limits, chunked::Chunked},
    refusal::Refusal,
};

use crate::{cuts, strict};

pub fn check(data: &[u8]) {
    let whole = read(&[data]);
    for pieces in cuts(data) {
        assert_eq!(read(&pieces), whole);
    }
    let oracle = strict::chunked(data);
    match &whole {
        Ok(Some(read)) => assert!(matches!(&oracle, Ok(Some(strict)) if strict == read), "{oracle:?} {whole:?}"),
        Ok(None) => assert!(matches!(oracle, Ok(None)), "{oracle:?}"),
        Err(refusal) => assert!(!matches!(oracle, Ok(Some(_))), "{oracle:?} {refusal:?}"),
    }
}

/// The length of the body on the wire, and its data; `None` when its end is not there.
fn read(pieces: &[&[u8]]) -> Result<Option<(usize, Vec<u8>)>, Refusal> {
    let (mut chunked, mut length, mut data) = (Chunked::new(), 0, Vec::new());
    for piece in pieces {
        let mut rest = *piece;
        loop {
            let step = chunked.advance(rest, &Limits::default())?;
            assert!(step.data.end <= step.consumed && step.consumed <= rest.len());
            data.extend_from_slice(&rest[step.data.clone()]);
            length += step.consumed;
            rest = &rest[step.consumed..];
            if step.done {
                return Ok(Some((length, data)));
            }
            if step.consumed == 0 {
                assert!(rest.is_empty(), "no step although there is input");
                break;
            }
        }
    }
    Ok(None)
}
