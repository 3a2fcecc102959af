//! A strict reader of HTTP/1.1 answers. It repairs nothing: what it cannot read fails the test.

/// One answer with its body.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// How the body was framed.
    pub framing: Framing,
    /// 1xx answers that came before it.
    pub interim: Vec<Answer>,
}

/// Where the body ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// The status or method allows no body.
    #[default]
    None,
    Length(usize),
    Chunked,
    /// The end of the connection.
    Close,
}

/// What reading needs next.
#[derive(Debug)]
pub enum Step {
    /// An answer, and how many bytes it took.
    Whole(Answer, usize),
    /// More bytes are needed.
    More,
}

impl Answer {
    /// The only field of this name; fails when there are several.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.all(name).into_iter();
        let value = values.next();
        assert!(values.next().is_none(), "{name} stands more than once: {self:?}");
        value
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.text()))
    }

    /// Whether the connection ends with it.
    pub fn closes(&self) -> bool {
        self.field("connection").is_some_and(|v| v.eq_ignore_ascii_case("close")) || self.framing == Framing::Close
    }
}

/// Reads one final answer to `method`, with the interim ones before it. `ended`: nothing will follow `bytes`.
pub fn read(bytes: &[u8], method: &str, ended: bool) -> Step {
    let mut interim = Vec::new();
    let mut at = 0;
    loop {
        let Some((mut answer, head)) = read_head(&bytes[at..]) else { return Step::More };
        at += head;
        if (100..200).contains(&answer.status) && answer.status != 101 {
            interim.push(answer);
            continue;
        }
        answer.interim = interim;
        answer.framing = framing(&answer, method);
        let rest = &bytes[at..];
        let taken = match answer.framing {
            Framing::None => 0,
            Framing::Length(length) if rest.len() < length => return Step::More,
            Framing::Length(length) => {
                answer.body = rest[..length].to_vec();
                length
            }
            Framing::Close if !ended => return Step::More,
            Framing::Close => {
                answer.body = rest.to_vec();
                rest.len()
            }
            Framing::Chunked => match read_chunks(rest) {
                Some((body, length)) => {
                    answer.body = body;
                    length
                }
                None => return Step::More,
            },
        };
        return Step::Whole(answer, at + taken);
    }
}

fn framing(answer: &Answer, method: &str) -> Framing {
    let length = answer.field("content-length");
    let coding = answer.field("transfer-encoding");
    assert!(length.is_none() || coding.is_none(), "both framings: {answer:?}");
    if method == "HEAD" || matches!(answer.status, 101 | 204 | 304) {
        assert!(coding.is_none() || method == "HEAD", "a {} with Transfer-Encoding: {answer:?}", answer.status);
        return Framing::None;
    }
    match (length, coding) {
        (Some(length), _) => {
            assert!(length.bytes().all(|b| b.is_ascii_digit()), "Content-Length: {length:?}");
            Framing::Length(length.parse().unwrap())
        }
        (None, Some(coding)) => {
            assert_eq!(coding, "chunked");
            Framing::Chunked
        }
        (None, None) => Framing::Close,
    }
}

fn read_head(bytes: &[u8]) -> Option<(Answer, usize)> {
    let end = find(bytes, b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).expect("the head of an answer is text");
    let mut lines = head.split("\r\n");
    let mut status = lines.next().unwrap().splitn(3, ' ');
    let version = status.next().unwrap();
    assert!(version == "HTTP/1.1" || version == "HTTP/1.0", "version in {head:?}");
    let code = status.next().unwrap_or_else(|| panic!("no status in {head:?}"));
    assert!(code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit()), "status in {head:?}");
    let fields = lines
        .map(|line| {
            assert!(!line.contains(['\r', '\n', '\0']), "a bare line end in {line:?}");
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no colon in {line:?}"));
            assert!(!name.is_empty() && !name.contains([' ', '\t']), "field name in {line:?}");
            (name.to_owned(), value.trim_matches([' ', '\t']).to_owned())
        })
        .collect();
    Some((Answer { status: code.parse().unwrap(), fields, ..Answer::default() }, end + 4))
}

fn read_chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let line = find(&bytes[at..], b"\r\n")?;
        let size = std::str::from_utf8(&bytes[at..at + line]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap_or_else(|e| panic!("chunk size {size:?}: {e}"));
        at += line + 2;
        if bytes.len() < at + size + 2 {
            return None;
        }
        body.extend_from_slice(&bytes[at..at + size]);
        at += size;
        assert_eq!(&bytes[at..at + 2], b"\r\n", "a chunk without its end");
        at += 2;
        if size == 0 {
            return Some((body, at));
        }
    }
}

/// Where `needle` first stands in `bytes`.
pub fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

#[test]
fn an_answer_is_read_only_when_it_is_whole() {
    let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for cut in 0..bytes.len() {
        assert!(matches!(read(&bytes[..cut], "GET", false), Step::More), "cut at {cut}");
    }
    let Step::Whole(answer, taken) = read(bytes, "GET", false) else { panic!("not read") };
    assert_eq!((answer.status, answer.body.as_slice(), taken), (200, &b"abc"[..], bytes.len()));
    assert_eq!(answer.interim.len(), 1);
}
