//! The shared directory as the FUSE server sees it: virtiofsd's
//! `PassthroughFs`, started so that it opens nothing by path, and what is kept
//! beside it.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use virtiofsd::filesystem::{Context, Entry, FileSystem, FsOptions, ZeroCopyWriter};
use virtiofsd::fuse::Attr;
use virtiofsd::oslib::ReadvFlags;
use virtiofsd::passthrough::{CachePolicy, Config, NegotiationMode, PassthroughFs};

use super::node::{Kind, Node};
use super::setid::SetIds;
use super::unnamed::{UnnamedFile, UnnamedFiles};

/// What the guest's kernel must know for all operations to have the effect they
/// have on a local file system; Linux has all of it since 6.3.
const REQUIRED: FsOptions = FsOptions::from_bits_truncate(
    FsOptions::HANDLE_KILLPRIV_V2.bits()
        | FsOptions::CREATE_SUPP_GROUP.bits()
        | FsOptions::SUBMOUNTS.bits()
        | FsOptions::POSIX_ACL.bits()
        | FsOptions::DONT_MASK.bits()
        | FsOptions::SETXATTR_EXT.bits(),
);

/// What is asked for besides what the server asks for. The target of a symbolic
/// link never changes during the life of its inode: it may be cached.
const WANTED: FsOptions = FsOptions::from_bits_truncate(
    FsOptions::HANDLE_KILLPRIV_V2.bits() | FsOptions::CACHE_SYMLINKS.bits(),
);

/// A cheap handle: the FUSE server has one, the requests it does not know
/// another.
#[derive(Clone)]
pub(super) struct SharedFs(Arc<State>);

struct State {
    served: PassthroughFs,
    unnamed: UnnamedFiles,
    set_ids: SetIds,
    proc_self_fd: OwnedFd,
    mounted: AtomicBool,
}

/// Where a node's file is.
pub(super) enum Place {
    /// The server has it under this inode number.
    Served(u64),
    Unnamed(Arc<UnnamedFile>),
}

impl SharedFs {
    /// To be called on a thread whose working directory is the shared directory
    /// and its own: the server keeps it open to return to, and starts from it
    /// when the guest mounts.
    pub(super) fn open(proc_self_fd: OwnedFd, guest_fd_limit: u64) -> io::Result<Self> {
        let config = Config {
            root_dir: ".".into(),
            proc_sfd_rawfd: Some(File::from(proc_self_fd.try_clone()?)),
            // Replaced for each node, see `Kind::validity`.
            entry_timeout: Kind::Shared.validity(),
            attr_timeout: Kind::Shared.validity(),
            cache_policy: CachePolicy::Auto,
            // Would make the guest's idea of a file's size and times the right
            // one, in volumes too, where the host writes.
            writeback: false,
            xattr: true,
            posix_acl: NegotiationMode::Always,
            // One inode number means different files in different mounts.
            announce_submounts: true,
            // Done here, without libcap-ng: see `privileges`.
            killpriv_v2: false,
            allow_mmap: true,
            guest_fd_limit,
            ..Config::default()
        };
        Ok(Self(Arc::new(State {
            served: PassthroughFs::new(config)?,
            unnamed: UnnamedFiles::default(),
            set_ids: SetIds::default(),
            proc_self_fd,
            mounted: AtomicBool::new(false),
        })))
    }

    pub(super) fn served(&self) -> &PassthroughFs {
        &self.0.served
    }

    pub(super) fn unnamed(&self) -> &UnnamedFiles {
        &self.0.unnamed
    }

    pub(super) fn set_ids(&self) -> &SetIds {
        &self.0.set_ids
    }

    pub(super) fn proc_self_fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.0.proc_self_fd.as_fd()
    }

    /// A driver mounts once between two resets or unmounts.
    pub(super) fn mount(&self, capable: FsOptions) -> io::Result<FsOptions> {
        if !capable.contains(REQUIRED) {
            tracing::warn!(
                missing = ?(REQUIRED - capable),
                "guest kernel's FUSE lacks what the shared directory needs"
            );
            return Err(Errno::PROTO.into());
        }
        if self.0.mounted.swap(true, Ordering::AcqRel) {
            return Err(Errno::BUSY.into());
        }
        match self.0.served.init(capable) {
            Ok(options) => Ok(options | WANTED),
            Err(error) => {
                self.0.mounted.store(false, Ordering::Release);
                Err(error)
            }
        }
    }

    /// Forgets and closes all that the guest has looked up and opened.
    pub(super) fn unmount(&self) {
        self.0.served.destroy();
        self.0.unnamed.clear();
        self.0.set_ids.clear();
        self.0.mounted.store(false, Ordering::Release);
    }

    pub(super) fn place(&self, id: u64) -> io::Result<Place> {
        let node = Node::from(id);
        match node.kind {
            Kind::Unnamed => self.0.unnamed.get(node.number).map(Place::Unnamed),
            Kind::Shared | Kind::Container | Kind::Private | Kind::Engine => {
                Ok(Place::Served(node.number))
            }
        }
    }

    /// Opens a node of the server and passes its file to `use_file`.
    ///
    /// The server keeps its descriptors to itself, but for `read`, which hands
    /// one to whatever takes the data: here, something that takes the descriptor.
    pub(super) fn with_file<T>(
        &self,
        context: Context,
        number: u64,
        flags: u32,
        use_file: impl FnOnce(&File) -> io::Result<T>,
    ) -> io::Result<T> {
        let (handle, _) = self.0.served.open(context, number, false, flags)?;
        let handle = handle.ok_or(Errno::BADF)?;
        let mut borrower = Borrower {
            use_file: Some(use_file),
            result: Err(Errno::BADF.into()),
        };
        let read = self
            .0
            .served
            .read(context, number, handle, &mut borrower, 0, 0, None, 0);
        let released = self
            .0
            .served
            .release(context, number, 0, handle, false, false, None);
        let result = borrower.result;
        read.and(released).and(result)
    }
}

struct Borrower<F, T> {
    use_file: Option<F>,
    result: io::Result<T>,
}

impl<T, F: FnOnce(&File) -> io::Result<T>> ZeroCopyWriter for Borrower<F, T> {
    fn read_from_file_at(
        &mut self,
        file: &File,
        _count: usize,
        _offset: u64,
        _flags: Option<ReadvFlags>,
    ) -> io::Result<usize> {
        if let Some(use_file) = self.use_file.take() {
            self.result = use_file(file);
        }
        Ok(0)
    }
}

/// The node of a directory; files without a name are none.
pub(super) fn directory(id: u64) -> io::Result<Node> {
    let node = Node::from(id);
    match node.kind {
        Kind::Unnamed => Err(Errno::NOTDIR.into()),
        Kind::Shared | Kind::Container | Kind::Private | Kind::Engine => Ok(node),
    }
}

/// The server's entry as the guest is told of it, found in a place of this kind.
pub(super) fn tell(mut entry: Entry, kind: Kind) -> Entry {
    let node = Node {
        kind,
        number: entry.inode,
    };
    entry.inode = node.id();
    entry.entry_timeout = kind.validity();
    entry.attr_timeout = kind.validity();
    entry
}

/// Tells the guest that there is no such name, and for how long.
pub(super) fn tell_absent(kind: Kind) -> Entry {
    Entry {
        inode: 0,
        generation: 0,
        attr: Attr::default(),
        attr_timeout: kind.validity(),
        entry_timeout: kind.validity(),
    }
}
