//! A directory for work in progress that is removed when the work ends, or by
//! the next command if the work was killed.

use std::io;
use std::path::{Path, PathBuf};

use super::digest::hex;
use super::removal::remove_tree;
use crate::storage::atomic::Lock;

/// A locked directory below `tmp/`; gone once dropped.
#[derive(Debug)]
pub struct Workspace {
    path: PathBuf,
    _lock: Lock,
}

impl Workspace {
    /// Makes one in `parent`. The caller holds the store's lock, so that no
    /// other command takes the new directory for an abandoned one.
    pub fn create(parent: &Path) -> io::Result<Self> {
        let path = parent.join(random_name());
        std::fs::create_dir(&path)?;
        let lock = Lock::try_exclusive(&path)?.ok_or(io::ErrorKind::AlreadyExists)?;
        Ok(Self { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the directories of killed commands: those that nobody locks.
    pub fn remove_abandoned(parent: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(parent)? {
            let path = entry?.path();
            match Lock::try_exclusive(&path) {
                Ok(Some(_lock)) => remove_tree(&path)?,
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // What cannot be removed now is taken by the next command.
        let _ = remove_tree(&self.path);
    }
}

/// 32 hex digits that nobody can guess.
fn random_name() -> String {
    let mut bytes = [0; 16];
    fill_random(&mut bytes);
    hex(&bytes)
}

/// Fills `bytes` from the kernel's generator.
pub fn fill_random(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        // Interrupted calls give less; others fail only on kernels before 3.17.
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_gone_with_its_owner() {
        let parent = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(parent.path()).unwrap();
        std::fs::write(workspace.path().join("file"), "x").unwrap();
        Workspace::remove_abandoned(parent.path()).unwrap();
        assert!(
            workspace.path().join("file").exists(),
            "a live one is left alone"
        );
        drop(workspace);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn abandoned_ones_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(parent.path().join("dead/deep")).unwrap();
        Workspace::remove_abandoned(parent.path()).unwrap();
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
