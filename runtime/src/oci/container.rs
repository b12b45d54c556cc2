//! A container that is there: its record and what its sandbox says of it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;
use ttrpc::Code;

use super::Host;
use super::failure::OciError;
use super::names::ContainerId;
use super::record::{Place, Process, Record, Status};
use crate::hooks::HookState;
use crate::sandbox::state::{ContainerStatus, SandboxState, process_start_time};
use crate::stdio::handover::HandoverError;
use crate::task_client::{Task, TaskError};

/// How long a sandbox process whose container has ended may take to go itself.
const END_DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct Container {
    pub(super) place: Place,
    pub(super) record: Record,
}

impl Container {
    pub(super) fn find(host: &Host, id: &str) -> Result<Self, OciError> {
        let place = host.root.place(ContainerId::new(id)?);
        let record = place.load()?;
        Ok(Self { place, record })
    }

    /// What the sandbox has written down, if it is still this container's.
    fn sandbox(&self, host: &Host) -> Result<Option<SandboxState>, OciError> {
        let state = host.sandboxes.load(&self.record.sandbox)?;
        let process = self.record.process;
        Ok(state.filter(|state| {
            process.is_some_and(|process| {
                process.pid == state.pid && process.start_time == state.start_time
            })
        }))
    }

    pub(super) fn status(&self, host: &Host) -> Result<Status, OciError> {
        if !self.record.complete {
            // Whoever made it has been killed where nobody holds the lock.
            return Ok(if self.place.is_locked() {
                Status::Creating
            } else {
                Status::Stopped
            });
        }
        let state = self.sandbox(host)?;
        let container = state
            .as_ref()
            .and_then(|state| state.containers.get(self.record.sandbox.as_str()));
        Ok(match container.map(|container| container.status) {
            Some(ContainerStatus::Created) => Status::Created,
            Some(ContainerStatus::Running) => Status::Running,
            Some(ContainerStatus::Paused) => Status::Paused,
            Some(ContainerStatus::Stopped) | None => Status::Stopped,
        })
    }

    /// How the container has ended, as far as the sandbox could write it down.
    pub(super) fn exit_status(&self, host: &Host) -> Result<Option<u32>, OciError> {
        let state = self.sandbox(host)?;
        let container =
            state.and_then(|mut state| state.containers.remove(self.record.sandbox.as_str()));
        Ok(container.and_then(|container| container.exit_status))
    }

    /// The process that is the container on the host; none once it has ended.
    pub(super) fn pid(&self, status: Status) -> Option<u32> {
        let process = self.record.process.filter(|_| status != Status::Stopped);
        process.map(|process| process.pid)
    }

    pub(super) fn vmm_pid(&self, host: &Host) -> Result<Option<u32>, OciError> {
        Ok(self.sandbox(host)?.and_then(|state| state.vmm_pid))
    }

    pub(super) fn task_socket(&self, host: &Host) -> PathBuf {
        host.sandboxes.dir(&self.record.sandbox).task_socket()
    }

    pub(super) async fn connect(&self, host: &Host) -> Result<Task, TaskError> {
        let address = format!("unix://{}", self.task_socket(host).display());
        Task::connect(&address, self.record.sandbox.as_str()).await
    }

    /// What the failure of a request means: a container that ends takes along whom it
    /// was asked of, and all that the request needs.
    pub(super) fn explain(&self, host: &Host, err: OciError) -> OciError {
        let ended = match &err {
            OciError::Task(task) => match task.code() {
                None => self.has_gone(host),
                Some(Code::ABORTED | Code::UNAVAILABLE) => true,
                Some(Code::FAILED_PRECONDITION | Code::NOT_FOUND) => self.is_stopped(host),
                Some(_) => false,
            },
            OciError::Handover(HandoverError::Socket { .. }) => self.has_gone(host),
            OciError::Handover(HandoverError::Refused(_)) => self.is_stopped(host),
            _ => false,
        };
        if ended { OciError::NotRunning } else { err }
    }

    fn is_stopped(&self, host: &Host) -> bool {
        matches!(self.status(host), Ok(Status::Stopped))
    }

    /// Whether a sandbox process that cannot be asked any more has ended: it closes its
    /// sockets on the way there.
    pub(super) fn has_gone(&self, host: &Host) -> bool {
        self.await_end();
        self.is_stopped(host)
    }

    /// Waits for the sandbox process of an ended container to take its leave, so
    /// that whoever waits for it gets the container's status and not a signal's.
    pub(super) fn await_end(&self) {
        if let Some(process) = self.record.process.and_then(open_process) {
            let deadline = Timespec::try_from(END_DEADLINE).ok();
            // Ended, interrupted or out of time: it is killed if it is still there.
            let _ = poll(
                &mut [PollFd::new(&process, PollFlags::IN)],
                deadline.as_ref(),
            );
        }
    }

    /// What a hook is told.
    pub(super) fn hook_state<'a>(&'a self, status: &'a str, spec: &'a Value) -> HookState<'a> {
        let process = self.record.process.filter(|_| status != "stopped");
        HookState {
            id: &self.record.id,
            status,
            pid: process.map(|process| process.pid),
            bundle: &self.record.bundle,
            spec,
        }
    }
}

fn open_process(process: Process) -> Option<OwnedFd> {
    let pid = Pid::from_raw(process.pid.cast_signed())?;
    // The descriptor first: it cannot come to mean another process.
    let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    (process_start_time(process.pid) == Some(process.start_time)).then_some(fd)
}
