//! Paths that must never reach an application, nor a file server inside it.
//!
//! Threat: exposure. Keys, dumps and version control that a deployment left under `public/`, and the scanners that ask for them.
//! The path is judged as the application would understand it: decoded once, without case, without repeated slashes. Answer: 404,
//! the same as for what is not there; the connection stays. Stands behind `host`, before anything is spent on the request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use http::{Request, Response};
use serde::{Deserialize, Serialize};
use tower_layer::Layer;
use tower_service::Service;

use super::{outcome::Decided, target_view};
use crate::{
    http::arrival::Arrival,
    refusal::Refusal,
    units::{Mode, OneOrMany},
};

/// `[sensitive]` in `proxy.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `enforce`, `observe` or `off`. Default: enforce.
    pub mode: Mode,
    /// Paths that pass with all below them, such as `/slides/` for Keynote's `*.key`. Default: `/.well-known/`.
    pub allow: OneOrMany<String>,
    /// Further paths that are refused with all below them, in lower case. Default: none.
    pub deny: OneOrMany<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config { mode: Mode::Enforce, allow: OneOrMany(vec!["/.well-known/".into()]), deny: OneOrMany::default() }
    }
}

/// Makes [`Sensitive`].
#[derive(Clone, Debug)]
pub struct SensitiveLayer {
    rules: Arc<Rules>,
}

#[derive(Debug)]
struct Rules {
    config: Config,
    found: AtomicU64,
}

impl SensitiveLayer {
    /// From the configuration.
    pub fn new(config: Config) -> Self {
        SensitiveLayer { rules: Arc::new(Rules { config, found: AtomicU64::new(0) }) }
    }

    /// Requests for such paths so far, also where they were only observed.
    pub fn found(&self) -> u64 {
        self.rules.found.load(Relaxed)
    }
}

impl<S> Layer<S> for SensitiveLayer {
    type Service = Sensitive<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Sensitive { inner, rules: Arc::clone(&self.rules) }
    }
}

/// Knows of no such path.
#[derive(Clone, Debug)]
pub struct Sensitive<S> {
    inner: S,
    rules: Arc<Rules>,
}

impl<S, B, R> Service<Request<B>> for Sensitive<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Refusal>,
{
    type Response = Response<R>;
    type Error = Refusal;
    type Future = Decided<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let refused = request.extensions().get::<Arrival>().is_some_and(|arrival| self.rules.refuses(&arrival.target));
        if refused { Decided::Refused { refusal: Refusal::Sensitive } } else { Decided::Passed { inner: self.inner.call(request) } }
    }
}

impl Rules {
    fn refuses(&self, target: &[u8]) -> bool {
        let config = &self.config;
        if config.mode == Mode::Off || (config.deny.0.is_empty() && is_plain(target_view::path(target))) {
            return false;
        }
        let mut path = target_view::understood(target);
        path.make_ascii_lowercase();
        let below = |list: &OneOrMany<String>| list.0.iter().any(|start| path.starts_with(start.as_bytes()));
        // An allowed path stops counting as one where it climbs out again.
        let climbs = memchr::memmem::find(&path, b"..").is_some();
        if (below(&config.allow) && !climbs) || !(below(&config.deny) || is_sensitive(&path)) {
            return false;
        }
        self.found.fetch_add(1, Relaxed);
        config.mode == Mode::Enforce
    }
}

/// Holds nothing that any name in the lists has: the way of nearly all requests.
fn is_plain(path: &[u8]) -> bool {
    memchr::memchr3(b'.', b'%', b'~', path).is_none() && !path.windows(3).any(|window| window == b"id_")
}

/// A path in lower case of which some segment is known to hold secrets.
fn is_sensitive(path: &[u8]) -> bool {
    let mut segments = path.split(|b| matches!(b, b'/' | b'\\')).filter(|segment| !segment.is_empty()).peekable();
    let mut in_config = false;
    while let Some(segment) = segments.next() {
        let name = segment.split(|b| *b == b';').next().unwrap_or(segment);
        if HIDDEN.iter().any(|hidden| name.strip_prefix(hidden.as_bytes()).is_some_and(ends_word)) {
            return true;
        }
        if segments.peek().is_none() {
            return is_sensitive_file(name) || (in_config && SETTINGS.iter().any(|end| name.ends_with(end.as_bytes())));
        }
        in_config |= name == b"config";
    }
    false
}

/// `.env` is also `.env.production` and `.env~`, but not `.environment`.
fn ends_word(rest: &[u8]) -> bool {
    rest.first().is_none_or(|b| !b.is_ascii_alphanumeric())
}

fn is_sensitive_file(name: &[u8]) -> bool {
    FILES.iter().any(|file| name == file.as_bytes())
        || name.ends_with(b"~")
        || name.iter().rposition(|b| *b == b'.').is_some_and(|dot| {
            let extension = name.get(dot.saturating_add(1)..).unwrap_or_default();
            dot > 0 && EXTENSIONS.iter().any(|e| extension == e.as_bytes())
        })
}

const HIDDEN: [&str; 27] = [
    ".env",
    ".git",
    ".gitignore",
    ".gitattributes",
    ".gitconfig",
    ".gitmodules",
    ".git-credentials",
    ".svn",
    ".hg",
    ".bzr",
    ".ssh",
    ".aws",
    ".azure",
    ".kube",
    ".docker",
    ".kamal",
    ".bundle",
    ".npmrc",
    ".yarnrc",
    ".netrc",
    ".pgpass",
    ".htaccess",
    ".htpasswd",
    ".ds_store",
    ".idea",
    ".vscode",
    ".bash_history",
];

const FILES: [&str; 15] = [
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    "master.key",
    "database.yml",
    "secrets.yml",
    "credentials.yml.enc",
    "storage.yml",
    "docker-compose.yml",
    "docker-compose.yaml",
    "wp-config.php",
    "web.config",
    "production.log",
    "development.log",
];

const EXTENSIONS: [&str; 22] = [
    "key", "pem", "p12", "pfx", "jks", "keystore", "ppk", "bak", "backup", "old", "orig", "save", "swp", "swo", "sql", "sqlite", "sqlite3",
    "dump", "dmp", "rdb", "mdb", "tfstate",
];

const SETTINGS: [&str; 6] = [".yml", ".yaml", ".enc", ".rb", ".toml", ".ini"];

#[cfg(test)]
mod tests {
    use super::*;

    fn refuses(config: Config, target: &str) -> bool {
        SensitiveLayer::new(config).rules.refuses(target.as_bytes())
    }

    #[test]
    fn secrets_are_not_there_however_they_are_asked_for() {
        for target in [
            "/.env",
            "/.env.production",
            "/app/.env.local",
            "/.git/config",
            "/.GIT/HEAD",
            "/%2egit/config",
            "/.%67it/HEAD",
            "//.git//HEAD",
            "/.svn/entries",
            "/config/database.yml",
            "/config/credentials/production.yml.enc",
            "/a/config/app/settings.yaml",
            "/config/master.key",
            "/server.pem",
            "/backup/db.sql",
            "/storage/production.sqlite3",
            "/index.html.bak",
            "/index.php~",
            "/.htpasswd",
            "/id_rsa",
            "/.ssh/id_rsa",
            "/log/production.log",
            "/.env;x",
            "/.env?x=1",
            "http://a/.env",
            "/db.dump",
            "/.DS_Store",
            "/x%2f.env",
            "/.well-known/../.env",
            "/.git-credentials",
            "/.gitignore",
        ] {
            assert!(refuses(Config::default(), target), "{target}");
        }
    }

    #[test]
    fn what_an_application_serves_stays() {
        for target in [
            "/",
            "/.well-known/acme-challenge/x",
            "/.well-known/security.txt",
            "/articles/environment",
            "/.environment",
            "/assets/app-0a1b.js",
            "/users/1.json",
            "/config",
            "/config/edit",
            "/keys/1",
            "/a.keyboard",
            "/openapi.yml",
            "/docs/config.html",
            "/a/b?file=.env",
            "/@me/.hidden",
            "/id_of/7",
            "/sql",
            "/key",
            "/.key/x",
            "/gits/1",
        ] {
            assert!(!refuses(Config::default(), target), "{target}");
        }
    }

    #[test]
    fn lists_and_mode_are_obeyed() {
        let slides = Config { allow: OneOrMany(vec!["/slides/".into()]), ..Config::default() };
        assert!(!refuses(slides.clone(), "/slides/talk.key"));
        assert!(refuses(slides.clone(), "/other/talk.key") && refuses(slides, "/slides/../talk.key"));
        assert!(refuses(Config { deny: OneOrMany(vec!["/internal".into()]), ..Config::default() }, "/Internal/x"));
        assert!(!refuses(Config { mode: Mode::Off, ..Config::default() }, "/.env"));
        let observe = SensitiveLayer::new(Config { mode: Mode::Observe, ..Config::default() });
        assert!(!observe.rules.refuses(b"/.env"));
        assert_eq!(observe.found(), 1);
    }
}
