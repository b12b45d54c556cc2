//! Routes of the main table.

use std::net::IpAddr;

use rustix::io::Errno;

use crate::message::{Message, NEST, family};
use crate::{CREATE, Socket};

pub(crate) const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;

pub(crate) const RTA_DST: u16 = 1;
pub(crate) const RTA_OIF: u16 = 4;
pub(crate) const RTA_GATEWAY: u16 = 5;
pub(crate) const RTA_PRIORITY: u16 = 6;
pub(crate) const RTA_PREFSRC: u16 = 7;
pub(crate) const RTA_METRICS: u16 = 8;
pub(crate) const RTA_VIA: u16 = 18;
pub(crate) const RTAX_MTU: u16 = 2;

pub(crate) const RTNH_F_ONLINK: u32 = 4;

pub(crate) const RTN_UNICAST: u8 = 1;

/// `RT_TABLE_MAIN`
pub const MAIN_TABLE: u32 = 254;

/// `struct rtmsg`.
pub(crate) const BODY: usize = 12;

/// `RTPROT_*`: who has made a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteProtocol(pub u8);

impl RouteProtocol {
    /// The kernel, along with an address.
    pub const KERNEL: Self = Self(2);
    pub const BOOT: Self = Self(3);
    pub const STATIC: Self = Self(4);
    /// A router's advertisement.
    pub const ROUTER: Self = Self(9);
}

/// A unicast route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The interface it leaves through.
    pub index: u32,
    pub destination: IpAddr,
    pub prefix_length: u8,
    pub gateway: Option<IpAddr>,
    /// The gateway needs no route to it.
    pub on_link: bool,
    pub preferred_source: Option<IpAddr>,
    pub metric: u32,
    /// `RT_SCOPE_*`
    pub scope: u8,
    pub protocol: RouteProtocol,
    pub mtu: Option<u32>,
}

impl Route {
    pub fn add(&self, socket: &mut Socket) -> Result<(), Errno> {
        // Never in another's place: networks of an engine have a default route each, of
        // one metric, and the kernel keeps them all. The last one added is used.
        let mut message = self.message(RTM_NEWROUTE, CREATE);
        if let Some(source) = self.preferred_source {
            message.ip(RTA_PREFSRC, source);
        }
        if let Some(mtu) = self.mtu {
            message.nest(RTA_METRICS | NEST, |metrics| metrics.number(RTAX_MTU, mtu));
        }
        socket.execute(message)
    }

    pub fn remove(&self, socket: &mut Socket) -> Result<(), Errno> {
        socket.execute(self.message(RTM_DELROUTE, 0))
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let table = u8::try_from(MAIN_TABLE).unwrap_or_default();
        let route_flags = if self.on_link { RTNH_F_ONLINK } else { 0 };
        let mut body = [0; BODY];
        body[0] = family(self.destination);
        body[1] = self.prefix_length;
        body[4..8].copy_from_slice(&[table, self.protocol.0, self.scope, RTN_UNICAST]);
        body[8..].copy_from_slice(&route_flags.to_ne_bytes());
        let mut message = Message::new(kind, flags, &body);
        if self.prefix_length > 0 {
            message.ip(RTA_DST, self.destination);
        }
        message.number(RTA_OIF, self.index);
        match self.gateway {
            None => {}
            Some(gateway) if family(gateway) == family(self.destination) => {
                message.ip(RTA_GATEWAY, gateway);
            }
            Some(gateway) => message.nest(RTA_VIA, |via| {
                via.body(&u16::from(family(gateway)).to_ne_bytes());
                match gateway {
                    IpAddr::V4(ip) => via.body(&ip.octets()),
                    IpAddr::V6(ip) => via.body(&ip.octets()),
                }
            }),
        }
        if self.metric != 0 {
            message.number(RTA_PRIORITY, self.metric);
        }
        message
    }
}
