//! The chunked coding: sizes, extensions, data, trailers. RFC 9112 §7.1; *smuggling*, *exhaustion*.
//!
//! Place: the HTTP/1 driver runs body bytes through it; Puma never sees a chunk, an extension or a trailer. Puma read
//! `0x5` as 0 and skipped whatever stood where CRLF belongs (CVE-2022-24790), took trailers for a request
//! (CVE-2023-40175) and buffered endless extensions (CVE-2024-21647). Recipients that skip extensions without reading
//! them disagree about where the line ends, so extensions are read to the letter. A refusal closes the connection.

use std::ops::Range;

use super::{Limits, line, rule::Rule};
use crate::refusal::Refusal;

/// How far a chunked body has been read.
#[derive(Clone, Copy, Debug)]
pub struct Chunked {
    state: State,
    answer: bool,
    digits: u8,
    /// Size of the chunk while its line is read, then what is left of its data.
    left: u64,
    /// Bytes of this chunk line, or of this trailer's name.
    line: usize,
    extensions: usize,
    trailer: usize,
    trailer_fields: usize,
}

/// One step through a chunked body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes of the input that are dealt with.
    pub consumed: usize,
    /// The run of data among them, at their end; may be empty.
    pub data: Range<usize>,
    /// The body is complete, its trailer section included.
    pub done: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    ChunkLine(Part),
    ChunkLineLf,
    Data,
    DataCr,
    DataLf,
    Trailer(TrailerPart),
    Done,
}

/// Where in a chunk line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Size,
    /// Blanks that only a `;` gives a meaning.
    BeforeExtension,
    BeforeName,
    Name,
    AfterName,
    BeforeValue,
    Value,
    Quoted,
    Escaped,
    AfterQuoted,
}

/// Where in the trailer section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TrailerPart {
    Start,
    Name,
    Value,
    Lf,
    LastLf,
}

impl Chunked {
    /// The start of a request's body.
    pub fn new() -> Self {
        Chunked {
            state: State::ChunkLine(Part::Size),
            answer: false,
            digits: 0,
            left: 0,
            line: 0,
            extensions: 0,
            trailer: 0,
            trailer_fields: 0,
        }
    }

    /// The start of an answer's body: every fault is Puma's, and rule P4.
    pub fn of_answer() -> Self {
        Chunked { answer: true, ..Chunked::new() }
    }

    /// Takes one step: lines up to the next run of data, and as much of that as there is.
    ///
    /// Call again with the rest; nothing consumed and not done means that more input is needed.
    pub fn advance(&mut self, input: &[u8], limits: &Limits) -> Result<Piece, Refusal> {
        let mut at = 0;
        while let Some(byte) = input.get(at) {
            if self.state == State::Done {
                break;
            }
            if self.state == State::Data {
                let room = input.len() - at;
                let run = usize::try_from(self.left).map_or(room, |left| left.min(room));
                self.left = self.left.saturating_sub(run as u64);
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                return Ok(Piece { consumed: at + run, data: at..at + run, done: false });
            }
            self.state = self.next(*byte, limits).map_err(|refusal| match self.answer {
                true => Refusal::UpstreamBad(Rule::P4),
                false => refusal,
            })?;
            at += 1;
        }
        Ok(Piece { consumed: at, data: at..at, done: self.state == State::Done })
    }

    fn next(&mut self, byte: u8, limits: &Limits) -> Result<State, Refusal> {
        match self.state {
            State::ChunkLine(part) => self.chunk_line(part, byte, limits),
            State::ChunkLineLf if self.left == 0 => ending(byte, State::Trailer(TrailerPart::Start)),
            State::ChunkLineLf => ending(byte, State::Data),
            State::DataCr if byte == b'\r' => Ok(State::DataLf),
            State::DataLf if byte == b'\n' => {
                self.digits = 0;
                self.line = 0;
                Ok(State::ChunkLine(Part::Size))
            }
            State::DataCr | State::DataLf => Err(Refusal::BadFraming(Rule::G15)),
            State::Trailer(part) => self.trailer(part, byte, limits),
            State::Data | State::Done => Ok(self.state),
        }
    }

    /// `1*HEXDIG *( BWS ";" BWS name [ BWS "=" BWS value ] )`, to its CR.
    fn chunk_line(&mut self, part: Part, byte: u8, limits: &Limits) -> Result<State, Refusal> {
        const MALFORMED: Refusal = Refusal::BadFraming(Rule::G14);
        if byte == b'\n' {
            return Err(Refusal::BadFraming(Rule::G1));
        }
        if byte == b'\r' {
            return match part {
                Part::Size if self.digits > 0 => Ok(State::ChunkLineLf),
                Part::Name | Part::Value | Part::AfterQuoted => Ok(State::ChunkLineLf),
                Part::Size
                | Part::BeforeExtension
                | Part::BeforeName
                | Part::AfterName
                | Part::BeforeValue
                | Part::Quoted
                | Part::Escaped => Err(MALFORMED),
            };
        }
        self.line += 1;
        if self.line > limits.chunk_line {
            return Err(MALFORMED);
        }
        if part == Part::Size && byte.is_ascii_hexdigit() {
            self.digits += 1;
            self.left = self.left << 4 | u64::from(char::from(byte).to_digit(16).unwrap_or(0));
            return if self.digits <= DIGITS && self.left <= LARGEST { Ok(State::ChunkLine(Part::Size)) } else { Err(MALFORMED) };
        }
        self.extensions += 1;
        if self.extensions > limits.chunk_extensions {
            return Err(MALFORMED);
        }
        let next = match (part, byte) {
            (Part::Size, _) if self.digits == 0 => None,
            (Part::Size | Part::BeforeExtension | Part::Value | Part::AfterQuoted, b';') => Some(Part::BeforeName),
            (Part::Size | Part::BeforeExtension | Part::Value | Part::AfterQuoted, b' ' | b'\t') => Some(Part::BeforeExtension),
            (Part::Name | Part::AfterName, b';') => Some(Part::BeforeName),
            (Part::Name | Part::AfterName, b'=') => Some(Part::BeforeValue),
            (Part::Name | Part::AfterName, b' ' | b'\t') => Some(Part::AfterName),
            (Part::BeforeName | Part::BeforeValue, b' ' | b'\t') => Some(part),
            (Part::BeforeName | Part::Name, byte) if line::is_tchar(byte) => Some(Part::Name),
            (Part::BeforeValue, b'"') => Some(Part::Quoted),
            (Part::BeforeValue | Part::Value, byte) if line::is_tchar(byte) => Some(Part::Value),
            (Part::Quoted, b'"') => Some(Part::AfterQuoted),
            (Part::Quoted, b'\\') => Some(Part::Escaped),
            (Part::Quoted | Part::Escaped, byte) if !line::is_control(byte) => Some(Part::Quoted),
            _ => None,
        };
        next.map(State::ChunkLine).ok_or(MALFORMED)
    }

    /// `*( token ":" value CRLF ) CRLF`.
    fn trailer(&mut self, part: TrailerPart, byte: u8, limits: &Limits) -> Result<State, Refusal> {
        const TOO_LARGE: Refusal = Refusal::HeaderTooLarge(Rule::G16Size);
        self.trailer += 1;
        if self.trailer > limits.trailer {
            return Err(TOO_LARGE);
        }
        let next = match (part, byte) {
            (TrailerPart::Lf, byte) => return ending(byte, State::Trailer(TrailerPart::Start)),
            (TrailerPart::LastLf, byte) => return ending(byte, State::Done),
            (TrailerPart::Start | TrailerPart::Name | TrailerPart::Value, b'\n') => return Err(Refusal::BadFraming(Rule::G1)),
            (TrailerPart::Start, b'\r') => TrailerPart::LastLf,
            (TrailerPart::Value, b'\r') => TrailerPart::Lf,
            (TrailerPart::Value, byte) if !line::is_control(byte) => TrailerPart::Value,
            (TrailerPart::Name, b':') => TrailerPart::Value,
            (TrailerPart::Name, byte) if line::is_tchar(byte) => {
                self.line += 1;
                TrailerPart::Name
            }
            (TrailerPart::Start, byte) if line::is_tchar(byte) => {
                self.trailer_fields += 1;
                self.line = 1;
                TrailerPart::Name
            }
            (TrailerPart::Start | TrailerPart::Name | TrailerPart::Value, _) => return Err(Refusal::BadFraming(Rule::G16)),
        };
        if self.trailer_fields > limits.trailer_fields || next == TrailerPart::Name && self.line > limits.name {
            return Err(TOO_LARGE);
        }
        Ok(State::Trailer(next))
    }
}

impl Default for Chunked {
    fn default() -> Self {
        Chunked::new()
    }
}

/// A CR has been read: only LF can follow.
fn ending(byte: u8, next: State) -> Result<State, Refusal> {
    if byte == b'\n' { Ok(next) } else { Err(Refusal::BadFraming(Rule::G1)) }
}

/// Digits of a chunk size, zeros in front included; Puma takes any number of these.
const DIGITS: u8 = 16;
/// Largest chunk: sizes above 32 bits wrap around in some recipients.
const LARGEST: u64 = 0xffff_ffff;

#[cfg(test)]
mod tests {
    use super::*;

    /// The data, and how many bytes of `input` belong to the body; `None` when its end is not there.
    fn read(mut chunked: Chunked, pieces: &[&[u8]]) -> Result<Option<(Vec<u8>, usize)>, Refusal> {
        let (mut data, mut length) = (Vec::new(), 0);
        for piece in pieces {
            let mut rest = *piece;
            loop {
                let step = chunked.advance(rest, &Limits::default())?;
                data.extend_from_slice(&rest[step.data.clone()]);
                length += step.consumed;
                rest = &rest[step.consumed..];
                if step.done {
                    return Ok(Some((data, length)));
                }
                if step.consumed == 0 {
                    break;
                }
            }
            assert!(rest.is_empty());
        }
        Ok(None)
    }

    const BODY: &[u8] = b"5;a=\"b\"\r\nhello\r\n06\r\n world\r\n0;c\r\nX-A: b\r\nX-B:\r\n\r\n";

    #[test]
    fn a_body_is_small_while_it_is_read() {
        assert!(size_of::<Chunked>() <= 64);
    }

    #[test]
    fn one_call_returns_one_run_of_data() {
        let mut chunked = Chunked::new();
        let step = chunked.advance(BODY, &Limits::default());
        assert_eq!(step, Ok(Piece { consumed: 14, data: 9..14, done: false }));
        let step = chunked.advance(&BODY[14..], &Limits::default());
        assert_eq!(step, Ok(Piece { consumed: 12, data: 6..12, done: false }));
        let step = chunked.advance(&BODY[26..], &Limits::default());
        let rest = BODY.len() - 26;
        assert_eq!(step, Ok(Piece { consumed: rest, data: rest..rest, done: true }));
    }

    #[test]
    fn bytes_behind_the_body_stay_for_the_next_request() {
        let stream = [BODY, b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(read(Chunked::new(), &[&stream]), Ok(Some((b"hello world".to_vec(), BODY.len()))));
        let mut chunked = Chunked::new();
        assert_eq!(chunked.advance(b"0\r\n\r\nG", &Limits::default()), Ok(Piece { consumed: 5, data: 5..5, done: true }));
        assert_eq!(chunked.advance(b"G", &Limits::default()), Ok(Piece { consumed: 0, data: 0..0, done: true }));
    }

    #[test]
    fn every_cut_into_three_reads_the_same() {
        for one in 0..BODY.len() {
            for other in one..BODY.len() {
                let pieces = [&BODY[..one], &BODY[one..other], &BODY[other..]];
                assert_eq!(read(Chunked::new(), &pieces), Ok(Some((b"hello world".to_vec(), BODY.len()))), "{one} {other}");
            }
        }
    }

    #[test]
    fn a_body_that_is_cut_off_is_never_complete() {
        for end in 0..BODY.len() {
            assert_eq!(read(Chunked::new(), &[&BODY[..end]]), Ok(None), "{end}");
        }
    }

    #[test]
    fn every_single_byte_of_a_size_line_is_either_a_digit_or_refused() {
        for byte in 0..=u8::MAX {
            let read = read(Chunked::new(), &[&[byte, b'\r', b'\n']]);
            assert_eq!(read.is_ok(), byte.is_ascii_hexdigit(), "{byte:#x}");
        }
    }

    #[test]
    fn the_limits_of_a_size_line_are_exact() {
        let line = |length: usize| format!("1;a={}\r\nx\r\n", "b".repeat(length - 4));
        assert_eq!(read(Chunked::new(), &[line(256).as_bytes()]), Ok(None));
        assert_eq!(read(Chunked::new(), &[line(257).as_bytes()]), Err(Refusal::BadFraming(Rule::G14)));
        assert_eq!(read(Chunked::new(), &[line(129).repeat(32).as_bytes()]), Ok(None), "32 times 128 bytes of extension");
        assert_eq!(read(Chunked::new(), &[line(129).repeat(33).as_bytes()]), Err(Refusal::BadFraming(Rule::G14)));
        assert_eq!(read(Chunked::new(), &[b"00000000ffffffff\r\n"]), Ok(None));
        assert_eq!(read(Chunked::new(), &[b"0000000100000000\r\n"]), Err(Refusal::BadFraming(Rule::G14)));
    }

    #[test]
    fn the_limits_of_a_trailer_section_are_exact() {
        let fields = |n: usize| format!("0\r\n{}\r\n", "X: y\r\n".repeat(n));
        assert!(matches!(read(Chunked::new(), &[fields(32).as_bytes()]), Ok(Some(_))));
        assert_eq!(read(Chunked::new(), &[fields(33).as_bytes()]), Err(Refusal::HeaderTooLarge(Rule::G16Size)));
        let section = |n: usize| format!("0\r\nX:{}\r\n\r\n", "y".repeat(n - 6));
        assert!(matches!(read(Chunked::new(), &[section(8192).as_bytes()]), Ok(Some(_))));
        assert_eq!(read(Chunked::new(), &[section(8193).as_bytes()]), Err(Refusal::HeaderTooLarge(Rule::G16Size)));
    }

    #[test]
    fn every_fault_in_an_answer_is_pumas() {
        for body in ["0x5\r\n", "5\nhello", "5\r\nhelloXX", "0\r\nX\r\n\r\n", "five\r\n"] {
            assert_eq!(read(Chunked::of_answer(), &[body.as_bytes()]), Err(Refusal::UpstreamBad(Rule::P4)), "{body:?}");
        }
        assert_eq!(read(Chunked::of_answer(), &[BODY]), Ok(Some((b"hello world".to_vec(), BODY.len()))));
    }
}
