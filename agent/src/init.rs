//! The guest before the agent can serve: kernel file systems, and a root that
//! containers can be pivoted away from.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat, symlink};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Resource, Rlimit, chroot, fchdir, prlimit};

use crate::container::{Attributes, Reach, attach, clone_tree, set_attributes};
use crate::failure::{OrFail, Result};
use crate::loopback;

/// Where the hierarchy of cgroups is mounted in the guest.
pub const CGROUP_MOUNT: &str = "/sys/fs/cgroup";

/// A few descriptors for each process of each container.
const FILES_MAX: u64 = 1 << 20;

/// Limits of the agent, which what it starts inherits. The kernel derives those of processes and of
/// pending signals from the guest's memory, which is little; the memory that they take is what
/// containers' cgroups limit.
const LIMITS: [(Resource, &str, Option<u64>); 3] = [
    (Resource::Nofile, "open files", Some(FILES_MAX)),
    (Resource::Nproc, "processes", None),
    (Resource::Sigpending, "pending signals", None),
];

/// Where the kernel has its settings.
const SETTINGS_DIR: &str = "/proc/sys";

/// What the kernel's own defaults are too small for: containers expect the settings of
/// a host. Their use of memory is what their cgroups limit.
const SETTINGS: [(&str, &str); 5] = [
    // A container may ask for more memory than the guest has, as it may on a large host: what it uses
    // is what counts, and its cgroup's limit is what ends it.
    ("vm/overcommit_memory", "1"),
    // Not even root may have a limit of open files above this; systemd sets hosts' to it, as the
    // largest that any kernel takes.
    ("fs/nr_open", "1073741816"),
    // By default a tenth of the guest's memory, which is little; what systemd sets, too.
    ("fs/file-max", "9223372036854775807"),
    // Databases map more files than the kernel's 65,530; what distributions set by now.
    ("vm/max_map_count", "1048576"),
    // By default what a hundredth of the guest's memory holds, which is little; the most that the
    // kernel gives a host by itself. It is the same as user/max_inotify_watches.
    ("fs/inotify/max_user_watches", "1048576"),
];

struct Early {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: Option<&'static std::ffi::CStr>,
}

const SAFE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

const EARLY_MOUNTS: [Early; 8] = [
    early(
        "devtmpfs",
        "/dev",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        None,
    ),
    early("proc", "/proc", SAFE, None),
    early("sysfs", "/sys", SAFE, None),
    early("cgroup2", CGROUP_MOUNT, SAFE, None),
    early("tmpfs", "/run", SAFE, Some(c"mode=755")),
    early(
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        Some(c"mode=620,gid=5,ptmxmode=666"),
    ),
    early("tmpfs", "/dev/shm", SAFE, None),
    early("mqueue", "/dev/mqueue", SAFE, None),
];

const fn early(
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: Option<&'static std::ffi::CStr>,
) -> Early {
    Early {
        kind,
        target,
        flags,
        data,
    }
}

/// Makes the guest's root fit to serve containers. The order matters: the directories
/// are made while the initramfs can still be written.
pub fn prepare_guest() -> Result<()> {
    for directory in ["/dev", "/proc", "/sys", "/run", "/tmp"] {
        make_directory(directory)?;
    }
    leave_rootfs()?;
    for early in &EARLY_MOUNTS {
        make_directory(early.target)?;
        mount(
            early.kind,
            early.target,
            early.kind,
            early.flags,
            early.data,
        )
        .or_fail(|| format!("mount {} on {}", early.kind, early.target))?;
    }
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        symlink(target, link).or_fail(|| format!("link {link}"))?;
    }
    loopback::up().or_fail(|| "bring the loopback up")?;
    raise_limits(None)?;
    for (setting, value) in SETTINGS {
        fs::write(Path::new(SETTINGS_DIR).join(setting), value)
            .or_fail(|| format!("set {setting} to {value}"))?;
    }
    // Losing the agent would lose every container.
    fs::write("/proc/self/oom_score_adj", "-1000").or_fail(|| "protect the agent from OOM")
}

/// Gives [`LIMITS`] to that process, or to the calling one.
fn raise_limits(process: Option<Pid>) -> Result<()> {
    for (resource, name, value) in LIMITS {
        let limit = Rlimit {
            current: value,
            maximum: value,
        };
        prlimit(process, resource, limit).or_fail(|| format!("raise the limit of {name}"))?;
    }
    Ok(())
}

/// The initial root cannot be pivoted away from (`pivot_root(2)`), so the agent moves
/// into a second mount of it. That one is read-only: a container that got hold of the
/// agent's program could not change it.
fn leave_rootfs() -> Result<()> {
    let doing = || "mount the root again";
    let root = clone_tree(CWD, Path::new("/"), Reach::One).or_fail(doing)?;
    let closed = Attributes {
        set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        clear: 0,
    };
    set_attributes(root.as_fd(), closed, Reach::One).or_fail(doing)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = openat(CWD, "/", flags, Mode::empty()).or_fail(doing)?;
    attach(root.as_fd(), place.as_fd()).or_fail(doing)?;
    fchdir(root.as_fd()).or_fail(doing)?;
    chroot(".").or_fail(doing)
}

fn make_directory(path: &str) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other.or_fail(|| format!("make directory {path}")),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::thread::{CapabilitySet, capabilities};

    use super::*;

    /// None of them is below what the kernel begins with.
    #[test]
    fn settings_are_those_that_the_kernel_has() {
        let least = [
            ("vm/overcommit_memory", 1),
            ("fs/nr_open", 1 << 20),
            ("fs/file-max", 1 << 20),
            ("vm/max_map_count", 65_530),
            ("fs/inotify/max_user_watches", 1 << 20),
        ];
        assert_eq!(SETTINGS.map(|(name, _)| name), least.map(|(name, _)| name));
        for ((setting, value), (_, least)) in SETTINGS.into_iter().zip(least) {
            assert!(Path::new(SETTINGS_DIR).join(setting).is_file(), "{setting}");
            let value: i64 = value.parse().expect("a long of the kernel's");
            assert!(value >= least, "{setting}");
        }
    }

    /// Of a process of its own: the limits of this one are those of other tests, too.
    #[test]
    fn limits_are_not_those_of_a_small_machine() {
        let own = capabilities(None).expect("capabilities of this process");
        if !own.effective.contains(CapabilitySet::SYS_RESOURCE) {
            eprintln!("SKIPPED: {} needs CAP_SYS_RESOURCE", module_path!());
            return;
        }
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .spawn()
            .expect("a process that waits");
        let raised = raise_limits(Some(Pid::from_child(&child)));
        let limits = fs::read_to_string(format!("/proc/{}/limits", child.id()));
        drop(child.stdin.take());
        child.wait().expect("ended");
        raised.expect("raised");
        let limits = limits.expect("the limits of the process");
        for (name, value) in [
            ("Max open files", "1048576"),
            ("Max processes", "unlimited"),
            ("Max pending signals", "unlimited"),
        ] {
            let line = limits.lines().find_map(|line| line.strip_prefix(name));
            let words: Vec<&str> = line.expect(name).split_whitespace().collect();
            assert_eq!(words[..2], [value, value], "{name}");
        }
    }
}
