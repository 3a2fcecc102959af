//! How Puma 5.6 to 8 reads a request, as far as boundaries go, from its behaviour on the wire.
//!
//! Lines end in CRLF. A method is 1 to 20 of upper case, digits, `$ - _ .`. A fragment is cut off. Field names are
//! upper-cased, dashes become underscores, and equal names are joined with a comma. Transfer-Encoding wins over
//! Content-Length. Content-Length must be digits. Without either there is no body.

use std::collections::BTreeMap;

/// What the application would see.
#[derive(Debug)]
pub struct Env {
    /// Offset behind the head.
    pub head: usize,
    /// Length of the body on the wire.
    pub length: u64,
    pub method: Vec<u8>,
    pub target: Vec<u8>,
    pub fields: BTreeMap<String, Vec<u8>>,
}

/// Reads one request; `None` when Puma answers 400 or waits for more.
pub fn read(bytes: &[u8]) -> Option<Env> {
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let text = &bytes[..head - 4];
    let mut lines = Vec::new();
    let mut from = 0;
    for at in 0..text.len() {
        if text[at..].starts_with(b"\r\n") {
            lines.push(&text[from..at]);
            from = at + 2;
        }
    }
    lines.push(&text[from..]);
    let (request, fields) = lines.split_first()?;
    let mut words = request.splitn(3, |b| *b == b' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let upper = |b: &u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b"$-_.".contains(b);
    if !(1..=20).contains(&method.len()) || !method.iter().all(upper) || !version.starts_with(b"HTTP/") {
        return None;
    }
    let target = target.split(|b| *b == b'#').next()?;
    if target.is_empty() || target.iter().any(|b| *b <= b' ' || *b == 0x7f) {
        return None;
    }
    let mut env = BTreeMap::<String, Vec<u8>>::new();
    for line in fields {
        let colon = line.iter().position(|b| *b == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        let token = |b: &u8| b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(b);
        if name.is_empty() || name.len() > 256 || !name.iter().all(token) || value.len() > 81920 {
            return None;
        }
        if value.iter().any(|b| *b < b' ' && *b != b'\t' || *b == 0x7f) {
            return None;
        }
        let name = String::from_utf8_lossy(name).to_ascii_uppercase().replace('-', "_");
        let value = value.trim_ascii();
        env.entry(name)
            .and_modify(|held| {
                held.extend_from_slice(b", ");
                held.extend_from_slice(value);
            })
            .or_insert_with(|| value.to_vec());
    }
    if env.contains_key("TRANSFER_ENCODING") {
        return None;
    }
    let length = match env.get("CONTENT_LENGTH") {
        Some(value) if value.is_empty() || !value.iter().all(u8::is_ascii_digit) => return None,
        Some(value) => std::str::from_utf8(value).ok()?.parse().ok()?,
        None => 0,
    };
    Some(Env { head, length, method: method.to_vec(), target: target.to_vec(), fields: env })
}
