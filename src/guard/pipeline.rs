//! A whole client stream: head, body, next head. RFC 9112 §9.3.2.
//!
//! The same parts that the HTTP/1 driver uses, put together without sockets, deadlines or policy: what `palisade explain`
//! shows of a capture, and what tests and fuzzing compare with other readers. It copies each head; the driver does not.

use super::{Framing, Limits, chunked::Chunked, head::Head, head::HeadScan};
use crate::refusal::Refusal;

/// What a run of bytes turned out to be.
#[derive(Clone, Debug)]
pub enum Event {
    /// A head.
    Head {
        /// Offset of its first byte in the stream, empty lines in front included.
        at: u64,
        /// What it says.
        head: Head,
        /// Its bytes, to which the spans of `head` refer.
        bytes: Vec<u8>,
    },
    /// A run of body data; a body may come in any number of runs.
    Data {
        /// The bytes, without any framing.
        bytes: Vec<u8>,
    },
    /// The end of a message: the next byte is that of another.
    End {
        /// Offset behind its last byte in the stream.
        at: u64,
    },
    /// The stream has no single reading from here on.
    Refused {
        /// Why.
        refusal: Refusal,
    },
}

/// A client stream that is being read.
#[derive(Debug)]
pub struct Pipeline {
    limits: Limits,
    state: State,
    /// Offset behind the last byte that is dealt with.
    at: u64,
}

#[derive(Debug)]
enum State {
    Head(Vec<u8>, HeadScan),
    Length(u64),
    Chunked(Chunked),
    Refused,
}

impl Pipeline {
    /// The start of a connection.
    pub fn new(limits: Limits) -> Self {
        Pipeline { limits, state: State::start(), at: 0 }
    }

    /// Reads on. Behind a refusal nothing is ever read.
    pub fn feed(&mut self, mut input: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !input.is_empty() {
            match self.step(input, &mut events) {
                Ok(consumed) => {
                    self.at += consumed as u64;
                    input = input.get(consumed..).unwrap_or_default();
                }
                Err(refusal) => {
                    self.state = State::Refused;
                    events.push(Event::Refused { refusal });
                }
            }
        }
        events
    }

    /// Whether the stream stands between two messages: its end here cuts none off.
    pub fn is_between_messages(&self) -> bool {
        match &self.state {
            State::Head(held, _) => held.is_empty(),
            State::Length(_) | State::Chunked(_) | State::Refused => false,
        }
    }

    fn step(&mut self, input: &[u8], events: &mut Vec<Event>) -> Result<usize, Refusal> {
        let (consumed, done) = match &mut self.state {
            State::Refused => return Ok(input.len()),
            State::Head(held, scan) => {
                let before = held.len();
                held.extend_from_slice(input);
                let mut head = Head::new();
                if !scan.advance(held, &self.limits, &mut head)? {
                    return Ok(input.len());
                }
                let mut bytes = std::mem::take(held);
                bytes.truncate(head.len);
                let consumed = head.len.saturating_sub(before);
                let at = self.at.saturating_sub(before as u64);
                self.state = match head.framing {
                    Framing::None | Framing::Length(0) => State::start(),
                    Framing::Length(length) => State::Length(length),
                    Framing::Chunked => State::Chunked(Chunked::new()),
                };
                let done = matches!(self.state, State::Head(..));
                events.push(Event::Head { at, head, bytes });
                (consumed, done)
            }
            State::Length(left) => {
                let run = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left = left.saturating_sub(run as u64);
                let done = *left == 0;
                events.push(Event::Data { bytes: input.get(..run).unwrap_or_default().to_vec() });
                (run, done)
            }
            State::Chunked(chunked) => {
                let piece = chunked.advance(input, &self.limits)?;
                if !piece.data.is_empty() {
                    events.push(Event::Data { bytes: input.get(piece.data).unwrap_or_default().to_vec() });
                }
                (piece.consumed, piece.done)
            }
        };
        if done {
            self.state = State::start();
            events.push(Event::End { at: self.at + consumed as u64 });
        }
        Ok(consumed)
    }
}

impl State {
    fn start() -> State {
        State::Head(Vec::new(), HeadScan::default())
    }
}
