//! A sandbox's VMM process: started with its descriptors, listened to, ended.
//!
//! It is spawned by a thread of its own, which has entered a new PID namespace
//! before: the VMM is that namespace's first process and cannot see others. The
//! thread lives until the VMM has been reaped, so that the VMM's parent death
//! signal means what it says.
//!
//! What a VMM says is not trusted: a message out of place ends it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram as StdUnixDatagram, UnixStream as StdUnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use lazaret_vmm::config::{VmConfig, VmFds};
use lazaret_vmm::control::{
    BackendChange, CONTROL_FD, ControlError, ControlSocket, ExitReason, VmmEvent, VmmRequest,
};
use nix::sched::{CloneFlags, unshare};
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::{UnixDatagram, UnixStream};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;

/// Connections of the guest that wait to be taken; more are dropped.
const CONNECTIONS_MAX: usize = 64;

/// How long a VMM that has said its last word may take to be gone.
const EXIT_DEADLINE: Duration = Duration::from_secs(5);

/// The spawning thread only spawns and waits.
const THREAD_STACK: usize = 128 * 1024;

#[derive(Debug, Error)]
pub enum VmError {
    #[error("cannot enter a new PID namespace")]
    Namespace(#[source] io::Error),
    #[error("cannot start {}", path.display())]
    Spawn { path: PathBuf, source: io::Error },
    #[error("cannot set up the VMM's control socket")]
    Control(#[from] ControlError),
    #[error("cannot watch the VMM")]
    Watch(#[source] io::Error),
}

/// How a VMM ended.
#[derive(Clone, Debug, Error)]
pub enum VmEnd {
    #[error(transparent)]
    Exited(ExitReason),
    #[error("the virtual machine monitor was killed by signal {signal}")]
    Killed { signal: i32 },
    #[error("the virtual machine monitor ended with status {status} and without a reason")]
    Died { status: i32 },
    #[error("the virtual machine monitor broke the control protocol: {0}")]
    Protocol(String),
}

/// Why nothing was connected to a slot, or disconnected from it.
#[derive(Debug, Error)]
pub enum BackendError {
    #[error("the virtual machine monitor refuses: {0}")]
    Refused(String),
    #[error("the microVM has ended")]
    Ended(#[source] VmEnd),
}

/// A connection from the guest to a host port.
#[derive(Debug)]
pub struct GuestConnection {
    pub port: u32,
    pub stream: UnixStream,
}

/// A VMM process that has not been given its configuration yet.
#[derive(Debug)]
pub struct Spawned {
    pub pid: u32,
    control: ControlSocket,
    pidfd: Arc<OwnedFd>,
    exit: oneshot::Receiver<io::Result<ExitStatus>>,
}

/// Where a VMM's own output goes.
#[derive(Debug)]
pub struct VmmOutput {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Starts the VMM process.
pub async fn spawn(vmm: &Path, output: VmmOutput) -> Result<Spawned, VmError> {
    let (control, child_end) = ControlSocket::pair()?;
    let (started_tx, started) = oneshot::channel();
    let (exit_tx, exit) = oneshot::channel();
    let path = vmm.to_owned();
    thread::Builder::new()
        .name("vmm-parent".to_owned())
        .stack_size(THREAD_STACK)
        .spawn(move || match start(&path, output, child_end.into()) {
            Ok((mut child, pidfd)) => {
                let pid = child.id();
                if started_tx.send(Ok((pid, pidfd))).is_err() {
                    // Cancelled in between: `wait` below still reaps it.
                    let _ = child.kill();
                }
                let _ = exit_tx.send(child.wait());
            }
            Err(err) => {
                let _ = started_tx.send(Err(err));
            }
        })
        .map_err(VmError::Watch)?;
    let (pid, pidfd) = started
        .await
        .map_err(|_| VmError::Watch(io::ErrorKind::BrokenPipe.into()))??;
    Ok(Spawned {
        pid,
        control,
        pidfd: Arc::new(pidfd),
        exit,
    })
}

fn start(
    path: &Path,
    output: VmmOutput,
    control: OwnedFd,
) -> Result<(std::process::Child, OwnedFd), VmError> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(|err| VmError::Namespace(err.into()))?;
    let failed = |source| VmError::Spawn {
        path: path.to_owned(),
        source,
    };
    let mut command = Command::new(path);
    command
        .current_dir("/")
        // A terminal of the sandbox process tells it alone of its end.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(output.stdout)
        .stderr(output.stderr)
        .fd_mappings(vec![FdMapping {
            parent_fd: control,
            child_fd: CONTROL_FD,
        }])
        .map_err(|err| failed(io::Error::other(err)))?;
    let mut child = command.spawn().map_err(failed)?;
    // Its end of the control socket must not stay open here.
    drop(command);
    let pidfd = Pid::from_raw(child.id().cast_signed())
        .ok_or(Errno::SRCH)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
    match pidfd {
        Ok(pidfd) => Ok((child, pidfd)),
        Err(err) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(VmError::Watch(err.into()))
        }
    }
}

impl Spawned {
    /// Sends the configuration: the microVM boots.
    pub fn boot(self, config: &VmConfig, fds: &VmFds) -> Result<Vm, VmError> {
        self.control.send(
            config,
            &[
                fds.kvm.as_fd(),
                fds.kernel.as_fd(),
                fds.initramfs.as_fd(),
                fds.console.as_fd(),
                fds.vsock_listener.as_fd(),
                fds.shared_dir.as_fd(),
            ],
        )?;
        let control = Arc::new(Control::new(self.control).map_err(VmError::Watch)?);
        let (connections_tx, connections) = mpsc::channel(CONNECTIONS_MAX);
        let (ended_tx, ended) = watch::channel(None);
        let (paused_tx, paused) = watch::channel(false);
        let many_files = Arc::new(Notify::new());
        let listener = Listener {
            control: Arc::clone(&control),
            pidfd: Arc::clone(&self.pidfd),
            connections: connections_tx,
            paused: paused_tx,
            many_files: Arc::clone(&many_files),
        };
        tokio::spawn(async move {
            let end = listener.run(self.exit).await;
            ended_tx.send_replace(Some(end));
        });
        Ok(Vm {
            pid: self.pid,
            handle: VmHandle {
                control,
                pidfd: self.pidfd,
                ended,
                paused,
                many_files,
            },
            connections,
        })
    }

    /// Ends the process before it became a microVM.
    pub async fn abandon(self) {
        // ESRCH: it has ended by itself.
        let _ = pidfd_send_signal(&*self.pidfd, Signal::KILL);
        let _ = self.exit.await;
    }
}

/// A running microVM.
#[derive(Debug)]
pub struct Vm {
    pub pid: u32,
    pub handle: VmHandle,
    pub connections: mpsc::Receiver<GuestConnection>,
}

/// What can be asked of a running microVM.
#[derive(Clone, Debug)]
pub struct VmHandle {
    control: Arc<Control>,
    pidfd: Arc<OwnedFd>,
    ended: watch::Receiver<Option<VmEnd>>,
    paused: watch::Receiver<bool>,
    many_files: Arc<Notify>,
}

impl VmHandle {
    /// Answers when the VMM has ended and is reaped.
    pub async fn ended(&self) -> VmEnd {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(end)) => end.clone(),
            _ => VmEnd::Protocol("it is no longer watched".to_owned()),
        }
    }

    /// Answers when the guest remembers many shared files, since it was asked last.
    pub async fn many_files(&self) {
        self.many_files.notified().await;
    }

    /// Stops or continues the vCPUs; answers when that has happened.
    pub async fn set_paused(&self, pause: bool) -> Result<(), VmEnd> {
        let request = if pause {
            VmmRequest::Pause
        } else {
            VmmRequest::Resume
        };
        if self.control.send(&request, &[]).await.is_err() {
            return Err(self.ended().await);
        }
        let mut paused = self.paused.clone();
        tokio::select! {
            changed = paused.wait_for(|now| *now == pause) => match changed {
                Ok(_) => Ok(()),
                Err(_) => Err(self.ended().await),
            },
            end = self.ended() => Err(end),
        }
    }

    /// Puts a tap (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`) behind network slot
    /// `slot`, whose link comes up.
    pub async fn connect_net(&self, slot: u8, tap: OwnedFd) -> Result<(), BackendError> {
        self.change_backend(BackendChange::ConnectNet { slot }, Some(tap))
            .await
    }

    /// Takes the link of network slot `slot` down and closes its tap.
    pub async fn disconnect_net(&self, slot: u8) -> Result<(), BackendError> {
        self.change_backend(BackendChange::DisconnectNet { slot }, None)
            .await
    }

    /// Puts a regular file or a block device into block slot `slot`.
    pub async fn connect_block(
        &self,
        slot: u8,
        disk: OwnedFd,
        read_only: bool,
    ) -> Result<(), BackendError> {
        self.change_backend(BackendChange::ConnectBlock { slot, read_only }, Some(disk))
            .await
    }

    /// Empties block slot `slot` when its requests are done.
    pub async fn disconnect_block(&self, slot: u8) -> Result<(), BackendError> {
        self.change_backend(BackendChange::DisconnectBlock { slot }, None)
            .await
    }

    async fn change_backend(
        &self,
        change: BackendChange,
        backend: Option<OwnedFd>,
    ) -> Result<(), BackendError> {
        let (id, answer) = self.control.expect_answer();
        let fds: Vec<_> = backend.iter().map(AsFd::as_fd).collect();
        let request = VmmRequest::Backend { id, change };
        if self.control.send(&request, &fds).await.is_err() {
            self.control.answers.lock().remove(&id);
            return Err(BackendError::Ended(self.ended().await));
        }
        tokio::select! {
            Ok(answer) = answer => answer.map_err(BackendError::Refused),
            end = self.ended() => Err(BackendError::Ended(end)),
        }
    }

    /// Ends the microVM whatever its guest does, and waits until it is gone.
    pub async fn stop(&self, deadline: Duration) -> VmEnd {
        let stop = async {
            // Fails where it has ended by itself.
            let _ = self.control.send(&VmmRequest::Stop, &[]).await;
            self.ended().await
        };
        if let Ok(end) = timeout(deadline, stop).await {
            return end;
        }
        tracing::warn!("the VMM does not stop, it is killed");
        self.kill();
        self.ended().await
    }

    pub fn kill(&self) {
        // ESRCH: it has ended by itself.
        let _ = pidfd_send_signal(&*self.pidfd, Signal::KILL);
    }
}

/// A change of a slot's backend: made, or the VMM's reason why not.
type Answer = Result<(), String>;

/// The control socket, and the event loop's knowledge of when it has something.
#[derive(Debug)]
struct Control {
    socket: ControlSocket,
    readiness: UnixDatagram,
    /// Who waits for the answer to which request.
    answers: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    next_id: AtomicU64,
}

impl Control {
    fn new(socket: ControlSocket) -> io::Result<Self> {
        let watched = StdUnixDatagram::from(socket.as_fd().try_clone_to_owned()?);
        watched.set_nonblocking(true)?;
        Ok(Self {
            socket,
            readiness: UnixDatagram::from_std(watched)?,
            answers: Mutex::default(),
            next_id: AtomicU64::new(0),
        })
    }

    /// The number of a new request, and where its answer will come.
    fn expect_answer(&self) -> (u64, oneshot::Receiver<Answer>) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.answers.lock().insert(id, sender);
        (id, answer)
    }

    /// Sends a message, when the VMM has taken enough of those before it.
    async fn send(&self, request: &VmmRequest, fds: &[BorrowedFd<'_>]) -> Result<(), ControlError> {
        loop {
            self.readiness
                .writable()
                .await
                .map_err(|err| socket_error(&err))?;
            let mut sent = None;
            let waiting = self.readiness.try_io(Interest::WRITABLE, || {
                match self.socket.send(request, fds) {
                    Err(ControlError::Socket(Errno::AGAIN)) => Err(Errno::AGAIN.into()),
                    result => {
                        sent = Some(result);
                        Ok(())
                    }
                }
            });
            match (sent, waiting) {
                (Some(result), _) => return result,
                (None, Err(err)) if err.kind() != io::ErrorKind::WouldBlock => {
                    return Err(socket_error(&err));
                }
                _ => {}
            }
        }
    }

    async fn receive(&self) -> Result<Option<(VmmEvent, Vec<OwnedFd>)>, ControlError> {
        loop {
            self.readiness
                .readable()
                .await
                .map_err(|err| socket_error(&err))?;
            let mut received = None;
            let waiting = self
                .readiness
                .try_io(Interest::READABLE, || match self.socket.recv() {
                    Err(ControlError::Socket(Errno::AGAIN)) => Err(Errno::AGAIN.into()),
                    result => {
                        received = Some(result);
                        Ok(())
                    }
                });
            match (received, waiting) {
                (Some(Err(ControlError::Socket(Errno::INTR))), _) | (None, Ok(())) => {}
                (Some(result), _) => return result,
                (None, Err(err)) if err.kind() == io::ErrorKind::WouldBlock => {}
                (None, Err(err)) => return Err(socket_error(&err)),
            }
        }
    }
}

fn socket_error(err: &io::Error) -> ControlError {
    ControlError::Socket(Errno::from_io_error(err).unwrap_or(Errno::IO))
}

/// Takes in what the VMM says.
struct Listener {
    control: Arc<Control>,
    pidfd: Arc<OwnedFd>,
    connections: mpsc::Sender<GuestConnection>,
    paused: watch::Sender<bool>,
    many_files: Arc<Notify>,
}

/// Why there is nothing more to hear.
enum LastWord {
    Exited(ExitReason),
    Silence,
    Broken(String),
}

impl Listener {
    async fn run(self, mut exit: oneshot::Receiver<io::Result<ExitStatus>>) -> VmEnd {
        let (last, status) = tokio::select! {
            last = self.listen() => {
                if matches!(last, LastWord::Broken(_)) {
                    let _ = pidfd_send_signal(&*self.pidfd, Signal::KILL);
                }
                (last, self.reap(&mut exit).await)
            }
            status = &mut exit => {
                // What it said before it ended is still in the socket.
                let last = timeout(EXIT_DEADLINE, self.listen()).await;
                (last.unwrap_or(LastWord::Silence), status)
            }
        };
        let status = status.ok().and_then(Result::ok);
        match (last, status) {
            (LastWord::Exited(reason), _) => VmEnd::Exited(reason),
            (LastWord::Broken(text), _) => VmEnd::Protocol(text),
            (LastWord::Silence, Some(status)) => match status.signal() {
                Some(signal) => VmEnd::Killed { signal },
                None => VmEnd::Died {
                    status: status.code().unwrap_or_default(),
                },
            },
            (LastWord::Silence, None) => VmEnd::Protocol("it could not be waited for".to_owned()),
        }
    }

    async fn reap(
        &self,
        exit: &mut oneshot::Receiver<io::Result<ExitStatus>>,
    ) -> Result<io::Result<ExitStatus>, oneshot::error::RecvError> {
        if let Ok(status) = timeout(EXIT_DEADLINE, &mut *exit).await {
            return status;
        }
        let _ = pidfd_send_signal(&*self.pidfd, Signal::KILL);
        exit.await
    }

    async fn listen(&self) -> LastWord {
        loop {
            match self.control.receive().await {
                Ok(Some((event, fds))) => match self.take(event, fds) {
                    Ok(None) => {}
                    Ok(Some(last)) => return last,
                    Err(text) => return LastWord::Broken(text),
                },
                // A connection of the guest, which sees its end.
                Err(err @ ControlError::Descriptors) => tracing::warn!("{err}"),
                Ok(None) | Err(ControlError::Socket(_)) => return LastWord::Silence,
                Err(err) => return LastWord::Broken(err.to_string()),
            }
        }
    }

    fn take(&self, event: VmmEvent, mut fds: Vec<OwnedFd>) -> Result<Option<LastWord>, String> {
        let attached = fds.pop();
        if !fds.is_empty()
            || attached.is_some() != matches!(event, VmmEvent::VsockConnection { .. })
        {
            return Err("descriptors do not fit the message".to_owned());
        }
        match (event, attached) {
            (VmmEvent::Started, _) => tracing::debug!("vCPUs run"),
            (VmmEvent::Paused, _) => drop(self.paused.send_replace(true)),
            (VmmEvent::Resumed, _) => drop(self.paused.send_replace(false)),
            (VmmEvent::ManyFiles, _) => self.many_files.notify_one(),
            (VmmEvent::Exited { reason, vm_exits }, _) => {
                tracing::info!(?vm_exits, "VMM exited: {reason}");
                return Ok(Some(LastWord::Exited(reason)));
            }
            (VmmEvent::Backend { id, refusal }, _) => {
                let waiting = self.control.answers.lock().remove(&id);
                let waiting = waiting.ok_or("an answer nobody has asked for")?;
                // Who asked may have stopped waiting.
                let _ = waiting.send(refusal.map_or(Ok(()), Err));
            }
            (VmmEvent::VsockConnection { port }, fd) => {
                let stream = fd.and_then(|fd| stream(fd).ok());
                let stream = stream.ok_or("a connection is not a unix socket")?;
                if self
                    .connections
                    .try_send(GuestConnection { port, stream })
                    .is_err()
                {
                    tracing::debug!(port, "connection of the guest dropped");
                }
            }
        }
        Ok(None)
    }
}

fn stream(fd: OwnedFd) -> io::Result<UnixStream> {
    let stream = StdUnixStream::from(fd);
    // Fails on what is no unix socket.
    stream.local_addr()?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
