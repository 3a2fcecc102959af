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
        if let Some(Reverse(n)) = self.warm.pop().or_else(|| self.cold.pop()) {
            return Some(Chunk(n));
        }
        let next = self.all.checked_add(1)?;
        Some(Chunk(std::mem::replace(&mut self.all, next)))
    }

    /// Takes back chunks. What it gives is to be made holes of and then freed with [`Self::free_cold`] or [`Self::free_warm`].
    pub fn give_back(&mut self, chunks: impl IntoIterator<Item = Chunk>) -> Vec<Range<u32>> {
        let mut above = Vec::new();
        for Chunk(n) in chunks {
            match self.warm.len() < WARM {
                true => self.warm.push(Reverse(n)),
                false => above.push(n),
            }
        }
        runs(above)
    }

    /// The warm ones, to be made holes of.
    pub fn cool(&mut self) -> Vec<Range<u32>> {
        runs(std::mem::take(&mut self.warm).into_iter().map(|Reverse(n)| n).collect())
    }

    /// These are holes now.
    pub fn free_cold(&mut self, run: Range<u32>) {
        self.cold.extend(run.map(Reverse));
    }

    /// These could not be made holes of.
    pub fn free_warm(&mut self, run: Range<u32>) {
        self.warm.extend(run.map(Reverse));
    }

    /// Whether nobody has one.
    pub fn is_unused(&self) -> bool {
        self.warm.len().saturating_add(self.cold.len()) >= self.all as usize
    }

    /// Whether a file of them may have blocks that nobody needs, or a length.
    pub fn is_untidy(&self) -> bool {
        !self.warm.is_empty() || (self.all > 0 && self.is_unused())
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
/// Free chunks that keep their blocks, at most: 16 MiB.
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
        assert!(chunks.give_back([Chunk(4), Chunk(2)]).is_empty());
        assert_eq!(numbers(&mut chunks, 4), [2, 4, 0, 5]);
    }

    #[test]
    fn so_many_keep_their_blocks_and_the_others_go_in_runs() {
        let mut chunks = Chunks::default();
        let mut all: Vec<Chunk> = std::iter::repeat_with(|| chunks.take().unwrap()).take(WARM + 6).collect();
        let gap = all.remove(WARM + 3);
        assert_eq!(chunks.give_back(all), [WARM as u32..WARM as u32 + 3, WARM as u32 + 4..WARM as u32 + 6]);
        assert!(!chunks.is_unused() && chunks.is_untidy());
        chunks.free_cold(WARM as u32..WARM as u32 + 3);
        chunks.free_warm(WARM as u32 + 4..WARM as u32 + 6);
        assert!(!chunks.is_unused());
        assert_eq!(chunks.give_back([gap]).len(), 1, "it is warm enough");
        chunks.free_cold(WARM as u32 + 3..WARM as u32 + 4);
        assert!(chunks.is_unused());
        assert_eq!(chunks.cool(), [0..WARM as u32, WARM as u32 + 4..WARM as u32 + 6]);
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
