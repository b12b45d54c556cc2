//! One entry of the spec's `mounts`: made detached with the kernel's descriptor-based
//! mount calls, then attached to a destination that was resolved inside the root.
#![expect(unsafe_code, reason = "mount_setattr has no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::{mem, ptr};

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType, OFlags, fstat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::mount_options::{Attributes, Bind, MountOptions, Propagation};
use super::path::Root;
use crate::failure::{Failure, OrFail, Result, errno_text};

/// Whether an attribute or propagation change covers the mounts below as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    One,
    Tree,
}

/// Makes one mount of the spec below `root`.
pub(crate) fn mount(root: &Root, mount: &Mount) -> Result<()> {
    let destination = mount.destination();
    if destination.components().count() < 2 {
        return Err(Failure::invalid(format!(
            "mount destination {} is not below the root",
            destination.display()
        )));
    }
    let options = MountOptions::parse(mount.options().as_deref().unwrap_or_default())?;
    let kind = mount.typ().as_deref().unwrap_or("none");
    let (made, place) = if options.bind.is_some() || kind == "bind" {
        bind(root, mount, &options)?
    } else {
        file_system(root, mount, kind, &options)?
    };
    let doing = || format!("mount {}", destination.display());
    attach(made.as_fd(), place.as_fd()).or_fail(doing)?;
    for propagation in &options.propagation {
        set_propagation(made.as_fd(), *propagation).or_fail(doing)?;
    }
    Ok(())
}

fn bind(root: &Root, mount: &Mount, options: &MountOptions) -> Result<(OwnedFd, OwnedFd)> {
    let destination = mount.destination();
    let Some(source) = mount.source() else {
        return Err(Failure::invalid(format!(
            "bind mount on {} has no source",
            destination.display()
        )));
    };
    if let Some((key, _)) = options.parameters.first() {
        return Err(Failure::unsupported(format!(
            "option {key} of the bind mount on {}",
            destination.display()
        )));
    }
    let reach = match options.bind {
        Some(Bind::Recursive) => Reach::Tree,
        Some(Bind::Single) | None => Reach::One,
    };
    let doing = || format!("bind {} on {}", source.display(), destination.display());
    let made = clone_tree(CWD, source, reach).or_fail(doing)?;
    let is_directory = fstat(&made)
        .map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
        .or_fail(doing)?;
    let place = if is_directory {
        root.make_dir_all(destination)?
    } else {
        root.make_file(destination)?
    };
    set_attributes(made.as_fd(), options.attributes, Reach::One).or_fail(doing)?;
    set_attributes(made.as_fd(), options.recursive_attributes, Reach::Tree).or_fail(doing)?;
    Ok((made, place))
}

fn file_system(
    root: &Root,
    mount: &Mount,
    kind: &str,
    options: &MountOptions,
) -> Result<(OwnedFd, OwnedFd)> {
    let destination = mount.destination();
    // Version 1 hierarchies do not exist in the guest; engines ask by the old name.
    let kind = if kind == "cgroup" { "cgroup2" } else { kind };
    let place = root.make_dir_all(destination)?;
    let mut parameters = options.parameters.clone();
    if kind == "tmpfs" && !parameters.iter().any(|(key, _)| key == "mode") {
        // A tmpfs keeps the mode of the directory it covers, as in other runtimes.
        let covered = fstat(&place).or_fail(|| format!("look at {}", destination.display()))?;
        let mode = format!("{:o}", covered.st_mode & 0o7777);
        parameters.push(("mode".to_owned(), Some(mode)));
    }
    let source = mount.source().as_deref().unwrap_or(Path::new(kind));
    let made = new_file_system(kind, source, &parameters)
        .map_err(|text| Failure::internal(format!("mount {}: {text}", destination.display())))?;
    let doing = || format!("mount {}", destination.display());
    set_attributes(made.as_fd(), options.attributes, Reach::One).or_fail(doing)?;
    set_attributes(made.as_fd(), options.recursive_attributes, Reach::Tree).or_fail(doing)?;
    Ok((made, place))
}

/// A detached mount of a new file system, or why there is none in the kernel's words.
pub(crate) fn new_file_system(
    kind: &str,
    source: &Path,
    parameters: &[(String, Option<String>)],
) -> std::result::Result<OwnedFd, String> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|error| format!("file system type {kind}: {}", errno_text(error)))?;
    let explain = |what: &str, error: rustix::io::Errno| {
        let error = errno_text(error);
        match kernel_message(context.as_fd()) {
            Some(message) => format!("{what}: {error}: {message}"),
            None => format!("{what}: {error}"),
        }
    };
    fsconfig_set_string(&context, "source", source).map_err(|error| explain("source", error))?;
    for (key, value) in parameters {
        match value {
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str()),
            None => fsconfig_set_flag(&context, key.as_str()),
        }
        .map_err(|error| explain(&format!("option {key}"), error))?;
    }
    fsconfig_create(&context).map_err(|error| explain(kind, error))?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(|error| explain(kind, error))
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
    mount_setattr(mount, attributes, 0, reach)
}

pub(crate) fn set_propagation(mount: BorrowedFd<'_>, propagation: Propagation) -> io::Result<()> {
    let reach = if propagation.recursive {
        Reach::Tree
    } else {
        Reach::One
    };
    mount_setattr(mount, Attributes::default(), propagation.kind, reach)
}

fn mount_setattr(
    mount: BorrowedFd<'_>,
    attributes: Attributes,
    propagation: u64,
    reach: Reach,
) -> io::Result<()> {
    let arguments = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation,
        userns_fd: 0,
    };
    let flags = match reach {
        Reach::One => libc::AT_EMPTY_PATH,
        Reach::Tree => libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
    };
    // SAFETY: the path is a C string and `arguments` is a mount_attr of the size given;
    // both outlive the call, which writes to neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            ptr::from_ref(&arguments),
            mem::size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Hides what a path of the container shows; a path that is not there needs nothing.
pub(crate) fn mask(root: &Root, path: &Path) -> Result<()> {
    let doing = || format!("mask {}", path.display());
    let Some(place) = existing(root, path)? else {
        return Ok(());
    };
    let stat = fstat(&place).or_fail(doing)?;
    let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let empty = new_file_system("tmpfs", Path::new("tmpfs"), &[])
            .map_err(|text| Failure::internal(format!("{}: {text}", doing())))?;
        set_attributes(empty.as_fd(), Attributes::READ_ONLY, Reach::One).or_fail(doing)?;
        empty
    } else {
        let null = open_null(root, OFlags::PATH).or_fail(doing)?;
        clone_tree(null.as_fd(), Path::new(""), Reach::One).or_fail(doing)?
    };
    attach(cover.as_fd(), place.as_fd()).or_fail(doing)
}

/// Makes a path of the container read-only, mounts below it included.
pub(crate) fn make_read_only(root: &Root, path: &Path) -> Result<()> {
    let doing = || format!("make {} read-only", path.display());
    let Some(place) = existing(root, path)? else {
        return Ok(());
    };
    let made = clone_tree(place.as_fd(), Path::new(""), Reach::Tree).or_fail(doing)?;
    set_attributes(made.as_fd(), Attributes::READ_ONLY, Reach::Tree).or_fail(doing)?;
    attach(made.as_fd(), place.as_fd()).or_fail(doing)
}

fn existing(root: &Root, path: &Path) -> Result<Option<OwnedFd>> {
    match root.place(path) {
        Ok(place) => Ok(Some(place)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error).or_fail(|| format!("look at {}", path.display())),
    }
}

/// The container's /dev/null, proved to be the null device.
pub(crate) fn open_null(root: &Root, flags: OFlags) -> io::Result<OwnedFd> {
    let null = root.open(Path::new("/dev/null"), flags)?;
    let stat = fstat(&null)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    if is_null {
        Ok(null)
    } else {
        Err(io::Error::other("/dev/null is not the null device"))
    }
}
