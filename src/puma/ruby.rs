//! Ruby source as a small tree of our own, read by `lib-ruby-parser` and never executed.
//!
//! Threat 4, exposure: the audit and the capacity model need what `config/puma.rb` and Rails' configuration files
//! say, but running them would run the application. The parser's tree has more than a hundred kinds of nodes;
//! what the static readers understand is a dozen. Everything else becomes [`Kind::Opaque`] with its children, so a
//! reader may still look inside and the evaluator answers "not known".
//!
//! A file may come from anyone who can write to the application: its size and depth are bounded, and parsing runs on
//! its own thread, so neither a deep expression nor a panic of the parser takes the proxy down.

mod lower;

use std::fmt;

pub use lower::parse;

/// One expression and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Expression {
    /// Line in its file, from 1.
    pub line: u32,
    pub kind: Kind,
}

/// The Ruby that the static readers tell apart.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Nil,
    True,
    False,
    Int(i64),
    Float(f64),
    Str(String),
    Sym(String),
    /// A string, symbol or heredoc with `#{…}` in it.
    Interpolated(Vec<Expression>),
    Array(Vec<Expression>),
    Hash(Vec<(Expression, Expression)>),
    /// `__FILE__`.
    File,
    Local(String),
    AssignLocal(String, Box<Expression>),
    /// A constant with its scope, for example `Rails::Rack`, without a leading `::`.
    Constant(String),
    AssignConstant(String, Box<Expression>),
    /// `a ||= b`: the target as an expression that reads it.
    OrAssign(Box<Expression>, Box<Expression>),
    Call(Call),
    If {
        condition: Box<Expression>,
        then: Box<Expression>,
        otherwise: Box<Expression>,
    },
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
    Sequence(Vec<Expression>),
    /// Ruby that is not evaluated: its name for the report, and its parts.
    Opaque(&'static str, Vec<Expression>),
}

/// `receiver.name(arguments) { |parameters| body }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub receiver: Option<Box<Expression>>,
    pub name: String,
    pub arguments: Vec<Expression>,
    pub block: Option<Block>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    pub parameters: Vec<String>,
    pub body: Box<Expression>,
}

/// Why a file has no tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParseError {
    TooLarge { limit: usize },
    Syntax { line: u32 },
    Parser,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { limit } => write!(f, "the file is larger than {limit} bytes"),
            Self::Syntax { line } => write!(f, "line {line} is not Ruby 3.1 syntax"),
            Self::Parser => write!(f, "the file cannot be parsed"),
        }
    }
}

impl std::error::Error for ParseError {}

impl Expression {
    /// This expression and everything inside it, outermost first.
    pub fn walk<'e>(&'e self, visit: &mut dyn FnMut(&'e Expression)) {
        visit(self);
        match &self.kind {
            Kind::Nil
            | Kind::True
            | Kind::False
            | Kind::Int(_)
            | Kind::Float(_)
            | Kind::Str(_)
            | Kind::Sym(_)
            | Kind::File
            | Kind::Local(_)
            | Kind::Constant(_) => {}
            Kind::Interpolated(parts) | Kind::Array(parts) | Kind::Sequence(parts) | Kind::Opaque(_, parts) => {
                for part in parts {
                    part.walk(visit);
                }
            }
            Kind::Hash(pairs) => {
                for (key, value) in pairs {
                    key.walk(visit);
                    value.walk(visit);
                }
            }
            Kind::AssignLocal(_, value) | Kind::AssignConstant(_, value) => value.walk(visit),
            Kind::OrAssign(left, right) | Kind::And(left, right) | Kind::Or(left, right) => {
                left.walk(visit);
                right.walk(visit);
            }
            Kind::Call(call) => {
                if let Some(receiver) = &call.receiver {
                    receiver.walk(visit);
                }
                for argument in &call.arguments {
                    argument.walk(visit);
                }
                if let Some(block) = &call.block {
                    block.body.walk(visit);
                }
            }
            Kind::If { condition, then, otherwise } => {
                condition.walk(visit);
                then.walk(visit);
                otherwise.walk(visit);
            }
        }
    }

    /// Every call inside, with its line.
    #[must_use]
    pub fn calls(&self) -> Vec<(u32, &Call)> {
        let mut found = Vec::new();
        self.walk(&mut |expression| {
            if let Kind::Call(call) = &expression.kind {
                found.push((expression.line, call));
            }
        });
        found
    }

    /// The text of a string or symbol without interpolation.
    #[must_use]
    pub fn literal(&self) -> Option<&str> {
        if let Kind::Str(text) | Kind::Sym(text) = &self.kind { Some(text) } else { None }
    }

    /// The name of a receiver-less call, local or constant: how Ruby writes `config` or `Rails`.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.kind {
            Kind::Local(name) | Kind::Constant(name) => Some(name),
            Kind::Call(call) if call.receiver.is_none() && call.arguments.is_empty() => Some(&call.name),
            Kind::Nil
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
            | Kind::Call(_)
            | Kind::If { .. }
            | Kind::And(..)
            | Kind::Or(..)
            | Kind::Sequence(_)
            | Kind::Opaque(..) => None,
        }
    }
}

impl Call {
    /// The value of `key:` among the arguments.
    #[must_use]
    pub fn option(&self, key: &str) -> Option<&Expression> {
        self.arguments.iter().find_map(|argument| {
            let Kind::Hash(pairs) = &argument.kind else {
                return None;
            };
            pairs.iter().find(|(name, _)| name.literal() == Some(key)).map(|(_, value)| value)
        })
    }
}
