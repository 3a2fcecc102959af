//! `config/puma.rb`, read as Puma would read it but never executed.
//!
//! Threat 4, exposure, and the capacity model: what Puma listens on, how many requests it can hold, who may control
//! it. A value that only running the file would tell is [`Known::Unknown`] and listed in [`PumaRb::unknowns`].

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::bind::{Bind, Listener};
use super::evaluate::Evaluator;
use super::ruby::{self, Expression, ParseError};
use super::settings::Settings;
use super::value::Known;

/// What a `puma.rb` says.
#[derive(Clone, Debug, Default)]
pub struct PumaRb {
    /// The file that was read; `None` if the application has none and Puma runs on its defaults.
    pub path: Option<PathBuf>,
    /// In the order of the file. Empty means [`default_bind`].
    pub binds: Vec<Listener>,
    /// Set if some `bind`, `port` or `clear_binds!` could not be read: there may be more listeners, or fewer.
    pub binds_incomplete: bool,
    pub workers: Known<u32>,
    pub threads_min: Known<u32>,
    pub threads_max: Known<u32>,
    pub max_io_threads: Known<u32>,
    pub persistent_timeout: Known<u32>,
    pub first_data_timeout: Known<u32>,
    pub worker_shutdown_timeout: Known<u32>,
    pub control: Known<Control>,
    pub set_remote_address: Known<RemoteAddress>,
    pub max_keep_alive: Known<u32>,
    pub max_fast_inline: Known<u32>,
    pub enable_keep_alives: Known<bool>,
    pub queue_requests: Known<bool>,
    pub preload_app: Known<bool>,
    pub prune_bundler: Known<bool>,
    pub fork_worker: Known<bool>,
    pub early_hints: Known<bool>,
    pub log_requests: Known<bool>,
    pub debug: Known<bool>,
    pub environment: Known<String>,
    pub directory: Known<String>,
    pub pidfile: Known<String>,
    pub state_path: Known<String>,
    pub state_permission: Known<u32>,
    /// Standard output and standard error.
    pub stdout_redirect: Known<(Option<String>, Option<String>)>,
    pub plugins: Vec<(String, u32)>,
    pub http_content_length_limit: Known<u64>,
    pub supported_http_methods: Known<Methods>,
    pub allow_underscore_headers: Known<bool>,
    /// The line of a handler for errors below Rack.
    pub lowlevel_error_handler: Option<u32>,
    /// Everything that could not be known, in the order of the file.
    pub unknowns: Vec<Unknown>,
    /// The file and what it names with `load`, parsed, for readers that look for more than settings.
    pub programs: Vec<(PathBuf, Expression)>,
    /// What holds where the file is silent.
    pub defaults: Defaults,
}

/// `activate_control_app`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    pub url: ControlUrl,
    pub token: Token,
    pub data_only: bool,
    /// `umask:` of the options, or of the URL.
    pub umask: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlUrl {
    /// `"auto"`: a unix socket in the folder for temporary files.
    Auto,
    At(Bind),
    /// A URL that Puma would refuse.
    Invalid,
    Unknown,
}

/// Where the control server's token comes from. The token itself is never kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// Puma makes one up at each start.
    Random,
    /// Written into the file.
    Literal,
    /// From the environment or otherwise not in the file.
    Elsewhere,
    /// `no_token: true`, or the token `none`, or an empty one: everybody may.
    None,
}

/// `set_remote_address`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteAddress {
    Socket,
    /// A fixed address.
    Fixed(String),
    Header(String),
    ProxyProtocol(String),
}

/// `supported_http_methods`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Methods {
    Any,
    These(Vec<String>),
}

/// Puma's own defaults, with the environment variables that Puma itself reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// `WEB_CONCURRENCY`, else 0; `None` for `auto`.
    pub workers: Option<u32>,
    /// `PUMA_MIN_THREADS`, `MIN_THREADS`, else 0.
    pub threads_min: u32,
    /// `PUMA_MAX_THREADS`, `MAX_THREADS`, else 5 (MRI).
    pub threads_max: u32,
    /// `PUMA_PERSISTENT_TIMEOUT`, honoured from Puma 7 on.
    pub persistent_timeout: Option<u32>,
    /// `APP_ENV`, `RACK_ENV`, `RAILS_ENV`, else `development`.
    pub environment: String,
}

impl Default for Defaults {
    fn default() -> Self {
        Self::from_environment(&|_| None)
    }
}

/// Something that running the file would tell and reading it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    pub file: PathBuf,
    pub line: u32,
    pub what: String,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// Why a `puma.rb` could not be read at all.
#[derive(Debug)]
pub enum ReadError {
    Io { path: PathBuf, error: io::Error },
    Ruby { path: PathBuf, error: ParseError },
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, error } => write!(f, "{} cannot be read: {error}", path.display()),
            Self::Ruby { path, error } => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for ReadError {}

/// Read the configuration that Puma would find in an application's folder: `config/puma/<environment>.rb`, then
/// `config/puma.rb`, else none.
///
/// # Errors
/// When the file exists but cannot be read or is not Ruby.
pub fn read(app: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<PumaRb, ReadError> {
    let named = format!("config/puma/{}.rb", Defaults::from_environment(environment).environment);
    match [named.as_str(), "config/puma.rb"].iter().map(|name| app.join(name)).find(|path| path.is_file()) {
        Some(path) => read_file(app, &path, environment),
        None => Ok(PumaRb { defaults: Defaults::from_environment(environment), ..PumaRb::default() }),
    }
}

/// Read a configuration file that is named explicitly, as by `puma -C`.
///
/// # Errors
/// When the file cannot be read or is not Ruby.
pub fn read_file(app: &Path, path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<PumaRb, ReadError> {
    let io = |error| ReadError::Io { path: path.to_owned(), error };
    let app = std::path::absolute(app).map_err(io)?;
    let path = app.join(path);
    let program = parse_file(&path)?;
    let mut settings = Settings::new(
        PumaRb {
            path: Some(path.clone()),
            defaults: Defaults::from_environment(environment),
            programs: vec![(path.clone(), program.clone())],
            ..PumaRb::default()
        },
        &app,
    );
    Evaluator::new(&mut settings, environment, &app, &path).run(&program);
    Ok(settings.finish())
}

/// The application's folder and the full path of its configuration file.
#[must_use]
pub fn places(file: &Path) -> Option<(PathBuf, PathBuf)> {
    let path = std::path::absolute(file).ok()?;
    let folder = path.parent()?;
    let config = folder.ancestors().find(|folder| folder.ends_with("config"));
    let app = config.and_then(Path::parent).unwrap_or(folder).to_owned();
    Some((app, path))
}

/// Parse a configuration file alone.
///
/// # Errors
/// When the file cannot be read or is not Ruby.
pub fn parse_file(path: &Path) -> Result<Expression, ReadError> {
    let io = |error| ReadError::Io { path: path.to_owned(), error };
    let mut source = Vec::new();
    let file = File::open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(io(io::Error::other("it is not a file")));
    }
    file.take(READ_LIMIT).read_to_end(&mut source).map_err(io)?;
    ruby::parse(path, &source).map_err(|error| ReadError::Ruby { path: path.to_owned(), error })
}

/// Where Puma listens if nothing says otherwise. Puma 8 takes `[::]` where there is IPv6: just as public.
#[must_use]
pub fn default_bind() -> Bind {
    Bind::Tcp { host: "0.0.0.0".to_owned(), port: 9292 }
}

impl PumaRb {
    /// Worker processes, 0 for single mode; `None` if not known.
    #[must_use]
    pub fn workers(&self) -> Option<u32> {
        match &self.workers {
            Known::Default => self.defaults.workers,
            Known::Value(workers, _) => Some(*workers),
            Known::Unknown { .. } => None,
        }
    }

    /// Threads of each worker; `None` if not known.
    #[must_use]
    pub fn threads(&self) -> Option<u32> {
        self.threads_max.or_default(self.defaults.threads_max)
    }

    /// Requests that Puma can work on at once; `None` if not known.
    #[must_use]
    pub fn slots(&self) -> Option<u32> {
        self.workers()?.max(1).checked_mul(self.threads()?)
    }

    /// `RACK_ENV` as Puma sets it; `None` if not known.
    #[must_use]
    pub fn environment(&self) -> Option<String> {
        self.environment.or_default(self.defaults.environment.clone())
    }

    /// What Puma listens on; the default bind, without a line, if the file names none.
    #[must_use]
    pub fn listeners(&self) -> Vec<Listener> {
        if self.binds.is_empty() && !self.binds_incomplete {
            return vec![Listener { bind: default_bind(), line: 0 }];
        }
        self.binds.clone()
    }
}

impl Defaults {
    #[must_use]
    pub fn from_environment(environment: &dyn Fn(&str) -> Option<String>) -> Self {
        let number = |names: &[&str]| names.iter().find_map(|name| environment(name)).and_then(|value| value.trim().parse::<u32>().ok());
        let workers = environment("WEB_CONCURRENCY").map(|value| value.trim().to_owned());
        Self {
            workers: match workers.as_deref() {
                None | Some("") => Some(0),
                Some(count) => count.parse().ok(),
            },
            threads_min: number(&["PUMA_MIN_THREADS", "MIN_THREADS"]).unwrap_or(0),
            threads_max: number(&["PUMA_MAX_THREADS", "MAX_THREADS"]).unwrap_or(5),
            persistent_timeout: number(&["PUMA_PERSISTENT_TIMEOUT"]),
            environment: ["APP_ENV", "RACK_ENV", "RAILS_ENV"]
                .iter()
                .find_map(|name| environment(name))
                .unwrap_or_else(|| "development".to_owned()),
        }
    }
}

/// One byte more than the parser takes, so that it can tell.
const READ_LIMIT: u64 = 256 * 1024 + 1;

#[cfg(test)]
mod tests;
