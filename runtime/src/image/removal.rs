//! Removes trees that an archive or a container made, however deep they are.
//!
//! Each directory met is first moved up next to its siblings at the top, so
//! that depth costs neither stack nor descriptors. No link is followed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::entry_path::as_path;

/// Removes `path` and all below it; nothing there is fine.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match fs::openat(CWD, parent, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        result => result?,
    };
    remove_tree_at(parent.as_fd(), name.as_encoded_bytes())
}

/// Removes `name` of `parent` and all below it; nothing there is fine.
pub fn remove_tree_at(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let top = match open_directory(parent, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return Ok(fs::unlinkat(parent, as_path(name), AtFlags::empty())?);
        }
        Err(error) => return Err(error.into()),
    };
    let mut pending = Vec::new();
    let mut moved = 0;
    clear_files(&top, |child| {
        pending.push(child.to_vec());
        Ok(())
    })?;
    while let Some(child) = pending.pop() {
        let directory = open_directory(top.as_fd(), &child)?;
        clear_files(&directory, |below| {
            pending.push(move_up(&directory, below, &top, &mut moved)?);
            Ok(())
        })?;
        fs::unlinkat(&top, as_path(&child), AtFlags::REMOVEDIR)?;
    }
    Ok(fs::unlinkat(parent, as_path(name), AtFlags::REMOVEDIR)?)
}

/// Removes all but the directories, which `found` is told of.
fn clear_files(
    directory: &OwnedFd,
    mut found: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            match fs::unlinkat(directory, as_path(name), AtFlags::empty()) {
                Ok(()) => continue,
                Err(Errno::ISDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        found(name)?;
    }
    Ok(())
}

fn move_up(from: &OwnedFd, name: &[u8], top: &OwnedFd, moved: &mut u64) -> io::Result<Vec<u8>> {
    loop {
        *moved += 1;
        let fresh = format!(".removed-{moved}").into_bytes();
        match fs::renameat(from, as_path(name), top, as_path(&fresh)) {
            Ok(()) => return Ok(fresh),
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(parent, as_path(name), flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_goes_and_what_its_links_name_stays() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b/.removed-1")).unwrap();
        std::fs::write(tree.join("a/b/file"), "x").unwrap();
        std::fs::write(tree.join(".removed-1"), "x").unwrap();
        std::fs::create_dir(directory.path().join("outside")).unwrap();
        std::os::unix::fs::symlink("../outside", tree.join("link")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(directory.path().join("outside").exists());
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn depth_beyond_any_path_or_descriptor_limit_is_no_obstacle() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        let mut current = fs::open(&tree, OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..5000 {
            fs::mkdirat(&current, "d", Mode::RWXU).unwrap();
            current = fs::openat(&current, "d", OFlags::PATH, Mode::empty()).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
