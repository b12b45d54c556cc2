//! Hooks of the container's own side: `startContainer`, run inside it with the rights
//! of its process, right before that executes its program. The other kinds are the
//! host's (runtime-spec config.md, "POSIX-platform Hooks").

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use oci_spec::runtime::{Hook, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process_group, pidfd_open};
use serde_json::json;

use super::environment::Environment;
use super::input::Identity;
use crate::failure::{Code, Failure, OrFail, Result};

/// What is kept of a failed hook's output.
const OUTPUT_MAX: u64 = 2048;

/// Runs the hooks in order; the first that fails ends it. One without an environment
/// has that of the container's process.
pub(crate) fn start_container(
    spec: &Spec,
    identity: &Identity,
    environment: &Environment,
) -> Result<()> {
    let hooks = spec.hooks().as_ref();
    let Some(hooks) = hooks.and_then(|hooks| hooks.start_container().as_deref()) else {
        return Ok(());
    };
    let mut state = json!({
        "ociVersion": spec.version(),
        "id": identity.name,
        "status": "created",
        "pid": getpid().as_raw_nonzero().get(),
        "bundle": identity.bundle,
    });
    if let Some(annotations) = spec.annotations() {
        state["annotations"] = json!(annotations);
    }
    let state = state.to_string();
    for (number, hook) in hooks.iter().enumerate() {
        run(hook, &state, environment).map_err(|failure| {
            let message = format!("error running startContainer hook #{number}: {failure}");
            Failure::new(failure.code, message)
        })?;
    }
    Ok(())
}

fn run(hook: &Hook, state: &str, environment: &Environment) -> Result<()> {
    let path = hook.path();
    if !path.is_absolute() {
        let message = format!("path {} is not absolute", path.display());
        return Err(Failure::invalid(message));
    }
    let timeout = match hook.timeout() {
        None => None,
        Some(seconds) => Some(
            seconds
                .try_into()
                .ok()
                .filter(|&seconds| seconds > 0)
                .ok_or_else(|| {
                    Failure::invalid(format!("timeout {seconds} is not greater than zero"))
                })?,
        ),
    };
    // Files and not pipes: neither side waits for the other.
    let input = memory_file(state)?;
    let mut output = memory_file("")?;
    let copy = || output.try_clone().or_fail(|| "prepare the hook's output");
    let mut command = Command::new(path);
    if let Some((name, arguments)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(arguments);
    }
    command.env_clear();
    match hook.env() {
        Some(own) => command.envs(own.iter().filter_map(|entry| entry.split_once('='))),
        None => command.envs(environment.variables()),
    };
    command
        .stdin(input)
        .stdout(copy()?)
        .stderr(copy()?)
        .process_group(0);
    let child = command
        .spawn()
        .or_fail(|| format!("execute {}", path.display()))?;
    let status = wait(child, timeout.map(Duration::from_secs))?;
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    output
        .rewind()
        .and_then(|()| output.take(OUTPUT_MAX).read_to_end(&mut text))
        .or_fail(|| "read the hook's output")?;
    let text = String::from_utf8_lossy(&text);
    Err(Failure::internal(format!(
        "{status}, output: {}",
        text.trim()
    )))
}

fn wait(mut child: Child, timeout: Option<Duration>) -> Result<ExitStatus> {
    let doing = || "wait for the hook";
    if let Some(timeout) = timeout
        && !ends_within(&child, timeout)?
    {
        // The hook may have started others; its group is its own.
        let group = Pid::from_child(&child);
        let _ = kill_process_group(group, Signal::KILL);
        child.wait().or_fail(doing)?;
        let message = format!("it did not end within {} s", timeout.as_secs());
        return Err(Failure::new(Code::Internal, message));
    }
    child.wait().or_fail(doing)
}

fn ends_within(child: &Child, timeout: Duration) -> Result<bool> {
    let doing = || "wait for the hook";
    let pidfd: OwnedFd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).or_fail(doing)?;
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    let mut ended = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    Ok(poll(&mut ended, Some(&timeout)).or_fail(doing)? > 0)
}

fn memory_file(text: &str) -> Result<File> {
    let doing = || "prepare the hook's state";
    let mut file = File::from(memfd_create("hook", MemfdFlags::CLOEXEC).or_fail(doing)?);
    file.write_all(text.as_bytes()).or_fail(doing)?;
    file.rewind().or_fail(doing)?;
    Ok(file)
}
