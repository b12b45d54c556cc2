//! The main routing table, as the kernel lists it.

use std::net::IpAddr;

use rustix::io::Errno;

use crate::message::{Attributes, Reply, ip, padded, unspecified};
use crate::route::{
    BODY, MAIN_TABLE, RTA_DST, RTA_GATEWAY, RTA_METRICS, RTA_OIF, RTA_PREFSRC, RTA_PRIORITY,
    RTA_VIA, RTAX_MTU, RTM_NEWROUTE, RTN_UNICAST, RTNH_F_ONLINK,
};
use crate::{AF_INET6, AF_UNSPEC, Route, RouteProtocol, Socket};

const RTM_GETROUTE: u16 = 26;

const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;

/// `RTM_F_CLONED`: an entry of the cache, not of a table.
const CLONED: u32 = 0x200;

/// `struct rtnexthop`: length, flags, weight, interface.
const NEXT_HOP: usize = 8;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub routes: Vec<Route>,
    pub others: Vec<OtherRoute>,
}

/// What somebody has put into the table and a [`Route`] cannot say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherRoute {
    pub destination: IpAddr,
    pub prefix_length: u8,
    pub kind: OtherKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherKind {
    /// Several next hops, but for those of IPv6 that have equal weights: there each is a
    /// route of its own, and the kernel brings together what has the same destination
    /// and metric.
    SeveralHops,
    /// A type as ip-route(8) calls it: it leads nowhere.
    Type(&'static str),
}

impl Table {
    pub fn read(socket: &mut Socket) -> Result<Self, Errno> {
        let mut table = Self::default();
        for reply in socket.dump(RTM_GETROUTE, &[AF_UNSPEC; BODY])? {
            if reply.kind == RTM_NEWROUTE {
                table.take(&reply)?;
            }
        }
        Ok(table)
    }

    fn take(&mut self, reply: &Reply) -> Result<(), Errno> {
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
            return Ok(());
        };
        if table != MAIN_TABLE || flags & CLONED != 0 {
            return Ok(());
        }
        let destination = attributes.ip(RTA_DST).unwrap_or(any);
        let protocol = RouteProtocol(protocol);
        let other = |kind| OtherRoute {
            destination,
            prefix_length,
            kind,
        };
        if kind != RTN_UNICAST {
            let name = leads_nowhere(kind).filter(|_| protocol != RouteProtocol::KERNEL);
            let name = name.map(|name| other(OtherKind::Type(name)));
            self.others.extend(name);
            return Ok(());
        }
        let metrics = attributes.nested(RTA_METRICS);
        let through = |hop: &Hop<'_>| Route {
            index: hop.index,
            destination,
            prefix_length,
            gateway: hop.gateway(),
            on_link: hop.on_link,
            preferred_source: attributes.ip(RTA_PREFSRC),
            metric: attributes.number(RTA_PRIORITY).unwrap_or_default(),
            scope,
            protocol,
            mtu: metrics
                .as_ref()
                .and_then(|metrics| metrics.number(RTAX_MTU)),
        };
        let hops = match attributes.find(RTA_MULTIPATH) {
            Some(hops) => several(hops)?,
            None => Vec::from_iter(attributes.number(RTA_OIF).map(|index| Hop {
                index,
                on_link: flags & RTNH_F_ONLINK != 0,
                weight: 0,
                attributes: attributes.clone(),
            })),
        };
        let joined = family == AF_INET6 && hops.iter().all(|hop| hop.weight == hops[0].weight);
        match &hops[..] {
            [hop] => self.routes.push(through(hop)),
            [_, ..] if joined => self.routes.extend(hops.iter().map(through)),
            _ => self.others.push(other(OtherKind::SeveralHops)),
        }
        Ok(())
    }
}

/// A type (`RTN_*`) that is no way to anywhere. Those of addresses are the kernel's.
fn leads_nowhere(kind: u8) -> Option<&'static str> {
    match kind {
        6 => Some("blackhole"),
        7 => Some("unreachable"),
        8 => Some("prohibit"),
        9 => Some("throw"),
        _ => None,
    }
}

struct Hop<'a> {
    index: u32,
    on_link: bool,
    /// Less one, as the kernel has it.
    weight: u8,
    attributes: Attributes<'a>,
}

impl Hop<'_> {
    fn gateway(&self) -> Option<IpAddr> {
        let gateway = self.attributes.ip(RTA_GATEWAY);
        gateway.or_else(|| via(&self.attributes))
    }
}

/// One `struct rtnexthop` after the other, each with attributes.
fn several(mut bytes: &[u8]) -> Result<Vec<Hop<'_>>, Errno> {
    let mut hops = Vec::new();
    while !bytes.is_empty() {
        let header: &[u8; NEXT_HOP] = bytes.first_chunk().ok_or(Errno::BADMSG)?;
        let [l0, l1, flags, weight, i0, i1, i2, i3] = *header;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let attributes = bytes.get(NEXT_HOP..length).ok_or(Errno::BADMSG)?;
        hops.push(Hop {
            index: u32::from_ne_bytes([i0, i1, i2, i3]),
            on_link: u32::from(flags) & RTNH_F_ONLINK != 0,
            weight,
            attributes: Attributes::new(attributes),
        });
        bytes = bytes.get(padded(length)..).unwrap_or_default();
    }
    Ok(hops)
}

/// `struct rtvia`: a gateway of the other family.
fn via(attributes: &Attributes<'_>) -> Option<IpAddr> {
    let (found, address) = attributes.find(RTA_VIA)?.split_at_checked(2)?;
    let found = u16::from_ne_bytes(found.try_into().ok()?);
    (found == u16::from(AF_INET6)).then(|| ip(address))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AF_INET;
    use crate::message::{Message, NEST, replies};

    /// A default route of the main table as the kernel tells of it.
    fn taken(family: u8, kind: u8, protocol: u8, fill: impl FnOnce(&mut Message)) -> Table {
        let body = [family, 0, 0, 0, 254, protocol, 0, kind, 0, 0, 0, 0];
        let mut message = Message::new(RTM_NEWROUTE, 0, &body);
        message.number(RTA_PRIORITY, 100);
        fill(&mut message);
        let mut table = Table::default();
        let bytes = message.finish(1);
        table.take(&replies(&bytes).unwrap()[0]).unwrap();
        table
    }

    fn hops(message: &mut Message, hops: &[(u8, u8, &str)]) {
        message.nest(RTA_MULTIPATH | NEST, |nest| {
            for (index, weight, gateway) in hops {
                let gateway: IpAddr = gateway.parse().unwrap();
                let length = if gateway.is_ipv4() { 16 } else { 28 };
                let [l0, l1] = u16::to_ne_bytes(length);
                let [i0, i1, i2, i3] = u32::from(*index).to_ne_bytes();
                nest.body(&[l0, l1, 0, *weight, i0, i1, i2, i3]);
                nest.ip(RTA_GATEWAY, gateway);
            }
        });
    }

    #[test]
    fn equal_hops_of_ipv6_are_routes_of_their_own() {
        let table = taken(AF_INET6, RTN_UNICAST, 3, |message| {
            hops(message, &[(4, 0, "fd00:1::1"), (5, 0, "fd00:2::1")]);
        });
        let found: Vec<_> = table
            .routes
            .iter()
            .map(|route| {
                (
                    route.index,
                    route.gateway.unwrap().to_string(),
                    route.metric,
                )
            })
            .collect();
        let expected = [(4, "fd00:1::1", 100), (5, "fd00:2::1", 100)];
        assert_eq!(found, expected.map(|(i, g, m)| (i, g.to_owned(), m)));
        assert!(table.others.is_empty());
    }

    #[test]
    fn other_hops_are_told_apart() {
        let cases = [
            (AF_INET6, [(4, 0, "fd00:1::1"), (5, 1, "fd00:2::1")]),
            (AF_INET, [(4, 0, "10.0.1.1"), (5, 0, "10.0.2.1")]),
        ];
        for (family, ways) in cases {
            let table = taken(family, RTN_UNICAST, 3, |message| hops(message, &ways));
            assert!(table.routes.is_empty(), "{table:?}");
            assert_eq!(table.others[0].kind, OtherKind::SeveralHops);
        }
    }

    #[test]
    fn what_leads_nowhere_is_named_unless_it_is_the_kernels() {
        for (kind, name) in [
            (6, "blackhole"),
            (7, "unreachable"),
            (8, "prohibit"),
            (9, "throw"),
        ] {
            let table = taken(AF_INET, kind, 4, |_| {});
            assert!(table.routes.is_empty());
            assert_eq!(table.others[0].kind, OtherKind::Type(name));
        }
        for (kind, protocol) in [(7, 2), (2, 4), (3, 2), (4, 2), (5, 2)] {
            let table = taken(AF_INET6, kind, protocol, |_| {});
            assert_eq!(table, Table::default(), "type {kind}");
        }
    }

    #[test]
    fn broken_hops_are_no_panic() {
        for length in [0_u16, 7, 9, u16::MAX] {
            let mut bytes = [0; NEXT_HOP];
            bytes[..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(several(&bytes).err(), Some(Errno::BADMSG), "{length}");
        }
    }
}
