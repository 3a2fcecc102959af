//! What happened to connections, as numbers that only grow. Labels are from closed enums, never from a client.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts of one process, over all listeners.
#[derive(Debug, Default)]
pub struct Counters {
    accepted: AtomicU64,
    rejected: [AtomicU64; Rejected::ALL.len()],
    handshakes: AtomicU64,
    failed: [AtomicU64; Failure::ALL.len()],
    accept_errors: AtomicU64,
}

/// Why a connection was closed before any byte of HTTP was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// `limits.connections` is reached and no connection has so little progress that it could go instead.
    Connections,
    /// `limits.connections_per_ip`, or `v6_64` of `limits.connections_per_prefix`.
    PerAddress,
    /// `v4_24` or `v6_48` of `limits.connections_per_prefix`.
    PerPrefix,
    /// `limits.accept_rate`.
    AcceptRate,
    /// Palisade itself is short (`[overload]`).
    Overload,
    /// `limits.tls_rate`.
    TlsRate,
    /// `limits.handshakes_per_ip`.
    Handshakes,
    /// The listener requires a PROXY line, and the peer is not in `trusted_proxies`.
    ProxyUnlisted,
    /// A listed peer sent no PROXY line, or one that breaks its grammar, or not in time.
    ProxyLine,
    /// A `[[ban]]` with `refuse = "connection"` holds.
    Banned,
}

/// Why a TLS handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// `timeouts.tls_handshake` passed, or the connection went to make room for others.
    Timeout,
    /// The peer went away.
    Closed,
    /// HTTP without TLS; answered with a short 400.
    PlainHttp,
    /// The first byte is of neither TLS nor HTTP.
    NotTls,
    /// No certificate has the name that the client asked for, and `tls.strict_sni` is on.
    UnknownName,
    /// No version, cipher suite, key exchange or protocol in common.
    NothingInCommon,
    /// `tls.client_auth`: none, or one that does not verify, or a revoked one.
    ClientCertificate,
    /// The peer refused with an alert, such as for our certificate.
    Alert,
    /// Anything else that breaks the protocol.
    Malformed,
}

impl Counters {
    /// Connections taken in.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Connections closed at once, for one reason.
    pub fn rejected(&self, reason: Rejected) -> u64 {
        self.rejected.get(reason as usize).map_or(0, |n| n.load(Relaxed))
    }

    /// TLS handshakes that succeeded.
    pub fn handshakes(&self) -> u64 {
        self.handshakes.load(Relaxed)
    }

    /// TLS handshakes that failed, for one cause.
    pub fn failed(&self, cause: Failure) -> u64 {
        self.failed.get(cause as usize).map_or(0, |n| n.load(Relaxed))
    }

    /// Errors of accept itself, most of them because descriptors or memory ran out.
    pub fn accept_errors(&self) -> u64 {
        self.accept_errors.load(Relaxed)
    }

    pub(super) fn accept(&self) {
        self.accepted.fetch_add(1, Relaxed);
    }

    pub(super) fn reject(&self, reason: Rejected) {
        if let Some(n) = self.rejected.get(reason as usize) {
            n.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn handshake(&self) {
        self.handshakes.fetch_add(1, Relaxed);
    }

    pub(super) fn fail(&self, cause: Failure) {
        if let Some(n) = self.failed.get(cause as usize) {
            n.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn accept_error(&self) {
        self.accept_errors.fetch_add(1, Relaxed);
    }
}

impl Rejected {
    /// Each reason, in the order of its declaration.
    pub const ALL: [Rejected; 10] = [
        Rejected::Connections,
        Rejected::PerAddress,
        Rejected::PerPrefix,
        Rejected::AcceptRate,
        Rejected::Overload,
        Rejected::TlsRate,
        Rejected::Handshakes,
        Rejected::ProxyUnlisted,
        Rejected::ProxyLine,
        Rejected::Banned,
    ];

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Rejected::Connections => "connections",
            Rejected::PerAddress => "per_address",
            Rejected::PerPrefix => "per_prefix",
            Rejected::AcceptRate => "accept_rate",
            Rejected::Overload => "overload",
            Rejected::TlsRate => "tls_rate",
            Rejected::Handshakes => "handshakes",
            Rejected::ProxyUnlisted => "proxy_unlisted",
            Rejected::ProxyLine => "proxy_line",
            Rejected::Banned => "banned",
        }
    }
}

impl Failure {
    /// Each cause, in the order of its declaration.
    pub const ALL: [Failure; 9] = [
        Failure::Timeout,
        Failure::Closed,
        Failure::PlainHttp,
        Failure::NotTls,
        Failure::UnknownName,
        Failure::NothingInCommon,
        Failure::ClientCertificate,
        Failure::Alert,
        Failure::Malformed,
    ];

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Failure::Timeout => "timeout",
            Failure::Closed => "closed",
            Failure::PlainHttp => "plain_http",
            Failure::NotTls => "not_tls",
            Failure::UnknownName => "unknown_name",
            Failure::NothingInCommon => "nothing_in_common",
            Failure::ClientCertificate => "client_certificate",
            Failure::Alert => "alert",
            Failure::Malformed => "malformed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_counts_for_itself() {
        let counters = Counters::default();
        for (n, reason) in Rejected::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, n, "the order of ALL is the declaration's");
            counters.reject(reason);
            assert_eq!(counters.rejected(reason), 1);
        }
        for (n, cause) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, n);
            counters.fail(cause);
            assert_eq!(counters.failed(cause), 1);
        }
    }

    #[test]
    fn no_two_causes_share_a_label() {
        let mut labels: Vec<_> = Rejected::ALL.iter().map(|r| r.label()).chain(Failure::ALL.iter().map(|f| f.label())).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Rejected::ALL.len() + Failure::ALL.len());
    }
}
