//! Counts the parameters of a query or a form, and how deep their names nest, as the bytes come.
//!
//! Threat: exhaustion (CVE-2025-46727: any number of parameters; deep names become deep hashes). Rack 2 parts parameters at `&`
//! and `;`, Rack 3 at `&`: both count.

/// Bounds of a query or a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Parameters.
    pub count: u32,
    /// Brackets in one name.
    pub depth: u32,
}

/// Above a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

/// A counter between two pieces of text.
#[derive(Clone, Copy, Debug)]
pub struct Parameters {
    bounds: Bounds,
    count: u32,
    depth: u32,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Name,
    Percent,
    PercentFive,
    Value,
}

impl Parameters {
    /// Before the first byte.
    pub fn new(bounds: Bounds) -> Self {
        Parameters { bounds, count: 1, depth: 0, at: At::Name }
    }

    /// Takes the next piece.
    pub fn feed(&mut self, mut piece: &[u8]) -> Result<(), TooMany> {
        loop {
            if self.at == At::Value {
                let Some(end) = memchr::memchr2(b'&', b';', piece) else {
                    return Ok(());
                };
                piece = piece.get(end..).unwrap_or_default();
            }
            let Some((&byte, rest)) = piece.split_first() else {
                return Ok(());
            };
            piece = rest;
            self.step(byte)?;
        }
    }

    fn step(&mut self, byte: u8) -> Result<(), TooMany> {
        let deeper = byte == b'[' || (self.at == At::PercentFive && matches!(byte, b'b' | b'B'));
        self.at = match (byte, self.at) {
            (b'&' | b';', _) => {
                self.depth = 0;
                self.count = self.count.saturating_add(1);
                At::Name
            }
            (b'=', _) => At::Value,
            (b'%', _) => At::Percent,
            (b'5', At::Percent) => At::PercentFive,
            (_, At::Name | At::Percent | At::PercentFive | At::Value) => At::Name,
        };
        if deeper {
            self.depth = self.depth.saturating_add(1);
        }
        if self.count > self.bounds.count || self.depth > self.bounds.depth { Err(TooMany) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fits(text: &str, count: u32, depth: u32) -> bool {
        Parameters::new(Bounds { count, depth }).feed(text.as_bytes()).is_ok()
    }

    #[test]
    fn parameters_are_counted_at_both_signs() {
        assert!(fits("a=1&b=2;c=3", 3, 0) && !fits("a=1&b=2;c=3", 2, 0));
        assert!(fits("", 1, 0) && !fits("&&", 2, 0));
    }

    #[test]
    fn brackets_count_in_names_only_and_however_written() {
        assert!(fits("a[b]%5Bc%5d=[[[[&x[y]=1", 9, 2));
        assert!(!fits("a[b]%5Bc%5d=1", 9, 1) && !fits("a%5b%5B=1", 9, 1));
        assert!(fits("a%255b=1&%5=&%=5b", 9, 0));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(text in "[ab&;=%5Bb\\[]{0,40}", cut in 0_usize..40) {
            let bounds = Bounds { count: 4, depth: 2 };
            let whole = Parameters::new(bounds).feed(text.as_bytes());
            let (head, tail) = text.as_bytes().split_at(cut.min(text.len()));
            let mut counter = Parameters::new(bounds);
            prop_assert_eq!(counter.feed(head).and_then(|()| counter.feed(tail)), whole);
        }
    }
}
