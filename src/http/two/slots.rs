//! The streams under way in one connection, polled in its task.
//!
//! Threat: exhaustion; there are as many places as a client may fill, and no more. A place is used again by the next stream: the
//! state of a request is several KiB, and to allocate it for each was a tenth of the time outside the kernel.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::AcqRel},
    },
    task::{Context, Wake, Waker},
};

/// Streams, each in a place of its own.
#[derive(Debug)]
pub struct Slots<F> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    rung: Arc<Rung>,
    /// Since when every place has been free, in milliseconds.
    idle: Option<u64>,
}

#[derive(Debug)]
struct Slot<F> {
    stream: Pin<Box<Option<F>>>,
    waker: Waker,
}

/// Which places want to be polled.
#[derive(Debug)]
struct Rung {
    words: [AtomicU64; WORDS],
    bell: Waker,
}

struct Place {
    rung: Arc<Rung>,
    index: usize,
}

impl<F: Future<Output = ()>> Slots<F> {
    /// No streams; `bell` is rung when one wants to be polled.
    pub fn new(bell: Waker) -> Self {
        Slots { slots: Vec::new(), free: Vec::new(), rung: Arc::new(Rung { words: Default::default(), bell }), idle: None }
    }

    /// Whether there is no place for one more.
    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= PLACES
    }

    /// Puts a stream into a free place. It is polled in the next pass.
    pub fn push(&mut self, stream: F) {
        self.idle = None;
        let index = self.free.pop().unwrap_or_else(|| {
            let index = self.slots.len();
            let waker = Waker::from(Arc::new(Place { rung: Arc::clone(&self.rung), index }));
            self.slots.push(Slot { stream: Box::pin(None), waker });
            index
        });
        if let Some(slot) = self.slots.get_mut(index) {
            slot.stream.as_mut().set(Some(stream));
            slot.waker.wake_by_ref();
        }
    }

    /// Polls every stream that has been woken, once.
    pub fn poll(&mut self) {
        for word in 0..WORDS {
            let mut bits = self.rung.words.get(word).map_or(0, |word| word.swap(0, AcqRel));
            while bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits.wrapping_sub(1);
                self.poll_one(word.saturating_mul(64).saturating_add(bit));
            }
        }
    }

    /// Gives the places back a moment after the last stream has ended; says when that is.
    pub fn rest(&mut self, now: u64) -> u64 {
        if self.free.len() != self.slots.len() || self.slots.is_empty() {
            self.idle = None;
            return u64::MAX;
        }
        let end = self.idle.get_or_insert(now).saturating_add(REST);
        if now < end {
            return end;
        }
        (self.slots, self.free, self.idle) = (Vec::new(), Vec::new(), None);
        u64::MAX
    }

    fn poll_one(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Some(stream) = slot.stream.as_mut().as_pin_mut() else { return };
        if stream.poll(&mut Context::from_waker(&slot.waker)).is_ready() {
            slot.stream.as_mut().set(None);
            self.free.push(index);
        }
    }
}

impl Wake for Place {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(word) = self.rung.words.get(self.index >> 6) {
            word.fetch_or(1 << (self.index & 63), AcqRel);
        }
        self.rung.bell.wake_by_ref();
    }
}

const WORDS: usize = 4;
/// More than the streams that a client may have open: one that it resets keeps its place until it is polled.
const PLACES: usize = WORDS * 64;
/// Milliseconds: requests that follow one another find their places, an idle connection holds none.
const REST: u64 = 1000;

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc, task::Poll};

    use super::*;

    /// Ends after so many polls.
    fn counted(polls: usize, left: &Rc<Cell<usize>>) -> impl Future<Output = ()> + use<> {
        let (mut polls, left) = (polls, Rc::clone(left));
        left.set(left.get() + 1);
        std::future::poll_fn(move |cx| {
            polls -= 1;
            if polls > 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            left.set(left.get() - 1);
            Poll::Ready(())
        })
    }

    #[test]
    fn every_stream_is_polled_once_a_pass_and_its_place_is_used_again() {
        let left = Rc::new(Cell::new(0));
        let mut slots = Slots::new(Waker::noop().clone());
        for n in 0..PLACES {
            assert!(!slots.is_full());
            slots.push(counted(n % 3 + 1, &left));
        }
        assert!(slots.is_full());
        slots.poll();
        assert_eq!(left.get(), PLACES - PLACES.div_ceil(3));
        assert!(!slots.is_full());
        slots.push(counted(1, &left));
        assert_eq!(slots.slots.len(), PLACES);
        assert_eq!((slots.rest(0), slots.rest(5000)), (u64::MAX, u64::MAX));
        assert_eq!(slots.slots.len(), PLACES, "streams are under way");
        slots.poll();
        slots.poll();
        slots.poll();
        assert_eq!(left.get(), 0);
        assert_eq!((slots.rest(7000), slots.rest(7999)), (8000, 8000));
        assert_eq!((slots.rest(8000), slots.slots.len()), (u64::MAX, 0));
        slots.push(counted(1, &left));
        slots.poll();
        assert_eq!(left.get(), 0);
    }

    #[test]
    fn a_waker_that_outlives_its_stream_does_no_harm() {
        let kept = Rc::new(Cell::new(None));
        let keep = Rc::clone(&kept);
        let mut slots = Slots::new(Waker::noop().clone());
        slots.push(std::future::poll_fn(move |cx| {
            keep.set(Some(cx.waker().clone()));
            Poll::Ready(())
        }));
        slots.poll();
        slots.rest(0);
        slots.rest(REST);
        kept.take().unwrap().wake();
        slots.poll();
        assert_eq!(slots.slots.len(), 0);
    }
}
