//! Which request fields are for this hop only, may stand once, or imitate another field: one look at a name.
//!
//! RFC 9110 §5.3 and §7.6.1; CVE-2020-11077 and CVE-2024-45614 for names that Puma folds into one.

/// What a field name asks of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Passed on, perhaps several times.
    Plain,
    /// Passed on, once.
    Singleton,
    /// `Cookie`, whose lines are joined with `; `.
    Cookie,
    /// `Expect`, answered here.
    Expect,
    /// For this hop only.
    HopByHop,
    /// For this hop only, unless the request is a WebSocket handshake.
    Upgrade,
    /// Has an underscore.
    Underscore,
    /// Has a byte that no field in use has.
    Foreign,
}

/// The kind of a field; names are in lower case.
pub fn kind(name: &str) -> Kind {
    match name {
        "cookie" => Kind::Cookie,
        "expect" => Kind::Expect,
        "connection" | "keep-alive" | "proxy-connection" | "te" | "trailer" | "proxy-authorization" | "http2-settings" => Kind::HopByHop,
        "upgrade" | "sec-websocket-key" | "sec-websocket-version" | "sec-websocket-protocol" | "sec-websocket-extensions" => Kind::Upgrade,
        "host"
        | "authorization"
        | "content-type"
        | "content-encoding"
        | "content-location"
        | "content-range"
        | "content-disposition"
        | "date"
        | "from"
        | "if-modified-since"
        | "if-range"
        | "if-unmodified-since"
        | "max-forwards"
        | "origin"
        | "range"
        | "referer"
        | "user-agent"
        | "x-csrf-token"
        | "idempotency-key"
        | "last-event-id" => Kind::Singleton,
        _ => spelling(name),
    }
}

fn spelling(name: &str) -> Kind {
    let mut kind = Kind::Plain;
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' => {}
            b'_' => kind = Kind::Underscore,
            _ => return Kind::Foreign,
        }
    }
    kind
}

/// Puma makes one CGI name of both spellings, so an underscore is read as a dash.
fn dashed_eq(name: &[u8], dashed: &str) -> bool {
    name.len() == dashed.len()
        && name.iter().zip(dashed.bytes()).all(|(a, b)| (if *a == b'_' { b'-' } else { a.to_ascii_lowercase() }) == b)
}

/// A name that frames the message or switches the protocol (rule G18).
pub fn imitates_framing(name: &str) -> bool {
    ["content-length", "transfer-encoding", "host", "connection", "upgrade"].iter().any(|field| dashed_eq(name.as_bytes(), field))
}

/// A field that `Connection` must not name (rule T7): to strip it would change who asks for what.
pub fn is_protected(name: &[u8]) -> bool {
    const PROTECTED: [&str; 8] =
        ["host", "content-length", "transfer-encoding", "content-type", "cookie", "authorization", "expect", "x-request-id"];
    PROTECTED.iter().any(|field| dashed_eq(name, field)) || is_trust(name)
}

/// A field that only a proxy may set (rule T8), in either spelling.
///
/// Rack believes `Forwarded` first and `X-Forwarded-Ssl` before `-Proto`; Puma takes https from `-Proto`, `-Scheme` or `-Ssl` of
/// anybody; Rack::Sendfile obeys `X-Sendfile-Type` and `X-Accel-Mapping`; `Proxy` becomes HTTP_PROXY (httpoxy).
pub fn is_trust(name: &[u8]) -> bool {
    let starts = |prefix: &str| name.get(..prefix.len()).is_some_and(|start| dashed_eq(start, prefix));
    match name.first() {
        Some(b'x' | b'X') => TRUST_X_STARTS.iter().any(|prefix| starts(prefix)) || TRUST_X.iter().any(|field| dashed_eq(name, field)),
        // Most names need no closer look.
        Some(b'c' | b'f' | b'h' | b'p' | b's' | b't' | b'C' | b'F' | b'H' | b'P' | b'S' | b'T') => {
            TRUST_STARTS.iter().any(|prefix| starts(prefix)) || TRUST.iter().any(|field| dashed_eq(name, field))
        }
        Some(_) | None => false,
    }
}

const TRUST_X_STARTS: [&str; 4] = ["x-forwarded", "x-accel-", "x-ssl-", "x-original-"];
const TRUST_STARTS: [&str; 2] = ["forwarded", "ssl-client-"];

const TRUST_X: [&str; 17] = [
    "x-client-ip",
    "x-envoy-external-address",
    "x-real-ip",
    "x-cluster-client-ip",
    "x-request-start",
    "x-queue-start",
    "x-middleware-start",
    "x-rewrite-url",
    "x-sendfile-type",
    "x-host",
    "x-scheme",
    "x-url-scheme",
    "x-proxy-user-ip",
    "x-remote-ip",
    "x-remote-addr",
    "x-appengine-user-ip",
    "x-azure-clientip",
];

const TRUST: [&str; 10] = [
    "client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "fastly-client-ip",
    "cluster-client-ip",
    "front-end-https",
    "https",
    "proxy",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_lists_is_found_in_either_case() {
        for name in TRUST.iter().chain(&TRUST_X).chain(&TRUST_STARTS).chain(&TRUST_X_STARTS) {
            assert!(is_trust(name.as_bytes()) && is_trust(name.to_uppercase().as_bytes()), "{name}");
        }
    }

    #[test]
    fn both_spellings_of_a_trust_field_are_one() {
        for name in [
            "forwarded",
            "x-forwarded-for",
            "x_forwarded_for",
            "X-Forwarded-Ssl",
            "x-accel-mapping",
            "proxy",
            "client_ip",
            "ssl-client-cert",
            "Ssl_Client_Verify",
            "HTTPS",
            "Front_End_Https",
        ] {
            assert!(is_trust(name.as_bytes()), "{name}");
        }
        for name in ["x-csrf-token", "accept", "x-client-version", "proxy-status", "x-requested-with", "", "x"] {
            assert!(!is_trust(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_twin_of_a_framing_field_is_known() {
        assert!(imitates_framing("transfer_encoding") && imitates_framing("content-length"));
        assert!(!imitates_framing("h_ost") && !imitates_framing("api_key"));
    }

    #[test]
    fn names_of_odd_bytes_have_a_kind_of_their_own() {
        assert_eq!(kind("api_key"), Kind::Underscore);
        assert_eq!(kind("x-!#$%&'*+.^`|~1"), Kind::Foreign);
        assert_eq!(kind("x_|"), Kind::Foreign);
        assert_eq!(kind("x-requested-with"), Kind::Plain);
    }
}
