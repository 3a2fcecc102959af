//! The command line: what to do, with which configuration, and how it ended.

use std::{
    fmt,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::{
    config::{Config, Inputs, Invalid, Loaded, schema},
    run::{StartError, run},
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
    /// Names everything that is wrong with the configuration.
    Check,
    /// Shows the configuration.
    Config {
        #[command(subcommand)]
        what: Show,
    },
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

/// Why Palisade ended otherwise than well.
#[derive(Debug)]
enum Failure {
    Configuration(Invalid),
    Start(StartError),
    Output(io::Error),
}

impl Arguments {
    /// Does what the arguments say.
    pub fn perform(self) -> ExitCode {
        let outcome = match self.command {
            None | Some(Command::Run) => self.load().and_then(|loaded| run(loaded).map_err(Failure::Start)),
            Some(Command::Check) => self.load().and_then(|loaded| print(&format!("The configuration is right.\n{}", loaded.summary()))),
            Some(Command::Config { what: Show::Show }) => self.load().and_then(|loaded| print(&loaded.show())),
            Some(Command::Config { what: Show::Schema }) => print(&format!("{:#}\n", schema::schema())),
            Some(Command::Version { json }) => print(&version(json)),
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                // Where standard error is closed there is nobody left to tell.
                writeln!(io::stderr(), "{failure}").unwrap_or_default();
                ExitCode::from(failure.code())
            }
        }
    }

    fn load(&self) -> Result<Loaded, Failure> {
        Config::load(&Inputs::of_process(self.config.clone(), self.set.clone())).map_err(Failure::Configuration)
    }
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Configuration(invalid) => invalid.exit_code(),
            Failure::Start(error) => error.exit_code(),
            Failure::Output(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Configuration(invalid) => invalid.fmt(f),
            Failure::Start(error) => error.fmt(f),
            Failure::Output(error) => write!(f, "standard output: {error}"),
        }
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

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 runtime failure, 2 usage, 3 configuration invalid, 4 cannot bind, \
5 upstream not ready, 6 audit findings, 7 certificate problem, 8 admin socket unreachable.";
