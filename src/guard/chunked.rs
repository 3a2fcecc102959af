//! Stand-in for the strict reading of chunks.
use std::ops::Range;

use super::Limits;
use crate::{guard::rule::Rule, refusal::Refusal};

#[derive(Debug, Default)]
pub struct Chunked {
    state: State,
    line: Vec<u8>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Size,
    Data(u64),
    End(u8),
    Trailer,
    Done,
}

#[derive(Debug)]
pub struct Piece {
    pub consumed: usize,
    pub data: Range<usize>,
    pub done: bool,
}

impl Chunked {
    pub fn new() -> Self {
        Chunked::default()
    }

    pub fn advance(&mut self, input: &[u8], limits: &Limits) -> Result<Piece, Refusal> {
        let bad = Err(Refusal::BadFraming(Rule::G14));
        let mut at = 0usize;
        while let Some(byte) = input.get(at) {
            match &mut self.state {
                State::Size => {
                    at += 1;
                    self.line.push(*byte);
                    if self.line.len() > limits.chunk_line {
                        return bad;
                    }
                    if self.line.ends_with(b"\r\n") {
                        let text = std::str::from_utf8(self.line.get(..self.line.len() - 2).unwrap_or_default()).unwrap_or("x");
                        let Ok(size) = u64::from_str_radix(text, 16) else { return bad };
                        self.line.clear();
                        self.state = if size == 0 { State::Trailer } else { State::Data(size) };
                    }
                }
                State::Data(left) => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len() - at);
                    *left -= n as u64;
                    if *left == 0 {
                        self.state = State::End(0);
                    }
                    return Ok(Piece { consumed: at + n, data: at..at + n, done: false });
                }
                State::End(n) => {
                    at += 1;
                    match (*n, *byte) {
                        (0, b'\r') => *n = 1,
                        (1, b'\n') => self.state = State::Size,
                        _ => return bad,
                    }
                }
                State::Trailer => {
                    at += 1;
                    self.line.push(*byte);
                    if self.line == b"\r\n" {
                        self.state = State::Done;
                        return Ok(Piece { consumed: at, data: at..at, done: true });
                    }
                    if self.line.ends_with(b"\r\n") {
                        self.line.clear();
                    }
                }
                State::Done => break,
            }
        }
        Ok(Piece { consumed: at, data: at..at, done: matches!(self.state, State::Done) })
    }
}
