//! A tap in a network namespace of its own, and a packet socket on it: what the
//! guest sends is read there, and what is written there the guest receives.
#![expect(unsafe_code, reason = "ioctls and addresses that no crate here wraps")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Of test frames: local experimental.
pub(super) const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

const NAME: &[u8] = b"lztest0";

pub(super) struct HostSide {
    socket: OwnedFd,
}

impl HostSide {
    /// Moves the calling thread into a new network namespace.
    pub(super) fn new() -> Option<(Self, OwnedFd)> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: taps are made by root");
            return None;
        }
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        // Nothing but the test's frames.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        let tap = tap(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
        let socket = packet_socket();
        Some((Self { socket }, tap))
    }

    /// Sends a frame to the guest, without offloads.
    pub(super) fn send(&self, frame: &[u8]) {
        self.send_with([0; 10], frame);
    }

    /// The same with a header that asks for some.
    pub(super) fn send_with(&self, header: [u8; 10], frame: &[u8]) {
        let bytes = [&header, frame].concat();
        assert_eq!(
            rustix::io::write(&self.socket, &bytes).unwrap(),
            bytes.len()
        );
    }

    /// The next of the guest's frames with the tests' type.
    pub(super) fn receive(&self) -> Option<Vec<u8>> {
        loop {
            let frame = self.receive_any()?;
            if frame[12..14] == ETHERTYPE {
                return Some(frame);
            }
        }
    }

    /// The next frame, of whichever side.
    pub(super) fn receive_any(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 70_000];
        match rustix::io::read(&self.socket, &mut *bytes) {
            Ok(len) => Some(bytes[10..len].to_vec()),
            Err(rustix::io::Errno::AGAIN) => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A frame of `len` bytes with the tests' type.
pub(super) fn frame(len: usize, fill: u8) -> Vec<u8> {
    let mut frame = vec![fill; len];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(b"\x02test\x01");
    frame[12..14].copy_from_slice(&ETHERTYPE);
    frame
}

/// The interface is there.
pub(super) fn interface_exists() -> bool {
    // SAFETY: a string that ends with a zero.
    unsafe { libc::if_nametoindex(c"lztest0".as_ptr()) != 0 }
}

pub(super) fn tap(flags: libc::c_int) -> OwnedFd {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let mut request = request();
    request.ifr_ifru.ifru_flags = flags.try_into().unwrap();
    ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request);
    let up = packet_or_plain_socket(libc::AF_INET, libc::SOCK_DGRAM);
    request.ifr_ifru.ifru_flags = libc::IFF_UP.try_into().unwrap();
    ioctl(up.as_raw_fd(), libc::SIOCSIFFLAGS, &mut request);
    file.into()
}

fn packet_socket() -> OwnedFd {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
    let socket = packet_or_plain_socket(libc::AF_PACKET, kind);
    let one: libc::c_int = 1;
    // SAFETY: an option that is an integer.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const one).cast(),
            4,
        )
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET.try_into().unwrap();
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
    // SAFETY: a string that ends with a zero.
    let index = unsafe { libc::if_nametoindex(c"lztest0".as_ptr()) };
    address.sll_ifindex = index.try_into().unwrap();
    let len = size_of_val(&address).try_into().unwrap();
    // SAFETY: an address of the length that is given.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    socket
}

fn packet_or_plain_socket(family: libc::c_int, kind: libc::c_int) -> OwnedFd {
    // SAFETY: takes numbers.
    let fd = unsafe { libc::socket(family, kind, 0) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: made just now and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn request() -> libc::ifreq {
    // SAFETY: all zeros is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME) {
        *to = from.cast_signed();
    }
    request
}

fn ioctl(fd: libc::c_int, number: libc::Ioctl, request: &mut libc::ifreq) {
    // SAFETY: a request that these take.
    let result = unsafe { libc::ioctl(fd, number, std::ptr::from_mut(request)) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}
