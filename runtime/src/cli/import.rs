//! `lazaret import`

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use super::Host;
use super::failure::Failure;
use super::load::{open, standard_input};
use crate::image::import::import;
use crate::image::reference::Reference;

/// Make an image of one layer from an archive of a root file system
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The archive (plain, gzip or zstd), or - for standard input
    #[arg(value_name = "FILE|-")]
    file: String,
    /// The image's name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    reference: Option<Reference>,
}

impl Args {
    pub(crate) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let input = match self.file.as_str() {
            "-" => standard_input()?,
            path => open(Path::new(path))?,
        };
        let id = import(&host.images()?, input, &self.file, self.reference)?;
        writeln!(io::stdout(), "{id}")?;
        Ok(ExitCode::SUCCESS)
    }
}
