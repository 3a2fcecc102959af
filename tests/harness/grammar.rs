//! The one form in which requests may reach Puma, as a parser that knows nothing else.
//!
//! ```text
//! request   = line *field CRLF body
//! line      = method SP target SP "HTTP/1.1" CRLF
//! method    = 1*32 tchar
//! target    = ( "/" *uri ) / "*"                  uri: visible ASCII without "#", quotes, "<", ">"; no "\" in the path
//! field     = name ":" SP value CRLF
//! name      = 1*( ALPHA / DIGIT / "-" )           no underscore: Puma reads it as a dash
//! value     = [ vchar *( vchar / SP / HTAB ) ]    no control byte, no blank at either end
//! Host      exactly once, directly behind the line or anywhere in the fields
//! Content-Length  at most once, 1*DIGIT without leading zeros, equal to the length of the body
//! Connection      at most once, "close" only, or the two fields of a WebSocket handshake
//! never     Transfer-Encoding, TE, Trailer, Keep-Alive, Proxy-Connection, Expect, HTTP2-Settings
//! body      exactly Content-Length bytes, otherwise none
//! ```

use super::answer::find;

/// One request in the canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    pub method: String,
    pub target: String,
    pub fields: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

impl Forwarded {
    pub fn field(&self, name: &str) -> Option<String> {
        let values: Vec<_> = self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).collect();
        assert!(values.len() < 2, "{name} stands {} times", values.len());
        values.first().map(|(_, v)| String::from_utf8_lossy(v).into_owned())
    }
}

/// Reads every request in the bytes of one connection; fails on anything that is not the canonical form.
pub fn read_all(mut bytes: &[u8]) -> Vec<Forwarded> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (request, rest) = read_one(bytes).unwrap_or_else(|why| panic!("{why}: {:?}", String::from_utf8_lossy(bytes)));
        all.push(request);
        bytes = rest;
    }
    all
}

fn read_one(bytes: &[u8]) -> Result<(Forwarded, &[u8]), String> {
    let end = find(bytes, b"\r\n\r\n").ok_or("no end of the head")?;
    let mut lines = Vec::new();
    let mut head = &bytes[..end];
    while let Some(at) = find(head, b"\r\n") {
        lines.push(&head[..at]);
        head = &head[at + 2..];
    }
    lines.push(head);
    let (line, fields) = lines.split_first().ok_or("no request line")?;
    let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let [method, target, b"HTTP/1.1"] = words[..] else { return Err("request line".into()) };
    if method.is_empty() || method.len() > 32 || !method.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b)) {
        return Err("method".into());
    }
    let plain = |b: &u8| b.is_ascii_graphic() && !b"#\"<>".contains(b);
    let path = target.split(|b| *b == b'?').next().unwrap_or_default();
    if target != b"*" && !(target.starts_with(b"/") && target.iter().all(plain) && !path.contains(&b'\\')) {
        return Err("target".into());
    }
    let fields = fields.iter().map(|line| field(line)).collect::<Result<Vec<_>, String>>()?;
    let mut request = Forwarded {
        method: String::from_utf8_lossy(method).into_owned(),
        target: String::from_utf8_lossy(target).into_owned(),
        fields,
        body: Vec::new(),
    };
    request.field("host").ok_or("no Host")?;
    for name in ["transfer-encoding", "te", "trailer", "keep-alive", "proxy-connection", "expect", "http2-settings"] {
        if request.field(name).is_some() {
            return Err(format!("{name} reached Puma"));
        }
    }
    let upgrade = request.field("upgrade").is_some_and(|v| v.eq_ignore_ascii_case("websocket"));
    match request.field("connection") {
        None => {}
        Some(v) if v == "close" || (upgrade && v.eq_ignore_ascii_case("upgrade")) => {}
        Some(_) => return Err("Connection".into()),
    }
    let length = match request.field("content-length") {
        None => 0,
        Some(v) if v.bytes().all(|b| b.is_ascii_digit()) && (v == "0" || !v.starts_with('0')) => {
            v.parse().map_err(|_| "Content-Length".to_owned())?
        }
        Some(_) => return Err("Content-Length".into()),
    };
    let body = &bytes[end + 4..];
    if body.len() < length {
        return Err("the body is shorter than Content-Length".into());
    }
    request.body = body[..length].to_vec();
    Ok((request, &body[length..]))
}

fn field(line: &[u8]) -> Result<(String, Vec<u8>), String> {
    let colon = line.iter().position(|b| *b == b':').ok_or("a field without colon")?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let shown = String::from_utf8_lossy(name).into_owned();
    if name.is_empty() || !name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-') {
        return Err(format!("field name {shown:?}"));
    }
    let value = value.strip_prefix(b" ").ok_or_else(|| format!("no blank before the value of {shown}"))?;
    let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    if blank(value.first()) || blank(value.last()) || value.iter().any(|b| (*b < 0x20 && *b != b'\t') || *b == 0x7f) {
        return Err(format!("value of {shown}"));
    }
    Ok((shown, value.to_vec()))
}

#[test]
fn the_canonical_form_is_read_and_nothing_else_is() {
    let fine = b"POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhiGET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let all = read_all(fine);
    assert_eq!((all.len(), all[0].body.as_slice()), (2, &b"hi"[..]));
    for bad in [
        "GET / HTTP/1.0\r\nHost: x\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nA_b: c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 03\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab",
        "GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        assert!(read_one(bad.as_bytes()).is_err(), "{bad:?}");
    }
}
