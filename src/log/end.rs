//! How a request ended: the closed list behind the log field `end` and the metric label `reason`.

use std::pin::Pin;

use http::StatusCode;

use crate::{guard::rule::Rule, refusal::Refusal};

/// How a request, or a connection before its first request, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The answer went out to its last byte.
    Ok,
    /// Palisade answered instead of Puma, or the answer broke off.
    Refused(Refusal),
    /// The client read its answer too slowly.
    SlowRead,
    /// The TLS handshake failed.
    TlsError,
}

/// A response body whose ending the connection can correct: it alone knows whether the last bytes reached the client.
pub trait Settle {
    /// This is how it ended, whatever it looked like from inside.
    fn settle(self: Pin<&mut Self>, end: End);
}

impl End {
    /// The word in logs and metrics. Never renamed.
    pub fn label(self) -> &'static str {
        match self {
            End::Ok => "ok",
            End::Refused(refusal) => refusal.label(),
            End::SlowRead => "slow_read",
            End::TlsError => "tls_error",
        }
    }

    /// The rule that fired, where there is one.
    pub fn rule(self) -> Option<Rule> {
        match self {
            End::Refused(refusal) => refusal.rule(),
            End::Ok | End::SlowRead | End::TlsError => None,
        }
    }

    /// The status to log where no answer had begun.
    pub fn status(self) -> Option<StatusCode> {
        match self {
            End::Refused(refusal) => Some(refusal.status()),
            End::Ok | End::SlowRead | End::TlsError => None,
        }
    }
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        End::Refused(refusal)
    }
}
