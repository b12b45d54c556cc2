//! `lazaret cleanup`, run by a sandbox process as its last act when a detached
//! container has ended.

use std::process::ExitCode;

use super::Host;
use super::failure::Failure;
use super::lifecycle::Lifecycle;
use crate::storage::container::ContainerId;

/// Take note of a container's end
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    id: String,
}

impl Args {
    pub(crate) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let lifecycle = Lifecycle::open(host)?;
        let record = lifecycle
            .containers
            .load(&ContainerId::try_from(self.id)?)?;
        lifecycle.refresh(record)?;
        Ok(ExitCode::SUCCESS)
    }
}
