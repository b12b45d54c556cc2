//! Hooks of the runtime specification that run on the host: which there are,
//! and how one is run.
//! <https://github.com/opencontainers/runtime-spec/blob/v1.2.0/config.md#posix-platform-hooks>
//!
//! Blocking, for a hook is part of one step of a container's life: whoever runs
//! them chooses the thread, and by it the namespaces.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::signal_mask;

/// As much of a failed hook's output as is told.
const OUTPUT_MAX: u64 = 4096;

/// When in a container's life a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl HookKind {
    pub const ALL: [Self; 6] = [
        Self::Prestart,
        Self::CreateRuntime,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Poststart,
        Self::Poststop,
    ];

    /// Its name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// One program to run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Hook {
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    /// Without it the hook has the environment of whoever runs it.
    #[serde(default)]
    env: Option<Vec<String>>,
    /// Seconds.
    #[serde(default)]
    timeout: Option<i64>,
}

#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("config.json: hooks.{kind} is not a list of hooks")]
    Malformed {
        kind: &'static str,
        source: serde_json::Error,
    },
    #[error("config.json: hooks.{kind} #{number}: {what}")]
    Invalid {
        kind: &'static str,
        number: usize,
        what: &'static str,
    },
    #[error("error running {kind} hook #{number}: cannot run {}", path.display())]
    Run {
        kind: &'static str,
        number: usize,
        path: PathBuf,
        source: io::Error,
    },
    #[error("error running {kind} hook #{number}: {} ended with {status}{output}", path.display())]
    Failed {
        kind: &'static str,
        number: usize,
        path: PathBuf,
        status: ExitStatus,
        output: String,
    },
    #[error(
        "error running {kind} hook #{number}: {} did not end within {seconds} s and was killed",
        path.display()
    )]
    TimedOut {
        kind: &'static str,
        number: usize,
        path: PathBuf,
        seconds: u64,
    },
}

/// What a hook is told of its container, on its standard input.
#[derive(Clone, Debug)]
pub struct HookState<'a> {
    pub id: &'a str,
    /// `creating`, `created`, `running` or `stopped`.
    pub status: &'a str,
    /// The container's process on the host; not of a stopped container.
    pub pid: Option<u32>,
    pub bundle: &'a Path,
    /// The container's `config.json`.
    pub spec: &'a Value,
}

impl HookState<'_> {
    pub fn to_json(&self) -> Vec<u8> {
        let mut state = Map::new();
        let version = self.spec["ociVersion"].as_str().unwrap_or_default();
        state.insert("ociVersion".to_owned(), json!(version));
        state.insert("id".to_owned(), json!(self.id));
        state.insert("status".to_owned(), json!(self.status));
        if let Some(pid) = self.pid {
            state.insert("pid".to_owned(), json!(pid));
        }
        state.insert("bundle".to_owned(), json!(self.bundle));
        if let Some(annotations) = self.spec.get("annotations").filter(|all| all.is_object()) {
            state.insert("annotations".to_owned(), annotations.clone());
        }
        Value::Object(state).to_string().into_bytes()
    }
}

/// The hooks of one kind that a `config.json` asks for, checked.
pub fn hooks_of(spec: &Value, kind: HookKind) -> Result<Vec<Hook>, HookError> {
    let list = &spec["hooks"][kind.name()];
    if list.is_null() {
        return Ok(Vec::new());
    }
    let kind = kind.name();
    let hooks = Vec::<Hook>::deserialize(list);
    let hooks = hooks.map_err(|source| HookError::Malformed { kind, source })?;
    for (number, hook) in hooks.iter().enumerate() {
        if let Some(what) = hook.fault() {
            return Err(HookError::Invalid { kind, number, what });
        }
    }
    Ok(hooks)
}

/// Runs the hooks of one kind, in their order, up to the first that fails.
pub fn run_hooks(spec: &Value, kind: HookKind, state: &HookState<'_>) -> Result<(), HookError> {
    let mut hooks = hooks_of(spec, kind)?;
    if hooks.is_empty() {
        return Ok(());
    }
    if kind == HookKind::CreateContainer {
        // Under runc they are run by what becomes the container's process.
        let inherited = Option::<Vec<String>>::deserialize(&spec["process"]["env"]);
        let inherited = inherited.ok().flatten().unwrap_or_default();
        for hook in &mut hooks {
            hook.env.get_or_insert_with(|| inherited.clone());
        }
    }
    let json = state.to_json();
    for (number, hook) in hooks.iter().enumerate() {
        hook.run(kind, number, &json, state.bundle)?;
    }
    Ok(())
}

/// Runs all hooks of one kind, whatever becomes of each. Returns what failed.
pub fn run_all_hooks(spec: &Value, kind: HookKind, state: &HookState<'_>) -> Vec<HookError> {
    let hooks = match hooks_of(spec, kind) {
        Ok(hooks) => hooks,
        Err(err) => return vec![err],
    };
    let json = state.to_json();
    let hooks = hooks.iter().enumerate();
    hooks
        .filter_map(|(number, hook)| hook.run(kind, number, &json, state.bundle).err())
        .collect()
}

impl Hook {
    fn fault(&self) -> Option<&'static str> {
        if !self.path.is_absolute() {
            Some("path is not absolute")
        } else if self.timeout.is_some_and(|seconds| seconds <= 0) {
            Some("timeout is not greater than zero")
        } else if self.env.iter().flatten().any(|entry| !entry.contains('=')) {
            Some("a variable in env has no value")
        } else {
            None
        }
    }

    fn run(
        &self,
        kind: HookKind,
        number: usize,
        state: &[u8],
        dir: &Path,
    ) -> Result<(), HookError> {
        let kind = kind.name();
        let failed = |source| HookError::Run {
            kind,
            number,
            path: self.path.clone(),
            source,
        };
        // A file, for a pipe's end could be held open beyond the hook's own.
        let output =
            memfd_create("hook-output", MemfdFlags::CLOEXEC).map_err(|err| failed(err.into()))?;
        let mut child = self.spawn(&output, dir).map_err(failed)?;
        let ended = std::thread::scope(|scope| {
            if let Some(mut stdin) = child.stdin.take() {
                // A hook need not read its state; its end closes the pipe.
                scope.spawn(move || drop(stdin.write_all(state)));
            }
            self.wait(&mut child)
        });
        match ended.map_err(failed)? {
            None => Err(HookError::TimedOut {
                kind,
                number,
                path: self.path.clone(),
                seconds: self.timeout.unwrap_or_default().unsigned_abs(),
            }),
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(HookError::Failed {
                kind,
                number,
                path: self.path.clone(),
                status,
                output: told(output),
            }),
        }
    }

    fn spawn(&self, output: &OwnedFd, dir: &Path) -> io::Result<Child> {
        let mut command = Command::new(&self.path);
        if let Some((name, args)) = self.args.split_first() {
            command.arg0(name).args(args);
        }
        if let Some(env) = &self.env {
            let env = env.iter().filter_map(|entry| entry.split_once('='));
            command.env_clear().envs(env);
        }
        command
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?)
            // Its own, so that a hook out of time goes with what it has started.
            .process_group(0);
        if dir.is_dir() {
            command.current_dir(dir);
        }
        signal_mask::unblock(&mut command);
        command.spawn()
    }

    /// Waits for the hook's end; `None` where it had to be killed.
    fn wait(&self, child: &mut Child) -> io::Result<Option<ExitStatus>> {
        let Some(seconds) = self.timeout else {
            return child.wait().map(Some);
        };
        let pid = Pid::from_child(child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let deadline = Instant::now() + Duration::from_secs(seconds.unsigned_abs());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => {}
                Err(err) => return Err(err.into()),
                Ok(0) => break,
                Ok(_) => return child.wait().map(Some),
            }
        }
        // Not reaped yet: neither number can mean anything else.
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        child.wait()?;
        Ok(None)
    }
}

/// What a failed hook has said, in one line.
fn told(output: OwnedFd) -> String {
    let mut file = File::from(output);
    let mut bytes = Vec::new();
    let read = file
        .seek(SeekFrom::Start(0))
        .and_then(|_| file.take(OUTPUT_MAX).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    match read {
        Ok(_) if !text.trim().is_empty() => format!(", output: {}", lines.join("; ")),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
