//! Query parameters that carry secrets lose their values before they reach a line.
//!
//! Threat: exposure. A reset token or a signed URL in a log opens an account to whoever reads logs. Names are compared as
//! Rails will read them: percent-decoded, whatever their case, also inside `user[password]`.

use smallvec::SmallVec;

use super::Redact;

/// The names whose values are not written.
#[derive(Clone, Debug)]
pub struct Redaction {
    /// By their first letter, as a list of forty names for each word of each parameter costs more than the rest of the line.
    names: Vec<Vec<Words>>,
}

/// A name as its words in lower case with underscores between them: `user[accessToken]` is `user_access_token`.
type Words = SmallVec<[u8; 64]>;

impl Redaction {
    /// The names of the configuration.
    pub fn new(config: &Redact) -> Self {
        let mut names = vec![Vec::new(); 256];
        for name in config.query.0.iter().map(|name| words(name.as_bytes())) {
            if let Some(list) = name.first().and_then(|first| names.get_mut(usize::from(*first))) {
                list.push(name);
            }
        }
        Redaction { names }
    }

    /// A query without its secrets: the query itself where it has none, else a copy in `scratch`. Rack 2 also splits at
    /// semicolons; to split at both hides a secret from neither.
    pub fn query<'a>(&self, query: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
        let mut copied = 0;
        let mut from = 0;
        scratch.clear();
        for until in memchr::memchr2_iter(b'&', b';', query).chain([query.len()]) {
            let pair = query.get(from..until).unwrap_or_default();
            if let Some(name) = self.secret_name(pair) {
                let kept = from.saturating_add(name.len()).saturating_add(1);
                scratch.extend_from_slice(query.get(copied..kept).unwrap_or_default());
                scratch.extend_from_slice(REDACTED);
                copied = until;
            }
            from = until.saturating_add(1);
        }
        if copied == 0 {
            return query;
        }
        scratch.extend_from_slice(query.get(copied..).unwrap_or_default());
        scratch
    }

    /// A URL with the secrets of its query gone: the Referer of a page whose address held a token.
    pub fn url<'a>(&self, url: &'a [u8], scratch: &'a mut Vec<u8>, whole: &'a mut Vec<u8>) -> &'a [u8] {
        let Some((path, query)) = split(url) else { return url };
        let redacted = self.query(query, scratch);
        if redacted.len() == query.len() && redacted == query {
            return url;
        }
        whole.clear();
        whole.extend_from_slice(path);
        whole.push(b'?');
        whole.extend_from_slice(redacted);
        whole
    }

    /// The name in front of a value that must not be written.
    fn secret_name<'a>(&self, pair: &'a [u8]) -> Option<&'a [u8]> {
        let name = pair.get(..memchr::memchr(b'=', pair)?)?;
        let is_plain = name.iter().all(|b| b.is_ascii_lowercase() || *b == b'_');
        let is_secret = if is_plain { self.matches(name) } else { self.matches(&words(name)) };
        is_secret.then_some(name)
    }

    /// Whether a secret's words stand in this name, which is in lower case with underscores between its words.
    fn matches(&self, name: &[u8]) -> bool {
        let starts_secret = |rest: &[u8]| {
            let same_letter = rest.first().and_then(|first| self.names.get(usize::from(*first)));
            same_letter
                .into_iter()
                .flatten()
                .any(|secret| rest.strip_prefix(secret.as_slice()).is_some_and(|behind| behind.first().is_none_or(|b| *b == b'_')))
        };
        starts_secret(name) || memchr::memchr_iter(b'_', name).any(|at| name.get(at.saturating_add(1)..).is_some_and(starts_secret))
    }
}

/// Path and query of a target; no query where there is no question mark.
pub fn split(target: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(b'?', target)?;
    Some((target.get(..at)?, target.get(at.checked_add(1)?..)?))
}

/// What is redacted unless `log.redact.query` says otherwise: the words of Rails' `filter_parameters`, and those of signed
/// URLs and OAuth.
pub const SECRETS: [&str; 31] = [
    "token",
    "accesstoken",
    "authtoken",
    "jwt",
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "pass",
    "secret",
    "key",
    "apikey",
    "signature",
    "sig",
    "hmac",
    "code",
    "otp",
    "pin",
    "auth",
    "authorization",
    "credential",
    "credentials",
    "session",
    "sessionid",
    "assertion",
    "samlresponse",
    "saml_response",
    "ticket",
    "salt",
    "cvv",
    "ssn",
];

const REDACTED: &[u8] = b"[redacted]";

fn words(name: &[u8]) -> Words {
    let mut words = Words::new();
    let mut bytes = name.iter().copied();
    let mut was_lower = false;
    while let Some(b) = bytes.next() {
        let b = if b == b'%' { decoded(&mut bytes) } else { b };
        let last_is_gap = words.last().is_none_or(|last| *last == b'_');
        let starts_word = b.is_ascii_uppercase() && was_lower;
        if (starts_word || !b.is_ascii_alphanumeric()) && !last_is_gap {
            words.push(b'_');
        }
        if b.is_ascii_alphanumeric() {
            words.push(b.to_ascii_lowercase());
        }
        was_lower = b.is_ascii_lowercase();
    }
    if words.last() == Some(&b'_') {
        words.pop();
    }
    words
}

/// The byte behind a percent sign; a percent sign that is none of an escape stands for itself.
fn decoded(bytes: &mut (impl Iterator<Item = u8> + Clone)) -> u8 {
    let mut ahead = bytes.clone();
    let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    match (digit(ahead.next()), digit(ahead.next())) {
        (Some(high), Some(low)) => {
            *bytes = ahead;
            high << 4 | low
        }
        _ => b'%',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(query: &str) -> String {
        let redaction = Redaction::new(&Redact::default());
        let mut scratch = Vec::new();
        String::from_utf8(redaction.query(query.as_bytes(), &mut scratch).to_vec()).unwrap()
    }

    #[test]
    fn a_secret_is_found_however_its_name_is_spelled() {
        for name in [
            "token",
            "TOKEN",
            "Token",
            "access_token",
            "accessToken",
            "user[password]",
            "user%5Bpassword%5D",
            "%74oken",
            "t%6Fken",
            "a.token",
            "user[password_confirmation]",
            "X-Amz-Signature",
            "X-Amz-Security-Token",
            "reset-password-token",
            "api_key",
            "apikey",
            "code",
            "signature",
            "key",
            "secret",
            "client_secret",
            "hub[0][secret]",
            "SAMLResponse",
            "+token",
            "token%00",
            "_token_",
        ] {
            assert_eq!(redacted(&format!("a=1&{name}=hunter2&b=2")), format!("a=1&{name}=[redacted]&b=2"));
            assert_eq!(redacted(&format!("{name}=hunter2=x;{name}=")), format!("{name}=[redacted];{name}=[redacted]"));
        }
    }

    #[test]
    fn an_ordinary_query_is_not_touched() {
        for query in
            ["", "a=1&b=2", "keyword=x", "monkey=1", "passenger=2", "token", "page=2&q=my+token", "codes=1", "=", "&&", "%=1", "%4=1"]
        {
            assert_eq!(redacted(query), query);
        }
    }

    #[test]
    fn a_list_of_ones_own_replaces_the_list() {
        let redaction = Redaction::new(&Redact { query: crate::units::OneOrMany(vec!["sessionId".into(), "".into()]) });
        let mut scratch = Vec::new();
        assert_eq!(redaction.query(b"session_id=1&token=2", &mut scratch), b"session_id=[redacted]&token=2");
    }

    #[test]
    fn a_referer_loses_its_secrets_too() {
        let redaction = Redaction::new(&Redact::default());
        let (mut a, mut b) = (Vec::new(), Vec::new());
        assert_eq!(redaction.url(b"https://a.example/reset?token=x#f", &mut a, &mut b), b"https://a.example/reset?token=[redacted]");
        assert_eq!(redaction.url(b"https://a.example/?a=1", &mut a, &mut b), b"https://a.example/?a=1");
    }
}
