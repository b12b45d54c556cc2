//! `lazaret-oci exec`: a further process in a container. Attended, this command
//! stands for it on the host; detached, a small process of its own does.

mod process;

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio as ChildStdio};

use serde_json::Value;
use tokio::runtime::Runtime;

use super::attend::{Attendant, READY};
use super::console::{Console, Relay, size_of};
use super::container::Container;
use super::create::{Stdio, check_terminal, refuse_descriptors};
use super::failure::{Failure, OciError};
use super::record::Status;
use super::{Host, inherited, pid_file, runtime};
use crate::cli::stdio::random_exec_id;
use crate::cli::terminal;
use crate::task_client::Task;

/// Exit code of an exec that could not be made, as runc's.
const EXIT_NOT_MADE: u8 = 255;

/// Execute a further process in a container
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on in the background once the process runs
    #[arg(short, long)]
    detach: bool,
    /// File to write the process id of the process on the host to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Unix socket that receives the master of the process's terminal
    #[arg(long, value_name = "PATH")]
    console_socket: Option<PathBuf>,
    /// Pass further descriptors to the process: refused, none can cross into a microVM
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    preserve_fds: u32,
    /// Execute in a paused container as well: refused where it is paused, nothing begins there
    #[arg(long)]
    ignore_paused: bool,
    /// Sub-cgroup to run the process in: refused
    #[arg(long, value_name = "PATH")]
    cgroup: Vec<String>,
    /// Accepted for older callers; there is nothing to reap
    #[arg(long, hide = true)]
    no_subreaper: bool,
    #[command(flatten)]
    process: process::ProcessArgs,
    /// Id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The process's program and arguments
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,
}

impl Args {
    pub(super) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let done = self.exec(host);
        done.map_err(|failure| failure.context("exec failed").with_code(EXIT_NOT_MADE))
    }

    fn exec(&self, host: &Host) -> Result<ExitCode, Failure> {
        let container = Container::find(host, &self.container)?;
        must_be_running(container.status(host)?, self.ignore_paused)?;
        if !self.cgroup.is_empty() {
            let why = "all processes of a container are in one cgroup of the guest";
            return Err(OciError::Unsupported("--cgroup", why).into());
        }
        refuse_descriptors(self.preserve_fds)?;
        let process = self.process.build(&container, &self.command)?;
        let is_terminal = process["terminal"].as_bool().unwrap_or(false);
        check_terminal(self.detach, is_terminal, self.console_socket.is_some())?;
        inherited::keep_to_self()?;

        let stdio = Stdio::new(is_terminal)?;
        let exec = Exec::add(host, &container, &process, &stdio);
        let exec = exec.map_err(|err| match container.explain(host, err) {
            OciError::NotRunning => OciError::ExecStopped,
            err => err,
        })?;
        match stdio {
            Stdio::Inherited if self.detach => self.leave(&exec, None),
            Stdio::Terminal(console) if self.detach => {
                if let Some(socket) = &self.console_socket {
                    console.send_master(socket)?;
                }
                self.leave(&exec, Some(&console))
            }
            Stdio::Inherited => self.attend(&exec, None),
            Stdio::Terminal(console) => self.attend(&exec, Some(console)),
        }
    }

    /// Lets the process run, and leaves one that stands for it.
    fn leave(&self, exec: &Exec<'_>, console: Option<&Console>) -> Result<ExitCode, Failure> {
        let mut standing = exec.stand_in(console)?;
        if let Err(failure) = exec.start() {
            // It has been told of an end that never had a beginning.
            let _ = standing.wait();
            return Err(failure);
        }
        if let Some(size) = console.and_then(|console| size_of(&console.slave)) {
            // What stands for the process passes on later sizes.
            let _ = exec.runtime.block_on(exec.task.resize(&exec.id, size));
        }
        if let Some(path) = &self.pid_file {
            pid_file::write(path, standing.id()).inspect_err(|_| {
                // A process that its engine cannot find must not be.
                let _ = exec
                    .runtime
                    .block_on(exec.task.kill(&exec.id, SIGKILL, false));
            })?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Lets the process run and stays with it to its end.
    fn attend(&self, exec: &Exec<'_>, console: Option<Console>) -> Result<ExitCode, Failure> {
        let socket = exec.container.task_socket(exec.host);
        let sandbox = exec.container.record.sandbox.as_str();
        let mut attendant = exec.reach(Attendant::new(&socket, sandbox, &exec.id))?;
        exec.start()?;
        if let Some(path) = &self.pid_file {
            pid_file::write(path, std::process::id())?;
        }
        let relay = console.map(|console| {
            // The sandbox process has the slave, and ours would keep it open.
            drop(console.slave);
            Relay::start(console.master)
        });
        let relay = relay.transpose()?;
        let status = attendant.attend(|attendant| match &relay {
            Some(relay) => {
                relay.fit();
                let size = terminal::size();
                size.map_or(Ok(()), |size| attendant.resize(size.ws_row, size.ws_col))
            }
            None => Ok(()),
        });
        if let Some(relay) = relay {
            relay.finish();
        }
        let status = status.map_err(OciError::Runtime)?;
        attendant.forget();
        Ok(ExitCode::from(status))
    }
}

const SIGKILL: u32 = 9;

fn must_be_running(status: Status, ignore_paused: bool) -> Result<(), OciError> {
    match status {
        Status::Created | Status::Running => Ok(()),
        Status::Paused if ignore_paused => {
            let why = "nothing begins in a paused container until it is resumed";
            Err(OciError::Unsupported("--ignore-paused", why))
        }
        Status::Paused => Err(OciError::ExecPaused),
        Status::Stopped | Status::Creating => Err(OciError::ExecStopped),
    }
}

/// A process that has been added to a container.
struct Exec<'a> {
    host: &'a Host,
    container: &'a Container,
    runtime: Runtime,
    task: Task,
    id: String,
}

impl<'a> Exec<'a> {
    fn add(
        host: &'a Host,
        container: &'a Container,
        process: &Value,
        stdio: &Stdio,
    ) -> Result<Self, OciError> {
        let id = random_exec_id();
        let runtime = runtime()?;
        let paths = stdio.hand_over(host, &container.record.sandbox, &id)?;
        let task = runtime.block_on(async {
            let task = container.connect(host).await?;
            task.exec(&id, process, &paths).await?;
            Ok::<_, OciError>(task)
        })?;
        Ok(Self {
            host,
            container,
            runtime,
            task,
            id,
        })
    }

    fn start(&self) -> Result<(), Failure> {
        let started = self.runtime.block_on(self.task.start(&self.id));
        started.map_err(|err| {
            // What did not start is only to be forgotten.
            let _ = self.runtime.block_on(self.task.delete(&self.id));
            match self.container.explain(self.host, err.into()) {
                OciError::NotRunning => OciError::ExecStopped.into(),
                err => Failure::from(err).context("unable to start container process"),
            }
        })
    }

    /// What was to be connected with the sandbox process.
    fn reach<T>(&self, connected: std::io::Result<T>) -> Result<T, OciError> {
        connected.map_err(|err| {
            if self.container.has_gone(self.host) {
                OciError::ExecStopped
            } else {
                OciError::Runtime(err)
            }
        })
    }

    /// Starts the process that stands for this one, and waits until it does.
    fn stand_in(&self, console: Option<&Console>) -> Result<Child, OciError> {
        let (mut child, said) = self.spawn(console).map_err(OciError::Runtime)?;
        if said == READY {
            return Ok(child);
        }
        let status = child.wait().map_err(OciError::Runtime)?;
        let text = format!("what stands for the process has ended with {status}");
        self.reach(Err(std::io::Error::other(text)))
    }

    /// Gives the process with its first words.
    fn spawn(&self, console: Option<&Console>) -> std::io::Result<(Child, Vec<u8>)> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("attend")
            .arg("--socket")
            .arg(self.container.task_socket(self.host));
        match console {
            Some(console) => {
                command.arg("--terminal").stdin(console.slave.try_clone()?);
            }
            None => {
                command.stdin(ChildStdio::null());
            }
        }
        let mut child = command
            .args([self.container.record.sandbox.as_str(), &self.id])
            .stdout(ChildStdio::piped())
            .stderr(ChildStdio::null())
            .spawn()?;
        let mut said = Vec::new();
        if let Some(stdout) = &mut child.stdout {
            stdout.take(READY.len() as u64 + 1).read_to_end(&mut said)?;
        }
        Ok((child, said))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_added_to_what_runs() {
        assert!(must_be_running(Status::Running, false).is_ok());
        assert!(must_be_running(Status::Created, false).is_ok());
        assert!(must_be_running(Status::Running, true).is_ok());
        let refused = must_be_running(Status::Paused, true).unwrap_err();
        assert!(
            refused.to_string().starts_with("--ignore-paused is not"),
            "{refused}"
        );
        assert!(matches!(
            must_be_running(Status::Paused, false),
            Err(OciError::ExecPaused)
        ));
        assert!(matches!(
            must_be_running(Status::Stopped, true),
            Err(OciError::ExecStopped)
        ));
    }
}
