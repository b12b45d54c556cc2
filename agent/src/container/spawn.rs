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

use rustix::io::fcntl_dupfd_cloexec;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, pidfd_send_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::user_namespace::Mappings;
use crate::failure::{OrFail, Result};

/// Where the stage finds its socket, its input and then its container (for a further
/// process) or the first of the mounts that are made for it.
pub(crate) const SYNC_FD: RawFd = 3;
pub(crate) const INPUT_FD: RawFd = 4;
pub(crate) const CONTAINER_PIDFD: RawFd = 5;
pub(crate) const MOUNTS_FD: RawFd = 5;

/// First argument that makes the agent's program a stage.
pub(super) const STAGE_ARG: &CStr = c"container-init";

/// Sources of the stage's descriptors lie above all its targets, so that dup2
/// never overwrites one that is still needed.
const FD_FLOOR: RawFd = 128;

/// Marks a whole range of descriptors close-on-exec.
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_NEWUSER: u64 = 0x1000_0000;
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
    /// Of a user namespace to be made, which then owns the others.
    pub(crate) users: Option<&'a Mappings>,
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
            .map(|fd| fcntl_dupfd_cloexec(fd, FD_FLOOR))
            .collect::<rustix::io::Result<Vec<_>>>()
            .or_fail(|| "prepare the stage's descriptors")?;
        let mut flags = CLONE_INTO_CGROUP;
        if matches!(self.pid_namespace, PidNamespace::New) {
            flags |= CLONE_NEWPID;
        }
        let gate = match self.users {
            Some(mappings) => Some((mappings, gate()?)),
            None => None,
        };
        if gate.is_some() {
            flags |= CLONE_NEWUSER;
        }
        let argv = [
            c"lazaret-agent".as_ptr(),
            STAGE_ARG.as_ptr(),
            self.mode.as_ptr(),
            ptr::null(),
        ];
        let child = Child {
            program: self.program.as_raw_fd(),
            gate: gate.as_ref().map(|(_, (waiting, _))| waiting.as_raw_fd()),
            fds: &fds,
            argv: &argv,
        };
        let joined = match self.pid_namespace {
            PidNamespace::Join(namespace) => Some(ChildrenElsewhere::enter(namespace)?),
            PidNamespace::New | PidNamespace::Guest => None,
        };
        let spawned = clone3(flags, Some(self.cgroup), &Newborn::Stage(&child))
            .or_fail(|| "start the container stage");
        if let Some(joined) = joined {
            joined.leave()?;
        }
        let spawned = spawned?;
        if let Some((mappings, (_, open))) = gate {
            let opened = mappings.write(spawned.pid).and_then(|()| {
                rustix::io::write(open, b"m").or_fail(|| "let the container stage go on")
            });
            if opened.is_err() {
                // It waits for the byte. The reaper collects it.
                let _ = pidfd_send_signal(&spawned.pidfd, Signal::KILL);
            }
            opened?;
        }
        Ok(spawned)
    }
}

/// A process of a new user namespace that does nothing, to be killed by the caller.
pub(crate) fn hold_user_namespace() -> Result<Spawned> {
    clone3(CLONE_NEWUSER, None, &Newborn::Holder).or_fail(|| "make a user namespace")
}

/// The child waits for a byte on the first until its ids are mapped.
fn gate() -> Result<(OwnedFd, OwnedFd)> {
    let (waiting, open) =
        pipe_with(PipeFlags::CLOEXEC).or_fail(|| "prepare the stage's descriptors")?;
    let floor = fcntl_dupfd_cloexec(&waiting, FD_FLOOR);
    Ok((floor.or_fail(|| "prepare the stage's descriptors")?, open))
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

/// What a new process does, with async-signal-safe calls alone.
enum Newborn<'a> {
    Stage(&'a Child<'a>),
    /// Is there until it is killed.
    Holder,
}

impl Newborn<'_> {
    fn run(&self) -> ! {
        match self {
            Self::Stage(child) => child.run(),
            Self::Holder => loop {
                // SAFETY: waits for a signal and touches no memory.
                unsafe { libc::pause() };
            },
        }
    }
}

struct Child<'a> {
    program: RawFd,
    gate: Option<RawFd>,
    fds: &'a [OwnedFd],
    argv: &'a [*const c_char],
}

fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>, child: &Newborn<'_>) -> io::Result<Spawned> {
    let mut pidfd: c_int = -1;
    // SAFETY: an all-zero clone_args is the documented default of every field.
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    args.flags = flags | CLONE_PIDFD;
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    }
    // SAFETY: no CLONE_VM, so the child runs on its own copy of this stack and
    // `child` keeps to async-signal-safe calls; `args` and `pidfd` outlive the call.
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
        if let Some(gate) = self.gate {
            become_mapped_root(gate);
        }
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

/// Waits for the mapping and becomes the namespace's root, without which execve would
/// take all capabilities away.
fn become_mapped_root(gate: RawFd) {
    let mut byte = 0_u8;
    // SAFETY: the buffer is one byte long and outlives the call.
    unsafe { libc::read(gate, (&raw mut byte).cast(), 1) };
    // SAFETY: an empty list, which the kernel does not read.
    unsafe { libc::syscall(libc::SYS_setgroups, 0, ptr::null::<libc::gid_t>()) };
    // SAFETY: numbers only; the raw call is for this one thread, which is all there is.
    unsafe { libc::syscall(libc::SYS_setresgid, 0, 0, 0) };
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) };
}
