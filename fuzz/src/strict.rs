//! A second reading of the same grammar, written differently: it splits complete messages at CRLF and looks at each line
//! as text. Slow, allocating, and without any state between bytes. It does not know the guard's code.

use palisade::guard::Framing;

/// A complete head.
#[derive(Debug)]
pub struct Head<'a> {
    pub len: usize,
    pub method: &'a [u8],
    pub target: &'a [u8],
    pub minor: u8,
    pub fields: Vec<(&'a [u8], &'a [u8])>,
    pub framing: Framing,
}

#[derive(Debug)]
pub struct Bad(pub &'static str);

/// A stream of messages.
#[derive(Debug)]
pub struct Stream {
    pub messages: Vec<Message>,
    pub end: End,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    pub method: Vec<u8>,
    pub target: Vec<u8>,
    pub body: Vec<u8>,
    /// Offset behind its last byte.
    pub end: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// Between two messages.
    Clean,
    /// Inside a message.
    Cut,
    /// At something that is not HTTP.
    Bad,
}

/// All messages of a stream.
pub fn stream(bytes: &[u8]) -> Stream {
    let mut messages = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let head = match head(rest) {
            Ok(Some(head)) => head,
            Ok(None) => return Stream { messages, end: End::Cut },
            Err(_) => return Stream { messages, end: End::Bad },
        };
        let body = match head.framing {
            Framing::None => Ok(Some((0, Vec::new()))),
            Framing::Length(n) => {
                Ok(usize::try_from(n).ok().and_then(|n| Some((n, rest.get(head.len..head.len.checked_add(n)?)?.to_vec()))))
            }
            Framing::Chunked => chunked(&rest[head.len..]),
        };
        match body {
            Ok(Some((length, body))) => {
                at += head.len + length;
                messages.push(Message { method: head.method.to_vec(), target: head.target.to_vec(), body, end: at });
            }
            Ok(None) => return Stream { messages, end: End::Cut },
            Err(_) => return Stream { messages, end: End::Bad },
        }
    }
    Stream { messages, end: End::Clean }
}

/// A head; `None` when its end is not there.
pub fn head(bytes: &[u8]) -> Result<Option<Head<'_>>, Bad> {
    let mut start = 0;
    while bytes[start..].starts_with(b"\r\n") {
        start += 2;
    }
    if start > 4 {
        return Err(Bad("more than two empty lines"));
    }
    let Some(end) = find(&bytes[start..], b"\r\n\r\n").map(|at| start + at) else {
        return if bytes.len() >= 32768 { Err(Bad("no end")) } else { Ok(None) };
    };
    let len = end + 4;
    if len > 32768 {
        return Err(Bad("long"));
    }
    let mut lines = split(&bytes[start..end]).into_iter();
    for line in lines.clone() {
        if line.iter().any(|b| matches!(b, 0..=8 | 10..=31 | 127)) || matches!(line.first(), Some(b' ' | b'\t')) {
            return Err(Bad("byte"));
        }
    }
    let parts: Vec<&[u8]> = lines.next().unwrap_or_default().split(|b| *b == b' ').collect();
    let [method, target, version] = parts[..] else { return Err(Bad("request line")) };
    let minor = match version {
        b"HTTP/1.0" => 0,
        b"HTTP/1.1" => 1,
        _ => return Err(Bad("version")),
    };
    if !token(method) || method.len() > 32 || method == b"CONNECT" {
        return Err(Bad("method"));
    }
    check_target(method, target)?;
    let mut fields = Vec::new();
    for line in lines {
        let colon = line.iter().position(|b| *b == b':').ok_or(Bad("colon"))?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        if !token(name) || name.len() > 256 || value.len() > 16384 {
            return Err(Bad("field"));
        }
        fields.push((name, value));
    }
    if fields.len() > 100 {
        return Err(Bad("count"));
    }
    let framing = framing(&fields, minor)?;
    let hosts: Vec<_> = fields.iter().filter(|f| f.0.eq_ignore_ascii_case(b"host")).collect();
    match hosts[..] {
        [] if minor == 0 => {}
        [one] if authority(one.1) => {}
        _ => return Err(Bad("host")),
    }
    Ok(Some(Head { len, method, target, minor, fields, framing }))
}

fn framing(fields: &[(&[u8], &[u8])], minor: u8) -> Result<Framing, Bad> {
    let mut lengths = Vec::new();
    let mut codings = Vec::new();
    for (name, value) in fields {
        let spelled = String::from_utf8_lossy(name).to_ascii_lowercase();
        if spelled.contains('_') {
            let bare: String = spelled.chars().filter(|c| !"-_".contains(*c)).collect();
            if ["contentlength", "transferencoding", "host", "connection", "upgrade"].contains(&bare.as_str()) {
                return Err(Bad("underscore"));
            }
        }
        match spelled.as_str() {
            "content-length" => lengths.push(*value),
            "transfer-encoding" => codings.push(String::from_utf8_lossy(value).to_ascii_lowercase()),
            _ => {}
        }
    }
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(Framing::None),
        ([], [coding]) if coding == "chunked" && minor == 1 => Ok(Framing::Chunked),
        ([length], []) => {
            let text = std::str::from_utf8(length).map_err(|_| Bad("length"))?;
            if text.is_empty() || text.chars().any(|c| !c.is_ascii_digit()) || text.trim_start_matches('0').len() > 19 {
                return Err(Bad("length"));
            }
            text.parse().map(Framing::Length).map_err(|_| Bad("length"))
        }
        _ => Err(Bad("framing")),
    }
}

fn check_target(method: &[u8], target: &[u8]) -> Result<(), Bad> {
    if target.len() > 8192 || target.is_empty() {
        return Err(Bad("target length"));
    }
    let query = target.iter().position(|b| *b == b'?').unwrap_or(target.len());
    if target.iter().any(|b| !(0x21..=0x7e).contains(b) || b"#\"<>".contains(b)) || target[..query].contains(&b'\\') {
        return Err(Bad("target byte"));
    }
    if target.starts_with(b"/") || target == b"*" && method == b"OPTIONS" {
        return Ok(());
    }
    let text = std::str::from_utf8(target).map_err(|_| Bad("target"))?;
    let (scheme, rest) = text.split_once("://").ok_or(Bad("target form"))?;
    if !["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) {
        return Err(Bad("scheme"));
    }
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    if authority(host.as_bytes()) { Ok(()) } else { Err(Bad("authority")) }
}

fn authority(value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else { return false };
    let (host, port) = match text.rfind(']') {
        Some(end) => (&text[..=end], &text[end + 1..]),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port_fits = match port.strip_prefix(':') {
        None => port.is_empty(),
        Some(digits) => digits.len() <= 5 && !digits.starts_with('+') && digits.parse::<u16>().is_ok(),
    };
    let host_fits = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inside) => inside.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.len() <= 255 && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._~".contains(c)),
    };
    host_fits && port_fits
}

/// A chunked body: its length and data; `None` when its end is not there.
pub fn chunked(bytes: &[u8]) -> Result<Option<(usize, Vec<u8>)>, Bad> {
    let (mut at, mut data, mut extensions) = (0, Vec::new(), 0);
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else {
            return if bytes.len() - at > 258 { Err(Bad("chunk line")) } else { Ok(None) };
        };
        let line = &bytes[at..at + end];
        at += end + 2;
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let size = std::str::from_utf8(&line[..digits]).unwrap_or_default();
        extensions += line.len() - digits;
        if line.len() > 256 || !(1..=16).contains(&digits) || size.trim_start_matches('0').len() > 8 || extensions > 4096 {
            return Err(Bad("size"));
        }
        if !extension_list(&line[digits..]) {
            return Err(Bad("extension"));
        }
        let size = usize::from_str_radix(size, 16).map_err(|_| Bad("size"))?;
        if size == 0 {
            break;
        }
        let Some(chunk) = bytes.get(at..at + size) else { return Ok(None) };
        data.extend_from_slice(chunk);
        match &bytes[at + size..] {
            [b'\r', b'\n', ..] => at += size + 2,
            [] | [b'\r'] => return Ok(None),
            _ => return Err(Bad("data end")),
        }
    }
    let section = at;
    let mut count = 0;
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else {
            return if bytes.len() - section > 8192 { Err(Bad("trailer size")) } else { Ok(None) };
        };
        let line = &bytes[at..at + end];
        at += end + 2;
        if at - section > 8192 {
            return Err(Bad("trailer size"));
        }
        if line.is_empty() {
            return Ok(Some((at, data)));
        }
        count += 1;
        let colon = line.iter().position(|b| *b == b':').ok_or(Bad("trailer colon"))?;
        let plain = line.iter().all(|b| !matches!(b, 0..=8 | 10..=31 | 127));
        if !plain || !token(&line[..colon]) || colon > 256 || count > 32 {
            return Err(Bad("trailer"));
        }
    }
}

/// `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`, by eating from the front.
fn extension_list(mut text: &[u8]) -> bool {
    while !text.is_empty() {
        let Some(rest) = skip_blanks(text).strip_prefix(b";") else { return false };
        let rest = skip_blanks(rest);
        let name = rest.iter().take_while(|b| tchar(**b)).count();
        if name == 0 {
            return false;
        }
        text = &rest[name..];
        let Some(value) = skip_blanks(text).strip_prefix(b"=") else { continue };
        let value = skip_blanks(value);
        let length = match value.first() {
            Some(b'"') => quoted(value),
            _ => value.iter().take_while(|b| tchar(**b)).count(),
        };
        if length == 0 {
            return false;
        }
        text = &value[length..];
    }
    true
}

/// Length of the quoted-string at the start; 0 when it is not one.
fn quoted(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' if text.get(at + 1).is_some_and(|b| *b == b'\t' || *b >= 32 && *b != 127) => at += 2,
            b'\t' | 32..=91 | 93..=126 | 128..=255 => at += 1,
            _ => return 0,
        }
    }
    0
}

fn skip_blanks(text: &[u8]) -> &[u8] {
    &text[text.iter().take_while(|b| b" \t".contains(b)).count()..]
}

fn trim(mut text: &[u8]) -> &[u8] {
    text = skip_blanks(text);
    while let [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// Splits at CRLF only.
fn split(mut text: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    while let Some(at) = find(text, b"\r\n") {
        lines.push(&text[..at]);
        text = &text[at + 2..];
    }
    lines.push(text);
    lines
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|w| w == what)
}

fn token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| tchar(*b))
}

fn tchar(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte)
}
