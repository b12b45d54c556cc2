//! Addresses of interfaces.

use std::net::IpAddr;

use rustix::io::Errno;

use crate::message::{Message, Reply, family};
use crate::{AF_UNSPEC, CREATE, REPLACE, Socket};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;

/// `struct ifaddrmsg`.
const BODY: usize = 8;

/// `IFA_F_*` of `linux/if_addr.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressFlags(pub u32);

impl AddressFlags {
    pub const NO_DAD: Self = Self(0x02);
    /// Somebody else on the link has it.
    pub const DUPLICATE: Self = Self(0x08);
    pub const PERMANENT: Self = Self(0x80);
    pub const NO_PREFIX_ROUTE: Self = Self(0x200);

    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub index: u32,
    pub ip: IpAddr,
    pub prefix_length: u8,
    /// The other end of a point-to-point link.
    pub peer: Option<IpAddr>,
    pub broadcast: Option<IpAddr>,
    /// `RT_SCOPE_*`
    pub scope: u8,
    pub flags: AddressFlags,
}

impl Address {
    pub fn list(socket: &mut Socket) -> Result<Vec<Self>, Errno> {
        let replies = socket.dump(RTM_GETADDR, &[AF_UNSPEC; BODY])?;
        replies
            .iter()
            .filter(|reply| reply.kind == RTM_NEWADDR)
            .filter_map(|reply| Self::read(reply).transpose())
            .collect()
    }

    /// `None` for an address of another family.
    fn read(reply: &Reply) -> Result<Option<Self>, Errno> {
        let (body, attributes) = reply.split::<BODY>()?;
        let [_, prefix_length, short_flags, scope, i0, i1, i2, i3] = *body;
        let address = attributes.ip(IFA_ADDRESS);
        let Some(ip) = attributes.ip(IFA_LOCAL).or(address) else {
            return Ok(None);
        };
        let flags = attributes.number(IFA_FLAGS);
        Ok(Some(Self {
            index: u32::from_ne_bytes([i0, i1, i2, i3]),
            ip,
            prefix_length,
            peer: address.filter(|peer| *peer != ip),
            broadcast: attributes.ip(IFA_BROADCAST),
            scope,
            flags: AddressFlags(flags.unwrap_or(short_flags.into())),
        }))
    }

    pub fn add(&self, socket: &mut Socket) -> Result<(), Errno> {
        let mut message = self.message(RTM_NEWADDR, CREATE | REPLACE);
        if let Some(broadcast) = self.broadcast {
            message.ip(IFA_BROADCAST, broadcast);
        }
        message.number(IFA_FLAGS, self.flags.0);
        socket.execute(message)
    }

    pub fn remove(&self, socket: &mut Socket) -> Result<(), Errno> {
        socket.execute(self.message(RTM_DELADDR, 0))
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let [i0, i1, i2, i3] = self.index.to_ne_bytes();
        let body = [
            family(self.ip),
            self.prefix_length,
            0,
            self.scope,
            i0,
            i1,
            i2,
            i3,
        ];
        let mut message = Message::new(kind, flags, &body);
        message.ip(IFA_LOCAL, self.ip);
        message.ip(IFA_ADDRESS, self.peer.unwrap_or(self.ip));
        message
    }
}
