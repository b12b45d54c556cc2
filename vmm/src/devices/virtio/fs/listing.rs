//! `FUSE_READDIRPLUS`: a directory's names, each with what a lookup of it tells.
//!
//! virtiofsd's server ends a reply at the first name that cannot be looked up,
//! and fails the request if that is the reply's first: a program in the guest
//! then sees a directory that ends there. Such a name has been deleted on the
//! host since it was read, cannot be stat'ed (a FUSE mount without its server)
//! or finds no descriptor left. It is listed without a node here: the guest's
//! kernel tells its program the name, and looks it up if that asks for more.

use std::ffi::CStr;
use std::io;

use virtiofsd::filesystem::{Context, Entry, FileSystem};

use super::shared::{SharedFs, directory, tell_absent};

/// The shared directory as it is listed; all other requests go to the
/// [`SharedFs`] itself.
pub(super) struct Listing(SharedFs);

impl Listing {
    pub(super) fn new(fs: SharedFs) -> Self {
        Self(fs)
    }
}

impl FileSystem for Listing {
    type Inode = u64;
    type Handle = u64;
    type DirIter = <SharedFs as FileSystem>::DirIter;

    fn readdir(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
    ) -> io::Result<Self::DirIter> {
        self.0.readdir(ctx, inode, handle, size, offset)
    }

    fn lookup(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.0.lookup(ctx, parent, name).or_else(|error| {
            tracing::debug!("name is listed without its node: {error}");
            // Without a node, nothing of the entry is heeded.
            Ok(tell_absent(directory(parent)?.kind_of_child(name)))
        })
    }

    /// Of a node whose name the reply had no room for.
    fn forget(&self, ctx: Context, inode: u64, count: u64) {
        self.0.forget(ctx, inode, count);
    }
}
