//! A static evaluator for the Ruby that configuration files are written in. Nothing is executed.
//!
//! Threat 4, exposure: what is not known stays not known. A branch whose condition is not known is read on both
//! sides, and whatever it sets becomes unknown with the line of the condition; a method outside the subset makes its
//! result unknown. There is no default that hides a gap.
//!
//! The work is bounded: a budget of steps for the whole file, a limit for the turns of one loop, and Ruby's own
//! methods are a closed list in [`super::methods`].

mod calls;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::ruby::{Call, Expression, Kind};
use super::value::{Value, Why};

/// What a configuration language adds to Ruby: its receiver-less calls.
pub trait Language {
    /// Take a call, or return it as not part of the language with `None`.
    fn call(&mut self, call: &Invocation<'_>) -> Option<Value>;

    /// Something that could not be known and is not part of a call above.
    fn unknown(&mut self, file: &Path, why: Why);
}

/// A call of the configuration language with its arguments evaluated.
#[derive(Debug)]
pub struct Invocation<'e> {
    pub file: &'e Path,
    pub line: u32,
    pub source: &'e Call,
    pub arguments: Vec<Value>,
    /// Set inside a branch that may not be taken.
    pub uncertain: Option<Why>,
}

/// Reads one program for a [`Language`].
pub struct Evaluator<'a, L> {
    language: &'a mut L,
    environment: &'a dyn Fn(&str) -> Option<String>,
    /// The application's folder: Puma runs there.
    directory: PathBuf,
    file: PathBuf,
    variables: BTreeMap<String, Value>,
    constants: BTreeMap<String, Value>,
    /// `ENV["X"] = …` in the file itself.
    exported: BTreeMap<String, Value>,
    uncertain: Option<Why>,
    steps: u32,
}

impl<L> std::fmt::Debug for Evaluator<'_, L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Evaluator").field("file", &self.file).field("steps", &self.steps).finish_non_exhaustive()
    }
}

impl<'a, L: Language> Evaluator<'a, L> {
    pub fn new(language: &'a mut L, environment: &'a dyn Fn(&str) -> Option<String>, directory: &Path, file: &Path) -> Self {
        Self {
            language,
            environment,
            directory: directory.to_owned(),
            file: file.to_owned(),
            variables: BTreeMap::new(),
            constants: BTreeMap::new(),
            exported: BTreeMap::new(),
            uncertain: None,
            steps: 0,
        }
    }

    pub fn run(&mut self, program: &Expression) {
        let result = self.value(program);
        if self.steps > STEPS {
            self.language.unknown(&self.file, Why { line: program.line, why: TOO_LONG.to_owned() });
        }
        drop(result);
    }

    fn value(&mut self, expression: &Expression) -> Value {
        self.steps = self.steps.saturating_add(1);
        let line = expression.line;
        if self.steps > STEPS {
            return Value::unknown(line, TOO_LONG);
        }
        let value = self.value_of(&expression.kind, line);
        if value.weight(LARGEST) > LARGEST { Value::unknown(line, TOO_LARGE) } else { value }
    }

    /// The values of several expressions, together no heavier than one value may be.
    fn several<'e>(&mut self, parts: impl IntoIterator<Item = &'e Expression>) -> Vec<Value> {
        let mut left = LARGEST;
        let mut values = Vec::new();
        for part in parts {
            let value = self.value(part);
            let weight = value.weight(LARGEST);
            values.push(if weight > left { Value::unknown(part.line, TOO_LARGE) } else { value });
            left = left.saturating_sub(weight);
        }
        values
    }

    fn value_of(&mut self, kind: &Kind, line: u32) -> Value {
        match kind {
            Kind::Nil => Value::Nil,
            Kind::True => Value::Bool(true),
            Kind::False => Value::Bool(false),
            Kind::Int(value) => Value::Int(*value),
            Kind::Float(value) => Value::Float(*value),
            Kind::Str(text) => Value::Str(text.clone()),
            Kind::Sym(text) => Value::Sym(text.clone()),
            Kind::File => Value::Str(self.file.display().to_string()),
            Kind::Interpolated(parts) => self.interpolated(parts, line),
            Kind::Array(parts) => Value::Array(self.several(parts)),
            Kind::Hash(pairs) => {
                let keys = self.several(pairs.iter().map(|(key, _)| key));
                let values = self.several(pairs.iter().map(|(_, value)| value));
                Value::Hash(keys.into_iter().zip(values).collect())
            }
            Kind::Local(name) => self.variables.get(name).cloned().unwrap_or(Value::Nil),
            Kind::AssignLocal(name, value) => {
                let value = self.value(value);
                let value = self.certain(value);
                self.variables.insert(name.clone(), value.clone());
                value
            }
            Kind::Constant(name) => {
                self.constants.get(name).cloned().unwrap_or_else(|| Value::unknown(line, format!("the constant {name}")))
            }
            Kind::AssignConstant(name, value) => {
                let value = self.value(value);
                let value = self.certain(value);
                self.constants.insert(name.clone(), value.clone());
                value
            }
            Kind::OrAssign(target, value) => self.or_assign(target, value, line),
            Kind::Call(call) => self.call(call, line),
            Kind::If { condition, then, otherwise } => self.branch(condition, then, otherwise),
            Kind::And(left, right) => self.and_or(left, right, false),
            Kind::Or(left, right) => self.and_or(left, right, true),
            Kind::Sequence(parts) => {
                let mut last = Value::Nil;
                for part in parts {
                    last = self.value(part);
                }
                last
            }
            Kind::Opaque(what, parts) => self.opaque(what, parts, line),
        }
    }

    /// Whatever is set where it may not be set is not known.
    fn certain(&self, value: Value) -> Value {
        self.uncertain.clone().map_or(value, Value::Unknown)
    }

    /// Read `parts` as something that happens perhaps, or several times, or not at all.
    fn perhaps(&mut self, why: Why, parts: &[&Expression]) {
        let outer = self.uncertain.clone();
        self.uncertain.get_or_insert(why);
        for part in parts {
            let unused = self.value(part);
            drop(unused);
        }
        self.uncertain = outer;
    }

    fn opaque(&mut self, what: &str, parts: &[Expression], line: u32) -> Value {
        let why = Why { line, why: format!("{what} is not evaluated") };
        // A method or class is only defined here; its body may run later, or never.
        self.perhaps(why.clone(), &parts.iter().collect::<Vec<_>>());
        Value::Unknown(why)
    }

    fn interpolated(&mut self, parts: &[Expression], line: u32) -> Value {
        let mut text = String::new();
        for part in parts {
            let value = self.value(part);
            if let Some(why) = value.why() {
                return Value::Unknown(why.clone());
            }
            match value.text() {
                Some(piece) => text.push_str(&piece),
                None => return Value::unknown(line, "an interpolated number, array or hash"),
            }
            if text.len() > LARGEST {
                return Value::unknown(line, TOO_LARGE);
            }
        }
        Value::Str(text)
    }

    fn or_assign(&mut self, target: &Expression, value: &Expression, line: u32) -> Value {
        let present = if let Kind::Constant(name) = &target.kind {
            self.constants.get(name).cloned().unwrap_or(Value::Nil)
        } else {
            self.value(target)
        };
        let result = match present.truth() {
            Some(true) => return present,
            Some(false) => self.value(value),
            None => present,
        };
        let result = self.certain(result);
        match &target.kind {
            Kind::Local(name) => {
                self.variables.insert(name.clone(), result.clone());
            }
            Kind::Constant(name) => {
                self.constants.insert(name.clone(), result.clone());
            }
            Kind::Call(call) if is_environment(call.receiver.as_deref()) => {
                if let Some(name) = call.arguments.first().and_then(Expression::literal) {
                    self.exported.insert(name.to_owned(), result.clone());
                }
            }
            Kind::Call(_)
            | Kind::Nil
            | Kind::True
            | Kind::False
            | Kind::Int(_)
            | Kind::Float(_)
            | Kind::Str(_)
            | Kind::Sym(_)
            | Kind::Interpolated(_)
            | Kind::Array(_)
            | Kind::Hash(_)
            | Kind::File
            | Kind::AssignLocal(..)
            | Kind::AssignConstant(..)
            | Kind::OrAssign(..)
            | Kind::If { .. }
            | Kind::And(..)
            | Kind::Or(..)
            | Kind::Sequence(_)
            | Kind::Opaque(..) => return Value::unknown(line, "an assignment with ||="),
        }
        result
    }

    fn branch(&mut self, condition: &Expression, then: &Expression, otherwise: &Expression) -> Value {
        let condition_value = self.value(condition);
        match condition_value.truth() {
            Some(true) => self.value(then),
            Some(false) => self.value(otherwise),
            None => {
                let why = depends_on(&condition_value, condition.line);
                self.perhaps(why.clone(), &[then, otherwise]);
                Value::Unknown(why)
            }
        }
    }

    fn and_or(&mut self, left: &Expression, right: &Expression, or: bool) -> Value {
        let value = self.value(left);
        match value.truth() {
            Some(truth) if truth == or => value,
            Some(_) => self.value(right),
            None => {
                let why = depends_on(&value, left.line);
                self.perhaps(why, &[right]);
                value
            }
        }
    }
}

/// The value of one expression without a configuration language around it, such as ERB in a YAML file.
#[must_use]
pub fn expression(source: &str, environment: &dyn Fn(&str) -> Option<String>) -> Value {
    let path = Path::new("");
    match super::ruby::parse(path, source.as_bytes()) {
        Ok(program) => Evaluator::new(&mut Plain, environment, path, path).value(&program),
        Err(error) => Value::unknown(1, error.to_string()),
    }
}

/// Ruby and nothing else.
struct Plain;

impl Language for Plain {
    fn call(&mut self, _: &Invocation<'_>) -> Option<Value> {
        None
    }

    fn unknown(&mut self, _: &Path, _: Why) {}
}

fn is_environment(receiver: Option<&Expression>) -> bool {
    receiver.is_some_and(|receiver| receiver.kind == Kind::Constant("ENV".to_owned()))
}

/// Why what stands behind a condition is not known. A reason does not grow from one condition to the next.
fn depends_on(condition: &Value, line: u32) -> Why {
    const START: &str = "it depends on ";
    match condition.why() {
        Some(why) if why.why.starts_with(START) => why.clone(),
        Some(why) => Why { line, why: format!("{START}{}", why.why) },
        None => Why { line, why: format!("{START}something that is not known") },
    }
}

/// Expressions that are evaluated in one file. A long puma.rb takes some 500.
const STEPS: u32 = 100_000;

/// Bytes and values in one value: a path has at most 4096 bytes, and what is larger is no setting.
const LARGEST: usize = 8192;

const TOO_LARGE: &str = "a value that is too large";
const TOO_LONG: &str = "the file takes too many steps to evaluate";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKENS: &[&str] = &[
        "workers",
        "bind",
        "ENV",
        "[",
        "]",
        "(",
        ")",
        "{",
        "}",
        "|i|",
        "do",
        "end",
        "if",
        "else",
        "unless",
        "?",
        ":",
        "||=",
        "=",
        "+",
        "*",
        "**",
        "/",
        "-",
        "%",
        "&&",
        "!",
        "1",
        "0",
        "9223372036854775807",
        "0.5",
        "'a'",
        "\"#{",
        "}\"",
        ".times",
        ".map",
        ".to_i",
        ".fetch",
        "x",
        "X",
        ",",
        "\n",
        ";",
        "def f",
        "begin",
        "rescue",
        "<<~A\n",
        "A\n",
        "->",
        "self.",
        "&.",
        "=>",
        "a:",
        "**h",
        "..",
        "return",
    ];

    proptest! {
        #[test]
        fn no_source_makes_it_panic_or_run_away(tokens in proptest::collection::vec(proptest::sample::select(TOKENS), 0..40)) {
            let value = expression(&tokens.join(" "), &|_| None);
            prop_assert!(value.why().is_none_or(|why| !why.why.is_empty()));
        }
    }

    #[test]
    fn loops_within_loops_end() {
        let source = "x = 0\n256.times { 256.times { 256.times { 256.times { x += 1 } } } }\nx";
        let started = std::time::Instant::now();
        assert!(expression(source, &|_| None).why().is_some());
        assert!(started.elapsed() < std::time::Duration::from_secs(5));
    }

    #[test]
    fn values_cannot_be_doubled_without_end() {
        let long = format!("x = 'a' * 1\nx = '{}'\n", "a".repeat(8000));
        for source in [
            "x = 'aaaaaaaa'\n60.times { x = x + x }\nx".to_owned(),
            "x = 'aaaaaaaa'\n60.times { x = \"#{x}#{x}\" }\nx".to_owned(),
            "x = [1]\n60.times { x = [x, x] }\nx".to_owned(),
            "x = [1]\n60.times { x = [x, x].map { x } }\nx".to_owned(),
            "x = 1\n256.times { 256.times { x = [x] } }\nx".to_owned(),
            "x = {a: 1}\n60.times { x = {a: x, b: x} }\nx".to_owned(),
            format!("{long}[{}1]", "x,".repeat(20_000)),
            format!("{long}\"{}\"", "#{x}".repeat(20_000)),
            "x = `y`\n256.times { 256.times { z = 1 if x\nx = z || x } }\nx".to_owned(),
        ] {
            let value = expression(&source, &|_| None);
            assert!(value.why().is_some_and(|why| why.why.len() < 100), "{:.60}", source);
        }
    }
}
