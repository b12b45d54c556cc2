//! Routes of the main table.

use std::net::IpAddr;

use rustix::io::Errno;

use crate::message::{Attributes, Message, NEST, Reply, family, ip, unspecified};
use crate::{AF_INET6, AF_UNSPEC, CREATE, Socket};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTAX_MTU: u16 = 2;

const RTNH_F_ONLINK: u32 = 4;

const RTN_UNICAST: u8 = 1;

/// `RTM_F_CLONED`: an entry of the cache, not of a table.
const CLONED: u32 = 0x200;

/// `RT_TABLE_MAIN`
pub const MAIN_TABLE: u32 = 254;

/// `struct rtmsg`.
const BODY: usize = 12;

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
    /// The interface it leaves through; 0 for a route with several ways.
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
    pub fn list(socket: &mut Socket) -> Result<Vec<Self>, Errno> {
        let replies = socket.dump(RTM_GETROUTE, &[AF_UNSPEC; BODY])?;
        replies
            .iter()
            .filter(|reply| reply.kind == RTM_NEWROUTE)
            .filter_map(|reply| Self::read(reply).transpose())
            .collect()
    }

    /// `None` for what is not a unicast route of the main table.
    fn read(reply: &Reply) -> Result<Option<Self>, Errno> {
        let (body, attributes) = reply.split::<BODY>()?;
        let [
            family,
            prefix_length,
            _,
            _,
            table,
            protocol,
            scope,
            kind,
            f0,
            f1,
            f2,
            f3,
        ] = *body;
        let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
        let table = attributes.number(RTA_TABLE).unwrap_or(table.into());
        let Some(any) = unspecified(family) else {
            return Ok(None);
        };
        if table != MAIN_TABLE || kind != RTN_UNICAST || flags & CLONED != 0 {
            return Ok(None);
        }
        let several = attributes.find(RTA_MULTIPATH).is_some();
        let metrics = attributes.nested(RTA_METRICS);
        Ok(Some(Self {
            index: match attributes.number(RTA_OIF) {
                Some(index) if !several => index,
                _ => 0,
            },
            destination: attributes.ip(RTA_DST).unwrap_or(any),
            prefix_length,
            gateway: attributes.ip(RTA_GATEWAY).or_else(|| via(&attributes)),
            on_link: flags & RTNH_F_ONLINK != 0,
            preferred_source: attributes.ip(RTA_PREFSRC),
            metric: attributes.number(RTA_PRIORITY).unwrap_or_default(),
            scope,
            protocol: RouteProtocol(protocol),
            mtu: metrics.and_then(|metrics| metrics.number(RTAX_MTU)),
        }))
    }

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

/// `struct rtvia`: a gateway of the other family.
fn via(attributes: &Attributes<'_>) -> Option<IpAddr> {
    let (found, address) = attributes.find(RTA_VIA)?.split_at_checked(2)?;
    let found = u16::from_ne_bytes(found.try_into().ok()?);
    (found == u16::from(AF_INET6)).then(|| ip(address))?
}
