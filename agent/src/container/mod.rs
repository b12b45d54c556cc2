//! Containers: an OCI spec turned into running processes.
//!
//! This is the agent's own code. `libcontainer` would do the same job for a command
//! that makes one container and ends; here its assumptions cost more than they save:
//! it forks from what must be a single-threaded process and leaves intermediate
//! processes to reap, it brings cgroup managers (version 1, systemd) that no guest
//! has, and all of it would be part of every microVM's memory.
//!
//! A container is made by a stage: this program again, started by clone3 in its cgroup
//! and PID namespace (`spawn`), which builds the container around itself (`stage`) and
//! talks to the agent over a socket (`sync`) until it executes the user's program.

mod credentials;
mod device;
mod environment;
mod exec;
mod further;
mod hooks;
mod input;
mod listing;
mod mount;
mod namespaces;
mod passwd;
mod path;
mod process;
mod rootfs;
mod scheduling;
mod seccomp;
mod security_module;
mod spawn;
mod spec;
mod stage;
mod sync;
mod sysctl;
mod terminal;
mod user_namespace;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lazaret_protocol::PROCESSES_MAX;
use oci_spec::runtime::{Linux, LinuxNamespaceType, LinuxResources, Process as ProcessSpec, Spec};
use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::Signal;

pub(crate) use listing::{Listed, reply as list_reply};
pub(crate) use mount::{Attributes, Reach, attach, clone_tree, new_file_system, set_attributes};
pub(crate) use process::Process;
pub use stage::{is_stage, run as run_stage};

use self::further::ForExecs;
use self::input::{Identity, Joining};
use self::process::Launch;
use self::spawn::PidNamespace;
use self::user_namespace::{Mappings, mapped_mounts};
use crate::cgroup::{self, Cgroup, Stats};
use crate::failure::{Code, Failure, OrFail, Result};
use crate::reaper::Reaper;
use crate::stdio::Connections;

/// Longest identifier; it names a directory.
const ID_MAX: usize = 255;

/// A name that is safe as a directory's: letters, digits, `_`, `.`, `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ContainerId(String);

impl ContainerId {
    pub(crate) fn new(id: &str) -> Result<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if id.is_empty() || id.len() > ID_MAX || id.starts_with('.') || !id.bytes().all(allowed) {
            return Err(Failure::invalid(format!("{id:?} is no container id")));
        }
        Ok(Self(id.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What containers are made with.
#[derive(Debug)]
pub(crate) struct Workshop {
    /// The agent's program, to be run as a stage.
    pub(crate) program: OwnedFd,
    pub(crate) reaper: Reaper,
    /// Where the version 2 hierarchy is mounted.
    pub(crate) cgroup_mount: std::path::PathBuf,
}

/// Parent of all containers' cgroups, below the mount of the hierarchy.
pub(crate) const CGROUP_PARENT: &str = "lazaret";

/// Who a user of the container is in the guest.
fn outer_uid(users: Option<&Mappings>, uid: u32) -> Result<u32> {
    users.map_or(Ok(uid), |users| users.outer_uid(uid))
}

#[derive(Debug)]
pub(crate) struct Container {
    id: ContainerId,
    workshop: Arc<Workshop>,
    cgroup: Arc<Cgroup>,
    first: Arc<Process>,
    spec: ForExecs,
    paused: AtomicBool,
    /// A process under creation has its name here already.
    further: Mutex<HashMap<String, Option<Arc<Process>>>>,
}

/// Reads a spec and refuses what cannot be honoured. Answers with its text, too, as the
/// container's stage can read it.
pub(crate) fn parse_spec(json: &[u8]) -> Result<(Spec, Cow<'_, [u8]>)> {
    let json = scheduling::respell_flags(json, "/process/scheduler/flags");
    let spec = serde_json::from_slice(&json)
        .map_err(|error| Failure::invalid(format!("container spec: {error}")))?;
    spec::check(&spec)?;
    Ok((spec, json))
}

/// What a container is to be.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) spec: &'a Spec,
    /// The same as text.
    pub(crate) spec_json: &'a [u8],
    /// What hooks are told that it is called.
    pub(crate) name: &'a str,
    /// The bundle's path on the host.
    pub(crate) bundle: &'a str,
}

impl Container {
    pub(crate) async fn create(
        workshop: Arc<Workshop>,
        id: ContainerId,
        request: Request<'_>,
        connections: Connections,
    ) -> Result<Self> {
        let spec = request.spec;
        let (Some(process), Some(linux)) = (spec.process(), spec.linux()) else {
            return Err(Failure::invalid("the spec has no process or no linux part"));
        };
        let users = Mappings::of(linux)?;
        let mounts = spec.mounts().as_deref().unwrap_or_default();
        let (places, mounts) = mapped_mounts(mounts, users.as_ref())?.into_iter().unzip();
        let identity = Identity {
            name: request.name.to_owned(),
            bundle: request.bundle.to_owned(),
            mounts: places,
        };
        let input = identity.with_spec(request.spec_json)?;
        sysctl::set_network(linux)?;
        let device_rules = cgroup::device_rules(linux.resources().as_ref())?;
        let parent = workshop.cgroup_mount.join(CGROUP_PARENT);
        let cgroup = Cgroup::create(&parent.join(id.as_str()), linux.resources().as_ref())?;
        let cgroup = Arc::new(cgroup);
        let joined = pid_namespace_to_join(linux)?;
        let own = owns_pid_namespace(linux);
        let launch = Launch {
            program: workshop.program.as_fd(),
            reaper: &workshop.reaper,
            mode: stage::CREATE,
            input: &input,
            terminal: process.terminal() == Some(true),
            oom_score_adj: process.oom_score_adj().unwrap_or_default(),
            rlimits: process.rlimits().as_deref().unwrap_or_default(),
            users: users.as_ref(),
            uid: outer_uid(users.as_ref(), process.user().uid())?,
            mounts,
            connections,
            cgroup: Arc::clone(&cgroup),
            start_in: cgroup.as_ref().as_fd(),
            pid_namespace: match &joined {
                Some(namespace) => PidNamespace::Join(namespace.as_fd()),
                None if own => PidNamespace::New,
                None => PidNamespace::Guest,
            },
            container: None,
            kill_cgroup_at_exit: !own,
        };
        // Only now: what the container mounts may be on disks that it may not open.
        let created = launch.created().await;
        match created.and_then(|first| cgroup.restrict_devices(&device_rules).map(|()| first)) {
            Ok(first) => Ok(Self {
                id,
                cgroup,
                first: Arc::new(first),
                spec: ForExecs::of(spec, process, linux, users),
                paused: AtomicBool::new(false),
                further: Mutex::default(),
                workshop,
            }),
            Err(failure) => {
                if let Err(left) = cgroup.remove().await {
                    tracing::warn!(container = %id, failure = %left, "cgroup left behind");
                }
                Err(failure)
            }
        }
    }

    pub(crate) async fn create_process(
        &self,
        exec_id: &str,
        process_json: &[u8],
        connections: Connections,
    ) -> Result<Arc<Process>> {
        // One that has not been started is there to be joined already.
        if self.first.has_ended() {
            return Err(self.not_running());
        }
        self.refuse_paused()?;
        let process_json = scheduling::respell_flags(process_json, "/scheduler/flags");
        let process: ProcessSpec = serde_json::from_slice(&process_json)
            .map_err(|error| Failure::invalid(format!("process spec: {error}")))?;
        spec::check_process(&process, self.spec.lsm)?;
        let joining = Joining {
            process: self.spec.complete(process),
            inherited: self.spec.inherited.clone(),
        };
        let reserved = Reserved::new(&self.further, exec_id)
            .ok_or_else(|| exists(format!("process {exec_id} of container {}", self.id)))?;
        let launched = self.launch_further(&joining, connections).await;
        let process = match launched {
            // It was to join what has been ending meanwhile.
            Err(failure) if failure.code == Code::Internal && self.is_ending().await => {
                return Err(self.not_running());
            }
            launched => Arc::new(launched?),
        };
        reserved.fill(Arc::clone(&process));
        Ok(process)
    }

    /// Whether the container is about to have ended. The end of a pid namespace takes along all that
    /// is in it before its first process has gone.
    async fn is_ending(&self) -> bool {
        const SOON: Duration = Duration::from_secs(5);
        tokio::time::timeout(SOON, self.first.wait()).await.is_ok()
    }

    async fn launch_further(&self, joining: &Joining, connections: Connections) -> Result<Process> {
        let process = &joining.process;
        let pid = self.first.pid();
        let path = format!("/proc/{pid}/ns/pid");
        let namespace = open_read(Path::new(&path)).or_fail(|| format!("open {path}"))?;
        // Processes join the first one where it is now: a container that manages
        // cgroups of its own may have left the top, which then takes no processes.
        let start_in = cgroup::of_process(&self.workshop.cgroup_mount, pid)?;
        let launch = Launch {
            program: self.workshop.program.as_fd(),
            reaper: &self.workshop.reaper,
            mode: stage::EXEC,
            input: &joining.encode()?,
            terminal: process.terminal() == Some(true),
            oom_score_adj: process.oom_score_adj().unwrap_or_default(),
            rlimits: process.rlimits().as_deref().unwrap_or_default(),
            users: None,
            uid: outer_uid(self.spec.users.as_ref(), process.user().uid())?,
            mounts: Vec::new(),
            connections,
            cgroup: Arc::clone(&self.cgroup),
            start_in: start_in.as_fd(),
            pid_namespace: PidNamespace::Join(namespace.as_fd()),
            container: Some(self.first.pidfd()),
            kill_cgroup_at_exit: false,
        };
        launch.created().await
    }

    /// The container's own process when the id is empty.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.first));
        }
        let further = self.further.lock();
        let process = further.get(exec_id).and_then(Option::as_ref);
        process.map(Arc::clone).ok_or_else(|| {
            let message = format!("no process {exec_id} in container {}", self.id);
            Failure::new(Code::NotFound, message)
        })
    }

    pub(crate) fn signal_all(&self, signal: Signal) -> Result<()> {
        if signal == Signal::KILL {
            return self.cgroup.kill();
        }
        for pid in self.cgroup.processes()? {
            let pid = i32::try_from(pid)
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                // Gone since the list was read: what the signal is for has happened.
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
        Ok(())
    }

    pub(crate) async fn pause(&self) -> Result<()> {
        if self.first.has_ended() {
            return Err(self.not_running());
        }
        self.cgroup.freeze().await?;
        self.paused.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) async fn resume(&self) -> Result<()> {
        self.cgroup.thaw().await?;
        self.paused.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Lets a created process execute its program.
    pub(crate) async fn start(&self, exec_id: &str) -> Result<Arc<Process>> {
        self.refuse_paused()?;
        let process = self.process(exec_id)?;
        match process.start().await {
            Ok(()) => Ok(process),
            // A further process may have been killed alone.
            Err(failure)
                if failure.code == Code::Ended
                    && !exec_id.is_empty()
                    && !self.is_ending().await =>
            {
                Err(Failure::new(Code::FailedPrecondition, failure.message))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Nothing begins in a stopped container: it would not get anywhere.
    fn refuse_paused(&self) -> Result<()> {
        if !self.paused.load(Ordering::Relaxed) {
            return Ok(());
        }
        let message = format!("container {} is paused", self.id);
        Err(Failure::new(Code::FailedPrecondition, message))
    }

    /// Every process with its exec id, empty where there is none.
    pub(crate) fn processes(&self) -> Result<Vec<(Listed, String)>> {
        let further = self.further.lock();
        let name = |pid: u32| {
            let known = further.iter().find_map(|(name, process)| {
                let process = process.as_ref()?;
                (process.pid() == pid).then(|| name.clone())
            });
            known.unwrap_or_default()
        };
        let pids = self.cgroup.processes()?;
        let pids = pids.into_iter().take(PROCESSES_MAX);
        Ok(pids.map(|pid| (listing::look_up(pid), name(pid))).collect())
    }

    /// Changes limits; what the resources leave out stays as it is.
    pub(crate) fn update(&self, resources_json: &[u8]) -> Result<()> {
        let resources: LinuxResources = serde_json::from_slice(resources_json)
            .map_err(|error| Failure::invalid(format!("resources: {error}")))?;
        if self.first.has_ended() {
            return Err(self.not_running());
        }
        self.cgroup.update(&resources)
    }

    pub(crate) fn stats(&self) -> Stats {
        self.cgroup.stats()
    }

    /// Forgets an ended process.
    pub(crate) fn forget(&self, exec_id: &str) -> Result<()> {
        let process = self.process(exec_id)?;
        if !process.has_ended() {
            let message = format!("process {exec_id} of container {} has not ended", self.id);
            return Err(Failure::new(Code::FailedPrecondition, message));
        }
        process.abandon_stdio();
        self.further.lock().remove(exec_id);
        Ok(())
    }

    /// Kills what is left and removes the cgroup; the mounts end with the processes.
    pub(crate) async fn delete(&self) -> Result<()> {
        self.cgroup.remove().await?;
        self.first.abandon_stdio();
        for process in self.further.lock().values().flatten() {
            process.abandon_stdio();
        }
        Ok(())
    }

    pub(crate) fn id(&self) -> &ContainerId {
        &self.id
    }

    fn not_running(&self) -> Failure {
        let message = format!("container {} is not running", self.id);
        Failure::new(Code::Ended, message)
    }
}

/// A name kept while what it names is being made; given up unless filled.
pub(crate) struct Reserved<'a, T> {
    map: &'a Mutex<HashMap<String, Option<T>>>,
    name: String,
}

impl<'a, T> Reserved<'a, T> {
    /// None: the name is in use.
    pub(crate) fn new(map: &'a Mutex<HashMap<String, Option<T>>>, name: &str) -> Option<Self> {
        let mut entries = map.lock();
        if name.is_empty() || entries.contains_key(name) {
            return None;
        }
        entries.insert(name.to_owned(), None);
        let name = name.to_owned();
        Some(Self { map, name })
    }

    pub(crate) fn fill(self, value: T) {
        self.map.lock().insert(self.name.clone(), Some(value));
    }
}

impl<T> Drop for Reserved<'_, T> {
    fn drop(&mut self) {
        let mut entries = self.map.lock();
        if entries.get(&self.name).is_some_and(Option::is_none) {
            entries.remove(&self.name);
        }
    }
}

pub(crate) fn exists(what: impl fmt::Display) -> Failure {
    Failure::new(Code::AlreadyExists, format!("{what} exists already"))
}

fn owns_pid_namespace(linux: &Linux) -> bool {
    linux
        .namespaces()
        .iter()
        .flatten()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none())
}

fn pid_namespace_to_join(linux: &Linux) -> Result<Option<OwnedFd>> {
    let mut namespaces = linux.namespaces().iter().flatten();
    let path = namespaces
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Pid)
        .and_then(|namespace| namespace.path().as_ref());
    path.map(|path| {
        open_read(path).or_fail(|| format!("open the PID namespace {}", path.display()))
    })
    .transpose()
}

fn open_read(path: &Path) -> rustix::io::Result<OwnedFd> {
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_leave_their_directory_are_refused() {
        for id in ["", ".", "..", "a/b", "a\0b", ".hidden"] {
            ContainerId::new(id).expect_err(id);
        }
        ContainerId::new("web_1.a-b").expect("a plain id");
    }

    #[test]
    fn reserved_name_is_free_again_unless_filled() {
        let map = Mutex::new(HashMap::new());
        let first = Reserved::new(&map, "a").expect("free");
        assert!(Reserved::new(&map, "a").is_none());
        drop(first);
        Reserved::new(&map, "a").expect("free again").fill(1);
        assert!(Reserved::new(&map, "a").is_none());
    }
}
