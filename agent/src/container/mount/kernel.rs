//! The kernel's descriptor-based mount calls: everything is made detached, and then
//! attached to a place that was resolved before.
#![expect(unsafe_code, reason = "mount_setattr has no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::{mem, ptr};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    fspick, move_mount, open_tree,
};

use super::options::{Attributes, Parameter, Propagation};
use crate::failure::errno_text;

/// Whether an attribute or propagation change covers the mounts below as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    One,
    Tree,
}

/// A detached mount of a new file system, or why there is none in the kernel's words.
pub(crate) fn new_file_system(
    kind: &str,
    source: &Path,
    parameters: &[Parameter],
) -> std::result::Result<OwnedFd, String> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|error| format!("file system type {kind}: {}", errno_text(error)))?;
    let context = Context(context);
    fsconfig_set_string(&context.0, "source", source)
        .map_err(|error| context.explain("source", error))?;
    context.configure(parameters)?;
    fsconfig_create(&context.0).map_err(|error| context.explain(kind, error))?;
    fsmount(
        &context.0,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(|error| context.explain(kind, error))
}

/// Whether the file system type may be mounted by this process.
pub(super) fn probe(kind: &str) -> rustix::io::Result<()> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)
}

/// Changes parameters of the file system that is mounted there.
pub(super) fn reconfigure(
    mount: BorrowedFd<'_>,
    parameters: &[Parameter],
) -> std::result::Result<(), String> {
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    let context = fspick(mount, "", flags).map_err(errno_text)?;
    let context = Context(context);
    context.configure(parameters)?;
    fsconfig_reconfigure(&context.0).map_err(|error| context.explain("remount", error))
}

struct Context(OwnedFd);

impl Context {
    fn configure(&self, parameters: &[Parameter]) -> std::result::Result<(), String> {
        for (key, value) in parameters {
            match value {
                Some(value) => fsconfig_set_string(&self.0, key.as_str(), value.as_str()),
                None => fsconfig_set_flag(&self.0, key.as_str()),
            }
            .map_err(|error| self.explain(&format!("option {key}"), error))?;
        }
        Ok(())
    }

    fn explain(&self, what: &str, error: rustix::io::Errno) -> String {
        let error = errno_text(error);
        match kernel_message(self.0.as_fd()) {
            Some(message) => format!("{what}: {error}: {message}"),
            None => format!("{what}: {error}"),
        }
    }
}

/// What the kernel has to say about a failed file system context.
fn kernel_message(context: BorrowedFd<'_>) -> Option<String> {
    let mut buffer = [0_u8; 256];
    let length = rustix::io::read(context, &mut buffer).ok()?;
    let text = String::from_utf8_lossy(&buffer[..length]);
    Some(
        text.trim_start_matches(['e', 'w', 'i', ' '])
            .trim()
            .to_owned(),
    )
}

/// A detached copy of the mount at that path (and of those below it).
pub(crate) fn clone_tree(
    directory: BorrowedFd<'_>,
    path: &Path,
    reach: Reach,
) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    if reach == Reach::Tree {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(directory, path, flags)
}

pub(crate) fn attach(made: BorrowedFd<'_>, place: BorrowedFd<'_>) -> rustix::io::Result<()> {
    move_mount(
        made,
        "",
        place,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

pub(crate) fn set_attributes(
    mount: BorrowedFd<'_>,
    attributes: Attributes,
    reach: Reach,
) -> io::Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    mount_setattr(
        mount,
        &libc::mount_attr {
            attr_set: attributes.set,
            attr_clr: attributes.clear,
            ..UNCHANGED
        },
        reach,
    )
}

/// Shows the mount's files as owned by whom the user namespace maps their owners to.
pub(crate) fn map_ids(mount: &OwnedFd, namespace: &OwnedFd, reach: Reach) -> io::Result<()> {
    let change = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?,
        ..UNCHANGED
    };
    mount_setattr(mount.as_fd(), &change, reach)
}

pub(crate) fn set_propagation(mount: BorrowedFd<'_>, propagation: Propagation) -> io::Result<()> {
    let reach = if propagation.recursive {
        Reach::Tree
    } else {
        Reach::One
    };
    let change = libc::mount_attr {
        propagation: propagation.kind,
        ..UNCHANGED
    };
    mount_setattr(mount, &change, reach)
}

const UNCHANGED: libc::mount_attr = libc::mount_attr {
    attr_set: 0,
    attr_clr: 0,
    propagation: 0,
    userns_fd: 0,
};

fn mount_setattr(mount: BorrowedFd<'_>, change: &libc::mount_attr, reach: Reach) -> io::Result<()> {
    let flags = match reach {
        Reach::One => libc::AT_EMPTY_PATH,
        Reach::Tree => libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
    };
    // SAFETY: the path is a C string and `change` is a mount_attr of the size given;
    // both outlive the call, which writes to neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            ptr::from_ref(change),
            mem::size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
