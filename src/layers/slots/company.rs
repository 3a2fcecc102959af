//! Whether a client has company: a share makes sense only where there is somebody to share with. A load balancer whose
//! clients are not known, or a lone tester, may have every thread.

use std::time::{Duration, Instant};

use crate::accept::client::ClientKey;

/// The last client, and when it was another one than before.
#[derive(Debug, Default)]
pub(super) struct Company {
    last: Option<ClientKey>,
    changed: Option<Instant>,
}

impl Company {
    /// A client asks.
    pub(super) fn note(&mut self, client: ClientKey, now: Instant) {
        if self.last.replace(client).is_some_and(|last| last != client) {
            self.changed = Some(now);
        }
    }

    /// At least two clients have asked lately.
    pub(super) fn is_there(&self, now: Instant) -> bool {
        self.changed.is_some_and(|at| now.saturating_duration_since(at) < LATELY)
    }
}

const LATELY: Duration = Duration::from_secs(10);
