//! Unpacks one layer into a directory, whatever the archive says.
//!
//! Every name is resolved by the kernel below the layer's directory
//! (`openat2` with `RESOLVE_BENEATH`), so that neither `..` nor a link made by
//! an earlier entry leads out. Whiteouts become overlayfs's own.
//! <https://github.com/opencontainers/image-spec/blob/main/layer.md>

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{
    self, AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use super::attributes::{AttributeError, Attributes, copy_xattrs};
use super::budget::{Budget, BudgetError};
use super::entry_path::{EntryPath, PathError, as_path, relative};
use super::merged::{MergedEntry, MergedLayers, OPAQUE_XATTR, kind_at, reopen};
use super::removal::remove_tree_at;
use super::tar_reader::{Entry, EntryKind, TarError, TarReader};
use crate::config::ImageLimits;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Files of AUFS itself, which old archives carry; one has a meaning.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";

const COPY_BUFFER: usize = 128 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error(transparent)]
    Budget(#[from] BudgetError),
    #[error("the archive's entry `{name}` is refused")]
    Name { name: String, source: PathError },
    #[error("the archive's entry `{name}` links to `{target}`, which is refused")]
    LinkName {
        name: String,
        target: String,
        source: PathError,
    },
    #[error("the archive's entry `{0}` goes through a link that leads out of the layer")]
    Escape(String),
    #[error("the archive's entry `{name}` links to `{target}`, which does not exist")]
    LinkTarget { name: String, target: String },
    #[error("the archive's entry `{name}` has the type `{kind}`, which is not supported")]
    Kind { name: String, kind: char },
    #[error("the archive replaces the root directory by something else")]
    Root,
    #[error("the archive's entry `{name}` is not valid")]
    Attributes {
        name: String,
        source: AttributeError,
    },
    #[error("cannot unpack the archive's entry `{name}`")]
    Io { name: String, source: io::Error },
    #[error("cannot open the layer's directory")]
    Open(#[source] io::Error),
}

/// What a layer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes of all files, as image sizes count them.
    pub bytes: u64,
    /// Whether the layer took something from the layers below it, and so
    /// cannot be shared with an image that has others there.
    pub needs_lower: bool,
    /// Whether the archive ended as tar ends it.
    pub end_seen: bool,
}

/// Unpacks `archive` into the empty directory `into`, on top of `lower`.
pub fn unpack(
    archive: impl Read,
    into: &Path,
    lower: &MergedLayers,
    limits: ImageLimits,
) -> Result<Unpacked, UnpackError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = fs::openat(CWD, into, flags, Mode::empty())
        .map_err(|error| UnpackError::Open(error.into()))?;
    let mut unpacker = Unpacker {
        root,
        lower,
        budget: Budget::new(limits),
        needs_lower: false,
        parent: None,
        buffer: vec![0; COPY_BUFFER],
    };
    let mut reader = TarReader::new(archive);
    while let Some(entry) = reader.next_entry()? {
        unpacker.entry(entry, &mut reader)?;
    }
    unpacker.leave_parent()?;
    Ok(Unpacked {
        bytes: unpacker.budget.bytes(),
        needs_lower: unpacker.needs_lower,
        end_seen: reader.end_seen(),
    })
}

struct Unpacker<'a> {
    root: OwnedFd,
    lower: &'a MergedLayers,
    budget: Budget,
    needs_lower: bool,
    /// The directory of the entry before: most entries share it.
    parent: Option<Rc<Parent>>,
    buffer: Vec<u8>,
}

/// A directory being filled, with the times that filling it must not change.
struct Parent {
    components: Vec<Vec<u8>>,
    directory: OwnedFd,
    times: Timestamps,
}

impl Parent {
    fn new(components: &[Vec<u8>], directory: OwnedFd) -> Result<Self, Errno> {
        let times = times_of(&fs::fstat(&directory)?);
        Ok(Self {
            components: components.to_vec(),
            directory,
            times,
        })
    }

    fn restore_times(&self) -> Result<(), Errno> {
        fs::futimens(&self.directory, &self.times)
    }
}

impl Unpacker<'_> {
    fn entry(&mut self, mut entry: Entry, data: &mut impl Read) -> Result<(), UnpackError> {
        self.budget.add_entry(self.root.as_fd())?;
        let path = EntryPath::of_member(&entry.path).map_err(|source| UnpackError::Name {
            name: String::from_utf8_lossy(&entry.path).into_owned(),
            source,
        })?;
        let attributes = Attributes::of(&mut entry).map_err(|source| UnpackError::Attributes {
            name: path.display(),
            source,
        })?;
        let Some((parent, name)) = path.split_last() else {
            if entry.kind != EntryKind::Directory {
                return Err(UnpackError::Root);
            }
            self.leave_parent()?;
            return finish(&path, &attributes, self.root.as_fd());
        };
        if is_aufs_metadata(name) {
            return Ok(());
        }
        let parent = self.enter_parent(&path, parent)?;
        if name.starts_with(WHITEOUT_PREFIX) {
            return whiteout(&path, &parent.directory, name);
        }
        self.place(&path, name, &entry, &attributes, &parent.directory, data)
    }

    fn place(
        &mut self,
        path: &EntryPath,
        name: &[u8],
        entry: &Entry,
        attributes: &Attributes,
        directory: &OwnedFd,
        data: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let failed = |source: Errno| io_error(path, source);
        let target = as_path(name);
        match entry.kind {
            EntryKind::Directory => unpack_directory(path, name, attributes, directory),
            EntryKind::File | EntryKind::Sparse(_) => {
                self.budget.add_file(entry.size)?;
                clear(path, directory, name)?;
                let mut file = create(directory, name).map_err(failed)?;
                self.fill(path, &mut file, entry, data)?;
                finish(path, attributes, file.as_fd())
            }
            EntryKind::Symlink => {
                clear(path, directory, name)?;
                fs::symlinkat(as_path(&entry.link), directory, target).map_err(failed)?;
                finish_at(path, attributes, directory, name, true)
            }
            EntryKind::HardLink => self.hard_link(path, name, &entry.link, directory),
            EntryKind::Char | EntryKind::Block | EntryKind::Fifo => {
                clear(path, directory, name)?;
                let kind = match entry.kind {
                    EntryKind::Char => FileType::CharacterDevice,
                    EntryKind::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = fs::makedev(entry.device.0, entry.device.1);
                fs::mknodat(directory, target, kind, Mode::RUSR, device).map_err(failed)?;
                finish_at(path, attributes, directory, name, false)
            }
            EntryKind::Unknown(kind) => Err(UnpackError::Kind {
                name: path.display(),
                kind: char::from(kind),
            }),
        }
    }

    fn fill(
        &mut self,
        path: &EntryPath,
        file: &mut File,
        entry: &Entry,
        data: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let whole = [(0, entry.size)];
        let extents = match &entry.kind {
            EntryKind::Sparse(extents) => extents.as_slice(),
            _ => &whole,
        };
        for (offset, length) in extents {
            if matches!(entry.kind, EntryKind::Sparse(_)) {
                file.seek(SeekFrom::Start(*offset))
                    .map_err(|source| failed_io(path, source))?;
            }
            let mut left = *length;
            while left > 0 {
                let wanted = usize::try_from(left)
                    .unwrap_or(usize::MAX)
                    .min(self.buffer.len());
                let count = data
                    .read(&mut self.buffer[..wanted])
                    .map_err(TarError::Read)?;
                if count == 0 {
                    return Err(failed_io(path, io::ErrorKind::UnexpectedEof.into()));
                }
                self.budget.write(self.root.as_fd(), count)?;
                file.write_all(&self.buffer[..count])
                    .map_err(|source| failed_io(path, source))?;
                left -= count as u64;
            }
        }
        if matches!(entry.kind, EntryKind::Sparse(_)) {
            file.set_len(entry.size)
                .map_err(|source| failed_io(path, source))?;
        }
        Ok(())
    }

    fn hard_link(
        &mut self,
        path: &EntryPath,
        name: &[u8],
        link: &[u8],
        directory: &OwnedFd,
    ) -> Result<(), UnpackError> {
        let display = String::from_utf8_lossy(link).into_owned();
        let target = EntryPath::of_link_target(link).map_err(|source| UnpackError::LinkName {
            name: path.display(),
            target: display.clone(),
            source,
        })?;
        let missing = || UnpackError::LinkTarget {
            name: path.display(),
            target: display.clone(),
        };
        let (target_parent, target_name) = target.split_last().ok_or_else(missing)?;
        if target == *path {
            // A link to itself: nothing to do if it is there.
            let found = kind_at(directory, name).map_err(|source| failed_io(path, source))?;
            return found.map(|_| ()).ok_or_else(missing);
        }
        let here = match self.open_beneath(target_parent) {
            Ok(parent) => kind_at(&parent, target_name)
                .map_err(|source| failed_io(path, source))?
                .map(|kind| (parent, kind)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(escape_or_io(path, error)),
        };
        let source = match here {
            Some((_, (FileType::CharacterDevice, 0))) => return Err(missing()),
            Some((parent, _)) => parent,
            None => {
                let below = self.lower.find(target.components());
                let below = below.map_err(|source| failed_io(path, source))?;
                self.copy_up(&target, &below.ok_or_else(missing)?)?
                    .directory
            }
        };
        clear(path, directory, name)?;
        fs::linkat(
            source,
            as_path(target_name),
            directory,
            as_path(name),
            AtFlags::empty(),
        )
        .map_err(|source| io_error(path, source))
    }

    /// Brings a file of the layers below into this one, as overlayfs does
    /// before it links to one. Returns its directory.
    fn copy_up(&mut self, path: &EntryPath, below: &MergedEntry) -> Result<Parent, UnpackError> {
        let failed = |source: Errno| io_error(path, source);
        let Some((parent, name)) = path.split_last() else {
            return Err(UnpackError::Root);
        };
        self.needs_lower = true;
        let parent = self.open_parent(path, parent)?;
        let directory = &parent.directory;
        match FileType::from_raw_mode(below.stat.st_mode) {
            FileType::RegularFile => {
                let size = u64::try_from(below.stat.st_size).unwrap_or(u64::MAX);
                self.budget.add_file(size)?;
                self.budget.write(
                    self.root.as_fd(),
                    usize::try_from(size).unwrap_or(usize::MAX),
                )?;
                let mut source = reopen(below).map_err(|source| failed_io(path, source))?;
                let mut file = create(directory, name).map_err(failed)?;
                io::copy(&mut source, &mut file).map_err(|source| failed_io(path, source))?;
                copy_xattrs(&below.fd, file.as_fd()).map_err(|source| UnpackError::Attributes {
                    name: path.display(),
                    source,
                })?;
                finish(path, &inherited(below), file.as_fd())?;
            }
            FileType::Symlink => {
                let target = fs::readlinkat(&below.fd, "", Vec::new()).map_err(failed)?;
                fs::symlinkat(target, directory, as_path(name)).map_err(failed)?;
                finish_at(path, &inherited(below), directory, name, true)?;
            }
            _ => return Err(failed(Errno::PERM)),
        }
        parent.restore_times().map_err(failed)?;
        Ok(parent)
    }

    /// Goes to the directory of the next entry, leaving that of the last.
    fn enter_parent(
        &mut self,
        path: &EntryPath,
        components: &[Vec<u8>],
    ) -> Result<Rc<Parent>, UnpackError> {
        if let Some(parent) = &self.parent
            && parent.components == components
        {
            return Ok(Rc::clone(parent));
        }
        self.leave_parent()?;
        let parent = Rc::new(self.open_parent(path, components)?);
        self.parent = Some(Rc::clone(&parent));
        Ok(parent)
    }

    fn leave_parent(&mut self) -> Result<(), UnpackError> {
        let Some(parent) = self.parent.take() else {
            return Ok(());
        };
        parent.restore_times().map_err(|error| UnpackError::Io {
            name: String::from_utf8_lossy(&parent.components.join(&b'/')).into_owned(),
            source: error.into(),
        })
    }

    /// The directory that `components` name, made where the archive did not.
    fn open_parent(
        &mut self,
        path: &EntryPath,
        components: &[Vec<u8>],
    ) -> Result<Parent, UnpackError> {
        let failed = |source: Errno| io_error(path, source);
        match self.open_beneath(components) {
            Ok(directory) => return Parent::new(components, directory).map_err(failed),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(escape_or_io(path, error)),
        }
        let root = self.open_beneath(&[]).map_err(failed)?;
        let mut parent = Parent::new(&[], root).map_err(failed)?;
        for depth in 1..=components.len() {
            let prefix = &components[..depth];
            let directory = match self.open_beneath(prefix) {
                Ok(next) => next,
                Err(Errno::NOENT) => {
                    let made = self.make_parent(path, &parent.directory, prefix)?;
                    parent.restore_times().map_err(failed)?;
                    made
                }
                Err(error) => return Err(escape_or_io(path, error)),
            };
            parent = Parent::new(prefix, directory).map_err(failed)?;
        }
        Ok(parent)
    }

    /// Makes a directory that the archive takes for granted: as the layers
    /// below have it, since it will stand in front of theirs.
    fn make_parent(
        &mut self,
        path: &EntryPath,
        directory: &OwnedFd,
        components: &[Vec<u8>],
    ) -> Result<OwnedFd, UnpackError> {
        let failed = |source: Errno| io_error(path, source);
        let name = components.last().map(Vec::as_slice).unwrap_or_default();
        fs::mkdirat(directory, as_path(name), Mode::from_raw_mode(0o755)).map_err(failed)?;
        let made = open_directory(directory, name).map_err(failed)?;
        fs::fchmod(&made, Mode::from_raw_mode(0o755)).map_err(failed)?;
        let below = self
            .lower
            .find(components)
            .map_err(|source| failed_io(path, source))?;
        if let Some(below) = below
            && FileType::from_raw_mode(below.stat.st_mode) == FileType::Directory
        {
            self.needs_lower = true;
            copy_xattrs(&below.fd, made.as_fd()).map_err(|source| UnpackError::Attributes {
                name: path.display(),
                source,
            })?;
            finish(path, &inherited(&below), made.as_fd())?;
        }
        Ok(made)
    }

    fn open_beneath(&self, components: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        fs::openat2(
            &self.root,
            relative(components),
            flags,
            Mode::empty(),
            resolve,
        )
    }
}

fn unpack_directory(
    path: &EntryPath,
    name: &[u8],
    attributes: &Attributes,
    parent: &OwnedFd,
) -> Result<(), UnpackError> {
    let failed = |source: Errno| io_error(path, source);
    let existing = kind_at(parent, name).map_err(|source| failed_io(path, source))?;
    let hides = matches!(existing, Some((FileType::CharacterDevice, 0)));
    if !matches!(existing, Some((FileType::Directory, _))) {
        clear(path, parent, name)?;
        fs::mkdirat(parent, as_path(name), Mode::RWXU).map_err(failed)?;
    }
    let directory = open_directory(parent, name).map_err(failed)?;
    if hides {
        // A whiteout before it in the same layer hid what lies below.
        set_opaque(&directory).map_err(failed)?;
    }
    finish(path, attributes, directory.as_fd())
}

/// Removes what an earlier entry of the archive put under this name.
fn clear(path: &EntryPath, directory: &OwnedFd, name: &[u8]) -> Result<(), UnpackError> {
    match fs::unlinkat(directory, as_path(name), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => {
            remove_tree_at(directory.as_fd(), name).map_err(|source| failed_io(path, source))
        }
        Err(error) => Err(io_error(path, error)),
    }
}

fn finish(path: &EntryPath, attributes: &Attributes, file: impl AsFd) -> Result<(), UnpackError> {
    attributes
        .apply_to(file.as_fd())
        .map_err(|source| UnpackError::Attributes {
            name: path.display(),
            source,
        })
}

fn finish_at(
    path: &EntryPath,
    attributes: &Attributes,
    parent: &OwnedFd,
    name: &[u8],
    is_link: bool,
) -> Result<(), UnpackError> {
    attributes
        .apply_at(parent.as_fd(), name, is_link)
        .map_err(|source| UnpackError::Attributes {
            name: path.display(),
            source,
        })
}

fn is_aufs_metadata(name: &[u8]) -> bool {
    name.starts_with(AUFS_PREFIX) && name != OPAQUE_MARKER
}

fn whiteout(path: &EntryPath, directory: &OwnedFd, name: &[u8]) -> Result<(), UnpackError> {
    let failed = |source: Errno| io_error(path, source);
    if name == OPAQUE_MARKER {
        return set_opaque(directory).map_err(failed);
    }
    let hidden = &name[WHITEOUT_PREFIX.len()..];
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(failed(Errno::INVAL));
    }
    // A whiteout hides the layers below, not what this layer brings.
    match kind_at(directory, hidden).map_err(|source| failed_io(path, source))? {
        None => {
            let device = FileType::CharacterDevice;
            fs::mknodat(directory, as_path(hidden), device, Mode::empty(), 0).map_err(failed)
        }
        Some((FileType::Directory, _)) => {
            let kept = open_directory(directory, hidden).map_err(failed)?;
            set_opaque(&kept).map_err(failed)
        }
        Some(_) => Ok(()),
    }
}

fn create(directory: &OwnedFd, name: &[u8]) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(directory, as_path(name), flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

fn open_directory(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(parent, as_path(name), flags, Mode::empty())
}

fn set_opaque(directory: &OwnedFd) -> Result<(), Errno> {
    fs::fsetxattr(directory, OPAQUE_XATTR, b"y", XattrFlags::empty())
}

/// The attributes of an entry below, its extended ones apart.
fn inherited(below: &MergedEntry) -> Attributes {
    let stat = &below.stat;
    Attributes {
        uid: Uid::from_raw(stat.st_uid),
        gid: Gid::from_raw(stat.st_gid),
        mode: Mode::from_raw_mode(stat.st_mode & 0o7777),
        times: times_of(stat),
        xattrs: Vec::new(),
    }
}

fn times_of(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn io_error(path: &EntryPath, source: Errno) -> UnpackError {
    failed_io(path, source.into())
}

fn failed_io(path: &EntryPath, source: io::Error) -> UnpackError {
    UnpackError::Io {
        name: path.display(),
        source,
    }
}

fn escape_or_io(path: &EntryPath, error: Errno) -> UnpackError {
    match error {
        Errno::XDEV | Errno::LOOP => UnpackError::Escape(path.display()),
        error => io_error(path, error),
    }
}
