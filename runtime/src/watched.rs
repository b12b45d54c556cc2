//! Registers a descriptor with the event loop, the one place that vouches for tokio's
//! condition on it.
#![expect(unsafe_code, reason = "tokio cannot see that an OwnedFd stays open")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(crate) type Watched = AsyncFd<OwnedFd>;

/// No call on the descriptor may block. Needs a runtime.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<Watched> {
    // SAFETY: an OwnedFd is open, and always the same descriptor, until it is dropped,
    // which only the AsyncFd that owns it does.
    let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
    watched.map_err(|error| error.into_parts().1)
}
