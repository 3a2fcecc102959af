//! Stand-in for the strict reading of Puma's answers.
use super::{Field, Span, Version};
use crate::{guard::rule::Rule, refusal::Refusal};

#[derive(Debug)]
pub struct AnswerHead {
    pub len: usize,
    pub status: u16,
    pub version: Version,
    pub fields: Vec<Field>,
    pub framing: AnswerFraming,
    pub close: bool,
    pub keep_alive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerFraming {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

#[derive(Clone, Debug)]
pub struct AnswerLimits {
    pub head: usize,
    pub fields: usize,
}

#[derive(Debug, Default)]
pub struct AnswerScan;

impl AnswerHead {
    pub fn new() -> Self {
        AnswerHead {
            len: 0,
            status: 0,
            version: Version::Http11,
            fields: Vec::new(),
            framing: AnswerFraming::None,
            close: false,
            keep_alive: false,
        }
    }
}

impl AnswerScan {
    pub fn advance(&mut self, buf: &[u8], limits: &AnswerLimits, to_head: bool, head: &mut AnswerHead) -> Result<bool, Refusal> {
        let bad = |rule| Err(Refusal::UpstreamBad(rule));
        if buf.len() >= 5 && !buf.starts_with(b"HTTP/") {
            return bad(Rule::P1);
        }
        let Some(end) = memchr::memmem::find(buf, b"\r\n\r\n") else {
            return if buf.len() > limits.head { bad(Rule::P5) } else { Ok(false) };
        };
        head.len = end + 4;
        head.fields.clear();
        let text = buf.get(..end).unwrap_or_default();
        let mut at = 0usize;
        let mut length = None;
        let mut chunked = false;
        for (n, line) in text.split(|b| *b == b'\n').enumerate() {
            let start = at;
            at += line.len() + 1;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.contains(&b'\r') || line.contains(&0) {
                return bad(Rule::P2);
            }
            if n == 0 {
                let words: Vec<_> = line.splitn(3, |b| *b == b' ').collect();
                head.version = match words.first() {
                    Some(v) if *v == b"HTTP/1.1" => Version::Http11,
                    Some(v) if *v == b"HTTP/1.0" => Version::Http10,
                    _ => return bad(Rule::P1),
                };
                let status = words.get(1).and_then(|s| std::str::from_utf8(s).ok()).and_then(|s| s.parse::<u16>().ok());
                match status {
                    Some(s) if (100..600).contains(&s) => head.status = s,
                    _ => return bad(Rule::P1),
                }
                continue;
            }
            let Some(colon) = line.iter().position(|b| *b == b':') else { return bad(Rule::P2) };
            let name = line.get(..colon).unwrap_or_default();
            if name.is_empty() || name.iter().any(|b| *b <= b' ') {
                return bad(Rule::P2);
            }
            let value = line.get(colon + 1..).unwrap_or_default();
            let lead = value.iter().take_while(|b| **b == b' ').count();
            let value = value.get(lead..).unwrap_or_default();
            let v0 = start + colon + 1 + lead;
            head.fields.push(Field {
                name: Span { start: start as u32, end: (start + colon) as u32 },
                value: Span { start: v0 as u32, end: (v0 + value.len()) as u32 },
            });
            if name.eq_ignore_ascii_case(b"content-length") {
                let parsed = std::str::from_utf8(value).ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit())).and_then(|v| v.parse().ok());
                match (length, parsed) {
                    (None, Some(n)) => length = Some(n),
                    _ => return bad(Rule::P3),
                }
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                if chunked || value != b"chunked" || head.version == Version::Http10 {
                    return bad(Rule::P3);
                }
                chunked = true;
            } else if name.eq_ignore_ascii_case(b"connection") {
                head.close |= value.eq_ignore_ascii_case(b"close");
                head.keep_alive |= value.eq_ignore_ascii_case(b"keep-alive");
            }
        }
        if head.fields.len() > limits.fields {
            return bad(Rule::P5);
        }
        if chunked && length.is_some() {
            return bad(Rule::P3);
        }
        head.framing = match (head.status, chunked, length) {
            (100..200 | 204 | 304, _, _) => AnswerFraming::None,
            _ if to_head => AnswerFraming::None,
            (_, true, _) => AnswerFraming::Chunked,
            (_, false, Some(n)) => AnswerFraming::Length(n),
            (_, false, None) => AnswerFraming::UntilClose,
        };
        Ok(true)
    }
}
