//! Slow clients' answers go from Puma to the disk a few at a time.
//!
//! Threats: slowloris by slow reading, and exhaustion. The disk is the narrow place: hundreds of answers that are read at once are
//! not there sooner, hold a piece of memory each, and let everybody else wait for hundreds of reads in each turn of the loop. Who
//! wants to read takes a [`Passage`] first, in the order of asking, and gives it back when Puma has nothing more, or after
//! [`LENGTH`] bytes, so that an endless answer does not keep others from being taken off their threads. Part of the
//! [`absorber`](super::absorber).

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// All passages there are.
#[derive(Clone, Debug)]
pub struct Passages(Arc<Semaphore>);

/// One answer's passage, if it has or wants one.
#[derive(Default)]
pub enum Passage {
    /// It does not want one.
    #[default]
    None,
    /// It waits for one.
    Awaited(Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>),
    /// It has one, for so many bytes more.
    Open {
        /// Given back on drop.
        permit: OwnedSemaphorePermit,
        /// Bytes.
        left: usize,
    },
}

impl Passages {
    /// As many as keep the disk busy.
    pub fn new() -> Self {
        Passages(Arc::new(Semaphore::new(PASSAGES)))
    }
}

impl Default for Passages {
    fn default() -> Self {
        Self::new()
    }
}

impl Passage {
    /// Whether a piece may be read; else, unless it [is over](Self::is_over), the task is woken when it may.
    pub fn poll_open(&mut self, cx: &mut Context<'_>, passages: &Passages) -> bool {
        loop {
            *self = match self {
                Passage::Open { left, .. } => return *left > 0,
                Passage::Awaited(permit) => match permit.as_mut().poll(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(Ok(permit)) => Passage::Open { permit, left: LENGTH },
                    // Nobody closes it.
                    Poll::Ready(Err(_)) => return true,
                },
                Passage::None => match Arc::clone(&passages.0).try_acquire_owned() {
                    Ok(permit) => Passage::Open { permit, left: LENGTH },
                    Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => {
                        Passage::Awaited(Box::pin(Arc::clone(&passages.0).acquire_owned()))
                    }
                },
            }
        }
    }

    /// So many bytes were read.
    pub fn passed(&mut self, bytes: usize) {
        if let Passage::Open { left, .. } = self {
            *left = left.saturating_sub(bytes);
        }
    }

    /// It was long enough; others wait.
    pub fn is_over(&self) -> bool {
        matches!(self, Passage::Open { left: 0, .. })
    }
}

impl fmt::Debug for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Passage::None => "None",
            Passage::Awaited(_) => "Awaited",
            Passage::Open { .. } => "Open",
        })
    }
}

/// Answers on their way at the same time: enough for two threads that write 64 KiB each time.
const PASSAGES: usize = 16;
/// Bytes of an answer in one go.
const LENGTH: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use tokio_test::task;

    use super::*;

    fn is_open(passage: &mut Passage, passages: &Passages) -> bool {
        task::spawn(()).enter(|cx, _| passage.poll_open(cx, passages))
    }

    #[test]
    fn they_are_given_in_the_order_of_asking() {
        let passages = Passages::new();
        let mut open: Vec<Passage> = std::iter::repeat_with(Passage::default).take(PASSAGES).collect();
        assert!(open.iter_mut().all(|passage| is_open(passage, &passages)));
        let (mut first, mut second) = (Passage::None, Passage::None);
        assert!(!is_open(&mut first, &passages) && !is_open(&mut second, &passages));
        open.pop();
        assert!(!is_open(&mut second, &passages), "the first has it, although nobody looked");
        assert!(is_open(&mut first, &passages));
        first = Passage::None;
        assert!(is_open(&mut second, &passages) && !is_open(&mut Passage::None, &Passages(Arc::new(Semaphore::new(0)))));
        drop(first);
    }

    #[test]
    fn one_is_over_after_its_length() {
        let passages = Passages::new();
        let mut passage = Passage::None;
        passage.passed(LENGTH);
        assert!(is_open(&mut passage, &passages) && !passage.is_over());
        passage.passed(LENGTH - 1);
        assert!(!passage.is_over());
        passage.passed(64 * 1024);
        assert!(passage.is_over() && !is_open(&mut passage, &passages));
    }
}
