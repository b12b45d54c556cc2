//! `lazaret load`

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::Host;
use super::failure::Failure;
use crate::image::load::load;

/// Load images from an archive made by `docker save` or from an OCI archive
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Read from this file instead of standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Only print what went wrong
    #[arg(short, long)]
    quiet: bool,
}

impl Args {
    pub(crate) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let input = match &self.input {
            Some(path) => open(path)?,
            None => standard_input()?,
        };
        let loaded = load(&host.images()?, input)?;
        if self.quiet {
            return Ok(ExitCode::SUCCESS);
        }
        let mut output = io::stdout().lock();
        for image in loaded {
            for tag in &image.tags {
                writeln!(output, "Loaded image: {}", tag.familiar())?;
            }
            if image.tags.is_empty() {
                writeln!(output, "Loaded image ID: {}", image.id)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Opens an archive given by its path.
pub(super) fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|error| Failure::new(format!("open {}: {error}", path.display())))
}

/// Standard input as a file of its own, unless somebody would have to type it.
pub(super) fn standard_input() -> Result<File, Failure> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Failure::new(
            "requested load from stdin, but stdin is a terminal",
        ));
    }
    Ok(File::from(stdin.as_fd().try_clone_to_owned()?))
}
