//! The host cgroup (v2) of a sandbox: bounds what a microVM can take from its host
//! whatever happens inside it, and finds every process of it.
//!
//! In namespace `oci` the sandbox process is in it too, since engines read what a
//! container uses from the cgroup of its process. Elsewhere it is the VMM's alone.

mod limits;
mod path;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use thiserror::Error;

pub use limits::{CgroupLimits, Setting, count_cpus, remove_host_limits};
pub use path::{CgroupPathError, cgroup_path};

use super::state::CgroupState;

/// Parent of all sandboxes' cgroups that have no place of their own.
pub const CGROUP_DIR: &str = "/sys/fs/cgroup/lazaret";

/// How long killed processes may take to leave a cgroup.
const EMPTY_DEADLINE: Duration = Duration::from_secs(5);

/// Passed on to every sandbox's cgroup: what limits it, and what it is measured by.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Passed on where it is there, for its figures.
const WELCOME_CONTROLLER: &str = "io";

/// How often a parent may be removed by the end of another sandbox while this one's
/// cgroup is made in it.
const ATTEMPTS: u32 = 8;

#[derive(Debug, Error)]
pub enum CgroupError {
    #[error(
        "cannot use the cgroup {}: a writable cgroup v2 hierarchy is needed on /sys/fs/cgroup \
         (or set host_cgroup = false in /etc/lazaret/config.toml)",
        path.display()
    )]
    Unavailable { path: PathBuf, source: io::Error },
    #[error(
        "cannot set limits below the cgroup {}: the controller {controller} is not there, \
         its parents do not pass it on",
        path.display()
    )]
    NoController { path: PathBuf, controller: String },
    #[error(
        "cannot set limits below the cgroup {}: it holds processes itself, and then it cannot \
         pass controllers on (\"no internal processes\" of cgroup v2); move them into a cgroup \
         below it",
        path.display()
    )]
    Populated { path: PathBuf },
    #[error("cannot write {value:?} to {}", path.display())]
    Write {
        path: PathBuf,
        value: String,
        source: io::Error,
    },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{0} is a limit of the host's cgroup, and host_cgroup = false is set")]
    SwitchedOff(&'static str),
    #[error("cannot remove the cgroup {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Path(#[from] CgroupPathError),
}

/// A sandbox's cgroup directory.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// The root of the hierarchy.
    hierarchy: PathBuf,
    /// What is the sandbox's own to remove, the innermost first.
    own: Vec<PathBuf>,
}

impl Cgroup {
    /// The cgroup of a sandbox without a place of its own: in a directory that stays.
    pub fn at(path: PathBuf) -> Self {
        let hierarchy = path.ancestors().nth(2).unwrap_or(&path).to_owned();
        let own = vec![path.clone()];
        Self {
            path,
            hierarchy,
            own,
        }
    }

    /// The cgroup that a spec names. What is there already belongs to others.
    pub fn named(&self, cgroups_path: &str) -> Result<Self, CgroupPathError> {
        let default_parent = self.path.parent().unwrap_or(&self.hierarchy);
        let path = cgroup_path(cgroups_path, &self.hierarchy, default_parent)?;
        let own = path
            .ancestors()
            .take_while(|dir| *dir != self.hierarchy && !dir.exists())
            .map(Path::to_owned)
            .collect();
        Ok(Self {
            path,
            hierarchy: self.hierarchy.clone(),
            own,
        })
    }

    pub fn state(&self) -> CgroupState {
        CgroupState {
            path: self.path.clone(),
            own: self.own.clone(),
        }
    }

    /// The cgroup that a sandbox process has written down.
    #[must_use]
    pub fn of_state(&self, state: &CgroupState) -> Self {
        Self {
            path: state.path.clone(),
            hierarchy: self.hierarchy.clone(),
            own: state.own.clone(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the cgroup and sets its limits.
    pub fn create(&self, limits: &CgroupLimits) -> Result<(), CgroupError> {
        let mut controllers = CONTROLLERS.to_vec();
        for setting in &limits.settings {
            let controller = setting.file.split('.').next().unwrap_or_default();
            if !controllers.contains(&controller) {
                controllers.push(controller);
            }
        }
        let mut attempts = 1;
        while let Err(err) = self.make(&controllers) {
            let gone = matches!(&err, CgroupError::Unavailable { source, .. } if is_gone(source));
            if !gone || attempts == ATTEMPTS || !self.hierarchy.exists() {
                return Err(err);
            }
            attempts += 1;
        }
        self.update(limits)
    }

    /// Every parent passes the controllers on. Each time: whoever has made one may
    /// have been killed before it was ready.
    fn make(&self, controllers: &[&str]) -> Result<(), CgroupError> {
        let mut parents: Vec<_> = self
            .path
            .ancestors()
            .skip(1)
            .take_while(|dir| dir.starts_with(&self.hierarchy))
            .collect();
        parents.reverse();
        for dir in parents {
            if dir != self.hierarchy {
                self.make_dir(dir)?;
            }
            self.pass_on(dir, controllers)?;
        }
        self.make_dir(&self.path)
    }

    fn make_dir(&self, dir: &Path) -> Result<(), CgroupError> {
        match fs::create_dir(dir) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => Err(self.unavailable(err)),
            _ => Ok(()),
        }
    }

    fn pass_on(&self, dir: &Path, controllers: &[&str]) -> Result<(), CgroupError> {
        let list = |name: &str| fs::read_to_string(dir.join(name));
        let there = list("cgroup.controllers").map_err(|err| self.unavailable(err))?;
        let there: Vec<_> = there.split_ascii_whitespace().collect();
        let passed = list("cgroup.subtree_control").map_err(|err| self.unavailable(err))?;
        let passed: Vec<_> = passed.split_ascii_whitespace().collect();
        for controller in controllers {
            if !there.contains(controller) {
                return Err(CgroupError::NoController {
                    path: dir.to_owned(),
                    controller: (*controller).to_owned(),
                });
            }
        }
        let welcome = there.iter().find(|name| **name == WELCOME_CONTROLLER);
        let missing: Vec<_> = controllers
            .iter()
            .chain(welcome.filter(|name| !controllers.contains(name)))
            .filter(|name| !passed.contains(name))
            .map(|name| format!("+{name}"))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        match fs::write(dir.join("cgroup.subtree_control"), missing.join(" ")) {
            Err(err) if Errno::from_io_error(&err) == Some(Errno::BUSY) => {
                Err(CgroupError::Populated {
                    path: dir.to_owned(),
                })
            }
            result => result.map_err(|err| self.unavailable(err)),
        }
    }

    fn unavailable(&self, source: io::Error) -> CgroupError {
        CgroupError::Unavailable {
            path: self.path.clone(),
            source,
        }
    }

    /// Sets limits of a cgroup that is there.
    pub fn update(&self, limits: &CgroupLimits) -> Result<(), CgroupError> {
        if let Some(period) = limits.cpu_period {
            let quota = self.cpu_quota()?;
            self.set("cpu.max", &format!("{quota} {period}"))?;
        }
        for setting in &limits.settings {
            match &setting.rather {
                Some((file, value)) if self.path.join(file).exists() => self.set(file, value)?,
                _ => self.set(setting.file, &setting.value)?,
            }
        }
        Ok(())
    }

    /// The first word of `cpu.max`: microseconds, or `max`.
    fn cpu_quota(&self) -> Result<String, CgroupError> {
        let path = self.path.join("cpu.max");
        let text = fs::read_to_string(&path);
        let text = text.map_err(|source| CgroupError::Read { path, source })?;
        Ok(text.split(' ').next().unwrap_or("max").to_owned())
    }

    fn set(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.path.join(name);
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
            .map_err(|source| CgroupError::Write {
                path,
                value: value.to_owned(),
                source,
            })
    }

    /// The cgroup that this process is in.
    pub fn current(&self) -> Option<PathBuf> {
        let text = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        Some(self.hierarchy.join(path))
    }

    /// Takes this process out of the cgroup, back to where it was, or to the root.
    pub fn leave(&self, before: Option<&Path>) -> Result<(), CgroupError> {
        let pid = std::process::id().to_string();
        let back = before.map(|dir| fs::write(dir.join("cgroup.procs"), &pid));
        if matches!(back, Some(Ok(()))) {
            return Ok(());
        }
        let path = self.hierarchy.join("cgroup.procs");
        fs::write(&path, &pid).map_err(|source| CgroupError::Write {
            path,
            value: pid,
            source,
        })
    }

    /// Moves a process into the cgroup.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        self.set("cgroup.procs", &pid.to_string())
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

    /// Kills what is left in the cgroup and removes it, and with it what was made
    /// for it. No cgroup is no error.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let mut own = self.own.iter();
        if self.own.first() == Some(&self.path) {
            own.next();
            self.remove_innermost()?;
        }
        for parent in own {
            // Others may use it by now.
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }

    fn remove_innermost(&self) -> Result<(), CgroupError> {
        let failed = |source| CgroupError::Remove {
            path: self.path.clone(),
            source,
        };
        match fs::remove_dir(&self.path) {
            Err(err) if Errno::from_io_error(&err) == Some(Errno::BUSY) => {}
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
    let gone = [Errno::NOENT, Errno::NODEV];
    Errno::from_io_error(err).is_some_and(|errno| gone.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_hierarchy_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::at(dir.path().join("none/lazaret/box"));
        let err = cgroup.create(&CgroupLimits::default()).unwrap_err();
        assert!(err.to_string().contains("none/lazaret/box"), "{err}");
        assert!(err.to_string().contains("cgroup v2"), "{err}");
    }

    /// A directory with the files by which a kernel shows a cgroup.
    fn show(dir: &Path, controllers: &str) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("cgroup.controllers"), controllers).unwrap();
        fs::write(dir.join("cgroup.subtree_control"), "").unwrap();
    }

    #[test]
    fn parents_that_pass_nothing_on_are_made_to() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for parent in ["", "lazaret", "docker"] {
            show(&root.join(parent), "cpuset cpu io memory pids");
        }
        // As it is once whoever has made it was killed in between.
        fs::write(root.join("cgroup.subtree_control"), "cpu memory pids io\n").unwrap();
        let default = Cgroup::at(root.join("lazaret/box"));
        let limits = CgroupLimits::default();
        default.create(&limits).unwrap();
        let passed = |dir: &str| fs::read_to_string(root.join(dir).join("cgroup.subtree_control"));
        assert_eq!(passed("lazaret").unwrap(), "+cpu +memory +pids +io");
        assert_eq!(passed("").unwrap(), "cpu memory pids io\n");

        let named = default.named("/docker/abc").unwrap();
        assert_eq!(named.own, [root.join("docker/abc")]);
        let mut limits = CgroupLimits::default();
        limits.set("cpuset.cpus", "0");
        // A plain directory has no such file.
        assert!(matches!(
            named.create(&limits),
            Err(CgroupError::Write { .. })
        ));
        assert_eq!(passed("docker").unwrap(), "+cpu +memory +pids +cpuset +io");
        named.remove().unwrap();
        assert!(root.join("docker").exists() && !root.join("docker/abc").exists());
    }

    #[test]
    fn what_the_kernel_has_decides_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::at(dir.path().join("lazaret/box"));
        fs::create_dir_all(cgroup.path()).unwrap();
        let file = |name: &str| cgroup.path().join(name);
        let resources = |text: &str| CgroupLimits::of_resources(&text.parse().unwrap());
        let read = |name: &str| fs::read_to_string(file(name)).unwrap();

        // A period alone leaves the quota.
        fs::write(file("cpu.max"), "50000 100000").unwrap();
        cgroup
            .update(&resources(r#"{ "cpu": { "period": 250000 } }"#))
            .unwrap();
        assert_eq!(read("cpu.max"), "50000 250000");

        let weight = resources(r#"{ "blockIO": { "weight": 1000 } }"#);
        fs::write(file("io.weight"), "").unwrap();
        cgroup.update(&weight).unwrap();
        assert_eq!(read("io.weight"), "default 10000");
        fs::write(file("io.bfq.weight"), "").unwrap();
        fs::write(file("io.weight"), "").unwrap();
        cgroup.update(&weight).unwrap();
        assert_eq!(
            (read("io.bfq.weight"), read("io.weight")),
            ("default 1000".to_owned(), String::new())
        );
    }

    #[test]
    fn a_controller_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        show(dir.path(), "cpu memory");
        let cgroup = Cgroup::at(dir.path().join("lazaret/box"));
        let err = cgroup.create(&CgroupLimits::default()).unwrap_err();
        assert!(err.to_string().contains("controller pids"), "{err}");
    }

    #[test]
    fn only_what_was_made_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("theirs")).unwrap();
        let default = Cgroup::at(root.join("lazaret/box"));
        let named = default.named("/theirs/a/b").unwrap();
        assert_eq!(named.own, [root.join("theirs/a/b"), root.join("theirs/a")]);
        fs::create_dir_all(root.join("theirs/a/b")).unwrap();
        fs::create_dir(root.join("theirs/a/other")).unwrap();
        let again = default.of_state(&named.state());
        again.remove().unwrap();
        assert!(!root.join("theirs/a/b").exists() && root.join("theirs/a").exists());
        let theirs = default.named("/theirs/a/other").unwrap();
        theirs.remove().unwrap();
        assert!(root.join("theirs/a/other").exists());
        fs::remove_dir(root.join("theirs/a/other")).unwrap();
        again.remove().unwrap();
        assert!(!root.join("theirs/a").exists() && root.join("theirs").exists());
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
