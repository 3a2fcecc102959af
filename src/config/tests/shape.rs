//! The JSON Schema as an editor reads it: it takes what is committed and rejects every misspelt key and wrong type.

use serde_json::{Value, json};

use super::*;

/// Whether a document is of the shape, by the words of JSON Schema that ours uses.
fn is_of(shape: &Value, document: &Value) -> bool {
    let any = ["anyOf", "oneOf"].iter().find_map(|word| shape.get(word)).and_then(Value::as_array);
    if any.is_some_and(|shapes| !shapes.iter().any(|shape| is_of(shape, document))) {
        return false;
    }
    if shape.get("const").is_some_and(|only| only != document) {
        return false;
    }
    if shape.get("enum").and_then(Value::as_array).is_some_and(|known| !known.contains(document)) {
        return false;
    }
    let is_type = |name: &Value| match name.as_str().unwrap() {
        "object" => document.is_object(),
        "array" => document.is_array(),
        "string" => document.is_string(),
        "boolean" => document.is_boolean(),
        "integer" => document.is_i64() || document.is_u64(),
        "number" => document.is_number(),
        other => panic!("the type {other} is not known to this test"),
    };
    match shape.get("type") {
        Some(Value::Array(names)) if !names.iter().any(is_type) => return false,
        Some(name @ Value::String(_)) if !is_type(name) => return false,
        Some(_) | None => {}
    }
    if let (Some(least), Some(number)) = (shape.get("minimum").and_then(Value::as_f64), document.as_f64())
        && number < least
    {
        return false;
    }
    match document {
        Value::Object(table) => {
            let known = schema::properties(shape);
            let other = shape.get("additionalProperties");
            let needed = shape.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
            needed.into_iter().all(|key| table.contains_key(key))
                && table.iter().all(|(key, value)| match (known.and_then(|known| known.get(key)), other) {
                    (Some(shape), _) => is_of(shape, value),
                    (None, Some(Value::Bool(allowed))) => *allowed,
                    (None, Some(shape)) => is_of(shape, value),
                    (None, None) => true,
                })
        }
        Value::Array(items) => shape.get("items").is_none_or(|shape| items.iter().all(|item| is_of(shape, item))),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

fn read(text: &str) -> Value {
    serde_json::to_value(Layer::of_text(text, &Place::Flag).unwrap().dict).unwrap()
}

/// The document with one key or value changed, for each that it has.
fn changed(document: &Value, change: &dyn Fn(&mut serde_json::Map<String, Value>, &str)) -> Vec<Value> {
    let mut all = Vec::new();
    match document {
        Value::Object(table) => {
            for key in table.keys() {
                let mut other = table.clone();
                change(&mut other, key);
                all.push(Value::Object(other));
                for inner in changed(&table[key], change) {
                    let mut other = table.clone();
                    other.insert(key.clone(), inner);
                    all.push(Value::Object(other));
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                for inner in changed(item, change) {
                    let mut other = items.clone();
                    other[index] = inner;
                    all.push(Value::Array(other));
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    all
}

#[test]
fn the_schema_takes_every_committed_configuration() {
    for file in ["proxy.toml", "deploy/edge/proxy.toml"] {
        assert!(is_of(schema::schema(), &read(&committed(file))), "{file}");
    }
    assert!(is_of(schema::schema(), &json!({})));
}

#[test]
fn the_schema_rejects_every_misspelt_key_and_every_table_for_a_value() {
    let document = read(&committed("proxy.toml"));
    let misspelt = changed(&document, &|table, key| {
        let value = table.remove(key).unwrap();
        table.insert(format!("{key}x"), value);
    });
    let tables = changed(&document, &|table, key| drop(table.insert(key.to_owned(), json!({ "no such key": true }))));
    assert!(misspelt.len() > 150, "{}", misspelt.len());
    for wrong in misspelt.iter().chain(&tables) {
        assert!(!is_of(schema::schema(), wrong), "{wrong:#}");
    }
}
