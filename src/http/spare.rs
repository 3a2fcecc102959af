//! What a request leaves to the next one on its thread: maps, notes and small buffers, whose memory is then used again.
//!
//! Threat: exhaustion. Only so many are kept, and none that is large.

use std::{cell::RefCell, collections::VecDeque, sync::Arc, time::Instant};

use bytes::{Bytes, BytesMut};
use http::{Extensions, HeaderMap};

use crate::{
    accept::client::Client,
    guard::answer::AnswerHead,
    http::arrival::{Arrival, Names, Notes},
};

/// An empty map of fields.
pub fn fields() -> HeaderMap {
    FIELDS.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Takes back a map of fields that is no longer needed.
pub fn give_fields(mut fields: HeaderMap) {
    FIELDS.with_borrow_mut(|spare| {
        if spare.len() < SPARES && fields.capacity() <= MOST_FIELDS {
            fields.clear();
            spare.push(fields);
        }
    });
}

/// A map of extensions with this one in it.
pub fn extensions(arrival: Arrival) -> Extensions {
    let mut extensions = EXTENSIONS.with_borrow_mut(Vec::pop).unwrap_or_default();
    match extensions.get_mut() {
        Some(place) => *place = arrival,
        None => drop(extensions.insert(arrival)),
    }
    extensions
}

/// Takes back a map of extensions that is no longer needed. What is in it ends here; the place of an arrival stays, with nobody in it.
pub fn give_extensions(mut extensions: Extensions) {
    let is_alone = extensions.len() == 1;
    match extensions.get_mut::<Arrival>().filter(|_| is_alone) {
        Some(place) => NOBODY.with(|nobody| place.clone_from(nobody)),
        None => extensions.clear(),
    }
    EXTENSIONS.with_borrow_mut(|spare| {
        if spare.len() < SPARES {
            spare.push(extensions);
        }
    });
}

/// Notes of a request whose first byte came at `started`.
pub fn notes(started: Instant) -> Arc<Notes> {
    if let Some(mut notes) = NOTES.with_borrow_mut(Vec::pop)
        && let Some(blank) = Arc::get_mut(&mut notes)
    {
        blank.begin(started);
        return notes;
    }
    Arc::new(Notes::new(started))
}

/// Takes back the notes of a request that is over, unless somebody still reads them.
pub fn give_notes(mut notes: Arc<Notes>) {
    let Some(last) = Arc::get_mut(&mut notes) else { return };
    last.clear();
    NOTES.with_borrow_mut(|spare| {
        if spare.len() < SPARES {
            spare.push(notes);
        }
    });
}

/// Room for the head of an answer.
pub fn head() -> AnswerHead {
    HEADS.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Takes back room for a head: offsets, which say nothing without the bytes.
pub fn give_head(head: AnswerHead) {
    HEADS.with_borrow_mut(|spare| {
        if spare.len() < SPARES && head.fields.capacity() <= MOST_FIELDS {
            spare.push(head);
        }
    });
}

/// An empty text with room for so many bytes.
pub fn text(capacity: usize) -> Vec<u8> {
    let mut text = TEXTS.with_borrow_mut(Vec::pop).unwrap_or_default();
    text.reserve(capacity);
    text
}

/// Takes back a text that is no longer needed.
pub fn give_text(mut text: Vec<u8>) {
    TEXTS.with_borrow_mut(|spare| {
        if spare.len() < SPARES && text.capacity() <= LARGEST_BUFFER {
            text.clear();
            spare.push(text);
        }
    });
}

/// A buffer with these bytes in it: in memory that was given back and that nobody reads any more, or in memory of their length.
pub fn buffer(bytes: &[u8]) -> BytesMut {
    let mut buffer = BUFFERS.with_borrow_mut(VecDeque::pop_front).unwrap_or_default();
    // How large it is shows only now: a part of it may have been in front of what came back.
    let is_large = buffer.try_reclaim(LARGEST_BUFFER.saturating_add(1));
    if is_large || !buffer.try_reclaim(bytes.len()) {
        return BytesMut::from(bytes);
    }
    buffer.extend_from_slice(bytes);
    buffer
}

/// Takes back a small buffer, all of whose bytes were split off. They may still be read.
pub fn give_buffer(buffer: BytesMut) {
    if buffer.is_empty() {
        BUFFERS.with_borrow_mut(|spare| {
            if spare.len() < SPARES {
                spare.push_back(buffer);
            }
        });
    }
}

/// A copy in a block with those of other requests: one that is shared, as by the log, Puma and the client, would otherwise cost two
/// allocations. A copy that stays for long, as a WebSocket's does, may keep a block.
pub fn cut(bytes: &[u8]) -> Bytes {
    if bytes.len() > BLOCK / 4 {
        return Bytes::copy_from_slice(bytes);
    }
    BLOCKS.with_borrow_mut(|block| {
        if !block.try_reclaim(bytes.len()) {
            *block = BytesMut::with_capacity(BLOCK);
        }
        block.extend_from_slice(bytes);
        block.split().freeze()
    })
}

/// The largest buffer that is worth keeping.
pub const LARGEST_BUFFER: usize = 8 * 1024;
/// Of each kind that a thread keeps.
const SPARES: usize = 16;
/// Bytes that small copies are cut from.
const BLOCK: usize = 512;
/// Fields of the largest map that is worth keeping.
const MOST_FIELDS: usize = 64;

thread_local! {
    static FIELDS: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
    static EXTENSIONS: RefCell<Vec<Extensions>> = const { RefCell::new(Vec::new()) };
    static NOBODY: Arrival = Arrival {
        client: Arc::new(Client::local()),
        target: Bytes::new(),
        notes: Arc::new(Notes::new(Instant::now())),
        sent: Names::NONE,
    };
    static NOTES: RefCell<Vec<Arc<Notes>>> = const { RefCell::new(Vec::new()) };
    static HEADS: RefCell<Vec<AnswerHead>> = const { RefCell::new(Vec::new()) };
    static TEXTS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static BLOCKS: RefCell<BytesMut> = RefCell::new(BytesMut::new());
    static BUFFERS: RefCell<VecDeque<BytesMut>> = const { RefCell::new(VecDeque::new()) };
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_comes_back_is_empty_and_of_a_bounded_number_and_size() {
        for n in 0..2 * SPARES {
            let mut map = HeaderMap::with_capacity(if n == 0 { 10 * MOST_FIELDS } else { 8 });
            map.insert("cookie", HeaderValue::from_static("secret"));
            give_fields(map);
            give_text(if n == 0 { vec![b'x'; 2 * LARGEST_BUFFER] } else { b"secret".to_vec() });
        }
        let maps: Vec<HeaderMap> = (0..=SPARES).map(|_| fields()).collect();
        assert!(maps.iter().all(|map| map.is_empty() && map.capacity() <= MOST_FIELDS));
        assert_eq!(maps.iter().filter(|map| map.capacity() > 0).count(), SPARES);
        let texts: Vec<Vec<u8>> = (0..=SPARES).map(|_| text(0)).collect();
        assert!(texts.iter().all(|text| text.is_empty() && text.capacity() <= LARGEST_BUFFER));
        assert_eq!(texts.iter().filter(|text| text.capacity() > 0).count(), SPARES);
        assert!(text(100).capacity() >= 100);
        let started = Instant::now();
        let all: Vec<_> = (0..2 * SPARES).map(|_| (notes(started), extensions(arrival(1)), head())).collect();
        give_head(AnswerHead { fields: Vec::with_capacity(2 * MOST_FIELDS), ..AnswerHead::default() });
        for (notes, extensions, head) in all {
            give_notes(notes);
            give_extensions(extensions);
            give_head(head);
        }
        let kept = (NOTES.with_borrow(Vec::len), EXTENSIONS.with_borrow(Vec::len), HEADS.with_borrow(Vec::len));
        assert_eq!(kept, (SPARES, SPARES, SPARES));
        assert!((0..=SPARES).all(|_| head().fields.capacity() <= MOST_FIELDS));
    }

    fn arrival(port: u16) -> Arrival {
        let client = Arc::new(Client { port, ..Client::local() });
        Arrival { client, target: Bytes::from_static(b"/secret"), notes: notes(Instant::now()), sent: Names::ANY }
    }

    #[test]
    fn what_is_in_extensions_ends_when_they_come_back() {
        for more in [false, true] {
            let (first, value) = (arrival(1), Arc::new(()));
            let mut map = extensions(first.clone());
            if more {
                map.insert(Arc::clone(&value));
            }
            give_extensions(map);
            assert_eq!((Arc::strong_count(&first.client), Arc::strong_count(&first.notes), Arc::strong_count(&value)), (1, 1, 1));
            let map = extensions(arrival(2));
            assert_eq!((map.len(), map.get::<Arrival>().unwrap().client.port), (1, 2));
        }
    }

    #[test]
    fn notes_come_back_blank_and_only_when_nobody_reads_them() {
        let started = Instant::now();
        let first = notes(started);
        first.identify(HeaderValue::from_static("secret"));
        first.body_length(7);
        let reader = Arc::clone(&first);
        give_notes(first);
        let second = notes(started);
        assert!(!Arc::ptr_eq(&reader, &second) && reader.id().is_some());
        second.identify(HeaderValue::from_static("secret"));
        second.observe(crate::guard::rule::Rule::G1);
        let place = Arc::as_ptr(&second);
        give_notes(second);
        let (later, again) = (started + std::time::Duration::from_secs(1), notes(started + std::time::Duration::from_secs(1)));
        assert_eq!((Arc::as_ptr(&again), again.started), (place, later));
        assert!(again.id().is_none() && again.observed().next().is_none() && again.said().is_none() && again.body() == 0);
    }

    #[test]
    fn copies_are_cut_from_a_block_and_a_block_is_used_again() {
        let (first, second) = (cut(b"first"), cut(b"second"));
        assert_eq!((&first[..], &second[..], &cut(b"")[..]), (&b"first"[..], &b"second"[..], &b""[..]));
        assert_eq!(first.as_ptr().wrapping_add(5), second.as_ptr());
        let all: Vec<Bytes> = (0..100u8).map(|n| cut(&[n; 40])).collect();
        assert!(all.iter().zip(0..).all(|(bytes, n)| bytes[..] == [n; 40]));
        assert_eq!(cut(&[7; BLOCK]), [7; BLOCK][..]);
        drop((first, second, all));
        let places: std::collections::BTreeSet<_> = (0..100).map(|_| cut(&[2; 100]).as_ptr()).collect();
        assert!(places.len() <= 2 * (BLOCK / 100), "{places:?}");
    }

    #[test]
    fn a_buffer_is_used_again_when_nobody_reads_it_any_more() {
        let mut first = buffer(b"the first answer");
        let read = first.split().freeze();
        give_buffer(first);
        let mut second = buffer(b"second");
        assert_eq!((&read[..], &second[..]), (&b"the first answer"[..], &b"second"[..]));
        let (place, read) = (second.as_ptr(), second.split().freeze());
        give_buffer(second);
        drop(read);
        let third = buffer(b"third");
        assert_eq!((third.as_ptr(), &third[..]), (place, &b"third"[..]));
        let mut large = buffer(&[0; 2 * LARGEST_BUFFER]);
        let (place, front) = (large.as_ptr(), large.split().freeze());
        give_buffer(large);
        drop(front);
        let other = buffer(b"fourth");
        assert!(other.as_ptr() != place && other.capacity() < LARGEST_BUFFER, "a large one is not used again");
    }
}
