//! What the FUSE server calls for each request: checks that virtiofsd leaves
//! out, the kind of each node, and then virtiofsd's `PassthroughFs`.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use rustix::io::Errno;
use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    ROOT_ID, SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, SetattrIn};
use virtiofsd::passthrough::PassthroughFs;

use super::node::{Kind, Node, check_name};
use super::privileges::WithoutFsetid;
use super::setid::has_bits;
use super::shared::{Place, SharedFs, directory, tell, tell_absent};

/// What a guest may ask for when it opens a file. Of the others, `O_DIRECT` is
/// between the guest and its own cache, and the rest (`O_PATH`, `O_TMPFILE`,
/// `O_ASYNC`…) would open something else than the node.
const OPEN_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_TRUNC
    | libc::O_EXCL
    | libc::O_DSYNC
    | libc::O_SYNC
    | libc::O_DIRECTORY;

fn open_flags(asked: u32) -> u32 {
    asked & OPEN_FLAGS.cast_unsigned()
}

/// virtiofsd converts an offset to the kernel's signed type and panics when it
/// does not fit.
fn check_range(offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if i64::try_from(end).is_ok() => Ok(()),
        _ => Err(Errno::INVAL.into()),
    }
}

/// Device nodes are the host's: the container's are made by the agent in the
/// guest. A character device 0:0 is overlayfs's mark of a deleted file.
fn check_device(mode: u32, rdev: u32) -> io::Result<()> {
    match mode & libc::S_IFMT {
        libc::S_IFBLK => Err(Errno::PERM.into()),
        libc::S_IFCHR if rdev != 0 => Err(Errno::PERM.into()),
        _ => Ok(()),
    }
}

/// Whether a file's size is set, by somebody who may leave its set-user-id bits,
/// and nothing that changes those by itself.
fn truncates(valid: SetattrValid) -> bool {
    let changes_bits =
        SetattrValid::MODE | SetattrValid::UID | SetattrValid::GID | SetattrValid::KILL_SUIDGID;
    valid.contains(SetattrValid::SIZE) && !valid.intersects(changes_bits)
}

fn writes(flags: u32) -> bool {
    flags.cast_signed() & libc::O_ACCMODE != libc::O_RDONLY
}

fn cached_file(kind: Kind) -> OpenOptions {
    if kind.is_remembered() {
        OpenOptions::KEEP_CACHE
    } else {
        OpenOptions::empty()
    }
}

fn cached_directory(kind: Kind) -> OpenOptions {
    if kind.is_remembered() {
        OpenOptions::KEEP_CACHE | OpenOptions::CACHE_DIR
    } else {
        OpenOptions::empty()
    }
}

impl FileSystem for SharedFs {
    type Inode = u64;
    type Handle = u64;
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.mount(capable)
    }

    fn destroy(&self) {
        self.unmount();
    }

    fn lookup(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        let parent = directory(parent)?;
        let kind = parent.kind_of_child(name);
        match self.served().lookup(ctx, parent.number, name) {
            Ok(entry) => Ok(tell(entry, kind)),
            Err(error) if kind.is_remembered() && error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(tell_absent(kind))
            }
            Err(error) => Err(error),
        }
    }

    fn forget(&self, ctx: Context, inode: u64, count: u64) {
        self.batch_forget(ctx, vec![(inode, count)]);
    }

    fn batch_forget(&self, ctx: Context, requests: Vec<(u64, u64)>) {
        let (unnamed, served): (Vec<_>, Vec<_>) = requests
            .into_iter()
            .map(|(id, count)| (Node::from(id), count))
            // The root was never looked up.
            .filter(|(node, _)| node.number != ROOT_ID || node.kind == Kind::Unnamed)
            .partition(|(node, _)| node.kind == Kind::Unnamed);
        for (node, count) in unnamed {
            self.unnamed().forget(node.number, count);
        }
        let served = served.into_iter().map(|(node, count)| (node.number, count));
        self.served().batch_forget(ctx, served.collect());
    }

    fn getattr(
        &self,
        ctx: Context,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(Attr, Duration)> {
        let kind = Node::from(inode).kind;
        let attr = match self.place(inode)? {
            Place::Served(number) => self.served().getattr(ctx, number, handle)?.0,
            Place::Unnamed(file) => file.attr()?,
        };
        Ok((attr, kind.validity()))
    }

    fn setattr(
        &self,
        ctx: Context,
        inode: u64,
        attr: SetattrIn,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(Attr, Duration)> {
        let node = Node::from(inode);
        let kill_priv = valid.contains(SetattrValid::KILL_SUIDGID);
        let _privileges = WithoutFsetid::when(kill_priv)?;
        let attr = match self.place(inode)? {
            Place::Served(number) if truncates(valid) && self.may_lose_bits(ctx, node)? => {
                self.keeping_bits(ctx, number, || {
                    self.served().setattr(ctx, number, attr, handle, valid)
                })?;
                self.served().getattr(ctx, number, handle)?.0
            }
            Place::Served(number) => {
                let _clearing = self.clearing(node);
                self.served().setattr(ctx, number, attr, handle, valid)?.0
            }
            Place::Unnamed(file) => file.set_attr(&attr, valid)?,
        };
        Ok((attr, node.kind.validity()))
    }

    fn readlink(&self, ctx: Context, inode: u64) -> io::Result<Vec<u8>> {
        match self.place(inode)? {
            Place::Served(number) => self.served().readlink(ctx, number),
            Place::Unnamed(_) => Err(Errno::INVAL.into()),
        }
    }

    fn symlink(
        &self,
        ctx: Context,
        linkname: &CStr,
        parent: u64,
        name: &CStr,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        check_name(name)?;
        let parent = directory(parent)?;
        let entry = self
            .served()
            .symlink(ctx, linkname, parent.number, name, extensions)?;
        Ok(tell(entry, parent.kind_of_child(name)))
    }

    fn mknod(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        check_name(name)?;
        check_device(mode, rdev)?;
        let parent = directory(parent)?;
        let entry = self
            .served()
            .mknod(ctx, parent.number, name, mode, rdev, umask, extensions)?;
        Ok(tell(entry, parent.kind_of_child(name)))
    }

    fn mkdir(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        check_name(name)?;
        let parent = directory(parent)?;
        let entry = self
            .served()
            .mkdir(ctx, parent.number, name, mode, umask, extensions)?;
        Ok(tell(entry, parent.kind_of_child(name)))
    }

    fn unlink(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<()> {
        check_name(name)?;
        let parent = directory(parent)?;
        self.served().unlink(ctx, parent.number, name)
    }

    fn rmdir(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<()> {
        check_name(name)?;
        let parent = directory(parent)?;
        self.served().rmdir(ctx, parent.number, name)
    }

    fn rename(
        &self,
        ctx: Context,
        olddir: u64,
        oldname: &CStr,
        newdir: u64,
        newname: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        check_name(oldname)?;
        check_name(newname)?;
        let (olddir, newdir) = (directory(olddir)?, directory(newdir)?);
        self.served()
            .rename(ctx, olddir.number, oldname, newdir.number, newname, flags)
    }

    fn link(&self, ctx: Context, inode: u64, newparent: u64, newname: &CStr) -> io::Result<Entry> {
        check_name(newname)?;
        let newparent = directory(newparent)?;
        let entry = match self.place(inode)? {
            Place::Served(number) => self.served().link(ctx, number, newparent.number, newname)?,
            Place::Unnamed(file) => self.name_file(ctx, &file, newparent.number, newname)?,
        };
        Ok(tell(entry, newparent.kind_of_child(newname)))
    }

    fn open(
        &self,
        ctx: Context,
        inode: u64,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let node = Node::from(inode);
        match self.place(inode)? {
            Place::Served(number) => {
                let has_bits = writes(flags) && self.may_lose_bits(ctx, node)?;
                let open = || self.served().open(ctx, number, false, open_flags(flags));
                let (handle, options) = if has_bits && !kill_priv {
                    self.keeping_bits(ctx, number, open)?
                } else {
                    let _clearing = self.clearing(node);
                    let _privileges = WithoutFsetid::when(kill_priv)?;
                    open()?
                };
                if let Some(handle) = handle.filter(|_| has_bits) {
                    self.set_ids().remember(handle);
                }
                Ok((handle, options | cached_file(node.kind)))
            }
            Place::Unnamed(_) => Ok((None, OpenOptions::empty())),
        }
    }

    fn create(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        kill_priv: bool,
        flags: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions)> {
        check_name(name)?;
        let parent = directory(parent)?;
        let kind = parent.kind_of_child(name);
        let _privileges = WithoutFsetid::when(kill_priv)?;
        let (entry, handle, options) = self.served().create(
            ctx,
            parent.number,
            name,
            mode,
            false,
            open_flags(flags),
            umask,
            extensions,
        )?;
        if let Some(handle) = handle.filter(|_| kind.is_remembered() && has_bits(&entry.attr)) {
            self.set_ids().remember(handle);
        }
        Ok((tell(entry, kind), handle, options | cached_file(kind)))
    }

    fn read<W: ZeroCopyWriter>(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        mut w: W,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        check_range(offset, size.into())?;
        match self.place(inode)? {
            Place::Served(number) => self
                .served()
                .read(ctx, number, handle, w, size, offset, lock_owner, flags),
            Place::Unnamed(file) => w.read_from_file_at(file.file(), size as usize, offset, None),
        }
    }

    fn write<R: ZeroCopyReader>(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        mut r: R,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<usize> {
        check_range(offset, size.into())?;
        let _privileges = WithoutFsetid::when(kill_priv)?;
        match self.place(inode)? {
            Place::Served(number) => {
                let write = || {
                    self.served().write(
                        ctx,
                        number,
                        handle,
                        r,
                        size,
                        offset,
                        lock_owner,
                        delayed_write,
                        false,
                        flags,
                    )
                };
                // Nobody knows who wrote what the guest's cache writes back.
                if !kill_priv && !delayed_write && self.set_ids().knows(handle) {
                    self.keeping_bits(ctx, number, write)
                } else {
                    let _clearing = self.clearing(Node::from(inode));
                    write()
                }
            }
            Place::Unnamed(file) => {
                let append = super::unnamed::append(delayed_write, flags);
                r.write_to_file_at(file.file(), size as usize, offset, append)
            }
        }
    }

    /// A flush on close is for servers that hold back writes or keep locks. This
    /// one does neither, and the guest, once told so, saves a request a close.
    fn flush(&self, _: Context, _: u64, _: u64, _: u64) -> io::Result<()> {
        Err(Errno::NOSYS.into())
    }

    fn fsync(&self, ctx: Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        match self.place(inode)? {
            Place::Served(number) => self.served().fsync(ctx, number, datasync, handle),
            Place::Unnamed(file) => file.sync(datasync),
        }
    }

    fn fallocate(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        check_range(offset, length)?;
        match self.place(inode)? {
            Place::Served(number) => {
                let _clearing = self.clearing(Node::from(inode));
                self.served()
                    .fallocate(ctx, number, handle, mode, offset, length)
            }
            Place::Unnamed(file) => file.allocate(mode, offset, length),
        }
    }

    fn release(
        &self,
        ctx: Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        flock_release: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        match self.place(inode)? {
            Place::Served(number) => {
                self.set_ids().forget(handle);
                self.served()
                    .release(ctx, number, flags, handle, flush, flock_release, lock_owner)
            }
            Place::Unnamed(_) => Ok(()),
        }
    }

    fn statfs(&self, ctx: Context, inode: u64) -> io::Result<libc::statvfs64> {
        match self.place(inode)? {
            Place::Served(number) => self.served().statfs(ctx, number),
            // The guest asks with the root of a mount.
            Place::Unnamed(_) => Err(Errno::INVAL.into()),
        }
    }

    fn setxattr(
        &self,
        ctx: Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
        extra_flags: SetxattrFlags,
    ) -> io::Result<()> {
        match self.place(inode)? {
            Place::Served(number) => {
                self.served()
                    .setxattr(ctx, number, name, value, flags, extra_flags)
            }
            Place::Unnamed(file) => file.set_xattr(name, value, flags),
        }
    }

    fn getxattr(
        &self,
        ctx: Context,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        match self.place(inode)? {
            Place::Served(number) => self.served().getxattr(ctx, number, name, size),
            Place::Unnamed(file) => file.xattr(name, size),
        }
    }

    fn listxattr(&self, ctx: Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        match self.place(inode)? {
            Place::Served(number) => self.served().listxattr(ctx, number, size),
            Place::Unnamed(file) => file.xattr_names(size),
        }
    }

    fn removexattr(&self, ctx: Context, inode: u64, name: &CStr) -> io::Result<()> {
        match self.place(inode)? {
            Place::Served(number) => self.served().removexattr(ctx, number, name),
            Place::Unnamed(file) => file.remove_xattr(name),
        }
    }

    fn opendir(
        &self,
        ctx: Context,
        inode: u64,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let node = directory(inode)?;
        let (handle, options) = self.served().opendir(ctx, node.number, open_flags(flags))?;
        Ok((handle, options | cached_directory(node.kind)))
    }

    fn readdir(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
    ) -> io::Result<Self::DirIter> {
        let node = directory(inode)?;
        self.served()
            .readdir(ctx, node.number, handle, size, offset)
    }

    fn fsyncdir(&self, ctx: Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        let node = directory(inode)?;
        self.served().fsyncdir(ctx, node.number, datasync, handle)
    }

    fn releasedir(&self, ctx: Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        let node = directory(inode)?;
        self.served().releasedir(ctx, node.number, flags, handle)
    }

    fn access(&self, ctx: Context, inode: u64, mask: u32) -> io::Result<()> {
        match self.place(inode)? {
            Place::Served(number) => self.served().access(ctx, number, mask),
            Place::Unnamed(_) => Ok(()),
        }
    }

    fn lseek(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        match self.place(inode)? {
            Place::Served(number) => self.served().lseek(ctx, number, handle, offset, whence),
            Place::Unnamed(file) => file.seek(offset, whence),
        }
    }

    fn copyfilerange(
        &self,
        ctx: Context,
        inode_in: u64,
        handle_in: u64,
        offset_in: u64,
        inode_out: u64,
        handle_out: u64,
        offset_out: u64,
        len: u64,
        flags: u64,
    ) -> io::Result<usize> {
        match (self.place(inode_in)?, self.place(inode_out)?) {
            // A copy does not say whether set-user-id bits are to stay; a write does.
            _ if self.set_ids().knows(handle_out) => Err(Errno::XDEV.into()),
            (Place::Served(number_in), Place::Served(number_out)) => {
                let _clearing = self.clearing(Node::from(inode_out));
                self.served().copyfilerange(
                    ctx, number_in, handle_in, offset_in, number_out, handle_out, offset_out, len,
                    flags,
                )
            }
            // The guest's kernel then reads and writes.
            _ => Err(Errno::XDEV.into()),
        }
    }

    fn syncfs(&self, ctx: Context, inode: u64) -> io::Result<()> {
        let node = directory(inode)?;
        self.served().syncfs(ctx, node.number)
    }
}
