//! The shape of `proxy.toml` as JSON Schema (draft 2020-12), derived from the `Config` types and their doc comments.
//!
//! One description serves four readers: editors (`palisade config schema`), the typing of environment variables, the
//! sentences that say what was expected, and the generated reference.

use std::{borrow::Cow, sync::OnceLock};

use schemars::{JsonSchema, Schema as Node, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Map, Value};

use super::{Config, document::join};
use crate::{
    accept::{listener, trusted::TrustedProxies},
    admin,
    layers::{ban_config, in_flight, rate_rule},
    units::{Auto, BadUnit, ByteRate, ByteSize, Deadline, Mode, OneOrMany, Rate},
    upstream::connect,
};

/// Stands for an address or a network, `ipnet::IpNet`, in the description.
#[derive(Debug)]
pub struct Network;

/// The description of the whole configuration, made once.
pub fn schema() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
        let mut schema = settings.into_generator().into_root_schema_for::<Config>().to_value();
        without_null(&mut schema);
        set_title(&mut schema);
        accept_shorthands(&mut schema);
        schema
    })
}

/// The description of the key at `path`; numbers in it are positions in lists.
pub(super) fn node(path: &str) -> Option<&'static Value> {
    path.split('.').filter(|key| !key.is_empty()).try_fold(schema(), step)
}

/// The keys of the table at `path`, in the order of the documentation.
pub(super) fn keys(path: &str) -> Vec<&'static str> {
    let tables = node(path).map(alternatives).unwrap_or_default();
    tables.iter().filter_map(|table| properties(table)).flat_map(|table| table.keys().map(String::as_str)).collect()
}

/// The keys that the table at `path` cannot do without.
pub(super) fn required(path: &str) -> Vec<&'static str> {
    let tables = node(path).map(alternatives).unwrap_or_default();
    let lists = tables.into_iter().filter_map(|table| table.get("required").and_then(Value::as_array));
    lists.flatten().filter_map(Value::as_str).collect()
}

/// The keys of one description, where it describes a table with known keys.
pub(super) fn properties(node: &Value) -> Option<&Map<String, Value>> {
    node.get("properties").and_then(Value::as_object)
}

/// The description of the elements, where the key may hold a list.
pub(super) fn items(node: &Value) -> Option<&Value> {
    alternatives(node).into_iter().find_map(|node| node.get("items"))
}

/// A description, or those that it offers to choose from.
pub(super) fn alternatives(node: &Value) -> Vec<&Value> {
    let choice = ["anyOf", "oneOf"].iter().find_map(|word| node.get(word)).and_then(Value::as_array);
    match choice {
        Some(choice) => choice.iter().flat_map(alternatives).collect(),
        None => vec![node],
    }
}

/// Whether the key may hold a value of this JSON type.
pub(super) fn allows(node: &Value, name: &str) -> bool {
    alternatives(node).into_iter().any(|node| match node.get("type") {
        Some(Value::String(one)) => one == name,
        Some(Value::Array(many)) => many.iter().any(|one| one == name),
        Some(_) => false,
        None if node.get("const").or(node.get("enum")).is_some() => name == "string",
        None => node.as_bool() == Some(true) || node.as_object().is_some_and(|node| !node.contains_key("properties")),
    })
}

/// What the key expects, as the end of a sentence: `one of "json", "off"`.
pub(super) fn expectation(node: &Value) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut texts: Vec<String> = Vec::new();
    for node in alternatives(node) {
        match (choices(node), node.get("items")) {
            (Some(choices), _) => texts.extend(choices),
            (None, Some(items)) if is_one_or_many(&words, &texts, items) => words.push("a list of such".to_owned()),
            (None, Some(_) | None) => words.push(expected_type(node)),
        }
    }
    match texts.as_slice() {
        [] => {}
        [one] => words.insert(0, one.clone()),
        many => words.insert(0, format!("one of {}", many.join(", "))),
    }
    words.dedup();
    words.join(", or ")
}

/// The alternative to a list is one of its elements.
fn is_one_or_many(words: &[String], texts: &[String], items: &Value) -> bool {
    let element = expectation(items);
    words.contains(&element) || (!texts.is_empty() && texts.iter().all(|text| element.contains(text)))
}

/// Every key that holds a value, as paths; elements of lists of tables are `name.0.key`.
pub(super) fn leaves() -> Vec<String> {
    let mut found = Vec::new();
    collect(schema(), "", &mut found);
    found
}

fn collect(node: &Value, path: &str, found: &mut Vec<String>) {
    let mut is_leaf = true;
    for node in alternatives(node) {
        if let Some(table) = properties(node).filter(|table| !table.is_empty()) {
            is_leaf = false;
            for (key, node) in table {
                collect(node, &join(path, key), found);
            }
        } else if let Some(items) = node.get("items").filter(|items| alternatives(items).iter().any(|n| properties(n).is_some())) {
            is_leaf = false;
            collect(items, &join(path, "0"), found);
        }
    }
    if is_leaf && !found.iter().any(|known| known == path) {
        found.push(path.to_owned());
    }
}

fn step<'n>(node: &'n Value, key: &str) -> Option<&'n Value> {
    let index = key.bytes().all(|byte| byte.is_ascii_digit());
    alternatives(node).into_iter().find_map(|node| {
        let named = properties(node).and_then(|table| table.get(key));
        let listed = || node.get("items").filter(|_| index);
        named.or_else(listed).or_else(|| node.get("additionalProperties").filter(|other| other.is_object()))
    })
}

fn choices(node: &Value) -> Option<Vec<String>> {
    let quoted = |value: &Value| value.to_string();
    match (node.get("const"), node.get("enum").and_then(Value::as_array)) {
        (Some(one), _) => Some(vec![quoted(one)]),
        (None, Some(many)) => Some(many.iter().map(quoted).collect()),
        (None, None) => None,
    }
}

fn expected_type(node: &Value) -> String {
    if let Some(said) = node.get(EXPECTS).and_then(Value::as_str) {
        return said.to_owned();
    }
    let bound = |word: &str| node.get(word).and_then(Value::as_i64);
    let first = match node.get("type") {
        Some(Value::Array(many)) => many.first().and_then(Value::as_str),
        Some(one) => one.as_str(),
        None => None,
    };
    match first {
        Some("integer") => match (bound("minimum"), bound("maximum")) {
            (Some(least), Some(most)) => format!("a whole number from {least} to {most}"),
            (Some(least), None) => format!("a whole number, {least} or more"),
            (None, Some(most)) => format!("a whole number, {most} or less"),
            (None, None) => "a whole number".to_owned(),
        },
        Some("number") => "a number, such as 0.5".to_owned(),
        Some("boolean") => "true or false".to_owned(),
        Some("string") => "a text in quotes".to_owned(),
        Some("array") => match node.get("items") {
            Some(items) if properties(items).is_none() => format!("a list in brackets, each {}", expectation(items)),
            Some(_) | None => "a list of tables".to_owned(),
        },
        Some(_) | None => "a table".to_owned(),
    }
}

/// TOML has no null: a key without a value is left out.
fn without_null(node: &mut Value) {
    match node {
        Value::Array(list) => list.iter_mut().for_each(without_null),
        Value::Object(map) => {
            if let Some(Value::Array(types)) = map.get_mut("type") {
                types.retain(|name| name != "null");
                if let [one] = types.as_slice() {
                    let one = one.clone();
                    map.insert("type".to_owned(), one);
                }
            }
            if let Some(Value::Array(choice)) = map.get_mut("anyOf") {
                choice.retain(|node| node.get("type").is_none_or(|name| name != "null"));
                if let [Value::Object(one)] = choice.as_slice() {
                    let mut one = one.clone();
                    map.shift_remove("anyOf");
                    one.extend(std::mem::take(map));
                    *map = one;
                }
            }
            if let Some(Value::Array(values)) = map.get_mut("enum") {
                values.retain(|value| !value.is_null());
            }
            map.retain(|word, value| word != "default" || !value.is_null());
            map.values_mut().for_each(without_null);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn set_title(schema: &mut Value) {
    if let Some(map) = schema.as_object_mut() {
        map.insert("title".to_owned(), "Palisade's proxy.toml".into());
    }
}

/// What may be written shorter than it is held: see `source::expand`.
fn accept_shorthands(schema: &mut Value) {
    for (key, _) in super::source::SHORTHANDS {
        let Some(slot) = schema.get_mut("properties").and_then(|table| table.get_mut(key)) else { continue };
        let table = slot.take();
        let about = table.get("description").cloned().unwrap_or_default();
        *slot = serde_json::json!({ "description": about, "anyOf": [{ "type": "string" }, table] });
    }
}

/// A type that is written as one value, and the sentence about it; the sentences of quantities are those of their errors.
macro_rules! described {
    ($($t:ty: $schema:tt, $expects:expr;)*) => {$(
        impl JsonSchema for $t {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($t).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Node {
                let mut schema = json_schema!($schema);
                schema.insert(EXPECTS.to_owned(), $expects.into());
                schema
            }
        }
    )*};
}
described! {
    Deadline: { "type": "string", "pattern": "^[0-9]+([.][0-9]{1,6})? ?(ms|s|m|min|h|d|y)$" }, said("".parse::<Deadline>().err());
    ByteSize: { "type": ["string", "integer"], "pattern": "^[0-9]+([.][0-9]{1,6})? ?([KMGT]i?B?|[kmgt]B?|B)?$" }, said("?".parse::<ByteSize>().err());
    Rate: { "type": "string", "pattern": "^[1-9][0-9]*/(s|sec|second|min|m|minute|h|hour|d|day)$" }, said("".parse::<Rate>().err());
    ByteRate: { "type": "string", "pattern": "^[0-9]+([.][0-9]{1,6})? ?([KMGT]i?B?|[kmgt]B?|B)?/s$" }, said("".parse::<ByteRate>().err());
    Network: { "type": "string" }, "an address or a network, such as \"10.0.0.0/8\" or \"2001:db8::/32\"";
    TrustedProxies: { "type": ["array", "string"], "items": { "type": "string" } },
        "networks such as \"10.0.0.0/8\", addresses, or \"loopback\", \"private\", \"cloudflare\", \"unix\"";
    listener::Address: { "type": "string" }, "\":443\", \"127.0.0.1:8080\", \"[::1]:8080\", \"unix:/path\" or \"fd:NAME\"";
    connect::Address: { "type": "string" }, "\"puma\", \"http://127.0.0.1:3000\" or \"unix:/path\", with * in the file's name for several";
    admin::Listen: { "type": "string" }, "\"127.0.0.1:9394\", \"unix:/path\" or \"off\"";
    rate_rule::Name: { "type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$" }, "a name of 1 to 64 letters, digits, - and _";
    rate_rule::KeyPart: { "type": "string", "examples": ["ip"] },
        "\"ip\", \"ip_prefix\", \"header:NAME\", \"cookie:NAME\", \"host\", \"method\" or \"route\"";
    ban_config::Trigger: { "type": "string", "examples": ["severe"] }, "\"severe\", \"status:404\" or the label of a refusal";
    in_flight::Max: { "type": ["integer", "string"], "minimum": 0 }, "\"auto\" or a whole number";
    in_flight::Share: { "type": "number", "minimum": 0, "maximum": 1 }, "a part from 0 to 1, such as 0.5";
}

impl JsonSchema for Mode {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Mode".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Node {
        json_schema!({ "enum": ["enforce", "observe", "off"] })
    }
}

fn said(error: Option<BadUnit>) -> String {
    error.map(|error| error.to_string().trim_start_matches("expected ").to_owned()).unwrap_or_default()
}

/// The annotation that says in words what a key expects.
const EXPECTS: &str = "x-expects";

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMany_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Node {
        let one = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
    }
}

impl<T: JsonSchema> JsonSchema for Auto<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Auto_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Node {
        let value = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [{ "const": "auto", "description": "Palisade finds it out." }, value] })
    }
}
