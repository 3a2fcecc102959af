//! What is in force and where it comes from: `palisade config show`, the summary of `check`, and what a reload changes.

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

use figment::value::Value as Setting;
use serde_json::Value;

use super::{
    Config,
    document::join,
    problem::{Invalid, Place},
    source::{Inputs, Layer},
};

/// A configuration that is right, and where each of its values was set.
#[derive(Debug)]
pub struct Loaded {
    /// What is in force.
    pub config: Config,
    inputs: Inputs,
    layers: Vec<Layer>,
}

/// One key in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path, such as `limits.body`.
    pub key: String,
    /// Its value as TOML, without secrets; `None` where it has none.
    pub value: Option<String>,
    /// Who set it.
    pub origin: Place,
}

/// One key that a reload changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its path.
    pub key: String,
    /// The new value only counts after a restart.
    pub needs_restart: bool,
}

impl Loaded {
    pub(super) fn new(config: Config, inputs: Inputs, layers: Vec<Layer>) -> Self {
        Loaded { config, inputs, layers }
    }

    /// Reads the same sources again, for SIGHUP. [`Loaded::changes`] says what is different.
    pub fn again(&self) -> Result<Loaded, Invalid> {
        Config::load(&self.inputs)
    }

    /// The files that a reload reads again.
    pub fn files(&self) -> Vec<PathBuf> {
        self.inputs.named_files()
    }

    /// Who set the key at `path`: the strongest source that does.
    pub fn origin(&self, path: &str) -> Place {
        for layer in self.layers.iter().rev() {
            if let Some((_, value)) = layer.places.get(path) {
                return value.clone();
            }
            // A list is never merged: what an element leaves out is its own default, set by whoever wrote the element.
            if ancestors(path).any(|around| is_list(layer, around)) {
                return ancestors(path).find_map(|around| layer.places.get(around)).map_or(Place::BuiltIn, |(key, _)| key.clone());
            }
        }
        Place::BuiltIn
    }

    /// Every key with its value and origin, in the order of the documentation.
    pub fn entries(&self) -> Vec<Entry> {
        let values = flatten(&self.config);
        values.into_iter().map(|(key, value)| Entry { origin: self.origin(&key), value: shown(&key, &value), key }).collect()
    }

    /// `palisade config show`.
    pub fn show(&self) -> String {
        let entries = self.entries();
        let assignment = |entry: &Entry| match &entry.value {
            Some(value) => format!("{} = {value}", entry.key),
            None => format!("# {} is not set", entry.key),
        };
        let width = entries.iter().map(|entry| assignment(entry).chars().count()).filter(|width| *width <= WIDEST).max().unwrap_or(0);
        let mut text = String::new();
        for entry in &entries {
            let line = assignment(entry);
            // Writing to a string cannot fail.
            writeln!(text, "{line:width$}  # {}", entry.origin).unwrap_or_default();
        }
        text
    }

    /// What differs from the built-in defaults: the summary of `palisade check`.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for entry in self.entries().iter().filter(|entry| self.layers.iter().any(|layer| layer.places.contains_key(&entry.key))) {
            let value = entry.value.as_deref().unwrap_or("not set");
            writeln!(text, "  {} = {value}  ({})", entry.key, entry.origin).unwrap_or_default();
        }
        text
    }

    /// The keys whose values differ in `newer`.
    pub fn changes(&self, newer: &Config) -> Vec<Change> {
        let before = flatten(&self.config).into_iter().collect::<BTreeMap<_, _>>();
        let after = flatten(newer).into_iter().collect::<BTreeMap<_, _>>();
        let keys = before.keys().chain(after.keys().filter(|key| !before.contains_key(*key)));
        let changed = keys.filter(|key| before.get(*key) != after.get(*key));
        changed.map(|key| Change { key: key.clone(), needs_restart: needs_restart(key) }).collect()
    }
}

/// Whether a change of the key only counts after a restart: sockets are bound, privileges given up and threads started once.
pub fn needs_restart(key: &str) -> bool {
    RESTART.iter().any(|fixed| key.strip_prefix(fixed).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.rmatch_indices('.').filter_map(|(at, _)| path.get(..at))
}

fn is_list(layer: &Layer, path: &str) -> bool {
    let mut keys = path.split('.');
    let first = keys.next().and_then(|key| layer.dict.get(key));
    let found = keys.try_fold(first, |value, key| match value {
        Some(Setting::Dict(_, dict)) => Some(dict.get(key)),
        Some(_) | None => None,
    });
    found.flatten().is_some_and(|value| value.as_array().is_some())
}

/// Every value with its path; lists of tables by position.
fn flatten(config: &Config) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    // A configuration is plain data, which JSON can always hold.
    visit(&serde_json::to_value(config).unwrap_or_default(), "", &mut found);
    found
}

fn visit(value: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(table) if !table.is_empty() || path.is_empty() => {
            table.iter().for_each(|(key, value)| visit(value, &join(path, key), found));
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            list.iter().enumerate().for_each(|(index, value)| visit(value, &join(path, &index.to_string()), found));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
            found.push((path.to_owned(), value.clone()));
        }
    }
}

/// A value as TOML, without what may be secret: credentials in an address, and whatever a key by its name keeps secret.
fn shown(key: &str, value: &Value) -> Option<String> {
    if value.is_null() {
        return None;
    }
    let name = key.rsplit('.').find(|part| part.parse::<usize>().is_err()).unwrap_or(key).to_ascii_lowercase();
    if !name.ends_with("_file") && value.is_string() && SECRET.iter().any(|word| name.contains(word)) {
        return Some("\"[redacted]\"".to_owned());
    }
    Some(toml(value))
}

/// A JSON value in TOML's notation.
pub(super) fn toml(value: &Value) -> String {
    match value {
        Value::String(text) => toml_edit::Value::from(without_credentials(text)).to_string(),
        Value::Array(list) => format!("[{}]", list.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(table) if table.is_empty() => "{}".to_owned(),
        Value::Object(table) => {
            let pairs = table.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| format!("{key} = {}", toml(value)));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
        Value::Null => "\"\"".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// `http://user:password@host` without user and password.
fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest.get(..end).and_then(|authority| authority.rfind('@')).and_then(|at| rest.get(at..)) {
        Some(host) => format!("{scheme}://[redacted]{host}"),
        None => text.to_owned(),
    }
}

/// Names of keys whose values are never shown.
const SECRET: [&str; 6] = ["secret", "password", "passwd", "token", "credential", "authorization"];
/// Keys and tables that count at the start only.
const RESTART: [&str; 8] = ["listen", "listener", "server", "upstream", "queue", "buffer.dir", "admin", "log.access_file"];
/// Longer assignments do not move the column of the origins.
const WIDEST: usize = 60;
