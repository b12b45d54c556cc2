//! Starts a container stage: this very program again, single-threaded, in its
//! cgroup and PID namespace from its first instruction.
//!
//! clone3 gives the agent the stage as its own child, so there is no intermediate
//! process to reap and the process id is known before anything can exit.
#![expect(
    unsafe_code,
    reason = "clone3, and the async-signal-safe calls between it and execveat"
)]

use std::ffi::{CStr, c_char, c_int, c_long};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::{io, mem, ptr};

use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::failure::{OrFail, Result};

/// Where the stage finds its socket, its input and (exec only) its container.
pub(crate) const SYNC_FD: RawFd = 3;
pub(crate) const INPUT_FD: RawFd = 4;
pub(crate) const CONTAINER_PIDFD: RawFd = 5;

/// First argument that makes the agent's program a stage.
pub(super) const STAGE_ARG: &CStr = c"container-init";

/// Sources of the stage's descriptors lie above all its targets, so that dup2
/// never overwrites one that is still needed.
const FD_FLOOR: RawFd = 16;

/// Marks a whole range of descriptors close-on-exec.
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_NEWPID: u64 = 0x2000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

#[derive(Debug)]
pub(crate) enum PidNamespace<'a> {
    New,
    /// The agent's own.
    Guest,
    Join(BorrowedFd<'a>),
}

#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) program: BorrowedFd<'a>,
    pub(crate) mode: &'a CStr,
    /// Become descriptors 0, 1, 2 … of the stage.
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) cgroup: BorrowedFd<'a>,
    pub(crate) pid_namespace: PidNamespace<'a>,
}

#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

impl Stage<'_> {
    pub(crate) fn spawn(self) -> Result<Spawned> {
        let fds = self
            .fds
            .iter()
            .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, FD_FLOOR))
            .collect::<rustix::io::Result<Vec<_>>>()
            .or_fail(|| "prepare the stage's descriptors")?;
        let flags = CLONE_PIDFD
            | CLONE_INTO_CGROUP
            | match self.pid_namespace {
                PidNamespace::New => CLONE_NEWPID,
                PidNamespace::Guest | PidNamespace::Join(_) => 0,
            };
        let argv = [
            c"lazaret-agent".as_ptr(),
            STAGE_ARG.as_ptr(),
            self.mode.as_ptr(),
            ptr::null(),
        ];
        let child = Child {
            program: self.program.as_raw_fd(),
            fds: &fds,
            argv: &argv,
        };
        let joined = match self.pid_namespace {
            PidNamespace::Join(namespace) => Some(ChildrenElsewhere::enter(namespace)?),
            PidNamespace::New | PidNamespace::Guest => None,
        };
        let spawned = clone3(flags, self.cgroup, &child).or_fail(|| "start the container stage");
        if let Some(joined) = joined {
            joined.leave()?;
        }
        spawned
    }
}

/// While this lives, children of the thread are born in another PID namespace.
struct ChildrenElsewhere {
    own: OwnedFd,
}

impl ChildrenElsewhere {
    fn enter(namespace: BorrowedFd<'_>) -> Result<Self> {
        let own = rustix::fs::open(
            "/proc/thread-self/ns/pid",
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .or_fail(|| "open the agent's PID namespace")?;
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::ProcessID))
            .or_fail(|| "join the PID namespace")?;
        Ok(Self { own })
    }

    fn leave(self) -> Result<()> {
        move_into_link_name_space(self.own.as_fd(), Some(LinkNameSpaceType::ProcessID))
            .or_fail(|| "return to the agent's PID namespace")
    }
}

struct Child<'a> {
    program: RawFd,
    fds: &'a [OwnedFd],
    argv: &'a [*const c_char],
}

fn clone3(flags: u64, cgroup: BorrowedFd<'_>, child: &Child<'_>) -> io::Result<Spawned> {
    let mut pidfd: c_int = -1;
    // SAFETY: an all-zero clone_args is the documented default of every field.
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    args.flags = flags;
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: no CLONE_VM, so the child runs on its own copy of this stack and
    // `run` keeps to async-signal-safe calls; `args` and `pidfd` outlive the call.
    let result: c_long = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            ptr::from_mut(&mut args),
            mem::size_of::<libc::clone_args>(),
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => child.run(),
        pid => {
            // SAFETY: the kernel has stored a new descriptor there that nothing else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let pid = pid.ok_or_else(|| io::Error::other("clone3 returned no process id"))?;
            Ok(Spawned { pid, pidfd })
        }
    }
}

impl Child<'_> {
    /// In the new process: nothing here allocates or takes a lock.
    fn run(&self) -> ! {
        const EXEC_FAILED: c_int = 127;
        let environment: [*const c_char; 1] = [ptr::null()];
        for (target, fd) in (0..).zip(self.fds) {
            // SAFETY: dup2 on two descriptor numbers touches no memory.
            unsafe { libc::dup2(fd.as_raw_fd(), target) };
        }
        // SAFETY: closes nothing by itself and touches no memory.
        unsafe {
            libc::syscall(
                libc::SYS_close_range,
                self.fds.len(),
                libc::c_uint::MAX,
                CLOSE_RANGE_CLOEXEC,
            )
        };
        // SAFETY: `argv` and `environment` are null-terminated arrays of C strings
        // that live in this process's copy of the caller's stack.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                self.program,
                c"".as_ptr(),
                self.argv.as_ptr(),
                environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        };
        // SAFETY: ends this process without running the parent's exit handlers.
        unsafe { libc::_exit(EXEC_FAILED) }
    }
}
