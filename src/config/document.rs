//! Reads TOML and remembers where each key and value stands, so that every complaint can name line and column.

use std::collections::BTreeMap;

use figment::value::{Dict, Value};
use toml_edit::{Document, Item, TableLike};

/// A place in a text: line and column, both from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// Where a key stands, and where its value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub key: Position,
    pub value: Position,
}

/// What a text says, and where it says it. Paths are joined by dots; elements of lists count from 0.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub dict: Dict,
    pub spans: BTreeMap<String, Span>,
}

/// The first place at which a text is not TOML. The parser's own rendering is not used, as it quotes the line.
#[derive(Debug)]
pub(super) struct Malformed {
    pub at: Position,
    pub why: String,
}

/// Reads a document.
pub(super) fn read(text: &str) -> Result<Tree, Malformed> {
    let document = Document::parse(text).map_err(|error| Malformed {
        at: position(text, error.span().map_or(0, |span| span.start)),
        why: error.message().lines().collect::<Vec<_>>().join(", "),
    })?;
    let mut reader = Reader { text, spans: BTreeMap::new() };
    let dict = reader.table(document.as_table(), "");
    Ok(Tree { dict, spans: reader.spans })
}

/// Reads one value as it would stand after `key =`; `None` where it is not TOML.
pub(super) fn literal(text: &str) -> Option<Value> {
    read(&format!("v = {text}")).ok().filter(|tree| tree.dict.len() == 1)?.dict.remove("v")
}

/// The path of `key` in the table at `path`.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

struct Reader<'t> {
    text: &'t str,
    spans: BTreeMap<String, Span>,
}

impl Reader<'_> {
    fn table(&mut self, table: &dyn TableLike, path: &str) -> Dict {
        let mut dict = Dict::new();
        for (name, item) in table.iter() {
            let path = join(path, name);
            let key = table.key(name).and_then(|key| key.span());
            let value = item.span();
            let start = key.or(value.clone()).map_or(0, |span| span.start);
            self.note(&path, start, value.map_or(start, |span| span.start));
            if let Some(value) = self.item(item, &path) {
                dict.insert(name.to_owned(), value);
            }
        }
        dict
    }

    fn item(&mut self, item: &Item, path: &str) -> Option<Value> {
        match item {
            Item::None => None,
            Item::Value(value) => Some(self.value(value, path)),
            Item::Table(table) => Some(self.table(table, path).into()),
            Item::ArrayOfTables(tables) => {
                let mut list = Vec::with_capacity(tables.len());
                for (index, table) in tables.iter().enumerate() {
                    let path = join(path, &index.to_string());
                    let start = table.span().map_or(0, |span| span.start);
                    self.note(&path, start, start);
                    list.push(self.table(table, &path).into());
                }
                Some(Value::Array(figment::value::Tag::Default, list))
            }
        }
    }

    fn value(&mut self, value: &toml_edit::Value, path: &str) -> Value {
        match value {
            toml_edit::Value::String(v) => v.value().as_str().into(),
            toml_edit::Value::Integer(v) => (*v.value()).into(),
            toml_edit::Value::Float(v) => (*v.value()).into(),
            toml_edit::Value::Boolean(v) => (*v.value()).into(),
            toml_edit::Value::Datetime(v) => v.value().to_string().into(),
            toml_edit::Value::InlineTable(table) => self.table(table, path).into(),
            toml_edit::Value::Array(array) => {
                let mut list = Vec::with_capacity(array.len());
                for (index, value) in array.iter().enumerate() {
                    let path = join(path, &index.to_string());
                    let start = value.span().map_or(0, |span| span.start);
                    self.note(&path, start, start);
                    list.push(self.value(value, &path));
                }
                Value::Array(figment::value::Tag::Default, list)
            }
        }
    }

    fn note(&mut self, path: &str, key: usize, value: usize) {
        let span = Span { key: position(self.text, key), value: position(self.text, value) };
        self.spans.insert(path.to_owned(), span);
    }
}

fn position(text: &str, offset: usize) -> Position {
    let before = text.get(..offset).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |at| at.saturating_add(1));
    let line = before.bytes().filter(|byte| *byte == b'\n').count().saturating_add(1);
    let column = before.get(start..).unwrap_or("").chars().count().saturating_add(1);
    Position { line, column }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_and_value_has_its_place() {
        let tree = read("a = 1\n[t]\n  b.c = [\"ü\", 2]\n[[l]]\nx = 1\n[[l]]\nx = { y = true }\n").unwrap();
        let at = |path: &str| {
            let span = tree.spans[path];
            ((span.key.line, span.key.column), (span.value.line, span.value.column))
        };
        assert_eq!(at("a"), ((1, 1), (1, 5)));
        assert_eq!(at("t.b.c").0, (3, 5));
        assert_eq!(at("t.b.c.1").1, (3, 15));
        assert_eq!(at("l.1").0, (6, 1));
        assert_eq!(at("l.1.x.y"), ((7, 7), (7, 11)));
        assert_eq!(tree.dict["t"].find_ref("b.c").unwrap().as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_text_that_is_no_toml_is_named_by_line_and_never_quoted() {
        let bad = read("a = 1\nb = planted planted\n").unwrap_err();
        assert_eq!(bad.at.line, 2);
        assert!(!bad.why.contains("planted"), "{}", bad.why);
    }

    #[test]
    fn a_literal_is_exactly_one_value() {
        assert!(literal("[1, 2]").is_some());
        assert!(literal("1\nw = 2").is_none());
        assert!(literal("00123").is_none());
    }
}
