//! `lazaret kill`

use std::io::{self, Write};
use std::process::ExitCode;

use super::Host;
use super::failure::Failure;
use super::lifecycle::{Lifecycle, runtime};
use super::signals;

/// Send a signal to one or more running containers
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Signal to send
    #[arg(short, long, default_value = "KILL", value_parser = signal)]
    signal: u32,
    /// Names or IDs of the containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

fn signal(text: &str) -> Result<u32, String> {
    signals::parse(text).ok_or_else(|| format!("invalid signal: {text}"))
}

impl Args {
    pub(crate) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let lifecycle = Lifecycle::open(host)?;
        let runtime = runtime()?;
        let mut code = ExitCode::SUCCESS;
        for name in &self.containers {
            let killed = runtime.block_on(async {
                let record = lifecycle.find_running(name).map_err(|failure| {
                    Failure::new(format!(
                        "cannot kill container: {name}: {}",
                        failure.message()
                    ))
                })?;
                let task = lifecycle.connect(&record.id).await?;
                Ok::<_, Failure>(task.kill("", self.signal, false).await?)
            });
            match killed {
                Ok(()) => writeln!(io::stdout(), "{name}")?,
                Err(failure) => code = failure.report(),
            }
        }
        Ok(code)
    }
}
