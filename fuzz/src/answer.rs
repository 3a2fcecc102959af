//! The head of an answer: every cut, httparse, and framing by its rules.

use palisade::{
    guard::{
        Version,
        answer::{AnswerFraming, AnswerHead, AnswerLimits, AnswerScan},
    },
    refusal::Refusal,
};

use crate::cuts;

pub fn check(data: &[u8]) {
    for to_head in [false, true] {
        let whole = read(&[data], to_head);
        for pieces in cuts(data) {
            assert_eq!(format!("{:?}", read(&pieces, to_head)), format!("{whole:?}"));
        }
        match whole {
            Ok(Some(head)) => agree(&data[..head.len], &head, to_head),
            Ok(None) => assert!(!data.windows(4).any(|w| w == b"\r\n\r\n"), "a complete head is not read"),
            Err(refusal) => assert!(matches!(refusal, Refusal::UpstreamBad(_)), "{refusal:?}"),
        }
    }
}

fn read(pieces: &[&[u8]], to_head: bool) -> Result<Option<AnswerHead>, Refusal> {
    let (mut scan, mut head, mut buf) = (AnswerScan::default(), AnswerHead::new(), Vec::new());
    for piece in pieces {
        buf.extend_from_slice(piece);
        if scan.advance(&buf, &AnswerLimits::default(), to_head, &mut head)? {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

fn agree(bytes: &[u8], head: &AnswerHead, to_head: bool) {
    let mut headers = [httparse::EMPTY_HEADER; 256];
    let mut parsed = httparse::Response::new(&mut headers);
    assert_eq!(parsed.parse(bytes), Ok(httparse::Status::Complete(head.len)));
    assert_eq!(parsed.code, Some(head.status));
    assert_eq!(parsed.version, Some(u8::from(head.version == Version::Http11)));
    assert_eq!(parsed.headers.len(), head.fields.len());
    for (theirs, ours) in parsed.headers.iter().zip(&head.fields) {
        assert_eq!((theirs.name.as_bytes(), theirs.value), (ours.name.of(bytes), ours.value.of(bytes)));
    }
    let values = |name: &str| -> Vec<String> {
        let named = parsed.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name));
        named.map(|h| String::from_utf8_lossy(h.value).to_ascii_lowercase()).collect()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    let bodiless = to_head || matches!(head.status, 100..=199 | 204 | 304);
    let expected = match (&lengths[..], &codings[..]) {
        ([], []) => AnswerFraming::UntilClose,
        ([length], []) => AnswerFraming::Length(length.parse().expect("a length that is no number was accepted")),
        ([], [coding]) if coding == "chunked" && head.version == Version::Http11 => AnswerFraming::Chunked,
        _ => panic!("accepted: {lengths:?} {codings:?}"),
    };
    assert_eq!(head.framing, if bodiless { AnswerFraming::None } else { expected });
}
