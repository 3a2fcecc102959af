//! Lines of a head: byte classes, line endings, field lines. RFC 9112 §2.2, §5; RFC 9110 §5.5, §5.6.2.
//!
//! Shared by requests and answers, which only differ in the rule they name. Each byte is judged by itself and its two
//! predecessors, so a fault is found at the same byte however the bytes were cut into reads. Blocks without a fault and
//! without the end of the head, nearly all, are passed at the speed of vector instructions; only a block that has one is
//! walked byte by byte.

use memchr::memchr;

use super::{Field, Span};

/// Why a line cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// CR without LF, or LF without CR.
    Ending,
    /// A control byte other than HTAB.
    Control,
    /// A blank at the start of a line.
    Blank,
    /// The end is not there within the limit.
    Long,
}

/// How far a head has been looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scan {
    /// Where the first line starts: behind empty lines.
    pub start: usize,
    seen: usize,
}

impl Scan {
    /// Looks for the end of the first line in the first `bound` bytes; returns the offset behind its LF.
    pub fn first_line(&mut self, buf: &[u8], bound: usize) -> Result<Option<usize>, Fault> {
        let window = buf.get(..bound).unwrap_or(buf);
        let fresh = window.get(self.seen..).unwrap_or_default();
        let blank = self.seen == self.start && fresh.first().is_some_and(|b| is_blank(*b));
        if let Some(at) = memchr(b'\n', fresh) {
            let content = fresh.get(..at).and_then(|line| line.strip_suffix(b"\r"));
            if blank || content.is_none_or(has_control) {
                return Err(self.fault(fresh, window));
            }
            self.seen += at + 1;
            return Ok(Some(self.seen));
        }
        // A CR at the end of what has come is neither right nor wrong yet.
        let certain = fresh.strip_suffix(b"\r").unwrap_or(fresh);
        if blank || has_control(certain) {
            return Err(self.fault(fresh, window));
        }
        if buf.len() >= bound {
            return Err(Fault::Long);
        }
        self.seen += certain.len();
        Ok(None)
    }

    /// Takes the line that was just found as an empty one: the first line starts behind it.
    pub fn skip_line(&mut self) {
        self.start = self.seen;
    }

    /// Looks for the empty line in the first `bound` bytes, after the first line; returns the offset behind it.
    pub fn rest(&mut self, buf: &[u8], bound: usize) -> Result<Option<usize>, Fault> {
        let stop = bound.min(buf.len());
        while self.seen < stop {
            let next = (self.seen + BLOCK).min(stop);
            if is_suspicious(buf, self.seen, next) {
                let from = self.seen.saturating_sub(2);
                for (i, bytes) in buf.get(from..next).unwrap_or_default().windows(3).enumerate() {
                    let [before, previous, byte] = *bytes else { continue };
                    match judge(previous, byte) {
                        Some(fault) => return Err(fault),
                        None if byte == b'\n' && before == b'\n' => {
                            self.seen = from + i + 3;
                            return Ok(Some(self.seen));
                        }
                        None => {}
                    }
                }
            }
            self.seen = next;
        }
        if buf.len() >= bound { Err(Fault::Long) } else { Ok(None) }
    }

    /// The first fault in `fresh`, which starts at `seen` and is known to have one.
    fn fault(&self, fresh: &[u8], window: &[u8]) -> Fault {
        let mut previous = b'\n';
        if self.seen > self.start {
            previous = window.get(self.seen - 1).copied().unwrap_or(previous);
        }
        let mut found = None;
        for byte in fresh {
            found = judge(previous, *byte);
            if found.is_some() {
                break;
            }
            previous = *byte;
        }
        found.unwrap_or(Fault::Ending)
    }
}

/// Judges a byte by its predecessor.
fn judge(previous: u8, byte: u8) -> Option<Fault> {
    if (previous == b'\r') != (byte == b'\n') {
        Some(Fault::Ending)
    } else if is_control(byte) && byte != b'\r' && byte != b'\n' {
        Some(Fault::Control)
    } else if previous == b'\n' && is_blank(byte) {
        Some(Fault::Blank)
    } else {
        None
    }
}

/// Whether `buf[at..next]` may hold a fault or the end of the head. Never false when it does.
fn is_suspicious(buf: &[u8], at: usize, next: usize) -> bool {
    let Some(low) = next.checked_sub(BLOCK).filter(|low| *low >= 2 && next - at >= SMALL) else { return true };
    let bytes = |shift: usize| buf.get(low - shift..).and_then(|b| b.first_chunk::<BLOCK>());
    let (Some(current), Some(previous), Some(before)) = (bytes(0), bytes(1), bytes(2)) else { return true };
    let mut hit = false;
    for ((byte, previous), before) in current.iter().zip(previous).zip(before) {
        let (byte, previous, before) = (*byte, *previous, *before);
        let ending = byte == b'\n';
        hit |= (ending != (previous == b'\r'))
            | ((byte < b' ') & (byte != b'\t') & (byte != b'\r') & !ending)
            | (byte == DEL)
            | ((previous == b'\n') & ((byte == b' ') | (byte == b'\t')))
            | (ending & (before == b'\n'));
    }
    hit
}

/// One line behind the first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Line {
    /// A field, whether its name has an underscore, and the offset behind its CRLF.
    Field(Field, bool, usize),
    /// The empty line, and the offset behind its CRLF.
    Empty(usize),
}

/// Reads the line at `at`; `None` when it is neither empty nor `token ":" value CRLF`, or not all there.
///
/// It reads each byte for itself and accepts none that [`Scan::rest`] refuses, so a head all of whose lines can be read
/// needs no scan.
#[inline]
pub(super) fn read(buf: &[u8], at: usize) -> Option<Line> {
    let line = buf.get(at..)?;
    let mut underscore = false;
    let mut colon = 0;
    loop {
        colon += line.get(colon..)?.iter().take_while(|b| class(**b) == PLAIN).count();
        if line.get(colon) != Some(&b'_') {
            break;
        }
        underscore = true;
        colon += 1;
    }
    let Some(rest) = line.get(colon..)?.strip_prefix(b":") else {
        return line.starts_with(b"\r\n").then_some(Line::Empty(at + 2));
    };
    if colon == 0 {
        return None;
    }
    let length = text(rest);
    let (raw, ending) = rest.split_at_checked(length)?;
    if !ending.starts_with(b"\r\n") {
        return None;
    }
    let value = at + colon + 1;
    let lead = raw.iter().take_while(|b| is_blank(**b)).count();
    let trail = raw.get(lead..)?.iter().rev().take_while(|b| is_blank(**b)).count();
    let field = Field { name: Span::new(at, at + colon), value: Span::new(value + lead, value + length - trail) };
    Some(Line::Field(field, underscore, value + length + 2))
}

/// Length of the run at the start of `bytes` that has no control byte other than HTAB.
#[inline]
fn text(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(block) = bytes.get(at..).and_then(|rest| rest.first_chunk::<16>()) {
        if block.iter().fold(false, |hit, byte| hit | is_control(*byte)) {
            break;
        }
        at += 16;
    }
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*chunk);
        // The lowest flag is exact in both terms; higher ones may be carried over from it.
        let below = word.wrapping_sub(EACH * 0x20) & !word;
        let delete = (word ^ (EACH * 0x7f)).wrapping_sub(EACH) & !(word ^ (EACH * 0x7f));
        let flags = (below | delete) & (EACH * 0x80);
        if flags == 0 {
            at += 8;
            continue;
        }
        at += (flags.trailing_zeros() / 8) as usize;
        if bytes.get(at) != Some(&b'\t') {
            return at;
        }
        at += 1;
    }
    at + bytes.get(at..).unwrap_or_default().iter().take_while(|b| !is_control(**b)).count()
}

/// Whether this is a token, RFC 9110 §5.6.2.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|b| is_tchar(*b))
}

/// Whether this byte may stand in a token.
pub(super) fn is_tchar(byte: u8) -> bool {
    class(byte) != 0
}

/// What this byte is to a token; 0 when it cannot stand in one.
fn class(byte: u8) -> u8 {
    CLASS.get(usize::from(byte)).copied().unwrap_or(0)
}

/// Whether this byte is SP or HTAB.
pub(super) fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// Whether this byte is a control byte other than HTAB; CR and LF are.
pub(super) fn is_control(byte: u8) -> bool {
    (byte < b' ') & (byte != b'\t') | (byte == DEL)
}

/// The members of a comma-separated list, without the blanks around them; empty ones too.
pub(super) fn members(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| *b == b',').map(<[u8]>::trim_ascii)
}

/// Reads the value of a Connection field: whether it names close, and keep-alive.
pub(super) fn connection(value: &[u8]) -> (bool, bool) {
    members(value).fold((false, false), |(close, keep), member| {
        (close || member.eq_ignore_ascii_case(b"close"), keep || member.eq_ignore_ascii_case(b"keep-alive"))
    })
}

fn has_control(bytes: &[u8]) -> bool {
    text(bytes) < bytes.len()
}

const DEL: u8 = 0x7f;
/// Bytes judged at once.
const BLOCK: usize = 64;
/// One in every byte of a word.
const EACH: u64 = 0x0101_0101_0101_0101;
/// Below this many new bytes a walk is cheaper than a block.
const SMALL: usize = 8;
/// A byte of a token other than the underscore.
const PLAIN: u8 = 1;
const UNDERSCORE: u8 = 2;

static CLASS: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0_usize;
    while byte < 256 {
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which refuses an index out of range")]
        {
            table[byte] = match byte as u8 {
                b'_' => UNDERSCORE,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'`' | b'|' | b'~' => PLAIN,
                b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => PLAIN,
                _ => 0,
            };
        }
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\nHost: a\r\nX-A: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\nX-B: c\r\n\r\n";

    fn scan(buf: &[u8]) -> Result<Option<usize>, Fault> {
        let mut scan = Scan::default();
        match scan.first_line(buf, 4096)? {
            Some(_) => scan.rest(buf, 4096),
            None => Ok(None),
        }
    }

    /// What the rules say, byte by byte.
    fn model(buf: &[u8]) -> Result<Option<usize>, Fault> {
        let mut first = 0;
        for (i, byte) in buf.iter().enumerate() {
            let previous = if i == 0 { b'\n' } else { buf[i - 1] };
            if let Some(fault) = judge(previous, *byte) {
                return Err(fault);
            }
            if *byte == b'\n' && i >= 2 && buf[i - 2] == b'\n' && first > 0 {
                return Ok(Some(i + 1));
            }
            if *byte == b'\n' && first == 0 {
                first = i + 1;
            }
        }
        Ok(None)
    }

    #[test]
    fn any_byte_at_any_place_is_judged_as_the_rules_say() {
        assert_eq!(scan(HEAD), Ok(Some(HEAD.len())));
        for at in 0..HEAD.len() {
            for byte in 0..=u8::MAX {
                let mut changed = HEAD.to_vec();
                changed[at] = byte;
                assert_eq!(scan(&changed), model(&changed), "{byte:#x} at {at}");
            }
        }
    }

    #[test]
    fn text_ends_at_the_first_control_byte_wherever_it_stands() {
        for length in 0..70 {
            for at in 0..=length {
                for control in [0, 8, b'\n', b'\r', 0x1f, DEL] {
                    let mut bytes = [b'\t', b'a', 0x80, 0xff, b' '].repeat(14)[..length].to_vec();
                    assert_eq!(text(&bytes), length);
                    bytes.insert(at, control);
                    assert_eq!(text(&bytes), at, "{control:#x} in {length}");
                }
            }
        }
    }

    #[test]
    fn a_token_has_only_the_bytes_of_the_rfc() {
        for byte in 0..=u8::MAX {
            let expected = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            assert_eq!(is_tchar(byte), expected, "{byte:#x}");
            assert_eq!(is_token(&[b'a', byte]), expected, "{byte:#x}");
        }
        assert!(!is_token(b""));
    }

    #[test]
    fn no_line_is_read_that_a_scan_refuses() {
        for at in 0..12 {
            for byte in 0..=u8::MAX {
                let mut lines = b"X-A: b c\r\nY: z\r\n\r\n".to_vec();
                lines[at] = byte;
                let mut from = 0;
                let end = loop {
                    match read(&lines, from) {
                        Some(Line::Field(_, _, next)) => from = next,
                        Some(Line::Empty(end)) => break Some(end),
                        None => break None,
                    }
                };
                let whole = [b"GET / HTTP/1.1\r\n", lines.as_slice()].concat();
                if let Some(end) = end {
                    assert_eq!(scan(&whole), Ok(Some(end + 16)), "{byte:#x} at {at}");
                }
            }
        }
    }
}
