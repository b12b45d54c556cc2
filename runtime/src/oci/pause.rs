//! `lazaret-oci pause` and `resume`

use std::process::ExitCode;

use super::container::Container;
use super::failure::{Failure, OciError};
use super::record::Status;
use super::{Host, runtime};

/// Suspend all processes of a container
#[derive(Debug, clap::Args)]
pub(super) struct PauseArgs {
    /// Id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// Let the processes of a paused container go on
#[derive(Debug, clap::Args)]
pub(super) struct ResumeArgs {
    /// Id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl PauseArgs {
    pub(super) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let container = Container::find(host, &self.container)?;
        match container.status(host)? {
            Status::Running | Status::Created => {}
            _ => return Err(OciError::NotRunning.into()),
        }
        let runtime = runtime()?;
        let done = runtime.block_on(async {
            let task = container.connect(host).await?;
            Ok::<_, OciError>(task.pause().await?)
        });
        runtime.shutdown_background();
        done.map_err(|err| container.explain(host, err))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl ResumeArgs {
    pub(super) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let container = Container::find(host, &self.container)?;
        if container.status(host)? != Status::Paused {
            return Err(OciError::NotPaused.into());
        }
        let runtime = runtime()?;
        let done = runtime.block_on(async {
            let task = container.connect(host).await?;
            Ok::<_, OciError>(task.resume().await?)
        });
        runtime.shutdown_background();
        done.map_err(|err| container.explain(host, err))?;
        Ok(ExitCode::SUCCESS)
    }
}
