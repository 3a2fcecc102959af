//! YAML with line numbers, and with ERB kept apart: Rails runs its YAML through ERB, we never do.
//!
//! Threat 4, exposure. The tree is built from the parser's events; aliases are not expanded, so a document cannot
//! grow, and depth is bounded.

use saphyr_parser::{Event, Parser};

/// Stands in a scalar where the file has `<%= … %>`.
pub const ERB: &str = "__erb__";

/// A node and the line it begins on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub line: u32,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Scalar(String),
    Mapping(Vec<(String, Node)>),
    Sequence(Vec<Node>),
    Alias,
}

/// A scalar with the names that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf<'n> {
    pub path: Vec<&'n str>,
    pub value: &'n str,
    pub line: u32,
}

impl Node {
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Kind::Mapping(entries) = &self.kind else { return None };
        entries.iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    #[must_use]
    pub fn scalar(&self) -> Option<&str> {
        if let Kind::Scalar(text) = &self.kind { Some(text) } else { None }
    }

    #[must_use]
    pub fn items(&self) -> &[Self] {
        if let Kind::Sequence(items) = &self.kind { items } else { &[] }
    }

    #[must_use]
    pub fn entries(&self) -> &[(String, Self)] {
        if let Kind::Mapping(entries) = &self.kind { entries } else { &[] }
    }

    /// Every scalar with its path. The elements of a sequence have the sequence's path.
    #[must_use]
    pub fn leaves(&self) -> Vec<Leaf<'_>> {
        let mut leaves = Vec::new();
        self.collect(&mut Vec::new(), &mut leaves);
        leaves
    }

    fn collect<'n>(&'n self, path: &mut Vec<&'n str>, leaves: &mut Vec<Leaf<'n>>) {
        match &self.kind {
            Kind::Scalar(value) => leaves.push(Leaf { path: path.clone(), value, line: self.line }),
            Kind::Mapping(entries) => {
                for (name, node) in entries {
                    path.push(name);
                    node.collect(path, leaves);
                    path.pop();
                }
            }
            Kind::Sequence(items) => items.iter().for_each(|item| item.collect(path, leaves)),
            Kind::Alias => {}
        }
    }
}

/// Parse the documents of a file; `None` if it is not YAML.
#[must_use]
pub fn parse(source: &str) -> Option<Vec<Node>> {
    let source = without_erb(source);
    let mut documents = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(&source) {
        let (event, span) = event.ok()?;
        let line = u32::try_from(span.start.line()).unwrap_or(u32::MAX);
        let finished = match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => continue,
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= DEPTH => return None,
            Event::SequenceStart(..) => {
                open.push(Open { line, mapping: false, key: None, entries: Vec::new(), items: Vec::new() });
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open { line, mapping: true, key: None, entries: Vec::new(), items: Vec::new() });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => open.pop()?.close(),
            Event::Scalar(text, ..) => Node { line, kind: Kind::Scalar(text.into_owned()) },
            Event::Alias(_) => Node { line, kind: Kind::Alias },
        };
        match open.last_mut() {
            Some(parent) => parent.take(finished),
            None => documents.push(finished),
        }
    }
    Some(documents)
}

/// A collection whose end has not come yet.
struct Open {
    line: u32,
    mapping: bool,
    key: Option<String>,
    entries: Vec<(String, Node)>,
    items: Vec<Node>,
}

impl Open {
    fn take(&mut self, node: Node) {
        if !self.mapping {
            self.items.push(node);
        } else if let Some(key) = self.key.take() {
            self.entries.push((key, node));
        } else {
            self.key = Some(node.scalar().unwrap_or_default().to_owned());
        }
    }

    fn close(self) -> Node {
        let kind = if self.mapping { Kind::Mapping(self.entries) } else { Kind::Sequence(self.items) };
        Node { line: self.line, kind }
    }
}

/// `<%= … %>` becomes a marker, `<% … %>` nothing; lines keep their numbers.
fn without_erb(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("<%") {
        text.push_str(before);
        let (inside, after) = tag.split_once("%>").unwrap_or((tag, ""));
        if inside.starts_with('=') {
            text.push_str(ERB);
        }
        text.extend(inside.chars().filter(|c| *c == '\n'));
        rest = after;
    }
    text.push_str(rest);
    text
}

/// Deeper than any configuration file.
const DEPTH: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_have_their_path_and_line() {
        let source = "default: &default\n  adapter: postgresql\nproduction:\n  <<: *default\n  password: \"x y\"\n  hosts:\n    - a\n";
        let documents = parse(source).unwrap();
        let leaves = documents[0].leaves();
        assert_eq!(leaves[1], Leaf { path: vec!["production", "password"], value: "x y", line: 5 });
        assert_eq!(leaves[2], Leaf { path: vec!["production", "hosts"], value: "a", line: 7 });
        assert_eq!(leaves.len(), 3);
    }

    #[test]
    fn erb_is_marked_and_not_run() {
        let source = "<% if true %>\na: <%= ENV.fetch(\"X\") { 5 } %>\n<% end %>\nb: 2\n";
        let documents = parse(source).unwrap();
        assert_eq!(documents[0].get("a").and_then(Node::scalar), Some(ERB));
        assert_eq!(documents[0].get("b").map(|node| node.line), Some(4));
    }

    #[test]
    fn what_is_no_yaml_or_too_deep_has_no_tree() {
        assert_eq!(parse("a: [b"), None);
        assert_eq!(parse(&"[".repeat(10_000)), None);
    }
}
