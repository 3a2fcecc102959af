//! Rules that span keys or modules, checked once when all sources are put together.

use super::{explain::Loaded, problem::Problem};

/// Everything that contradicts itself.
pub(super) fn check(loaded: &Loaded) -> Vec<Problem> {
    let mut found = Found { loaded, problems: Vec::new() };
    limits(&mut found);
    found.problems
}

struct Found<'l> {
    loaded: &'l Loaded,
    problems: Vec<Problem>,
}

impl Found<'_> {
    fn add(&mut self, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let place = self.loaded.origin(key);
        self.problems.push(Problem::new(place, key, what, remedy));
    }
}

fn limits(found: &mut Found<'_>) {
    let limits = &found.loaded.config.limits;
    let one_is_more = [
        ("limits.header_name", limits.header_name > limits.header_bytes, "limits.header_bytes"),
        ("limits.header_value", limits.header_value > limits.header_bytes, "limits.header_bytes"),
        ("limits.uri_bytes", limits.uri_bytes > limits.header_bytes, "limits.header_bytes"),
        ("limits.connections_per_ip", limits.connections_per_ip > limits.connections, "limits.connections"),
        ("limits.connections_per_prefix.v4_24", limits.connections_per_prefix.v4_24 > limits.connections, "limits.connections"),
        ("limits.connections_per_prefix.v6_64", limits.connections_per_prefix.v6_64 > limits.connections, "limits.connections"),
        ("limits.connections_per_prefix.v6_48", limits.connections_per_prefix.v6_48 > limits.connections, "limits.connections"),
    ];
    for (part, is_more, whole) in one_is_more {
        if is_more {
            found.add(part, format!("is more than {whole}, which contains it"), format!("lower it, or raise {whole}"));
        }
    }
}
