//! virtio-fs: the shared directory, served to the guest from within this
//! process (virtio 1.3, section 5.11; FUSE protocol 7.38).
//!
//! ```text
//!   guest's FUSE ──▶ queues ──▶ session ──▶ request ──▶ virtiofsd's Server
//!                    hiprio     threads      TMPFILE      │
//!                    requests                ▼            ▼
//!                                         unnamed ◀── filesystem ──▶ PassthroughFs ──▶ host
//! ```
//!
//! # The FUSE server
//! It is that of virtiofsd, used as a library. fuse-backend-rs, the other
//! candidate, has a window for DAX, but no `copy_file_range`, `syncfs`, POSIX
//! ACLs, announced submounts (files of different mounts would share inode
//! numbers), supplementary groups on creation, nor a limit on descriptors.
//! What virtiofsd lacks is here, in front of it: `O_TMPFILE` ([`unnamed`]),
//! checks of names, offsets, flags and device numbers that it leaves out or
//! would panic on ([`filesystem`], [`request`]), listings that go on after a name
//! that cannot be looked up ([`listing`]), clearing set-user-id bits without
//! libcap-ng, which reads `/proc` by path ([`privileges`]), and not clearing them
//! where the host's kernel would ([`setid`]).
//!
//! # The jail
//! Nothing is opened by an absolute path. Threads work in the shared directory,
//! given as a descriptor, and reach inodes through `/proc/self/fd`, given as
//! another. A guest's name is one component (no `/`, `.` or `..`), looked up
//! with `O_NOFOLLOW` beneath an `O_PATH` descriptor; only regular files and
//! directories are ever opened, so that neither a FIFO nor a device blocks or
//! acts. Fifos, sockets and overlayfs's whiteouts (character device 0:0) can be
//! made; other device nodes cannot (`EPERM`), here as in any user namespace.
//! In one, `trusted.*` attributes are refused too.
//!
//! Files are created with the caller's uid, gid and supplementary groups, and
//! with all capabilities that a thread has: whether the caller may is decided by
//! the guest's kernel ([`privileges`]). ACLs and umask are the host kernel's
//! work. Locks (`flock`, POSIX) are the guest kernel's: who else locks a file of a
//! volume, another guest or the host, is not asked.
//!
//! Every inode that the guest remembers is a descriptor here. When there are
//! many, [`Fs::alarm`] says so; when `RLIMIT_NOFILE` is used up, the guest gets
//! `ENFILE` until it forgets some.
//!
//! # What the guest may cache
//! A container's root file system (see [`node`] for how it is told) is changed
//! by nobody but the guest: names, their absence, attributes and data are cached
//! for good. Elsewhere, in volumes, the host may write at any time: names and
//! attributes hold for a tick of the guest's clock, and data from one `open` to
//! the next, unless size or mtime change before. There is no write-back cache:
//! what a `write` in the guest returned from is on the host.
//!
//! A directory that the host changes while the guest runs must therefore not be
//! put at `<container>/rootfs`.

mod crowd;
mod filesystem;
mod listing;
mod memory;
mod node;
mod privileges;
mod request;
mod session;
mod setid;
mod shared;
mod unnamed;
mod worker;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

pub use self::worker::{Confine, WorkerError};

use self::crowd::Crowd;
use self::memory::ServerMemory;
use self::request::Requests;
use self::session::Session;
use self::shared::SharedFs;
use self::worker::Workers;
use super::{ActivateError, Activation, DeviceType, RING_FEATURES, VirtioDevice};
use crate::config::FsConfig;

/// Bytes of the tag in the configuration space.
const TAG_LEN: usize = 36;

/// The tag and `num_request_queues`.
const CONFIG_LEN: usize = TAG_LEN + 4;

/// One request queue, which all threads take from.
const REQUEST_QUEUES: u32 = 1;

/// Forgotten inodes, in batches: short requests without a reply.
const HIPRIO_QUEUE_SIZE: u16 = 128;

/// Room for several requests of 1 MiB (256 pages and headers) at once.
const REQUEST_QUEUE_SIZE: u16 = 1024;

const QUEUE_SIZES: [u16; 2] = [HIPRIO_QUEUE_SIZE, REQUEST_QUEUE_SIZE];

/// Descriptors that the guest cannot have: the rest of this process, and those
/// that last no longer than a request.
const RESERVED_FDS: u64 = 512 + unnamed::MAX_UNNAMED as u64;

/// Fewer than these for the guest, and no container would start.
const MIN_GUEST_FDS: u64 = 1024;

/// Why the device cannot be made.
#[derive(Debug, Error)]
pub enum FsError {
    #[error("virtio-fs tag {0:?} is longer than {TAG_LEN} bytes")]
    Tag(String),
    #[error("a dax window of {0} MiB is asked for, but virtio-fs has none; set it to 0")]
    Dax(u32),
    #[error("limit of open files cannot be raised")]
    Limit(#[source] io::Error),
    #[error("limit of open files is {got}, virtio-fs needs {want}; raise it (ulimit -Hn)")]
    LimitTooLow { got: u64, want: u64 },
    #[error("alarm for many files cannot be made")]
    Alarm(#[source] io::Error),
    #[error("shared directory cannot be served")]
    Open(#[source] io::Error),
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// The device.
pub struct Fs {
    config_space: [u8; CONFIG_LEN],
    requests: Arc<Requests>,
    workers: Workers,
    session: Option<Arc<Session>>,
}

impl Fs {
    /// Serves `shared_dir`, on threads that `confine` is called on first.
    ///
    /// To be called after the jail's namespaces have been entered, for threads
    /// cannot follow later, and with the capabilities that the threads are to
    /// keep: `CHOWN`, `DAC_OVERRIDE`, `FOWNER`, `FSETID`, `MKNOD`, `SETFCAP`,
    /// `SETGID` and `SETUID`; and with `SETPCAP`, which `confine` may take from
    /// them. `shared_dir` is the jail's root, opened after
    /// entering it; `proc_self_fd` is `/proc/self/fd` of this very process,
    /// opened before. Raises the soft limit of open files to the hard one.
    pub fn new(
        config: &FsConfig,
        shared_dir: OwnedFd,
        proc_self_fd: OwnedFd,
        confine: Confine,
    ) -> Result<Self, FsError> {
        let guest_fd_limit = guest_fd_limit()?;
        Self::with_guest_fd_limit(config, shared_dir, proc_self_fd, confine, guest_fd_limit)
    }

    fn with_guest_fd_limit(
        config: &FsConfig,
        shared_dir: OwnedFd,
        proc_self_fd: OwnedFd,
        confine: Confine,
        guest_fd_limit: u64,
    ) -> Result<Self, FsError> {
        if config.dax_window_mib > 0 {
            return Err(FsError::Dax(config.dax_window_mib));
        }
        let config_space = config_space(&config.tag)?;
        let shared_dir = Arc::new(shared_dir);
        let fs = open(&shared_dir, proc_self_fd, guest_fd_limit).map_err(FsError::Open)?;
        let crowd = Crowd::new(config.remembered_files).map_err(FsError::Alarm)?;
        let requests = Arc::new(Requests::new(fs, crowd));
        let workers = Workers::start(config.threads, &shared_dir, &requests, confine)?;
        Ok(Self {
            config_space,
            requests,
            workers,
            session: None,
        })
    }

    /// Readable when the guest remembers as many files as the configuration
    /// allows it to, and again as they grow by a quarter of that.
    pub fn alarm(&self) -> io::Result<EventFd> {
        self.requests.crowd().alarm()
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> DeviceType {
        DeviceType::Fs
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.config_space.get(offset..))
            .unwrap_or_default();
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let failed = |source| ActivateError::Io {
            what: "serving the shared directory",
            source,
        };
        let requests = QUEUE_SIZES.len() - 1;
        let ready = |queue: &super::ActiveQueue| queue.queue.ready();
        if !activation.queues.get(requests).is_some_and(ready) {
            return Err(ActivateError::QueueNotReady(requests));
        }
        let memory = ServerMemory::new(activation.memory)
            .map_err(|error| failed(io::Error::other(error)))?;
        let session =
            Session::new(memory, activation.queues, activation.interrupt).map_err(failed)?;
        let session = Arc::new(session);
        self.workers.serve(&session);
        self.session = Some(session);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(session) = self.session.take() {
            session.stop();
            self.workers.wait();
            self.requests.forget_all();
        }
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        self.reset();
    }
}

impl std::fmt::Debug for Fs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fs")
            .field("workers", &self.workers)
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

fn config_space(tag: &str) -> Result<[u8; CONFIG_LEN], FsError> {
    let mut space = [0; CONFIG_LEN];
    space
        .get_mut(..TAG_LEN)
        .and_then(|field| field.get_mut(..tag.len()))
        .ok_or_else(|| FsError::Tag(tag.into()))?
        .copy_from_slice(tag.as_bytes());
    space[TAG_LEN..].copy_from_slice(&REQUEST_QUEUES.to_le_bytes());
    Ok(space)
}

/// On a thread of its own, which can make the shared directory its working
/// directory without a change for others.
fn open(
    shared_dir: &Arc<OwnedFd>,
    proc_self_fd: OwnedFd,
    guest_fd_limit: u64,
) -> io::Result<SharedFs> {
    let shared_dir = Arc::clone(shared_dir);
    let opener = thread::Builder::new()
        .name("fs-open".into())
        .spawn(move || {
            worker::enter(&*shared_dir)?;
            SharedFs::open(proc_self_fd, guest_fd_limit)
        })?;
    opener
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that opens it panicked")))
}

/// Raises the limit of open files as far as it goes; what the guest may have
/// of it.
fn guest_fd_limit() -> Result<u64, FsError> {
    let limit = getrlimit(Resource::Nofile);
    let all = limit.maximum.unwrap_or(u64::MAX);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).map_err(|error| FsError::Limit(error.into()))?;
    match all.checked_sub(RESERVED_FDS) {
        Some(guest) if guest >= MIN_GUEST_FDS => Ok(guest),
        _ => Err(FsError::LimitTooLow {
            got: all,
            want: RESERVED_FDS + MIN_GUEST_FDS,
        }),
    }
}
