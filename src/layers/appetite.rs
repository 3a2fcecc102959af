//! How much of a long answer is read from Puma at once: little at first, eight times as much as the client has taken so far, and
//! much once that is more than a socket's buffers hold.
//!
//! Threats: slowloris by slow reading, and exhaustion. Large pieces cost fewer system calls, and a client that then stands still
//! holds one; so the first of a stranger is small, and the largest are for [`ANSWERS`] at a time. Part of the
//! [`absorber`](super::absorber).

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::body::{FIRST_PIECE, LARGEST_PIECE};

/// One client's.
#[derive(Debug)]
pub struct Appetite {
    taken: usize,
    most: usize,
    large: Option<OwnedSemaphorePermit>,
}

impl Appetite {
    /// Of a client that has taken nothing yet, and will be given at most `most` bytes at once.
    pub fn new(most: usize) -> Self {
        Appetite { taken: 0, most, large: None }
    }

    /// The client is given so many bytes; who asks for the next has taken them.
    pub fn took(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(bytes);
    }

    /// Bytes that may be read at once; `large` has a permit for each answer whose pieces may be large.
    pub fn piece(&mut self, large: &Arc<Semaphore>) -> usize {
        if self.taken >= BUFFERED && self.most > LARGEST_PIECE && self.large.is_none() {
            self.large = Arc::clone(large).try_acquire_owned().ok();
        }
        if self.large.is_some() { self.most } else { self.taken.saturating_mul(8).clamp(FIRST_PIECE, LARGEST_PIECE) }
    }

    /// The client stands still.
    pub fn start_again(&mut self) {
        *self = Appetite::new(self.most);
    }
}

/// The largest piece.
pub const MOST: usize = 256 * 1024;
/// Bytes that the buffers of a socket may take from Puma's answer for a client that reads nothing; measured, 224 KiB.
const BUFFERED: usize = 240 * 1024;
/// How many answers come in pieces above 64 KiB at the same time: 16 MiB of them, if all their clients stand still at once.
pub const ANSWERS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    fn ask(appetite: &mut Appetite, large: &Arc<Semaphore>) -> usize {
        let piece = appetite.piece(large);
        appetite.took(piece);
        piece
    }

    #[test]
    fn pieces_grow_and_then_are_large_and_start_again_small() {
        let (large, mut appetite) = (Arc::new(Semaphore::new(1)), Appetite::new(MOST));
        let pieces: Vec<usize> = (0..7).map(|_| ask(&mut appetite, &large) / KIB).collect();
        assert_eq!(pieces, [16, 64, 64, 64, 64, 256, 256]);
        assert_eq!(large.available_permits(), 0);
        appetite.start_again();
        assert_eq!((appetite.piece(&large), large.available_permits()), (FIRST_PIECE, 1));
    }

    #[test]
    fn large_pieces_are_for_so_many_answers_and_come_back() {
        let large = Arc::new(Semaphore::new(2));
        let grown = |most| {
            let mut appetite = Appetite::new(most);
            appetite.took(BUFFERED);
            (appetite.piece(&large), appetite)
        };
        let all = [grown(MOST), grown(MOST), grown(MOST)];
        assert_eq!(all.each_ref().map(|(piece, _)| piece / KIB), [256, 256, 64]);
        drop(all);
        assert_eq!(grown(MOST).0, MOST);
        assert_eq!((grown(LARGEST_PIECE).0, large.available_permits()), (LARGEST_PIECE, 2));
    }

    #[test]
    fn many_small_pieces_make_no_large_one() {
        let (large, mut appetite) = (Arc::new(Semaphore::new(1)), Appetite::new(MOST));
        for _ in 0..1000 {
            appetite.piece(&large);
            appetite.took(50);
        }
        assert_eq!((appetite.piece(&large), large.available_permits()), (LARGEST_PIECE, 1));
    }
}
