//! Which rules can be about a path, without a look at each: a thousand rules cost what those cost that are about the path.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// Rules by the first segment of the paths that they are about.
#[derive(Debug)]
pub struct Index {
    /// Rules that may match whatever the segment is.
    any: Vec<usize>,
    by_segment: HashMap<Box<[u8]>, Vec<usize>, RandomState>,
    reads_paths: bool,
}

impl Index {
    /// From the paths of each rule, in order; a rule without one is about every path.
    pub fn new<'a>(rules: impl Iterator<Item = &'a [String]>) -> Self {
        let mut index = Index { any: Vec::new(), by_segment: HashMap::default(), reads_paths: false };
        for (number, paths) in rules.enumerate() {
            index.reads_paths |= !paths.is_empty();
            let segments: Option<Vec<&[u8]>> = paths.iter().map(|path| segment_of_pattern(path.as_bytes())).collect();
            match segments.filter(|segments| !segments.is_empty()) {
                None => index.any.push(number),
                Some(segments) => {
                    for segment in segments {
                        let numbers = index.by_segment.entry(segment.into()).or_default();
                        if numbers.last() != Some(&number) {
                            numbers.push(number);
                        }
                    }
                }
            }
        }
        index
    }

    /// Whether any rule asks for the path.
    pub fn reads_paths(&self) -> bool {
        self.reads_paths
    }

    /// The numbers of the rules that may match, in order. A rule that is not among them does not match.
    pub fn candidates(&self, path: &[u8]) -> impl Iterator<Item = usize> {
        let of_path = segment(path).and_then(|segment| self.by_segment.get(segment)).map_or(&[][..], Vec::as_slice);
        let (mut any, mut of_path) = (self.any.iter().copied().peekable(), of_path.iter().copied().peekable());
        std::iter::from_fn(move || match (any.peek(), of_path.peek()) {
            (Some(one), Some(other)) if other < one => of_path.next(),
            (None, _) => of_path.next(),
            (Some(_), _) => any.next(),
        })
    }
}

/// The first segment of a path, up to where a rule's path may end.
fn segment(path: &[u8]) -> Option<&[u8]> {
    path.strip_prefix(b"/")?.split(|b| matches!(b, b'/' | b'.' | b';')).next()
}

/// The first segment that every path has which the pattern matches; `None` where they differ in it.
fn segment_of_pattern(pattern: &[u8]) -> Option<&[u8]> {
    segment(pattern).filter(|segment| !segment.is_empty() && !segment.contains(&b'*'))
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::{super::rate_rule::Match, *};
    use crate::units::OneOrMany;

    fn piece() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!["/", "a", "b", "ab", ".", ";", "*", "//"]), 0..5).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn the_rules_that_match_are_found_in_order_and_none_is_missed(
            rules in prop::collection::vec(prop::collection::vec(piece().prop_map(|path| format!("/{path}")), 0..3), 0..8),
            path in piece().prop_map(|path| format!("/{}", path.replace('*', "a"))),
        ) {
            let rules: Vec<Match> = rules.into_iter().map(|path| Match { path: OneOrMany(path), ..Match::default() }).collect();
            let request = Request::get("/").body(()).unwrap();
            let all: Vec<usize> = (0..rules.len()).filter(|n| rules[*n].route(&request, path.as_bytes()).is_some()).collect();
            let index = Index::new(rules.iter().map(|rule| rule.path.0.as_slice()));
            let found: Vec<usize> = index.candidates(path.as_bytes()).collect();
            prop_assert!(found.is_sorted_by(|a, b| a < b), "{found:?}");
            prop_assert_eq!(found.into_iter().filter(|n| rules[*n].route(&request, path.as_bytes()).is_some()).collect::<Vec<_>>(), all);
        }
    }

    #[test]
    fn of_a_thousand_rules_for_other_paths_none_is_looked_at() {
        let rules: Vec<Vec<String>> = (0..1000).map(|n| vec![format!("/other{n}")]).chain([vec![], vec!["/a/*".to_owned()]]).collect();
        let index = Index::new(rules.iter().map(Vec::as_slice));
        assert_eq!(index.candidates(b"/a/b").collect::<Vec<_>>(), [1000, 1001]);
        assert_eq!(index.candidates(b"/other7.json").collect::<Vec<_>>(), [7, 1000]);
        assert_eq!(index.candidates(b"*").collect::<Vec<_>>(), [1000]);
        assert!(index.reads_paths() && Index::new(["*.php".to_owned()].chunks(1)).reads_paths());
        assert!(!Index::new([[].as_slice()].into_iter()).reads_paths());
    }
}
