//! The opening handshake of WebSocket (RFC 6455 §4.2.1): the only upgrade that passes.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};

/// Extension of a request that is a well-formed WebSocket handshake. Without it, upgrade fields never reach Puma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upgrade;

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
