//! Reads through a stack of layers as overlayfs will show them: the topmost
//! entry wins, whiteouts hide, opaque directories hide all below.
//! <https://docs.kernel.org/filesystems/overlayfs.html>

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::entry_path::as_path;

pub const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Symbolic links followed before a path counts as a loop, as in the kernel.
const MAX_LINKS: usize = 40;

/// Unpacked layers, the topmost first.
#[derive(Debug)]
pub struct MergedLayers {
    layers: Vec<OwnedFd>,
}

/// An entry of the merged tree, open with `O_PATH`.
#[derive(Debug)]
pub struct MergedEntry {
    pub fd: OwnedFd,
    pub stat: Stat,
}

enum Found {
    Entry(MergedEntry),
    /// Nothing here, and nothing below may show.
    Hidden,
    /// Nothing here; the layers below decide.
    Absent,
}

impl MergedLayers {
    /// Opens the layers' directories, given from the topmost down.
    pub fn open<P: AsRef<Path>>(topmost_first: impl IntoIterator<Item = P>) -> io::Result<Self> {
        let open = |path: P| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Ok(fs::open(path.as_ref(), flags, Mode::empty())?)
        };
        Ok(Self {
            layers: topmost_first
                .into_iter()
                .map(open)
                .collect::<io::Result<_>>()?,
        })
    }

    /// Finds `path`, following no symbolic link.
    pub fn find(&self, path: &[Vec<u8>]) -> io::Result<Option<MergedEntry>> {
        for layer in &self.layers {
            match find_in(layer, path)? {
                Found::Entry(entry) => return Ok(Some(entry)),
                Found::Hidden => return Ok(None),
                Found::Absent => {}
            }
        }
        Ok(None)
    }

    /// Opens the regular file that `path` names in the container, links and
    /// all; the root of the tree is the root of every link.
    pub fn open_file(&self, path: &str) -> io::Result<Option<std::fs::File>> {
        let mut pending: Vec<Vec<u8>> = components_reversed(path.as_bytes());
        let mut resolved: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(component) = pending.pop() {
            match component.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    resolved.pop();
                    continue;
                }
                _ => resolved.push(component),
            }
            let Some(entry) = self.find(&resolved)? else {
                return Ok(None);
            };
            match FileType::from_raw_mode(entry.stat.st_mode) {
                FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let target = fs::readlinkat(&entry.fd, "", Vec::new())?;
                    resolved.pop();
                    if target.as_bytes().starts_with(b"/") {
                        resolved.clear();
                    }
                    pending.extend(components_reversed(target.as_bytes()));
                }
                FileType::RegularFile if pending.is_empty() => return reopen(&entry).map(Some),
                FileType::Directory if !pending.is_empty() => {}
                _ => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// A readable file for an entry found with `O_PATH`.
pub fn reopen(entry: &MergedEntry) -> io::Result<std::fs::File> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", entry.fd.as_raw_fd());
    std::fs::File::open(path)
}

fn components_reversed(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .rev()
        .map(<[u8]>::to_vec)
        .collect()
}

fn find_in(layer: &OwnedFd, path: &[Vec<u8>]) -> io::Result<Found> {
    let mut current = open_at(layer.as_fd(), b".")?;
    let mut absent = Found::Absent;
    for (index, component) in path.iter().enumerate() {
        let next = match open_at(current.as_fd(), component) {
            Ok(next) => next,
            Err(Errno::NOENT) => return Ok(absent),
            Err(error) => return Err(error.into()),
        };
        let stat = fs::fstat(&next)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            return Ok(Found::Hidden);
        }
        if index + 1 == path.len() {
            return Ok(Found::Entry(MergedEntry { fd: next, stat }));
        }
        if kind != FileType::Directory {
            return Ok(Found::Hidden);
        }
        if is_opaque(&next)? {
            absent = Found::Hidden;
        }
        current = next;
    }
    let stat = fs::fstat(&current)?;
    Ok(Found::Entry(MergedEntry { fd: current, stat }))
}

fn open_at(directory: impl AsFd, component: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    fs::openat2(directory, as_path(component), flags, Mode::empty(), resolve)
}

fn is_opaque(directory: &OwnedFd) -> io::Result<bool> {
    use std::os::fd::AsRawFd;
    // An O_PATH descriptor has no attributes of its own; its /proc link does.
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let mut value = [0; 1];
    match fs::getxattr(&path, OPAQUE_XATTR, &mut value) {
        Ok(length) => Ok(length == 1 && value[0] == b'y'),
        // A longer value is another's.
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether `name` below `directory` exists, without following a link.
pub fn kind_at(directory: impl AsFd, name: &[u8]) -> io::Result<Option<(FileType, u64)>> {
    match fs::statat(directory, as_path(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some((FileType::from_raw_mode(stat.st_mode), stat.st_rdev))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
