//! Puma's configuration language: what each call of `puma.rb` sets.
//!
//! Threat 4, exposure. Names, argument forms and precedence are those of Puma's DSL from 5.6 to 8.0; a call that the
//! language does not have is left to the evaluator, which answers "not known".

use std::path::{Path, PathBuf};

use super::bind::{Bind, Listener};
use super::evaluate::{Invocation, Language};
use super::puma_rb::{Control, ControlUrl, Methods, PumaRb, RemoteAddress, Token, Unknown, parse_file};
use super::ruby::Kind;
use super::value::{Known, Value, Why};

pub(super) struct Settings {
    puma: PumaRb,
    /// The application's folder.
    directory: PathBuf,
}

impl Settings {
    pub(super) fn new(puma: PumaRb, directory: &Path) -> Self {
        Self { puma, directory: directory.to_owned() }
    }

    pub(super) fn finish(self) -> PumaRb {
        self.puma
    }
}

impl Language for Settings {
    fn call(&mut self, call: &Invocation<'_>) -> Option<Value> {
        let first = call.arguments.first();
        let answer = first.map_or(Value::Bool(true), Clone::clone);
        let puma = &mut self.puma;
        let noted = match call.source.name.as_str() {
            "bind" | "port" | "ssl_bind" | "clear_binds!" => self.listen(call),
            "load" => Some(self.load(first)),
            "threads" => {
                let maximum = call.arguments.get(1).or(first);
                puma.threads_min = setting(call, first, number);
                puma.threads_max = setting(call, maximum, number);
                note(&puma.threads_max)
            }
            "workers" => set(&mut puma.workers, setting(call, first, number)),
            "max_io_threads" => set(&mut puma.max_io_threads, setting(call, first, number)),
            "persistent_timeout" => set(&mut puma.persistent_timeout, setting(call, first, number)),
            "first_data_timeout" => set(&mut puma.first_data_timeout, setting(call, first, number)),
            "worker_shutdown_timeout" => set(&mut puma.worker_shutdown_timeout, setting(call, first, number)),
            "max_keep_alive" => set(&mut puma.max_keep_alive, setting(call, first, number)),
            "max_fast_inline" => set(&mut puma.max_fast_inline, setting(call, first, number)),
            "state_permission" => set(&mut puma.state_permission, setting(call, first, number)),
            "http_content_length_limit" => set(
                &mut puma.http_content_length_limit,
                setting(call, first, |value| value.integer().and_then(|value| u64::try_from(value).ok())),
            ),
            "queue_requests" => set(&mut puma.queue_requests, setting(call, Some(&answer), Value::truth)),
            "preload_app!" => set(&mut puma.preload_app, setting(call, Some(&answer), Value::truth)),
            "prune_bundler" => set(&mut puma.prune_bundler, setting(call, Some(&answer), Value::truth)),
            "fork_worker" => set(&mut puma.fork_worker, setting(call, Some(&answer), Value::truth)),
            "early_hints" => set(&mut puma.early_hints, setting(call, Some(&answer), Value::truth)),
            "log_requests" => set(&mut puma.log_requests, setting(call, Some(&answer), Value::truth)),
            "debug" => set(&mut puma.debug, setting(call, Some(&Value::Bool(true)), Value::truth)),
            "enable_keep_alives" => set(&mut puma.enable_keep_alives, setting(call, Some(&answer), Value::truth)),
            "allow_underscore_headers" => set(&mut puma.allow_underscore_headers, setting(call, Some(&answer), Value::truth)),
            "environment" => set(&mut puma.environment, setting(call, first, Value::text)),
            "directory" => set(&mut puma.directory, setting(call, first, Value::text)),
            "pidfile" => set(&mut puma.pidfile, setting(call, first, Value::text)),
            "state_path" => set(&mut puma.state_path, setting(call, first, Value::text)),
            "stdout_redirect" => {
                let path = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
                let both = (path(first), path(call.arguments.get(1)));
                set(&mut puma.stdout_redirect, setting(call, first, |_| Some(both.clone())))
            }
            "activate_control_app" => set(&mut puma.control, control(call)),
            "set_remote_address" => set(&mut puma.set_remote_address, setting(call, first, remote_address)),
            "supported_http_methods" => set(&mut puma.supported_http_methods, setting(call, first, methods)),
            "lowlevel_error_handler" => {
                puma.lowlevel_error_handler = Some(call.line);
                None
            }
            "plugin" => {
                let name = first.and_then(Value::text);
                name.map_or_else(
                    || Some("a plugin whose name is not known".to_owned()),
                    |name| {
                        puma.plugins.push((name, call.line));
                        None
                    },
                )
            }
            name if IRRELEVANT.contains(&name) => None,
            _ => return None,
        };
        if let Some(what) = noted {
            let what = format!("`{}`: {what}", call.source.name);
            self.puma.unknowns.push(Unknown { file: call.file.to_owned(), line: call.line, what });
        }
        Some(Value::Nil)
    }

    fn unknown(&mut self, file: &Path, why: Why) {
        // Nothing can be said about listeners of a file that was not seen to its end.
        self.puma.binds_incomplete = true;
        self.puma.unknowns.push(Unknown { file: PathBuf::from(file), line: why.line, what: why.why });
    }
}

impl Settings {
    /// Puma's own `load` takes note of a file and never reads it (measured on 5.6.5, read in 6 to 8), so neither does
    /// this. Its text is kept for the audit: a secret in it is still one.
    fn load(&mut self, path: Option<&Value>) -> String {
        if let Some(path) = path.and_then(Value::as_str).map(|path| self.directory.join(path))
            && self.puma.programs.len() < LOADS
            && let Ok(program) = parse_file(&path)
        {
            self.puma.programs.push((path, program));
        }
        "Puma notes the file and does not load it: what it sets has no effect".to_owned()
    }

    fn listen(&mut self, call: &Invocation<'_>) -> Option<String> {
        let bind = match call.source.name.as_str() {
            _ if call.uncertain.is_some() => Err(call.uncertain.as_ref().map_or_else(String::new, |why| why.why.clone())),
            "clear_binds!" => {
                self.puma.binds.clear();
                return None;
            }
            "bind" => {
                one(call, 0).and_then(|url| url.as_str().and_then(Bind::parse).ok_or_else(|| "not an address that Puma knows".to_owned()))
            }
            "port" => one(call, 0).and_then(|port| {
                let host = match call.arguments.get(1) {
                    Some(Value::Str(host)) => host.clone(),
                    Some(Value::Unknown(why)) => return Err(why.why.clone()),
                    _ => "0.0.0.0".to_owned(),
                };
                let port = port.integer().and_then(|port| u16::try_from(port).ok());
                port.map(|port| Bind::Tcp { host, port }).ok_or_else(|| "not a port".to_owned())
            }),
            _ => ssl(call),
        };
        match bind {
            Ok(bind) => {
                self.puma.binds.push(Listener { bind, line: call.line });
                None
            }
            Err(why) => {
                self.puma.binds_incomplete = true;
                Some(why)
            }
        }
    }
}

/// Store a setting; what is not known about it is returned for the list.
fn set<T>(place: &mut Known<T>, value: Known<T>) -> Option<String> {
    let noted = note(&value);
    *place = value;
    noted
}

fn note<T>(value: &Known<T>) -> Option<String> {
    match value {
        Known::Unknown { why, .. } => Some(why.clone()),
        Known::Default | Known::Value(..) => None,
    }
}

fn setting<T>(call: &Invocation<'_>, value: Option<&Value>, read: impl Fn(&Value) -> Option<T>) -> Known<T> {
    let unknown = |why: String| Known::Unknown { line: call.line, why };
    if let Some(why) = &call.uncertain {
        return unknown(why.why.clone());
    }
    match value {
        None => unknown("it has no argument".to_owned()),
        Some(Value::Unknown(why)) => unknown(why.why.clone()),
        Some(value) => {
            read(value).map_or_else(|| unknown("its value has an unexpected form".to_owned()), |value| Known::Value(value, call.line))
        }
    }
}

fn one<'c>(call: &'c Invocation<'_>, index: usize) -> Result<&'c Value, String> {
    match call.arguments.get(index) {
        None => Err("it has no argument".to_owned()),
        Some(Value::Unknown(why)) => Err(why.why.clone()),
        Some(value) => Ok(value),
    }
}

fn number(value: &Value) -> Option<u32> {
    value.integer().and_then(|value| u32::try_from(value).ok())
}

fn ssl(call: &Invocation<'_>) -> Result<Bind, String> {
    let host = one(call, 0)?.text().ok_or("not a host")?;
    let port = one(call, 1)?.integer().and_then(|port| u16::try_from(port).ok()).ok_or("not a port")?;
    let options = match call.arguments.get(2) {
        Some(Value::Hash(pairs)) => pairs.iter().filter_map(|(key, value)| Some((key.text()?, value.text().unwrap_or_default()))).collect(),
        _ => Vec::new(),
    };
    Ok(Bind::Ssl { host, port, options })
}

fn control(call: &Invocation<'_>) -> Known<Control> {
    if let Some(why) = &call.uncertain {
        return Known::Unknown { line: call.line, why: why.why.clone() };
    }
    let options = call.arguments.iter().find(|value| matches!(value, Value::Hash(_)));
    let option = |name: &str| options.and_then(|options| options.entry(name));
    let url = match call.arguments.first() {
        None | Some(Value::Hash(_)) => ControlUrl::Auto,
        Some(value) => match value.as_str() {
            Some("auto") => ControlUrl::Auto,
            Some(url) => Bind::parse(url).map_or(ControlUrl::Invalid, ControlUrl::At),
            None => ControlUrl::Unknown,
        },
    };
    let umask_of_url = match &url {
        ControlUrl::At(Bind::Unix { umask, .. }) => *umask,
        ControlUrl::At(Bind::Abstract { .. } | Bind::Tcp { .. } | Bind::Ssl { .. })
        | ControlUrl::Auto
        | ControlUrl::Invalid
        | ControlUrl::Unknown => None,
    };
    let written = call.source.option("auth_token");
    let token = match option("auth_token") {
        _ if option("no_token").and_then(Value::truth) == Some(true) => Token::None,
        None | Some(Value::Nil) => Token::Random,
        Some(value) if value.as_str().is_some_and(|token| token.is_empty() || token == "none") => Token::None,
        Some(_) if written.is_some_and(|token| matches!(token.kind, Kind::Str(_) | Kind::Sym(_))) => Token::Literal,
        Some(_) => Token::Elsewhere,
    };
    let control = Control {
        url,
        token,
        data_only: option("data_only").and_then(Value::truth) == Some(true),
        umask: option("umask").and_then(number).or(umask_of_url),
    };
    Known::Value(control, call.line)
}

fn remote_address(value: &Value) -> Option<RemoteAddress> {
    match value {
        Value::Sym(kind) if kind == "socket" => Some(RemoteAddress::Socket),
        Value::Sym(kind) if kind == "localhost" => Some(RemoteAddress::Fixed("127.0.0.1".to_owned())),
        Value::Str(address) => Some(RemoteAddress::Fixed(address.clone())),
        Value::Hash(_) => match (value.entry("header"), value.entry("proxy_protocol")) {
            (Some(header), _) => header.text().map(RemoteAddress::Header),
            (None, Some(version)) => version.text().map(RemoteAddress::ProxyProtocol),
            (None, None) => None,
        },
        Value::Nil | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Sym(_) | Value::Array(_) | Value::Unknown(_) => None,
    }
}

fn methods(value: &Value) -> Option<Methods> {
    if value.as_str() == Some("any") {
        return Some(Methods::Any);
    }
    let Value::Array(values) = value else {
        return None;
    };
    values.iter().map(Value::text).collect::<Option<Vec<_>>>().map(Methods::These)
}

/// Calls of the language that neither the proxy nor the audit needs: their blocks run later, in Puma.
const IRRELEVANT: &[&str] = &[
    "after_booted",
    "after_stopped",
    "after_refork",
    "after_worker_boot",
    "after_worker_fork",
    "after_worker_shutdown",
    "app",
    "auto_trim_time",
    "before_fork",
    "before_refork",
    "before_restart",
    "before_thread_exit",
    "before_thread_start",
    "before_worker_boot",
    "before_worker_fork",
    "before_worker_shutdown",
    "bind_to_activated_sockets",
    "clean_thread_locals",
    "custom_logger",
    "drain_on_shutdown",
    "extra_runtime_dependencies",
    "fiber_per_request",
    "force_shutdown_after",
    "idle_timeout",
    "io_selector_backend",
    "log_formatter",
    "mutate_stdout_and_stderr_to_sync_on_write",
    "nakayoshi_fork",
    "on_booted",
    "on_refork",
    "on_restart",
    "on_stopped",
    "on_thread_exit",
    "on_thread_start",
    "on_worker_boot",
    "on_worker_fork",
    "on_worker_shutdown",
    "out_of_band",
    "quiet",
    "rack_url_scheme",
    "rackup",
    "raise_exception_on_sigterm",
    "restart_command",
    "set_default_host",
    "shutdown_debug",
    "silence_fork_callback_warning",
    "silence_single_worker_warning",
    "tag",
    "wait_for_less_busy_worker",
    "worker_boot_timeout",
    "worker_check_interval",
    "worker_culling_strategy",
    "worker_timeout",
];

/// Files that one configuration may name.
const LOADS: usize = 16;
