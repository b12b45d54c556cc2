//! What the VMM process takes from itself before any guest code runs.
//!
//! The parent has already made it PID 1 of a new PID namespace and put it into its
//! cgroup. The order here follows from what each step still needs:
//!
//! 1. Limits on open files and core dumps, which need the host's privileges.
//! 2. A new user namespace that maps every id onto itself: file ownership passes
//!    through unchanged, and no capability reaches beyond the namespace. The map
//!    can only be written by a process outside, so a child is forked first that
//!    writes it and ends.
//! 3. In the same call new mount, network, IPC, UTS and cgroup namespaces, owned by
//!    the user namespace. Mounts become slaves of the sandbox process's: what it
//!    mounts below the shared directory later appears here, nothing goes back.
//! 4. The shared directory becomes the root; the old root is detached. From here
//!    on no path leads anywhere but into what the guest sees anyway.
//! 5. No new privileges, not dumpable, killed with the parent's thread.
//!
//! Each thread then gives up its capabilities ([`drop_capabilities`]) and installs
//! its filter ([`crate::seccomp`]). The threads of virtio-fs keep those of
//! [`FS_CAPABILITIES`], which hold only inside the user namespace: they let file
//! ownership and permissions be the guest's business, and stay effective while a
//! thread makes a file as one of the guest's users. `CAP_MKNOD` is among them for
//! form only, since the kernel makes device nodes for nobody in a user namespace.
#![expect(unsafe_code, reason = "forks while there is one thread")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, UnmountFlags, mount_bind_recursive, open_tree, unmount};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, WaitOptions, chdir, pivot_root,
    set_dumpable_behavior, set_parent_process_death_signal, setrlimit, waitpid,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};
use thiserror::Error;

/// What virtio-fs threads need to act for any user of the guest.
pub const FS_CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// Most open files: each inode the guest knows is one.
const OPEN_FILES: u64 = 1 << 20;

/// Every id onto itself.
const IDENTITY_MAP: &str = "0 0 4294967295\n";

#[derive(Debug, Error)]
pub enum JailError {
    #[error("{step} failed")]
    Step {
        step: &'static str,
        #[source]
        source: Errno,
    },
    #[error("shared directory has no path")]
    SharedDirectory(#[source] io::Error),
    #[error("ids could not be mapped; is this process root on the host?")]
    IdMap,
}

/// What stays reachable from inside.
#[derive(Debug)]
pub struct Jail {
    /// `/proc/self/fd` of the host's procfs, and nothing above it: how virtio-fs
    /// reopens what it has.
    pub proc_self_fd: OwnedFd,
}

/// Enters the jail. The process must have one thread.
pub fn enter(shared_dir: &OwnedFd) -> Result<Jail, JailError> {
    // A mount that hangs nowhere: `..` from a plain descriptor would lead to the
    // host's procfs and on to its root, with the capabilities of the fs threads.
    let proc_self_fd = step("opening /proc/self/fd", {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, "/proc/self/fd", flags)
    })?;
    limit_resources()?;
    let root = path_of(shared_dir)?;
    enter_namespaces()?;
    change_root(&root)?;
    step("setting no_new_privs", set_no_new_privs(true))?;
    step(
        "making the process undumpable",
        set_dumpable_behavior(DumpableBehavior::NotDumpable),
    )?;
    step(
        "asking to die with the parent",
        set_parent_process_death_signal(Some(Signal::KILL)),
    )?;
    Ok(Jail { proc_self_fd })
}

/// Leaves the calling thread `kept` and nothing to gain more by.
pub fn drop_capabilities(kept: CapabilitySet) -> io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // The kernel does not know of it.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}

fn limit_resources() -> Result<(), JailError> {
    let limit = |value| Rlimit {
        current: Some(value),
        maximum: Some(value),
    };
    match setrlimit(Resource::Nofile, limit(OPEN_FILES)) {
        // Without CAP_SYS_RESOURCE the limit stays; virtio-fs says if it is too low.
        Ok(()) | Err(Errno::PERM) => {}
        Err(source) => {
            let step = "limiting open files";
            return Err(JailError::Step { step, source });
        }
    }
    step("forbidding core dumps", setrlimit(Resource::Core, limit(0)))
}

fn path_of(directory: &OwnedFd) -> Result<PathBuf, JailError> {
    fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))
        .map_err(JailError::SharedDirectory)
}

/// The second and the third step.
pub(crate) fn enter_namespaces() -> Result<(), JailError> {
    let (start, entered) = step("making a pipe", pipe())?;
    let (done, mapped) = step("making a pipe", pipe())?;
    let pid = fs::read_link("/proc/self").map_err(JailError::SharedDirectory)?;
    let paths = ["uid_map", "gid_map"].map(|map| PathBuf::from("/proc").join(&pid).join(map));
    // SAFETY: this is the only thread, so the child may go on as if nothing had
    // happened; it ends in `write_maps` without unwinding into the caller.
    match unsafe { libc::fork() } {
        -1 => Err(JailError::Step {
            step: "forking",
            source: last_errno(),
        }),
        0 => {
            drop(entered);
            write_maps(&start, &mapped, &paths)
        }
        child => {
            drop((start, mapped));
            let namespaces = UnshareFlags::NEWUSER
                | UnshareFlags::NEWNS
                | UnshareFlags::NEWNET
                | UnshareFlags::NEWIPC
                | UnshareFlags::NEWUTS
                | UnshareFlags::NEWCGROUP;
            // SAFETY: no thread shares what is unshared, as there is one thread.
            let unshared = unsafe { rustix::thread::unshare_unsafe(namespaces) };
            // An end of the pipe without a byte tells the child to give up.
            if unshared.is_ok() {
                step("telling the child", rustix::io::write(&entered, &[1]))?;
            }
            drop(entered);
            let answer = rustix::io::read(&done, &mut [0_u8; 1]);
            let child = rustix::process::Pid::from_raw(child);
            step(
                "waiting for the child",
                waitpid(child, WaitOptions::empty()),
            )?;
            step("entering new namespaces", unshared)?;
            match answer {
                Ok(1) => Ok(()),
                _ => Err(JailError::IdMap),
            }
        }
    }
}

/// The child's life: waits for the namespace to be there, writes its maps, ends.
fn write_maps(start: &OwnedFd, mapped: &OwnedFd, paths: &[PathBuf; 2]) -> ! {
    let entered = rustix::io::read(start, &mut [0_u8; 1]) == Ok(1);
    if entered
        && paths
            .iter()
            .all(|path| fs::write(path, IDENTITY_MAP).is_ok())
    {
        // A parent that is gone needs no answer.
        let _ = rustix::io::write(mapped, &[1]);
    }
    // SAFETY: ends the process at once, as a forked child must.
    unsafe { libc::_exit(0) }
}

fn change_root(root: &PathBuf) -> Result<(), JailError> {
    // A mount of its own, not locked to its place as inherited ones are.
    step(
        "binding the shared directory",
        mount_bind_recursive(root, root),
    )?;
    step("entering the shared directory", chdir(root))?;
    step("changing the root", pivot_root(".", "."))?;
    step("detaching the old root", unmount(".", UnmountFlags::DETACH))?;
    step("entering the new root", chdir("/"))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn step<T>(step: &'static str, result: Result<T, Errno>) -> Result<T, JailError> {
    result.map_err(|source| JailError::Step { step, source })
}
