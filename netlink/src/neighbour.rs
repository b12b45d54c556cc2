//! Neighbours that are set and do not age.

use std::net::IpAddr;

use rustix::io::Errno;

use crate::message::{Message, Reply, family};
use crate::{AF_UNSPEC, CREATE, HardwareAddress, REPLACE, Socket};

const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

const NUD_PERMANENT: u16 = 0x80;

/// `struct ndmsg`.
const BODY: usize = 12;

/// A permanent entry of an interface's neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub index: u32,
    pub ip: IpAddr,
    pub hardware_address: HardwareAddress,
}

impl Neighbour {
    pub fn list(socket: &mut Socket) -> Result<Vec<Self>, Errno> {
        let replies = socket.dump(RTM_GETNEIGH, &[AF_UNSPEC; BODY])?;
        replies
            .iter()
            .filter(|reply| reply.kind == RTM_NEWNEIGH)
            .filter_map(|reply| Self::read(reply).transpose())
            .collect()
    }

    /// `None` for what ages, or is not Ethernet's.
    fn read(reply: &Reply) -> Result<Option<Self>, Errno> {
        let (body, attributes) = reply.split::<BODY>()?;
        let [_, _, _, _, i0, i1, i2, i3, s0, s1, _, _] = *body;
        let permanent = u16::from_ne_bytes([s0, s1]) & NUD_PERMANENT != 0;
        let hardware = attributes.find(NDA_LLADDR).filter(|_| permanent);
        let hardware = hardware.and_then(|address| HardwareAddress::try_from(address).ok());
        Ok(hardware
            .zip(attributes.ip(NDA_DST))
            .map(|(hardware_address, ip)| Self {
                index: u32::from_ne_bytes([i0, i1, i2, i3]),
                ip,
                hardware_address,
            }))
    }

    pub fn add(&self, socket: &mut Socket) -> Result<(), Errno> {
        let mut message = self.message(RTM_NEWNEIGH, CREATE | REPLACE);
        message.attribute(NDA_LLADDR, &self.hardware_address);
        socket.execute(message)
    }

    pub fn remove(&self, socket: &mut Socket) -> Result<(), Errno> {
        socket.execute(self.message(RTM_DELNEIGH, 0))
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let mut body = [0; BODY];
        body[0] = family(self.ip);
        body[4..8].copy_from_slice(&self.index.to_ne_bytes());
        body[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
        let mut message = Message::new(kind, flags, &body);
        message.ip(NDA_DST, self.ip);
        message
    }
}
