//! Where frames of a WebSocket begin and end (RFC 6455 §5.2), and the one frame that Palisade sends itself.
//!
//! Threat: none of its own; it keeps our farewell from being read as a part of the application's frame. Sans-IO. Lengths are
//! counted, payloads are neither kept nor unmasked: what is in them is between client and application.

/// Follows the frames of one direction.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    /// The part of a head that has come.
    head: [u8; LONGEST_HEAD],
    filled: usize,
    /// Bytes of payload that are still to come.
    payload: u64,
    /// The frame that is being read is a Close frame.
    closing: bool,
    /// A Close frame has ended: nothing may follow in this direction (§5.5.1).
    closed: bool,
}

impl Frames {
    /// Counts bytes that are passed on.
    pub fn advance(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = rest.get(self.advance_to_end(rest)..).unwrap_or_default();
        }
    }

    /// Counts bytes up to the end of the frame that they are in, and says how many those are.
    pub fn advance_to_end(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0usize;
        while self.payload == 0 {
            let Some(&byte) = bytes.get(used) else { return used };
            used = used.saturating_add(1);
            if let Some(place) = self.head.get_mut(self.filled) {
                *place = byte;
            }
            self.filled = self.filled.saturating_add(1);
            let Some(payload) = payload(self.head.get(..self.filled).unwrap_or_default()) else { continue };
            self.closing = self.head.first().is_some_and(|first| first & OPCODE == CLOSE_OPCODE);
            (self.filled, self.payload) = (0, payload);
            if payload == 0 {
                break;
            }
        }
        let left = bytes.len().saturating_sub(used);
        let here = usize::try_from(self.payload).unwrap_or(usize::MAX).min(left);
        self.payload = self.payload.saturating_sub(here as u64);
        if self.is_between() {
            self.closed |= std::mem::take(&mut self.closing);
        }
        used.saturating_add(here)
    }

    /// A frame of ours can go out here: also between the fragments of a message, as it is a control frame (§5.4).
    pub fn is_between(&self) -> bool {
        self.filled == 0 && self.payload == 0
    }

    /// This side has said goodbye.
    pub fn has_closed(&self) -> bool {
        self.closed
    }
}

/// The length of the payload behind a whole head; `None` while the head is not whole.
fn payload(head: &[u8]) -> Option<u64> {
    let [_, second, rest @ ..] = head else { return None };
    let mask = if second & MASKED == 0 { 0 } else { MASK };
    let (length, used) = match second & LENGTH {
        126 => (u64::from(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?)), 2),
        127 => (u64::from_be_bytes(rest.get(..8)?.try_into().ok()?), 8),
        short => (u64::from(short), 0),
    };
    (rest.len() >= mask.saturating_add(used)).then_some(length)
}

/// A whole Close frame of a server: 1012, service restart (IANA's registry of close codes, RFC 6455 §11.7). Clients take it as
/// an invitation to come back, ActionCable's does so after a pause that it draws by lot.
pub const RESTARTING: [u8; 4] = [0x88, 2, 0x03, 0xf4];

const OPCODE: u8 = 0x0f;
const CLOSE_OPCODE: u8 = 8;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;
const MASK: usize = 4;
/// Two bytes, a length of eight, a mask of four.
const LONGEST_HEAD: usize = 14;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(opcode: u8, length: usize, mask: bool) -> Vec<u8> {
        let mut bytes = vec![0x80 | opcode];
        let bit = if mask { 0x80 } else { 0 };
        match length {
            0..=125 => bytes.push(bit | length as u8),
            126..=65_535 => {
                bytes.push(bit | 126);
                bytes.extend_from_slice(&(length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(bit | 127);
                bytes.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        bytes.extend(std::iter::repeat_n(0x88, length + if mask { 4 } else { 0 }));
        bytes
    }

    #[test]
    fn the_end_of_every_frame_is_found_in_every_split() {
        for mask in [false, true] {
            for length in [0, 1, 125, 126, 127, 65_535, 65_536] {
                let bytes = frame(2, length, mask);
                for cut in (0..bytes.len()).take(20).chain([bytes.len() - 1]) {
                    let mut frames = Frames::default();
                    frames.advance(&bytes[..cut]);
                    assert_eq!(frames.is_between(), cut == 0, "{length} {mask} {cut}");
                    frames.advance(&bytes[cut..]);
                    assert!(frames.is_between() && !frames.has_closed(), "{length} {mask} {cut}");
                }
            }
        }
    }

    #[test]
    fn bytes_of_the_next_frame_are_left() {
        let mut frames = Frames::default();
        let (first, next) = (frame(1, 200, false), frame(1, 3, false));
        frames.advance(&first[..50]);
        assert_eq!(frames.advance_to_end(&[&first[50..], &next].concat()), first.len() - 50);
        assert!(frames.is_between());
        assert_eq!(frames.advance_to_end(&[]), 0);
    }

    #[test]
    fn only_a_whole_close_frame_is_a_goodbye() {
        let mut frames = Frames::default();
        // A payload that looks like one is none.
        frames.advance(&frame(1, 300, false));
        assert!(!frames.has_closed());
        let (last, most) = RESTARTING.split_last().unwrap();
        frames.advance(most);
        assert!(!frames.has_closed());
        frames.advance(&[*last]);
        assert!(frames.has_closed() && frames.is_between());
        let mut empty = Frames::default();
        empty.advance(&frame(8, 0, true));
        assert!(empty.has_closed());
    }
}
