//! A process of a container, from its stage to its exit status.
//!
//! ```text
//! launch ──▶ created ──start──▶ running ──▶ ended
//!                └────killed──────────────────┘
//! ```

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use oci_spec::runtime::PosixRlimit;
use parking_lot::Mutex;
use rustix::fs::{FileType, MemfdFlags, Uid, fchown, fstat, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, pidfd_send_signal};
use tokio::sync::{oneshot, watch};

use super::spawn::{PidNamespace, Stage};
use super::sync::{AgentSocket, Message};
use super::user_namespace::Mappings;
use super::{credentials, terminal};
use crate::cgroup::Cgroup;
use crate::failure::{Code, Failure, OrFail, Result};
use crate::reaper::{ExitStatus, Reaper};
use crate::stdio::{Connections, Stdio, null_fds};

/// Everything a new process needs.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) program: BorrowedFd<'a>,
    pub(super) reaper: &'a Reaper,
    pub(super) mode: &'a CStr,
    /// The stage's input, JSON.
    pub(super) input: &'a [u8],
    pub(super) terminal: bool,
    pub(super) oom_score_adj: i32,
    pub(super) rlimits: &'a [PosixRlimit],
    /// The container's user namespace, for its first process.
    pub(super) users: Option<&'a Mappings>,
    /// Whose pipes the process's stdio becomes.
    pub(super) uid: u32,
    /// Mounts of the spec that are made for the container.
    pub(super) mounts: Vec<OwnedFd>,
    pub(super) connections: Connections,
    /// Watched for the OOM killer.
    pub(super) cgroup: Arc<Cgroup>,
    /// Where the process starts: the cgroup itself, as a rule.
    pub(super) start_in: BorrowedFd<'a>,
    pub(super) pid_namespace: PidNamespace<'a>,
    /// The container's first process, for a further one.
    pub(super) container: Option<BorrowedFd<'a>>,
    /// The end of this process is the end of all: without a PID namespace of its own
    /// the kernel would leave the others alive.
    pub(super) kill_cgroup_at_exit: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) status: u32,
    pub(crate) at_ns: u64,
    pub(crate) oom_killed: bool,
}

#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    stage: Mutex<Option<AgentSocket>>,
    ended: Arc<AtomicBool>,
    stdio: Arc<Stdio>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Launch<'_> {
    /// Starts the stage and waits until all but execve is done.
    pub(super) async fn created(self) -> Result<Process> {
        let (socket, stage_end) = AgentSocket::pair()?;
        let (mut fds, mut pending) = if self.terminal {
            (null_fds()?, Pending::Terminal(self.connections))
        } else {
            let (fds, stdio) = self.connections.into_pipes()?;
            give_pipes(&fds, self.uid)?;
            (fds, Pending::Pipes(stdio))
        };
        fds.push(stage_end);
        fds.push(input_file(self.input)?);
        if let Some(container) = self.container {
            let copy = container.try_clone_to_owned();
            fds.push(copy.or_fail(|| "copy the container's descriptor")?);
        }
        fds.extend(self.mounts);
        let stage = Stage {
            program: self.program,
            mode: self.mode,
            fds,
            cgroup: self.start_in,
            pid_namespace: self.pid_namespace,
            users: self.users,
        };
        let spawned = stage.spawn()?;
        let status = self.reaper.expect(spawned.pid);
        let prepared = set_oom_score(spawned.pid, self.oom_score_adj)
            .and_then(|()| credentials::allow_rlimits(spawned.pid, self.rlimits));
        let made = match prepared {
            Ok(()) => created(&socket, &mut pending).await,
            Err(failure) => Err(failure),
        };
        let stdio = match made {
            Ok(stdio) => Arc::new(stdio),
            Err(failure) => {
                // Dead already, or soon: the status must be collected either way.
                let _ = pidfd_send_signal(&spawned.pidfd, Signal::KILL);
                let _ = status.await;
                return Err(failure);
            }
        };
        let ended = Arc::new(AtomicBool::new(false));
        let (sender, exit) = watch::channel(None);
        let watch = ExitWatch {
            pid: spawned.pid.as_raw_nonzero().get(),
            status,
            ended: Arc::clone(&ended),
            stdio: Arc::clone(&stdio),
            cgroup: self.cgroup,
            kill_cgroup: self.kill_cgroup_at_exit,
        };
        tokio::spawn(async move {
            sender.send_replace(Some(watch.run().await));
        });
        Ok(Process {
            pid: spawned.pid,
            pidfd: spawned.pidfd,
            stage: Mutex::new(Some(socket)),
            ended,
            stdio,
            exit,
        })
    }
}

/// Stdio before the stage has reported.
enum Pending {
    Pipes(Stdio),
    Terminal(Connections),
    Taken,
}

async fn created(socket: &AgentSocket, pending: &mut Pending) -> Result<Stdio> {
    let master = match socket.next().await? {
        Some((Message::Created, master)) => master,
        Some((Message::Failed(failure), _)) => return Err(failure),
        Some((Message::Executing, _)) | None => {
            return Err(Failure::internal(
                "the container stage ended before it reported",
            ));
        }
    };
    match (std::mem::replace(pending, Pending::Taken), master) {
        (Pending::Pipes(stdio), None) => Ok(stdio),
        (Pending::Terminal(connections), Some(master)) => connections.into_terminal(master),
        _ => Err(Failure::internal(
            "the container stage reported another terminal than was asked for",
        )),
    }
}

/// Follows one process to its end.
struct ExitWatch {
    pid: i32,
    status: oneshot::Receiver<ExitStatus>,
    ended: Arc<AtomicBool>,
    stdio: Arc<Stdio>,
    cgroup: Arc<Cgroup>,
    kill_cgroup: bool,
}

impl ExitWatch {
    async fn run(self) -> Exit {
        const UNKNOWN: ExitStatus = ExitStatus(255);
        let ExitStatus(status) = self.status.await.unwrap_or(UNKNOWN);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let at_ns = now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
        self.ended.store(true, Ordering::Relaxed);
        let oom_killed = self.cgroup.oom_kills() > 0;
        if self.kill_cgroup
            && let Err(failure) = self.cgroup.kill()
        {
            tracing::warn!(%failure, "processes of an ended container may be left");
        }
        self.stdio.finish().await;
        tracing::info!(pid = self.pid, status, oom_killed, "process ended");
        Exit {
            status,
            at_ns,
            oom_killed,
        }
    }
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Lets the process execute its program, and answers when it has.
    pub(crate) async fn start(&self) -> Result<()> {
        let stage = self.stage.lock().take();
        let Some(stage) = stage else {
            return Err(precondition("the process has been started already"));
        };
        if self.has_ended() {
            let message = "the process has ended before its start";
            return Err(Failure::new(Code::Ended, message));
        }
        stage.start()?;
        let mut executing = false;
        loop {
            match stage.next().await? {
                Some((Message::Executing, _)) => executing = true,
                Some((Message::Failed(failure), _)) => {
                    self.wait().await;
                    return Err(failure);
                }
                Some((Message::Created, _)) => {
                    return Err(Failure::internal("the container stage repeats itself"));
                }
                None if executing => return Ok(()),
                None => {
                    let message = "the process was killed during its start";
                    return Err(Failure::new(Code::Ended, message));
                }
            }
        }
    }

    /// The end of the process, its output written out.
    pub(crate) async fn wait(&self) -> Exit {
        const LOST: Exit = Exit {
            status: 255,
            at_ns: 0,
            oom_killed: false,
        };
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await;
        ended.ok().and_then(|exit| *exit).unwrap_or(LOST)
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Err(Errno::SRCH) => Err(Failure::new(Code::NotFound, "the process has ended")),
            other => other.or_fail(|| format!("send signal {}", signal.as_raw())),
        }
    }

    pub(crate) fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let terminal = self.stdio.terminal();
        let terminal = terminal.ok_or_else(|| precondition("the process has no terminal"))?;
        terminal::set_size(terminal.get_ref(), rows, columns)
    }

    pub(crate) fn close_stdin(&self) {
        self.stdio.close_stdin();
    }

    /// Lets go of output that nobody has fetched.
    pub(super) fn abandon_stdio(&self) {
        self.stdio.abort();
    }
}

/// The process may open its stdio by name, as /dev/stdout.
fn give_pipes(fds: &[OwnedFd], uid: u32) -> Result<()> {
    let doing = || "give stdio to the user";
    for fd in fds {
        let kind = FileType::from_raw_mode(fstat(fd).or_fail(doing)?.st_mode);
        if kind == FileType::Fifo {
            fchown(fd, Some(Uid::from_raw(uid)), None).or_fail(doing)?;
        }
    }
    Ok(())
}

/// From outside, as a process with a user namespace may not lower its own score. The
/// agent's, which protects it, must not pass on.
fn set_oom_score(pid: Pid, score: i32) -> Result<()> {
    let path = format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero());
    std::fs::write(path, score.to_string()).or_fail(|| format!("set oom_score_adj {score}"))
}

fn input_file(input: &[u8]) -> Result<OwnedFd> {
    let doing = || "hand the spec to the container stage";
    let file = memfd_create("stage-input", MemfdFlags::CLOEXEC).or_fail(doing)?;
    let mut file = std::fs::File::from(file);
    file.write_all(input).or_fail(doing)?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).or_fail(doing)?;
    Ok(file.into())
}

fn precondition(message: &str) -> Failure {
    Failure::new(Code::FailedPrecondition, message)
}
