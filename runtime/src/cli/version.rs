//! `lazaret version`

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::json;

use super::failure::Failure;
use super::format::Format;

/// Show the version
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Format of the output
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let version = env!("CARGO_PKG_VERSION");
        let mut output = io::stdout().lock();
        match self.format {
            Format::Json => {
                let report = json!({
                    "Client": { "Version": version, "Os": "linux", "Arch": go_architecture() },
                });
                writeln!(output, "{report}")?;
            }
            Format::Table => {
                writeln!(output, "lazaret:")?;
                writeln!(output, " Version:    {version}")?;
                writeln!(output, " OS/Arch:    linux/{}", go_architecture())?;
                writeln!(output, " OCI spec:   {}", oci_spec::runtime::VERSION)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Architectures are named as in images.
fn go_architecture() -> String {
    oci_spec::image::Arch::default().to_string()
}
