//! All containers, below `/var/lib/lazaret/containers`:
//!
//! ```text
//! <id>/container.json …   one directory for each container
//! names/<name>            a link to the id: what makes a name unique
//! lock                    held while containers come or go
//! ```
//!
//! What is incomplete while the lock is free is the rest of a killed command.

use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use super::atomic::{self, Durability, Lock};
use super::container::{ContainerDirectory, ContainerId, ContainerRecord};
use super::names;
use crate::image::removal::remove_tree;

/// Random names tried before giving up.
const NAME_ATTEMPTS: u32 = 16;

#[derive(Debug, thiserror::Error)]
pub enum ContainersError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("No such container: {0}")]
    NoSuchContainer(String),
    #[error("more than one container has an id that begins with {0}; give more digits")]
    Ambiguous(String),
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You \
         have to remove (or rename) that container to be able to reuse that name."
    )]
    NameInUse { name: String, id: String },
    #[error("no free name was found; give one with --name")]
    NoFreeName,
    #[error("the container record {} is damaged", path.display())]
    Damaged {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(transparent)]
    Name(#[from] names::NameError),
}

#[derive(Debug)]
pub struct Containers {
    root: PathBuf,
}

impl Containers {
    /// Opens the containers below `data_dir`, making the directory if needed.
    pub fn open(data_dir: &Path) -> Result<Self, ContainersError> {
        let root = data_dir.join("containers");
        let names = root.join("names");
        if !names.is_dir() {
            let mut builder = std::fs::DirBuilder::new();
            builder
                .recursive(true)
                .mode(0o700)
                .create(&names)
                .map_err(failed("create", &names))?;
        }
        Ok(Self { root })
    }

    pub fn directory(&self, id: &ContainerId) -> ContainerDirectory {
        ContainerDirectory::new(self.root.join(id.as_str()))
    }

    /// Makes a container's directory and record, under the name it asks for or
    /// one that is made up. The record says which.
    pub fn create(
        &self,
        mut record: ContainerRecord,
        name: Option<&str>,
    ) -> Result<ContainerRecord, ContainersError> {
        let name = name.map(names::check).transpose()?;
        let _lock = self.lock()?;
        record.name = self.reserve(name, &record.id)?;
        let result = self.make(&record);
        if result.is_err() {
            self.discard(&record);
        }
        result.map(|()| record)
    }

    fn make(&self, record: &ContainerRecord) -> Result<(), ContainersError> {
        let directory = self.directory(&record.id);
        for path in [directory.path(), &directory.upper(), &directory.work()] {
            std::fs::DirBuilder::new()
                .mode(0o700)
                .create(path)
                .map_err(failed("create", path))?;
        }
        let upper = directory.upper();
        crate::image::layer::set_mode(&upper).map_err(failed("set the mode of", &upper))?;
        self.save(record)
    }

    fn reserve(&self, name: Option<&str>, id: &ContainerId) -> Result<String, ContainersError> {
        for attempt in 0..NAME_ATTEMPTS {
            let wanted = name.map_or_else(|| names::random(attempt), str::to_owned);
            let link = self.name_link(&wanted);
            match symlink(id.as_str(), &link) {
                Ok(()) => return Ok(wanted),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("create", &link)(error)),
            }
            let owner = std::fs::read_link(&link).map_err(failed("read", &link))?;
            let owner = owner.to_string_lossy().into_owned();
            if !self.root.join(&owner).join("container.json").exists() {
                // Left by a command that was killed before it made the rest.
                std::fs::remove_file(&link).map_err(failed("remove", &link))?;
                symlink(id.as_str(), &link).map_err(failed("create", &link))?;
                return Ok(wanted);
            }
            if name.is_some() {
                return Err(ContainersError::NameInUse {
                    name: wanted,
                    id: owner,
                });
            }
        }
        Err(ContainersError::NoFreeName)
    }

    /// Writes a container's record. Several commands may learn at once how it is;
    /// the lock on its directory lets one write at a time.
    pub fn save(&self, record: &ContainerRecord) -> Result<(), ContainersError> {
        let directory = self.directory(&record.id);
        let path = directory.record();
        let _lock = Lock::directory(directory.path()).map_err(failed("lock", directory.path()))?;
        let bytes = serde_json::to_vec(record).map_err(|source| ContainersError::Damaged {
            path: path.clone(),
            source,
        })?;
        atomic::replace(&path, &bytes, Durability::Process).map_err(failed("write", &path))
    }

    pub fn load(&self, id: &ContainerId) -> Result<ContainerRecord, ContainersError> {
        let path = self.directory(id).record();
        let bytes = std::fs::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ContainersError::NoSuchContainer(id.to_string()),
            _ => failed("read", &path)(error),
        })?;
        serde_json::from_slice(&bytes).map_err(|source| ContainersError::Damaged { path, source })
    }

    /// Finds a container by its name, its id, or the beginning of its id.
    pub fn resolve(&self, name: &str) -> Result<ContainerId, ContainersError> {
        let missing = || ContainersError::NoSuchContainer(name.to_owned());
        let bare = name.strip_prefix('/').unwrap_or(name);
        if let Ok(id) = ContainerId::try_from(bare.to_owned())
            && self.directory(&id).record().exists()
        {
            return Ok(id);
        }
        if names::check(bare).is_ok()
            && let Ok(target) = std::fs::read_link(self.name_link(bare))
            && let Ok(id) = ContainerId::try_from(target.to_string_lossy().into_owned())
            && self.directory(&id).record().exists()
        {
            return Ok(id);
        }
        if bare.is_empty() {
            return Err(missing());
        }
        let mut matching = self
            .ids()?
            .into_iter()
            .filter(|id| id.as_str().starts_with(bare));
        match (matching.next(), matching.next()) {
            (Some(id), None) => Ok(id),
            (Some(_), Some(_)) => Err(ContainersError::Ambiguous(name.to_owned())),
            (None, _) => Err(missing()),
        }
    }

    /// Every container's id, in no order.
    pub fn ids(&self) -> Result<Vec<ContainerId>, ContainersError> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.root).map_err(failed("read", &self.root))? {
            let name = entry.map_err(failed("read", &self.root))?.file_name();
            if let Ok(id) = ContainerId::try_from(name.to_string_lossy().into_owned()) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Every container's record, the newest first. One that goes meanwhile is
    /// left out.
    pub fn list(&self) -> Result<Vec<ContainerRecord>, ContainersError> {
        let mut records = Vec::new();
        for id in self.ids()? {
            match self.load(&id) {
                Ok(record) => records.push(record),
                Err(ContainersError::NoSuchContainer(_)) => {}
                Err(error) => return Err(error),
            }
        }
        records.sort_by(|a: &ContainerRecord, b| b.created.cmp(&a.created));
        Ok(records)
    }

    /// Removes a container's name and all its files.
    pub fn remove(&self, record: &ContainerRecord) -> Result<(), ContainersError> {
        let _lock = self.lock()?;
        let directory = self.directory(&record.id);
        // Without its record a container is gone, whatever is still there.
        let path = directory.record();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &path)(error));
            }
            _ => {}
        }
        self.release_name(record)?;
        remove_tree(directory.path()).map_err(failed("remove", directory.path()))
    }

    /// Removes what killed commands left: directories without a record.
    pub fn remove_incomplete(&self) -> Result<(), ContainersError> {
        let _lock = self.lock()?;
        for id in self.ids()? {
            let directory = self.directory(&id);
            if !directory.record().exists() {
                remove_tree(directory.path()).map_err(failed("remove", directory.path()))?;
            }
        }
        Ok(())
    }

    fn discard(&self, record: &ContainerRecord) {
        // The error that led here is the one to tell.
        let _ = self.release_name(record);
        let _ = remove_tree(self.directory(&record.id).path());
    }

    fn release_name(&self, record: &ContainerRecord) -> Result<(), ContainersError> {
        let link = self.name_link(&record.name);
        match std::fs::read_link(&link) {
            Ok(target) if target == Path::new(record.id.as_str()) => {
                std::fs::remove_file(&link).map_err(failed("remove", &link))
            }
            _ => Ok(()),
        }
    }

    fn name_link(&self, name: &str) -> PathBuf {
        self.root.join("names").join(name)
    }

    fn lock(&self) -> Result<Lock, ContainersError> {
        let path = self.root.join("lock");
        Lock::exclusive(&path).map_err(failed("lock", &path))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ContainersError {
    let path = path.to_owned();
    move |source| ContainersError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::super::container::State;
    use super::*;
    use crate::image::digest::Digest;

    fn record() -> ContainerRecord {
        ContainerRecord {
            id: ContainerId::random(),
            name: String::new(),
            image: "busybox".into(),
            image_id: Digest::of(b""),
            created: "2026-11-21T00:00:00Z".into(),
            command: vec!["true".into()],
            tty: false,
            open_stdin: false,
            detached: false,
            auto_remove: false,
            hostname: "h".into(),
            user: String::new(),
            working_directory: "/".into(),
            environment: Vec::new(),
            read_only: false,
            volumes: Vec::new(),
            stop_signal: None,
            nano_cpus: 0,
            memory: 0,
            attendant: None,
            state: State::Created,
        }
    }

    #[test]
    fn a_container_is_found_by_name_id_and_prefix() {
        let data = tempfile::tempdir().unwrap();
        let containers = Containers::open(data.path()).unwrap();
        let made = containers.create(record(), Some("web")).unwrap();
        for name in ["web", "/web", made.id.as_str(), &made.id.as_str()[..5]] {
            assert_eq!(containers.resolve(name).unwrap(), made.id, "{name}");
        }
        assert_eq!(containers.load(&made.id).unwrap(), made);
        for name in ["we", "nope", "", "../names", "."] {
            let error = containers.resolve(name).unwrap_err();
            assert_eq!(error.to_string(), format!("No such container: {name}"));
        }
    }

    #[test]
    fn commands_that_write_one_record_at_once_do_not_disturb_each_other() {
        let data = tempfile::tempdir().unwrap();
        let containers = Containers::open(data.path()).unwrap();
        let made = containers.create(record(), Some("web")).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        containers.save(&made).unwrap();
                    }
                });
            }
        });
        assert_eq!(containers.load(&made.id).unwrap(), made);
    }

    #[test]
    fn an_ambiguous_prefix_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let containers = Containers::open(data.path()).unwrap();
        for _ in 0..17 {
            containers.create(record(), None).unwrap();
        }
        let ids = containers.ids().unwrap();
        let first = |id: &ContainerId| id.as_str()[..1].to_owned();
        let twice = ids
            .iter()
            .map(first)
            .find(|digit| ids.iter().filter(|id| first(id) == *digit).count() > 1);
        let error = containers.resolve(&twice.unwrap()).unwrap_err();
        assert!(matches!(error, ContainersError::Ambiguous(_)));
    }

    #[test]
    fn a_name_is_used_once_and_free_after_removal() {
        let data = tempfile::tempdir().unwrap();
        let containers = Containers::open(data.path()).unwrap();
        let made = containers.create(record(), Some("web")).unwrap();
        let error = containers.create(record(), Some("web")).unwrap_err();
        assert!(error.to_string().starts_with(&format!(
            "Conflict. The container name \"/web\" is already in use by container \"{}\".",
            made.id
        )));
        assert_eq!(containers.ids().unwrap().len(), 1);
        containers.remove(&made).unwrap();
        containers.create(record(), Some("web")).unwrap();
    }

    #[test]
    fn what_a_killed_command_left_is_no_obstacle() {
        let data = tempfile::tempdir().unwrap();
        let containers = Containers::open(data.path()).unwrap();
        let dead = ContainerId::random();
        symlink(dead.as_str(), containers.name_link("web")).unwrap();
        std::fs::create_dir_all(containers.directory(&dead).upper()).unwrap();
        assert!(containers.resolve("web").is_err());
        let made = containers.create(record(), Some("web")).unwrap();
        containers.remove_incomplete().unwrap();
        assert_eq!(containers.ids().unwrap(), [made.id]);
    }
}
