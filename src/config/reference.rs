//! The reference, written from the doc comments of the `Config` types: `proxy.toml` with every setting at its default, and
//! `docs/configuration.md`. Tests compare the committed files with what is written here.

use std::fmt::Write as _;

use serde_json::Value;

use super::{
    Config,
    document::join,
    explain::toml,
    schema::{allows, alternatives, expectation, items, properties, schema},
};

/// `proxy.toml`: every setting at its default, each with its comment.
pub fn proxy_toml() -> String {
    let mut page = Page::default();
    page.comment(INTRODUCTION, "# ");
    page.line("");
    // A configuration is plain data, which JSON can always hold.
    page.table(schema(), "", &serde_json::to_value(Config::default()).unwrap_or_default());
    page.text
}

/// `docs/configuration.md`: every setting by name.
pub fn markdown() -> String {
    let mut page = Page::default();
    page.line(HEAD);
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    page.section(schema(), "", "", &defaults);
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
}

/// How a key is written.
enum Shape<'n> {
    Value,
    Table(&'n Value),
    Tables(&'n Value),
}

fn shape(node: &Value) -> Shape<'_> {
    let is_table = |node: &&Value| properties(node).is_some_and(|table| !table.is_empty());
    if let Some(item) = items(node).and_then(|item| alternatives(item).into_iter().find(is_table)) {
        return Shape::Tables(item);
    }
    match alternatives(node).into_iter().find(is_table) {
        Some(table) => Shape::Table(table),
        None => Shape::Value,
    }
}

impl Page {
    fn table(&mut self, node: &Value, path: &str, values: &Value) {
        let Some(keys) = properties(node) else { return };
        if !keys.values().any(|node| matches!(shape(node), Shape::Value)) {
            self.line("");
        }
        for (key, node) in keys.iter().filter(|(_, node)| matches!(shape(node), Shape::Value)) {
            self.about(node, "# ");
            match values.get(key) {
                Some(value) if !value.is_null() => self.line(&format!("{key} = {}\n", toml(value))),
                Some(_) | None => self.line(&format!("# {key} = {}\n", example(node))),
            }
        }
        for (key, node) in keys {
            let path = join(path, key);
            match shape(node) {
                Shape::Value => {}
                Shape::Table(inner) => {
                    self.rule(&path);
                    self.comment(&description(node), "# ");
                    match values.get(key) {
                        Some(values @ Value::Object(_)) => {
                            self.line(&format!("[{path}]"));
                            self.table(inner, &path, values);
                        }
                        Some(_) | None => {
                            self.line(&format!("# [{path}]"));
                            self.commented(inner, "", &Value::Null);
                        }
                    }
                }
                Shape::Tables(inner) => {
                    self.rule(&path);
                    self.comment(&description(node), "# ");
                    let entries = values.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                    for entry in entries {
                        self.line(&format!("[[{path}]]"));
                        self.table(inner, &path, entry);
                    }
                    if entries.is_empty() {
                        self.line(&format!("# [[{path}]]"));
                        self.commented(inner, "", &Value::Null);
                    }
                }
            }
        }
    }

    /// A table that is not there by default, as a comment.
    fn commented(&mut self, node: &Value, path: &str, values: &Value) {
        let Some(keys) = properties(node) else { return };
        for (key, node) in keys {
            let path = join(path, key);
            if let Shape::Table(inner) = shape(node) {
                self.about(node, "#   # ");
                self.commented(inner, &path, values.get(key).unwrap_or(&Value::Null));
            } else {
                self.about(node, "#   # ");
                let default = node.get("default").filter(|value| !value.is_null()).map_or_else(|| example(node), toml);
                self.line(&format!("#   {path} = {default}"));
            }
        }
        if path.is_empty() {
            self.line("");
        }
    }

    fn section(&mut self, node: &Value, path: &str, shown: &str, values: &Value) {
        let Some(keys) = properties(node) else { return };
        for (key, node) in keys.iter().filter(|(_, node)| matches!(shape(node), Shape::Value)) {
            self.line(&format!("### `{}`\n", join(shown, key)));
            self.paragraphs(&description(node));
            let default = values.get(key).or_else(|| node.get("default")).filter(|value| !value.is_null());
            let default = default.map_or_else(|| "not set".to_owned(), |value| format!("`{}`", toml(value)));
            self.line(&format!("Expects {}. Default: {default}.\n", expectation(node)));
            self.choices(node);
        }
        for (key, node) in keys {
            let path = join(path, key);
            let values = values.get(key).unwrap_or(&Value::Null);
            let (title, shown, inner, values) = match shape(node) {
                Shape::Value => continue,
                Shape::Table(inner) => (format!("[{path}]"), path.clone(), inner, values),
                Shape::Tables(inner) => (format!("[[{path}]]"), format!("{path}[]"), inner, &Value::Null),
            };
            self.line(&format!("## `{title}`\n"));
            self.paragraphs(&description(node));
            self.section(inner, &path, &shown, values);
        }
    }

    /// What each of a few words means.
    fn choices(&mut self, node: &Value) {
        let words = alternatives(node).into_iter().filter_map(|node| Some((node.get("const")?, node.get("description")?.as_str()?)));
        let lines = words.map(|(word, about)| format!("- `{word}`: {}\n", about.replace('\n', " "))).collect::<String>();
        if !lines.is_empty() {
            self.line(&lines);
        }
    }

    fn about(&mut self, node: &Value, start: &str) {
        let about = description(node);
        self.comment(&about, start);
        if alternatives(node).into_iter().any(|node| node.get("const").or(node.get("enum")).is_some()) {
            self.comment(&format!("Expects {}.", expectation(node)), start);
        }
    }

    fn paragraphs(&mut self, text: &str) {
        for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
            self.line(&format!("{}\n", paragraph.replace('\n', " ")));
        }
    }

    /// Words in comment lines of readable width.
    fn comment(&mut self, text: &str, start: &str) {
        for paragraph in text.split("\n\n") {
            let mut line = String::new();
            for word in paragraph.split_whitespace() {
                if !line.is_empty() && line.chars().count().saturating_add(word.chars().count()) > WIDTH {
                    self.line(&format!("{start}{line}"));
                    line.clear();
                }
                line.push_str(if line.is_empty() { "" } else { " " });
                line.push_str(word);
            }
            if !line.is_empty() {
                self.line(&format!("{start}{line}"));
            }
        }
    }

    fn rule(&mut self, path: &str) {
        let dashes = "-".repeat(WIDTH.saturating_sub(path.len()));
        self.line(&format!("# {path} {dashes}"));
    }

    fn line(&mut self, text: &str) {
        // Writing to a string cannot fail.
        writeln!(self.text, "{text}").unwrap_or_default();
    }
}

/// What a key is about. A short `Default: 5 s.` is left out, as the value itself stands beside it.
fn description(node: &Value) -> String {
    let text = node.get("description").and_then(Value::as_str).unwrap_or("");
    let Some((before, rest)) = text.split_once("Default: ") else { return text.to_owned() };
    let end = [". ", ".\n"].iter().filter_map(|end| rest.find(end)).min().or_else(|| rest.strip_suffix('.').map(str::len));
    match end.and_then(|end| Some((end, rest.get(end.saturating_add(1)..)?))) {
        Some((length, after)) if length <= LONGEST => format!("{}{after}", before.trim_end()),
        Some(_) | None => text.to_owned(),
    }
}

/// A value that a key without a default may have.
fn example(node: &Value) -> String {
    if let Some(value) = node.get("examples").and_then(Value::as_array).and_then(|list| list.first()) {
        return toml(value);
    }
    let first = alternatives(node).into_iter().find_map(|node| node.get("const").or_else(|| node.get("enum")?.get(0)));
    if let Some(word) = first {
        return toml(word);
    }
    let typed = ["string", "integer", "number", "boolean", "array"].into_iter().find(|name| allows(node, name));
    match typed {
        Some("integer") => "1".to_owned(),
        Some("number") => "0.5".to_owned(),
        Some("boolean") => "false".to_owned(),
        Some("array") => "[]".to_owned(),
        Some(_) | None => "\"\"".to_owned(),
    }
}

const WIDTH: usize = 118;
/// A longer clause about the default says more than its value.
const LONGEST: usize = 24;

const INTRODUCTION: &str = "\
Every setting of Palisade at its default; a file that says only what differs is better. `palisade check` names all that is \
wrong with a file, `palisade config show` says what is in force and who set it.

Times: \"500ms\", \"10s\", \"5m\", \"1h\". Sizes: \"512\", \"32KiB\", \"64MiB\", \"5GiB\". Rates: \"10/s\", \"300/min\". Rates in bytes: \"500B/s\".

Weakest first: built-in, profile, this file, conf.d/*.toml beside it, environment (PALISADE_LIMITS__BODY=5GiB), --set.
Tables merge, lists do not.";

const HEAD: &str = "\
# Configuration

Written from the source by `make reference`; a test proves that it is current.

Settings come from, weakest first: the built-in defaults, the profile, the file (`-c`, else `$PALISADE_CONFIG`, `./proxy.toml`,
`/etc/palisade/proxy.toml`), `conf.d/*.toml` beside it in the order of their names, the environment, `--set key=value`. Tables
merge, lists do not. `palisade config show` prints each value in force and who set it.

In the environment, two underscores stand for a dot: `PALISADE_LIMITS__BODY=5GiB`. The key says which type the text has, so
`00123` stays a text where a text is meant. Lists are written with commas. `PALISADE_X_FILE` reads `x` from a file. A variable
that is no setting refuses the start, except those that Kubernetes sets for a service named `palisade`.

Secrets are read from files only, by keys that end in `_file`: a path, or `credential:NAME` for a systemd credential. Nobody but
the owner may read them, except the group of a file that root owns. A configuration file that others may write refuses the start.

Times: `\"500ms\"`, `\"10s\"`, `\"5m\"`, `\"1h\"`, `\"7d\"`. Sizes in bytes: `\"512\"`, `\"32KiB\"`, `\"64MiB\"`, `\"5GiB\"`. Rates: `\"10/s\"`,
`\"300/min\"`. Rates in bytes: `\"500B/s\"`, `\"64KiB/s\"`.

| exit code | meaning |
|---|---|
| 0 | ok |
| 1 | failed while running |
| 2 | usage |
| 3 | configuration invalid |
| 4 | cannot bind |
| 5 | upstream not ready |
| 6 | audit findings |
| 7 | certificate problem |
| 8 | admin socket unreachable |

## Top level
";
