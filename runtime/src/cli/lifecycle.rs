//! A container's record and its sandbox brought together: what is running, how
//! it ended, and that nothing is left of what has ended.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Host;
use super::failure::Failure;
use crate::sandbox::cgroup::CGROUP_DIR;
use crate::sandbox::id::SandboxId;
use crate::sandbox::state::{ContainerStatus, DIED_STATUS, process_start_time, rfc3339};
use crate::sandbox::store::{Store, StoreError};
use crate::storage::atomic::Lock;
use crate::storage::container::{ContainerId, ContainerRecord, ProcessIdentity, State};
use crate::storage::containers::{Containers, ContainersError};
use crate::task_client::Task;

/// How long a sandbox that was told to end may take until it is killed.
const END_DEADLINE: Duration = Duration::from_secs(15);

/// Containers and their sandboxes.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    pub(crate) containers: Containers,
    sandboxes: Store,
    run_dir: PathBuf,
}

impl Lifecycle {
    pub(crate) fn open(host: &Host) -> Result<Self, Failure> {
        let run_dir = host.config.run_dir.clone();
        let sandboxes = Store::new(&run_dir, Path::new(CGROUP_DIR));
        Ok(Self {
            containers: host.containers()?,
            sandboxes,
            run_dir,
        })
    }

    /// Where commands keep the FIFOs of the processes they attend.
    pub(crate) fn attach_directory(&self) -> PathBuf {
        self.run_dir.join("attach")
    }

    /// Finds a container and brings its record up to date.
    pub(crate) fn find(&self, name: &str) -> Result<ContainerRecord, Failure> {
        let record = self.containers.load(&self.containers.resolve(name)?)?;
        let gone = || ContainersError::NoSuchContainer(name.to_owned());
        Ok(self.refresh(record)?.ok_or_else(gone)?)
    }

    /// A container that must be running for what is asked of it.
    pub(crate) fn find_running(&self, name: &str) -> Result<ContainerRecord, Failure> {
        let record = self.find(name)?;
        match record.state {
            State::Running { .. } => Ok(record),
            _ => Err(Failure::new(format!(
                "container {} is not running",
                record.id
            ))),
        }
    }

    /// The process that a running container is on the host: its microVM. 0 where there is none,
    /// as Docker writes it.
    pub(crate) fn pid(&self, record: &ContainerRecord) -> Result<u32, Failure> {
        if !matches!(record.state, State::Running { .. }) {
            return Ok(0);
        }
        let sandbox = self.sandboxes.load(&sandbox_id(&record.id)?)?;
        Ok(sandbox.and_then(|sandbox| sandbox.vmm_pid).unwrap_or(0))
    }

    /// All containers, each up to date.
    pub(crate) fn list(&self) -> Result<Vec<ContainerRecord>, Failure> {
        let mut records = Vec::new();
        for record in self.containers.list()? {
            records.extend(self.refresh(record)?);
        }
        Ok(records)
    }

    /// Takes over what the sandbox has written down since. `None` for a
    /// container that ended and was to be removed then.
    pub(crate) fn refresh(
        &self,
        mut record: ContainerRecord,
    ) -> Result<Option<ContainerRecord>, Failure> {
        if record.state.is_exited() {
            return Ok(Some(record));
        }
        let attended = record.attendant.is_some_and(is_alive);
        let before = record.state.clone();
        record.state = self.observed(&record, attended)?;
        if attended {
            // The attending command writes the record itself.
            return Ok(Some(record));
        }
        if record.state.is_exited() {
            return self.conclude(record);
        }
        if record.state == State::Created && record.attendant.is_some() && record.auto_remove {
            self.remove(&record)?;
            return Ok(None);
        }
        if record.state != before || record.attendant.is_some() {
            record.attendant = None;
            self.save(&record)?;
        }
        Ok(Some(record))
    }

    fn observed(&self, record: &ContainerRecord, attended: bool) -> Result<State, Failure> {
        let sandbox = self.sandboxes.load(&sandbox_id(&record.id)?)?;
        let started = match &record.state {
            State::Running { started } => Some(started.clone()),
            _ => None,
        };
        let Some(sandbox) = sandbox else {
            return Ok(match started {
                Some(started) if !attended => State::Exited {
                    started: Some(started),
                    finished: rfc3339(SystemTime::now()),
                    exit_code: DIED_STATUS,
                    error: "the sandbox is gone without a trace: was the host restarted?".into(),
                },
                _ => record.state.clone(),
            });
        };
        let Some(container) = sandbox.containers.get(record.id.as_str()) else {
            return Ok(record.state.clone());
        };
        Ok(match container.status {
            ContainerStatus::Created => record.state.clone(),
            ContainerStatus::Running | ContainerStatus::Paused => State::Running {
                started: container
                    .started_at
                    .clone()
                    .or(started)
                    .unwrap_or_else(|| rfc3339(SystemTime::now())),
            },
            ContainerStatus::Stopped => State::Exited {
                started: container.started_at.clone().or(started),
                finished: container
                    .exited_at
                    .clone()
                    .unwrap_or_else(|| rfc3339(SystemTime::now())),
                exit_code: container.exit_status.unwrap_or(DIED_STATUS),
                error: container.reason.clone().unwrap_or_default(),
            },
        })
    }

    /// Writes down how a container ended and removes what is left of its
    /// sandbox, and the container itself if it was to go.
    pub(crate) fn conclude(
        &self,
        mut record: ContainerRecord,
    ) -> Result<Option<ContainerRecord>, Failure> {
        record.attendant = None;
        if record.auto_remove {
            self.remove(&record)?;
            return Ok(None);
        }
        self.save(&record)?;
        match self.sandboxes.cleanup(&sandbox_id(&record.id)?) {
            // It has not quite ended; it removes its own.
            Ok(_) | Err(StoreError::Alive(_)) => Ok(Some(record)),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a container whatever it does, and removes all of it.
    pub(crate) fn remove(&self, record: &ContainerRecord) -> Result<(), Failure> {
        self.end_sandbox(&record.id)?;
        Ok(self.containers.remove(record)?)
    }

    /// Kills a sandbox if it still lives, and removes what is left of it.
    pub(crate) fn end_sandbox(&self, id: &ContainerId) -> Result<(), Failure> {
        self.sandboxes.end(&sandbox_id(id)?)?;
        Ok(())
    }

    /// Waits for a sandbox that was told to end; kills one that does not.
    pub(crate) fn await_end(&self, id: &ContainerId) -> Result<(), Failure> {
        if let Some(process) = self.sandbox_process(id)? {
            wait_for(&process);
        }
        self.end_sandbox(id)
    }

    /// A container whose process has just ended: waits until its sandbox and
    /// whoever attends it are done with it.
    pub(crate) fn settle(&self, record: &ContainerRecord) -> Result<(), Failure> {
        if record.attendant.is_some_and(is_alive) {
            // The attending command puts everything away.
            return Ok(());
        }
        if let Some(process) = self.sandbox_process(&record.id)? {
            wait_for(&process);
        }
        match self.containers.load(&record.id) {
            Ok(record) => self.refresh(record).map(drop),
            Err(ContainersError::NoSuchContainer(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What tells that a container's sandbox has ended.
    pub(crate) fn end_notice(&self, id: &ContainerId) -> Result<EndNotice, Failure> {
        Ok(EndNotice {
            process: self.sandbox_process(id)?,
        })
    }

    fn sandbox_process(&self, id: &ContainerId) -> Result<Option<OwnedFd>, Failure> {
        let Some(state) = self.sandboxes.load(&sandbox_id(id)?)? else {
            return Ok(None);
        };
        let Some(pid) = Pid::from_raw(state.pid.cast_signed()) else {
            return Ok(None);
        };
        // The descriptor first: it cannot come to mean another process.
        let process = pidfd_open(pid, PidfdFlags::empty()).ok();
        Ok(process.filter(|_| state.is_alive()))
    }

    /// Why a container ended, where it did not end by itself.
    pub(crate) fn reason(&self, id: &ContainerId) -> Result<String, Failure> {
        let state = self.sandboxes.load(&sandbox_id(id)?)?;
        let container = state.and_then(|mut state| state.containers.remove(id.as_str()));
        Ok(container
            .and_then(|container| container.reason)
            .unwrap_or_default())
    }

    /// Saves a record, unless another command has removed the container.
    pub(crate) fn save(&self, record: &ContainerRecord) -> Result<(), Failure> {
        if self.containers.directory(&record.id).record().exists() {
            self.containers.save(record)?;
        }
        Ok(())
    }

    /// Connects to a running container's sandbox.
    pub(crate) async fn connect(&self, id: &ContainerId) -> Result<Task, Failure> {
        let socket = self.sandboxes.dir(&sandbox_id(id)?).task_socket();
        let address = format!("unix://{}", socket.display());
        Ok(Task::connect(&address, id.as_str()).await?)
    }

    /// Removes what killed commands left behind.
    pub(crate) fn sweep(&self) -> Result<(), Failure> {
        let attach = self.attach_directory();
        if attach.is_dir() {
            let _lock = Lock::exclusive(&attach.join("lock"))?;
            crate::image::workspace::Workspace::remove_abandoned(&attach)?;
        }
        Ok(self.containers.remove_incomplete()?)
    }
}

/// Waits for a process to end, up to a deadline.
fn wait_for(process: &OwnedFd) {
    let deadline = Timespec::try_from(END_DEADLINE).ok();
    // Ended, interrupted or out of time: the caller looks again.
    let _ = poll(
        &mut [PollFd::new(process, PollFlags::IN)],
        deadline.as_ref(),
    );
}

/// This process, as a record names it.
pub(crate) fn own_identity() -> Option<ProcessIdentity> {
    let pid = std::process::id();
    process_start_time(pid).map(|start_time| ProcessIdentity { pid, start_time })
}

fn is_alive(process: ProcessIdentity) -> bool {
    process_start_time(process.pid) == Some(process.start_time)
}

fn sandbox_id(id: &ContainerId) -> Result<SandboxId, Failure> {
    Ok(SandboxId::new(id.as_str())?)
}

/// A runtime for one command, on its own thread.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// The end of a sandbox process, to be waited for.
#[derive(Debug)]
pub(crate) struct EndNotice {
    process: Option<OwnedFd>,
}

impl EndNotice {
    /// Blocks until the sandbox process ends or `other` has something to read,
    /// and reads that away.
    pub(crate) fn wait_for_either(&self, other: &OwnedFd) -> io::Result<()> {
        let mut fds = vec![PollFd::new(other, PollFlags::IN)];
        fds.extend(
            self.process
                .as_ref()
                .map(|process| PollFd::new(process, PollFlags::IN)),
        );
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds[0].revents().contains(PollFlags::IN) {
            let mut events = [0; 4096];
            rustix::io::read(other, &mut events)?;
        }
        Ok(())
    }
}
