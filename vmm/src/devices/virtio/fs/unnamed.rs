//! Files without a name: `O_TMPFILE` in the guest (`FUSE_TMPFILE`), which
//! virtiofsd does not serve.
//!
//! Such a file is one descriptor here and a node of its own kind for the guest,
//! until it is linked into a directory (then the name leads to a node of the
//! server, and this one ends with the guest's last use of it) or forgotten.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, FallocateFlags, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use virtiofsd::filesystem::{
    Context, Entry, FileSystem, GetxattrReply, ListxattrReply, SetattrValid,
};
use virtiofsd::fuse::{Attr, CreateIn, EntryOut, OpenOut, SetattrIn};
use virtiofsd::oslib::{ScopedUmask, WritevFlags};
use virtiofsd::passthrough::credentials::UnixCredentials;
use virtiofsd::soft_idmap::{HostGid, HostUid, Id};

use super::node::{Kind, Node};
use super::shared::{SharedFs, directory};

/// Each is a descriptor that the server's own limit does not count.
pub(super) const MAX_UNNAMED: usize = 1024;

#[derive(Debug)]
pub(super) struct UnnamedFile {
    file: File,
}

#[derive(Debug, Default)]
pub(super) struct UnnamedFiles {
    files: Mutex<HashMap<u64, Known>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Known {
    file: Arc<UnnamedFile>,
    lookups: u64,
}

impl UnnamedFiles {
    pub(super) fn get(&self, number: u64) -> io::Result<Arc<UnnamedFile>> {
        let files = self.files.lock();
        let known = files.get(&number).ok_or(Errno::BADF)?;
        Ok(Arc::clone(&known.file))
    }

    pub(super) fn forget(&self, number: u64, count: u64) {
        let mut files = self.files.lock();
        if let Some(known) = files.get_mut(&number) {
            known.lookups = known.lookups.saturating_sub(count);
            if known.lookups == 0 {
                files.remove(&number);
            }
        }
    }

    pub(super) fn clear(&self) {
        self.files.lock().clear();
    }

    fn insert(&self, file: File) -> io::Result<(Node, Arc<UnnamedFile>)> {
        let mut files = self.files.lock();
        if files.len() >= MAX_UNNAMED {
            return Err(Errno::NFILE.into());
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let file = Arc::new(UnnamedFile { file });
        let known = Known {
            file: Arc::clone(&file),
            lookups: 1,
        };
        files.insert(number, known);
        let node = Node {
            kind: Kind::Unnamed,
            number,
        };
        Ok((node, file))
    }
}

impl SharedFs {
    /// Makes a file in the file system of the directory `parent`.
    pub(super) fn create_unnamed(
        &self,
        context: Context,
        parent: u64,
        asked: CreateIn,
    ) -> io::Result<(EntryOut, OpenOut)> {
        let parent = directory(parent)?;
        let file = self.with_file(context, parent.number, OFlags::DIRECTORY.bits(), |opened| {
            open_unnamed(context, opened, asked)
        })?;
        let (node, file) = self.unnamed().insert(file)?;
        let validity = Kind::Unnamed.validity();
        let entry = file.attr().map(|attr| EntryOut {
            nodeid: node.id(),
            entry_valid: validity.as_secs(),
            entry_valid_nsec: validity.subsec_nanos(),
            attr_valid: validity.as_secs(),
            attr_valid_nsec: validity.subsec_nanos(),
            attr,
            ..EntryOut::default()
        });
        match entry {
            Ok(entry) => Ok((entry, OpenOut::default())),
            Err(error) => {
                self.unnamed().forget(node.number, 1);
                Err(error)
            }
        }
    }

    /// Gives the file a name in `directory`, and finds it there.
    pub(super) fn name_file(
        &self,
        context: Context,
        file: &UnnamedFile,
        directory: u64,
        name: &CStr,
    ) -> io::Result<Entry> {
        let link = file.file.as_raw_fd().to_string();
        self.with_file(context, directory, OFlags::DIRECTORY.bits(), |directory| {
            Ok(rustix::fs::linkat(
                self.proc_self_fd(),
                link.as_str(),
                directory,
                name,
                AtFlags::SYMLINK_FOLLOW,
            )?)
        })?;
        self.served().lookup(context, directory, name)
    }
}

/// The host's permission check is the guest's, made already: the file is opened
/// with all capabilities, and belongs to the caller's group, or the directory's,
/// as the host kernel decides; then to the caller.
fn open_unnamed(context: Context, directory: &File, asked: CreateIn) -> io::Result<File> {
    let exclusive = OFlags::from_bits_retain(asked.flags) & OFlags::EXCL;
    let mode = Mode::from_raw_mode(asked.mode & 0o7777);
    let file = {
        let group = HostGid::from(context.gid.into_inner());
        let _group = UnixCredentials::new(HostUid::from(0), group)
            .supplementary_gid(true, vec![])
            .set()?;
        let _umask = ScopedUmask::new(asked.umask);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | exclusive;
        File::from(rustix::fs::openat(directory, c".", flags, mode)?)
    };
    let user = context.uid.into_inner();
    if user != 0 && user != u32::MAX {
        let before = rustix::fs::fstat(&file)?.st_mode;
        rustix::fs::fchown(&file, Some(Uid::from_raw(user)), None)?;
        if before & 0o6000 != 0 {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(before & 0o7777))?;
        }
    }
    Ok(file)
}

impl UnnamedFile {
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn attr(&self) -> io::Result<Attr> {
        let stat = rustix::fs::fstat(&self.file)?;
        Ok(Attr {
            ino: stat.st_ino,
            size: stat.st_size.cast_unsigned(),
            blocks: stat.st_blocks.cast_unsigned(),
            atime: stat.st_atime.cast_unsigned(),
            mtime: stat.st_mtime.cast_unsigned(),
            ctime: stat.st_ctime.cast_unsigned(),
            atimensec: nanoseconds(stat.st_atime_nsec),
            mtimensec: nanoseconds(stat.st_mtime_nsec),
            ctimensec: nanoseconds(stat.st_ctime_nsec),
            mode: stat.st_mode,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: stat.st_uid.into(),
            gid: stat.st_gid.into(),
            rdev: 0,
            blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
            flags: 0,
        })
    }

    pub(super) fn set_attr(&self, asked: &SetattrIn, valid: SetattrValid) -> io::Result<Attr> {
        let file = &self.file;
        if valid.contains(SetattrValid::MODE) {
            rustix::fs::fchmod(file, Mode::from_raw_mode(asked.mode & 0o7777))?;
        }
        let uid = asked.uid.into_inner();
        let gid = asked.gid.into_inner();
        let uid = (valid.contains(SetattrValid::UID) && uid != u32::MAX).then_some(uid);
        let gid = (valid.contains(SetattrValid::GID) && gid != u32::MAX).then_some(gid);
        if uid.is_some() || gid.is_some() {
            rustix::fs::fchown(file, uid.map(Uid::from_raw), gid.map(Gid::from_raw))?;
        }
        if valid.contains(SetattrValid::SIZE) {
            rustix::fs::ftruncate(file, asked.size)?;
        }
        let last_access = time(
            valid,
            (SetattrValid::ATIME, SetattrValid::ATIME_NOW),
            (asked.atime, asked.atimensec),
        );
        let last_modification = time(
            valid,
            (SetattrValid::MTIME, SetattrValid::MTIME_NOW),
            (asked.mtime, asked.mtimensec),
        );
        rustix::fs::futimens(
            file,
            &Timestamps {
                last_access,
                last_modification,
            },
        )?;
        self.attr()
    }

    pub(super) fn sync(&self, data_only: bool) -> io::Result<()> {
        if data_only {
            self.file.sync_data()
        } else {
            self.file.sync_all()
        }
    }

    pub(super) fn allocate(&self, mode: u32, offset: u64, len: u64) -> io::Result<()> {
        let mode = FallocateFlags::from_bits_retain(mode);
        Ok(rustix::fs::fallocate(&self.file, mode, offset, len)?)
    }

    pub(super) fn seek(&self, offset: u64, whence: u32) -> io::Result<u64> {
        let to = match whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL.into()),
        };
        Ok(rustix::fs::seek(&self.file, to)?)
    }

    pub(super) fn set_xattr(&self, name: &CStr, value: &[u8], flags: u32) -> io::Result<()> {
        let flags = XattrFlags::from_bits_retain(flags);
        Ok(rustix::fs::fsetxattr(&self.file, name, value, flags)?)
    }

    /// `size` is bounded by the server; 0 asks how much there is.
    pub(super) fn xattr(&self, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        let mut value = vec![0; size as usize];
        let len = rustix::fs::fgetxattr(&self.file, name, &mut value[..])?;
        if size == 0 {
            return Ok(GetxattrReply::Count(u32::try_from(len).unwrap_or(u32::MAX)));
        }
        value.truncate(len);
        Ok(GetxattrReply::Value(value))
    }

    pub(super) fn xattr_names(&self, size: u32) -> io::Result<ListxattrReply> {
        let mut names = vec![0; size as usize];
        let len = rustix::fs::flistxattr(&self.file, &mut names[..])?;
        if size == 0 {
            return Ok(ListxattrReply::Count(
                u32::try_from(len).unwrap_or(u32::MAX),
            ));
        }
        names.truncate(len);
        Ok(ListxattrReply::Names(names))
    }

    pub(super) fn remove_xattr(&self, name: &CStr) -> io::Result<()> {
        Ok(rustix::fs::fremovexattr(&self.file, name)?)
    }
}

/// `RWF_APPEND` for a file opened to append to, but for what the guest's cache
/// writes back: that goes where it says.
pub(super) fn append(from_cache: bool, open_flags: u32) -> Option<WritevFlags> {
    let append = open_flags & libc::O_APPEND.cast_unsigned() != 0;
    (append && !from_cache).then_some(WritevFlags::RWF_APPEND)
}

fn nanoseconds(field: impl TryInto<u32>) -> u32 {
    field.try_into().unwrap_or(0)
}

fn time(
    valid: SetattrValid,
    (set, now): (SetattrValid, SetattrValid),
    (seconds, nanoseconds): (u64, u32),
) -> Timespec {
    let (seconds, nanoseconds) = if valid.contains(now) {
        (0, libc::UTIME_NOW)
    } else if valid.contains(set) {
        (seconds.cast_signed(), i64::from(nanoseconds))
    } else {
        (0, libc::UTIME_OMIT)
    };
    Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    }
}
