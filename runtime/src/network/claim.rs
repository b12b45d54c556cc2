//! Whose a network namespace is: the microVM's that has claimed it, with or without an
//! interface in it.
//!
//! The claim is an abstract name of a unix socket (unix(7)). Such names are each
//! network namespace's own, can be had once, and go with the socket, however its
//! process ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

const NAME: &[u8] = b"lazaret-microvm";

/// Who clears a namespace claims it for moments, and who was killed ends a moment after
/// its lock. That a name is free again nobody is told.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// A network namespace that belongs to this process, or to whom it hands this.
#[derive(Debug)]
pub struct Claim(OwnedFd);

impl Claim {
    /// Claims the thread's network namespace. `ADDRINUSE` is another's, and not for
    /// moments.
    pub(super) fn take() -> Result<Self, Errno> {
        Self::try_with(|| sleep(PAUSE))
    }

    fn try_with(mut pause: impl FnMut()) -> Result<Self, Errno> {
        for _ in 1..ATTEMPTS {
            match Self::try_once() {
                Err(Errno::ADDRINUSE) => pause(),
                result => return result,
            }
        }
        Self::try_once()
    }

    fn try_once() -> Result<Self, Errno> {
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

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_claim_for_moments_is_waited_for_and_another_is_not() {
        let in_a_namespace = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut brief = Some(Claim::take().unwrap());
            let claim = Claim::try_with(|| drop(brief.take())).unwrap();
            let mut pauses = 0;
            let err = Claim::try_with(|| pauses += 1).unwrap_err();
            assert_eq!((err, pauses), (Errno::ADDRINUSE, ATTEMPTS - 1));
            drop(claim);
        });
        in_a_namespace.join().unwrap();
    }
}
