//! The few lines of RFC 6455 that a client of an echo needs.

use super::client::Client;

/// The handshake of RFC 6455 §1.3, whose answer is known: `s3pPLMBiTxaQ9kYGzzhZRbK+xOo=`.
pub const HANDSHAKE: &str = "GET /cable HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nOrigin: https://localhost\r\n\r\n";

pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A masked client frame. Up to 65,535 bytes.
pub fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = vec![0x80 | opcode];
    match u8::try_from(payload.len()) {
        Ok(length) if length < 126 => bytes.push(0x80 | length),
        _ => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
        }
    }
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// Shakes hands and returns an open socket.
pub fn open(mut client: Client) -> Client {
    let answer = client.ask(HANDSHAKE);
    assert_eq!(answer.status, 101, "{answer:?}");
    assert_eq!(answer.field("sec-websocket-accept"), Some(ACCEPT));
    assert!(answer.field("upgrade").is_some_and(|v| v.eq_ignore_ascii_case("websocket")));
    assert!(answer.field("connection").is_some_and(|v| v.eq_ignore_ascii_case("upgrade")));
    client
}

/// Sends `payload` and fails unless it comes back.
pub fn echo(client: &mut Client, payload: &[u8]) {
    client.send(frame(2, payload));
    let head = client.take(2);
    assert_eq!(head[0], 0x82);
    let length = if head[1] < 126 { usize::from(head[1]) } else { usize::from(u16::from_be_bytes(client.take(2).try_into().unwrap())) };
    assert_eq!(client.take(length), payload);
}
