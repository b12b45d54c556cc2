//! `lazaret-oci kill`

use std::process::ExitCode;

use super::container::Container;
use super::failure::{Failure, OciError};
use super::record::Status;
use super::{Host, runtime};
use crate::cli::signals;

/// Send a signal to the program of a container
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Send it to all processes of the container
    #[arg(short, long)]
    all: bool,
    /// Id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Name or number of the signal
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    signal: String,
}

impl Args {
    pub(super) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let signal = parse(&self.signal)?;
        let container = Container::find(host, &self.container)?;
        match kill(host, &container, signal, self.all) {
            // All processes of none have it.
            Err(failure) if self.all && matches!(failure.error(), OciError::NotRunning) => {}
            result => result?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Sends a signal to a container that is there to get it.
pub(super) fn kill(
    host: &Host,
    container: &Container,
    signal: u32,
    all: bool,
) -> Result<(), Failure> {
    if matches!(container.status(host)?, Status::Stopped | Status::Creating) {
        return Err(OciError::NotRunning.into());
    }
    if signal == 0 {
        return Ok(());
    }
    let runtime = runtime()?;
    let sent = runtime.block_on(async {
        let task = container.connect(host).await?;
        Ok::<_, OciError>(task.kill("", signal, all).await?)
    });
    runtime.shutdown_background();
    // It may have ended between the look and the call.
    Ok(sent.map_err(|err| match err {
        OciError::Task(err) if err.means_ended() => OciError::NotRunning,
        err => container.explain(host, err),
    })?)
}

/// A signal as runc takes it: a number, or a name with or without `SIG`. 0 only
/// asks whether the container is there.
fn parse(text: &str) -> Result<u32, OciError> {
    match text.parse() {
        Ok(0) => Ok(0),
        _ => signals::parse(text).ok_or_else(|| OciError::Signal(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_named_as_for_runc() {
        for (text, number) in [("9", 9), ("KILL", 9), ("SIGTERM", 15), ("hup", 1), ("0", 0)] {
            assert_eq!(parse(text).unwrap(), number);
        }
        let err = parse("SIGNOPE").unwrap_err();
        assert_eq!(err.to_string(), "unknown signal \"SIGNOPE\"");
    }
}
