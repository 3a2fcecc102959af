//! Arguments, configuration, run, exit code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    palisade::cli::Arguments::parse().perform()
}
