//! The cgroup (version 2) of a container: a directory under `lazaret/` in the guest's
//! hierarchy. `linux.cgroupsPath` names the sandbox's place on the host and has no
//! meaning in the guest.
//!
//! The container may make cgroups of its own below; all operations cover them.

mod devices;
mod limits;
mod reply;
mod stats;

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{LinuxMemory, LinuxResources};
use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::io::Interest;
use tokio::time::timeout;

pub(crate) use devices::Rule as DeviceRule;
pub(crate) use stats::Stats;

use self::limits::Current;
use crate::failure::{Code, Failure, OrFail, Result};
use crate::watched::watch;

#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
    device_program: Mutex<Option<OwnedFd>>,
}

/// How long the kernel may take to stop a container's processes.
const FREEZE_DEADLINE: Duration = Duration::from_secs(10);

impl Cgroup {
    /// Makes the cgroup with its limits; leaves nothing behind when one is refused. Its
    /// processes may use all devices until [`Self::restrict_devices`].
    pub(crate) fn create(path: &Path, resources: Option<&LinuxResources>) -> Result<Self> {
        let settings = resources.map(|resources| limits::settings(resources, &Current::default()));
        let settings = settings.transpose()?;
        let doing = || format!("make cgroup {}", path.display());
        fs::create_dir(path).or_fail(doing)?;
        let cgroup = open_directory(path).or_fail(doing).map(|directory| Self {
            path: path.to_owned(),
            directory,
            device_program: Mutex::default(),
        });
        let made = cgroup.and_then(|cgroup| {
            for setting in settings.iter().flatten() {
                cgroup.apply(setting)?;
            }
            Ok(cgroup)
        });
        if made.is_err() {
            // Its own error is worth less than the one being returned.
            let _ = fs::remove_dir(path);
        }
        made
    }

    fn apply(&self, setting: &limits::Setting) -> Result<()> {
        match self.write_existing(&setting.file, &setting.value) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if setting.met_when_absent {
                    return Ok(());
                }
                Err(Failure::unsupported(format!(
                    "{} (the guest kernel has no {})",
                    setting.name, setting.file
                )))
            }
            // The kernel's word on a value it does not like.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                Err(Failure::invalid(format!(
                    "{}: {} takes no {:?}",
                    setting.name, setting.file, setting.value
                )))
            }
            other => other.or_fail(|| format!("set {} to {}", setting.name, setting.value)),
        }
    }

    /// Changes what the resources name and leaves the rest as it is. Nothing is
    /// written before all of it is understood.
    pub(crate) fn update(&self, resources: &LinuxResources) -> Result<()> {
        let current = Current::read(&self.path);
        let settings = limits::settings(resources, &current)?;
        let rules = resources.devices().as_deref().unwrap_or_default();
        let rules = (!rules.is_empty())
            .then(|| devices::rules(rules))
            .transpose()?;
        if let Some(memory) = resources.memory() {
            self.check_usage(memory)?;
        }
        for setting in settings {
            self.apply(&setting)?;
        }
        rules.map_or(Ok(()), |rules| self.restrict_devices(&rules))
    }

    /// Refuses a limit that would strike at once, where that is asked for.
    fn check_usage(&self, memory: &LinuxMemory) -> Result<()> {
        let limit = memory.limit().and_then(|limit| u64::try_from(limit).ok());
        let limit = limit.filter(|&limit| limit != 0);
        let usage = self.stats().memory.usage_bytes;
        match limit {
            Some(limit) if memory.check_before_update() == Some(true) && usage > limit => {
                let message = format!("rejecting memory limit {limit} < usage {usage}");
                Err(Failure::new(Code::FailedPrecondition, message))
            }
            _ => Ok(()),
        }
    }

    /// Lets its processes use no more devices than the rules allow.
    pub(crate) fn restrict_devices(&self, rules: &[DeviceRule]) -> Result<()> {
        let doing = || "enforce the device rules";
        let new = devices::enforce(self.as_fd(), rules).or_fail(doing)?;
        // All programs of a cgroup are asked, so the old one goes last.
        if let Some(old) = std::mem::replace(&mut *self.device_program.lock(), new) {
            devices::lift(self.as_fd(), &old).or_fail(doing)?;
        }
        Ok(())
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats::read(&self.path)
    }

    /// Whether the kernel's OOM killer has struck in it.
    pub(crate) fn oom_kills(&self) -> u64 {
        stats::oom_kills(&self.path)
    }

    /// Every process in it, those in cgroups below it included.
    pub(crate) fn processes(&self) -> Result<BTreeSet<u32>> {
        let mut processes = BTreeSet::new();
        collect_processes(&self.path, &mut processes)
            .or_fail(|| format!("list the processes of {}", self.path.display()))?;
        Ok(processes)
    }

    pub(crate) fn kill(&self) -> Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Stops every process, and answers when that has happened.
    pub(crate) async fn freeze(&self) -> Result<()> {
        self.write("cgroup.freeze", "1")?;
        let frozen = timeout(FREEZE_DEADLINE, self.wait_for("frozen", true)).await;
        frozen.unwrap_or_else(|_| {
            self.write("cgroup.freeze", "0")?;
            Err(Failure::internal(format!(
                "the processes of {} do not stop",
                self.path.display()
            )))
        })
    }

    /// Lets every process go on.
    pub(crate) async fn thaw(&self) -> Result<()> {
        self.write("cgroup.freeze", "0")?;
        self.wait_for("frozen", false).await
    }

    /// Ends every process and removes the cgroup with those below it.
    pub(crate) async fn remove(&self) -> Result<()> {
        self.kill()?;
        self.wait_for("populated", false).await?;
        remove_tree(&self.path).or_fail(|| format!("remove cgroup {}", self.path.display()))
    }

    /// The kernel denies to make a file, where it would rather be said to be missing.
    fn write_existing(&self, file: &str, value: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(self.path.join(file))?;
        file.write_all(value.as_bytes())
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        self.write_existing(file, value)
            .or_fail(|| format!("write {value} to {file} of {}", self.path.display()))
    }

    /// Waits until a key of cgroup.events has that value; the kernel tells of changes
    /// through poll's priority event.
    async fn wait_for(&self, key: &str, value: bool) -> Result<()> {
        let doing = || format!("watch cgroup.events of {}", self.path.display());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let events =
            openat(&self.directory, "cgroup.events", flags, Mode::empty()).or_fail(doing)?;
        let events = watch(events, Interest::PRIORITY).or_fail(doing)?;
        loop {
            let mut buffer = [0_u8; 256];
            let length = rustix::io::pread(events.get_ref(), &mut buffer, 0).or_fail(doing)?;
            let text = String::from_utf8_lossy(&buffer[..length]);
            if stats::key(&text, key) == Some(u64::from(value)) {
                return Ok(());
            }
            let mut guard = events.ready(Interest::PRIORITY).await.or_fail(doing)?;
            guard.clear_ready();
        }
    }
}

impl Current {
    fn read(path: &Path) -> Self {
        let text = |file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
        let quota = text("cpu.max");
        Self {
            memory: text("memory.max").trim().parse().ok(),
            cpu_quota: quota.split_whitespace().next().map(str::to_owned),
        }
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Which devices a container may use.
pub(crate) fn device_rules(resources: Option<&LinuxResources>) -> Result<Vec<DeviceRule>> {
    let rules = resources.and_then(|resources| resources.devices().as_deref());
    devices::rules(rules.unwrap_or_default())
}

/// Lets children of the directory use every controller that it has itself.
pub(crate) fn enable_controllers(directory: &Path) -> Result<()> {
    let doing = || format!("enable the controllers of {}", directory.display());
    let controllers = fs::read_to_string(directory.join("cgroup.controllers")).or_fail(doing)?;
    let enable: String = controllers
        .split_whitespace()
        .flat_map(|name| ["+", name, " "])
        .collect();
    if enable.is_empty() {
        return Ok(());
    }
    fs::write(directory.join("cgroup.subtree_control"), enable).or_fail(doing)
}

/// Makes the directory that holds the containers' cgroups.
pub(crate) fn make_parent(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        other => other.or_fail(|| format!("make cgroup {}", path.display()))?,
    }
    enable_controllers(path)
}

/// The cgroup that a process is in, as a directory: for an exec into a container that
/// has turned its own cgroup into an inner node.
pub(crate) fn of_process(mount: &Path, pid: u32) -> Result<OwnedFd> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .or_fail(|| format!("find the cgroup of process {pid}"))?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .ok_or_else(|| {
            Failure::new(
                Code::FailedPrecondition,
                format!("process {pid} is in no version 2 cgroup"),
            )
        })?;
    open_directory(&mount.join(path)).or_fail(|| format!("open cgroup {path}"))
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
}

fn children(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut directories = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            directories.push(entry.path());
        }
    }
    Ok(directories)
}

fn collect_processes(path: &Path, processes: &mut BTreeSet<u32>) -> io::Result<()> {
    let text = fs::read_to_string(path.join("cgroup.procs"))?;
    processes.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for child in children(path)? {
        collect_processes(&child, processes)?;
    }
    Ok(())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for child in children(path)? {
        remove_tree(&child)?;
    }
    fs::remove_dir(path)
}
