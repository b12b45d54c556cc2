//! `lazaret rm`

use std::io::{self, Write};
use std::process::ExitCode;

use super::Host;
use super::failure::Failure;
use super::lifecycle::Lifecycle;
use crate::storage::container::State;

/// Remove one or more containers
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Remove running containers too (kills them)
    #[arg(short, long)]
    force: bool,
    /// Names or IDs of the containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Args {
    pub(crate) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let lifecycle = Lifecycle::open(host)?;
        let mut code = ExitCode::SUCCESS;
        for name in &self.containers {
            match self.remove(&lifecycle, name) {
                Ok(()) => writeln!(io::stdout(), "{name}")?,
                // Like Docker: what is gone already is what was asked for.
                Err(failure) if self.force && lifecycle.containers.resolve(name).is_err() => {
                    failure.report();
                }
                Err(failure) => code = failure.report(),
            }
        }
        Ok(code)
    }

    fn remove(&self, lifecycle: &Lifecycle, name: &str) -> Result<(), Failure> {
        let record = lifecycle.find(name)?;
        if !self.force && matches!(record.state, State::Running { .. }) {
            return Err(Failure::new(format!(
                "cannot remove container \"/{}\": container is running: stop the container \
                 before removing or force remove",
                record.name
            )));
        }
        lifecycle.remove(&record)
    }
}
