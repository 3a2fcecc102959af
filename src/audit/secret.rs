//! What looks like a secret, and how to speak of one without telling it.
//!
//! Threat 4, exposure: a finding names kind, place and a fingerprint of four hexadecimal digits of a SHA-256, so two
//! findings of one secret can be told from findings of two, and the report may be pasted into a ticket.

use aws_lc_rs::digest::{SHA256, digest};

/// Four hexadecimal digits of the secret's hash: enough to compare, too few to search for.
#[must_use]
pub fn fingerprint(secret: &str) -> String {
    hash(secret, 2)
}

/// The first bytes of a SHA-256 in hexadecimal digits.
pub(super) fn hash(text: &str, bytes: usize) -> String {
    digest(&SHA256, text.as_bytes()).as_ref().iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

/// How sure a name is to hold a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// `password`, `SECRET_KEY_BASE`: any literal value is a secret.
    Secret,
    /// `…_key`: only a random-looking value is.
    Perhaps,
    Plain,
}

#[must_use]
pub fn name(name: &str) -> Name {
    let name = name.to_ascii_lowercase().replace(['-', '.', ' '], "_");
    if PUBLIC.iter().any(|public| name.ends_with(public)) {
        return Name::Plain;
    }
    if SECRET.iter().any(|secret| name.contains(secret)) {
        return Name::Secret;
    }
    if name == "key" || name.ends_with("_key") || name.ends_with("_auth") || name.contains("apikey") { Name::Perhaps } else { Name::Plain }
}

/// The kind of secret a literal value is under a name, if it is one.
#[must_use]
pub fn kind(under: &str, value: &str) -> Option<&'static str> {
    let value = value.trim();
    if let Some(kind) = known_form(value) {
        return Some(kind);
    }
    if is_reference(value) {
        return None;
    }
    match name(under) {
        Name::Secret if value.len() >= SHORTEST => Some("a secret by its name"),
        Name::Perhaps if value.len() >= 16 && entropy(value) >= ENTROPY => Some("a random value under the name of a key"),
        Name::Secret | Name::Perhaps | Name::Plain => None,
    }
}

/// A name as a report may show it. A line in the middle of a key has a `=` as well, and what stands before it is then no name.
#[must_use]
pub fn shown(name: &str) -> &str {
    let name = name.trim();
    let is_word = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '?' | '='));
    let is_spoken = name.split(['_', '-', '.']).all(|word| word.len() <= LONGEST_WORD && !is_mixed(word));
    if is_word && is_spoken && known_form(name).is_none() { name } else { "a value" }
}

/// Digits, capitals and small letters in one word: base64, or a password.
fn is_mixed(word: &str) -> bool {
    let has = |of: fn(&char) -> bool| word.chars().any(|c| of(&c));
    has(char::is_ascii_digit) && has(char::is_ascii_uppercase) && has(char::is_ascii_lowercase)
}

/// Values that are secrets whatever their name.
#[must_use]
pub fn known_form(value: &str) -> Option<&'static str> {
    let token = |prefix: &str, length: usize| {
        value.starts_with(prefix) && value.len() >= length && value.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    };
    if value.contains("-----BEGIN") && value.contains("PRIVATE KEY-----") {
        Some("a private key")
    } else if token("AKIA", 20) || token("ASIA", 20) {
        Some("an AWS access key")
    } else if token("sk_live_", 20) || token("rk_live_", 20) {
        Some("a Stripe key")
    } else if token("ghp_", 30) || token("gho_", 30) || token("ghs_", 30) || token("github_pat_", 30) || token("glpat-", 20) {
        Some("a token of a code host")
    } else if token("xoxb-", 20) || token("xoxp-", 20) || token("xoxa-", 20) {
        Some("a Slack token")
    } else if password_in_url(value) {
        Some("a URL with a password")
    } else {
        None
    }
}

/// `scheme://user:password@host`, unless the password is a reference.
fn password_in_url(value: &str) -> bool {
    let Some((scheme, rest)) = value.split_once("://") else { return false };
    if scheme.is_empty() || !scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+') {
        return false;
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let Some((userinfo, _)) = authority.rsplit_once('@') else { return false };
    userinfo.split_once(':').is_some_and(|(_, password)| !password.is_empty() && !is_reference(password))
}

/// A value that says where the secret is instead of being it.
#[must_use]
pub fn is_reference(value: &str) -> bool {
    let value = value.trim();
    value.is_empty()
        || value.starts_with('$')
        || value.contains("${")
        || value.contains("{{")
        || value.contains("<%")
        || value.contains(super::yaml::ERB)
        || value.starts_with('/')
        || value.starts_with("op://")
        || value.starts_with("vault:")
        || value.starts_with("arn:")
        || (value.contains('_') && value.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        || matches!(value, "true" | "false" | "nil" | "null" | "~")
        || (value.starts_with('<') && value.ends_with('>'))
}

/// Shannon's entropy in bits a character.
fn entropy(value: &str) -> f64 {
    let mut counts = std::collections::BTreeMap::new();
    let mut total = 0_u32;
    for c in value.chars() {
        *counts.entry(c).or_insert(0_u32) += 1;
        total = total.saturating_add(1);
    }
    counts.values().map(|&count| f64::from(count) / f64::from(total)).map(|share| -share * share.log2()).sum()
}

/// Bits a character from which a value counts as random: English has 4.1 at length, but words under a name ending in
/// `_key` are short.
const ENTROPY: f64 = 3.5;

/// `accelerationstructure` is a word; a line of base64 has 64 characters.
const LONGEST_WORD: usize = 22;

/// Shorter values under a secret's name are placeholders such as `x`.
const SHORTEST: usize = 4;

const SECRET: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "master_key",
    "private_key",
    "access_key",
    "api_key",
    "keystore_pass",
    "_pass",
];

/// Names that contain such a word and hold none.
const PUBLIC: &[&str] = &[
    "access_key_id",
    "public_key",
    "publishable_key",
    "_file",
    "_path",
    "_name",
    "_command",
    "_url",
    "secret_key_base_dummy",
    "token_ttl",
    "token_expiry",
    "_arn",
    "_passenger",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_told_by_name_form_or_randomness() {
        for (under, value) in [
            ("database_password", "hunter2"),
            ("SECRET_KEY_BASE", "0123456789abcdef0123456789abcdef"),
            ("url", "postgres://app:hunter2@db/production"),
            ("note", "AKIAIOSFODNN7EXAMPLE"),
            ("stripe", "sk_live_abcdefghijklmnop"),
            ("encryption_key", "qT8vLk2mZ0xR5nBw"),
        ] {
            assert!(kind(under, value).is_some(), "{under}");
        }
    }

    #[test]
    fn only_a_name_is_shown_as_one() {
        for name in ["DATABASE_PASSWORD", "x-api-key", "production.primary.password", "secret_key_base="] {
            assert_eq!(shown(name), name);
        }
        for value in ["bm90IGEga2V5bm90IGEga2V5", "hunter2 is", "AKIAIOSFODNN7EXAMPLE", "MIIE/abc+", "kR3x9Wq", "", "postgres://a:b@c"] {
            assert_eq!(shown(value), "a value");
        }
    }

    #[test]
    fn a_reference_is_no_secret() {
        for (under, value) in [
            ("password", "<%= ENV['PASSWORD'] %>"),
            ("password", "$PASSWORD"),
            ("password", "${PASSWORD}"),
            ("registry_password", "KAMAL_REGISTRY_PASSWORD"),
            ("password", ""),
            ("url", "redis://localhost:6379/1"),
            ("url", "postgres://app:${PASSWORD}@db/production"),
            ("secret_file", "config/thing.key"),
            ("primary_key", "identifier"),
            ("SECRET_KEY_BASE_DUMMY", "1"),
            ("POSTGRES_PASSWORD_FILE", "/run/secrets/db"),
        ] {
            assert_eq!(kind(under, value), None, "{under}: {value}");
        }
    }

    #[test]
    fn a_fingerprint_has_four_digits_and_is_of_the_hash() {
        assert_eq!(fingerprint("hunter2"), "f52f");
        assert_ne!(fingerprint("hunter3"), fingerprint("hunter2"));
    }
}
