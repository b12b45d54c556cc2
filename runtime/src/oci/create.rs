//! `lazaret-oci create`: from a bundle to a container that only has to be let
//! go. What fails leaves nothing behind.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use serde_json::Value;

use super::bundle::Bundle;
use super::console::Console;
use super::container::Container;
use super::failure::{Failure, OciError};
use super::names::ContainerId;
use super::record::{Place, Process, Record};
use super::signals::hold_back_signals;
use super::{Host, inherited, pid_file, runtime};
use crate::hooks::{HookKind, run_all_hooks, run_hooks};
use crate::sandbox::config::OCI_NAMESPACE;
use crate::sandbox::id::SandboxId;
use crate::sandbox::state::rfc3339;
use crate::stdio::StdioPaths;
use crate::stdio::handover::{self, STDIO_SOCKET, hand_over};
use crate::storage::atomic::Lock;
use crate::task_client::{SandboxStart, Task, start_sandbox};

/// Create a container: everything but the run of its program
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) options: Options,
    /// Id of the container, unique in its root
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// What `create` and `run` have in common.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Directory of the bundle [default: the working directory]
    #[arg(
        short,
        long,
        value_name = "DIR",
        default_value = ".",
        hide_default_value = true
    )]
    pub(super) bundle: PathBuf,
    /// Unix socket that receives the master of the container's terminal
    #[arg(long, value_name = "PATH")]
    pub(super) console_socket: Option<PathBuf>,
    /// File to write the process id of the container on the host to
    #[arg(long, value_name = "FILE")]
    pub(super) pid_file: Option<PathBuf>,
    /// Pass further descriptors to the container: refused, none can cross into a microVM
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    pub(super) preserve_fds: u32,
    /// Accepted: the root of a microVM's container is always pivoted to, in the guest
    #[arg(long)]
    no_pivot: bool,
    /// Do not make a new session keyring: accepted, no keyring of the host is reachable
    #[arg(long)]
    no_new_keyring: bool,
}

impl Args {
    pub(super) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let create = || {
            let bundle = Bundle::load(&self.options.bundle)?;
            let socket = self.options.console_socket.as_deref();
            check_terminal(true, bundle.terminal(), socket.is_some())?;
            let stdio = Stdio::of(&bundle)?;
            let id = ContainerId::new(&self.container)?;
            create(host, &self.options, id, bundle, &stdio)
        };
        create().map_err(|failure: Failure| failure.context("lazaret-oci create failed"))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What runc says of a terminal without anyone to attend it, or the reverse.
pub(super) fn check_terminal(
    detach: bool,
    terminal: bool,
    console_socket: bool,
) -> Result<(), OciError> {
    if detach && terminal && !console_socket {
        Err(OciError::NoConsoleSocket)
    } else if console_socket && !(detach && terminal) {
        Err(OciError::UselessConsoleSocket)
    } else {
        Ok(())
    }
}

/// Descriptors beyond the standard ones stay on the host.
pub(super) fn refuse_descriptors(preserve_fds: u32) -> Result<(), OciError> {
    const WHY: &str = "no descriptor of the host can be passed into a microVM";
    if preserve_fds > 0 {
        return Err(OciError::Unsupported("--preserve-fds", WHY));
    }
    let own = std::process::id().to_string();
    if std::env::var("LISTEN_PID").is_ok_and(|pid| pid == own) {
        return Err(OciError::Unsupported("socket activation (LISTEN_FDS)", WHY));
    }
    Ok(())
}

/// The standard streams a process is made with.
#[derive(Debug)]
pub(super) enum Stdio {
    /// This command's own.
    Inherited,
    Terminal(Console),
}

impl Stdio {
    fn of(bundle: &Bundle) -> Result<Self, OciError> {
        Self::new(bundle.terminal())
    }

    pub(super) fn new(terminal: bool) -> Result<Self, OciError> {
        Ok(if terminal {
            Self::Terminal(Console::open()?)
        } else {
            Self::Inherited
        })
    }

    /// Hands the streams to the sandbox process. Returns how requests name them.
    pub(super) fn hand_over(
        &self,
        host: &Host,
        sandbox: &SandboxId,
        token: &str,
    ) -> Result<StdioPaths, OciError> {
        let socket = host.sandboxes.dir(sandbox).path().join(STDIO_SOCKET);
        let name = handover::address(token);
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let (fds, terminal) = match self {
            Self::Inherited => (vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()], false),
            Self::Terminal(console) => (vec![console.slave.as_fd()], true),
        };
        hand_over(&socket, token, &fds)?;
        Ok(StdioPaths {
            stdin: name.clone(),
            stdout: name.clone(),
            stderr: if terminal { String::new() } else { name },
            terminal,
        })
    }
}

/// Makes a container.
pub(super) fn create(
    host: &Host,
    options: &Options,
    id: ContainerId,
    bundle: Bundle,
    stdio: &Stdio,
) -> Result<Container, Failure> {
    refuse_descriptors(options.preserve_fds)?;
    if std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty()) {
        let what = "NOTIFY_SOCKET is not passed on: no socket of the host is reachable \
                    from inside a microVM";
        host.log.debug(what);
    }
    inherited::keep_to_self()?;
    // Once there is something, a signal is no reason to leave it half made.
    hold_back_signals().map_err(OciError::Runtime)?;
    let sandbox = host.root.sandbox(&id);
    let place = host.root.place(id);
    let lock = place.reserve()?;
    let container = Container {
        record: new_record(&place, sandbox, &bundle),
        place,
    };
    let mut made = Making {
        host,
        container,
        spec: bundle.spec,
        started: false,
        _lock: lock,
    };
    match made.make(options, stdio) {
        Ok(()) => Ok(made.container),
        Err(failure) => {
            made.undo();
            Err(failure)
        }
    }
}

fn new_record(place: &Place, sandbox: SandboxId, bundle: &Bundle) -> Record {
    let annotations = bundle.spec["annotations"].as_object();
    Record {
        id: place.id.as_str().to_owned(),
        sandbox,
        oci_version: bundle.spec["ociVersion"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        bundle: bundle.path.clone(),
        rootfs: bundle.rootfs(),
        created: rfc3339(SystemTime::now()),
        owner: rustix::process::getuid().as_raw(),
        annotations: annotations.cloned().unwrap_or_default(),
        process: None,
        complete: false,
    }
}

/// A container on its way.
struct Making<'a> {
    host: &'a Host,
    container: Container,
    spec: Value,
    /// There is a sandbox process, and hooks may have run.
    started: bool,
    _lock: Lock,
}

impl Making<'_> {
    fn make(&mut self, options: &Options, stdio: &Stdio) -> Result<(), Failure> {
        let runtime = runtime()?;
        let (task, pid) = runtime.block_on(self.start_sandbox())?;
        let state = self.container.hook_state("creating", &self.spec);
        for kind in [HookKind::Prestart, HookKind::CreateRuntime] {
            run_hooks(&self.spec, kind, &state)?;
        }
        let sandbox = &self.container.record.sandbox;
        let paths = stdio.hand_over(self.host, sandbox, sandbox.as_str())?;
        if let (Stdio::Terminal(console), Some(socket)) = (stdio, &options.console_socket) {
            console.send_master(socket)?;
        }
        let bundle = &self.container.record.bundle;
        let name = self.container.place.id.as_str();
        let created = runtime.block_on(task.create_named(name, bundle, &paths));
        created.map_err(|err| Failure::from(err).context("unable to start container process"))?;
        self.container.record.complete = true;
        self.container.place.save(&self.container.record)?;
        if let Some(path) = &options.pid_file {
            pid_file::write(path, pid)?;
        }
        Ok(())
    }

    /// Starts the sandbox process. The connection keeps it: without a container
    /// and without clients it ends.
    async fn start_sandbox(&mut self) -> Result<(Task, u32), OciError> {
        let Container { place, record } = &self.container;
        place.save_spec(&self.spec)?;
        place.save(record)?;
        start_sandbox(SandboxStart {
            shim: &self.host.config.shim,
            namespace: OCI_NAMESPACE,
            id: record.sandbox.as_str(),
            bundle: &record.bundle,
            exit_command: None,
        })
        .await?;
        self.started = true;
        let task = self.container.connect(self.host).await?;
        let Container { place, record } = &mut self.container;
        let dir = self.host.sandboxes.dir(&record.sandbox);
        let (pid, start_time) = dir.read_pid().ok_or(OciError::NoSandbox)?;
        record.process = Some(Process { pid, start_time });
        place.save(record)?;
        self.host.log.debug(&format!("sandbox process {pid}"));
        Ok((task, pid))
    }

    /// Takes down what there is. What failed first is what the command reports.
    fn undo(&self) {
        let Self {
            host, container, ..
        } = self;
        if self.started {
            if let Err(err) = host.sandboxes.end(&container.record.sandbox) {
                host.log.warning(&err.to_string());
            }
            let state = container.hook_state("stopped", &self.spec);
            for err in run_all_hooks(&self.spec, HookKind::Poststop, &state) {
                host.log.warning(&err.to_string());
            }
        }
        if let Err(err) = container.place.remove() {
            host.log.warning(&err.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_needs_somebody_to_attend_it() {
        assert!(check_terminal(true, true, true).is_ok());
        assert!(check_terminal(false, true, false).is_ok());
        assert!(check_terminal(true, false, false).is_ok());
        assert!(matches!(
            check_terminal(true, true, false),
            Err(OciError::NoConsoleSocket)
        ));
        for (detach, terminal) in [(true, false), (false, true), (false, false)] {
            assert!(matches!(
                check_terminal(detach, terminal, true),
                Err(OciError::UselessConsoleSocket)
            ));
        }
    }

    #[test]
    fn descriptors_are_refused_by_the_name_of_their_flag() {
        assert!(refuse_descriptors(0).is_ok());
        let text = refuse_descriptors(2).unwrap_err().to_string();
        assert!(
            text.starts_with("--preserve-fds is not supported"),
            "{text}"
        );
    }
}
