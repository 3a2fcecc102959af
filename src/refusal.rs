//! Every reason for which Palisade answers instead of Puma: one closed list.
//!
//! Each has a status, a label (log field `end`, metric label, heading in `docs/operating.md`; never renamed), a sentence
//! for the client and a fate for the connection. Sentences never repeat a value of the request.

use http::StatusCode;

use crate::guard::rule::Rule;

/// A reason to answer in Puma's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    // By the client.
    /// The head was not complete within `timeouts.header`.
    SlowHeader,
    /// The body stalled or fell below `rates.body_min`.
    SlowBody,
    /// The client closed or reset before its answer was complete.
    ClientAbort,
    /// The bytes do not have exactly one reading.
    BadFraming(Rule),
    /// The head is above a limit.
    HeaderTooLarge(Rule),
    /// The body is above the limit of its route.
    BodyTooLarge,
    /// The request target is malformed, too long or ambiguous.
    BadTarget(Rule),
    /// Host or authority is missing, malformed or contradictory.
    BadHost(Rule),
    /// The host is well-formed, but not one that is served here.
    UnknownHost,
    /// A method, path, upgrade or field that policy refuses.
    Denied(Rule),
    /// A path that must never reach an application (`[sensitive]`).
    Sensitive,
    /// The address, method or origin is not on the list of its route.
    Forbidden,
    /// A rate limit is exceeded.
    RateLimited {
        /// Whole seconds until a request can pass again.
        after: u32,
    },
    /// The client is banned for earlier refusals.
    Banned {
        /// Whole seconds until the ban ends.
        after: u32,
    },

    // By us.
    /// The queue for Puma's threads is full.
    QueueFull {
        /// Whole seconds until it is worth while to come back.
        after: u32,
    },
    /// No thread of Puma came free within `queue.deadline`.
    QueueTimeout {
        /// Whole seconds until it is worth while to come back.
        after: u32,
    },
    /// As many WebSockets are open as may be, of this client or in all.
    WebSocketFull,
    /// The budget for buffered bodies, in memory or on disk, is spent.
    BufferFull,
    /// Palisade itself is short of descriptors or memory.
    Overloaded,
    /// An operator has switched the application off for a while.
    Maintenance,
    /// Palisade is shutting down.
    Draining,
    /// A fault of Palisade's own.
    Internal,

    // By Puma.
    /// Puma could not be reached within `upstream.hold_on_refused`.
    UpstreamRefused,
    /// Puma did not answer within `upstream.response_timeout`.
    UpstreamTimeout,
    /// Puma closed or reset before its answer was complete.
    UpstreamReset,
    /// Puma's answer does not have exactly one reading.
    UpstreamBad(Rule),
}

/// What happens to the connection after the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It may carry the next request.
    Keep,
    /// It is closed; no byte behind the error is ever parsed.
    Close,
}

impl Refusal {
    /// One value of each variant, for tests and for metrics that must exist before they are counted.
    pub const EACH: [Refusal; 26] = [
        Refusal::SlowHeader,
        Refusal::SlowBody,
        Refusal::ClientAbort,
        Refusal::BadFraming(Rule::G1),
        Refusal::HeaderTooLarge(Rule::G9Size),
        Refusal::BodyTooLarge,
        Refusal::BadTarget(Rule::G8),
        Refusal::BadHost(Rule::G17),
        Refusal::UnknownHost,
        Refusal::Denied(Rule::T1),
        Refusal::Sensitive,
        Refusal::Forbidden,
        Refusal::RateLimited { after: 1 },
        Refusal::Banned { after: 1 },
        Refusal::QueueFull { after: 1 },
        Refusal::QueueTimeout { after: 1 },
        Refusal::WebSocketFull,
        Refusal::BufferFull,
        Refusal::Overloaded,
        Refusal::Maintenance,
        Refusal::Draining,
        Refusal::Internal,
        Refusal::UpstreamRefused,
        Refusal::UpstreamTimeout,
        Refusal::UpstreamReset,
        Refusal::UpstreamBad(Rule::P1),
    ];

    /// The status of the answer. `ClientAbort` is never sent; 499 is what logs show.
    pub fn status(self) -> StatusCode {
        match self {
            Refusal::SlowHeader | Refusal::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Refusal::ClientAbort => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            Refusal::BadFraming(rule)
            | Refusal::HeaderTooLarge(rule)
            | Refusal::BadTarget(rule)
            | Refusal::BadHost(rule)
            | Refusal::Denied(rule) => rule.status(),
            Refusal::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::UnknownHost => StatusCode::MISDIRECTED_REQUEST,
            Refusal::Sensitive => StatusCode::NOT_FOUND,
            Refusal::Forbidden => StatusCode::FORBIDDEN,
            Refusal::RateLimited { .. } | Refusal::Banned { .. } => StatusCode::TOO_MANY_REQUESTS,
            Refusal::QueueFull { .. }
            | Refusal::QueueTimeout { .. }
            | Refusal::WebSocketFull
            | Refusal::BufferFull
            | Refusal::Overloaded
            | Refusal::Maintenance
            | Refusal::Draining
            | Refusal::UpstreamRefused => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Refusal::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Refusal::UpstreamReset => StatusCode::BAD_GATEWAY,
            Refusal::UpstreamBad(rule) => rule.status(),
        }
    }

    /// The word in logs, metrics and documentation. Never renamed.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::SlowHeader => "slow_header",
            Refusal::SlowBody => "slow_body",
            Refusal::ClientAbort => "client_abort",
            Refusal::BadFraming(_) => "bad_framing",
            Refusal::HeaderTooLarge(_) => "header_too_large",
            Refusal::BodyTooLarge => "body_too_large",
            Refusal::BadTarget(_) => "bad_target",
            Refusal::BadHost(_) => "bad_host",
            Refusal::UnknownHost => "unknown_host",
            Refusal::Denied(_) => "denied",
            Refusal::Sensitive => "sensitive_path",
            Refusal::Forbidden => "forbidden",
            Refusal::RateLimited { .. } => "rate_limited",
            Refusal::Banned { .. } => "banned",
            Refusal::QueueFull { .. } => "queue_full",
            Refusal::QueueTimeout { .. } => "queue_timeout",
            Refusal::WebSocketFull => "websocket_full",
            Refusal::BufferFull => "buffer_full",
            Refusal::Overloaded => "overloaded",
            Refusal::Maintenance => "maintenance",
            Refusal::Draining => "drain",
            Refusal::Internal => "internal",
            Refusal::UpstreamRefused => "upstream_refused",
            Refusal::UpstreamTimeout => "upstream_timeout",
            Refusal::UpstreamReset => "upstream_reset",
            Refusal::UpstreamBad(_) => "upstream_bad",
        }
    }

    /// The rule that fired, where there is one.
    pub fn rule(self) -> Option<Rule> {
        match self {
            Refusal::BadFraming(rule)
            | Refusal::HeaderTooLarge(rule)
            | Refusal::BadTarget(rule)
            | Refusal::BadHost(rule)
            | Refusal::Denied(rule)
            | Refusal::UpstreamBad(rule) => Some(rule),
            Refusal::SlowHeader
            | Refusal::SlowBody
            | Refusal::ClientAbort
            | Refusal::BodyTooLarge
            | Refusal::UnknownHost
            | Refusal::Sensitive
            | Refusal::Forbidden
            | Refusal::RateLimited { .. }
            | Refusal::Banned { .. }
            | Refusal::QueueFull { .. }
            | Refusal::QueueTimeout { .. }
            | Refusal::WebSocketFull
            | Refusal::BufferFull
            | Refusal::Overloaded
            | Refusal::Maintenance
            | Refusal::Draining
            | Refusal::Internal
            | Refusal::UpstreamRefused
            | Refusal::UpstreamTimeout
            | Refusal::UpstreamReset => None,
        }
    }

    /// Whether the connection may carry another request.
    pub fn fate(self) -> Fate {
        match self {
            Refusal::Sensitive
            | Refusal::UnknownHost
            | Refusal::Forbidden
            | Refusal::RateLimited { .. }
            | Refusal::QueueFull { .. }
            | Refusal::QueueTimeout { .. }
            | Refusal::WebSocketFull
            | Refusal::BufferFull
            | Refusal::Maintenance
            | Refusal::UpstreamRefused
            | Refusal::UpstreamTimeout
            | Refusal::UpstreamReset
            | Refusal::UpstreamBad(_) => Fate::Keep,
            Refusal::SlowHeader
            | Refusal::SlowBody
            | Refusal::ClientAbort
            | Refusal::BadFraming(_)
            | Refusal::HeaderTooLarge(_)
            | Refusal::BodyTooLarge
            | Refusal::BadTarget(_)
            | Refusal::BadHost(_)
            | Refusal::Denied(_)
            | Refusal::Banned { .. }
            | Refusal::Overloaded
            | Refusal::Draining
            | Refusal::Internal => Fate::Close,
        }
    }

    /// Whole seconds for Retry-After, where coming back later helps.
    pub fn retry_after(self) -> Option<u32> {
        match self {
            Refusal::RateLimited { after } | Refusal::Banned { after } | Refusal::QueueFull { after } | Refusal::QueueTimeout { after } => {
                Some(after.max(1))
            }
            Refusal::BufferFull | Refusal::Overloaded | Refusal::Draining | Refusal::UpstreamRefused => Some(1),
            Refusal::WebSocketFull => Some(10),
            Refusal::Maintenance => Some(60),
            Refusal::SlowHeader
            | Refusal::SlowBody
            | Refusal::ClientAbort
            | Refusal::BadFraming(_)
            | Refusal::HeaderTooLarge(_)
            | Refusal::BodyTooLarge
            | Refusal::BadTarget(_)
            | Refusal::BadHost(_)
            | Refusal::UnknownHost
            | Refusal::Denied(_)
            | Refusal::Sensitive
            | Refusal::Forbidden
            | Refusal::Internal
            | Refusal::UpstreamTimeout
            | Refusal::UpstreamReset
            | Refusal::UpstreamBad(_) => None,
        }
    }

    /// What happened and what was expected, for the client.
    pub fn sentence(self) -> &'static str {
        match self {
            Refusal::SlowHeader => "The request head took too long.",
            Refusal::SlowBody => "The request body came too slowly.",
            Refusal::ClientAbort => "The client went away before its answer was complete.",
            Refusal::BadFraming(rule)
            | Refusal::HeaderTooLarge(rule)
            | Refusal::BadTarget(rule)
            | Refusal::BadHost(rule)
            | Refusal::Denied(rule)
            | Refusal::UpstreamBad(rule) => rule.info().sentence,
            Refusal::BodyTooLarge => "The request body is larger than this server takes.",
            Refusal::UnknownHost => "This host is not served here.",
            Refusal::Sensitive => "There is nothing at this address.",
            Refusal::Forbidden => "This address is not open to you.",
            Refusal::RateLimited { .. } => "Too many requests; come back after the time in Retry-After.",
            Refusal::Banned { .. } => "Too many bad requests; this address is shut out for the time in Retry-After.",
            Refusal::QueueFull { .. } => "Too many requests are waiting; come back after the time in Retry-After.",
            Refusal::QueueTimeout { .. } => "The application had no thread free in time; come back after the time in Retry-After.",
            Refusal::WebSocketFull => "Too many WebSockets are open.",
            Refusal::BufferFull => "There is no room to take in this request now.",
            Refusal::Overloaded => "This server is short of resources now.",
            Refusal::Maintenance => "The application is being maintained.",
            Refusal::Draining => "This server is shutting down.",
            Refusal::Internal => "This server made a mistake.",
            Refusal::UpstreamRefused => "The application cannot be reached.",
            Refusal::UpstreamTimeout => "The application did not answer in time.",
            Refusal::UpstreamReset => "The application broke off its answer.",
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.sentence())
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_refusals_say_the_same() {
        let mut sentences: Vec<_> = Refusal::EACH.iter().map(|r| r.sentence()).collect();
        sentences.sort_unstable();
        sentences.dedup();
        assert_eq!(sentences.len(), Refusal::EACH.len());
    }

    #[test]
    fn no_two_refusals_share_a_label() {
        let mut labels: Vec<_> = Refusal::EACH.iter().map(|r| r.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Refusal::EACH.len());
    }

    #[test]
    fn a_framing_error_always_closes() {
        for rule in Rule::ALL {
            assert_eq!(Refusal::BadFraming(rule).fate(), Fate::Close);
        }
    }
}
