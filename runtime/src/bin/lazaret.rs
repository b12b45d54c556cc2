//! `lazaret`: containers in microVMs, for people at a shell.

use std::process::ExitCode;

fn main() -> ExitCode {
    lazaret_runtime::cli::main()
}
