//! Descriptors that the caller has left open: they are nobody's business in
//! the sandbox process, still less in the VMM.
#![expect(unsafe_code, reason = "descriptors are known by their numbers only")]

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::{FdFlags, fcntl_setfd};

use super::failure::OciError;

/// Standard input, output and error.
const STANDARD: i32 = 2;

/// Lets no descriptor but the standard ones outlive this program's image, nor
/// reach one that it starts.
pub(super) fn keep_to_self() -> Result<(), OciError> {
    mark().map_err(|source| OciError::Io {
        verb: "look through",
        path: "/proc/self/fd".into(),
        source,
    })
}

fn mark() -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let number = entry.file_name().to_str().ok();
        let Some(number) = number.and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if number > STANDARD {
            // SAFETY: nothing is read or written through it, and a number that has
            // been closed since is only an error.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            match fcntl_setfd(fd, FdFlags::CLOEXEC) {
                Err(rustix::io::Errno::BADF) => {}
                result => result?,
            }
        }
    }
    Ok(())
}
