//! The closed list of Ruby methods that the static evaluator knows.
//!
//! Threat 4, exposure: each is pure and does what Ruby does for the values given, or answers "not known". None reads
//! a file, asks the network, or looks at the clock.

use std::path::{Component, Path, PathBuf};

use super::value::Value;

/// A method of a known value: `"a".to_sym`, `2 * n`, `[a, b].max`.
pub(super) fn of_value(receiver: &Value, name: &str, arguments: &[Value], line: u32) -> Value {
    if let ("==" | "!=", [other]) = (name, arguments) {
        return Value::Bool((receiver == other) == (name == "=="));
    }
    let result = match (name, arguments) {
        ("!", []) => receiver.truth().map(|truth| Value::Bool(!truth)),
        ("nil?", []) => Some(Value::Bool(*receiver == Value::Nil)),
        ("to_s", []) => receiver.text().map(Value::Str),
        ("freeze" | "dup" | "itself", []) => Some(receiver.clone()),
        _ => match receiver {
            Value::Int(value) => of_integer(*value, name, arguments),
            Value::Float(value) => of_float(*value, name, arguments),
            Value::Str(text) => of_string(text, name, arguments),
            Value::Sym(text) => match (name, arguments) {
                ("to_sym", []) => Some(receiver.clone()),
                _ => of_string(text, name, arguments),
            },
            Value::Array(values) => of_array(values, name, arguments),
            Value::Hash(_) => match (name, arguments) {
                ("[]" | "fetch", [key]) => key.as_str().and_then(|key| receiver.entry(key)).cloned(),
                _ => None,
            },
            Value::Nil => match (name, arguments) {
                ("to_i", []) => Some(Value::Int(0)),
                ("to_a", []) => Some(Value::Array(Vec::new())),
                _ => None,
            },
            Value::Bool(_) | Value::Unknown(_) => None,
        },
    };
    result.unwrap_or_else(|| Value::unknown(line, format!("the method `{name}`")))
}

/// A method of a module: `File.join`, `Etc.nprocessors`.
pub(super) fn of_module(module: &str, name: &str, arguments: &[Value], directory: &Path, line: u32) -> Value {
    if let Some(why) = arguments.iter().find_map(Value::why) {
        return Value::Unknown(why.clone());
    }
    let texts: Option<Vec<&str>> = arguments.iter().map(Value::as_str).collect();
    let texts = texts.unwrap_or_default();
    let text = |text: String| Value::Str(text);
    let result = match (module, name, texts.as_slice()) {
        ("File", "join", [_, ..]) => Some(text(join(&texts))),
        ("File", "expand_path" | "absolute_path", [path]) => Some(text(expand(path, directory))),
        ("File", "expand_path" | "absolute_path", [path, base]) => Some(text(expand(path, Path::new(&expand(base, directory))))),
        ("File", "dirname", [path]) => {
            Path::new(path).parent().map(|parent| text(if parent == Path::new("") { ".".into() } else { parent.display().to_string() }))
        }
        ("File", "basename", [path]) => Path::new(path).file_name().map(|name| text(name.to_string_lossy().into_owned())),
        ("Dir", "pwd" | "getwd", []) => Some(text(directory.display().to_string())),
        ("Etc", "nprocessors", []) => processors().map(Value::Int),
        _ => None,
    };
    result.unwrap_or_else(|| Value::unknown(line, format!("{module}.{name}")))
}

/// A method of every object: `Integer(…)`.
pub(super) fn of_kernel(name: &str, arguments: &[Value], line: u32) -> Value {
    if let Some(why) = arguments.iter().find_map(Value::why) {
        return Value::Unknown(why.clone());
    }
    let result = match (name, arguments) {
        ("Integer", [value]) => value.integer().map(Value::Int),
        ("Float", [Value::Float(value)]) => Some(Value::Float(*value)),
        ("Float", [Value::Str(value)]) => value.trim().parse().ok().map(Value::Float),
        ("String", [value]) => value.text().map(Value::Str),
        ("Array", [Value::Array(values)]) => Some(Value::Array(values.clone())),
        _ => None,
    };
    result.unwrap_or_else(|| Value::unknown(line, format!("the call `{name}`")))
}

fn of_integer(value: i64, name: &str, arguments: &[Value]) -> Option<Value> {
    Some(match (name, arguments) {
        ("to_i" | "floor" | "ceil" | "round" | "abs", []) if value >= 0 || name != "abs" => Value::Int(value),
        ("zero?", []) => Value::Bool(value == 0),
        ("positive?", []) => Value::Bool(value > 0),
        ("seconds" | "second", []) => return None,
        ("-@", []) => Value::Int(value.checked_neg()?),
        (_, [Value::Int(other)]) => match name {
            "+" => Value::Int(value.checked_add(*other)?),
            "-" => Value::Int(value.checked_sub(*other)?),
            "*" => Value::Int(value.checked_mul(*other)?),
            "/" if *other > 0 => Value::Int(value.div_euclid(*other)),
            "%" if *other > 0 => Value::Int(value.rem_euclid(*other)),
            "**" => Value::Int(value.checked_pow(u32::try_from(*other).ok()?)?),
            "<" => Value::Bool(value < *other),
            "<=" => Value::Bool(value <= *other),
            ">" => Value::Bool(value > *other),
            ">=" => Value::Bool(value >= *other),
            _ => return None,
        },
        ("clamp", [Value::Int(low), Value::Int(high)]) if low <= high => Value::Int(value.clamp(*low, *high)),
        (_, [Value::Float(_)]) => return of_float(float(value)?, name, arguments),
        _ => return None,
    })
}

fn of_float(value: f64, name: &str, arguments: &[Value]) -> Option<Value> {
    let other = match arguments {
        [] => None,
        [Value::Float(other)] => Some(*other),
        [Value::Int(other)] => Some(float(*other)?),
        _ => return None,
    };
    Some(match (name, other) {
        ("to_f", None) => Value::Float(value),
        ("to_i" | "truncate", None) => Value::Int(whole(value.trunc())?),
        ("floor", None) => Value::Int(whole(value.floor())?),
        ("ceil", None) => Value::Int(whole(value.ceil())?),
        ("round", None) => Value::Int(whole(value.round())?),
        ("+", Some(other)) => Value::Float(value + other),
        ("-", Some(other)) => Value::Float(value - other),
        ("*", Some(other)) => Value::Float(value * other),
        ("/", Some(other)) if other != 0.0 => Value::Float(value / other),
        ("<", Some(other)) => Value::Bool(value < other),
        (">", Some(other)) => Value::Bool(value > other),
        _ => return None,
    })
}

fn of_string(text: &str, name: &str, arguments: &[Value]) -> Option<Value> {
    let string = |text: String| Some(Value::Str(text));
    match (name, arguments) {
        ("to_i", []) => Some(Value::Int(leading_integer(text))),
        ("to_f", []) => text.trim().parse().ok().map(Value::Float),
        ("to_sym" | "intern", []) => Some(Value::Sym(text.to_owned())),
        ("to_str", []) => string(text.to_owned()),
        ("strip", []) => string(text.trim().to_owned()),
        ("chomp", []) => string(text.strip_suffix('\n').unwrap_or(text).to_owned()),
        ("downcase", []) => string(text.to_lowercase()),
        ("upcase", []) => string(text.to_uppercase()),
        ("empty?", []) => Some(Value::Bool(text.is_empty())),
        ("length" | "size", []) => i64::try_from(text.chars().count()).ok().map(Value::Int),
        ("+", [Value::Str(other)]) => string(format!("{text}{other}")),
        ("start_with?", [Value::Str(other)]) => Some(Value::Bool(text.starts_with(other.as_str()))),
        ("end_with?", [Value::Str(other)]) => Some(Value::Bool(text.ends_with(other.as_str()))),
        ("include?", [Value::Str(other)]) => Some(Value::Bool(text.contains(other.as_str()))),
        ("split", [Value::Str(other)]) if !other.trim().is_empty() => {
            let mut parts: Vec<_> = text.split(other.as_str()).map(|part| Value::Str(part.to_owned())).collect();
            while parts.last() == Some(&Value::Str(String::new())) {
                parts.pop();
            }
            Some(Value::Array(parts))
        }
        _ => None,
    }
}

fn of_array(values: &[Value], name: &str, arguments: &[Value]) -> Option<Value> {
    let integers = || values.iter().map(|value| if let Value::Int(value) = value { Some(*value) } else { None });
    match (name, arguments) {
        ("max", []) => integers().collect::<Option<Vec<_>>>()?.into_iter().max().map(Value::Int),
        ("min", []) => integers().collect::<Option<Vec<_>>>()?.into_iter().min().map(Value::Int),
        ("sum", []) => integers().collect::<Option<Vec<_>>>()?.into_iter().try_fold(0_i64, i64::checked_add).map(Value::Int),
        ("first", []) => Some(values.first().cloned().unwrap_or(Value::Nil)),
        ("last", []) => Some(values.last().cloned().unwrap_or(Value::Nil)),
        ("length" | "size" | "count", []) => i64::try_from(values.len()).ok().map(Value::Int),
        ("empty?", []) => Some(Value::Bool(values.is_empty())),
        ("any?", []) => values.iter().map(Value::truth).collect::<Option<Vec<_>>>().map(|truths| Value::Bool(truths.contains(&true))),
        ("compact", []) => Some(Value::Array(values.iter().filter(|value| **value != Value::Nil).cloned().collect())),
        ("include?", [value]) => Some(Value::Bool(values.contains(value))),
        ("join", [Value::Str(separator)]) if separator.len() < 8 => {
            values.iter().map(Value::text).collect::<Option<Vec<_>>>().map(|texts| Value::Str(texts.join(separator)))
        }
        ("[]", [Value::Int(index)]) => {
            Some(usize::try_from(*index).ok().and_then(|index| values.get(index)).cloned().unwrap_or(Value::Nil))
        }
        ("+", [Value::Array(others)]) => Some(Value::Array(values.iter().chain(others).cloned().collect())),
        _ => None,
    }
}

/// `String#to_i`: the digits at the front, else 0.
fn leading_integer(text: &str) -> i64 {
    let text = text.trim_start();
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(digits.len());
    let digits = digits.get(..end).unwrap_or_default().replace('_', "");
    digits.parse::<i64>().unwrap_or(0).saturating_mul(sign)
}

/// `File.join`: one slash between the parts, none doubled.
fn join(parts: &[&str]) -> String {
    let mut joined = String::new();
    for (part, first) in parts.iter().zip(std::iter::once(true).chain(std::iter::repeat(false))) {
        if first {
            joined.push_str(part);
            continue;
        }
        while joined.ends_with('/') {
            joined.pop();
        }
        joined.push('/');
        joined.push_str(part.trim_start_matches('/'));
    }
    joined
}

/// `File.expand_path`: absolute, without `.` and `..`, symbolic links untouched.
fn expand(path: &str, base: &Path) -> String {
    let mut expanded = PathBuf::new();
    for component in base.join(path).components() {
        match component {
            Component::ParentDir => {
                expanded.pop();
            }
            Component::CurDir => {}
            Component::Normal(_) | Component::RootDir | Component::Prefix(_) => expanded.push(component),
        }
    }
    expanded.display().to_string()
}

/// What `Etc.nprocessors` answers here: the processors this process may run on.
fn processors() -> Option<i64> {
    let set = rustix::thread::sched_getaffinity(None).ok()?;
    Some(i64::from(set.count()))
}

fn float(value: i64) -> Option<f64> {
    i32::try_from(value).ok().map(f64::from)
}

fn whole(value: f64) -> Option<i64> {
    if value.abs() < f64::from(i32::MAX) { format!("{value:.0}").parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_and_expanded_as_ruby_does() {
        assert_eq!(join(&["a/", "/b", "c"]), "a/b/c");
        assert_eq!(expand("../tmp/./x.sock", Path::new("/srv/app/config")), "/srv/app/tmp/x.sock");
        assert_eq!(expand("/run/x", Path::new("/srv")), "/run/x");
    }

    #[test]
    fn to_i_takes_the_digits_at_the_front() {
        assert_eq!(leading_integer("5 threads"), 5);
        assert_eq!(leading_integer("none"), 0);
        assert_eq!(leading_integer("-3"), -3);
    }

    #[test]
    fn arithmetic_that_overflows_is_not_known() {
        let product = of_value(&Value::Int(i64::MAX), "*", &[Value::Int(2)], 7);
        assert_eq!(product, Value::unknown(7, "the method `*`"));
        assert_eq!(of_value(&Value::Int(-7), "/", &[Value::Int(2)], 1), Value::Int(-4));
        assert_eq!(of_value(&Value::Int(3), "*", &[Value::Float(1.5)], 1), Value::Float(4.5));
    }

    #[test]
    fn this_machine_has_a_processor() {
        assert!(processors().is_some_and(|count| count > 0));
    }
}
