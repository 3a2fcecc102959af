//! Counts the frames that an HTTP/2 client sends, without reading what is in them.
//!
//! Threat: exhaustion by frames that cost the client nothing: rapid reset (CVE-2023-44487), SETTINGS, PING, PRIORITY and
//! WINDOW_UPDATE floods (CVE-2019-9512 and its kin), CONTINUATION floods (CVE-2024-27316), empty DATA. h2 bounds some of
//! them; this bounds all of them in one place, and the connection ends with GOAWAY ENHANCE_YOUR_CALM (RFC 9113 §7).

/// The kinds of frames that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// RST_STREAM.
    Reset,
    /// SETTINGS.
    Settings,
    /// PING.
    Ping,
    /// PRIORITY and PRIORITY_UPDATE, and types that nobody knows.
    Priority,
    /// WINDOW_UPDATE.
    WindowUpdate,
    /// CONTINUATION.
    Continuation,
    /// DATA without a byte that does not end its stream.
    EmptyData,
}

/// Follows the 9-byte frame heads of one direction.
#[derive(Debug)]
pub struct Meter {
    /// Bytes of the preface or of a frame's payload that are still to be passed over.
    skip: usize,
    head: [u8; HEAD],
    filled: usize,
    /// Tokens left in the current window, by kind.
    tokens: [u32; KINDS],
    window: u64,
}

impl Meter {
    /// A connection of which nothing has been read.
    pub fn new() -> Self {
        Meter { skip: PREFACE, head: [0; HEAD], filled: 0, tokens: ALLOWED, window: 0 }
    }

    /// Follows bytes that arrived at `now` (milliseconds). Every stream that was answered in whole since the last call earns
    /// its client a few frames more, and every KiB that was `sent` to it a WINDOW_UPDATE.
    pub fn see(&mut self, mut bytes: &[u8], now: u64, answered: u32, sent: u64) -> Result<(), Flood> {
        let window = now / WINDOW_MS;
        if window != self.window {
            self.window = window;
            self.tokens = ALLOWED;
        }
        for tokens in &mut self.tokens {
            *tokens = tokens.saturating_add(answered.saturating_mul(EARNED));
        }
        if let Some(updates) = self.tokens.get_mut(Flood::WindowUpdate as usize) {
            *updates = updates.saturating_add(u32::try_from(sent / UPDATE_EVERY).unwrap_or(u32::MAX));
        }
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = self.skip.min(bytes.len());
                self.skip = self.skip.saturating_sub(n);
                bytes = bytes.get(n..).unwrap_or_default();
                continue;
            }
            let wanted = HEAD.saturating_sub(self.filled).min(bytes.len());
            let (part, rest) = bytes.split_at_checked(wanted).unwrap_or((bytes, &[]));
            if let Some(place) = self.head.get_mut(self.filled..self.filled.saturating_add(wanted)) {
                place.copy_from_slice(part);
            }
            self.filled = self.filled.saturating_add(wanted);
            bytes = rest;
            if self.filled == HEAD {
                self.filled = 0;
                self.frame()?;
            }
        }
        Ok(())
    }

    fn frame(&mut self) -> Result<(), Flood> {
        let [a, b, c, kind, flags, ..] = self.head;
        let length = u32::from_be_bytes([0, a, b, c]);
        self.skip = usize::try_from(length).unwrap_or(usize::MAX);
        let flood = match kind {
            DATA if length == 0 && flags & END_STREAM == 0 => Flood::EmptyData,
            DATA | HEADERS | GOAWAY => return Ok(()),
            RST_STREAM => Flood::Reset,
            SETTINGS => Flood::Settings,
            PING => Flood::Ping,
            WINDOW_UPDATE => Flood::WindowUpdate,
            CONTINUATION => Flood::Continuation,
            _ => Flood::Priority,
        };
        match self.tokens.get_mut(flood as usize) {
            Some(tokens) if *tokens > 0 => {
                *tokens = tokens.saturating_sub(1);
                Ok(())
            }
            Some(_) | None => Err(flood),
        }
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

/// GOAWAY with ENHANCE_YOUR_CALM, RFC 9113 §6.8.
pub const CALM: [u8; 17] = [0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0x0b];

const HEAD: usize = 9;
const PREFACE: usize = 24;
const KINDS: usize = 7;
const WINDOW_MS: u64 = 10_000;
/// Frames of each kind that cost nothing, every 10 s, in the order of [`Flood`]. Browsers stay below a tenth of it.
const ALLOWED: [u32; KINDS] = [100, 30, 60, 500, 4000, 100, 100];
/// Frames of each kind that an answered stream earns.
const EARNED: u32 = 8;
/// Bytes that we send and a client may answer with a WINDOW_UPDATE. Go's client sends two for every 4 KiB that it has read.
pub const UPDATE_EVERY: u64 = 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.resize(HEAD + payload, 0);
        bytes
    }

    fn flood(kind: u8, payload: usize, count: usize) -> Result<(), Flood> {
        let mut bytes = vec![0; PREFACE];
        for _ in 0..count {
            bytes.extend(frame(kind, 0, payload));
        }
        let mut meter = Meter::new();
        bytes.chunks(7).try_for_each(|part| meter.see(part, 1, 0, 0))
    }

    #[test]
    fn each_kind_of_flood_is_seen() {
        for (kind, payload, expected) in [
            (RST_STREAM, 4, Flood::Reset),
            (SETTINGS, 0, Flood::Settings),
            (PING, 8, Flood::Ping),
            (2, 5, Flood::Priority),
            (0xfa, 0, Flood::Priority),
            (WINDOW_UPDATE, 4, Flood::WindowUpdate),
            (CONTINUATION, 1, Flood::Continuation),
            (DATA, 0, Flood::EmptyData),
        ] {
            assert_eq!(flood(kind, payload, 20), Ok(()));
            assert_eq!(flood(kind, payload, 5000), Err(expected));
        }
    }

    #[test]
    fn data_and_headers_are_never_a_flood() {
        assert_eq!(flood(DATA, 1, 20_000), Ok(()));
        assert_eq!(flood(HEADERS, 30, 20_000), Ok(()));
    }

    #[test]
    fn answered_streams_and_time_earn_frames() {
        let mut meter = Meter::new();
        meter.see(&[0; PREFACE], 0, 0, 0).unwrap();
        for n in 0..10_000 {
            meter.see(&frame(PING, 0, 8), 0, 1, 0).unwrap_or_else(|_| panic!("ping {n}"));
        }
        let mut meter = Meter::new();
        meter.see(&[0; PREFACE], 0, 0, 0).unwrap();
        for second in 0..1000 {
            meter.see(&frame(PING, 0, 8), second * 1000, 0, 0).unwrap();
        }
    }

    #[test]
    fn a_fast_download_may_update_its_windows_as_often_as_it_reads() {
        let mut meter = Meter::new();
        meter.see(&[0; PREFACE], 0, 0, 0).unwrap();
        for n in 0..50_000 {
            meter.see(&frame(WINDOW_UPDATE, 0, 4).repeat(2), 0, 0, 4096).unwrap_or_else(|_| panic!("after {n} times 4 KiB"));
        }
        assert_eq!((0..200_000).try_for_each(|_| meter.see(&frame(WINDOW_UPDATE, 0, 4), 0, 0, 0)), Err(Flood::WindowUpdate));
    }
}
