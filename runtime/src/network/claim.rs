//! Whose a network namespace is: the microVM's that has claimed it, with or without an
//! interface in it.
//!
//! The claim is an abstract name of a unix socket (unix(7)). Such names are each
//! network namespace's own, can be had once, and go with the socket, however its
//! process ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

const NAME: &[u8] = b"lazaret-microvm";

/// A network namespace that belongs to this process, or to whom it hands this.
#[derive(Debug)]
pub struct Claim(OwnedFd);

impl Claim {
    /// Claims the thread's network namespace. `ADDRINUSE` is another's.
    pub(super) fn take() -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC;
        // Nobody can connect to it: it does not listen.
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        bind(&socket, &SocketAddrUnix::new_abstract_name(NAME)?)?;
        Ok(Self(socket))
    }
}

impl AsFd for Claim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Claim {
    /// A claim that was handed over.
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}
