//! `lazaret run`

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use containerd_shim_protos::api::Mount;

use super::Host;
use super::attend::Attended;
use super::failure::{EXIT_OWN_ERROR, EXIT_SIGNAL_BASE, Failure, start_exit_code};
use super::lifecycle::{Lifecycle, runtime};
use super::prepare::{Prepared, prepare};
use super::signals::Signals;
use super::spec::{Cpus, Memory};
use super::stdio::{Ends, Fifos, Streams, require_terminal};
use crate::sandbox::config::OWN_NAMESPACE;
use crate::sandbox::state::rfc3339;
use crate::storage::container::{ContainerRecord, State};
use crate::storage::volume::Volume;
use crate::task_client::{SandboxStart, Task, TaskError, start_sandbox};

/// Create and run a new container, in a microVM of its own
#[derive(Debug, clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub(crate) struct Args {
    /// Run the container in the background and print its ID
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Keep STDIN open
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Allocate a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Remove the container when it exits
    #[arg(long)]
    pub(crate) rm: bool,
    /// Assign a name to the container
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Username or UID, and group or GID
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Override the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    pub(crate) entrypoint: Option<String>,
    /// Bind mount a directory or file of the host
    #[arg(short = 'v', long = "volume", value_name = "HOST:CONTAINER[:ro]")]
    pub(crate) volumes: Vec<Volume>,
    /// Number of CPUs
    #[arg(long, value_name = "NUMBER")]
    pub(crate) cpus: Option<Cpus>,
    /// Memory limit, such as 512m or 2g
    #[arg(short, long, value_name = "BYTES")]
    pub(crate) memory: Option<Memory>,
    /// Mount the container's root file system read-only
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Host name of the container
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Name or ID of the image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Command and arguments, instead of the image's
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) command: Vec<String>,
}

/// How the container went on, once it was asked to start.
enum Outcome {
    /// It ended, attended; with the reason if it did not end by itself.
    Exited(u32, String),
    /// It runs on without us.
    Detached,
    /// A signal to us came before it ran.
    Cancelled(u32),
}

impl Args {
    pub(crate) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let own = |failure: Failure| {
            let code = if failure.is_general() {
                EXIT_OWN_ERROR
            } else {
                failure.code()
            };
            failure.with_code(code)
        };
        self.execute(host).map_err(own)
    }

    fn execute(&self, host: &Host) -> Result<ExitCode, Failure> {
        if !self.detach {
            require_terminal(self.interactive, self.tty).map_err(Failure::new)?;
        }
        let lifecycle = Lifecycle::open(host)?;
        lifecycle.sweep()?;
        let runtime = runtime()?;
        // Caught before there is anything that would have to be removed again.
        let signals = {
            let _context = runtime.enter();
            Signals::catch()?
        };
        let mut prepared = prepare(self, host, &lifecycle)?;
        let result = runtime.block_on(live(host, &lifecycle, &mut prepared, signals));
        // What is still open towards the sandbox must not keep it alive.
        runtime.shutdown_background();
        let record = prepared.record;
        match result {
            Ok(Outcome::Detached) => {
                writeln!(io::stdout(), "{}", record.id)?;
                Ok(ExitCode::SUCCESS)
            }
            Ok(Outcome::Exited(status, reason)) => {
                lifecycle.await_end(&record.id)?;
                conclude(&lifecycle, record, status, reason.clone())?;
                if reason.is_empty() {
                    return Ok(ExitCode::from(low_byte(status)));
                }
                Err(Failure::new(reason).with_code(low_byte(status)))
            }
            Ok(Outcome::Cancelled(signal)) => {
                lifecycle.remove(&record)?;
                Ok(ExitCode::from(EXIT_SIGNAL_BASE + low_byte(signal)))
            }
            Err(failure) if matches!(record.state, State::Running { .. }) => {
                died(&lifecycle, record, &failure)
            }
            Err(failure) => Err(abandon(&lifecycle, &record, failure)),
        }
    }
}

/// From nothing to the end of the container, or to its being left alone.
async fn live(
    host: &Host,
    lifecycle: &Lifecycle,
    prepared: &mut Prepared,
    mut signals: Signals,
) -> Result<Outcome, Failure> {
    let record = &prepared.record;
    let streams = Streams {
        stdin: record.open_stdin && !record.detached,
        output: !record.detached,
        terminal: record.tty,
    };
    let fifos = Fifos::create(&lifecycle.attach_directory(), streams)?;
    // Not interrupted: half a start would leave a process that nobody knows.
    let address = start_sandbox(SandboxStart {
        shim: &host.config.shim,
        namespace: OWN_NAMESPACE,
        id: record.id.as_str(),
        bundle: prepared.directory.path(),
        exit_command: if record.detached {
            Some(std::env::current_exe()?)
        } else {
            None
        },
    })
    .await?;
    let started = start(prepared, &address, fifos);
    let (task, ends) = tokio::select! {
        started = started => {
            started.map_err(|error| {
                let code = start_exit_code(&error);
                Failure::from(error).with_code(code)
            })?
        }
        signal = signals.end() => return Ok(Outcome::Cancelled(signal)),
    };
    let record = &mut prepared.record;
    record.state = State::Running {
        started: rfc3339(SystemTime::now()),
    };
    if record.detached {
        record.attendant = None;
        lifecycle.save(record)?;
        return Ok(Outcome::Detached);
    }
    let attended = Attended {
        task: &task,
        exec: "",
        terminal: record.tty,
    };
    let status = attended.attend(ends, &mut signals).await?;
    let reason = lifecycle.reason(&record.id)?;
    // The container has ended: whatever fails now is seen to from outside.
    let _ = task.delete("").await;
    let _ = task.shutdown().await;
    Ok(Outcome::Exited(status, reason))
}

async fn start(
    prepared: &Prepared,
    address: &str,
    fifos: Fifos,
) -> Result<(Task, Ends), TaskError> {
    let record = &prepared.record;
    let task = Task::connect(address, record.id.as_str()).await?;
    let root = Mount {
        type_: "overlay".to_owned(),
        source: "overlay".to_owned(),
        options: prepared.overlay.clone(),
        ..Mount::default()
    };
    task.create(
        prepared.directory.path(),
        vec![root],
        &fifos.paths(record.tty),
    )
    .await?;
    let attended = Attended {
        task: &task,
        exec: "",
        terminal: record.tty && !record.detached,
    };
    attended.fit_terminal().await;
    task.start("").await?;
    Ok((task, fifos.into_ends()))
}

/// The sandbox died under a running container.
fn died(
    lifecycle: &Lifecycle,
    mut record: ContainerRecord,
    failure: &Failure,
) -> Result<ExitCode, Failure> {
    record.attendant = None;
    lifecycle.save(&record)?;
    let (id, auto_remove) = (record.id.clone(), record.auto_remove);
    // The sandbox's own account of its end comes before ours.
    let mut kept = record.clone();
    kept.auto_remove = false;
    let observed = lifecycle.refresh(kept)?;
    let (status, reason) = match observed.map(|record| record.state) {
        Some(State::Exited {
            exit_code, error, ..
        }) => (exit_code, error),
        _ => (137, failure.message()),
    };
    lifecycle.end_sandbox(&id)?;
    record.auto_remove = auto_remove;
    conclude(lifecycle, record, status, reason.clone())?;
    Err(
        Failure::new(format!("the container's sandbox ended: {reason}"))
            .with_code(low_byte(status)),
    )
}

fn conclude(
    lifecycle: &Lifecycle,
    mut record: ContainerRecord,
    status: u32,
    error: String,
) -> Result<(), Failure> {
    let started = match &record.state {
        State::Running { started } => Some(started.clone()),
        _ => None,
    };
    let finished = rfc3339(SystemTime::now());
    record.state = State::Exited {
        started,
        finished,
        exit_code: status,
        error,
    };
    lifecycle.conclude(record).map(drop)
}

/// A container that did not start leaves nothing.
fn abandon(lifecycle: &Lifecycle, record: &ContainerRecord, failure: Failure) -> Failure {
    match lifecycle.remove(record) {
        Ok(()) => failure,
        Err(rest) => {
            let text = format!(
                "{}; and cleaning up failed: {}",
                failure.message(),
                rest.message()
            );
            Failure::new(text).with_code(failure.code())
        }
    }
}

/// An exit status is a byte.
fn low_byte(status: u32) -> u8 {
    status.to_le_bytes()[0]
}
