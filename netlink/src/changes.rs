//! Word of the kernel's changes.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram as StdUnixDatagram;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvFlags, SocketFlags, bind, recv};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use crate::socket::raw_socket;

/// What to be told of (`RTMGRP_*`, `linux/rtnetlink.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups(u32);

impl Groups {
    pub const LINK: Self = Self(0x1);
    /// Links, neighbours, addresses and routes of both families.
    pub const ALL: Self = Self(0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400);
}

/// Wakes with each change. What has changed is for the woken to look up: messages can
/// be lost, and that something was lost is a change as well.
#[derive(Debug)]
pub struct Changes {
    // tokio has no netlink sockets; all that is used of this is its readiness.
    socket: UnixDatagram,
}

impl Changes {
    /// Of the network namespace of the calling thread. Needs a runtime.
    pub fn subscribe(groups: Groups) -> io::Result<Self> {
        let fd = raw_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        bind(&fd, &SocketAddrNetlink::new(0, groups.0))?;
        let socket = UnixDatagram::from_std(StdUnixDatagram::from(fd))?;
        Ok(Self { socket })
    }

    /// Answers when there has been a change since the last answer.
    pub async fn wait(&self) -> io::Result<()> {
        self.socket
            .async_io(Interest::READABLE, || self.drain())
            .await
    }

    fn drain(&self) -> io::Result<()> {
        let mut some = [0; 64];
        let mut any = false;
        loop {
            match recv(self.socket.as_fd(), &mut some, RecvFlags::empty()) {
                Ok(_) | Err(Errno::NOBUFS) => any = true,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if any => return Ok(()),
                Err(err) => return Err(err.into()),
            }
        }
    }
}
