//! One scrape's numbers from elsewhere, gathered by family: the text format wants all series of a name together.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

/// Takes numbers and writes them in Prometheus' text format.
#[derive(Debug, Default)]
pub struct Sheet {
    families: BTreeMap<&'static str, Family>,
}

#[derive(Debug)]
struct Family {
    kind: Kind,
    help: &'static str,
    series: String,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Gauge,
    Counter,
}

impl Sheet {
    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: f64) {
        self.add(Kind::Gauge, name, help, labels, value);
    }

    /// A number that only goes up; its name ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: impl fmt::Display) {
        self.add(Kind::Counter, name, help, labels, value);
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        for (name, family) in &self.families {
            let kind = match family.kind {
                Kind::Gauge => "gauge",
                Kind::Counter => "counter",
            };
            for part in ["# HELP ", name, " ", family.help, "\n# TYPE ", name, " ", kind, "\n", &family.series] {
                out.extend_from_slice(part.as_bytes());
            }
        }
    }

    fn add(&mut self, kind: Kind, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: impl fmt::Display) {
        let family = self.families.entry(name).or_insert(Family { kind, help, series: String::new() });
        let series = &mut family.series;
        series.push_str(name);
        for (i, (label, value)) in labels.iter().enumerate() {
            series.push(if i == 0 { '{' } else { ',' });
            series.push_str(label);
            series.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => series.push_str("\\\\"),
                    '"' => series.push_str("\\\""),
                    '\n' => series.push_str("\\n"),
                    _ => series.push(c),
                }
            }
            series.push('"');
        }
        if !labels.is_empty() {
            series.push('}');
        }
        // A String takes every text, so this write cannot fail.
        writeln!(series, " {value}").unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_two_sources_stand_in_one_family() {
        let mut sheet = Sheet::default();
        sheet.gauge("b", "B.", &[("kind", "memory")], 1.5);
        sheet.counter("a_total", "A.", &[], u64::MAX);
        sheet.gauge("b", "B.", &[("kind", "d\"i\\s\nk"), ("x", "y")], 2.0);
        let mut out = Vec::new();
        sheet.write(&mut out);
        let expected = "# HELP a_total A.\n# TYPE a_total counter\na_total 18446744073709551615\n\
                        # HELP b B.\n# TYPE b gauge\nb{kind=\"memory\"} 1.5\nb{kind=\"d\\\"i\\\\s\\nk\",x=\"y\"} 2\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
