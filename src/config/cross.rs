//! Rules that span keys or modules, checked once when all sources are put together.

use http::{HeaderName, Method};

use super::{explain::Loaded, problem::Problem};

/// Everything that contradicts itself.
pub(super) fn check(loaded: &Loaded) -> Vec<Problem> {
    let mut found = Found { loaded, problems: Vec::new() };
    limits(&mut found);
    fields(&mut found);
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

/// Names that the HTTP library would not take: the layers would leave them out.
fn fields(found: &mut Found<'_>) {
    let config = &found.loaded.config;
    let is_field = |name: &String| HeaderName::from_bytes(name.as_bytes()).is_ok();
    let is_method = |name: &String| Method::from_bytes(name.as_bytes()).is_ok_and(|_| !name.bytes().any(|b| b.is_ascii_lowercase()));
    let lists = [
        ("headers.request_remove", config.headers.request_remove.0.iter().all(is_field), "names of HTTP fields, such as \"X-Debug\""),
        ("framing.methods", config.framing.methods.0.iter().all(is_method), "methods in capitals, such as \"GET\""),
        ("host.default", config.host.default.as_ref().is_none_or(|host| is_host(host)), "a host name, such as \"shop.example.com\""),
        (
            "domains",
            config.domains.0.iter().all(|host| is_host(host.strip_prefix("*.").unwrap_or(host))),
            "host names, such as \"shop.example.com\" or \"*.example.com\", without scheme, port or path",
        ),
    ];
    let wrong = lists.into_iter().filter(|(_, is_right, _)| !is_right).collect::<Vec<_>>();
    for (key, _, expected) in wrong {
        found.add(key, format!("expected {expected}"), "");
    }
}

/// A host name in its ASCII form, RFC 1123 §2.1, with the underscore that DNS has and Rails' development hosts use.
fn is_host(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty() && label.len() <= 63 && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    name.len() <= 253 && name.split('.').all(is_label) || name.parse::<std::net::IpAddr>().is_ok()
}
