//! A container of a sandbox: its own process, those added by exec, its mounts
//! and its log.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use crate::process::{Process, Stage};
use crate::sandbox::id::{ContainerId, ExecId};
use crate::sandbox::mounts::ContainerMounts;
use crate::sandbox::state::{ContainerState, ContainerStatus, rfc3339};

#[derive(Debug)]
pub struct Container {
    pub id: ContainerId,
    pub bundle: PathBuf,
    pub init: Arc<Process>,
    created_at: SystemTime,
    paused: AtomicBool,
    close_at_end: AtomicBool,
    /// The terminal that the container's own is to be as large as.
    terminal: OnceLock<OwnedFd>,
    execs: Mutex<BTreeMap<ExecId, Arc<Exec>>>,
    mounts: Mutex<Option<ContainerMounts>>,
}

/// A process added to a container.
#[derive(Debug)]
pub struct Exec {
    pub process: Arc<Process>,
    /// The OCI spec's `process` object.
    pub spec_json: Vec<u8>,
}

impl Container {
    pub fn new(id: ContainerId, bundle: PathBuf, init: Process) -> Self {
        Self {
            id,
            bundle,
            init: Arc::new(init),
            created_at: SystemTime::now(),
            paused: AtomicBool::new(false),
            close_at_end: AtomicBool::new(false),
            terminal: OnceLock::new(),
            execs: Mutex::default(),
            mounts: Mutex::default(),
        }
    }

    pub fn execs(&self) -> MutexGuard<'_, BTreeMap<ExecId, Arc<Exec>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn mounts(&self) -> MutexGuard<'_, Option<ContainerMounts>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    /// Whether the sandbox ends with this container.
    pub fn closes_at_end(&self) -> bool {
        self.close_at_end.load(Ordering::Relaxed)
    }

    pub fn set_close_at_end(&self, close: bool) {
        self.close_at_end.store(close, Ordering::Relaxed);
    }

    pub fn terminal(&self) -> Option<&OwnedFd> {
        self.terminal.get()
    }

    /// Set once, while the container is made.
    pub fn set_terminal(&self, terminal: OwnedFd) {
        let _ = self.terminal.set(terminal);
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
            && !matches!(self.init.stage(), Stage::Creating | Stage::Stopped(_))
    }

    pub fn status(&self) -> ContainerStatus {
        match self.init.stage() {
            Stage::Stopped(_) => ContainerStatus::Stopped,
            _ if self.is_paused() => ContainerStatus::Paused,
            Stage::Creating | Stage::Created | Stage::Starting => ContainerStatus::Created,
            Stage::Running => ContainerStatus::Running,
        }
    }

    /// As it is written down, with the number under which the host knows it.
    pub fn state(&self, pid: Option<u32>) -> ContainerState {
        let exit = self.init.exit();
        ContainerState {
            status: self.status(),
            pid: pid.filter(|_| exit.is_none()),
            exit_status: exit.as_ref().map(|exit| exit.status),
            reason: exit.as_ref().and_then(|exit| exit.reason.clone()),
            oom_killed: exit.as_ref().is_some_and(|exit| exit.oom_killed),
            created_at: rfc3339(self.created_at),
            started_at: self.init.started_at().map(rfc3339),
            exited_at: exit.map(|exit| rfc3339(exit.at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Exit;
    use crate::stdio::StdioPaths;

    #[test]
    fn state_follows_the_containers_own_process() {
        let init = Process::new(StdioPaths::default());
        let id = ContainerId::new("c").unwrap();
        let container = Container::new(id, "/bundle".into(), init);
        assert_eq!(container.state(Some(9)).status, ContainerStatus::Created);
        assert_eq!(container.state(Some(9)).pid, Some(9));
        container.set_paused(true);
        assert_eq!(container.status(), ContainerStatus::Created);
        container.init.claim_start(&Stage::Creating).unwrap();
        assert_eq!(container.status(), ContainerStatus::Paused);
        container.init.stopped(Exit::died("gone".to_owned()));
        let state = container.state(Some(9));
        assert_eq!(state.status, ContainerStatus::Stopped);
        assert_eq!((state.pid, state.exit_status), (None, Some(137)));
        assert_eq!(state.reason.as_deref(), Some("gone"));
    }
}
