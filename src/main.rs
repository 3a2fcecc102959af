//! Arguments, configuration, run, exit code.

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static MEMORY: palisade::memory::Allocator = palisade::memory::ALLOCATOR;

fn main() -> ExitCode {
    palisade::cli::Arguments::parse().perform()
}
