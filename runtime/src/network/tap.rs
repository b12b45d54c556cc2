//! Tap devices: the VMM's end of an interface.
#![expect(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use lazaret_netlink::{Link, LinkChange, Socket};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::ioctl::{Setter, ioctl, opcode};

const TUN: &str = "/dev/net/tun";

/// `IFNAMSIZ`
const NAME_MAX: usize = 16;

/// What names of our taps start with; the slot's number follows.
const PREFIX: &str = "lz";

/// What fits behind an Ethernet header into the longest packet; other kinds of
/// interfaces do not count the header.
const MTU_MAX: u32 = 65_521;

/// `linux/if_tun.h`. Frames are preceded by a header that tells of checksums and
/// segments still to be made, and by nothing else.
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// The part of `struct ifreq` that `TUNSETIFF` reads, and its rest.
#[repr(C)]
struct Request {
    name: [u8; NAME_MAX],
    flags: u16,
    rest: [u8; 22],
}

pub(super) fn name(slot: u8) -> String {
    format!("{PREFIX}{slot}")
}

/// Whether a link is a tap that a sandbox process has made.
pub(super) fn is_tap(link: &Link) -> bool {
    let number = link.name.strip_prefix(PREFIX);
    link.kind.as_deref() == Some("tun") && number.is_some_and(|slot| slot.parse::<u8>().is_ok())
}

/// The MTU of a tap that is tied to an interface with this one. Frames that come by
/// filters are not measured by it.
pub(super) fn mtu(interface: u32) -> u32 {
    interface.min(MTU_MAX)
}

/// A tap that exists for as long as its descriptor is open somewhere.
#[derive(Debug)]
pub(super) struct Tap {
    pub(super) fd: OwnedFd,
    pub(super) index: u32,
}

impl Tap {
    /// Makes the tap of a slot in the thread's network namespace, up and silent: the
    /// host's own network says nothing on it.
    pub(super) fn make(socket: &mut Socket, slot: u8, mtu: u32) -> io::Result<Self> {
        let name = name(slot);
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = open(TUN, flags, Mode::empty())?;
        attach(&fd, &name)?;
        let links = Link::list(socket)?;
        let link = links.iter().find(|link| link.name == name);
        let index = link.ok_or(Errno::NODEV)?.index;
        match fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
            // A kernel without IPv6.
            Err(err) if err.kind() == ErrorKind::NotFound => {}
            result => result?,
        }
        let change = LinkChange {
            mtu: Some(self::mtu(mtu)),
            arp: Some(false),
            up: Some(true),
            ..LinkChange::default()
        };
        change.apply(socket, index)?;
        Ok(Self { fd, index })
    }
}

fn attach(fd: &OwnedFd, name: &str) -> Result<(), Errno> {
    const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<std::ffi::c_int>(b'T', 202);
    let mut request = Request {
        name: [0; NAME_MAX],
        flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
        rest: [0; 22],
    };
    for (target, byte) in request.name.iter_mut().zip(name.bytes()) {
        *target = byte;
    }
    // SAFETY: TUNSETIFF takes a pointer to an ifreq, which `Request` is laid out as; its
    // name is shorter than the field, and so ends with a zero.
    let setter = unsafe { Setter::<TUNSETIFF, Request>::new(request) };
    // SAFETY: the opcode belongs to the type, see above, and the kernel keeps no pointer.
    unsafe { ioctl(fd, setter) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_as_large_as_the_kernels() {
        assert_eq!(size_of::<Request>(), 40);
    }
}
