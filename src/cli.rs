//! The command line: what to do, with which configuration, and how it ended.

use std::{
    ffi::OsString,
    fmt,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    accept::{self, tls::Terminator},
    admin,
    audit::{self, Advisory, Options, Proxy, Severity},
    config::{Config, Inputs, Invalid, Loaded, schema},
    exec, explain,
    run::{StartError, run, run_around},
    upstream::connect::Address,
};

/// The proxy that Puma deserves: before it, against the Internet.
#[derive(Debug, Parser)]
#[command(name = "palisade", version, about, after_help = EXIT_CODES)]
pub struct Arguments {
    /// The configuration. Else $PALISADE_CONFIG, ./proxy.toml, /etc/palisade/proxy.toml.
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets a key, stronger than file and environment: --set limits.body=5GiB.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves, in the foreground (the default).
    Run,
    /// Starts Puma on private sockets, serves before it and ends with it: exec -- bin/rails server.
    Exec {
        /// What happens when Puma ends by itself.
        #[arg(long, value_enum, default_value_t)]
        restart: exec::Restart,
        /// The command that starts Puma, and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Names everything that is wrong with the configuration and its certificates.
    Check {
        /// Connects to the upstream too.
        #[arg(long)]
        live: bool,
    },
    /// Shows the configuration.
    Config {
        #[command(subcommand)]
        what: Show,
    },
    /// Looks for holes in the set-up of an application, without running any of it.
    Audit {
        /// The application's root; else `app` of the configuration.
        dir: Option<PathBuf>,
        /// How to show what was found.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// From which severity on the exit code is 6; else `audit.fail_on` of the configuration.
        #[arg(long, value_enum)]
        fail_on: Option<FailOn>,
        /// Looks at what runs on this machine too: asks Puma and its control server on loopback or by their sockets.
        #[arg(long)]
        live: bool,
        /// More advisories: a JSON list of {"gem", "id", "since", "fixed": [versions]}.
        #[arg(long, value_name = "FILE")]
        db: Option<PathBuf>,
    },
    /// Tells what becomes of a request, by which rule, and what Puma would get of it.
    Explain {
        /// The bytes of one connection, one request or several; else standard input.
        file: Option<PathBuf>,
        /// As one JSON object for each request, a line each.
        #[arg(long)]
        json: bool,
    },
    /// Asks a running Palisade whether it is ready, for the health check of a container.
    Healthcheck,
    /// Shows the version.
    Version {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum Show {
    /// Every key in force and who set it, without secrets.
    Show,
    /// The JSON Schema of the file, for editors.
    Schema,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    #[default]
    Table,
    Json,
    Sarif,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FailOn {
    Low,
    Medium,
    High,
    Critical,
    Never,
}

/// Why Palisade ended otherwise than well.
#[derive(Debug)]
enum Failure {
    Configuration(Invalid),
    Certificate(accept::Problem),
    Start(StartError),
    NoPlan(exec::NoPlan),
    /// Puma's own code.
    Ended(u8),
    Upstream(String),
    Found,
    NotReady(String),
    Input(String),
    Output(io::Error),
}

impl Arguments {
    /// Does what the arguments say.
    pub fn perform(self) -> ExitCode {
        let outcome = match &self.command {
            None | Some(Command::Run) => self.load().and_then(|loaded| run(loaded).map_err(Failure::Start)),
            Some(Command::Exec { restart, command }) => self.exec(*restart, command.clone()),
            Some(Command::Check { live }) => self.load().and_then(|loaded| check(&loaded, *live)),
            Some(Command::Config { what: Show::Show }) => self.load().and_then(|loaded| print(&loaded.show())),
            Some(Command::Config { what: Show::Schema }) => print(&format!("{:#}\n", schema::schema())),
            Some(Command::Audit { dir, format, fail_on, live, db }) => {
                self.load().and_then(|loaded| audit(&loaded, dir.as_deref(), *format, *fail_on, *live, db.as_deref()))
            }
            Some(Command::Explain { file, json }) => self.load().and_then(|loaded| explain(loaded.config, file.as_deref(), *json)),
            Some(Command::Healthcheck) => {
                self.load().and_then(|loaded| admin::probe(&loaded.config.admin.listen).map_err(Failure::NotReady))
            }
            Some(Command::Version { json }) => print(&version(*json)),
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                let words = failure.to_string();
                if !words.is_empty() {
                    // Where standard error is closed there is nobody left to tell.
                    writeln!(io::stderr(), "{words}").unwrap_or_default();
                }
                ExitCode::from(failure.code())
            }
        }
    }

    fn load(&self) -> Result<Loaded, Failure> {
        Config::load(&self.inputs()).map_err(Failure::Configuration)
    }

    fn inputs(&self) -> Inputs {
        Inputs::of_process(self.config.clone(), self.set.clone())
    }

    fn exec(&self, restart: exec::Restart, command: Vec<OsString>) -> Result<(), Failure> {
        let mut inputs = self.inputs();
        exec::accept_thruster(&mut inputs);
        let plan = exec::Plan::prepare(command, restart, &mut inputs).map_err(Failure::NoPlan)?;
        let loaded = Config::load(&inputs).map_err(Failure::Configuration)?;
        match run_around(loaded, plan).map_err(Failure::Start)? {
            0 => Ok(()),
            code => Err(Failure::Ended(code)),
        }
    }
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Configuration(invalid) => invalid.exit_code(),
            Failure::Start(error) => error.exit_code(),
            Failure::Input(_) | Failure::Output(_) | Failure::NoPlan(_) => 1,
            Failure::Ended(code) => *code,
            Failure::Upstream(_) => 5,
            Failure::Found => audit::FOUND,
            Failure::Certificate(_) => 7,
            Failure::NotReady(_) => 8,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Configuration(invalid) => invalid.fmt(f),
            Failure::Start(error) => error.fmt(f),
            Failure::Certificate(problem) => write!(f, "{}: {}\n  remedy: {}", problem.place, problem.cause, problem.remedy),
            Failure::Upstream(words) | Failure::NotReady(words) | Failure::Input(words) => f.write_str(words),
            Failure::NoPlan(problem) => problem.fmt(f),
            Failure::Found | Failure::Ended(_) => Ok(()),
            Failure::Output(error) => error.fmt(f),
        }
    }
}

/// What `run` would find out at its start, short of opening a port.
fn check(loaded: &Loaded, live: bool) -> Result<(), Failure> {
    let mut text = format!("The configuration is right.\n{}", loaded.summary());
    if loaded.config.tls.is_on() {
        let tls = Terminator::load(&loaded.config.tls).map_err(Failure::Certificate)?;
        for warning in tls.warnings() {
            text.push_str(&format!("warning: {warning}\n"));
        }
    }
    if live {
        for address in loaded.config.upstream.address.0.iter().flat_map(Address::expand) {
            reach(&address)
                .map_err(|error| Failure::Upstream(format!("{address}: {error}\n  remedy: start Puma, or correct upstream.address")))?;
            text.push_str(&format!("{address} answers.\n"));
        }
    }
    print(&text)
}

fn reach(address: &Address) -> io::Result<()> {
    match address {
        Address::Tcp(address) => TcpStream::connect_timeout(address, PATIENCE).map(drop),
        Address::Unix(path) => UnixStream::connect(path).map(drop),
    }
}

fn audit(
    loaded: &Loaded,
    dir: Option<&Path>,
    format: Format,
    fail_on: Option<FailOn>,
    live: bool,
    db: Option<&Path>,
) -> Result<(), Failure> {
    let config = &loaded.config;
    let format = match format {
        Format::Table => audit::Format::Table,
        Format::Json => audit::Format::Json,
        Format::Sarif => audit::Format::Sarif,
    };
    let least = match fail_on {
        None => Some(config.audit.fail_on),
        Some(FailOn::Low) => Some(Severity::Low),
        Some(FailOn::Medium) => Some(Severity::Medium),
        Some(FailOn::High) => Some(Severity::High),
        Some(FailOn::Critical) => Some(Severity::Critical),
        Some(FailOn::Never) => None,
    };
    let dir = dir.unwrap_or(&config.app);
    let advisories = db.map(Advisory::read).transpose().map_err(|error| Failure::Input(error.to_string()))?;
    // Without a configuration nothing says that a proxy stands in front.
    let proxy = if loaded.files().is_empty() { Proxy::default() } else { proxy(config) };
    let waivers = config.audit.ignore.clone();
    let options = Options { waivers, proxy, live, advisories: advisories.unwrap_or_default(), ..Options::default() };
    match audit::command(dir, format, least, &options, &mut io::stdout().lock()) {
        Ok(0) => Ok(()),
        Ok(_) => Err(Failure::Found),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::Output(error)),
    }
}

fn explain(config: Config, file: Option<&Path>, json: bool) -> Result<(), Failure> {
    let (name, bytes) = match file.filter(|file| *file != Path::new("-")) {
        Some(file) => (file.display().to_string(), std::fs::read(file)),
        None => {
            let mut bytes = Vec::new();
            ("standard input".to_owned(), io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes))
        }
    };
    let all = bytes.and_then(|bytes| explain::explain(config, bytes)).map_err(|error| Failure::Input(format!("{name}: {error}")))?;
    print(&if json { explain::lines(&all) } else { explain::text(&all) })
}

/// What the audit may know of the proxy in front of the application.
fn proxy(config: &Config) -> Proxy {
    let is_here = |address: &Address| match address {
        Address::Tcp(address) => address.ip().to_canonical().is_loopback(),
        Address::Unix(_) => true,
    };
    let single = config.tls.cert_file.clone().zip(config.tls.key_file.clone());
    let listed = config.tls.certificate.iter().map(|certificate| (certificate.cert_file.clone(), certificate.key_file.clone()));
    Proxy {
        body_limit: Some(config.limits.body.0),
        upstream_idle: None,
        address: config.upstream.address.0.iter().all(is_here).then_some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        certificates: listed.chain(single).collect(),
    }
}

fn version(json: bool) -> String {
    let version = env!("CARGO_PKG_VERSION");
    if json { format!("{}\n", serde_json::json!({ "name": "palisade", "version": version })) } else { format!("palisade {version}\n") }
}

/// Prints; a reader that closes early, such as `head`, is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

const PATIENCE: Duration = Duration::from_secs(2);

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 runtime failure, 2 usage, 3 configuration invalid, 4 cannot bind, \
5 upstream not ready, 6 audit findings, 7 certificate problem, 8 admin socket unreachable.";
