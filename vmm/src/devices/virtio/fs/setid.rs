//! Set-user-id and set-group-id bits that root's own writes leave alone.
//!
//! The host's kernel clears them at each write or truncation by a thread that
//! lacks `CAP_FSETID` over the whole host, as all in the jail do, whether the
//! guest has asked for that or not. Where it has not, since its caller has that
//! capability, they are put back.
//!
//! Only in a container's root file system: in a volume they may have been
//! cleared for what somebody on the host wrote meanwhile. And only after writes
//! through a handle of a file that had them when it was opened, so that ordinary
//! ones make no further system call. What else clears the bits of a file for good holds its
//! lock shared, what puts them back holds it alone: a write of somebody's without
//! the capability is never undone.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use virtiofsd::filesystem::{Context, FileSystem, SetattrValid};
use virtiofsd::fuse::{Attr, SetattrIn};

use super::node::{Kind, Node};
use super::shared::SharedFs;

const BITS: u32 = libc::S_ISUID | libc::S_ISGID;

/// Files share locks, so that there is no table of them to keep.
const LOCKS: u8 = 64;

#[derive(Debug)]
pub(super) struct SetIds {
    /// Handles of files that had the bits when they were opened.
    handles: Mutex<HashSet<u64>>,
    /// How many.
    count: AtomicUsize,
    locks: [RwLock<()>; LOCKS as usize],
}

impl Default for SetIds {
    fn default() -> Self {
        Self {
            handles: Mutex::default(),
            count: AtomicUsize::new(0),
            locks: [const { RwLock::new(()) }; LOCKS as usize],
        }
    }
}

impl SetIds {
    pub(super) fn remember(&self, handle: u64) {
        self.change(|handles| handles.insert(handle));
    }

    pub(super) fn knows(&self, handle: u64) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.handles.lock().contains(&handle)
    }

    pub(super) fn forget(&self, handle: u64) {
        if self.count.load(Ordering::Acquire) > 0 {
            self.change(|handles| handles.remove(&handle));
        }
    }

    pub(super) fn clear(&self) {
        self.change(HashSet::clear);
    }

    fn change<T>(&self, change: impl FnOnce(&mut HashSet<u64>) -> T) {
        let mut handles = self.handles.lock();
        change(&mut handles);
        self.count.store(handles.len(), Ordering::Release);
    }

    fn lock(&self, number: u64) -> &RwLock<()> {
        let own = number % u64::from(LOCKS);
        &self.locks[usize::try_from(own).unwrap_or(0)]
    }
}

/// Whether these are the attributes of a file that has the bits.
pub(super) fn has_bits(attr: &Attr) -> bool {
    attr.mode & libc::S_IFMT == libc::S_IFREG && attr.mode & BITS != 0
}

impl SharedFs {
    /// For as long as the bits of `node` may be cleared to stay so.
    pub(super) fn clearing(&self, node: Node) -> Option<RwLockReadGuard<'_, ()>> {
        let shared = || self.set_ids().lock(node.number).read();
        node.kind.is_remembered().then(shared)
    }

    /// Whether `node` has bits that may be put back.
    pub(super) fn may_lose_bits(&self, context: Context, node: Node) -> io::Result<bool> {
        if !node.kind.is_remembered() || node.kind == Kind::Unnamed {
            return Ok(false);
        }
        let (attr, _) = self.served().getattr(context, node.number, None)?;
        Ok(has_bits(&attr))
    }

    /// What `change` returns, once the bits that it has cleared are back.
    pub(super) fn keeping_bits<T>(
        &self,
        context: Context,
        number: u64,
        change: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let _alone = self.set_ids().lock(number).write();
        let (before, _) = self.served().getattr(context, number, None)?;
        let result = change();
        // A change that fails may have cleared them, too.
        if has_bits(&before)
            && let Err(error) = self.put_back(context, number, before.mode & BITS)
        {
            tracing::warn!("set-user-id bits could not be put back after a write: {error}");
        }
        result
    }

    fn put_back(&self, context: Context, number: u64, bits: u32) -> io::Result<()> {
        let (after, _) = self.served().getattr(context, number, None)?;
        if after.mode & bits == bits {
            return Ok(());
        }
        let asked = SetattrIn {
            mode: (after.mode | bits) & 0o7777,
            ..SetattrIn::default()
        };
        let mode = SetattrValid::MODE;
        self.served().setattr(context, number, asked, None, mode)?;
        Ok(())
    }
}
