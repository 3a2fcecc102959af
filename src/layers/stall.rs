//! How long a client has been at the piece of its answer that it was given.
//!
//! Threat: slowloris by slow reading. Part of the [`absorber`](super::absorber), which takes the piece back when the time is over.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

/// One client's.
#[derive(Debug, Default)]
pub struct Stall {
    timer: Option<Pin<Box<Sleep>>>,
    is_set: bool,
    has_passed: bool,
}

impl Stall {
    /// Whether the client has been at its piece for too long; wakes the task when it will have been.
    pub fn poll_passed(&mut self, cx: &mut Context<'_>) -> bool {
        if self.has_passed {
            return true;
        }
        if !self.is_set {
            self.is_set = true;
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(Instant::now() + PATIENCE),
                None => self.timer = Some(Box::pin(sleep(PATIENCE))),
            }
        }
        self.has_passed = self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx) == Poll::Ready(()));
        self.has_passed
    }

    /// The client's time is over: its piece was taken back.
    pub fn pass(&mut self) {
        self.has_passed = true;
    }

    /// The client has taken its piece. Whether that took too long.
    pub fn end(&mut self) -> bool {
        self.is_set = false;
        std::mem::take(&mut self.has_passed)
    }
}

/// How long a client may be at a piece before the piece is taken back.
pub const PATIENCE: Duration = Duration::from_secs(1);
