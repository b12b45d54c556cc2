//! Paths of a container that are hidden from it or closed to it (`linux.maskedPaths`,
//! `linux.readonlyPaths`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags, fstat};

use super::kernel::{Reach, attach, clone_tree, new_file_system, set_attributes};
use super::options::Attributes;
use crate::container::path::Root;
use crate::failure::{Failure, OrFail, Result};

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
