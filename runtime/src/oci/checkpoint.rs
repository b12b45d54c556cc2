//! `lazaret-oci checkpoint` and `restore`, which there are not: their flags are
//! taken so that the answer is about the verb.

use std::ffi::OsString;
use std::process::ExitCode;

use super::Host;
use super::failure::{Failure, OciError};

/// Checkpoint a running container: not supported
#[derive(Debug, clap::Args)]
pub(super) struct CheckpointArgs {
    #[arg(
        value_name = "ARGUMENTS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    arguments: Vec<OsString>,
}

/// Restore a container from a checkpoint: not supported
#[derive(Debug, clap::Args)]
pub(super) struct RestoreArgs {
    #[arg(
        value_name = "ARGUMENTS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    arguments: Vec<OsString>,
}

impl CheckpointArgs {
    pub(super) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        host.log.debug(&format!("asked for: {:?}", self.arguments));
        Err(unsupported("checkpoint"))
    }
}

impl RestoreArgs {
    pub(super) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        host.log.debug(&format!("asked for: {:?}", self.arguments));
        Err(unsupported("restore"))
    }
}

fn unsupported(verb: &'static str) -> Failure {
    OciError::Unsupported(verb, "a microVM's memory cannot be written to an image yet").into()
}
