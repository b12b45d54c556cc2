//! Bind mounts that are all they are to be before they are attached. What is mounted
//! below the shared directory is in the VMM's jail at once, as a mount of its own there:
//! changed afterwards, it would change here alone, and read-only would be the word of
//! the guest's kernel.

#![expect(unsafe_code, reason = "mount_setattr has no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// Of mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    One,
    /// Those below as well.
    Tree,
}

/// A copy of a mount, or of a tree of them, that hangs nowhere yet.
#[derive(Debug)]
pub(super) struct MountTree(OwnedFd);

impl MountTree {
    /// Links are followed.
    pub(super) fn copy(source: &Path, reach: Reach) -> Result<Self, Errno> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if reach == Reach::Tree {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        open_tree(CWD, source, flags).map(Self)
    }

    pub(super) fn make_read_only(&self, reach: Reach) -> Result<(), Errno> {
        let change = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_RDONLY,
            ..UNCHANGED
        };
        self.change(&change, reach)
    }

    /// What is mounted below the source from now on stays away.
    pub(super) fn make_private(&self) -> Result<(), Errno> {
        let change = libc::mount_attr {
            propagation: libc::MS_PRIVATE,
            ..UNCHANGED
        };
        self.change(&change, Reach::Tree)
    }

    pub(super) fn attach(self, target: &Path) -> Result<(), Errno> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(self.0.as_fd(), "", CWD, target, flags)
    }

    fn change(&self, change: &libc::mount_attr, reach: Reach) -> Result<(), Errno> {
        let flags = match reach {
            Reach::One => libc::AT_EMPTY_PATH,
            Reach::Tree => libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
        };
        // SAFETY: the path is a C string and `change` is a mount_attr of the size given;
        // both outlive the call, which writes to neither.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                flags,
                std::ptr::from_ref(change),
                size_of::<libc::mount_attr>(),
            )
        };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

const UNCHANGED: libc::mount_attr = libc::mount_attr {
    attr_set: 0,
    attr_clr: 0,
    propagation: 0,
    userns_fd: 0,
};
