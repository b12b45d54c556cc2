//! The tap that a network slot is connected to: its header and its offloads.
#![expect(unsafe_code, reason = "ioctls of tun devices, writev on guest memory")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use thiserror::Error;

use super::offload::{HEADER_LEN, Offloads};
use crate::devices::virtio::buffers::Buffers;

/// What a tap is made with.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Why a descriptor cannot be connected to a network slot.
#[derive(Debug, Error)]
pub enum TapError {
    #[error("another tap is connected already")]
    Occupied,
    #[error("the descriptor is not that of a tun device's queue")]
    NotTun(#[source] io::Error),
    #[error("the device has flags {0:#x}: a tap with IFF_NO_PI and IFF_VNET_HDR is needed")]
    Flags(libc::c_short),
    #[error("{step} failed")]
    Step {
        step: &'static str,
        #[source]
        source: io::Error,
    },
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Done,
    /// The tap takes no more now.
    Full,
    /// The host's kernel does not take it: malformed, or the interface is down.
    Refused(Errno),
}

/// A queue of a tap device, non-blocking.
#[derive(Debug)]
pub(super) struct Tap(OwnedFd);

impl Tap {
    pub(super) fn new(fd: OwnedFd) -> Result<Self, TapError> {
        let tap = Self(fd);
        let flags = tap.flags().map_err(TapError::NotTun)?;
        if libc::c_int::from(flags) & FLAGS != FLAGS {
            return Err(TapError::Flags(flags));
        }
        let header_len = libc::c_int::try_from(HEADER_LEN).expect("12");
        // SAFETY: the kernel reads an integer that lives across the call.
        let result = unsafe {
            libc::ioctl(
                tap.0.as_raw_fd(),
                libc::TUNSETVNETHDRSZ,
                &raw const header_len,
            )
        };
        done(result, "setting the size of frame headers")?;
        rustix::io::ioctl_fionbio(&tap.0, true).map_err(|error| TapError::Step {
            step: "making the tap non-blocking",
            source: error.into(),
        })?;
        Ok(tap)
    }

    /// What a tap does with frames a socket does as well, and can be filled.
    #[cfg(test)]
    pub(super) fn of_socket(socket: OwnedFd) -> Self {
        Self(socket)
    }

    fn flags(&self) -> io::Result<libc::c_short> {
        // SAFETY: all zeros is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes a name and flags into a live `ifreq`.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: TUNGETIFF fills in this member of the union.
        Ok(unsafe { request.ifr_ifru.ifru_flags })
    }

    /// What the host may leave undone in frames that are read here.
    pub(super) fn set_offloads(&self, offloads: Offloads) -> Result<(), TapError> {
        let all = self.try_offloads(offloads);
        // The kernel is older than UDP segmentation.
        let result = match all {
            Err(_) if offloads != offloads.without_uso() => {
                self.try_offloads(offloads.without_uso())
            }
            other => other,
        };
        result.map_err(|source| TapError::Step {
            step: "setting the tap's offloads",
            source,
        })
    }

    fn try_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let flags = libc::c_ulong::from(offloads.tun_flags());
        // SAFETY: the argument is a number.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, flags) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads the next frame and its header; `None` when there is none.
    pub(super) fn receive(&self, frame: &mut [u8]) -> Result<Option<usize>, Errno> {
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut *frame)) {
            Ok(len) => Ok(Some(len)),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn send(&self, header: &[u8; HEADER_LEN], frame: &Buffers<'_>) -> Sent {
        match rustix::io::retry_on_intr(|| frame.write_after(header, &self.0)) {
            Ok(_) => Sent::Done,
            Err(Errno::AGAIN) => Sent::Full,
            Err(error) => Sent::Refused(error),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn done(result: libc::c_int, step: &'static str) -> Result<(), TapError> {
    if result < 0 {
        let source = io::Error::last_os_error();
        return Err(TapError::Step { step, source });
    }
    Ok(())
}
