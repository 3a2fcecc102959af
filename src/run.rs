//! Starts everything and waits for its end.

use std::fmt;

use crate::config::Config;

/// Why Palisade cannot start: place, cause, remedy, exit code.
#[derive(Debug)]
pub enum StartError {
    /// Nothing listens.
    NoListener,
}

impl StartError {
    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            StartError::NoListener => 4,
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::NoListener => f.write_str("listen: there is no listener"),
        }
    }
}

/// Serves until a signal ends it.
pub fn run(config: Config) -> Result<(), StartError> {
    if config.listen.0.is_empty() { Err(StartError::NoListener) } else { Ok(()) }
}
