//! `lazaret wait`

use std::io::{self, Write};
use std::process::ExitCode;

use super::Host;
use super::failure::Failure;
use super::lifecycle::{Lifecycle, runtime};
use crate::storage::container::State;

/// Block until containers stop, then print their exit codes
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names or IDs of the containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Args {
    pub(crate) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let lifecycle = Lifecycle::open(host)?;
        let mut code = ExitCode::SUCCESS;
        for name in &self.containers {
            match exit_code(&lifecycle, name) {
                Ok(status) => writeln!(io::stdout(), "{status}")?,
                Err(failure) => code = failure.report(),
            }
        }
        Ok(code)
    }
}

/// Waits for a container's end and gives its exit code.
pub(super) fn exit_code(lifecycle: &Lifecycle, name: &str) -> Result<u32, Failure> {
    let record = lifecycle.find(name)?;
    match &record.state {
        State::Exited { exit_code, .. } => return Ok(*exit_code),
        State::Created => return Err(Failure::new(format!("container {name} has not started"))),
        State::Running { .. } => {}
    }
    let runtime = runtime()?;
    let waited = runtime.block_on(async {
        let task = lifecycle.connect(&record.id).await?;
        Ok::<_, Failure>(task.wait("").await?)
    });
    runtime.shutdown_background();
    match waited {
        Ok(status) => Ok(status),
        // It ended between the look and the call, or its sandbox died.
        Err(failure) => match lifecycle.find(record.id.as_str())?.state {
            State::Exited { exit_code, .. } => Ok(exit_code),
            _ => Err(failure),
        },
    }
}
