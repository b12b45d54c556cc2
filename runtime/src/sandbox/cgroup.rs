//! The host cgroup (v2) of a sandbox's VMM: bounds what a microVM can take from
//! its host whatever happens inside it, and finds every process of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

/// Parent of all sandboxes' cgroups.
pub const CGROUP_DIR: &str = "/sys/fs/cgroup/lazaret";

/// How long killed processes may take to leave a cgroup.
const EMPTY_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, Error)]
pub enum CgroupError {
    #[error(
        "cannot use the cgroup {}: a writable cgroup v2 hierarchy is needed on /sys/fs/cgroup \
         (or set host_cgroup = false in /etc/lazaret/config.toml)",
        path.display()
    )]
    Unavailable { path: PathBuf, source: io::Error },
    #[error("cannot write {value:?} to {}", path.display())]
    Write {
        path: PathBuf,
        value: String,
        source: io::Error,
    },
    #[error("cannot remove the cgroup {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
}

/// Limits of a sandbox on its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupLimits {
    pub memory_max: u64,
    /// `cpu.max`: microseconds of CPU time in each period.
    pub cpu_max: Option<(u64, u64)>,
    /// `cpu.weight`, 1 to 10,000.
    pub cpu_weight: Option<u64>,
    pub pids_max: u32,
}

/// A sandbox's cgroup directory.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the cgroup and sets its limits.
    pub fn create(&self, limits: &CgroupLimits) -> Result<(), CgroupError> {
        let unavailable = |source| CgroupError::Unavailable {
            path: self.path.clone(),
            source,
        };
        // Each time: whoever made the parent may have been killed before it was ready.
        self.create_parent().map_err(unavailable)?;
        match fs::create_dir(&self.path) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
                return Err(unavailable(err));
            }
            _ => {}
        }
        self.set("memory.max", limits.memory_max.to_string())?;
        self.set("pids.max", limits.pids_max.to_string())?;
        if let Some((quota, period)) = limits.cpu_max {
            self.set("cpu.max", format!("{quota} {period}"))?;
        }
        if let Some(weight) = limits.cpu_weight {
            self.set("cpu.weight", weight.to_string())?;
        }
        Ok(())
    }

    /// The parent passes the controllers on to each sandbox's cgroup.
    fn create_parent(&self) -> io::Result<()> {
        let parent = self.path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let hierarchy = parent.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let controllers = "+cpu +memory +pids";
        fs::write(hierarchy.join("cgroup.subtree_control"), controllers)?;
        match fs::create_dir(parent) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
            _ => {}
        }
        fs::write(parent.join("cgroup.subtree_control"), controllers)
    }

    fn set(&self, name: &str, value: String) -> Result<(), CgroupError> {
        let path = self.path.join(name);
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
            .map_err(|source| CgroupError::Write {
                path,
                value,
                source,
            })
    }

    /// Moves a process into the cgroup.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        self.set("cgroup.procs", pid.to_string())
    }

    /// Has the kernel killed a process of this cgroup for want of memory?
    pub fn oom_killed(&self) -> bool {
        fs::read_to_string(self.path.join("memory.events"))
            .ok()
            .and_then(|events| {
                let count = events
                    .lines()
                    .find_map(|line| line.strip_prefix("oom_kill "))?;
                count.parse::<u64>().ok()
            })
            .is_some_and(|count| count > 0)
    }

    /// Kills what is left in the cgroup and removes it. No cgroup is no error.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let failed = |source| CgroupError::Remove {
            path: self.path.clone(),
            source,
        };
        match fs::remove_dir(&self.path) {
            Err(err) if err.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {}
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => return result.map_err(failed),
        }
        let removed = fs::write(self.path.join("cgroup.kill"), "1")
            .and_then(|()| self.wait_until_empty())
            .and_then(|()| fs::remove_dir(&self.path));
        match removed {
            // Another process removes it as well: a command, and the sandbox process itself.
            Err(err) if is_gone(&err) => Ok(()),
            result => result.map_err(failed),
        }
    }

    /// `cgroup.events` signals POLLPRI at each change of `populated`.
    fn wait_until_empty(&self) -> io::Result<()> {
        let events = fs::File::open(self.path.join("cgroup.events"))?;
        let deadline = Instant::now() + EMPTY_DEADLINE;
        loop {
            let mut text = [0; 256];
            let read = rustix::io::pread(&events, &mut text, 0)?;
            if !String::from_utf8_lossy(&text[..read]).contains("populated 1") {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut fds = [PollFd::new(&events, PollFlags::PRI)];
            if poll(&mut fds, Some(&timeout))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

/// What files of a removed cgroup answer, by name and through an open descriptor.
fn is_gone(err: &io::Error) -> bool {
    let gone = [rustix::io::Errno::NOENT, rustix::io::Errno::NODEV];
    rustix::io::Errno::from_io_error(err).is_some_and(|errno| gone.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_hierarchy_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::at(dir.path().join("none/lazaret/box"));
        let limits = CgroupLimits {
            memory_max: 1,
            cpu_max: None,
            cpu_weight: None,
            pids_max: 1,
        };
        let err = cgroup.create(&limits).unwrap_err();
        assert!(err.to_string().contains("none/lazaret/box"), "{err}");
        assert!(err.to_string().contains("cgroup v2"), "{err}");
    }

    #[test]
    fn removing_what_is_not_there_is_done() {
        let dir = tempfile::tempdir().unwrap();
        Cgroup::at(dir.path().join("gone")).remove().unwrap();
    }

    #[test]
    fn oom_kills_are_counted_from_memory_events() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::at(dir.path().to_owned());
        assert!(!cgroup.oom_killed());
        let events = dir.path().join("memory.events");
        fs::write(&events, "oom 1\noom_kill 0\n").unwrap();
        assert!(!cgroup.oom_killed());
        fs::write(&events, "oom 1\noom_kill 2\n").unwrap();
        assert!(cgroup.oom_killed());
    }
}
