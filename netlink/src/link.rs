//! Interfaces.

use rustix::io::Errno;

use crate::message::{Attributes, Message, Reply, text};
use crate::{AF_UNSPEC, HardwareAddress, Socket};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_PERM_ADDRESS: u16 = 54;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_IPVLAN_MODE: u16 = 1;

/// `struct ifinfomsg`.
const BODY: usize = 16;

/// `ARPHRD_ETHER`
const ETHERNET: u16 = 1;

/// `IFF_*` of netdevice(7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkFlags(pub u32);

impl LinkFlags {
    pub const UP: Self = Self(0x1);
    pub const LOOPBACK: Self = Self(0x8);
    pub const NOARP: Self = Self(0x80);
    /// The carrier is there.
    pub const LOWER_UP: Self = Self(0x1_0000);

    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub flags: LinkFlags,
    pub mtu: u32,
    /// Of Ethernet links only.
    pub hardware_address: Option<HardwareAddress>,
    /// What the device was made with, where it has such a thing.
    pub permanent_address: Option<HardwareAddress>,
    /// `veth`, `tun`, …; none for a device of a driver.
    pub kind: Option<String>,
    /// 0 for layer 2.
    pub ipvlan_mode: Option<u16>,
}

impl Link {
    pub fn list(socket: &mut Socket) -> Result<Vec<Self>, Errno> {
        let replies = socket.dump(RTM_GETLINK, &[AF_UNSPEC; BODY])?;
        replies
            .iter()
            .filter(|reply| reply.kind == RTM_NEWLINK)
            .map(Self::read)
            .collect()
    }

    fn read(reply: &Reply) -> Result<Self, Errno> {
        let (body, attributes) = reply.split::<BODY>()?;
        let [_, _, t0, t1, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *body;
        let ethernet = u16::from_ne_bytes([t0, t1]) == ETHERNET;
        let address = |kind| {
            let value = attributes.find(kind).filter(|_| ethernet)?;
            HardwareAddress::try_from(value).ok()
        };
        let info = attributes.nested(IFLA_LINKINFO);
        let kind = info.as_ref().and_then(|info| info.find(IFLA_INFO_KIND));
        let kind = kind.map(text);
        let data = info.and_then(|info| info.nested(IFLA_INFO_DATA));
        Ok(Self {
            index: u32::from_ne_bytes([i0, i1, i2, i3]),
            name: text(attributes.find(IFLA_IFNAME).ok_or(Errno::BADMSG)?),
            flags: LinkFlags(u32::from_ne_bytes([f0, f1, f2, f3])),
            mtu: attributes.number(IFLA_MTU).ok_or(Errno::BADMSG)?,
            hardware_address: address(IFLA_ADDRESS),
            permanent_address: address(IFLA_PERM_ADDRESS),
            ipvlan_mode: data.filter(|_| kind.as_deref() == Some("ipvlan")).and_then(
                |data: Attributes<'_>| {
                    let mode = data.find(IFLA_IPVLAN_MODE)?;
                    Some(u16::from_ne_bytes(mode.try_into().ok()?))
                },
            ),
            kind,
        })
    }
}

/// What is to become of a link; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange<'a> {
    pub name: Option<&'a str>,
    pub hardware_address: Option<HardwareAddress>,
    pub mtu: Option<u32>,
    pub up: Option<bool>,
    pub arp: Option<bool>,
}

impl LinkChange<'_> {
    pub fn apply(&self, socket: &mut Socket, index: u32) -> Result<(), Errno> {
        let mut flags = 0;
        let mut mask = 0;
        let switches = [
            (LinkFlags::UP, self.up),
            (LinkFlags::NOARP, self.arp.map(|arp| !arp)),
        ];
        for (flag, switch) in switches {
            if let Some(on) = switch {
                mask |= flag.0;
                flags |= if on { flag.0 } else { 0 };
            }
        }
        let mut body = [0; BODY];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        body[8..12].copy_from_slice(&u32::to_ne_bytes(flags));
        body[12..].copy_from_slice(&u32::to_ne_bytes(mask));
        let mut message = Message::new(RTM_NEWLINK, 0, &body);
        if let Some(name) = self.name {
            message.string(IFLA_IFNAME, name);
        }
        if let Some(address) = &self.hardware_address {
            message.attribute(IFLA_ADDRESS, address);
        }
        if let Some(mtu) = self.mtu {
            message.number(IFLA_MTU, mtu);
        }
        socket.execute(message)
    }
}
