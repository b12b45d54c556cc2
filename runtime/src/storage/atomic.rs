//! Files replaced whole or not at all, and locks that die with their holder.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Whether a file must be on the disk when the call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Survives the death of processes: enough for what a reboot ends anyway.
    Process,
    /// Survives a power cut.
    Disk,
}

/// Replaces `path` by `bytes` in one step.
pub fn replace(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    // Writers of one file hold its lock, so that one temporary name is enough
    // and a killed writer's leftover is overwritten by the next.
    let temporary = temporary(path);
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    if durability == Durability::Disk {
        file.sync_all()?;
    }
    std::fs::rename(&temporary, path)?;
    if durability == Durability::Disk
        && let Some(parent) = path.parent()
    {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Where a killed writer of `path` may have left something.
pub fn temporary(path: &Path) -> PathBuf {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    temporary.into()
}

/// An advisory lock on a file or directory; the kernel drops it with the
/// process.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock that excludes all others.
    pub fn exclusive(path: &Path) -> io::Result<Self> {
        Self::take(open_lock(path)?, FlockOperation::LockExclusive)
    }

    /// Waits for the exclusive lock of an existing directory.
    pub fn directory(path: &Path) -> io::Result<Self> {
        Self::take(File::open(path)?, FlockOperation::LockExclusive)
    }

    /// Waits for a lock that others may share.
    pub fn shared(path: &Path) -> io::Result<Self> {
        Self::take(open_lock(path)?, FlockOperation::LockShared)
    }

    /// Takes the exclusive lock of an existing file or directory if it is free.
    pub fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        match Self::take(File::open(path)?, FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn take(file: File, operation: FlockOperation) -> io::Result<Self> {
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        for (text, durability) in [("old", Durability::Process), ("new", Durability::Disk)] {
            replace(&path, text.as_bytes(), durability).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_exclusive_lock_excludes_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let shared = Lock::shared(&path).unwrap();
        assert!(Lock::try_exclusive(&path).unwrap().is_none());
        drop(shared);
        let exclusive = Lock::try_exclusive(&path).unwrap();
        assert!(exclusive.is_some());
        assert!(Lock::try_exclusive(&path).unwrap().is_none());
    }
}
