//! Calls: methods of values and modules, `ENV`, small loops, and what the configuration language takes.

use super::super::methods;
use super::super::ruby::{Block, Call, Kind};
use super::super::value::{Value, Why};
use super::{Evaluator, Invocation, LARGEST, Language, TOO_LARGE, is_environment};

impl<L: Language> Evaluator<'_, L> {
    pub(super) fn call(&mut self, call: &Call, line: u32) -> Value {
        if let Some(receiver) = call.receiver.as_deref() {
            if is_environment(Some(receiver)) {
                return self.environment(call, line);
            }
            if let Kind::Constant(name) = &receiver.kind
                && !self.constants.contains_key(name)
            {
                let arguments = self.arguments(call);
                return self.known_or_read(methods::of_module(name, &call.name, &arguments, &self.directory, line), call, line);
            }
            let receiver = self.value(receiver);
            if call.block.is_some() {
                return self.iterate(&receiver, call, line);
            }
            let arguments = self.arguments(call);
            if let Some(why) = receiver.why().or_else(|| arguments.iter().find_map(Value::why)) {
                return Value::Unknown(why.clone());
            }
            return methods::of_value(&receiver, &call.name, &arguments, line);
        }
        self.own_call(call, line)
    }

    fn arguments(&mut self, call: &Call) -> Vec<Value> {
        self.several(&call.arguments)
    }

    /// A block of something unknown may run: what it sets is not known, but it is looked at.
    fn known_or_read(&mut self, value: Value, call: &Call, line: u32) -> Value {
        if let (Value::Unknown(_), Some(block)) = (&value, &call.block) {
            let why = Why { line, why: format!("a block given to `{}`", call.name) };
            self.perhaps(why, &[&block.body]);
        }
        value
    }

    fn own_call(&mut self, call: &Call, line: u32) -> Value {
        let arguments = self.arguments(call);
        match (call.name.as_str(), arguments.as_slice()) {
            ("__dir__", []) => {
                return Value::Str(self.file.parent().map_or_else(String::new, |dir| dir.display().to_string()));
            }
            ("require" | "require_relative" | "puts" | "warn" | "p", _) => return Value::Nil,
            ("eval" | "instance_eval" | "instance_exec" | "send" | "public_send" | "__send__", _) => {
                // It may set anything, so what is known of the rest is not all there is.
                let why = Why { line, why: format!("what `{}` does", call.name) };
                self.language.unknown(&self.file, why.clone());
                return self.known_or_read(Value::Unknown(why), call, line);
            }
            ("lambda" | "proc", []) => return Value::unknown(line, "a lambda"),
            _ => {}
        }
        let invocation =
            Invocation { file: &self.file, line, source: call, arguments: arguments.clone(), uncertain: self.uncertain.clone() };
        if let Some(value) = self.language.call(&invocation) {
            return value;
        }
        let value = methods::of_kernel(&call.name, &arguments, line);
        self.known_or_read(value, call, line)
    }

    fn environment(&mut self, call: &Call, line: u32) -> Value {
        let arguments = self.arguments(call);
        let Some(name) = arguments.first().and_then(Value::as_str) else {
            return Value::unknown(line, format!("ENV.{} of a name that is not known", call.name));
        };
        let present = self.exported.get(name).cloned().unwrap_or_else(|| (self.environment)(name).map_or(Value::Nil, Value::Str));
        match (call.name.as_str(), arguments.get(1), &call.block) {
            ("[]", ..) => present,
            ("[]=", Some(value), _) => {
                let value = self.certain(value.clone());
                self.exported.insert(name.to_owned(), value.clone());
                value
            }
            ("fetch", ..) if present != Value::Nil => present,
            ("fetch", _, Some(block)) => {
                let body = (*block.body).clone();
                self.value(&body)
            }
            ("fetch", Some(default), None) => default.clone(),
            ("fetch", None, None) => Value::unknown(line, format!("the environment variable {name}, which is not set")),
            ("key?" | "has_key?" | "include?" | "member?", ..) => present.truth().map_or(present, Value::Bool),
            _ => Value::unknown(line, format!("ENV.{}", call.name)),
        }
    }

    /// `n.times { |i| … }`, `each`, `upto`: loops small enough to be walked.
    fn iterate(&mut self, receiver: &Value, call: &Call, line: u32) -> Value {
        let Some(block) = &call.block else {
            return Value::Nil;
        };
        let arguments = self.arguments(call);
        let turns: Option<Vec<Vec<Value>>> = match (receiver, call.name.as_str(), arguments.as_slice()) {
            (Value::Int(n), "times", []) if *n <= TURNS => Some((0..*n).map(|i| vec![Value::Int(i)]).collect()),
            (Value::Int(from), "upto", [Value::Int(to)]) if to.saturating_sub(*from) < TURNS => {
                Some((*from..=*to).map(|i| vec![Value::Int(i)]).collect())
            }
            (Value::Array(values), "each" | "map", []) => Some(values.iter().map(|value| vec![value.clone()]).collect()),
            (Value::Array(values), "each_with_index", []) => {
                Some(values.iter().zip(0_i64..).map(|(value, index)| vec![value.clone(), Value::Int(index)]).collect())
            }
            (value, "tap", []) => Some(vec![vec![value.clone()]]),
            _ => None,
        };
        let Some(turns) = turns else {
            let why = receiver.why().cloned().unwrap_or_else(|| Why { line, why: format!("`{}` with a block", call.name) });
            for parameter in &block.parameters {
                self.variables.insert(parameter.clone(), Value::Unknown(why.clone()));
            }
            self.perhaps(why.clone(), &[&block.body]);
            return Value::Unknown(why);
        };
        let mut results = Vec::new();
        let mut left = LARGEST;
        for turn in turns {
            let result = self.turn(block, turn);
            if call.name == "map" && left > 0 {
                left = left.saturating_sub(result.weight(LARGEST));
                results.push(result);
            }
        }
        match call.name.as_str() {
            "map" if left == 0 => Value::unknown(line, TOO_LARGE),
            "map" => Value::Array(results),
            _ => receiver.clone(),
        }
    }

    fn turn(&mut self, block: &Block, arguments: Vec<Value>) -> Value {
        let outer: Vec<(String, Option<Value>)> = block
            .parameters
            .iter()
            .zip(arguments)
            .map(|(name, value)| (name.clone(), self.variables.insert(name.clone(), value)))
            .collect();
        let result = self.value(&block.body);
        for (name, value) in outer {
            match value {
                Some(value) => self.variables.insert(name, value),
                None => self.variables.remove(&name),
            };
        }
        result
    }
}

/// Turns of one loop that are walked: more workers than that have no sockets of their own.
const TURNS: i64 = 256;
