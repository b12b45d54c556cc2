//! `lazaret stop`

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::timeout;

use super::Host;
use super::failure::Failure;
use super::lifecycle::{Lifecycle, runtime};
use super::signals::{self, SIGKILL, SIGTERM};
use crate::storage::container::{ContainerRecord, State};
use crate::task_client::{Task, TaskError};

/// Stop one or more running containers
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds to wait before killing the container
    #[arg(
        short,
        long,
        visible_alias = "timeout",
        default_value_t = 10,
        value_name = "SECONDS"
    )]
    time: u64,
    /// Names or IDs of the containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Args {
    pub(crate) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let lifecycle = Lifecycle::open(host)?;
        let mut code = ExitCode::SUCCESS;
        for name in &self.containers {
            let stopped = lifecycle
                .find(name)
                .and_then(|record| self.stop(&lifecycle, &record));
            match stopped {
                Ok(()) => writeln!(io::stdout(), "{name}")?,
                Err(failure) => code = failure.report(),
            }
        }
        Ok(code)
    }

    fn stop(&self, lifecycle: &Lifecycle, record: &ContainerRecord) -> Result<(), Failure> {
        if !matches!(record.state, State::Running { .. }) {
            return Ok(());
        }
        let runtime = runtime()?;
        let result = runtime.block_on(async {
            let task = lifecycle.connect(&record.id).await?;
            let signal = record.stop_signal.as_deref().and_then(signals::parse);
            Ok(stop(
                &task,
                signal.unwrap_or(SIGTERM),
                Duration::from_secs(self.time),
            )
            .await)
        });
        runtime.shutdown_background();
        match result {
            // Without a sandbox, or by somebody else's stop, it has ended too.
            Ok(Err(error)) if !error.means_ended() => return Err(error.into()),
            Ok(_) => {}
            Err(failure) => {
                // Ended between the look and the call, or cannot be reached.
                let ended = lifecycle.find(record.id.as_str());
                return ended.map_or(Ok(()), |record| {
                    if record.state.is_exited() {
                        Ok(())
                    } else {
                        Err(failure)
                    }
                });
            }
        }
        lifecycle.settle(record)
    }
}

/// Asks for the end, waits, and then insists.
async fn stop(task: &Task, signal: u32, patience: Duration) -> Result<(), TaskError> {
    let wait = task.wait("");
    tokio::pin!(wait);
    let patience = match task.kill("", signal, false).await {
        Err(error) if !error.means_ended() => {
            tracing::warn!("signal {signal} was not sent: {error}");
            Duration::ZERO
        }
        _ => patience,
    };
    if timeout(patience, &mut wait).await.is_err() {
        match task.kill("", SIGKILL, false).await {
            Err(error) if !error.means_ended() => return Err(error),
            _ => {}
        }
        wait.await?;
    }
    Ok(())
}
