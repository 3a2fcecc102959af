//! What is wrong with a configuration: where, what was expected, what to do. Never what was found there.

use std::{fmt, path::Path, sync::Arc};

use super::document::Position;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands.
    pub place: Place,
    /// The key, such as `limits.body`; empty where it is not about one.
    pub key: String,
    /// What is wrong and what was expected.
    pub what: String,
    /// What to do about it; empty where `what` says it.
    pub remedy: String,
    /// What kind of thing is wrong.
    pub kind: Kind,
}

/// Decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A key, a value, or values that contradict each other.
    Setting,
    /// A certificate is missing or unusable.
    Certificate,
}

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: the built-in default, or a rule that spans keys.
    BuiltIn,
    /// By a profile of this name.
    Profile(&'static str),
    /// In a file; without a position where the file as a whole is meant.
    File(Arc<Path>, Option<Position>),
    /// In an environment variable of this name.
    Environment(Arc<str>),
    /// By `--set` on the command line.
    Flag,
}

/// Everything that is wrong with a configuration, in the order of its sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub Vec<Problem>);

impl Invalid {
    /// The exit code: 7 where only certificates are at fault, else 3.
    pub fn exit_code(&self) -> u8 {
        if !self.0.is_empty() && self.0.iter().all(|problem| problem.kind == Kind::Certificate) { 7 } else { 3 }
    }
}

impl Problem {
    pub(super) fn new(place: Place, key: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Problem { place, key: key.into(), what: what.into(), remedy: remedy.into(), kind: Kind::Setting }
    }
}

impl Place {
    /// The position, where the place is one in a file.
    pub fn position(&self) -> Option<Position> {
        match self {
            Place::File(_, position) => *position,
            Place::BuiltIn | Place::Profile(_) | Place::Environment(_) | Place::Flag => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::BuiltIn => f.write_str("built-in"),
            Place::Profile(name) => write!(f, "profile {name}"),
            Place::File(path, Some(at)) => write!(f, "{}:{}:{}", path.display(), at.line, at.column),
            Place::File(path, None) => path.display().fmt(f),
            Place::Environment(name) => write!(f, "environment {name}"),
            Place::Flag => f.write_str("--set"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::BuiltIn => {}
            Place::Profile(_) | Place::File(..) | Place::Environment(_) | Place::Flag => write!(f, "{}: ", self.place)?,
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "\n  remedy: {}", self.remedy) }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{problem}")?;
        }
        let noun = if self.0.len() == 1 { "problem" } else { "problems" };
        write!(f, "{} {noun} in the configuration", self.0.len())
    }
}

impl std::error::Error for Invalid {}
