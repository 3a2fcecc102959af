//! How much of a long answer is read from Puma at once: little at first, twice as much each time that the client has taken what it
//! was given, and much once it has taken more than a socket's buffer holds.
//!
//! Threats: slowloris by slow reading, and exhaustion. Large pieces cost fewer system calls, and a client that then stands still
//! holds one; so the first of a stranger is small, and the largest are for a few answers at a time. Part of the
//! [`absorber`](super::absorber).

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::body::{FIRST_PIECE, LARGEST_PIECE};

/// Room for large pieces.
#[derive(Clone, Debug)]
pub struct Tables(Arc<Semaphore>);

/// One answer's.
#[derive(Debug)]
pub struct Appetite {
    piece: usize,
    given: usize,
    most: usize,
    large: Option<OwnedSemaphorePermit>,
}

impl Tables {
    /// For [`ANSWERS`] answers.
    pub fn new() -> Self {
        Tables(Arc::new(Semaphore::new(ANSWERS)))
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self::new()
    }
}

impl Appetite {
    /// Of a client that has taken nothing yet, and will be given at most `most` bytes at once.
    pub fn new(most: usize) -> Self {
        Appetite { piece: FIRST_PIECE, given: 0, most, large: None }
    }

    /// Bytes.
    pub fn piece(&self) -> usize {
        self.piece
    }

    /// A piece was given out: the next may be larger, if that comes to be asked for.
    pub fn grow(&mut self, tables: &Tables) {
        self.given = self.given.saturating_add(self.piece);
        if self.given >= BUFFERED && self.most > LARGEST_PIECE && self.large.is_none() {
            self.large = Arc::clone(&tables.0).try_acquire_owned().ok();
        }
        self.piece = if self.large.is_some() { self.most } else { self.piece.saturating_mul(2).min(LARGEST_PIECE) };
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
const ANSWERS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    #[test]
    fn pieces_double_and_then_are_large_and_start_again_small() {
        let (tables, mut appetite) = (Tables::new(), Appetite::new(MOST));
        let pieces: Vec<usize> = (0..7).map(|_| (appetite.piece() / KIB, appetite.grow(&tables)).0).collect();
        assert_eq!(pieces, [16, 32, 64, 64, 64, 256, 256]);
        assert_eq!(tables.0.available_permits(), ANSWERS - 1);
        appetite.start_again();
        assert_eq!((appetite.piece(), tables.0.available_permits()), (FIRST_PIECE, ANSWERS));
    }

    #[test]
    fn large_pieces_are_for_so_many_answers_and_come_back() {
        let tables = Tables::new();
        let grown = || {
            let mut appetite = Appetite::new(MOST);
            (0..5).for_each(|_| appetite.grow(&tables));
            appetite
        };
        let mut all: Vec<Appetite> = std::iter::repeat_with(grown).take(ANSWERS + 1).collect();
        assert_eq!(all.iter().filter(|appetite| appetite.piece() == MOST).count(), ANSWERS);
        assert_eq!(all.pop().map(|last| last.piece()), Some(LARGEST_PIECE));
        all.pop();
        assert_eq!(grown().piece(), MOST);
        let mut modest = Appetite::new(LARGEST_PIECE);
        (0..9).for_each(|_| modest.grow(&tables));
        assert_eq!((modest.piece(), tables.0.available_permits()), (LARGEST_PIECE, 1));
    }
}
