//! The opening handshake of WebSocket (RFC 6455 §4.2.1): the only upgrade that passes.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};

/// Extension of a request that is a well-formed WebSocket handshake. Without it, upgrade fields never reach Puma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upgrade;

/// Extension of an HTTP/2 request that was an extended CONNECT for WebSocket (RFC 8441 §4). It is a handshake or it is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extended;

/// Everything that RFC 8441 §5 leaves of the handshake holds: there is no key, as HTTP/2 needs no proof that it was understood.
pub fn is_extended(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::GET && !has_body(headers) && only(headers, &header::SEC_WEBSOCKET_VERSION).is_some_and(|v| v.as_bytes() == b"13")
}

/// Adds what an HTTP/1.1 handshake has besides.
pub fn complete(headers: &mut HeaderMap) {
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(key) = HeaderValue::from_str(&key()) {
        headers.insert(header::SEC_WEBSOCKET_KEY, key);
    }
}

/// 16 random bytes in base64. The last digit carries two bits only.
fn key() -> String {
    let digit = |_| fastrand::choice(DIGITS.iter()).map_or('A', |digit| char::from(*digit));
    (0..21).map(digit).chain(fastrand::choice(*b"AQgw").map(char::from)).chain("==".chars()).collect()
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Everything that the RFC asks of a handshake holds; `Connection` is judged by the caller, who reads its options anyway.
pub fn is_websocket(method: &Method, version: Version, headers: &HeaderMap) -> bool {
    method == Method::GET
        && version == Version::HTTP_11
        && !has_body(headers)
        && only(headers, &header::UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && only(headers, &header::SEC_WEBSOCKET_VERSION).is_some_and(|v| v.as_bytes() == b"13")
        && only(headers, &header::SEC_WEBSOCKET_KEY).is_some_and(|v| is_key(v.as_bytes()))
}

/// Some framing announces a body: bytes behind such a head could be read as body or as frames.
fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING) || headers.get_all(header::CONTENT_LENGTH).iter().any(|v| v != "0")
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

/// 16 bytes in base64: 22 digits and two signs of padding.
fn is_key(key: &[u8]) -> bool {
    key.len() == 24
        && key.strip_suffix(b"==").is_some_and(|digits| digits.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshake() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::UPGRADE, HeaderValue::from_static("WebSocket"));
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        headers
    }

    #[test]
    fn the_handshake_of_the_rfc_is_one() {
        assert!(is_websocket(&Method::GET, Version::HTTP_11, &handshake()));
    }

    #[test]
    fn an_extended_handshake_is_completed_to_the_one_of_the_rfc() {
        let mut headers = HeaderMap::new();
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        assert!(is_extended(&Method::GET, &headers) && !is_websocket(&Method::GET, Version::HTTP_11, &headers));
        complete(&mut headers);
        assert!(is_websocket(&Method::GET, Version::HTTP_11, &headers));
        let first = headers.get(header::SEC_WEBSOCKET_KEY).cloned();
        complete(&mut headers);
        assert_ne!(first.as_ref(), headers.get(header::SEC_WEBSOCKET_KEY));
    }

    #[test]
    fn any_departure_is_none() {
        assert!(!is_websocket(&Method::POST, Version::HTTP_11, &handshake()));
        assert!(!is_websocket(&Method::GET, Version::HTTP_10, &handshake()));
        let departures: [(HeaderName, &str); 6] = [
            (header::UPGRADE, "h2c"),
            (header::UPGRADE, "websocket, h2c"),
            (header::SEC_WEBSOCKET_VERSION, "8"),
            (header::SEC_WEBSOCKET_KEY, "short=="),
            (header::CONTENT_LENGTH, "5"),
            (header::TRANSFER_ENCODING, "chunked"),
        ];
        for (name, value) in departures {
            let mut headers = handshake();
            headers.insert(&name, HeaderValue::from_str(value).unwrap());
            assert!(!is_websocket(&Method::GET, Version::HTTP_11, &headers), "{name}: {value}");
        }
        let mut headers = handshake();
        headers.append(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        assert!(!is_websocket(&Method::GET, Version::HTTP_11, &headers));
    }
}
