//! What a static reading of Ruby can know: a value, or why it is not known.

/// A Ruby value, as far as it can be known without running anything.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Sym(String),
    Array(Vec<Value>),
    Hash(Vec<(Value, Value)>),
    Unknown(Why),
}

/// Why a value is not known, and the line where the knowledge ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    pub line: u32,
    pub why: String,
}

/// A setting of `puma.rb`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Known<T> {
    /// The file does not set it: Puma's default holds.
    #[default]
    Default,
    /// The value and the line that sets it.
    Value(T, u32),
    /// The file sets it to something that only running it would tell.
    Unknown { line: u32, why: String },
}

impl<T> Known<T> {
    #[must_use]
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value, _) => Some(value),
            Self::Default | Self::Unknown { .. } => None,
        }
    }

    /// The line that sets it, known or not.
    #[must_use]
    pub fn line(&self) -> Option<u32> {
        match self {
            Self::Value(_, line) | Self::Unknown { line, .. } => Some(*line),
            Self::Default => None,
        }
    }

    #[must_use]
    pub fn is_default(&self) -> bool {
        match self {
            Self::Default => true,
            Self::Value(..) | Self::Unknown { .. } => false,
        }
    }

    /// The value where one is known, Puma's default where the file is silent, nothing where it is not known.
    pub fn or_default(&self, default: T) -> Option<T>
    where
        T: Clone,
    {
        match self {
            Self::Default => Some(default),
            Self::Value(value, _) => Some(value.clone()),
            Self::Unknown { .. } => None,
        }
    }
}

impl Value {
    #[must_use]
    pub fn unknown(line: u32, why: impl Into<String>) -> Self {
        Self::Unknown(Why { line, why: why.into() })
    }

    /// Ruby's truth: only `nil` and `false` are false.
    #[must_use]
    pub fn truth(&self) -> Option<bool> {
        match self {
            Self::Nil | Self::Bool(false) => Some(false),
            Self::Bool(true) | Self::Int(_) | Self::Float(_) | Self::Str(_) | Self::Sym(_) | Self::Array(_) | Self::Hash(_) => Some(true),
            Self::Unknown(_) => None,
        }
    }

    /// `to_s`, where it is what a configuration means.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Nil => Some(String::new()),
            Self::Bool(value) => Some(value.to_string()),
            Self::Int(value) => Some(value.to_string()),
            Self::Str(value) | Self::Sym(value) => Some(value.clone()),
            Self::Float(_) | Self::Array(_) | Self::Hash(_) | Self::Unknown(_) => None,
        }
    }

    /// A string or symbol.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Self::Str(text) | Self::Sym(text) = self { Some(text) } else { None }
    }

    /// What `Integer(…)` makes of it.
    #[must_use]
    pub fn integer(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            Self::Str(text) => text.trim().replace('_', "").parse().ok(),
            Self::Nil | Self::Bool(_) | Self::Float(_) | Self::Sym(_) | Self::Array(_) | Self::Hash(_) | Self::Unknown(_) => None,
        }
    }

    /// The first part that is not known, looking into arrays and hashes.
    #[must_use]
    pub fn why(&self) -> Option<&Why> {
        match self {
            Self::Unknown(why) => Some(why),
            Self::Array(values) => values.iter().find_map(Self::why),
            Self::Hash(pairs) => pairs.iter().find_map(|(key, value)| key.why().or_else(|| value.why())),
            Self::Nil | Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Str(_) | Self::Sym(_) => None,
        }
    }

    /// Bytes and values it holds, counted no further than a little above `limit`. A collection counts for more than
    /// what is in it, so depth, which is walked recursively, is bounded as well.
    #[must_use]
    pub(super) fn weight(&self, limit: usize) -> usize {
        let sum = |weight: usize, more: usize| weight.saturating_add(more);
        match self {
            Self::Str(text) | Self::Sym(text) => sum(text.len(), 1),
            Self::Array(values) => {
                let mut weight = COLLECTION;
                for value in values {
                    if weight > limit {
                        break;
                    }
                    weight = sum(weight, value.weight(limit));
                }
                weight
            }
            Self::Hash(pairs) => {
                let mut weight = COLLECTION;
                for (key, value) in pairs {
                    if weight > limit {
                        break;
                    }
                    weight = sum(weight, sum(key.weight(limit), value.weight(limit)));
                }
                weight
            }
            Self::Nil | Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Unknown(_) => 1,
        }
    }

    /// The entry of a hash under a symbol or string key.
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<&Self> {
        let Self::Hash(pairs) = self else { return None };
        pairs.iter().find(|(name, _)| name.as_str() == Some(key)).map(|(_, value)| value)
    }
}

/// Weight of an empty array or hash.
const COLLECTION: usize = 64;
