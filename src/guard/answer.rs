//! The head of Puma's answer: status line, fields, framing. RFC 9112 §4 to §6; *smuggling*, answer splitting.
//!
//! Place: `upstream` reads with it. Puma is half trusted: an application can be led to write line breaks into a field
//! (CVE-2020-5247, CVE-2020-5249), and an answer with two readings poisons the connection and every cache. A refusal
//! becomes 502 and Puma's connection is thrown away.

use super::{
    Field, Framing, Version,
    framing::Claims,
    line::{self, Fault, Line, Scan},
    rule::Rule,
};
use crate::refusal::Refusal;

/// Limits on the head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerLimits {
    /// The head, in bytes, to its empty line. Default: 128 KiB.
    pub head: usize,
    /// Number of field lines. Default: 200.
    pub fields: usize,
}

impl Default for AnswerLimits {
    fn default() -> Self {
        AnswerLimits { head: 131_072, fields: 200 }
    }
}

/// Where the body of an answer ends, RFC 9112 §6.3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnswerFraming {
    /// There is none: an answer to HEAD, 1xx, 204 or 304, whatever its fields say.
    #[default]
    None,
    /// After this many bytes.
    Length(u64),
    /// After the last chunk and its trailer section.
    Chunked,
    /// When Puma closes: a partial hijack, or an error of Puma 5.6 and older.
    UntilClose,
}

/// The head of an answer, as offsets into the bytes it was read from.
#[derive(Clone, Debug, Default)]
pub struct AnswerHead {
    /// Its length, the empty line included.
    pub len: usize,
    /// 100 to 599.
    pub status: u16,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// The field lines, in Puma's order.
    pub fields: Vec<Field>,
    /// Where the body ends.
    pub framing: AnswerFraming,
    /// Connection names `close`.
    pub close: bool,
    /// Connection names `keep-alive`.
    pub keep_alive: bool,
}

impl AnswerHead {
    /// An empty head, to be filled again and again by [`AnswerScan::advance`].
    pub fn new() -> Self {
        AnswerHead { fields: Vec::with_capacity(FIELDS), ..AnswerHead::default() }
    }

    /// Clears everything but the room for fields.
    fn clear(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = AnswerHead { fields, ..AnswerHead::default() };
    }
}

/// How far the head of an answer has been read. `Default` is the start of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnswerScan {
    scan: Scan,
    /// Offset behind the status line; 0 before its end is known.
    line: usize,
}

impl AnswerScan {
    /// Looks at the bytes that have come since the last call; `true` when `head` is complete.
    ///
    /// `buf` starts at the first byte of this answer and only grows between calls; `to_head` tells whether the request
    /// was a HEAD. After `true` or an error, start anew with `AnswerScan::default()`.
    pub fn advance(&mut self, buf: &[u8], limits: &AnswerLimits, to_head: bool, head: &mut AnswerHead) -> Result<bool, Refusal> {
        let fresh = self.line == 0;
        if fresh {
            let Some(end) = self.scan.first_line(buf, limits.head).map_err(|fault| refusal(fault, Rule::P1))? else { return Ok(false) };
            status_line(buf, end).ok_or(Refusal::UpstreamBad(Rule::P1))?;
            self.line = end;
        }
        let bound = buf.get(..limits.head).unwrap_or(buf);
        // Nearly every head comes in one read, and what can be read needs no scan.
        if fresh && read(bound, self.line, limits, to_head, head) == Ok(()) {
            return Ok(true);
        }
        let Some(end) = self.scan.rest(buf, limits.head).map_err(|fault| refusal(fault, Rule::P2))? else { return Ok(false) };
        read(buf.get(..end).unwrap_or_default(), self.line, limits, to_head, head).map_err(Refusal::UpstreamBad)?;
        Ok(true)
    }
}

/// Reads a head whose status line ends at `line`.
fn read(buf: &[u8], line: usize, limits: &AnswerLimits, to_head: bool, head: &mut AnswerHead) -> Result<(), Rule> {
    head.clear();
    (head.version, head.status) = status_line(buf, line).ok_or(Rule::P1)?;
    let framing = fields(buf, line, limits, head)?;
    head.framing = match (head.status, framing) {
        (100..=199 | 204 | 304, _) => AnswerFraming::None,
        _ if to_head => AnswerFraming::None,
        (_, Framing::Length(length)) => AnswerFraming::Length(length),
        (_, Framing::Chunked) => AnswerFraming::Chunked,
        (_, Framing::None) => AnswerFraming::UntilClose,
    };
    Ok(())
}

/// Reads the status line `buf[..end]`: `HTTP-version SP 3DIGIT [ SP reason ]`.
///
/// RFC 9112 §4 wants the second SP even without a reason; Puma 5.6 and older leave it out in their error answers.
fn status_line(buf: &[u8], end: usize) -> Option<(Version, u16)> {
    let line = buf.get(..end)?.strip_suffix(b"\r\n")?;
    let (version, rest) = line.split_at_checked(VERSION)?;
    let version = match version {
        b"HTTP/1.1 " => Version::Http11,
        b"HTTP/1.0 " => Version::Http10,
        _ => return None,
    };
    let (digits, reason) = rest.split_first_chunk::<3>()?;
    if !matches!(reason.first(), None | Some(b' ')) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let status = digits.iter().fold(0_u16, |sum, digit| sum * 10 + u16::from(digit & 0x0f));
    (100..=599).contains(&status).then_some((version, status))
}

/// Reads the field lines from `line` on, to the empty line.
fn fields(buf: &[u8], line: usize, limits: &AnswerLimits, head: &mut AnswerHead) -> Result<Framing, Rule> {
    let mut claims = Claims::default();
    let mut at = line;
    loop {
        let field = match line::read(buf, at).ok_or(Rule::P2)? {
            Line::Field(field, _, next) => {
                at = next;
                field
            }
            Line::Empty(end) => {
                head.len = end;
                break;
            }
        };
        if head.fields.len() >= limits.fields {
            return Err(Rule::P5);
        }
        head.fields.push(field);
        let name = field.name.of(buf);
        match name.len() {
            10 if name.eq_ignore_ascii_case(b"connection") => {
                let (close, keep_alive) = line::connection(field.value.of(buf));
                head.close |= close;
                head.keep_alive |= keep_alive;
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => claims.length(field.value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => claims.coding(field.value),
            _ => {}
        }
    }
    claims.decide(buf, head.version).map_err(|_| Rule::P3)
}

fn refusal(fault: Fault, rule: Rule) -> Refusal {
    match fault {
        Fault::Long => Refusal::UpstreamBad(Rule::P5),
        Fault::Ending | Fault::Control | Fault::Blank => Refusal::UpstreamBad(rule),
    }
}

/// Length of `HTTP/1.1` and its SP.
const VERSION: usize = 9;
/// Fields for which a head has room from the start.
const FIELDS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an answer whole, at every cut in two and byte by byte; all must agree.
    fn read(bytes: &[u8], to_head: bool) -> Result<Option<AnswerHead>, Refusal> {
        let cut = |cuts: &[usize]| {
            let (mut scan, mut head) = (AnswerScan::default(), AnswerHead::new());
            for cut in cuts {
                if scan.advance(&bytes[..*cut], &AnswerLimits::default(), to_head, &mut head)? {
                    return Ok(Some(head));
                }
            }
            Ok(None)
        };
        let whole = cut(&[bytes.len()]);
        for at in (0..bytes.len()).step_by((bytes.len() / 300).max(1)) {
            assert_eq!(format!("{:?}", cut(&[at, bytes.len()])), format!("{whole:?}"), "cut at {at}");
        }
        let each: Vec<usize> = (1..=bytes.len()).collect();
        assert_eq!(format!("{:?}", cut(&each)), format!("{whole:?}"));
        whole
    }

    fn accepted(text: &str) -> AnswerHead {
        read(text.as_bytes(), false).expect(text).expect(text)
    }

    #[track_caller]
    fn refused(text: &str, rule: Rule) {
        assert_eq!(read(text.as_bytes(), false).expect_err(text), Refusal::UpstreamBad(rule), "{text:?}");
    }

    #[test]
    fn an_answer_is_read_as_puma_sent_it() {
        let text = "HTTP/1.1 200 OK\r\nX-A: \u{e9}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
        let head = accepted(text);
        assert_eq!((head.status, head.version, head.framing), (200, Version::Http11, AnswerFraming::Length(5)));
        assert!(head.close && !head.keep_alive);
        assert_eq!(head.len, text.len() - 5);
        assert_eq!(head.fields[1].value.of(text.as_bytes()), b"5");
    }

    #[test]
    fn the_error_answers_of_every_puma_can_be_read() {
        for (text, version, framing) in [
            ("HTTP/1.1 400\r\n\r\n", Version::Http11, AnswerFraming::UntilClose),
            ("HTTP/1.1 400 \r\n\r\n", Version::Http11, AnswerFraming::UntilClose),
            ("HTTP/1.0 400 Bad Request\r\nContent-Length: 0\r\n\r\n", Version::Http10, AnswerFraming::Length(0)),
        ] {
            let head = accepted(text);
            assert_eq!((head.status, head.version, head.framing), (400, version, framing));
        }
    }

    #[test]
    fn a_malformed_status_line_is_refused() {
        for line in [
            "HTTP/2.0 200 OK",
            "HTTP/1.2 200 OK",
            "http/1.1 200 OK",
            "HTTP/1.1  200 OK",
            "HTTP/1.1 99 Odd",
            "HTTP/1.1 099 Odd",
            "HTTP/1.1 600 Odd",
            "HTTP/1.1 999 Odd",
            "HTTP/1.1 2000 OK",
            "HTTP/1.1 abc",
            "HTTP/1.1 20",
            "HTTP/1.1 +20 OK",
            "HTTP/1.1",
            "HTTP/1.1 200\tOK",
            "HTTP/1.1 200OK",
            "",
            "GARBAGE",
            "<html>",
            " HTTP/1.1 200 OK",
            "HTTP/1.1 200 O\u{7f}K",
        ] {
            refused(&format!("{line}\r\nContent-Length: 0\r\n\r\n"), Rule::P1);
        }
        refused("\r\nHTTP/1.1 200 OK\r\n\r\n", Rule::P1);
        refused("HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n", Rule::P1);
        refused("HTTP/1.1 200 O\rK\r\n\r\n", Rule::P1);
    }

    #[test]
    fn a_malformed_field_is_refused() {
        for field in [
            "X-A: b\nX-Evil: 1\r\n",
            "X-A: b\rX-Evil: 1\r\n",
            "X-A: b\0\r\n",
            "X-A: b\u{1}\r\n",
            "X-A : b\r\n",
            "X-A: b\r\n c\r\n",
            " X-A: b\r\n",
            "X A: b\r\n",
            ": b\r\n",
            "garbage\r\n",
        ] {
            refused(&format!("HTTP/1.1 200 OK\r\n{field}Content-Length: 5\r\n\r\n"), Rule::P2);
        }
    }

    #[test]
    fn a_framing_with_two_readings_is_refused() {
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 50\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: five\r\n",
            "Content-Length:\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
        ] {
            refused(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), Rule::P3);
            refused(&format!("HTTP/1.1 204 No Content\r\n{fields}\r\n"), Rule::P3);
        }
        refused("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Rule::P3);
    }

    #[test]
    fn a_head_above_its_limits_is_refused() {
        let field = "X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n";
        refused(&format!("HTTP/1.1 200 OK\r\n{}\r\n", field.repeat(201)), Rule::P5);
        assert_eq!(accepted(&format!("HTTP/1.1 200 OK\r\n{}\r\n", field.repeat(200))).fields.len(), 200);
        let limits = AnswerLimits { head: 100, fields: 200 };
        for end in ["", "\r\n\r\n"] {
            let long = format!("HTTP/1.1 200 OK\r\nX-A: {}{end}", "a".repeat(100));
            let read = AnswerScan::default().advance(long.as_bytes(), &limits, false, &mut AnswerHead::new());
            assert_eq!(read, Err(Refusal::UpstreamBad(Rule::P5)), "{end:?}");
        }
    }

    #[test]
    fn an_answer_without_framing_ends_with_its_connection() {
        assert_eq!(accepted("HTTP/1.1 200 OK\r\n\r\n").framing, AnswerFraming::UntilClose);
    }

    #[test]
    fn an_answer_that_cannot_have_a_body_has_none() {
        for status in [100, 101, 103, 199, 204, 304] {
            assert_eq!(accepted(&format!("HTTP/1.1 {status} X\r\nContent-Length: 5\r\n\r\n")).framing, AnswerFraming::None, "{status}");
            assert_eq!(accepted(&format!("HTTP/1.1 {status} X\r\n\r\n")).framing, AnswerFraming::None, "{status}");
        }
        let to_head = read(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true).unwrap().unwrap();
        assert_eq!(to_head.framing, AnswerFraming::None);
        assert_eq!(accepted("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n").framing, AnswerFraming::Chunked);
    }
}
