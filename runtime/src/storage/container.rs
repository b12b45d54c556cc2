//! A container's record, `container.json`: what it is, and how it ended.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::volume::Volume;
use crate::image::digest::{Digest, hex};
use crate::image::workspace::fill_random;

/// Digits of an id that people are shown.
const SHORT_ID: usize = 12;

/// A container's id: 64 hex digits, as Docker's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a container id of 64 hex digits")]
pub struct ContainerIdError(String);

impl ContainerId {
    pub fn random() -> Self {
        let mut bytes = [0; 32];
        fill_random(&mut bytes);
        Self(hex(&bytes))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn short(&self) -> &str {
        &self.0[..SHORT_ID]
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ContainerId {
    type Error = ContainerIdError;

    fn try_from(text: String) -> Result<Self, ContainerIdError> {
        let is_hex = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == 64 && text.bytes().all(is_hex) {
            Ok(Self(text))
        } else {
            Err(ContainerIdError(text))
        }
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

/// A process that cannot be confused with a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`.
    pub start_time: u64,
}

/// Everything `lazaret` knows of a container. Times are RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub struct ContainerRecord {
    pub id: ContainerId,
    pub name: String,
    /// The image's name as it was given.
    pub image: String,
    pub image_id: Digest,
    pub created: String,
    /// The command and its arguments, entrypoint included.
    pub command: Vec<String>,
    pub tty: bool,
    pub open_stdin: bool,
    pub detached: bool,
    pub auto_remove: bool,
    pub hostname: String,
    pub user: String,
    pub working_directory: String,
    pub environment: Vec<String>,
    pub read_only: bool,
    pub volumes: Vec<Volume>,
    /// What `stop` sends, where the image says so.
    pub stop_signal: Option<String>,
    /// CPU limit in billionths of a CPU, as Docker counts; 0 is none.
    pub nano_cpus: u64,
    /// Memory limit in bytes; 0 is none.
    pub memory: u64,
    /// The command that creates or attends the container, while it does.
    pub attendant: Option<ProcessIdentity>,
    pub state: State,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum State {
    Created,
    Running {
        started: String,
    },
    Exited {
        started: Option<String>,
        finished: String,
        exit_code: u32,
        error: String,
    },
}

impl State {
    pub fn is_exited(&self) -> bool {
        matches!(self, Self::Exited { .. })
    }
}

/// The files of a container below its directory.
#[derive(Debug, Clone)]
pub struct ContainerDirectory(PathBuf);

impl ContainerDirectory {
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub fn path(&self) -> &std::path::Path {
        &self.0
    }

    pub fn record(&self) -> PathBuf {
        self.0.join("container.json")
    }

    /// The OCI bundle's specification.
    pub fn spec(&self) -> PathBuf {
        self.0.join("config.json")
    }

    /// What the container writes to its root file system.
    pub fn upper(&self) -> PathBuf {
        self.0.join("upper")
    }

    /// Overlayfs's own workplace.
    pub fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    /// The container's output in Docker's json-file format.
    pub fn log(&self) -> PathBuf {
        self.0.join("container-json.log")
    }

    /// `hostname`, `hosts` and `resolv.conf`, bound into the container.
    pub fn network_file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_64_hex_digits() {
        let id = ContainerId::random();
        assert_eq!(ContainerId::try_from(id.to_string()), Ok(id.clone()));
        assert_ne!(ContainerId::random(), id);
        assert_eq!(id.short().len(), 12);
        for text in ["", "abc", &"g".repeat(64), &"A".repeat(64), &"a".repeat(65)] {
            assert!(ContainerId::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn states_are_read_back() {
        let exited = State::Exited {
            started: None,
            finished: "2026-11-21T00:00:00Z".into(),
            exit_code: 137,
            error: "sandbox process died".into(),
        };
        let text = serde_json::to_string(&exited).unwrap();
        assert!(text.contains(r#""status":"exited""#));
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), exited);
    }
}
