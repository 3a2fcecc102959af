//! A scanner over multipart bodies (RFC 2046 §5.1, RFC 7578) that is fed with pieces and keeps none of them.
//!
//! Threat: exhaustion. Rack kept preambles, part headers and fields in memory without bound (CVE-2025-61770, -61771, -61772), took
//! any number of parts (CVE-2023-27530), and is quadratic in long dispositions (CVE-2022-30122, CVE-2022-44571, CVE-2025-49007).
//! Delimiters are found as Rack finds them, so that both see the same parts.

use memchr::memmem::Finder;

/// Bounds of a multipart body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Parts.
    pub parts: u32,
    /// Parts with a file name.
    pub files: u32,
    /// Bytes of one part's header.
    pub part_header: usize,
    /// Bytes of one Content-Disposition.
    pub disposition: usize,
    /// Bytes before the first and behind the last delimiter.
    pub preamble: u64,
    /// Bytes of all parts without a file name.
    pub fields: u64,
}

/// Why a body is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not a multipart body, or has two readings.
    Shape,
    /// It ends before its closing delimiter.
    Cut,
    /// More members than the bounds allow.
    Count,
    /// Longer than the bounds allow.
    Size,
}

/// A scanner between two pieces.
#[derive(Debug)]
pub struct Scanner {
    delimiter: Finder<'static>,
    bounds: Bounds,
    state: State,
    fresh: bool,
    preamble: u64,
    fields: u64,
    parts: u32,
    files: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Preamble,
    Header,
    Content { file: bool },
    Epilogue,
}

/// What stands at a place where a delimiter may stand.
enum Delimiter {
    Next,
    Closing,
    None,
    MoreNeeded,
}

impl Scanner {
    /// Before the first byte.
    pub fn new(boundary: &[u8], bounds: Bounds) -> Self {
        let delimiter = Finder::new(&[b"\r\n--", boundary].concat()).into_owned();
        Scanner { delimiter, bounds, state: State::Preamble, fresh: true, preamble: 0, fields: 0, parts: 0, files: 0 }
    }

    /// Takes what it can of a window and returns how much; the next window begins behind that. With `last`, the body ends here.
    pub fn feed(&mut self, window: &[u8], last: bool) -> Result<usize, Fault> {
        let mut rest = window;
        loop {
            let taken = match self.state {
                State::Preamble | State::Content { .. } => self.text(rest, last)?,
                State::Header => self.header(rest, last)?,
                State::Epilogue => {
                    self.text_bytes(rest.len())?;
                    Some(rest.len())
                }
            };
            let Some(n) = taken.filter(|n| *n > 0) else {
                return Ok(window.len().saturating_sub(rest.len()));
            };
            rest = rest.get(n..).unwrap_or_default();
        }
    }

    /// Text up to the next delimiter; how much was taken, `None` where more is needed.
    fn text(&mut self, rest: &[u8], last: bool) -> Result<Option<usize>, Fault> {
        let dash = self.delimiter.needle().len().saturating_sub(2);
        if self.fresh {
            // Rack takes a delimiter without its line break at the very start of the body, or of a part's content.
            match self.at(rest, 2, last) {
                Delimiter::Next => return self.part(0, dash).map(Some),
                Delimiter::Closing => return self.close(0, dash).map(Some),
                Delimiter::MoreNeeded => return Ok(None),
                Delimiter::None => self.fresh = false,
            }
        }
        let Some(at) = self.delimiter.find(rest) else {
            if last {
                return self.cut(rest);
            }
            let keep = self.delimiter.needle().len().saturating_sub(1);
            let taken = rest.len().saturating_sub(keep);
            self.text_bytes(taken)?;
            return Ok(Some(taken));
        };
        match self.at(rest.get(at..).unwrap_or_default(), 0, last) {
            Delimiter::Next => self.part(at, dash.saturating_add(2)).map(Some),
            Delimiter::Closing => self.close(at, dash.saturating_add(2)).map(Some),
            Delimiter::None if last && rest.len().saturating_sub(at) <= dash.saturating_add(3) => self.cut(rest),
            Delimiter::None => {
                let taken = at.saturating_add(2);
                self.text_bytes(taken)?;
                Ok(Some(taken))
            }
            Delimiter::MoreNeeded => {
                self.text_bytes(at)?;
                Ok(Some(at))
            }
        }
    }

    /// Whether `rest` starts with the delimiter from its byte `skip` on, and which kind it is.
    fn at(&self, rest: &[u8], skip: usize, last: bool) -> Delimiter {
        let wanted = self.delimiter.needle().get(skip..).unwrap_or_default();
        match rest.strip_prefix(wanted) {
            Some([b'\r', b'\n', ..]) => Delimiter::Next,
            Some([b'-', b'-', ..]) => Delimiter::Closing,
            Some([] | [b'\r'] | [b'-']) if !last => Delimiter::MoreNeeded,
            None if !last && rest.len() < wanted.len() && wanted.starts_with(rest) => Delimiter::MoreNeeded,
            Some(_) | None => Delimiter::None,
        }
    }

    /// A new part begins behind a delimiter of `length` at `at`; its line break is read with the header.
    fn part(&mut self, at: usize, length: usize) -> Result<usize, Fault> {
        self.text_bytes(at)?;
        self.parts = self.parts.saturating_add(1);
        if self.parts > self.bounds.parts {
            return Err(Fault::Count);
        }
        self.state = State::Header;
        Ok(at.saturating_add(length))
    }

    fn close(&mut self, at: usize, length: usize) -> Result<usize, Fault> {
        self.text_bytes(at)?;
        self.state = State::Epilogue;
        self.preamble = 0;
        Ok(at.saturating_add(length).saturating_add(2))
    }

    /// The body ends in text. Where it ends behind the first dash of its closing delimiter, the sender has miscounted, and every
    /// part is known.
    fn cut(&mut self, rest: &[u8]) -> Result<Option<usize>, Fault> {
        self.text_bytes(rest.len())?;
        let delimiter = self.delimiter.needle();
        let in_delimiter = (FIRST_DASH..=delimiter.len()).rev().any(|n| delimiter.get(..n).is_some_and(|start| rest.ends_with(start)))
            || [b"-", b"\r"].iter().any(|end| rest.strip_suffix(*end).is_some_and(|text| text.ends_with(delimiter)));
        match self.state {
            State::Content { .. } if in_delimiter => Ok(None),
            State::Preamble if self.preamble == 0 && rest.is_empty() => Ok(None),
            State::Content { .. } => Err(Fault::Cut),
            State::Preamble | State::Header | State::Epilogue => Err(Fault::Shape),
        }
    }

    /// A part's header: from the line break of its delimiter to an empty line.
    fn header(&mut self, rest: &[u8], last: bool) -> Result<Option<usize>, Fault> {
        let Some(end) = memchr::memmem::find(rest, b"\r\n\r\n") else {
            return if rest.len() > self.bounds.part_header.saturating_add(3) {
                Err(Fault::Size)
            } else if last {
                Err(Fault::Shape)
            } else {
                Ok(None)
            };
        };
        if end > self.bounds.part_header {
            return Err(Fault::Size);
        }
        let lines = rest.get(2..end).unwrap_or_default();
        let file = self.disposition(lines)?;
        if file {
            self.files = self.files.saturating_add(1);
            if self.files > self.bounds.files {
                return Err(Fault::Count);
            }
        }
        self.state = State::Content { file };
        self.fresh = true;
        Ok(Some(end.saturating_add(4)))
    }

    /// Whether a part's header has a file name.
    fn disposition(&self, lines: &[u8]) -> Result<bool, Fault> {
        let mut file = None;
        let mut rest = lines;
        while !rest.is_empty() {
            let end = memchr::memmem::find(rest, b"\r\n").unwrap_or(rest.len());
            let line = rest.get(..end).unwrap_or_default();
            rest = rest.get(end.saturating_add(2)..).unwrap_or_default();
            if matches!(line.first(), Some(b' ' | b'\t') | None) {
                return Err(Fault::Shape);
            }
            let Some(value) = strip_name(line, b"content-disposition:") else {
                continue;
            };
            if value.len() > self.bounds.disposition {
                return Err(Fault::Size);
            }
            if file.replace(has_file_name(value)?).is_some() {
                return Err(Fault::Shape);
            }
        }
        Ok(file.unwrap_or(false))
    }

    fn text_bytes(&mut self, bytes: usize) -> Result<(), Fault> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let (sum, bound) = match self.state {
            State::Preamble | State::Epilogue => (&mut self.preamble, self.bounds.preamble),
            State::Content { file: false } => (&mut self.fields, self.bounds.fields),
            State::Content { file: true } | State::Header => return Ok(()),
        };
        *sum = sum.saturating_add(bytes);
        if *sum > bound { Err(Fault::Size) } else { Ok(()) }
    }
}

fn strip_name<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then_some(value)
}

/// Reads the parameters of a Content-Disposition; each may stand once, and escapes are few.
fn has_file_name(value: &[u8]) -> Result<bool, Fault> {
    let (mut quoted, mut escaped, mut escapes) = (false, false, 0_u32);
    let (mut names, mut files, mut extended) = (0_u32, 0_u32, 0_u32);
    let mut start = 0;
    for (i, byte) in value.iter().copied().chain(std::iter::once(b';')).enumerate() {
        if escaped {
            escaped = false;
            continue;
        }
        match byte {
            b'\\' if quoted => {
                escaped = true;
                escapes = escapes.saturating_add(1);
            }
            b'"' => quoted = !quoted,
            b';' if !quoted => {
                let parameter = value.get(start..i).unwrap_or_default().trim_ascii();
                let name = parameter.split(|b| *b == b'=').next().unwrap_or_default().trim_ascii();
                if name.eq_ignore_ascii_case(b"name") {
                    names = names.saturating_add(1);
                } else if name.eq_ignore_ascii_case(b"filename") {
                    files = files.saturating_add(1);
                } else if name.eq_ignore_ascii_case(b"filename*") {
                    extended = extended.saturating_add(1);
                }
                start = i.saturating_add(1);
            }
            _ => {}
        }
    }
    if quoted || names > 1 || files > 1 || extended > 1 || escapes > MAX_ESCAPES {
        return Err(Fault::Shape);
    }
    Ok(files > 0 || extended > 0)
}

/// Bytes of a delimiter up to its first dash.
const FIRST_DASH: usize = 3;
/// Backslashes in a disposition: enough for the path that old browsers send as a file name.
const MAX_ESCAPES: u32 = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { parts: 4096, files: 128, part_header: 8192, disposition: 2048, preamble: 1024, fields: 16 << 20 };

    /// Feeds a body in pieces of at most `size`.
    fn scan_in(body: &[u8], size: usize, bounds: Bounds) -> Result<(u32, u32), Fault> {
        let mut scanner = Scanner::new(b"b", bounds);
        let mut window = Vec::new();
        let mut pieces = body.chunks(size).peekable();
        loop {
            if let Some(piece) = pieces.next() {
                window.extend_from_slice(piece);
            }
            let last = pieces.peek().is_none();
            let taken = scanner.feed(&window, last)?;
            window.drain(..taken);
            if last {
                return Ok((scanner.parts, scanner.files));
            }
        }
    }

    fn scan(body: &[u8]) -> Result<(u32, u32), Fault> {
        let whole = scan_in(body, usize::MAX, BOUNDS);
        for size in [1, 2, 3, 7, 100] {
            assert_eq!(scan_in(body, size, BOUNDS), whole, "in pieces of {size}: {}", String::from_utf8_lossy(body));
        }
        whole
    }

    fn part(disposition: &str, content: &str) -> String {
        format!("--b\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{content}\r\n")
    }

    #[test]
    fn forms_of_browsers_pass() {
        let form = [
            part("name=\"a\"", "1"),
            part("name=\"empty\"", ""),
            part("name=\"f\"; filename=\"C:\\Users\\x \\\"q\\\";.txt\"; filename*=UTF-8''x", "\r\n--bx\r\n--\r\n--c--"),
            "--b--\r\n".to_owned(),
        ];
        assert_eq!(scan(form.concat().as_bytes()), Ok((3, 1)));
        assert_eq!(scan(b"--b--\r\n"), Ok((0, 0)));
        assert_eq!(scan(b"--b--"), Ok((0, 0)));
        assert_eq!(scan(b""), Ok((0, 0)));
        assert_eq!(scan(b"preamble\r\n--b\r\n\r\nno header\r\n--b--\r\nepilogue"), Ok((1, 0)));
        assert_eq!(scan(b"--b\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\n--b--\r\n"), Ok((1, 0)));
    }

    #[test]
    fn a_body_that_is_cut_is_refused_unless_in_its_closing_delimiter() {
        let form = part("name=\"x\"", "1") + "--b--\r\n";
        for end in 0..form.len() {
            let whole = scan(&form.as_bytes()[..end]);
            let content = form.find("1\r\n--b--").unwrap();
            let expected = match end {
                0 => Ok((0, 0)),
                _ if end < content => Err(Fault::Shape),
                _ if end < content + "1\r\n-".len() => Err(Fault::Cut),
                _ => Ok((1, 0)),
            };
            assert_eq!(whole, expected, "{:?}", &form[..end]);
        }
    }

    #[test]
    fn cve_2023_27530_any_number_of_parts() {
        let many = part("name=\"f\"", "x").repeat(4097) + "--b--\r\n";
        assert_eq!(scan_in(many.as_bytes(), usize::MAX, BOUNDS), Err(Fault::Count));
        let files = part("name=\"f\"; filename=\"x\"", "x").repeat(129) + "--b--\r\n";
        assert_eq!(scan(files.as_bytes()), Err(Fault::Count));
        let most = part("name=\"f\"", "x").repeat(4096) + "--b--\r\n";
        assert_eq!(scan_in(most.as_bytes(), usize::MAX, BOUNDS), Ok((4096, 0)));
    }

    #[test]
    fn cve_2025_61770_a_preamble_without_end() {
        assert_eq!(scan("p".repeat(1100).as_bytes()), Err(Fault::Size));
        assert_eq!(scan(("p".repeat(3000) + "\r\n--b--\r\n").as_bytes()), Err(Fault::Size));
        assert_eq!(scan(("--b--\r\n".to_owned() + &"e".repeat(3000)).as_bytes()), Err(Fault::Size));
    }

    #[test]
    fn cve_2025_61771_fields_held_in_memory() {
        let bounds = Bounds { fields: 1000, ..BOUNDS };
        let field = part("name=\"f\"", &"x".repeat(600));
        assert_eq!(scan_in((field.clone() + &field + "--b--").as_bytes(), 64, bounds), Err(Fault::Size));
        let file = part("name=\"f\"; filename=\"x\"", &"x".repeat(6000));
        assert_eq!(scan_in((file + "--b--").as_bytes(), 64, bounds), Ok((1, 1)));
    }

    #[test]
    fn cve_2025_61772_a_part_header_without_end() {
        let endless = "--b\r\nX: ".to_owned() + &"h".repeat(9000);
        assert_eq!(scan(endless.as_bytes()), Err(Fault::Size));
        assert_eq!(scan((endless + "\r\n\r\nx\r\n--b--").as_bytes()), Err(Fault::Size));
    }

    #[test]
    fn cve_2022_44571_and_cve_2025_49007_and_cve_2022_30122_long_dispositions() {
        let shapes = [
            part(&format!("name=\"{}\"", "\\".repeat(6000)), "x"),
            part(&format!("name=\"x\"; filename=\"{}", "\\\"".repeat(3000)), "x"),
            part(&format!("{}name=\"x\"", ";".repeat(5000)), "x"),
            part(&format!("name=\"{}\"", "\\\"".repeat(65)), "x"),
            part("name=\"x\"; name=\"y\"", "x"),
            part("name=\"x\"; filename=\"a\"; Filename=\"b\"", "x"),
            part("name=\"x\r\n folded\"", "x"),
            "--b\r\nContent-Disposition: form-data; name=\"a\"\r\ncontent-disposition: form-data; name=\"b\"\r\n\r\nx\r\n".to_owned(),
        ];
        for shape in shapes {
            assert!(matches!(scan((shape.clone() + "--b--").as_bytes()), Err(Fault::Size | Fault::Shape)), "{shape:.80}");
        }
    }

    #[test]
    fn what_is_no_multipart_body_is_refused() {
        for body in ["x", "--b", "--b\r\nContent-Disposition: form-data", "--c\r\n\r\n\r\n--c--\r\n", "\r\n--b\r\n"] {
            assert_eq!(scan(body.as_bytes()), Err(Fault::Shape), "{body}");
        }
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(words in proptest::collection::vec(prop::sample::select(vec![
            "--b", "\r\n", "--", "b", "Content-Disposition: form-data; name=\"x\"", "; filename=\"y\"", "\r\n\r\n", "x", "-", "\r", "\n",
        ]), 0..24)) {
            scan(words.concat().as_bytes()).ok();
        }
    }
}
