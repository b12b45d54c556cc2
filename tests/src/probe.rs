//! Builds `probe`, the static program that tests run inside containers, once for all tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::machine::Machine;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The path of the program on this machine.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(build)
}

/// Puts the program into a directory of the machine and gives its path there.
pub fn put(machine: &Machine, directory: &str) -> String {
    machine.put(program(), directory);
    format!("{directory}/probe")
}

/// Linked statically, for it has to run in any image; so not the one that cargo built for tests.
fn build() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "lazaret-tests",
            "--bin",
            "probe",
        ])
        .args(["--target", TARGET, "--message-format", "json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .output()
        .expect("cargo can be executed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the program it built")
}
