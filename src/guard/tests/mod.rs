//! Tests of the whole guard: the corpus, every cut of it, and generated streams against another reader.

mod corpus;
mod property;

use super::{
    Limits,
    head::Head,
    pipeline::{Event, Pipeline},
};
use crate::refusal::Refusal;

/// What a stream was read as.
#[derive(Debug, Default, PartialEq, Eq)]
struct Reading {
    requests: Vec<Request>,
    refusal: Option<Refusal>,
    between: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Request {
    at: u64,
    bytes: Vec<u8>,
    head: String,
    body: Vec<u8>,
    end: Option<u64>,
}

/// Reads a stream that comes in pieces.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: Limits) -> (Reading, Vec<Head>) {
    let mut pipeline = Pipeline::new(limits);
    let mut reading = Reading::default();
    let mut heads = Vec::new();
    for piece in pieces {
        for event in pipeline.feed(piece) {
            match event {
                Event::Head { at, head, bytes } => {
                    reading.requests.push(Request { at, bytes, head: format!("{head:?}"), body: Vec::new(), end: None });
                    heads.push(head);
                }
                Event::Data { bytes } => reading.requests.last_mut().unwrap().body.extend(bytes),
                Event::End { at } => reading.requests.last_mut().unwrap().end = Some(at),
                Event::Refused { refusal } => {
                    assert_eq!(reading.refusal, None, "a stream is refused once");
                    reading.refusal = Some(refusal);
                }
            }
        }
    }
    reading.between = pipeline.is_between_messages();
    (reading, heads)
}

/// Reads a stream whole, and checks that at every cut in two and byte by byte it reads the same. Long streams are cut at
/// about 150 places.
fn read_at_every_cut(bytes: &[u8], limits: Limits) -> (Reading, Vec<Head>) {
    let (whole, heads) = read([bytes], limits);
    let step = (bytes.len() / 150).max(1);
    for cut in (0..bytes.len()).step_by(if bytes.len() > 1500 { step } else { 1 }) {
        let (cut_reading, _) = read([&bytes[..cut], &bytes[cut..]], limits);
        assert_eq!(cut_reading, whole, "cut at {cut}: {:?}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(read(bytes.chunks(1), limits).0, whole, "cut everywhere: {:?}", String::from_utf8_lossy(bytes));
    assert_eq!(read(bytes.chunks(7), limits).0, whole, "cut by sevens: {:?}", String::from_utf8_lossy(bytes));
    (whole, heads)
}
