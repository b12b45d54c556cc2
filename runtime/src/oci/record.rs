//! What is known of the containers of one root: a directory for each, with a
//! record, a copy of the `config.json` it was made from, and a lock.
//!
//! The directory is the reservation of the id. Who makes or removes a container
//! holds the lock on it; whoever else looks sees a record that is replaced whole.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::failure::OciError;
use super::names::ContainerId;
use crate::sandbox::id::SandboxId;
use crate::storage::atomic::{Durability, Lock, replace, temporary};

/// A root's containers.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    is_default: bool,
}

/// A container as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: String,
    /// The name of its sandbox: told apart by the root's path as it was spelled then.
    pub(super) sandbox: SandboxId,
    pub(super) oci_version: String,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    /// RFC 3339.
    pub(super) created: String,
    /// User id of whoever made it.
    pub(super) owner: u32,
    #[serde(default)]
    pub(super) annotations: Map<String, Value>,
    /// The container's process on the host, once there is one.
    pub(super) process: Option<Process>,
    /// Whether `create` has come to its end.
    pub(super) complete: bool,
}

/// The sandbox process: a number, and what tells it from the number's next owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) start_time: u64,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

impl Root {
    pub(super) fn new(path: PathBuf, default: &Path) -> Self {
        let is_default = path == default;
        Self { path, is_default }
    }

    /// What the sandbox of a container to be made here is called.
    pub(super) fn sandbox(&self, id: &ContainerId) -> SandboxId {
        id.sandbox(&self.path, self.is_default)
    }

    /// The place of a container, whether there is one or not.
    pub(super) fn place(&self, id: ContainerId) -> Place {
        Place {
            path: self.path.join(id.as_str()),
            id,
        }
    }

    /// Ids of all containers; what else lies there is passed over.
    pub(super) fn list(&self) -> Result<Vec<ContainerId>, OciError> {
        let failed = |source| OciError::Io {
            verb: "list",
            path: self.path.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.map_err(failed)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let name = entry.file_name();
            if let Some(Ok(id)) = name.to_str().filter(|_| is_dir).map(ContainerId::new) {
                ids.push(id);
            }
        }
        ids.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(ids)
    }
}

/// A container's directory.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) id: ContainerId,
    path: PathBuf,
}

impl Place {
    fn record(&self) -> PathBuf {
        self.path.join("state.json")
    }

    fn spec(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// Takes the id: makes the directory, and locks it.
    pub(super) fn reserve(&self) -> Result<Lock, OciError> {
        let failed = |source| OciError::Io {
            verb: "create",
            path: self.path.clone(),
            source,
        };
        if let Some(root) = self.path.parent() {
            let mut builder = fs::DirBuilder::new();
            let made = builder.mode(0o700).recursive(true).create(root);
            made.map_err(failed)?;
        }
        match fs::DirBuilder::new().mode(0o711).create(&self.path) {
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => return Err(OciError::Exists),
            result => result.map_err(failed)?,
        }
        // Whoever was quicker has taken it for one that was left behind.
        self.lock().map_err(|err| match err {
            OciError::NotExist => OciError::Exists,
            err => err,
        })
    }

    /// Waits for the lock of a container that is there.
    pub(super) fn lock(&self) -> Result<Lock, OciError> {
        let failed = |source| OciError::Io {
            verb: "lock",
            path: self.path.clone(),
            source,
        };
        loop {
            let before = match fs::metadata(&self.path) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => {
                    return Err(OciError::NotExist);
                }
                result => result.map_err(failed)?,
            };
            let lock = match Lock::directory(&self.path) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => {
                    return Err(OciError::NotExist);
                }
                result => result.map_err(failed)?,
            };
            // The one that was locked may have been removed, and made anew.
            match fs::metadata(&self.path) {
                Ok(after) if after.ino() == before.ino() && after.dev() == before.dev() => {
                    return Ok(lock);
                }
                _ => drop(lock),
            }
        }
    }

    /// Whether somebody is making or removing the container now.
    pub(super) fn is_locked(&self) -> bool {
        matches!(Lock::try_exclusive(&self.path), Ok(None))
    }

    pub(super) fn save(&self, record: &Record) -> Result<(), OciError> {
        write(&self.record(), &to_bytes(record))
    }

    /// Keeps the `config.json` as it was: later changes do not count.
    pub(super) fn save_spec(&self, spec: &Value) -> Result<(), OciError> {
        write(&self.spec(), &to_bytes(spec))
    }

    /// The record; an id without one is of no container.
    pub(super) fn load(&self) -> Result<Record, OciError> {
        read(&self.record())
    }

    pub(super) fn load_spec(&self) -> Result<Value, OciError> {
        read(&self.spec())
    }

    pub(super) fn remove(&self) -> Result<(), OciError> {
        removed(&self.path, fs::remove_dir_all(&self.path))
    }

    /// Removes what was reserved and never became a container. A directory that holds
    /// anything else is none of ours.
    pub(super) fn remove_reservation(&self) -> Result<(), OciError> {
        for file in [self.record(), self.spec()] {
            for file in [temporary(&file), file] {
                removed(&file, fs::remove_file(&file))?;
            }
        }
        match fs::remove_dir(&self.path) {
            Err(err) if err.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            result => removed(&self.path, result),
        }
    }
}

fn removed(path: &Path, result: io::Result<()>) -> Result<(), OciError> {
    match result {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| OciError::Io {
            verb: "remove",
            path: path.to_owned(),
            source,
        }),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), OciError> {
    replace(path, bytes, Durability::Process).map_err(|source| OciError::Io {
        verb: "write",
        path: path.to_owned(),
        source,
    })
}

fn to_bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("records have no keys but strings")
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, OciError> {
    let bytes = match fs::read(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Err(OciError::NotExist),
        result => result.map_err(|source| OciError::Io {
            verb: "read",
            path: path.to_owned(),
            source,
        })?,
    };
    serde_json::from_slice(&bytes).map_err(|source| OciError::Json {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(root: &Path) -> Place {
        let root = Root::new(root.join("oci"), &root.join("oci"));
        root.place(ContainerId::new("a").unwrap())
    }

    fn record() -> Record {
        Record {
            id: "a".to_owned(),
            sandbox: SandboxId::new("a").unwrap(),
            oci_version: "1.2.0".to_owned(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: "2026-01-01T00:00:00Z".to_owned(),
            owner: 0,
            annotations: Map::new(),
            process: Some(Process {
                pid: 7,
                start_time: 9,
            }),
            complete: true,
        }
    }

    #[test]
    fn an_id_is_taken_once_and_free_again_after_removal() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        assert!(matches!(place.load(), Err(OciError::NotExist)));
        assert!(matches!(place.lock(), Err(OciError::NotExist)));
        let held = place.reserve().unwrap();
        assert!(place.is_locked());
        assert!(matches!(place.reserve(), Err(OciError::Exists)));
        place.save(&record()).unwrap();
        assert_eq!(place.load().unwrap(), record());
        place.remove().unwrap();
        drop(held);
        place.reserve().unwrap();
    }

    #[test]
    fn what_was_only_reserved_goes_and_a_directory_of_others_stays() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let _held = place.reserve().unwrap();
        place.save_spec(&Value::Null).unwrap();
        fs::write(temporary(&place.record()), "half").unwrap();
        place.remove_reservation().unwrap();
        assert!(!place.path.exists());
        place.remove_reservation().unwrap();
        fs::create_dir(&place.path).unwrap();
        fs::write(place.path.join("letter"), "").unwrap();
        place.remove_reservation().unwrap();
        assert!(place.path.join("letter").exists());
    }

    #[test]
    fn who_waited_for_a_container_that_went_finds_none() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let held = place.reserve().unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| place.lock());
            place.remove().unwrap();
            drop(held);
            assert!(matches!(waiter.join().unwrap(), Err(OciError::NotExist)));
        });
    }

    #[test]
    fn only_directories_with_the_name_of_a_container_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path().join("oci"), Path::new("/other"));
        assert_eq!(root.list().unwrap(), []);
        fs::create_dir_all(dir.path().join("oci/b")).unwrap();
        fs::create_dir_all(dir.path().join("oci/a")).unwrap();
        fs::create_dir_all(dir.path().join("oci/no good")).unwrap();
        fs::write(dir.path().join("oci/c"), "").unwrap();
        let ids = root.list().unwrap();
        let ids: Vec<&str> = ids.iter().map(ContainerId::as_str).collect();
        assert_eq!(ids, ["a", "b"]);
    }
}
