//! Quantities with units, as the configuration writes them: `"10s"`, `"64MiB"`, `"300/min"`, `"500B/s"`.
//!
//! A value that can be nonsense is a type that cannot be: a [`Deadline`] is never zero or endless. Environment values
//! arrive as text or as numbers, so each type takes both where the meaning is plain. Errors never print the value.

use std::{fmt, num::NonZeroU32, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A time to wait, with a unit: 1 ms to 365 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Duration);

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ByteSize(pub u64);

/// So many in a period, such as `300/min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: NonZeroU32,
    /// In how long.
    pub period: Duration,
}

/// Bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteRate(pub u64);

/// What a guard does with what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Refuse (or repair) and count.
    #[default]
    Enforce,
    /// Let pass and count.
    Observe,
    /// Do not look.
    Off,
}

impl Mode {
    /// The word in the configuration and in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Mode::Enforce => "enforce",
            Mode::Observe => "observe",
            Mode::Off => "off",
        }
    }
}

/// A list that may be written as one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneOrMany<T>(pub Vec<T>);

/// A value, or `"auto"`: Palisade finds it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Auto<T> {
    /// Found out at start.
    #[default]
    Auto,
    /// As configured.
    Value(T),
}

/// A quantity that cannot be read. Names what was expected, never the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadUnit(&'static str);

impl Deadline {
    /// A deadline of whole seconds.
    pub const fn seconds(s: u64) -> Self {
        Deadline(Duration::from_secs(if s == 0 { 1 } else { s }))
    }

    /// A deadline of milliseconds.
    pub const fn millis(ms: u64) -> Self {
        Deadline(Duration::from_millis(if ms == 0 { 1 } else { ms }))
    }

    /// The time to wait.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// In milliseconds, rounded down, at least 1.
    pub const fn as_millis(self) -> u64 {
        let ms = self.0.as_millis();
        if ms > u64::MAX as u128 { u64::MAX } else { ms as u64 }
    }
}

impl ByteSize {
    /// So many KiB.
    pub const fn kib(n: u64) -> Self {
        ByteSize(n * 1024)
    }

    /// So many MiB.
    pub const fn mib(n: u64) -> Self {
        ByteSize(n * 1024 * 1024)
    }

    /// So many GiB.
    pub const fn gib(n: u64) -> Self {
        ByteSize(n * 1024 * 1024 * 1024)
    }

    /// As a length in memory; saturates on small machines.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Rate {
    /// So many each second.
    pub const fn per_second(count: NonZeroU32) -> Self {
        Rate { count, period: Duration::from_secs(1) }
    }
}

const DEADLINE: BadUnit = BadUnit("a time with a unit, such as \"500ms\", \"10s\", \"5m\" or \"1h\", between 1ms and 365d");
const SIZE: BadUnit = BadUnit("a size in bytes, such as \"512\", \"32KiB\", \"64MiB\" or \"5GiB\"");
const RATE: BadUnit = BadUnit("a rate, such as \"10/s\", \"300/min\" or \"1000/h\"");
const BYTE_RATE: BadUnit = BadUnit("a rate in bytes, such as \"500B/s\" or \"64KiB/s\"");

/// Splits `12.5KiB` into its number and its unit.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim())
}

fn scaled(number: &str, scale: u64) -> Option<u64> {
    match number.split_once('.') {
        None => number.parse::<u64>().ok()?.checked_mul(scale),
        Some((whole, part)) if !part.is_empty() && part.len() <= 6 => {
            let denominator = 10u64.checked_pow(u32::try_from(part.len()).ok()?)?;
            let fraction = part.parse::<u64>().ok()?.checked_mul(scale)?.checked_div(denominator)?;
            whole.parse::<u64>().ok()?.checked_mul(scale)?.checked_add(fraction)
        }
        Some(_) => None,
    }
}

impl FromStr for Deadline {
    type Err = BadUnit;
    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let (number, unit) = split(text.trim());
        let scale: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "y" => 31_536_000_000,
            _ => return Err(DEADLINE),
        };
        match scaled(number, scale) {
            Some(ms @ 1..=31_536_000_000) => Ok(Deadline(Duration::from_millis(ms))),
            _ => Err(DEADLINE),
        }
    }
}

impl FromStr for ByteSize {
    type Err = BadUnit;
    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let (number, unit) = split(text.trim());
        let scale: u64 = match unit {
            "" | "B" => 1,
            "KiB" | "K" | "k" => 1 << 10,
            "MiB" | "M" | "m" => 1 << 20,
            "GiB" | "G" | "g" => 1 << 30,
            "TiB" | "T" | "t" => 1 << 40,
            "kB" | "KB" => 1000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return Err(SIZE),
        };
        scaled(number, scale).map(ByteSize).ok_or(SIZE)
    }
}

impl FromStr for Rate {
    type Err = BadUnit;
    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let (count, period) = text.trim().split_once('/').ok_or(RATE)?;
        let seconds = match period.trim() {
            "s" | "sec" | "second" => 1,
            "min" | "m" | "minute" => 60,
            "h" | "hour" => 3600,
            "d" | "day" => 86_400,
            _ => return Err(RATE),
        };
        let count = count.trim().parse::<NonZeroU32>().map_err(|_| RATE)?;
        Ok(Rate { count, period: Duration::from_secs(seconds) })
    }
}

impl FromStr for ByteRate {
    type Err = BadUnit;
    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let size = text.trim().strip_suffix("/s").ok_or(BYTE_RATE)?;
        size.parse::<ByteSize>().map(|s| ByteRate(s.0)).map_err(|_| BYTE_RATE)
    }
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        match ms {
            _ if ms.is_multiple_of(3_600_000) => write!(f, "{}h", ms / 3_600_000),
            _ if ms.is_multiple_of(60_000) => write!(f, "{}m", ms / 60_000),
            _ if ms.is_multiple_of(1000) => write!(f, "{}s", ms / 1000),
            _ => write!(f, "{ms}ms"),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n == 0 || n % (1 << 10) != 0 => write!(f, "{n}B"),
            n if n % (1 << 30) == 0 => write!(f, "{}GiB", n >> 30),
            n if n % (1 << 20) == 0 => write!(f, "{}MiB", n >> 20),
            n => write!(f, "{}KiB", n >> 10),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.period.as_secs() {
            1 => write!(f, "{}/s", self.count),
            60 => write!(f, "{}/min", self.count),
            3600 => write!(f, "{}/h", self.count),
            _ => write!(f, "{}/d", self.count),
        }
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", ByteSize(self.0))
    }
}

impl fmt::Display for BadUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.0)
    }
}

impl std::error::Error for BadUnit {}

/// Text, or a number where the environment turned text into one.
struct Text<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = BadUnit>> de::Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a quantity with its unit")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }
}

macro_rules! as_text {
    ($($t:ty),*) => {$(
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                d.deserialize_any(Text(std::marker::PhantomData))
            }
        }
        impl Serialize for $t {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
    )*};
}
as_text!(Deadline, ByteSize, Rate, ByteRate);

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        OneOrMany(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either<T> {
            Many(Vec<T>),
            One(T),
        }
        Ok(match Either::deserialize(d)? {
            Either::Many(list) => OneOrMany(list),
            Either::One(one) => OneOrMany(vec![one]),
        })
    }
}

impl<T: Serialize> Serialize for OneOrMany<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(s)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Word {
            Auto,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either<T> {
            Word(Word),
            Value(T),
        }
        Ok(match Either::deserialize(d)? {
            Either::Word(Word::Auto) => Auto::Auto,
            Either::Value(value) => Auto::Value(value),
        })
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Auto::Auto => s.serialize_str("auto"),
            Auto::Value(value) => value.serialize(s),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_needs_a_unit_and_is_never_zero() {
        assert_eq!("1.5s".parse::<Deadline>().unwrap().get(), Duration::from_millis(1500));
        assert_eq!("1y".parse::<Deadline>().unwrap().get(), Duration::from_secs(31_536_000));
        for bad in ["", "10", "0s", "-1s", "2y", "1 fortnight", "s", "1.s", "99999999999999999999s"] {
            assert!(bad.parse::<Deadline>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_know_both_kinds_of_kilo() {
        assert_eq!("32KiB".parse::<ByteSize>().unwrap().0, 32768);
        assert_eq!("32kB".parse::<ByteSize>().unwrap().0, 32000);
        assert_eq!("0.5MiB".parse::<ByteSize>().unwrap().0, 524_288);
        assert_eq!("512".parse::<ByteSize>().unwrap().0, 512);
        for bad in ["", "MiB", "1XiB", "-1", "99999999999999TiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_have_a_count_and_a_period() {
        let rate = "300/min".parse::<Rate>().unwrap();
        assert_eq!((rate.count.get(), rate.period), (300, Duration::from_secs(60)));
        assert_eq!("500B/s".parse::<ByteRate>().unwrap().0, 500);
        for bad in ["300", "0/s", "x/s", "3/fortnight"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_quantity_reads_what_it_prints() {
        for text in ["1ms", "10s", "5m", "2h"] {
            assert_eq!(text.parse::<Deadline>().unwrap().to_string(), text);
        }
        for text in ["500B", "32KiB", "64MiB", "5GiB"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
        for text in ["10/s", "300/min", "7/h", "9/d"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
    }
}
