//! Finds everything that is wrong with one source, by the very types that the configuration is read into.
//!
//! serde stops at the first error. So the source is read, the key at fault is named and taken out, and the rest is read
//! again until nothing is wrong. Each source is judged alone: a bad value is named even where a stronger one hides it.
//! What was expected comes from the schema; the value that was found never enters a sentence.

use std::collections::{BTreeMap, BTreeSet};

use figment::{error::Kind, value::Value};
use serde::Deserialize;

use super::{
    Config,
    document::join,
    problem::{Place, Problem},
    schema,
    source::Layer,
};

/// Takes what cannot be used out of a source and says why.
pub(super) fn check(layer: &mut Layer) -> Vec<Problem> {
    let mut value = Value::from(std::mem::take(&mut layer.dict));
    let mut removed = Removed::default();
    let mut problems = Vec::new();
    while let Err(error) = Config::deserialize(&value) {
        let path = error.path.clone();
        let original = removed.original(&value, &path);
        if let Kind::MissingField(name) = &error.kind {
            problems.extend(missing(layer, &original, name, at(&value, &path), &removed));
        } else {
            problems.push(problem(layer, &original, &error.kind, at(&value, &path)));
        }
        removed.note(&value, &path, &original);
        if path.is_empty() || !take(&mut value, &path) {
            break;
        }
    }
    if let Value::Dict(_, dict) = value {
        layer.dict = dict;
    }
    problems.sort_by_key(|problem| problem.place.position());
    problems
}

/// What was taken out so far, as the source wrote it: positions in lists move up when an element goes.
#[derive(Default)]
struct Removed {
    keys: BTreeSet<String>,
    elements: BTreeMap<String, BTreeSet<usize>>,
}

impl Removed {
    /// The path as the source wrote it.
    fn original(&self, value: &Value, path: &[String]) -> String {
        let mut walked = String::new();
        let mut here = Some(value);
        for key in path {
            let shifted = match here {
                Some(Value::Array(..)) => self.shifted(&walked, key),
                Some(_) | None => None,
            };
            here = here.and_then(|value| child(value, key));
            walked = join(&walked, &shifted.unwrap_or_else(|| key.clone()));
        }
        walked
    }

    fn shifted(&self, list: &str, key: &str) -> Option<String> {
        let gone = self.elements.get(list)?;
        let position = key.parse::<usize>().ok()?;
        (0..).filter(|index| !gone.contains(index)).nth(position).map(|index| index.to_string())
    }

    fn note(&mut self, value: &Value, path: &[String], original: &str) {
        self.keys.insert(original.to_owned());
        let Some((_, parents)) = path.split_last() else { return };
        let Some((list, index)) = original.rsplit_once('.') else { return };
        if let (Some(Value::Array(..)), Ok(index)) = (at(value, parents), index.parse()) {
            self.elements.entry(list.to_owned()).or_default().insert(index);
        }
    }
}

/// Every key that a table lacks, but for those that were wrong and taken out.
fn missing(layer: &Layer, path: &str, name: &str, table: Option<&Value>, removed: &Removed) -> Vec<Problem> {
    let present = |key: &str| table.and_then(Value::as_dict).is_some_and(|dict| dict.contains_key(key));
    let mut needed = schema::required(path);
    if needed.is_empty() {
        needed.push(name);
    }
    let keys = needed.into_iter().filter(|key| !present(key)).map(|key| join(path, key)).filter(|key| !removed.keys.contains(key));
    let problem = |key: String| {
        let expected = schema::node(&key).map(schema::expectation).unwrap_or_default();
        Problem::new(nearest(layer, path).0, key, format!("is missing: expected {expected}"), "")
    };
    keys.map(problem).collect()
}

fn problem(layer: &Layer, path: &str, kind: &Kind, found: Option<&Value>) -> Problem {
    let (key_place, value_place) = nearest(layer, path);
    match kind {
        Kind::UnknownField(name, _) => {
            let table = path.strip_suffix(name.as_str()).unwrap_or("").trim_end_matches('.');
            Problem::new(key_place, path, "unknown key", suggestion(table, name))
        }
        Kind::MissingField(name) => Problem::new(key_place, join(path, name), "is missing", ""),
        Kind::DuplicateField(_) => Problem::new(key_place, path, "is set twice", "remove one"),
        Kind::Message(said) => Problem::new(value_place, path, safe(said, path, found), ""),
        Kind::UnknownVariant(_, known) => match schema::node(path) {
            Some(node) => Problem::new(value_place, path, format!("expected {}", schema::expectation(node)), ""),
            None => Problem::new(value_place, path, format!("expected one of {}", known.join(", ")), ""),
        },
        Kind::InvalidType(_, wanted) | Kind::InvalidValue(_, wanted) | Kind::InvalidLength(_, wanted) => {
            let expected = schema::node(path).map_or_else(|| wanted.clone(), schema::expectation);
            Problem::new(value_place, path, format!("expected {expected}"), "")
        }
        Kind::ISizeOutOfRange(_) | Kind::USizeOutOfRange(_) | Kind::Unsupported(_) | Kind::UnsupportedKey(..) => {
            Problem::new(value_place, path, "expected a smaller number", "")
        }
    }
}

/// A sentence of a type of ours, unless it is serde's about alternatives, or quotes what it found.
fn safe(said: &str, path: &str, found: Option<&Value>) -> String {
    let quotes = found.is_some_and(|value| quoted_by(value, said));
    let expected = schema::node(path).map(schema::expectation).filter(|text| !text.is_empty());
    match expected {
        Some(expected) if quotes || said.starts_with("data did not match any variant") => format!("expected {expected}"),
        None if quotes => "is not what was expected here".to_owned(),
        Some(_) | None => said.to_owned(),
    }
}

/// Whether a sentence contains any text of the value, however deep.
fn quoted_by(value: &Value, said: &str) -> bool {
    match value {
        Value::String(_, text) => !text.is_empty() && said.contains(text.as_str()),
        Value::Char(_, c) => said.contains(*c),
        Value::Bool(..) | Value::Empty(..) => false,
        Value::Num(_, number) => number.to_u128().is_some_and(|n| said.contains(&n.to_string())),
        Value::Dict(_, dict) => dict.values().any(|value| quoted_by(value, said)),
        Value::Array(_, list) => list.iter().any(|value| quoted_by(value, said)),
    }
}

/// The place of the key, or of the nearest table or list around it.
fn nearest(layer: &Layer, path: &str) -> (Place, Place) {
    let mut path = path;
    loop {
        if let Some(place) = layer.places.get(path) {
            return place.clone();
        }
        match path.rsplit_once('.') {
            Some((around, _)) => path = around,
            None => return (Place::BuiltIn, Place::BuiltIn),
        }
    }
}

/// What an unknown key was probably meant to be.
fn suggestion(table: &str, name: &str) -> String {
    let known = schema::keys(table);
    let secret = format!("{name}_file");
    if known.contains(&secret.as_str()) {
        return format!("secrets are read from files only: name the file in {}", join(table, &secret));
    }
    let close = |key: &&&str| strsim::damerau_levenshtein(name, key) <= (name.len() / 3).clamp(1, 3);
    if let Some(key) = known.iter().filter(close).min_by_key(|key| strsim::damerau_levenshtein(name, key)) {
        return format!("did you mean {}?", join(table, key));
    }
    let elsewhere = schema::leaves().into_iter().filter(|path| path.rsplit('.').next() == Some(name)).collect::<Vec<_>>();
    match elsewhere.as_slice() {
        [] if known.is_empty() || known.len() > 16 => "see docs/configuration.md for the keys".to_owned(),
        [] => format!("known here: {}", known.join(", ")),
        places => format!("did you mean {}?", places.join(" or ")),
    }
}

fn child<'v>(value: &'v Value, key: &str) -> Option<&'v Value> {
    match value {
        Value::Dict(_, dict) => dict.get(key),
        Value::Array(_, list) => list.get(key.parse::<usize>().ok()?),
        Value::String(..) | Value::Char(..) | Value::Bool(..) | Value::Num(..) | Value::Empty(..) => None,
    }
}

fn at<'v>(value: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, key| child(value, key))
}

/// Takes the value at `path` out; says whether there was one.
fn take(value: &mut Value, path: &[String]) -> bool {
    let Some((key, rest)) = path.split_first() else { return false };
    match value {
        Value::Dict(_, dict) if rest.is_empty() => dict.remove(key).is_some(),
        Value::Dict(_, dict) => dict.get_mut(key).is_some_and(|value| take(value, rest)),
        Value::Array(_, list) => match key.parse::<usize>() {
            Ok(index) if rest.is_empty() && index < list.len() => {
                list.remove(index);
                true
            }
            Ok(index) => list.get_mut(index).is_some_and(|value| take(value, rest)),
            Err(_) => false,
        },
        Value::String(..) | Value::Char(..) | Value::Bool(..) | Value::Num(..) | Value::Empty(..) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let mut layer = Layer::of_text(text, &Place::Flag).unwrap();
        check(&mut layer).iter().map(Problem::to_string).collect()
    }

    #[test]
    fn an_empty_source_is_right() {
        assert_eq!(problems(""), Vec::<String>::new());
    }

    #[test]
    fn a_key_in_the_wrong_table_is_sent_to_the_right_one() {
        assert_eq!(
            problems("[limits]\nbody_stall = \"1s\""),
            ["--set: limits.body_stall: unknown key\n  remedy: did you mean timeouts.body_stall?"]
        );
    }
}
