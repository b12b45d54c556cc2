//! Ownership, mode, extended attributes and times of an unpacked entry.
//!
//! The order matters: a change of owner clears set-user-id bits and file
//! capabilities, and every change moves the times.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{self, AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::entry_path::as_path;
use super::tar_reader::Entry;

/// Attributes with a meaning to overlayfs, which a layer must not speak for.
const RESERVED_XATTRS: &[u8] = b"trusted.overlay.";

#[derive(Debug, thiserror::Error)]
pub enum AttributeError {
    #[error("its {kind} id {id} is out of range")]
    Id { kind: &'static str, id: u64 },
    #[error("it sets the attribute {0}, which overlayfs reserves for itself")]
    Reserved(String),
    #[error("cannot set its attribute {name}")]
    Xattr {
        name: String,
        source: std::io::Error,
    },
    #[error("cannot set its {what}")]
    Set {
        what: &'static str,
        source: std::io::Error,
    },
}

/// Everything but the kind, the name and the data of an entry.
#[derive(Debug, Clone)]
pub struct Attributes {
    pub uid: Uid,
    pub gid: Gid,
    pub mode: Mode,
    pub times: Timestamps,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    pub fn of(entry: &mut Entry) -> Result<Self, AttributeError> {
        let xattrs = std::mem::take(&mut entry.xattrs);
        for (name, _) in &xattrs {
            if name.starts_with(RESERVED_XATTRS) {
                return Err(AttributeError::Reserved(
                    String::from_utf8_lossy(name).into_owned(),
                ));
            }
        }
        Ok(Self {
            uid: Uid::from_raw(id("user", entry.uid)?),
            gid: Gid::from_raw(id("group", entry.gid)?),
            mode: Mode::from_raw_mode(entry.mode & 0o7777),
            times: timestamps(entry.mtime),
            xattrs,
        })
    }

    /// Applies all to an open file or directory. The times come last, so that
    /// a directory's have to be set again once it is filled.
    pub fn apply_to(&self, file: BorrowedFd<'_>) -> Result<(), AttributeError> {
        fs::fchown(file, Some(self.uid), Some(self.gid)).map_err(set("owner"))?;
        fs::fchmod(file, self.mode).map_err(set("mode"))?;
        for (name, value) in &self.xattrs {
            let result = fs::fsetxattr(file, as_path(name), value, XattrFlags::empty());
            result.map_err(xattr(name))?;
        }
        fs::futimens(file, &self.times).map_err(set("times"))
    }

    /// Applies all to an entry that cannot be opened: a link or a device.
    pub fn apply_at(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        is_link: bool,
    ) -> Result<(), AttributeError> {
        let path = as_path(name);
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        fs::chownat(parent, path, Some(self.uid), Some(self.gid), no_follow)
            .map_err(set("owner"))?;
        if !is_link {
            fs::chmodat(parent, path, self.mode, AtFlags::empty()).map_err(set("mode"))?;
        }
        for (key, value) in &self.xattrs {
            let mut through = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
            through.push(path);
            let result = fs::lsetxattr(&through, as_path(key), value, XattrFlags::empty());
            result.map_err(xattr(key))?;
        }
        fs::utimensat(parent, path, &self.times, no_follow).map_err(set("times"))
    }
}

/// Copies the extended attributes of one open entry to another.
pub fn copy_xattrs(from: impl AsFd, to: BorrowedFd<'_>) -> Result<(), AttributeError> {
    let source = format!("/proc/self/fd/{}", from.as_fd().as_raw_fd());
    let mut names = vec![0; 64 * 1024];
    let length = match fs::listxattr(&source, &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(error) => return Err(set("attributes")(error)),
    };
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        if name.starts_with(RESERVED_XATTRS) {
            continue;
        }
        let mut value = vec![0; 64 * 1024];
        let length = fs::getxattr(&source, as_path(name), &mut value).map_err(xattr(name))?;
        let result = fs::fsetxattr(to, as_path(name), &value[..length], XattrFlags::empty());
        result.map_err(xattr(name))?;
    }
    Ok(())
}

fn id(kind: &'static str, id: u64) -> Result<u32, AttributeError> {
    // The highest id means "leave as it is" to chown.
    match u32::try_from(id) {
        Ok(small) if small != u32::MAX => Ok(small),
        _ => Err(AttributeError::Id { kind, id }),
    }
}

fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn set(what: &'static str) -> impl Fn(Errno) -> AttributeError {
    move |error| AttributeError::Set {
        what,
        source: error.into(),
    }
}

fn xattr(name: &[u8]) -> impl Fn(Errno) -> AttributeError {
    move |error| AttributeError::Xattr {
        name: String::from_utf8_lossy(name).into_owned(),
        source: error.into(),
    }
}
