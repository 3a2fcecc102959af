//! Content-Type (RFC 9110 §8.3.1) and the boundary of a multipart body (RFC 2046 §5.1.1).
//!
//! Threat: smuggling inside a body and exhaustion: two boundaries are two readings (CVE-2026-26961), long runs of blanks are
//! quadratic in Rack (CVE-2024-25126).

/// A well-formed media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentType<'a> {
    /// `type/subtype`, in any case.
    pub media: &'a [u8],
    /// The boundary parameter without quotes.
    pub boundary: Option<&'a [u8]>,
}

impl<'a> ContentType<'a> {
    /// Reads a field value; `None` where it is malformed or has a boundary that is too long, malformed or not the only one.
    pub fn parse(value: &'a [u8], longest_boundary: usize) -> Option<Self> {
        let mut rest = value;
        let kind = take_while(&mut rest, is_tchar);
        rest = rest.strip_prefix(b"/")?;
        let subtype = take_while(&mut rest, is_tchar);
        if kind.is_empty() || subtype.is_empty() {
            return None;
        }
        let media = value.get(..kind.len().saturating_add(subtype.len()).saturating_add(1))?;
        let mut boundary = None;
        loop {
            take_while(&mut rest, is_blank);
            if rest.is_empty() {
                break;
            }
            rest = rest.strip_prefix(b";")?;
            take_while(&mut rest, is_blank);
            let name = take_while(&mut rest, is_tchar);
            if name.is_empty() {
                continue;
            }
            rest = rest.strip_prefix(b"=")?;
            let is_boundary = name.eq_ignore_ascii_case(b"boundary");
            let text = parameter(&mut rest, is_boundary)?;
            if is_boundary {
                if boundary.is_some() || !is_boundary_text(text, longest_boundary) {
                    return None;
                }
                boundary = Some(text);
            } else if starts_with(name, b"boundary*") {
                return None;
            }
        }
        Some(ContentType { media, boundary })
    }

    /// A media type of several parts.
    pub fn is_multipart(&self) -> bool {
        starts_with(self.media, b"multipart/")
    }

    /// The form of HTML without files.
    pub fn is_form(&self) -> bool {
        self.media.eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
    }
}

/// A token or a quoted string, whose backslashes stay; some senders write a boundary's `=`, `:`, `/` and `?` without quotes.
fn parameter<'a>(rest: &mut &'a [u8], is_boundary: bool) -> Option<&'a [u8]> {
    let Some(quoted) = rest.strip_prefix(b"\"") else {
        let text = take_while(rest, |b| is_tchar(b) || (is_boundary && matches!(b, b'=' | b':' | b'/' | b'?')));
        return (!text.is_empty()).then_some(text);
    };
    let mut escaped = false;
    let end = quoted.iter().position(|b| {
        let ends = *b == b'"' && !escaped;
        escaped = *b == b'\\' && !escaped;
        ends
    })?;
    let text = quoted.get(..end)?;
    *rest = quoted.get(end.saturating_add(1)..)?;
    Some(text)
}

fn is_boundary_text(text: &[u8], longest: usize) -> bool {
    let bchar = |b: &u8| b.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(b);
    (1..=longest).contains(&text.len()) && text.iter().all(bchar) && text.last() != Some(&b' ')
}

fn starts_with(text: &[u8], prefix: &[u8]) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

fn take_while<'a>(rest: &mut &'a [u8], fits: impl Fn(u8) -> bool) -> &'a [u8] {
    let end = rest.iter().position(|b| !fits(*b)).unwrap_or(rest.len());
    let (taken, left) = rest.split_at_checked(end).unwrap_or_default();
    *rest = left;
    taken
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boundary_is_read_with_and_without_quotes() {
        for (value, boundary) in [
            ("multipart/form-data; boundary=b", "b"),
            ("Multipart/Form-Data;BOUNDARY=\"a b:c\"", "a b:c"),
            ("multipart/form-data; charset=utf-8 ; boundary=----=_Part_1.2 ;", "----=_Part_1.2"),
        ] {
            let read = ContentType::parse(value.as_bytes(), 70).unwrap();
            assert!(read.is_multipart());
            assert_eq!(read.boundary, Some(boundary.as_bytes()), "{value}");
        }
        let read = ContentType::parse(b"application/json;", 70).unwrap();
        assert_eq!((read.media, read.boundary), (&b"application/json"[..], None));
        assert!(ContentType::parse(b"text/plain; title=\"a \\\"b\\\"; c\"", 70).is_some());
        assert!(ContentType::parse(b"application/x-www-form-urlencoded; charset=UTF-8", 70).unwrap().is_form());
    }

    #[test]
    fn what_has_no_or_two_readings_is_none() {
        let long = format!("multipart/form-data; boundary={}", "b".repeat(71));
        for value in [
            "",
            ";;;,,",
            "text",
            "text/",
            "/plain",
            "text/plain x",
            "text/plain; x",
            "text/plain; x=",
            "text/plain, text/html",
            "multipart/form-data; boundary=a; boundary=b",
            "multipart/form-data; boundary=a; Boundary=a",
            "multipart/form-data; boundary*0=a",
            "multipart/form-data; boundary=\"a",
            "multipart/form-data; boundary=\"\"",
            "multipart/form-data; boundary=\"a \"",
            "multipart/form-data; boundary=\"a\\b\"",
            "multipart/form-data; boundary=a b",
            &long,
        ] {
            assert_eq!(ContentType::parse(value.as_bytes(), 70), None, "{value}");
        }
    }
}
