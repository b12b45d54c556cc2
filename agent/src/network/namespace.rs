//! Which network namespace a socket is of, in the word that BPF programs have for it.
#![expect(unsafe_code, reason = "the socket option has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Never given to another namespace, as long as the kernel runs.
pub(super) fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut size = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
    // SAFETY: the kernel writes no more than `size` bytes, which `cookie` has, and any
    // bytes make a u64.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}
