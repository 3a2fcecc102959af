//! Views into a request target (RFC 9112 §3.2) as it was sent.
//!
//! `http::Uri` refuses some bytes that browsers send and hides others, so path and query are read from the target itself.

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use super::percent::Decoder;

/// A target in absolute-form, split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absolute<'a> {
    /// Before `://`.
    pub scheme: &'a [u8],
    /// Between `://` and the path, the query or the end.
    pub authority: &'a [u8],
    /// From the path or the query on; may be empty.
    pub rest: &'a [u8],
}

/// A path as the application will understand it: decoded once, without repeated slashes. For comparing only.
pub type Understood = SmallVec<[u8; 128]>;

/// Splits a target in absolute-form; `None` for the other forms.
pub fn absolute(target: &[u8]) -> Option<Absolute<'_>> {
    if target.first().is_none_or(|b| *b == b'/') {
        return None;
    }
    let colon = memchr::memmem::find(target, b"://")?;
    let (scheme, rest) = target.split_at_checked(colon)?;
    let rest = rest.get(3..)?;
    let end = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at_checked(end)?;
    Some(Absolute { scheme, authority, rest })
}

/// The path of a target in origin-form or absolute-form; empty in the other forms and where there is none.
pub fn path(target: &[u8]) -> &[u8] {
    let origin = match absolute(target) {
        Some(absolute) => absolute.rest,
        None => target,
    };
    let end = memchr::memchr(b'?', origin).unwrap_or(origin.len());
    origin.get(..end).unwrap_or_default()
}

/// What stands behind the first `?`.
pub fn query(target: &[u8]) -> Option<&[u8]> {
    let at = memchr::memchr(b'?', target)?;
    target.get(at.saturating_add(1)..)
}

/// The origin-form of an absolute-form.
pub fn origin(target: &Bytes, absolute: Absolute<'_>) -> Bytes {
    match absolute.rest.first() {
        None => Bytes::from_static(b"/"),
        Some(b'/') => target.slice_ref(absolute.rest),
        Some(_) => {
            let mut origin = BytesMut::with_capacity(absolute.rest.len().saturating_add(1));
            origin.put_u8(b'/');
            origin.put_slice(absolute.rest);
            origin.freeze()
        }
    }
}

/// The path as an application understands it. A malformed escape stays as it is.
pub fn understood(target: &[u8]) -> Understood {
    let path = path(target);
    let mut out = Understood::new();
    for step in Decoder::new(path) {
        let byte = step.map_or(b'%', |decoded| decoded.byte);
        if byte != b'/' || out.last() != Some(&b'/') {
            out.push(byte);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absolute_form_is_split_at_its_authority() {
        let split = absolute(b"http://shop.example:80/a?b=//c").unwrap();
        assert_eq!((split.scheme, split.authority, split.rest), (&b"http"[..], &b"shop.example:80"[..], &b"/a?b=//c"[..]));
        assert_eq!(absolute(b"/redirect?to=http://a.example/"), None);
        assert_eq!(absolute(b"*"), None);
        assert_eq!(absolute(b"shop.example:80/"), None);
    }

    #[test]
    fn the_origin_form_always_starts_with_a_slash() {
        for (from, to) in [("http://a", "/"), ("http://a?x=1", "/?x=1"), ("http://a/b?c", "/b?c")] {
            let target = Bytes::from(from);
            assert_eq!(origin(&target, absolute(&target).unwrap()), to.as_bytes(), "{from}");
        }
    }

    #[test]
    fn path_and_query_are_parted_by_the_first_question_mark() {
        assert_eq!(path(b"/a/b?c?d"), b"/a/b");
        assert_eq!(query(b"/a/b?c?d"), Some(&b"c?d"[..]));
        assert_eq!(query(b"/a"), None);
        assert_eq!(path(b"https://h/a?b"), b"/a");
    }

    #[test]
    fn a_path_is_understood_decoded_once_and_without_repeated_slashes() {
        assert_eq!(understood(b"//%73ession%2f/%252e?x").as_slice(), b"/session/%2e");
        assert_eq!(understood(b"/a%zz").as_slice(), b"/a%zz");
    }
}
