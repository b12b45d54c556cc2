//! What runs in a container before its program does. The agent starts its own program
//! again as this single-threaded stage (see [`super::spawn`]), which turns itself into
//! the container step by step, reports, waits for the start, and executes.
#![expect(
    unsafe_code,
    reason = "takes over the descriptors its parent has placed"
)]

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use oci_spec::runtime::{LinuxPersonality, Process, Spec};
use rustix::fs::{FileType, OFlags, Uid, fchown, fcntl_setfl, fstat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{DumpableBehavior, set_dumpable_behavior, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout};
use rustix::thread::{CapabilitySet, set_no_new_privs};

use super::environment::Environment;
use super::exec::{Program, change_directory};
use super::input::{Identity, Joining, decode_creation};
use super::mount::open_null;
use super::path::Root;
use super::seccomp::Filter;
use super::spawn::{CONTAINER_PIDFD, INPUT_FD, MOUNTS_FD, SYNC_FD};
use super::sync::StageSocket;
use super::terminal::Terminal;
use super::{credentials, device, hooks, namespaces, passwd, rootfs, scheduling};
use crate::failure::{Failure, OrFail, Result};

/// Makes a container and becomes its first process.
pub(crate) const CREATE: &std::ffi::CStr = c"create";
/// Becomes a further process of a running container.
pub(crate) const EXEC: &std::ffi::CStr = c"exec";

/// Runs the stage. It has no output of its own: all it has to say goes to the agent.
pub fn run(mode: Option<&OsStr>) -> ExitCode {
    let Ok(socket) = inherited_fd(SYNC_FD) else {
        return ExitCode::FAILURE;
    };
    let sync = StageSocket::new(socket);
    let ready = match mode.and_then(OsStr::to_str) {
        Some("create") => create(&sync),
        Some("exec") => join(&sync),
        _ => Err(Failure::invalid("unknown container stage")),
    };
    let failure = match ready.and_then(|ready| start(&sync, &ready)) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    // Nobody is left to tell when the agent does not listen.
    let _ = sync.failed(failure);
    ExitCode::FAILURE
}

/// What is left to do at the start.
struct Ready {
    process: Process,
    filter: Option<Filter>,
    personality: Option<LinuxPersonality>,
    role: Role,
}

enum Role {
    First { spec: Box<Spec>, identity: Identity },
    Further,
}

fn create(sync: &StageSocket) -> Result<Ready> {
    let (identity, spec) = decode_creation(&read_input()?)?;
    let (Some(process), Some(linux)) = (spec.process(), spec.linux()) else {
        return Err(Failure::invalid("the spec has no process or no linux part"));
    };
    let filter = linux.seccomp().as_ref().map(Filter::compile).transpose()?;
    let mounts = prepared_mounts(&identity)?;
    isolate(process)?;
    namespaces::enter(linux)?;
    // Nobody can look at it before: the files of /proc are its own until then.
    hide()?;
    namespaces::set_names(&spec, linux)?;
    let unsealed = rootfs::enter(&spec, linux, mounts)?;
    let root = Root::of_process()?;
    let terminal = open_terminal(process)?;
    if let Some(terminal) = &terminal {
        device::bind_console(&root, terminal.peer.as_fd())?;
    }
    prepare_stdio(&root, process)?;
    if process.cwd().is_absolute() {
        root.make_dir_all(process.cwd())?;
    } else {
        return Err(Failure::invalid(format!(
            "process.cwd {} is not absolute",
            process.cwd().display()
        )));
    }
    rootfs::seal(&spec, linux, unsealed)?;
    // Callers tell 127 and 126 by the error of their create. It is looked up again
    // with the rights of the user.
    if change_directory(process.cwd()).is_ok() {
        Program::find(process, &Environment::of(process)?)?;
    }
    report_created(sync, terminal)?;
    Ok(Ready {
        process: process.clone(),
        filter,
        personality: linux.personality().clone(),
        role: Role::First {
            spec: Box::new(spec),
            identity,
        },
    })
}

fn join(sync: &StageSocket) -> Result<Ready> {
    let Joining { process, inherited } = Joining::decode(&read_input()?)?;
    let container = inherited_fd(CONTAINER_PIDFD)?;
    let filter = inherited.seccomp.as_ref().map(Filter::compile);
    let filter = filter.transpose()?;
    hide()?;
    isolate(&process)?;
    if let Some(affinity) = process.exec_cpu_affinity() {
        scheduling::set_initial_affinity(affinity)?;
    }
    namespaces::enter_container(container.as_fd(), &inherited)?;
    drop(container);
    let root = Root::of_process()?;
    let terminal = open_terminal(&process)?;
    prepare_stdio(&root, &process)?;
    report_created(sync, terminal)?;
    Ok(Ready {
        process,
        filter,
        personality: inherited.personality,
        role: Role::Further,
    })
}

/// From the start message to execve, which does not return.
fn start(sync: &StageSocket, ready: &Ready) -> Result<()> {
    if !sync.wait_for_start()? {
        return Ok(());
    }
    let process = &ready.process;
    // As root first, as the user where root may not: either may lack the right.
    let entered = change_directory(process.cwd());
    let home = passwd::home_of(process.user().uid());
    credentials::set_rlimits(process.rlimits().as_deref().unwrap_or_default())?;
    scheduling::apply(process)?;
    if let Some(personality) = &ready.personality {
        scheduling::set_personality(personality)?;
    }
    // Without no_new_privs a filter takes a right that the process may not have.
    let no_new_privs = process.no_new_privileges() == Some(true);
    let kept = match &ready.filter {
        Some(_) if !no_new_privs => CapabilitySet::SYS_ADMIN,
        _ => CapabilitySet::empty(),
    };
    credentials::become_user(process, kept)?;
    if entered.is_err() {
        change_directory(process.cwd())?;
    }
    let mut environment = Environment::of(process)?;
    environment.set_home(&home);
    let program = Program::find(process, &environment)?;
    match &ready.role {
        Role::First { spec, identity } => hooks::start_container(spec, identity, &environment)?,
        Role::Further => {
            if let Some(affinity) = process.exec_cpu_affinity() {
                scheduling::set_final_affinity(affinity)?;
            }
        }
    }
    if no_new_privs {
        set_no_new_privs(true).or_fail(|| "set no_new_privs")?;
    }
    Err(program.exec(|| {
        if let Some(filter) = &ready.filter {
            filter.load()?;
        }
        if !kept.is_empty() {
            credentials::drop_kept(process)?;
        }
        sync.executing()
    }))
}

/// Closes this process to other processes' eyes.
fn hide() -> Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).or_fail(|| "hide the stage from debuggers")
}

/// Cuts this process off from what the agent has set for itself.
fn isolate(process: &Process) -> Result<()> {
    credentials::set_default_rlimits(process.rlimits().as_deref().unwrap_or_default())?;
    setsid().or_fail(|| "make a session")?;
    Ok(())
}

fn prepared_mounts(identity: &Identity) -> Result<HashMap<usize, OwnedFd>> {
    let places = identity.mounts.iter().zip(MOUNTS_FD..);
    places
        .map(|(&place, number)| Ok((place, inherited_fd(number)?)))
        .collect()
}

fn open_terminal(process: &Process) -> Result<Option<Terminal>> {
    if process.terminal() != Some(true) {
        return Ok(None);
    }
    let terminal = Terminal::open(process)?;
    terminal.take_over()?;
    Ok(Some(terminal))
}

fn report_created(sync: &StageSocket, terminal: Option<Terminal>) -> Result<()> {
    let master = terminal.as_ref().map(|terminal| terminal.master.as_fd());
    sync.created(master)?;
    // The agent alone holds the master, or its end would never be seen.
    drop(terminal);
    Ok(())
}

/// Descriptors on the guest's null device move to the container's. A terminal becomes
/// the user's, as pipes are already, so that /dev/stdout can be opened by its name.
fn prepare_stdio(root: &Root, process: &Process) -> Result<()> {
    let uid = Uid::from_raw(process.user().uid());
    for (number, fd) in [stdin(), stdout(), stderr()].into_iter().enumerate() {
        let stat = fstat(fd).or_fail(|| "look at stdio")?;
        let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(1, 3);
        if is_null {
            reopen_null(root, number)?;
        } else if process.terminal() == Some(true) {
            fchown(fd, Some(uid), None).or_fail(|| "give stdio to the user")?;
        }
    }
    Ok(())
}

fn reopen_null(root: &Root, number: usize) -> Result<()> {
    let doing = || "open the container's /dev/null";
    // Non-blocking, as what is there may be a FIFO that nobody writes to.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
    let null = open_null(root, flags).or_fail(doing)?;
    fcntl_setfl(&null, OFlags::empty()).or_fail(doing)?;
    match number {
        0 => dup2_stdin(&null),
        1 => dup2_stdout(&null),
        _ => dup2_stderr(&null),
    }
    .or_fail(doing)
}

fn read_input() -> Result<Vec<u8>> {
    let mut text = Vec::new();
    File::from(inherited_fd(INPUT_FD)?)
        .read_to_end(&mut text)
        .or_fail(|| "read the stage's input")?;
    Ok(text)
}

/// Takes a descriptor over from the agent and keeps it from the container.
fn inherited_fd(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: only borrowed for the next line, which fails where it is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_setfd(fd, FdFlags::CLOEXEC).or_fail(|| format!("descriptor {number} of the stage"))?;
    // SAFETY: open as was just proved, placed by the agent for this stage alone, and
    // taken once: each number is asked for at one place only.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether the program's arguments ask for a stage.
pub fn is_stage(argument: Option<&OsStr>) -> bool {
    argument.and_then(OsStr::to_str) == super::spawn::STAGE_ARG.to_str().ok()
}
