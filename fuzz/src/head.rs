//! A request head: every cut, httparse, and the strict oracle.

use palisade::{
    guard::{
        Limits, Version,
        head::{Head, HeadScan},
    },
    refusal::Refusal,
};

use crate::{cuts, strict};

pub fn check(data: &[u8]) {
    let whole = read(&[data]);
    for pieces in cuts(data) {
        assert_eq!(format!("{:?}", read(&pieces)), format!("{whole:?}"));
    }
    let oracle = strict::head(data);
    match &whole {
        Ok(Some(head)) => {
            agree_with_httparse(&data[..head.len], head);
            let Ok(Some(strict)) = oracle else { panic!("the oracle does not accept: {oracle:?}") };
            agree(data, head, &strict);
        }
        Ok(None) => assert!(matches!(oracle, Ok(None)), "the oracle has a verdict: {oracle:?}"),
        Err(refusal) => assert!(!matches!(oracle, Ok(Some(_))), "the oracle accepts in spite of {refusal:?}"),
    }
}

fn read(pieces: &[&[u8]]) -> Result<Option<Head>, Refusal> {
    let (mut scan, mut head, mut buf) = (HeadScan::default(), Head::new(), Vec::new());
    for piece in pieces {
        buf.extend_from_slice(piece);
        if scan.advance(&buf, &Limits::default(), &mut head)? {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

/// What the guard accepts, httparse reads the same.
pub fn agree_with_httparse(bytes: &[u8], head: &Head) {
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut parsed = httparse::Request::new(&mut headers);
    assert_eq!(parsed.parse(bytes), Ok(httparse::Status::Complete(head.len)));
    assert_eq!(parsed.method.map(str::as_bytes), Some(head.method.of(bytes)));
    assert_eq!(parsed.path.map(str::as_bytes), Some(head.target.of(bytes)));
    assert_eq!(parsed.version, Some(u8::from(head.version == Version::Http11)));
    assert_eq!(parsed.headers.len(), head.fields.len());
    for (theirs, ours) in parsed.headers.iter().zip(&head.fields) {
        assert_eq!((theirs.name.as_bytes(), theirs.value), (ours.name.of(bytes), ours.value.of(bytes)));
    }
}

/// The guard and the strict oracle read the same.
pub fn agree(bytes: &[u8], head: &Head, strict: &strict::Head) {
    assert_eq!(head.len, strict.len);
    assert_eq!(head.method.of(bytes), strict.method);
    assert_eq!(head.target.of(bytes), strict.target);
    assert_eq!(head.framing, strict.framing);
    assert_eq!(head.version == Version::Http11, strict.minor == 1);
    let fields: Vec<_> = head.fields.iter().map(|f| (f.name.of(bytes), f.value.of(bytes))).collect();
    assert_eq!(fields, strict.fields);
}
