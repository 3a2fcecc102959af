//! Broken configurations: each is named with its line and its key.

use super::*;

#[test]
fn every_broken_configuration_is_named_with_its_line() {
    let mut wrong = Vec::new();
    for (text, line, key, said) in BROKEN {
        let invalid = load(text).unwrap_err();
        let is_named = match invalid.0.as_slice() {
            [one] => {
                one.place.position().map(|at| at.line) == Some(*line)
                    && one.key == *key
                    && format!("{} {}", one.what, one.remedy).contains(said)
            }
            _ => false,
        };
        if !is_named {
            wrong.push(format!("{text}{line} {key} {said}\n{invalid}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn there_are_more_than_forty() {
    assert!(BROKEN.len() > 40, "{}", BROKEN.len());
}

/// Text, line, key, and a part of what is said.
const BROKEN: &[(&str, usize, &str, &str)] = &[
    // Not TOML.
    ("a = \n", 1, "", "not TOML"),
    ("[limits\nbody = 1\n", 1, "", "not TOML"),
    ("app = \"a\"\napp = \"b\"\n", 2, "", "not TOML"),
    ("[limits]\n[timeouts]\n[limits]\n", 3, "", "not TOML"),
    ("app = 'unfinished\n", 1, "", "not TOML"),
    // Unknown keys.
    ("listne = \":80\"\n", 1, "listne", "did you mean listen?"),
    ("\n\n[limit]\nbody = \"1MiB\"\n", 3, "limit", "did you mean limits?"),
    ("[limits]\nheader_byte = \"1KiB\"\n", 2, "limits.header_byte", "did you mean limits.header_bytes?"),
    ("[limits]\nbody_stall = \"1s\"\n", 2, "limits.body_stall", "did you mean timeouts.body_stall?"),
    ("[framing.path]\nbackslashes = \"keep\"\n", 2, "framing.path.backslashes", "did you mean framing.path.backslash?"),
    ("[upstream]\ncontrol_token = \"hunter2\"\n", 2, "upstream.control_token", "secrets are read from files only"),
    ("[tls.acme]\nemail = \"a@b\"\n", 1, "tls.acme", "known here: min_version"),
    ("[queue]\nmaximum = 3\n", 2, "queue.maximum", "known here: deadline"),
    // Wrong types.
    ("app = 5\n", 1, "app", "expected a text in quotes"),
    ("[server]\nworkers = \"many\"\n", 2, "server.workers", "expected \"auto\", or a whole number from 1 to 65535"),
    ("[server]\nworkers = 0\n", 2, "server.workers", "expected \"auto\""),
    ("[limits]\nheader_count = 70000\n", 2, "limits.header_count", "from 0 to 65535"),
    ("[limits]\nconnections = -1\n", 2, "limits.connections", "expected a whole number"),
    ("[limits]\nconnections = \"many\"\n", 2, "limits.connections", "expected a whole number"),
    ("limits = \"none\"\n", 1, "limits", "expected a table"),
    ("[headers]\nnosniff = \"yes\"\n", 2, "headers.nosniff", "expected true or false"),
    ("domains = [1, 2]\n", 1, "domains", "expected a text in quotes, or a list of such"),
    ("profile = \"fortress\"\n", 1, "profile", "one of \"rails\", \"api\""),
    ("[framing]\nmode = \"lax\"\n", 2, "framing.mode", "one of \"strict\", \"monitor\""),
    ("[[listener]]\naddress = \":80\"\nprotocol = \"gopher\"\n", 3, "listener.0.protocol", "one of \"http\""),
    // Units.
    ("[timeouts]\nheader = 10\n", 2, "timeouts.header", "a time with a unit"),
    ("[timeouts]\nheader = \"0s\"\n", 2, "timeouts.header", "a time with a unit"),
    ("[timeouts]\nidle = \"10 parsecs\"\n", 2, "timeouts.idle", "a time with a unit"),
    ("[limits]\nbody = \"64 potatoes\"\n", 2, "limits.body", "a size in bytes"),
    ("[limits]\naccept_rate = \"2000\"\n", 2, "limits.accept_rate", "a rate, such as"),
    ("[rates]\nbody_min = \"500\"\n", 2, "rates.body_min", "a rate in bytes"),
    ("[queue]\nstream_share = 1.5\n", 2, "queue.stream_share", "between 0 and 1"),
    // Values that mean nothing.
    ("listen = \"localhost\"\n", 1, "listen", "\":443\""),
    ("trusted_proxies = [\"everybody\"]\n", 1, "trusted_proxies", "networks such as"),
    ("upstream = \"ftp://127.0.0.1\"\n", 1, "upstream.address", "\"puma\""),
    ("domains = [\"https://shop.example\"]\n", 1, "domains", "without scheme"),
    ("[headers]\nrequest_remove = \"X Y\"\n", 2, "headers.request_remove", "names of HTTP fields"),
    ("[framing]\nmethods = [\"get\"]\n", 2, "framing.methods", "methods in capitals"),
    ("[admin]\nlisten = \"nowhere\"\n", 2, "admin.listen", "or \"off\""),
    ("[[audit.ignore]]\nid = \"R09\"\nreason = \"r\"\nuntil = \"soon\"\n", 4, "audit.ignore.0.until", "2027-01-31"),
    ("[[rate_limit]]\nname = \"a b\"\nrate = \"1/s\"\n", 2, "rate_limit.0.name", "letters, digits"),
    ("[[ban]]\nname = \"x\"\non = \"rudeness\"\n", 3, "ban.0.on", "\"severe\""),
    // Missing.
    ("[[listener]]\naddress = \":80\"\n", 1, "listener.0.protocol", "is missing: expected one of"),
    ("[[rate_limit]]\nname = \"x\"\n", 1, "rate_limit.0.rate", "is missing: expected a rate"),
    ("upstream = []\n", 1, "upstream.address", "there is no upstream"),
    ("listen = []\n", 1, "listen", "there is no listener"),
    ("app = \"/nowhere/at/all\"\nupstream = \"puma\"\n", 2, "upstream.address", "there is no config/puma.rb"),
    // Contradictions.
    ("listen = [\":8080\", \"127.0.0.1:8080\"]\n", 1, "listen", "is the address of listen too"),
    ("[[listener]]\naddress = \"127.0.0.1:9394\"\nprotocol = \"http\"\n", 2, "listener.0.address", "admin.listen"),
    ("\nlisten = \":443\"\n", 2, "listen", "there is no certificate"),
    ("[[listener]]\naddress = \":80\"\nprotocol = \"redirect\"\n", 2, "listener.0.address", "which no listener speaks"),
    ("[tls]\ncert_file = \"c\"\nkey_file = \"k\"\n", 2, "tls.cert_file", "no listener speaks https"),
    ("listen = \":443\"\n[tls]\ncert_file = \"c\"\n", 3, "tls.cert_file", "has no key"),
    ("[limits]\nconnections = 10\nconnections_per_ip = 11\n", 3, "limits.connections_per_ip", "more than limits.connections"),
    ("[limits]\nheader_bytes = \"1KiB\"\nuri_bytes = \"2KiB\"\n", 3, "limits.uri_bytes", "more than limits.header_bytes"),
    ("[buffer]\nmemory_total = \"1MiB\"\nmemory_per_request = \"2MiB\"\n", 3, "buffer.memory_per_request", "more than buffer.memory_total"),
    ("[limits]\nbody = \"1TiB\"\n[buffer]\nmemory_total = \"1GiB\"\n", 2, "limits.body", "more than buffer.disk_total"),
    ("[upstream]\nslots = 0\n", 2, "upstream.slots", "no request would ever be served"),
    ("[upstream]\ncontrol_token_file = \"/t\"\n", 2, "upstream.control_token_file", "set upstream.control_url"),
    ("[timeouts]\nrequests = 0\n", 2, "timeouts.requests", "1 or more"),
];
