//! The sandbox process, started as containerd starts its shims.

use std::process::ExitCode;

use lazaret_runtime::sandbox::Chain;
use lazaret_runtime::shim;

fn main() -> ExitCode {
    match shim::main(std::env::args_os().skip(1)) {
        Ok(code) => code,
        Err(err) => {
            report(&err);
            ExitCode::FAILURE
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "containerd shows its user what is said here"
)]
fn report(err: &shim::ShimError) {
    eprintln!("containerd-shim-lazaret-v2: {}", Chain(err));
}
