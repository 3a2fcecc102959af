//! What a path may hold (rule T4, RFC 3986 §3.3 and §6.2.2).
//!
//! Threat: exposure. `/public/..%2f..%2fconfig` is one path for a proxy's rule and another one for the application; malformed
//! escapes, NUL and invalid UTF-8 are exceptions in Ruby. So a path that can be understood twice is refused, and any other is
//! passed on byte for byte.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::percent::{Decoder, Utf8};

/// `[framing.path]` in `proxy.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PathPolicy {
    /// `.` and `..` as segments, also as `%2e`: `reject`, `normalize` (RFC 3986 §5.2.4) or `keep`. Default: reject.
    pub dot_segments: DotSegments,
    /// `//`: `keep` or `merge`. Default: keep.
    pub double_slash: DoubleSlash,
    /// `%2F`: `keep` or `reject`. Default: keep, as names of branches and files have it.
    pub encoded_slash: Keep,
    /// `\`: `reject` or `keep`. Default: reject; browsers never send one.
    pub backslash: Keep,
    /// Escapes that are no UTF-8: `reject` or `keep`. Default: reject.
    pub invalid_utf8: Keep,
}

/// What happens to dot segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DotSegments {
    /// 400.
    Reject,
    /// Resolved before anything else reads the path.
    Normalize,
    /// Passed on.
    Keep,
}

/// What happens to repeated slashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DoubleSlash {
    /// Passed on.
    Keep,
    /// Made one.
    Merge,
}

/// Whether something is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// Passed on.
    Keep,
    /// 400.
    Reject,
}

impl Default for PathPolicy {
    fn default() -> Self {
        PathPolicy {
            dot_segments: DotSegments::Reject,
            double_slash: DoubleSlash::Keep,
            encoded_slash: Keep::Keep,
            backslash: Keep::Reject,
            invalid_utf8: Keep::Reject,
        }
    }
}

/// What a look at a path found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    /// A malformed escape, NUL or a line break: never passed on.
    malformed: bool,
    /// A dot segment between plain slashes, which can be resolved.
    plain_dots: bool,
    /// A dot segment next to an encoded slash, a backslash or a parameter: `..%2f`, `..;`.
    hidden_dots: bool,
    double_slash: bool,
    encoded_slash: bool,
    backslash: bool,
    invalid_utf8: bool,
}

impl PathPolicy {
    /// Whether a target in origin-form passes as it is (`None`), passes as another target, or is refused.
    pub fn apply(&self, target: &Bytes) -> Result<Option<Bytes>, Refused> {
        let end = memchr::memchr(b'?', target).unwrap_or(target.len());
        let (path, query) = target.split_at_checked(end).ok_or(Refused)?;
        let found = look(path);
        let dots = found.plain_dots || found.hidden_dots;
        if found.malformed
            || (found.encoded_slash && self.encoded_slash == Keep::Reject)
            || (found.backslash && self.backslash == Keep::Reject)
            || (found.invalid_utf8 && self.invalid_utf8 == Keep::Reject)
            || (dots && self.dot_segments == DotSegments::Reject)
            || (found.hidden_dots && self.dot_segments == DotSegments::Normalize)
        {
            return Err(Refused);
        }
        let resolve = found.plain_dots && self.dot_segments == DotSegments::Normalize;
        let merge = found.double_slash && self.double_slash == DoubleSlash::Merge;
        if !resolve && !merge {
            return Ok(None);
        }
        let mut rewritten = rewrite(path, resolve, merge).ok_or(Refused)?;
        rewritten.extend_from_slice(query);
        Ok(Some(Bytes::from(rewritten)))
    }
}

/// The path has two readings, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// A segment so far: how many dots, if nothing else.
#[derive(Clone, Copy)]
enum Segment {
    Dots(u8),
    Other,
}

fn look(path: &[u8]) -> Found {
    let mut found = Found::default();
    let mut utf8 = Utf8::new();
    let mut segment = Segment::Other;
    let mut plain = true;
    let mut previous = 0;
    for step in Decoder::new(path) {
        let Ok(decoded) = step else {
            found.malformed = true;
            return found;
        };
        let byte = decoded.byte;
        found.malformed |= decoded.escaped && matches!(byte, 0 | b'\r' | b'\n');
        found.invalid_utf8 |= !utf8.push(byte);
        found.encoded_slash |= decoded.escaped && byte == b'/';
        found.backslash |= !decoded.escaped && byte == b'\\';
        found.double_slash |= byte == b'/' && previous == b'/';
        previous = byte;
        match byte {
            b'/' | b'\\' => {
                let ends_plain = byte == b'/' && !decoded.escaped;
                found.note(segment, plain && ends_plain);
                segment = Segment::Dots(0);
                plain = ends_plain;
            }
            b';' => {
                found.note(segment, false);
                segment = Segment::Other;
            }
            b'.' => {
                segment = match segment {
                    Segment::Dots(n) if n < 2 => Segment::Dots(n.saturating_add(1)),
                    Segment::Dots(_) | Segment::Other => Segment::Other,
                };
            }
            _ => segment = Segment::Other,
        }
    }
    found.note(segment, plain);
    found.invalid_utf8 |= !utf8.is_complete();
    found
}

impl Found {
    fn note(&mut self, segment: Segment, plain: bool) {
        if let Segment::Dots(1 | 2) = segment {
            self.plain_dots |= plain;
            self.hidden_dots |= !plain;
        }
    }
}

/// Resolves dot segments and merges slashes; `None` where `..` leads above the root.
fn rewrite(path: &[u8], resolve: bool, merge: bool) -> Option<Vec<u8>> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path.split(|b| *b == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        let dots = if resolve { dots(segment) } else { 0 };
        if dots == 2 {
            let parent = out.iter().rposition(|b| *b == b'/')?;
            out.truncate(parent);
        }
        if dots > 0 {
            if last {
                out.push(b'/');
            }
            continue;
        }
        if merge && segment.is_empty() && !last {
            continue;
        }
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    Some(out)
}

/// 1 for `.`, 2 for `..`, however written; else 0.
fn dots(segment: &[u8]) -> usize {
    let mut count = 0_usize;
    for step in Decoder::new(segment) {
        match step {
            Ok(decoded) if decoded.byte == b'.' => count = count.saturating_add(1),
            Ok(_) | Err(_) => return 0,
        }
    }
    if count <= 2 { count } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn apply(policy: PathPolicy, path: &str) -> Result<Option<String>, Refused> {
        let done = policy.apply(&Bytes::copy_from_slice(path.as_bytes()))?;
        Ok(done.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()))
    }

    #[test]
    fn a_plain_path_passes_byte_for_byte() {
        for path in [
            "/",
            "/a;b=c/@x/(y)!$&'*+,=:~_-.",
            "/group%2Fproject",
            "/%E6%97%A5%E6%9C%AC/caf%C3%A9",
            "//a//b",
            "/%252e%252e%252fetc",
            "/a...b/...",
            "/.well-known/acme",
            "/a/b?x=/../y&z=%00%0d%0a%zz",
            "/a/.b/c.",
        ] {
            assert_eq!(apply(PathPolicy::default(), path), Ok(None), "{path}");
        }
    }

    #[test]
    fn a_path_with_two_readings_is_refused() {
        for path in [
            "/a/../b",
            "/..",
            "/a/%2e%2e/b",
            "/a/.%2E",
            "/a/./b",
            "/a/..%2f..%2fb",
            "/x/..;/admin",
            "/x/..%5cb",
            "/a%00",
            "/a%0d%0ab",
            "/a%zz",
            "/a%4",
            "/a%",
            "/%ff%fe",
            "/%c0%af",
            "/%c0%ae%c0%ae/",
            "/%ed%a0%80",
            "/a\\b",
            "/%e6%97",
        ] {
            assert_eq!(apply(PathPolicy::default(), path), Err(Refused), "{path}");
        }
    }

    #[test]
    fn each_policy_can_be_chosen() {
        let policy = PathPolicy { encoded_slash: Keep::Reject, ..PathPolicy::default() };
        assert_eq!(apply(policy, "/a%2fb"), Err(Refused));
        let policy = PathPolicy { invalid_utf8: Keep::Keep, backslash: Keep::Keep, ..PathPolicy::default() };
        assert_eq!(apply(policy, "/%ff\\x"), Ok(None));
        let policy = PathPolicy { dot_segments: DotSegments::Keep, ..PathPolicy::default() };
        assert_eq!(apply(policy, "/a/../b"), Ok(None));
    }

    #[test]
    fn dot_segments_are_resolved_as_the_rfc_does() {
        let policy = PathPolicy { dot_segments: DotSegments::Normalize, ..PathPolicy::default() };
        for (from, to) in [
            ("/a/b/c/./../../g", "/a/g"),
            ("/a/%2e%2e/b?x=/../", "/b?x=/../"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/.", "/"),
            ("/a//../b", "/a/b"),
        ] {
            assert_eq!(apply(policy, from), Ok(Some(to.to_owned())), "{from}");
        }
        for bad in ["/../a", "/a/../../b", "/a/..%2fb", "/a/..;x/b"] {
            assert_eq!(apply(policy, bad), Err(Refused), "{bad}");
        }
    }

    #[test]
    fn slashes_are_merged_only_in_the_path() {
        let policy = PathPolicy { double_slash: DoubleSlash::Merge, ..PathPolicy::default() };
        assert_eq!(apply(policy, "//a///b/?u=http://x"), Ok(Some("/a/b/?u=http://x".to_owned())));
        assert_eq!(apply(policy, "//"), Ok(Some("/".to_owned())));
    }

    proptest! {
        #[test]
        fn a_normalized_path_passes_the_strict_policy_unchanged(path in "(/|\\.|%2e|a|%2F){0,12}") {
            let policy = PathPolicy { dot_segments: DotSegments::Normalize, ..PathPolicy::default() };
            if let Ok(Some(path)) = apply(policy, &format!("/{path}")) {
                prop_assert_eq!(apply(PathPolicy::default(), &path), Ok(None));
            }
        }
    }
}
