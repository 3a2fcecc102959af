//! Who inside a connection's task wants to be polled: its frames, its streams, or both.
//!
//! A connection and its streams are one task, so that all answers of one turn leave in one write. Each half rings for itself.
//! What is rung for while the task has its turn is done in that turn: the task is not woken for it once more.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering::AcqRel},
    },
    task::{Wake, Waker},
};

/// The two halves of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Frames in and out.
    Frames = 1,
    /// Requests under way.
    Streams = 2,
}

/// The bells of one connection.
#[derive(Debug)]
pub struct Bells {
    state: Arc<State>,
    /// Rings for the frames.
    pub frames: Waker,
    /// Rings for the streams.
    pub streams: Waker,
}

#[derive(Debug, Default)]
struct State {
    rung: AtomicU8,
    task: OnceLock<Waker>,
}

struct Bell {
    state: Arc<State>,
    half: Half,
}

impl Bells {
    /// Bells that are both rung, and wake `task`, which has its turn.
    pub fn new(task: &Waker) -> Self {
        let state =
            Arc::new(State { rung: AtomicU8::new(TURN | Half::Frames as u8 | Half::Streams as u8), task: OnceLock::from(task.clone()) });
        let bell = |half| Waker::from(Arc::new(Bell { state: Arc::clone(&state), half }));
        Bells { frames: bell(Half::Frames), streams: bell(Half::Streams), state }
    }

    /// The task has its turn.
    pub fn enter(&self) {
        self.state.rung.fetch_or(TURN, AcqRel);
    }

    /// Whether that half wants to be polled, which it is then.
    pub fn take(&self, half: Half) -> bool {
        self.state.rung.fetch_and(!(half as u8), AcqRel) & half as u8 != 0
    }

    /// The turn ends. Whether somebody has rung meanwhile.
    pub fn leave(&self) -> bool {
        self.state.rung.fetch_and(!TURN, AcqRel) != TURN
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let before = self.state.rung.fetch_or(self.half as u8, AcqRel);
        if before == 0
            && let Some(task) = self.state.task.get()
        {
            task.wake_by_ref();
        }
    }
}

const TURN: u8 = 4;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn a_bell_wakes_the_task_once_and_never_in_its_own_turn() {
        let count = Arc::new(Count::default());
        let bells = Bells::new(&Waker::from(Arc::clone(&count)));
        assert!(bells.take(Half::Frames) && bells.take(Half::Streams) && !bells.take(Half::Frames));
        bells.streams.wake_by_ref();
        assert_eq!(count.0.load(SeqCst), 0);
        assert!(bells.leave(), "rung in the turn");
        bells.enter();
        assert!(bells.take(Half::Streams) && !bells.leave());
        bells.frames.wake_by_ref();
        bells.streams.wake_by_ref();
        assert_eq!(count.0.load(SeqCst), 1);
        bells.enter();
        assert!(bells.take(Half::Frames) && bells.take(Half::Streams) && !bells.leave());
        bells.frames.wake_by_ref();
        assert_eq!(count.0.load(SeqCst), 2);
    }
}
