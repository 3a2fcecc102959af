//! Every rule by which bytes or messages are refused or repaired: its id, its source, one sentence.
//!
//! Logs, metrics, `palisade explain` and `docs/operating.md` read this table, so an id is never renamed.
//! G rules judge raw HTTP/1 bytes, T rules judge parsed requests of both versions, P rules judge Puma's answers.

use http::StatusCode;

/// One rule. The label values of metrics come from here, never from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Rule {
    G1,
    G2,
    G3,
    G4,
    G5,
    G5Version,
    G6,
    G7,
    G8,
    G9,
    G9Size,
    G10,
    G11,
    G11Unknown,
    G12,
    G13,
    G13Size,
    G14,
    G15,
    G16,
    G16Size,
    G17,
    G18,
    T1,
    T1Unknown,
    T2,
    T3,
    T4,
    T5,
    T6,
    T7,
    T8,
    T9,
    T10,
    T11,
    T12,
    T13,
    T13Size,
    T14,
    P1,
    P2,
    P3,
    P4,
    P5,
    P6,
    P7,
    P8,
}

/// What is known of a rule.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// The id in logs, metrics and documentation.
    pub id: &'static str,
    /// The status of the answer when the rule refuses.
    pub status: StatusCode,
    /// RFC section, CVE or measurement.
    pub source: &'static str,
    /// What was expected, in one sentence.
    pub sentence: &'static str,
}

impl Rule {
    /// Every rule, in the order of the documentation.
    pub const ALL: [Rule; 47] = [
        Rule::G1,
        Rule::G2,
        Rule::G3,
        Rule::G4,
        Rule::G5,
        Rule::G5Version,
        Rule::G6,
        Rule::G7,
        Rule::G8,
        Rule::G9,
        Rule::G9Size,
        Rule::G10,
        Rule::G11,
        Rule::G11Unknown,
        Rule::G12,
        Rule::G13,
        Rule::G13Size,
        Rule::G14,
        Rule::G15,
        Rule::G16,
        Rule::G16Size,
        Rule::G17,
        Rule::G18,
        Rule::T1,
        Rule::T1Unknown,
        Rule::T2,
        Rule::T3,
        Rule::T4,
        Rule::T5,
        Rule::T6,
        Rule::T7,
        Rule::T8,
        Rule::T9,
        Rule::T10,
        Rule::T11,
        Rule::T12,
        Rule::T13,
        Rule::T13Size,
        Rule::T14,
        Rule::P1,
        Rule::P2,
        Rule::P3,
        Rule::P4,
        Rule::P5,
        Rule::P6,
        Rule::P7,
        Rule::P8,
    ];

    /// The id in logs and metrics; variants that differ only in status share one.
    pub fn id(self) -> &'static str {
        self.info().id
    }

    /// The status of the answer when the rule refuses.
    pub fn status(self) -> StatusCode {
        self.info().status
    }

    /// Id, status, source and sentence.
    pub fn info(self) -> Info {
        use StatusCode as S;
        let (id, status, source, sentence) = match self {
            Rule::G1 => ("G1", S::BAD_REQUEST, "RFC 9112 §2.2; CVE-2021-41136", "A line must end in CR LF; neither byte may stand alone."),
            Rule::G2 => ("G2", S::BAD_REQUEST, "RFC 9110 §5.5", "The head must not contain NUL, DEL or a control byte other than TAB."),
            Rule::G3 => {
                ("G3", S::BAD_REQUEST, "RFC 9112 §2.2, §5.2", "No line of the head may start with a blank: folded lines have two readings.")
            }
            Rule::G4 => ("G4", S::BAD_REQUEST, "RFC 9112 §2.2", "At most two empty lines may precede a request line."),
            Rule::G5 => ("G5", S::BAD_REQUEST, "RFC 9112 §3", "The request line must be: method SP target SP HTTP/1.1 (or 1.0)."),
            Rule::G5Version => ("G5", S::HTTP_VERSION_NOT_SUPPORTED, "RFC 9112 §2.3", "The version must be HTTP/1.1 or HTTP/1.0."),
            Rule::G6 => ("G6", S::BAD_REQUEST, "RFC 9110 §9.1", "The method must be a token of 1 to 32 bytes."),
            Rule::G7 => ("G7", S::URI_TOO_LONG, "RFC 9112 §3", "The request target is longer than the limit."),
            Rule::G8 => ("G8", S::BAD_REQUEST, "RFC 9112 §3.2; RFC 3986 §2", "The request target contains a byte that no URI may contain."),
            Rule::G9 => {
                ("G9", S::BAD_REQUEST, "RFC 9112 §5.1", "A field line must be: name (a token) directly followed by a colon and a value.")
            }
            Rule::G9Size => {
                ("G9", S::REQUEST_HEADER_FIELDS_TOO_LARGE, "RFC 6585 §5", "The head, a field or the number of fields is above the limit.")
            }
            Rule::G10 => {
                ("G10", S::BAD_REQUEST, "RFC 9112 §6.1; CVE-2022-24790", "Content-Length and Transfer-Encoding must not stand together.")
            }
            Rule::G11 => (
                "G11",
                S::BAD_REQUEST,
                "RFC 9112 §6.1; CVE-2020-11076",
                "Transfer-Encoding must be one line with exactly the value chunked.",
            ),
            Rule::G11Unknown => ("G11", S::NOT_IMPLEMENTED, "RFC 9112 §6.1", "No transfer coding other than chunked is understood."),
            Rule::G12 => ("G12", S::BAD_REQUEST, "RFC 9112 §6.1", "An HTTP/1.0 message must not have Transfer-Encoding."),
            Rule::G13 => ("G13", S::BAD_REQUEST, "RFC 9112 §6.3; CVE-2023-40175", "Content-Length must be one number of decimal digits."),
            Rule::G13Size => ("G13", S::PAYLOAD_TOO_LARGE, "RFC 9110 §15.5.14", "Content-Length is above the body limit."),
            Rule::G14 => (
                "G14",
                S::BAD_REQUEST,
                "RFC 9112 §7.1; CVE-2024-21647",
                "A chunk line must be: hexadecimal size, short well-formed extensions, CR LF.",
            ),
            Rule::G15 => ("G15", S::BAD_REQUEST, "RFC 9112 §7.1", "Chunk data must be followed by CR LF, the body by a last chunk."),
            Rule::G16 => ("G16", S::BAD_REQUEST, "RFC 9112 §7.1.2; CVE-2023-40175", "A trailer must follow the grammar of field lines."),
            Rule::G16Size => ("G16", S::REQUEST_HEADER_FIELDS_TOO_LARGE, "RFC 6585 §5", "The trailer section is above the limit."),
            Rule::G17 => {
                ("G17", S::BAD_REQUEST, "RFC 9112 §3.2; CVE-2026-34835", "There must be exactly one Host field with a valid host and port.")
            }
            Rule::G18 => {
                ("G18", S::BAD_REQUEST, "CVE-2020-11077", "A field must not imitate a framing field with an underscore in its name.")
            }
            Rule::T1 => ("T1", S::METHOD_NOT_ALLOWED, "RFC 9110 §9.3.8", "This method is not allowed here."),
            Rule::T1Unknown => ("T1", S::NOT_IMPLEMENTED, "RFC 9110 §9.3.6", "This method is not implemented here."),
            Rule::T2 => (
                "T2",
                S::BAD_REQUEST,
                "RFC 9112 §3.2.2",
                "An absolute-form target must be http or https with a valid authority that equals Host.",
            ),
            Rule::T3 => ("T3", S::BAD_REQUEST, "RFC 9113 §8.3.1", "There must be one authority, and Host must not contradict it."),
            Rule::T4 => (
                "T4",
                S::BAD_REQUEST,
                "RFC 3986 §3.3, §6.2.2",
                "The path must be valid percent-encoded UTF-8 without NUL, line breaks or dot segments.",
            ),
            Rule::T5 => (
                "T5",
                S::BAD_REQUEST,
                "CVE-2024-45614",
                "Field names with an underscore are dropped: Puma reads them as the same name with a dash.",
            ),
            Rule::T6 => ("T6", S::BAD_REQUEST, "RFC 9110 §5.1", "Field names other than letters, digits and dashes are dropped."),
            Rule::T7 => ("T7", S::BAD_REQUEST, "RFC 9110 §7.6.1", "Connection must not name a field that frames, routes or authenticates."),
            Rule::T8 => {
                ("T8", S::BAD_REQUEST, "CVE-2026-32762; RFC 7239", "Fields that only a proxy may set are replaced by this proxy's own.")
            }
            Rule::T9 => ("T9", S::BAD_REQUEST, "RFC 9110 §5.3", "This field may stand only once."),
            Rule::T10 => ("T10", S::EXPECTATION_FAILED, "RFC 9110 §10.1.1", "No expectation other than 100-continue can be met."),
            Rule::T11 => {
                ("T11", S::BAD_REQUEST, "RFC 9112 §6.3", "A request is passed on with its whole body and exactly one Content-Length.")
            }
            Rule::T12 => ("T12", S::BAD_REQUEST, "RFC 6455 §4.2.1", "An upgrade must be a well-formed WebSocket handshake."),
            Rule::T13 => (
                "T13",
                S::BAD_REQUEST,
                "CVE-2022-30122 and others of Rack",
                "This part of the request has a form on which Rack spends too much.",
            ),
            Rule::T13Size => (
                "T13",
                S::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "CVE-2025-46727 and others of Rack",
                "This part of the request has more members than Rack can take.",
            ),
            Rule::T14 => (
                "T14",
                S::BAD_REQUEST,
                "RFC 9113 §8.1.1, §8.2",
                "An HTTP/2 request must have well-formed fields and a body of the declared length.",
            ),
            Rule::P1 => ("P1", S::BAD_GATEWAY, "RFC 9112 §4", "Puma's status line was malformed."),
            Rule::P2 => ("P2", S::BAD_GATEWAY, "RFC 9112 §5", "A field line of Puma's answer was malformed."),
            Rule::P3 => (
                "P3",
                S::BAD_GATEWAY,
                "RFC 9112 §6.1",
                "Puma's answer had Content-Length and Transfer-Encoding, or one of them twice or malformed.",
            ),
            Rule::P4 => ("P4", S::BAD_GATEWAY, "RFC 9112 §7.1", "A chunk of Puma's answer was malformed."),
            Rule::P5 => ("P5", S::BAD_GATEWAY, "RFC 6585 §5", "The head of Puma's answer was above the limit."),
            Rule::P6 => {
                ("P6", S::BAD_GATEWAY, "RFC 9110 §15.2", "Puma sent more interim answers than the limit, or one that nobody asked for.")
            }
            Rule::P7 => ("P7", S::BAD_GATEWAY, "RFC 9112 §8", "Puma's answer ended before its declared end."),
            Rule::P8 => ("P8", S::BAD_GATEWAY, "RFC 9110 §7.8", "Puma switched protocols although nobody had asked for it."),
        };
        Info { id, status, source, sentence }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_a_sentence_of_its_own() {
        let mut sentences: Vec<_> = Rule::ALL.iter().map(|r| r.info().sentence).collect();
        sentences.sort_unstable();
        sentences.dedup();
        assert_eq!(sentences.len(), Rule::ALL.len());
    }

    #[test]
    fn the_list_holds_every_rule_once_and_in_order() {
        for (i, rule) in Rule::ALL.iter().enumerate() {
            assert_eq!(*rule as usize, i, "{rule:?}");
        }
    }
}
