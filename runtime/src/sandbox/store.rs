//! Where sandboxes live under `/run/lazaret/sandboxes`, who is there, and how
//! what a dead sandbox process left behind is removed.
//!
//! For commands that look from outside:
//! - [`Store::list`] names every sandbox that has a directory;
//! - [`Store::load`] reads a sandbox's state, with its containers stopped if its
//!   process is gone;
//! - [`Store::cleanup`] ends what is left of a sandbox whose process is gone and
//!   removes its cgroup and directory;
//! - [`Store::reap_dead`] does so for every dead sandbox, and returns the last
//!   state of each.
//!
//! Mounts need no removal from outside: they lived in the mount namespaces of
//! the two dead processes.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use thiserror::Error;

use super::cgroup::{Cgroup, CgroupError};
use super::id::SandboxId;
use super::state::{SandboxState, process_start_time};
use crate::stdio::handover::STDIO_SOCKET;

/// How long a killed process may take to end.
const KILL_DEADLINE_S: i64 = 10;

/// State that does not survive a reboot.
pub const RUN_DIR: &str = "/run/lazaret";

#[derive(Debug, Error)]
pub enum StoreError {
    #[error("sandbox {0} is already there")]
    Exists(SandboxId),
    #[error("sandbox {0} is still running")]
    Alive(SandboxId),
    #[error("cannot {verb} {}", path.display())]
    Io {
        verb: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// All sandboxes of this host.
#[derive(Clone, Debug)]
pub struct Store {
    sandboxes: PathBuf,
    cgroups: PathBuf,
}

/// Paths of one sandbox.
#[derive(Clone, Debug)]
pub struct SandboxDir {
    path: PathBuf,
}

impl SandboxDir {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The Task API.
    pub fn task_socket(&self) -> PathBuf {
        self.path.join("task.sock")
    }

    /// Where descriptors are handed over.
    pub fn stdio_socket(&self) -> PathBuf {
        self.path.join(STDIO_SOCKET)
    }

    /// Where a connection to a guest port is asked for.
    pub fn vsock_socket(&self) -> PathBuf {
        self.path.join("vsock.sock")
    }

    /// What virtio-fs exports.
    pub fn shared(&self) -> PathBuf {
        self.path.join("shared")
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("sandbox.log")
    }

    pub fn state(&self) -> PathBuf {
        self.path.join("state.json")
    }

    /// Names the process before it has written its state.
    fn pid_file(&self) -> PathBuf {
        self.path.join("shim.pid")
    }

    /// Notes the process that a sandbox was given to.
    pub fn write_pid(&self, pid: u32) -> Result<(), StoreError> {
        let path = self.pid_file();
        let start_time = process_start_time(pid).unwrap_or_default();
        fs::write(&path, format!("{pid} {start_time}")).map_err(|source| StoreError::Io {
            verb: "write",
            path,
            source,
        })
    }

    /// The sandbox process as `start` has left it: number and start time.
    pub fn read_pid(&self) -> Option<(u32, u64)> {
        let text = fs::read_to_string(self.pid_file()).ok()?;
        let (pid, start_time) = text.split_once(' ')?;
        Some((pid.parse().ok()?, start_time.parse().ok()?))
    }
}

impl Store {
    pub fn new(run_dir: &Path, cgroups: &Path) -> Self {
        Self {
            sandboxes: run_dir.join("sandboxes"),
            cgroups: cgroups.to_owned(),
        }
    }

    pub fn dir(&self, id: &SandboxId) -> SandboxDir {
        SandboxDir {
            path: self.sandboxes.join(id.as_str()),
        }
    }

    pub fn cgroup(&self, id: &SandboxId) -> Cgroup {
        Cgroup::at(self.cgroups.join(id.as_str()))
    }

    /// Takes the name: makes the sandbox's directory, which only root enters.
    pub fn create(&self, id: &SandboxId) -> Result<SandboxDir, StoreError> {
        let dir = self.dir(id);
        let failed = |source| StoreError::Io {
            verb: "create",
            path: dir.path.clone(),
            source,
        };
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&self.sandboxes)
            .map_err(failed)?;
        match fs::DirBuilder::new().mode(0o700).create(&dir.path) {
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
                Err(StoreError::Exists(id.clone()))
            }
            result => result.map(|()| dir.clone()).map_err(failed),
        }
    }

    /// Every sandbox that has a directory, dead or alive.
    pub fn list(&self) -> Result<Vec<SandboxId>, StoreError> {
        let failed = |source| StoreError::Io {
            verb: "list",
            path: self.sandboxes.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.sandboxes) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.map_err(failed)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            if let Some(Ok(id)) = name.to_str().map(SandboxId::new) {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// The state of a sandbox; `None` for one that is not there, or that died
    /// before it wrote any.
    pub fn load(&self, id: &SandboxId) -> Result<Option<SandboxState>, StoreError> {
        let path = self.dir(id).state();
        let state = SandboxState::read(&path).map_err(|source| StoreError::Io {
            verb: "read",
            path,
            source,
        })?;
        Ok(state.map(|state| {
            if state.is_alive() {
                state
            } else {
                state.died(SystemTime::now())
            }
        }))
    }

    /// Removes what a dead sandbox left: its VMM if that still ends, its cgroup
    /// and its directory. Returns its last state.
    pub fn cleanup(&self, id: &SandboxId) -> Result<Option<SandboxState>, StoreError> {
        let dir = self.dir(id);
        if !dir.path.exists() {
            self.cgroup(id).remove()?;
            return Ok(None);
        }
        if is_locked(&dir) {
            return Err(StoreError::Alive(id.clone()));
        }
        let state = self.load(id)?;
        let mut cgroup = self.cgroup(id);
        if let Some(state) = &state {
            end_vmm(state);
            if let Some(named) = &state.cgroup {
                cgroup = cgroup.of_state(named);
            }
        }
        cgroup.remove()?;
        remove_dir(&dir)?;
        Ok(state)
    }

    /// Kills a sandbox's process and waits until it is gone; its VMM goes with it.
    fn kill(&self, id: &SandboxId) -> Result<(), StoreError> {
        let dir = self.dir(id);
        let failed = |source: Errno| StoreError::Io {
            verb: "end the process of",
            path: dir.path.clone(),
            source: source.into(),
        };
        let Some((pid, start_time)) = dir.read_pid() else {
            // A process that ends by itself is removing its own directory, file by file.
            return Ok(());
        };
        let raw = Pid::from_raw(pid.cast_signed()).ok_or_else(|| failed(Errno::SRCH))?;
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(()),
            result => result.map_err(failed)?,
        };
        if process_start_time(pid) != Some(start_time) {
            return Ok(());
        }
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Err(Errno::SRCH) => return Ok(()),
            result => result.map_err(failed)?,
        }
        let timeout = Timespec {
            tv_sec: KILL_DEADLINE_S,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)).map_err(failed)? {
            0 => Err(failed(Errno::TIMEDOUT)),
            _ => Ok(()),
        }
    }

    /// Ends a sandbox whatever it does, and cleans up after it.
    pub fn end(&self, id: &SandboxId) -> Result<Option<SandboxState>, StoreError> {
        match self.cleanup(id) {
            Err(StoreError::Alive(_)) => {
                self.kill(id)?;
                self.await_unlocked(id)?;
                self.cleanup(id)
            }
            result => result,
        }
    }

    /// The lock outlives a killed sandbox process by a moment: the process that
    /// started it may still hold it, and its VMM until that has executed.
    fn await_unlocked(&self, id: &SandboxId) -> Result<(), StoreError> {
        let path = self.dir(id).path;
        let (done, unlocked) = channel();
        let directory = path.clone();
        // flock knows no deadline; a thread that waits on ends with this process.
        std::thread::spawn(move || {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let locked = open(&directory, flags, Mode::empty())
                .and_then(|fd| flock(&fd, FlockOperation::LockExclusive));
            // Nobody waits any more after the deadline.
            let _ = done.send(locked);
        });
        let failed = |source: Errno| StoreError::Io {
            verb: "wait for the end of the sandbox in",
            path: path.clone(),
            source: source.into(),
        };
        match unlocked.recv_timeout(Duration::from_secs(KILL_DEADLINE_S.unsigned_abs())) {
            // It has removed its directory itself.
            Ok(Ok(()) | Err(Errno::NOENT)) => Ok(()),
            Ok(Err(source)) => Err(failed(source)),
            Err(_) => Err(failed(Errno::TIMEDOUT)),
        }
    }

    /// Cleans up after every sandbox whose process is gone.
    pub fn reap_dead(&self) -> Result<Vec<(SandboxId, Option<SandboxState>)>, StoreError> {
        let mut reaped = Vec::new();
        for id in self.list()? {
            match self.cleanup(&id) {
                Ok(state) => reaped.push((id, state)),
                Err(StoreError::Alive(_)) => {}
                Err(err) => return Err(err),
            }
        }
        Ok(reaped)
    }
}

/// A sandbox process holds a lock on its directory as long as it lives: dead or
/// alive is then no question of process numbers.
pub fn lock(dir: &SandboxDir) -> io::Result<std::os::fd::OwnedFd> {
    let fd = open(
        &dir.path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
    Ok(fd)
}

fn is_locked(dir: &SandboxDir) -> bool {
    lock(dir).is_err_and(|err| err.kind() == io::ErrorKind::WouldBlock)
}

/// A VMM ends with its sandbox process; this makes sure where it has no cgroup.
fn end_vmm(state: &SandboxState) {
    let Some((pid, start_time)) = state.vmm_pid.zip(state.vmm_start_time) else {
        return;
    };
    let Some(raw) = Pid::from_raw(pid.cast_signed()) else {
        return;
    };
    // The descriptor first: it cannot come to mean another process after the check.
    let Ok(pidfd) = pidfd_open(raw, PidfdFlags::empty()) else {
        return;
    };
    if process_start_time(pid) == Some(start_time) {
        // It may have ended by itself in between.
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    }
}

/// Removes a sandbox's directory, file by known file: a recursive removal would
/// follow a mount that is still there into a container's root or a volume.
pub fn remove_dir(dir: &SandboxDir) -> Result<(), StoreError> {
    remove_shared(&dir.shared())?;
    for entry in read_dir(&dir.path)? {
        remove(&entry)?;
    }
    remove(&dir.path)
}

fn remove_shared(shared: &Path) -> Result<(), StoreError> {
    for container in read_dir(shared)? {
        for mount in read_dir(&container.join("mounts"))? {
            remove(&mount)?;
        }
        for place in read_dir(&container)? {
            remove(&place)?;
        }
        remove(&container)?;
    }
    remove(shared)
}

fn read_dir(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |source| StoreError::Io {
        verb: "list",
        path: path.to_owned(),
        source,
    };
    match fs::read_dir(path) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()).map_err(failed))
            .collect(),
        Err(err) if matches!(err.kind(), io::ErrorKind::NotFound) => Ok(Vec::new()),
        Err(err) => Err(failed(err)),
    }
}

/// Removes one file or one empty directory.
pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    let is_dir = fs::symlink_metadata(path).map(|meta| meta.is_dir());
    let result = match is_dir {
        Ok(true) => fs::remove_dir(path),
        Ok(false) => fs::remove_file(path),
        Err(err) => Err(err),
    };
    match result {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(StoreError::Io {
            verb: "remove",
            path: path.to_owned(),
            source: err,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(root: &Path) -> Store {
        Store::new(&root.join("run"), &root.join("cgroup"))
    }

    fn id(name: &str) -> SandboxId {
        SandboxId::new(name).unwrap()
    }

    #[test]
    fn a_name_is_taken_once() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        store.create(&id("a")).unwrap();
        assert!(matches!(store.create(&id("a")), Err(StoreError::Exists(_))));
        assert_eq!(store.list().unwrap(), [id("a")]);
    }

    #[test]
    fn a_live_sandbox_is_not_cleaned_up() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let dir = store.create(&id("a")).unwrap();
        let held = lock(&dir).unwrap();
        assert!(matches!(store.cleanup(&id("a")), Err(StoreError::Alive(_))));
        assert_eq!(store.reap_dead().unwrap().len(), 0);
        drop(held);
        assert_eq!(store.reap_dead().unwrap().len(), 1);
        assert_eq!(store.list().unwrap(), []);
    }

    #[test]
    fn end_waits_for_whoever_still_holds_the_lock() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let dir = store.create(&id("a")).unwrap();
        let held = lock(&dir).unwrap();
        // The sandbox process itself is gone already.
        let mut process = std::process::Command::new("true").spawn().unwrap();
        let pid = process.id();
        dir.write_pid(pid).unwrap();
        process.wait().unwrap();
        std::thread::scope(|scope| {
            let ended = scope.spawn(|| store.end(&id("a")));
            drop(held);
            ended.join().unwrap().unwrap();
        });
        assert_eq!(store.list().unwrap(), []);
    }

    #[test]
    fn end_waits_for_a_sandbox_that_removes_itself() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let dir = store.create(&id("a")).unwrap();
        let held = lock(&dir).unwrap();
        std::thread::scope(|scope| {
            let ended = scope.spawn(|| store.end(&id("a")));
            remove_dir(&dir).unwrap();
            drop(held);
            ended.join().unwrap().unwrap();
        });
        assert_eq!(store.list().unwrap(), []);
    }

    #[test]
    fn removal_takes_the_known_layout_and_nothing_deeper() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let dir = store.create(&id("a")).unwrap();
        fs::create_dir_all(dir.shared().join("a/rootfs")).unwrap();
        fs::create_dir_all(dir.shared().join("a/mounts/0")).unwrap();
        fs::write(dir.shared().join("a/mounts/1"), "").unwrap();
        fs::write(dir.log(), "text").unwrap();
        remove_dir(&dir).unwrap();
        assert!(!dir.path().exists());

        let dir = store.create(&id("b")).unwrap();
        let precious = dir.shared().join("b/rootfs/etc");
        fs::create_dir_all(&precious).unwrap();
        assert!(matches!(remove_dir(&dir), Err(StoreError::Io { .. })));
        assert!(precious.exists());
    }
}
