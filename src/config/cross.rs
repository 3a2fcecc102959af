//! Rules that span keys or modules, checked once when all sources are put together.

use http::{HeaderName, Method};

use super::{
    explain::Loaded,
    listeners::collide,
    problem::{Kind, Place, Problem},
};
use crate::{
    accept::{
        listener::{Address, Protocol},
        tls::ClientAuthMode,
    },
    admin::Listen,
    layers::websocket::is_origin,
    units::{Auto, ByteSize},
};

/// Everything that contradicts itself.
pub(super) fn check(loaded: &Loaded) -> Vec<Problem> {
    let mut found = Found { loaded, problems: Vec::new() };
    listeners(&mut found);
    certificates(&mut found);
    upstream(&mut found);
    limits(&mut found);
    routes(&mut found);
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

    fn add_certificate(&mut self, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let place = self.loaded.origin(key);
        self.problems.push(Problem { kind: Kind::Certificate, ..Problem::new(place, key, what, remedy) });
    }
}

fn listeners(found: &mut Found<'_>) {
    let config = &found.loaded.config;
    let all = config.listeners();
    let short = config.listen.0.len();
    let key = |index: usize| match index.checked_sub(short) {
        Some(index) => format!("listener.{index}.address"),
        None => "listen".to_owned(),
    };
    if all.is_empty() {
        found.add("listen", "there is no listener", "set listen = [\":443\", \":80\"] or write a [[listener]]");
    }
    for (index, listener) in all.iter().enumerate() {
        if let Some(first) = all.iter().take(index).position(|earlier| collide(&earlier.address, &listener.address)) {
            found.add(&key(index), format!("is the address of {} too", key(first)), "give each listener an address of its own");
        }
        let admin = match &config.admin.listen {
            Listen::Tcp(address) => collide(&Address::Ip(*address), &listener.address),
            Listen::Unix(path) => listener.address == Address::Unix(path.clone()),
            Listen::Off => false,
        };
        if admin {
            found.add(&key(index), "is the address of admin.listen too", "give each listener an address of its own");
        }
    }
    let speaks = |wanted: Protocol| all.iter().position(|listener| listener.protocol == wanted);
    if let (Some(index), None) = (speaks(Protocol::Redirect), speaks(Protocol::Https)) {
        found.add(&key(index), "redirects to https, which no listener speaks", "add a listener with protocol = \"https\"");
    }
}

fn certificates(found: &mut Found<'_>) {
    let config = &found.loaded.config;
    let all = config.listeners();
    let https = all.iter().position(|listener| listener.protocol == Protocol::Https);
    let tls = &config.tls;
    match (https, tls.is_on()) {
        (Some(index), false) => {
            let key = match index.checked_sub(config.listen.0.len()) {
                Some(index) => format!("listener.{index}.protocol"),
                None => "listen".to_owned(),
            };
            let names = match config.domains.0.as_slice() {
                [] => "your host names".to_owned(),
                names => names.join(", "),
            };
            let remedy = format!(
                "set cert_file and key_file in [tls] to a certificate for {names}, in PEM; Palisade does not fetch certificates itself, \
                 certbot or lego do"
            );
            found.add_certificate(&key, "speaks https, but there is no certificate", remedy);
        }
        (None, true) => found.add_certificate(
            "tls.cert_file",
            "there is a certificate, but no listener speaks https",
            "add a [[listener]] with protocol = \"https\", or listen on port 443",
        ),
        (Some(_), true) | (None, false) => {}
    }
    match (&tls.cert_file, &tls.key_file) {
        (Some(_), None) => found.add_certificate("tls.cert_file", "has no key", "set tls.key_file too"),
        (None, Some(_)) => found.add_certificate("tls.key_file", "has no certificate", "set tls.cert_file too"),
        (Some(_), Some(_)) | (None, None) => {}
    }
    if tls.client_auth.mode != ClientAuthMode::Off && tls.client_auth.ca_file.is_none() {
        found.add_certificate("tls.client_auth.mode", "asks for certificates that nothing can vouch for", "set tls.client_auth.ca_file");
    }
}

fn upstream(found: &mut Found<'_>) {
    let upstream = &found.loaded.config.upstream;
    if upstream.address.0.is_empty() {
        found.add("upstream.address", "there is no upstream", "set upstream = \"puma\", \"unix:/path\" or \"http://127.0.0.1:3000\"");
    }
    if upstream.slots == Some(0) {
        found.add("upstream.slots", "is 0: no request would ever be served", "set Puma's threads times its workers, or leave it out");
    }
    if upstream.control_token_file.is_some() && upstream.control_url.is_none() {
        found.add("upstream.control_token_file", "is for a control server that is not configured", "set upstream.control_url");
    }
    let reserved = found.loaded.config.queue.class.iter().map(|class| u32::from(class.reserve)).fold(0, u32::saturating_add);
    if upstream.slots.is_some_and(|slots| slots > 0 && reserved >= slots) {
        found.add(
            "upstream.slots",
            "is not more than all queue.class reserve together",
            "lower the reserves, so that something is left for others",
        );
    }
}

fn limits(found: &mut Found<'_>) {
    let config = &found.loaded.config;
    let (limits, buffer) = (&config.limits, &config.buffer);
    let prefix = &limits.connections_per_prefix;
    let memory = match buffer.memory_total {
        Auto::Value(total) => total,
        Auto::Auto => ByteSize(u64::MAX),
    };
    let most = ByteSize(memory.0.max(buffer.disk_total.0));
    let one_is_more = [
        ("limits.header_name", limits.header_name > limits.header_bytes, "limits.header_bytes"),
        ("limits.header_value", limits.header_value > limits.header_bytes, "limits.header_bytes"),
        ("limits.uri_bytes", limits.uri_bytes > limits.header_bytes, "limits.header_bytes"),
        ("limits.connections_per_ip", limits.connections_per_ip > limits.connections, "limits.connections"),
        ("limits.connections_per_prefix.v4_24", prefix.v4_24 > limits.connections, "limits.connections"),
        ("limits.connections_per_prefix.v6_64", prefix.v6_64 > limits.connections, "limits.connections"),
        ("limits.connections_per_prefix.v6_48", prefix.v6_48 > limits.connections, "limits.connections"),
        ("limits.handshakes_per_ip", limits.handshakes_per_ip > limits.connections, "limits.connections"),
        ("buffer.memory_per_request", buffer.memory_per_request > memory, "buffer.memory_total"),
        ("limits.body", limits.body > most, "buffer.disk_total"),
    ];
    for (part, is_more, whole) in one_is_more {
        // Where only the whole was lowered, it is the limit, and the built-in part does no harm.
        if is_more && found.loaded.origin(part) != Place::BuiltIn {
            found.add(part, format!("is more than {whole}, which must hold it"), format!("lower it, or raise {whole}"));
        }
    }
    if !(buffer.client_share > 0.0 && buffer.client_share <= 1.0) {
        found.add("buffer.client_share", "expected a part above 0, up to 1", "");
    }
    for (key, part) in [("overload.descriptors", config.overload.descriptors), ("overload.memory", config.overload.memory)] {
        if !(part > 0.0 && part <= 1.0) {
            found.add(key, "expected a part above 0, up to 1", "");
        }
    }
    if config.timeouts.requests == 0 {
        found.add("timeouts.requests", "expected a whole number, 1 or more", "");
    }
    if limits.header_count > MOST_FIELDS {
        found.add("limits.header_count", "expected 1000 or less", "no client sends so many; the default is 100");
    }
    if limits.header_count == 0 {
        found.add("limits.header_count", "expected a whole number, 1 or more: every request has a Host", "");
    }
}

/// Routes that could never match, or whose bodies nothing could hold.
fn routes(found: &mut Found<'_>) {
    let config = &found.loaded.config;
    let most = match config.buffer.memory_total {
        Auto::Value(total) => ByteSize(total.0.max(config.buffer.disk_total.0)),
        Auto::Auto => ByteSize(u64::MAX),
    };
    for (index, route) in config.route.iter().enumerate() {
        if !route.matches.path.0.iter().all(|path| path.starts_with(['/', '*'])) {
            found.add(&format!("route.{index}.match.path"), "expected paths, which begin with /, or patterns with *", "");
        }
        if !route.matches.method.0.iter().all(|method| is_method(method)) {
            found.add(&format!("route.{index}.match.method"), "expected methods in capitals, such as \"GET\"", "");
        }
        if route.body.is_some_and(|body| body > most) {
            let remedy = "lower it, or raise buffer.disk_total";
            found.add(&format!("route.{index}.body"), "is more than buffer.disk_total, which must hold it", remedy);
        }
    }
}

fn is_method(name: &str) -> bool {
    Method::from_bytes(name.as_bytes()).is_ok_and(|_| !name.bytes().any(|b| b.is_ascii_lowercase()))
}

/// Names that the HTTP library would not take: the layers would leave them out.
fn fields(found: &mut Found<'_>) {
    let config = &found.loaded.config;
    let is_field = |name: &String| HeaderName::from_bytes(name.as_bytes()).is_ok();
    let is_path = |path: &String| path.starts_with('/');
    let lists = [
        ("headers.request_remove", config.headers.request_remove.0.iter().all(is_field), "names of HTTP fields, such as \"X-Debug\""),
        ("headers.response_remove", config.headers.response_remove.0.iter().all(is_field), "names of HTTP fields, such as \"Server\""),
        ("headers.frame", ["", "SAMEORIGIN", "DENY"].contains(&config.headers.frame.as_str()), "\"SAMEORIGIN\", \"DENY\" or \"\""),
        (
            "headers.referrer",
            config.headers.referrer.bytes().all(|b| b.is_ascii_lowercase() || b"-, ".contains(&b)),
            "a referrer policy, such as \"same-origin\"",
        ),
        ("sensitive.allow", config.sensitive.allow.0.iter().all(is_path), "paths, which begin with /"),
        ("sensitive.deny", config.sensitive.deny.0.iter().all(is_path), "paths, which begin with /"),
        ("framing.methods", config.framing.methods.0.iter().all(|method| is_method(method)), "methods in capitals, such as \"GET\""),
        ("framing.websocket_paths", config.framing.websocket_paths.0.iter().all(is_path), "paths, which begin with /"),
        (
            "websocket.origins",
            config.websocket.origins.0.iter().all(|entry| is_origin(entry)),
            "origins, such as \"https://shop.example.com\", or \"*\"",
        ),
        ("upstream.health.path", config.upstream.health.path.as_ref().is_none_or(is_path), "a path, which begins with /"),
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

/// Some work on fields with one name grows with the square of their number.
const MOST_FIELDS: u16 = 1000;
