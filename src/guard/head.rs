//! The head of a request: request line and fields. RFC 9112 §2 to §6; *smuggling*, *slowloris*.
//!
//! Place: called by the HTTP/1 driver with what has come of a request so far, until the head is complete or refused.
//! A byte that can only be refused is refused when it comes, so a client that sends bare LF or a TLS hello does not
//! hold its connection until the deadline. A refusal closes the connection.

use super::{
    Field, Form, Framing, Limits, Span, Version,
    framing::Claims,
    line::{self, Fault, Line, Scan},
    rule::Rule,
    target,
};
use crate::refusal::Refusal;

/// The head of a request, as offsets into the bytes it was read from.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// Its length: empty lines in front, request line, fields, empty line.
    pub len: usize,
    /// A token of at most 32 bytes, in the sender's case.
    pub method: Span,
    /// As the client sent it.
    pub target: Span,
    /// The form of the target.
    pub form: Form,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// The field lines, in the sender's order.
    pub fields: Vec<Field>,
    /// Where the body ends.
    pub framing: Framing,
    /// The value of the Host field; empty when HTTP/1.0 has none.
    pub host: Span,
    /// The authority of an absolute-form target; else empty.
    pub authority: Span,
    /// Connection names `close`.
    pub close: bool,
    /// Connection names `keep-alive`.
    pub keep_alive: bool,
    /// An HTTP/1.1 client waits for `100 Continue`.
    pub expect_continue: bool,
    /// Rules that only monitor mode let pass, as bits `1 << rule as u8`.
    pub observed: u64,
}

impl Head {
    /// An empty head, to be filled again and again by [`HeadScan::advance`].
    pub fn new() -> Self {
        Head { fields: Vec::with_capacity(FIELDS), ..Head::default() }
    }

    /// Clears everything but the room for fields.
    fn clear(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Head { fields, ..Head::default() };
    }

    /// Refuses, or notes the rule when that is harmless and only monitoring is wanted.
    fn observe(&mut self, refusal: Refusal, rule: Rule, limits: &Limits) -> Result<(), Refusal> {
        if !limits.monitor {
            return Err(refusal);
        }
        self.observed |= 1 << rule as u8;
        Ok(())
    }
}

/// How far a head has been read. `Default` is the start of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScan {
    scan: Scan,
    /// Offset behind the request line; 0 before its end is known.
    line: u32,
    empty_lines: u8,
}

impl HeadScan {
    /// Looks at the bytes that have come since the last call; `true` when `head` is complete.
    ///
    /// `buf` starts at the first byte of this request and only grows between calls. Bytes behind the head are not
    /// looked at. After `true` or an error, start anew with `HeadScan::default()`.
    pub fn advance(&mut self, buf: &[u8], limits: &Limits, head: &mut Head) -> Result<bool, Refusal> {
        let mut fresh = false;
        while self.line == 0 {
            let bound = self.scan.start.saturating_add(limits.target).saturating_add(REQUEST_LINE).min(limits.head);
            let found = self.scan.first_line(buf, bound).map_err(|fault| match fault {
                Fault::Long if bound < limits.head => Refusal::BadTarget(Rule::G7),
                Fault::Long | Fault::Ending | Fault::Control | Fault::Blank => refusal(fault),
            })?;
            let Some(end) = found else { return Ok(false) };
            if end - self.scan.start == 2 {
                self.empty_lines += 1;
                if self.empty_lines > EMPTY_LINES {
                    return Err(Refusal::BadFraming(Rule::G4));
                }
                self.scan.skip_line();
            } else {
                request_line(buf, self.scan.start, end, limits, head)?;
                self.line = u32::try_from(end).unwrap_or(u32::MAX);
                fresh = true;
            }
        }
        let line = usize::try_from(self.line).unwrap_or(usize::MAX);
        if fresh {
            // Nearly every head comes in one read, and what can be read needs no scan. Once: a client that sends byte
            // by byte must not make us read its head each time.
            if fields(buf.get(..limits.head).unwrap_or(buf), line, limits, head) == Ok(()) {
                return Ok(true);
            }
        }
        let Some(end) = self.scan.rest(buf, limits.head).map_err(refusal)? else { return Ok(false) };
        // The caller may have handed over another `Head` than the last time.
        request_line(buf, self.scan.start, line, limits, head)?;
        fields(buf.get(..end).unwrap_or_default(), line, limits, head)?;
        Ok(true)
    }
}

/// Reads the request line `buf[start..end]`, CRLF included: `method SP target SP HTTP-version`, RFC 9112 §3.
fn request_line(buf: &[u8], start: usize, end: usize, limits: &Limits, head: &mut Head) -> Result<(), Refusal> {
    head.clear();
    let line = buf.get(start..end - 2).unwrap_or_default();
    let malformed = Refusal::BadFraming(Rule::G5);
    let sp = memchr::memchr(b' ', line).ok_or(malformed)?;
    let version = line.len().checked_sub(VERSION).filter(|at| *at > sp + 2).ok_or(malformed)?;
    let (method, target) = (line.get(..sp).unwrap_or_default(), line.get(sp + 1..version - 1).unwrap_or_default());
    if line.get(version - 1) != Some(&b' ') || memchr::memchr(b' ', target).is_some() {
        return Err(malformed);
    }
    head.version = match line.get(version..).unwrap_or_default() {
        b"HTTP/1.1" => Version::Http11,
        b"HTTP/1.0" => Version::Http10,
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => return Err(Refusal::BadFraming(Rule::G5Version)),
        _ => return Err(malformed),
    };
    if !line::is_token(method) || method.len() > METHOD {
        return Err(Refusal::BadFraming(Rule::G6));
    }
    if method == b"CONNECT" {
        return Err(Refusal::Denied(Rule::T1Unknown));
    }
    if target.len() > limits.target {
        return Err(Refusal::BadTarget(Rule::G7));
    }
    let read = target::read(target, method == b"OPTIONS")?;
    let at = start + sp + 1;
    head.method = Span::new(start, start + sp);
    head.target = Span::new(at, at + target.len());
    head.form = read.form;
    if read.form == Form::Absolute {
        head.authority = Span::new(at + read.authority.start, at + read.authority.end);
    }
    Ok(())
}

/// Reads the field lines from `line` on, to the empty line.
fn fields(buf: &[u8], line: usize, limits: &Limits, head: &mut Head) -> Result<(), Refusal> {
    let mut claims = Claims::default();
    let mut hosts = 0_usize;
    let mut at = line;
    loop {
        let (field, underscore) = match line::read(buf, at).ok_or(Refusal::BadFraming(Rule::G9))? {
            Line::Field(field, underscore, next) => {
                at = next;
                (field, underscore)
            }
            Line::Empty(end) => {
                head.len = end;
                break;
            }
        };
        if head.fields.len() >= limits.fields {
            return Err(TOO_LARGE);
        }
        if field.name.len() > limits.name || field.value.len() > limits.value {
            if field.name.len() > PUMAS_NAME {
                return Err(TOO_LARGE);
            }
            head.observe(TOO_LARGE, Rule::G9Size, limits)?;
        }
        head.fields.push(field);
        let name = field.name.of(buf);
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                head.host = field.value;
                hosts += 1;
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                head.expect_continue |= head.version == Version::Http11 && field.value.of(buf).eq_ignore_ascii_case(b"100-continue");
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                let (close, keep_alive) = line::connection(field.value.of(buf));
                head.close |= close;
                head.keep_alive |= keep_alive;
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => claims.length(field.value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => claims.coding(field.value),
            _ if underscore => claims.underscored(name),
            _ => {}
        }
    }
    head.framing = claims.decide(buf, head.version).map_err(Refusal::BadFraming)?;
    let wanted = match head.version {
        Version::Http11 => hosts == 1,
        Version::Http10 => hosts <= 1,
    };
    if !wanted || hosts == 1 && !target::is_authority(head.host.of(buf)) {
        return Err(Refusal::BadHost(Rule::G17));
    }
    Ok(())
}

fn refusal(fault: Fault) -> Refusal {
    match fault {
        Fault::Ending => Refusal::BadFraming(Rule::G1),
        Fault::Control => Refusal::BadFraming(Rule::G2),
        Fault::Blank => Refusal::BadFraming(Rule::G3),
        Fault::Long => TOO_LARGE,
    }
}

const TOO_LARGE: Refusal = Refusal::HeaderTooLarge(Rule::G9Size);
/// Empty lines that may precede a request line: some clients send one behind a body, RFC 9112 §2.2.
const EMPTY_LINES: u8 = 2;
/// Longest method, in bytes.
const METHOD: usize = 32;
/// Longest field name that Puma reads.
const PUMAS_NAME: usize = 256;
/// Length of `HTTP/1.1`.
const VERSION: usize = 8;
/// What a request line has at most besides its target: method, two SP, version, CRLF.
const REQUEST_LINE: usize = METHOD + 2 + VERSION + 2;
/// Fields for which a head has room from the start; a browser sends 12 to 20.
const FIELDS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a request at every cut into two reads and byte by byte; all must agree.
    fn read(bytes: &[u8]) -> Result<Option<Head>, Refusal> {
        read_with(bytes, &Limits::default())
    }

    fn read_with(bytes: &[u8], limits: &Limits) -> Result<Option<Head>, Refusal> {
        let step = (bytes.len() / 400).max(1);
        let whole = read_cut(bytes, &[bytes.len()], limits);
        for cut in (0..bytes.len()).step_by(step) {
            assert_eq!(summary(&read_cut(bytes, &[cut, bytes.len()], limits)), summary(&whole), "cut at {cut}");
        }
        let each: Vec<usize> = (1..=bytes.len()).step_by(step).chain([bytes.len()]).collect();
        assert_eq!(summary(&read_cut(bytes, &each, limits)), summary(&whole), "cut at every {step}");
        whole
    }

    fn read_cut(bytes: &[u8], cuts: &[usize], limits: &Limits) -> Result<Option<Head>, Refusal> {
        let mut scan = HeadScan::default();
        let mut head = Head::new();
        for cut in cuts {
            if scan.advance(&bytes[..*cut], limits, &mut head)? {
                return Ok(Some(head));
            }
        }
        Ok(None)
    }

    fn summary(read: &Result<Option<Head>, Refusal>) -> String {
        format!("{read:?}")
    }

    fn refused(bytes: &[u8]) -> Refusal {
        read(bytes).expect_err("must be refused")
    }

    fn accepted(bytes: &[u8]) -> Head {
        read(bytes).expect("must be accepted").expect("must be complete")
    }

    const HOST: &str = "Host: a.example\r\n";

    fn with(fields: &str) -> Vec<u8> {
        format!("POST /a HTTP/1.1\r\n{HOST}{fields}\r\n").into_bytes()
    }

    #[test]
    fn a_scan_is_small_enough_for_an_idle_connection() {
        assert!(size_of::<HeadScan>() <= 32);
    }

    #[test]
    fn a_browser_head_is_read_as_sent() {
        let bytes = b"\r\nGET /a?b=[c] HTTP/1.1\r\nHost: a.example:8080\r\nAccept:\t*/* \r\nX-Empty:\r\nConnection: keep-alive, Upgrade\r\n\r\nrest";
        let head = accepted(bytes);
        assert_eq!(head.len, bytes.len() - 4);
        assert_eq!(head.method.of(bytes), b"GET");
        assert_eq!(head.target.of(bytes), b"/a?b=[c]");
        assert_eq!((head.form, head.version, head.framing), (Form::Origin, Version::Http11, Framing::None));
        assert_eq!(head.host.of(bytes), b"a.example:8080");
        let fields: Vec<_> = head.fields.iter().map(|f| (f.name.of(bytes), f.value.of(bytes))).collect();
        let expected: [(&[u8], &[u8]); 4] =
            [(b"Host", b"a.example:8080"), (b"Accept", b"*/*"), (b"X-Empty", b""), (b"Connection", b"keep-alive, Upgrade")];
        assert_eq!(fields, expected);
        assert!(head.keep_alive && !head.close && !head.expect_continue);
        assert_eq!(head.observed, 0);
    }

    #[test]
    fn bare_line_feeds_are_refused_although_the_head_never_ends() {
        assert_eq!(refused(b"GET / HTTP/1.1\nHost: a.example\n\n"), Refusal::BadFraming(Rule::G1));
    }

    #[test]
    fn a_tls_hello_is_refused_at_its_first_byte() {
        assert_eq!(refused(b"\x16"), Refusal::BadFraming(Rule::G2));
    }

    #[test]
    fn a_request_line_without_a_version_is_refused_before_any_field() {
        assert_eq!(refused(b"GET /\r\n"), Refusal::BadFraming(Rule::G5));
    }

    #[test]
    fn both_framings_at_once_are_refused_in_any_spelling() {
        for (length, coding) in [
            ("Content-Length", "Transfer-Encoding"),
            ("Content_Length", "Transfer-Encoding"),
            ("content-length", "TRANSFER_ENCODING"),
            ("content_length", "transfer_encoding"),
        ] {
            let one = with(&format!("{length}: 5\r\n{coding}: chunked\r\n"));
            let other = with(&format!("{coding}: chunked\r\n{length}: 5\r\n"));
            assert_eq!(refused(&one), Refusal::BadFraming(Rule::G10), "{length} {coding}");
            assert_eq!(refused(&other), Refusal::BadFraming(Rule::G10), "{coding} {length}");
        }
    }

    #[test]
    fn a_length_is_one_number_of_digits() {
        for (value, expected) in [
            ("0", Some(0)),
            ("5", Some(5)),
            ("0005", Some(5)),
            ("00000000000000000000000000000005", Some(5)),
            ("9999999999999999999", Some(9_999_999_999_999_999_999)),
            ("10000000000000000000", None),
            ("", None),
            ("+5", None),
            ("-0", None),
            ("0x5", None),
            ("5 5", None),
            ("5,5", None),
            ("5, 5", None),
            ("1_0", None),
        ] {
            let bytes = with(&format!("Content-Length: {value}\r\n"));
            match expected {
                Some(length) => assert_eq!(accepted(&bytes).framing, Framing::Length(length), "{value}"),
                None => assert_eq!(refused(&bytes), Refusal::BadFraming(Rule::G13), "{value}"),
            }
        }
    }

    #[test]
    fn the_limits_of_a_head_are_exact() {
        let limits = Limits { head: 200, target: 20, ..Limits::default() };
        let head = |target: usize, value: usize| {
            format!("GET /{} HTTP/1.1\r\n{HOST}X: {}\r\n\r\n", "a".repeat(target - 1), "b".repeat(value)).into_bytes()
        };
        let room = 200 - head(20, 0).len();
        assert!(matches!(read_with(&head(20, room), &limits), Ok(Some(_))));
        assert!(matches!(read_with(&head(20, room + 1), &limits), Err(Refusal::HeaderTooLarge(Rule::G9Size))));
        assert!(matches!(read_with(&head(21, 0), &limits), Err(Refusal::BadTarget(Rule::G7))));
        assert!(matches!(read_with(&head(150, 0), &limits), Err(Refusal::BadTarget(Rule::G7))));
        assert!(matches!(read_with(&head(500, 0), &limits), Err(Refusal::BadTarget(Rule::G7))));
    }

    #[test]
    fn a_violation_wins_over_a_limit_only_when_it_comes_first() {
        let limits = Limits { head: 100, ..Limits::default() };
        let with_bad_byte_at = |at: usize| {
            let mut bytes = format!("GET / HTTP/1.1\r\n{HOST}X: {}", "b".repeat(200)).into_bytes();
            bytes[at] = 0;
            read_with(&bytes, &limits).expect_err("must be refused")
        };
        assert_eq!(with_bad_byte_at(99), Refusal::BadFraming(Rule::G2));
        assert_eq!(with_bad_byte_at(100), TOO_LARGE);
    }

    #[test]
    fn the_request_line_is_judged_before_anything_behind_it() {
        assert_eq!(refused(b"GET /a#b HTTP/1.1\r\nHost: a\0\r\n\r\n"), Refusal::BadTarget(Rule::G8));
        assert_eq!(refused(b"GET / HTTP/1.1\r\ngarbage\r\nX: \0\r\n\r\n"), Refusal::BadFraming(Rule::G2));
    }

    #[test]
    fn connection_and_expect_are_read_as_lists_and_words() {
        let head = accepted(&with("Connection: Keep-Alive , CLOSE\r\nExpect: 100-Continue\r\n"));
        assert!(head.close && head.keep_alive && head.expect_continue);
        let head = accepted(&with("Connection: closed, xkeep-alive\r\nExpect: y 100-continue\r\n"));
        assert!(!head.close && !head.keep_alive && !head.expect_continue);
        assert!(!accepted(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").expect_continue);
    }

    #[test]
    fn one_head_serves_many_requests_without_growing() {
        let mut head = Head::new();
        let room = head.fields.capacity();
        for bytes in [with("Connection: close\r\nContent-Length: 5\r\n"), with("")] {
            assert_eq!(HeadScan::default().advance(&bytes, &Limits::default(), &mut head), Ok(true));
        }
        assert_eq!((head.fields.len(), head.framing, head.close), (1, Framing::None, false));
        assert_eq!(head.fields.capacity(), room);
    }

    #[test]
    fn a_span_that_does_not_fit_is_empty() {
        assert_eq!(Span { start: 1, end: 9 }.of(b"abc"), b"");
        assert_eq!(Span { start: 2, end: 1 }.of(b"abc"), b"");
        assert_eq!(Span { start: 1, end: 3 }.of(b"abc"), b"bc");
    }
}
