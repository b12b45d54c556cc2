//! What a sandbox process writes down about itself in `state.json`, for
//! commands that look without asking, and for those that find it dead.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::id::ContainerId;

/// Longest `state.json` that is read: thousands of containers fit.
const STATE_MAX: u64 = 4 * 1024 * 1024;

/// A sandbox as its process last knew it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxState {
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: tells this process from a later one
    /// with its number.
    pub start_time: u64,
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_start_time: Option<u64>,
    /// Where it is not the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<CgroupState>,
    #[serde(default)]
    pub containers: BTreeMap<String, ContainerState>,
}

/// The cgroup of a sandbox on its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupState {
    pub path: PathBuf,
    /// What was made for it, the innermost first.
    pub own: Vec<PathBuf>,
}

/// A container as its sandbox process last knew it. Times are RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    pub status: ContainerStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<u32>,
    /// Why it ended, where it did not end by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    pub created_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exited_at: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerStatus {
    Created,
    Running,
    Paused,
    Stopped,
}

/// Exit status given to containers whose sandbox died: what SIGKILL leaves.
pub const DIED_STATUS: u32 = 137;

impl SandboxState {
    /// Reads a state file; `None` where there is none.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let text = match fs::metadata(path).and_then(|meta| {
            if meta.len() > STATE_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    "state file too large",
                ));
            }
            fs::read(path)
        }) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(err),
        };
        Ok(Some(serde_json::from_slice(&text)?))
    }

    /// Replaces a state file in one step.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("json.new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(&new, path)
    }

    /// Is the process that wrote this still there?
    pub fn is_alive(&self) -> bool {
        process_start_time(self.pid).is_some_and(|start| start == self.start_time)
    }

    /// The state as it is once the process is found dead: every container has
    /// ended with it.
    #[must_use]
    pub fn died(mut self, now: SystemTime) -> Self {
        for container in self.containers.values_mut() {
            if container.status != ContainerStatus::Stopped {
                container.status = ContainerStatus::Stopped;
                container.exit_status = Some(DIED_STATUS);
                container.reason = Some("sandbox process died".to_owned());
                container.exited_at = Some(rfc3339(now));
            }
        }
        self
    }

    pub fn container(&self, id: &ContainerId) -> Option<&ContainerState> {
        self.containers.get(id.as_str())
    }
}

/// Start time of a process in clock ticks since boot, `None` for one that is
/// gone or only waits for its parent.
pub fn process_start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// RFC 3339 with nanoseconds.
pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> SandboxState {
        SandboxState {
            pid: std::process::id(),
            start_time: process_start_time(std::process::id()).unwrap(),
            namespace: "lazaret".into(),
            vmm_pid: Some(7),
            vmm_start_time: Some(9),
            cgroup: None,
            containers: BTreeMap::from([(
                "c".to_owned(),
                ContainerState {
                    status: ContainerStatus::Running,
                    pid: Some(7),
                    exit_status: None,
                    reason: None,
                    oom_killed: false,
                    created_at: rfc3339(SystemTime::UNIX_EPOCH),
                    started_at: None,
                    exited_at: None,
                },
            )]),
        }
    }

    #[test]
    fn state_reads_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        assert_eq!(SandboxState::read(&path).unwrap(), None);
        running().write(&path).unwrap();
        assert_eq!(SandboxState::read(&path).unwrap(), Some(running()));
    }

    #[test]
    fn own_process_is_alive_and_a_reused_pid_is_not() {
        let mut state = running();
        assert!(state.is_alive());
        state.start_time += 1;
        assert!(!state.is_alive());
    }

    #[test]
    fn containers_of_a_dead_sandbox_are_stopped_with_a_reason() {
        let id = ContainerId::new("c").unwrap();
        let dead = running().died(SystemTime::UNIX_EPOCH);
        let container = dead.container(&id).unwrap();
        assert_eq!(container.status, ContainerStatus::Stopped);
        assert_eq!(container.exit_status, Some(137));
        assert_eq!(container.reason.as_deref(), Some("sandbox process died"));
    }

    #[test]
    fn status_is_written_as_the_command_reads_it() {
        let json = serde_json::to_value(running()).unwrap();
        assert_eq!(json["containers"]["c"]["status"], "running");
    }
}
