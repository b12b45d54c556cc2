//! `lazaret-oci`: an OCI runtime, called as runc is, whose containers run in
//! microVMs.

use std::process::ExitCode;

fn main() -> ExitCode {
    lazaret_runtime::oci::main()
}
