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
