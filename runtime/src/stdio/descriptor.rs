//! One end of a stream on the host, whatever it is, for a thread that must never
//! block.
//!
//! `O_NONBLOCK` belongs to the open file description, which an inherited descriptor
//! shares with its engine, or with the shell it comes from: set here, it would make
//! their reads and writes fail. So it is never set on what was inherited:
//!
//! - pipes, terminals and other devices are opened anew through `/proc/self/fd`: the
//!   same pipe or terminal with an open file description of our own. A reader that
//!   takes the bytes another was woken for then finds none, and does not block;
//! - sockets have a flag for each single call;
//! - regular files, whose offset and `O_APPEND` are shared on purpose, and devices
//!   like `/dev/null` do not wait for anybody.
//!
//! Threads that block would do without any of this, but a read that has begun cannot
//! be called back: a thread left behind by an ended process would take the terminal's
//! next input. `io_uring` could, and is switched off on many hosts.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fstat, major, open};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::Interest;

use crate::watched::{Watched, watch};

/// Major number of memory devices: null, zero, full, random, urandom.
const MEMORY_DEVICES: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Input,
    Output,
}

#[derive(Debug)]
pub(super) struct Descriptor(Access);

#[derive(Debug)]
enum Access {
    /// Non-blocking, with an open file description of our own.
    Polled {
        fd: Watched,
        /// Bytes, or the end, may be there that the event loop does not hear of.
        unread: bool,
    },
    Socket(Watched),
    Direct(OwnedFd),
    /// The other side had gone before it was opened.
    Gone,
}

impl Descriptor {
    /// What has been opened here, non-blocking.
    pub(super) fn own(fd: OwnedFd, direction: Direction) -> io::Result<Self> {
        let fd = watch(fd, direction.interest())?;
        Ok(Self(Access::Polled { fd, unread: false }))
    }

    /// What another process has given.
    pub(super) fn inherited(fd: OwnedFd, direction: Direction) -> io::Result<Self> {
        let wrong = match direction {
            Direction::Input => OFlags::WRONLY,
            Direction::Output => OFlags::RDONLY,
        };
        let flags = fcntl_getfl(&fd)?;
        if flags & OFlags::RWMODE == wrong || flags.contains(OFlags::PATH) {
            // As for a container that had this very descriptor.
            return Ok(Self(Access::Gone));
        }
        let stat = fstat(&fd)?;
        let access = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::BlockDevice => Access::Direct(fd),
            FileType::CharacterDevice if major(stat.st_rdev) == MEMORY_DEVICES => {
                Access::Direct(fd)
            }
            FileType::Fifo | FileType::CharacterDevice => reopen(&fd, direction)?,
            FileType::Socket => Access::Socket(watch(fd, direction.interest())?),
            _ => return Err(Errno::INVAL.into()),
        };
        Ok(Self(access))
    }

    /// Zero bytes are the end.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Access::Polled { fd, unread } => {
                if std::mem::take(unread) {
                    match rustix::io::read(fd.get_ref(), &mut *buffer) {
                        Err(Errno::AGAIN) => {}
                        result => {
                            *unread = true;
                            return Ok(result?);
                        }
                    }
                }
                let read = |fd: &OwnedFd| Ok(rustix::io::read(fd, &mut *buffer)?);
                fd.async_io(Interest::READABLE, read).await
            }
            Access::Socket(fd) => {
                let receive = |fd: &OwnedFd| {
                    let (count, _) = rustix::net::recv(fd, &mut *buffer, RecvFlags::DONTWAIT)?;
                    Ok(count)
                };
                fd.async_io(Interest::READABLE, receive).await
            }
            Access::Direct(fd) => {
                // A file is always ready: others get their turn.
                tokio::task::yield_now().await;
                Ok(rustix::io::read(fd, buffer)?)
            }
            Access::Gone => Ok(0),
        }
    }

    /// What is there now, past the event loop, which may not have heard of it yet.
    pub(super) fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(match &self.0 {
            Access::Polled { fd, .. } => rustix::io::read(fd.get_ref(), buffer)?,
            Access::Socket(fd) => rustix::net::recv(fd.get_ref(), buffer, RecvFlags::DONTWAIT)?.0,
            Access::Direct(fd) => rustix::io::read(fd, buffer)?,
            Access::Gone => 0,
        })
    }

    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match &self.0 {
                Access::Polled { fd, .. } => {
                    let write = |fd: &OwnedFd| Ok(rustix::io::write(fd, bytes)?);
                    fd.async_io(Interest::WRITABLE, write).await?
                }
                Access::Socket(fd) => {
                    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                    let send = |fd: &OwnedFd| Ok(rustix::net::send(fd, bytes, flags)?);
                    fd.async_io(Interest::WRITABLE, send).await?
                }
                Access::Direct(fd) => match rustix::io::write(fd, bytes) {
                    Err(Errno::INTR) => 0,
                    result => result?,
                },
                Access::Gone => return Err(Errno::PIPE.into()),
            };
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Answers when nobody will ever read what is written.
    pub(super) async fn unread_for_good(&self) {
        match &self.0 {
            Access::Polled { fd, .. } => {
                // An error: it can no longer be watched.
                let _ = fd.ready(Interest::ERROR).await;
            }
            Access::Gone => {}
            Access::Socket(_) | Access::Direct(_) => std::future::pending().await,
        }
    }
}

impl Direction {
    fn interest(self) -> Interest {
        match self {
            Self::Input => Interest::READABLE,
            Self::Output => Interest::WRITABLE.add(Interest::ERROR),
        }
    }
}

fn reopen(fd: &OwnedFd, direction: Direction) -> io::Result<Access> {
    let access = match direction {
        Direction::Input => OFlags::RDONLY,
        Direction::Output => OFlags::WRONLY,
    };
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    match open(path, flags, Mode::empty()) {
        Ok(fd) => Ok(Access::Polled {
            fd: watch(fd, direction.interest())?,
            unread: true,
        }),
        // A pipe without a reader; a terminal whose other side has hung up.
        Err(Errno::NXIO) if is_fifo(fd.as_fd()) => Ok(Access::Gone),
        Err(Errno::IO) => Ok(Access::Gone),
        Err(err) => Err(err.into()),
    }
}

fn is_fifo(fd: BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}
