//! Which pieces of a file are free: arithmetic on numbers, without a disk.
//!
//! A [`Chunk`] is made here and nowhere else, cannot be copied, and comes back at most once: two bodies never have the same.

use std::{cmp::Reverse, collections::BinaryHeap, ops::Range};

/// A piece of [`CHUNK`] bytes that one body has for itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk(u32);

/// The pieces of one file.
#[derive(Debug, Default)]
pub struct Chunks {
    /// Free, but the file system still has blocks for them: the first to be used again.
    warm: BinaryHeap<Reverse<u32>>,
    /// Free, and a hole in the file.
    cold: BinaryHeap<Reverse<u32>>,
    /// As many there are in all.
    all: u32,
    /// The fewest that have been warm since that was asked last.
    least: usize,
}

impl Chunk {
    /// Where it begins in the file.
    pub fn start(&self) -> u64 {
        u64::from(self.0).saturating_mul(CHUNK)
    }

    /// Whether the other one begins where this ends.
    pub fn is_before(&self, other: &Chunk) -> bool {
        self.0.checked_add(1) == Some(other.0)
    }
}

impl Chunks {
    /// A free one. `None` when the numbers have come to their end, at 256 TiB.
    pub fn take(&mut self) -> Option<Chunk> {
        let warm = self.warm.pop();
        self.least = self.least.min(self.warm.len());
        if let Some(Reverse(n)) = warm.or_else(|| self.cold.pop()) {
            return Some(Chunk(n));
        }
        let next = self.all.checked_add(1)?;
        Some(Chunk(std::mem::replace(&mut self.all, next)))
    }

    /// Takes back chunks.
    pub fn give_back(&mut self, chunks: impl IntoIterator<Item = Chunk>) {
        self.warm.extend(chunks.into_iter().map(|Chunk(n)| Reverse(n)));
    }

    /// Forgets the free ones at the end. How many there are then, where that is fewer.
    pub fn shrink(&mut self) -> Option<u32> {
        let mut free: Vec<u32> = self.warm.iter().chain(&self.cold).map(|Reverse(n)| *n).collect();
        free.sort_unstable();
        let all = self.all;
        while self.all > 0 && free.pop() == self.all.checked_sub(1) {
            self.all = self.all.saturating_sub(1);
        }
        let end = self.all;
        for heap in [&mut self.warm, &mut self.cold] {
            heap.retain(|Reverse(n)| *n < end);
            heap.shrink_to_fit();
        }
        (end < all).then_some(end)
    }

    /// How many warm ones nobody has needed since this was asked last.
    pub fn unneeded(&mut self) -> usize {
        std::mem::replace(&mut self.least, self.warm.len()).min(self.warm.len())
    }

    /// So many of the warm ones, the last, to be made holes of and then freed with [`Self::free_cold`], or with [`Self::free_warm`]
    /// where that fails.
    pub fn cool(&mut self, most: usize) -> Vec<Range<u32>> {
        let mut last = std::mem::take(&mut self.warm).into_sorted_vec();
        self.warm.extend(last.drain(most.min(last.len())..));
        runs(last.into_iter().map(|Reverse(n)| n).collect())
    }

    /// These are holes now.
    pub fn free_cold(&mut self, run: Range<u32>) {
        self.cold.extend(run.map(Reverse));
    }

    /// These could not be made holes of.
    pub fn free_warm(&mut self, run: Range<u32>) {
        self.warm.extend(run.map(Reverse));
    }

    /// Whether nobody has one of so many that the disk should have them back at once.
    pub fn is_over(&self) -> bool {
        self.all as usize > WARM && self.warm.len().saturating_add(self.cold.len()) >= self.all as usize
    }

    /// Whether the file may have blocks that nobody needs.
    pub fn is_untidy(&self) -> bool {
        !self.warm.is_empty()
    }
}

/// Neighbours together.
fn runs(mut numbers: Vec<u32>) -> Vec<Range<u32>> {
    numbers.sort_unstable();
    let mut runs: Vec<Range<u32>> = Vec::new();
    for n in numbers {
        match runs.last_mut() {
            Some(run) if run.end == n => run.end = n.saturating_add(1),
            Some(_) | None => runs.push(n..n.saturating_add(1)),
        }
    }
    runs
}

/// Bytes of a chunk: what is written at once, mostly.
pub const CHUNK: u64 = 64 * 1024;
/// Chunks that a file keeps for a moment after the last body: 16 MiB.
const WARM: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(chunks: &mut Chunks, n: usize) -> Vec<u32> {
        std::iter::repeat_with(|| chunks.take().unwrap().0).take(n).collect()
    }

    #[test]
    fn the_lowest_that_has_blocks_is_used_first_then_a_hole_then_a_new_one() {
        let mut chunks = Chunks::default();
        assert_eq!(numbers(&mut chunks, 5), [0, 1, 2, 3, 4]);
        chunks.free_cold(0..1);
        chunks.give_back([Chunk(4), Chunk(2)]);
        assert_eq!(numbers(&mut chunks, 4), [2, 4, 0, 5]);
    }

    #[test]
    fn the_end_is_forgotten_and_what_is_between_is_made_holes_of() {
        let mut chunks = Chunks::default();
        let mut all: Vec<Chunk> = std::iter::repeat_with(|| chunks.take().unwrap()).take(10).collect();
        assert_eq!(chunks.shrink(), None);
        chunks.give_back([all.remove(9), all.remove(8), all.remove(5), all.remove(4), all.remove(1)]);
        assert!(chunks.is_untidy());
        assert_eq!((chunks.shrink(), chunks.shrink()), (Some(8), None));
        assert_eq!(chunks.cool(usize::MAX), [1..2, 4..6]);
        chunks.free_cold(4..6);
        chunks.free_warm(1..2);
        assert!(chunks.is_untidy(), "one could not be made a hole of");
        assert_eq!(numbers(&mut chunks, 4), [1, 4, 5, 8]);
        chunks.give_back(all);
        chunks.give_back([1, 4, 5, 8].map(Chunk));
        assert_eq!((chunks.shrink(), chunks.is_untidy(), numbers(&mut chunks, 1)), (Some(0), false, vec![0]));
    }

    #[test]
    fn of_those_that_nobody_needed_for_a_while_the_last_become_holes() {
        let mut chunks = Chunks::default();
        let mut all: Vec<Chunk> = std::iter::repeat_with(|| chunks.take().unwrap()).take(10).collect();
        let last = all.pop().unwrap();
        chunks.give_back(all);
        assert_eq!(chunks.unneeded(), 0, "all were needed");
        let needed = [(); 4].map(|()| chunks.take().unwrap());
        chunks.give_back(needed);
        assert_eq!(chunks.unneeded(), 5);
        assert_eq!(chunks.cool(5).as_slice(), std::slice::from_ref(&(4..9)));
        chunks.free_cold(4..9);
        assert_eq!((chunks.unneeded(), numbers(&mut chunks, 5)), (4, vec![0, 1, 2, 3, 4]));
        assert_eq!((chunks.cool(3), chunks.unneeded(), last), (Vec::new(), 0, Chunk(9)));
    }

    #[test]
    fn many_that_nobody_has_any_more_are_over_at_once() {
        let mut chunks = Chunks::default();
        let mut all: Vec<Chunk> = std::iter::repeat_with(|| chunks.take().unwrap()).take(WARM + 1).collect();
        let last = all.pop().unwrap();
        chunks.give_back(all);
        assert!(!chunks.is_over());
        chunks.give_back([last]);
        assert!(chunks.is_over() && chunks.shrink() == Some(0) && !chunks.is_over());
        let few: Vec<Chunk> = std::iter::repeat_with(|| chunks.take().unwrap()).take(WARM).collect();
        chunks.give_back(few);
        assert!(!chunks.is_over());
    }

    #[test]
    fn the_end_of_the_numbers_is_no_chunk_twice() {
        let mut chunks = Chunks { all: u32::MAX, ..Chunks::default() };
        assert_eq!(chunks.take(), None);
        chunks.give_back([Chunk(7)]);
        assert_eq!((chunks.take(), chunks.take()), (Some(Chunk(7)), None));
    }

    #[test]
    fn neighbours_follow_each_other() {
        assert!(Chunk(1).is_before(&Chunk(2)) && !Chunk(2).is_before(&Chunk(1)) && !Chunk(u32::MAX).is_before(&Chunk(0)));
        assert_eq!(Chunk(3).start(), 3 * CHUNK);
    }
}
