//! `lazaret exec`

use std::process::ExitCode;

use super::Host;
use super::attend::Attended;
use super::failure::{EXIT_OWN_ERROR, Failure, start_exit_code};
use super::lifecycle::{Lifecycle, runtime};
use super::prepare::{container_layers, container_user};
use super::signals::Signals;
use super::spec::{environment, process, read_env_flag};
use super::stdio::{Fifos, Streams, random_exec_id, require_terminal};
use crate::storage::container::ContainerRecord;

/// Execute a command in a running container
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run the command in the background
    #[arg(short, long)]
    detach: bool,
    /// Keep STDIN open
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Username or UID, and group or GID
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Name or ID of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Command and arguments
    #[arg(
        value_name = "COMMAND",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,
}

impl Args {
    pub(crate) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        if !self.detach {
            require_terminal(self.interactive, self.tty).map_err(Failure::new)?;
        }
        let lifecycle = Lifecycle::open(host)?;
        let record = lifecycle.find_running(&self.container)?;
        let process = self.process(host, &lifecycle, &record)?;
        let runtime = runtime()?;
        let result = runtime.block_on(self.attend(&lifecycle, &record, &process));
        runtime.shutdown_background();
        result.map(|status| ExitCode::from(status.to_le_bytes()[0]))
    }

    fn process(
        &self,
        host: &Host,
        lifecycle: &Lifecycle,
        record: &ContainerRecord,
    ) -> Result<serde_json::Value, Failure> {
        let store = host.images()?;
        let index = store.index()?;
        let image = store.resolve(&index, &record.image_id.to_string())?;
        let directory = lifecycle.containers.directory(&record.id);
        let layers = container_layers(&store, &index, &image.record, &directory)?;
        let user = container_user(self.user.as_deref().unwrap_or(&record.user), &layers)?;
        let flags = self
            .env
            .iter()
            .map(|flag| read_env_flag(flag))
            .collect::<Result<Vec<_>, _>>();
        let flags = flags.map_err(Failure::new)?;
        let mut inherited = record.environment.clone();
        if self.user.is_some() {
            // Another user has another home.
            inherited.retain(|variable| !variable.starts_with("HOME="));
        }
        let env = environment(&inherited, &flags, &record.hostname, &user.home, self.tty);
        let directory = self.workdir.as_deref().unwrap_or(&record.working_directory);
        Ok(process(&self.command, &env, directory, &user, self.tty))
    }

    async fn attend(
        &self,
        lifecycle: &Lifecycle,
        record: &ContainerRecord,
        process: &serde_json::Value,
    ) -> Result<u32, Failure> {
        let mut signals = Signals::catch()?;
        let task = lifecycle.connect(&record.id).await?;
        let exec = random_exec_id();
        let streams = Streams {
            stdin: self.interactive && !self.detach,
            output: !self.detach,
            terminal: self.tty,
        };
        let fifos = Fifos::create(&lifecycle.attach_directory(), streams)?;
        let own = |error| Failure::from(error).with_code(EXIT_OWN_ERROR);
        task.exec(&exec, process, &fifos.paths(self.tty))
            .await
            .map_err(own)?;
        if let Err(error) = task.start(&exec).await {
            // What did not start is only to be forgotten.
            let _ = task.delete(&exec).await;
            let code = start_exit_code(&error);
            return Err(Failure::from(error).with_code(code));
        }
        if self.detach {
            return Ok(0);
        }
        let attended = Attended {
            task: &task,
            exec: &exec,
            terminal: self.tty,
        };
        let status = attended.attend(fifos.into_ends(), &mut signals).await?;
        // The process has ended; the rest goes with the container.
        let _ = task.delete(&exec).await;
        Ok(status)
    }
}
