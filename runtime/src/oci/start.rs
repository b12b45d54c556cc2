//! `lazaret-oci start`

use std::process::ExitCode;

use ttrpc::Code;

use super::container::Container;
use super::failure::{Failure, OciError};
use super::record::Status;
use super::{Host, runtime};
use crate::hooks::{HookKind, run_hooks};
use crate::task_client::TaskError;

/// Signal that cannot be ignored.
const SIGKILL: u32 = 9;

/// Run the program of a created container
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Args {
    pub(super) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let container = Container::find(host, &self.container)?;
        start(host, &container)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Lets a created container run, then runs its poststart hooks.
pub(super) fn start(host: &Host, container: &Container) -> Result<(), Failure> {
    must_be_created(container.status(host)?)?;
    let spec = container.place.load_spec()?;
    let runtime = runtime()?;
    let started = runtime.block_on(async {
        let task = container.connect(host).await?;
        task.start("").await?;
        Ok::<_, TaskError>(task)
    });
    let task = match started {
        Ok(task) => task,
        Err(err) => return Err(explain(host, container, err)),
    };
    let state = container.hook_state("running", &spec);
    if let Err(err) = run_hooks(&spec, HookKind::Poststart, &state) {
        // A container whose hooks failed does not run; one that has ended by
        // itself cannot be killed.
        let _ = runtime.block_on(task.kill("", SIGKILL, true));
        return Err(err.into());
    }
    runtime.shutdown_background();
    Ok(())
}

/// What the failure of a start means: another command may have been quicker, to start
/// the container or to end it.
fn explain(host: &Host, container: &Container, err: TaskError) -> Failure {
    let late = match err.code() {
        Some(Code::ABORTED) => Err(OciError::StartStopped),
        None if container.has_gone(host) => Err(OciError::StartStopped),
        None | Some(Code::FAILED_PRECONDITION) => container.status(host).and_then(must_be_created),
        // A microVM that has died under the start says so.
        Some(_) => Ok(()),
    };
    match late {
        Err(late) => late.into(),
        Ok(()) => Failure::from(err).context("unable to start container process"),
    }
}

fn must_be_created(status: Status) -> Result<(), OciError> {
    match status {
        Status::Created => Ok(()),
        Status::Stopped => Err(OciError::StartStopped),
        Status::Running => Err(OciError::StartRunning),
        other => Err(OciError::StartOther(other)),
    }
}
