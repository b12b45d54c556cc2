//! Requests to the kernel, and word of its changes.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recvfrom, send, socket_with,
};

use crate::message::{Message, Reply, replies};

/// The kernel makes datagrams of a dump as large as the reader takes, up to this.
const BUFFER: usize = 32 * 1024;

/// How often a list is read again because it changed meanwhile.
const DUMP_TRIES: usize = 8;

const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_ACK: u16 = 0x04;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A socket into the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub fn open() -> Result<Self, Errno> {
        Ok(Self {
            fd: raw_socket(SocketFlags::CLOEXEC)?,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Has something done; answers when it is.
    pub fn execute(&mut self, mut message: Message) -> Result<(), Errno> {
        message.add_flags(NLM_F_ACK);
        self.send(message)?;
        loop {
            for reply in self.receive()? {
                if reply.kind == NLMSG_ERROR {
                    return outcome(&reply);
                }
            }
        }
    }

    /// Reads a list, as it was at one moment.
    pub fn dump(&mut self, kind: u16, body: &[u8]) -> Result<Vec<Reply>, Errno> {
        for _ in 0..DUMP_TRIES {
            self.send(Message::new(kind, NLM_F_DUMP, body))?;
            if let Some(list) = self.receive_list()? {
                return Ok(list);
            }
        }
        Err(Errno::BUSY)
    }

    /// `None` when the list has changed while it was read.
    fn receive_list(&mut self) -> Result<Option<Vec<Reply>>, Errno> {
        let mut list = Vec::new();
        let mut changed = false;
        loop {
            for reply in self.receive()? {
                changed |= reply.flags & NLM_F_DUMP_INTR != 0;
                match reply.kind {
                    NLMSG_DONE => {
                        // Some lists end with an error in the place of a count.
                        outcome(&reply)?;
                        return Ok((!changed).then_some(list));
                    }
                    NLMSG_ERROR => {
                        outcome(&reply)?;
                        return Ok(None);
                    }
                    _ => list.push(reply),
                }
            }
        }
    }

    fn send(&mut self, mut message: Message) -> Result<(), Errno> {
        message.add_flags(NLM_F_REQUEST);
        self.sequence = self.sequence.wrapping_add(1);
        send(&self.fd, &message.finish(self.sequence), SendFlags::empty())?;
        Ok(())
    }

    /// The next datagram's replies to the last request.
    fn receive(&mut self) -> Result<Vec<Reply>, Errno> {
        loop {
            let (_, length, sender) =
                match recvfrom(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC) {
                    Err(Errno::INTR) => continue,
                    received => received?,
                };
            // Who may administer the network can send to any netlink socket.
            let kernel = sender
                .and_then(|sender| SocketAddrNetlink::try_from(sender).ok())
                .is_some_and(|sender| sender.pid() == 0);
            if !kernel {
                continue;
            }
            let datagram = self.buffer.get(..length).ok_or(Errno::MSGSIZE)?;
            let mut replies = replies(datagram)?;
            replies.retain(|reply| reply.sequence == self.sequence);
            if !replies.is_empty() {
                return Ok(replies);
            }
        }
    }
}

/// `struct nlmsgerr` starts with a negative error number, or 0.
fn outcome(reply: &Reply) -> Result<(), Errno> {
    let code = reply.payload.first_chunk().ok_or(Errno::BADMSG)?;
    match i32::from_ne_bytes(*code) {
        code @ ..0 => Err(Errno::from_raw_os_error(code.saturating_neg())),
        _ => Ok(()),
    }
}

pub(crate) fn raw_socket(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)
}
