//! What there is in a network namespace for a guest to have.

mod settings;

use std::io;
use std::net::IpAddr;

use lazaret_netlink::{
    Address, AddressFlags, HardwareAddress, Link, LinkFlags, MAIN_TABLE, Neighbour, OtherKind,
    OtherRoute, Route, RouteProtocol, Socket, Table, ruled_tables,
};
use lazaret_protocol::agent as proto;
use rustix::io::Errno;
use thiserror::Error;

use super::tap;
use settings::{Setting, setting};

/// More is no container's network, and would not fit into a request.
const ENTRIES_MAX: usize = 4096;

/// `RT_TABLE_DEFAULT` (always empty), `RT_TABLE_MAIN` and `RT_TABLE_LOCAL`, which the
/// kernel fills.
const USUAL_TABLES: [u32; 3] = [253, MAIN_TABLE, 255];

#[derive(Debug, Error)]
pub enum InterfaceError {
    #[error("cannot read the network's {what}")]
    Read { what: &'static str, source: Errno },
    #[error("cannot read {path}")]
    Setting { path: String, source: io::Error },
    #[error(
        "interface {0} is not of Ethernet's kind, and a microVM has no other kind of interface"
    )]
    NotEthernet(String),
    #[error("interface {0} is an ipvlan that is not in mode l2, and a microVM cannot share it")]
    Ipvlan(String),
    #[error("route to {0} has several next hops, which a microVM's network does not get")]
    Multipath(String),
    #[error("route to {to} is of type {kind}, which a microVM's network does not get")]
    Nowhere { to: String, kind: &'static str },
    #[error("a routing rule leads to table {0}: policy routing cannot be honoured by a microVM")]
    PolicyRouting(u32),
    #[error("the network has more than {ENTRIES_MAX} {0}")]
    TooMany(&'static str),
}

/// An interface for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) hardware_address: HardwareAddress,
    pub(super) mtu: u32,
    ipv6: bool,
    accept_ra: u32,
    settings: Vec<Setting>,
    addresses: Vec<Address>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
}

/// A network namespace at one moment.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) interfaces: Vec<Interface>,
    /// Taps of sandboxes, this one's among them.
    pub(super) taps: Vec<Link>,
}

impl Found {
    /// Looks at the thread's network namespace.
    pub(super) fn look(socket: &mut Socket) -> Result<Self, InterfaceError> {
        let read = |what| move |source| InterfaceError::Read { what, source };
        let (taps, links): (Vec<_>, Vec<_>) = Link::list(socket)
            .map_err(read("links"))?
            .into_iter()
            .partition(tap::is_tap);
        let addresses = Address::list(socket).map_err(read("addresses"))?;
        let addresses = bounded(addresses, "addresses")?;
        let table = Table::read(socket).map_err(read("routes"))?;
        let routes = bounded(table.routes, "routes")?;
        let neighbours = Neighbour::list(socket).map_err(read("neighbours"))?;
        let neighbours = bounded(neighbours, "neighbours")?;
        let tables = ruled_tables(socket).map_err(read("rules"))?;
        if let Some(table) = tables.iter().find(|table| !USUAL_TABLES.contains(table)) {
            return Err(InterfaceError::PolicyRouting(*table));
        }
        if let Some(route) = table.others.first() {
            return Err(no_route_of_a_guest(route));
        }
        let used = links.into_iter().filter(is_used);
        let interfaces = used.map(|link| {
            let hardware_address = ethernet(&link)?;
            let index = link.index;
            Ok(Interface {
                index,
                ipv6: setting(&link.name, "disable_ipv6")?.is_some_and(|off| off == 0),
                accept_ra: setting(&link.name, "accept_ra")?.unwrap_or_default(),
                settings: settings::changed(&link.name)?,
                name: link.name,
                hardware_address,
                mtu: link.mtu,
                addresses: of(&addresses, |a| a.index == index && is_fixed(a)),
                routes: of(&routes, |r| r.index == index && !comes_by_itself(r)),
                neighbours: of(&neighbours, |n| n.index == index && !n.ip.is_multicast()),
            })
        });
        Ok(Self {
            interfaces: interfaces.collect::<Result<_, _>>()?,
            taps,
        })
    }
}

impl Interface {
    /// As the agent is told of it; `device` is the guest's that it becomes.
    pub(super) fn describe(&self, device: HardwareAddress) -> proto::Interface {
        proto::Interface {
            device: device.to_vec(),
            name: self.name.clone(),
            hardware_address: self.hardware_address.to_vec(),
            mtu: self.mtu,
            ipv6: self.ipv6,
            accept_ra: self.accept_ra,
            addresses: self.addresses.iter().map(address).collect(),
            routes: self.routes.iter().map(route).collect(),
            neighbours: self.neighbours.iter().map(neighbour).collect(),
            settings: self.settings.iter().map(Setting::describe).collect(),
            ..proto::Interface::default()
        }
    }
}

fn bounded<T>(list: Vec<T>, what: &'static str) -> Result<Vec<T>, InterfaceError> {
    if list.len() > ENTRIES_MAX {
        return Err(InterfaceError::TooMany(what));
    }
    Ok(list)
}

fn of<T: Copy>(list: &[T], belongs: impl Fn(&T) -> bool) -> Vec<T> {
    list.iter()
        .filter(|entry| belongs(entry))
        .copied()
        .collect()
}

/// Engines take an interface up when it is ready; kernels put more into each new
/// namespace (`tunl0`, `sit0`, …), down.
fn is_used(link: &Link) -> bool {
    link.flags.contains(LinkFlags::UP) && !link.flags.contains(LinkFlags::LOOPBACK)
}

fn ethernet(link: &Link) -> Result<HardwareAddress, InterfaceError> {
    if link.ipvlan_mode.is_some_and(|mode| mode != 0) {
        return Err(InterfaceError::Ipvlan(link.name.clone()));
    }
    link.hardware_address
        .ok_or_else(|| InterfaceError::NotEthernet(link.name.clone()))
}

/// Addresses that a router's advertisement has brought are not: the guest gets its own
/// in the same way. That is IPv6; what has a lifetime of IPv4 is a lease, which somebody
/// in the namespace renews. Nor is an address that somebody else on the link was found
/// to have, which the guest would use without a search.
fn is_fixed(address: &Address) -> bool {
    let flags = address.flags;
    let is_kept = address.ip.is_ipv4() || flags.contains(AddressFlags::PERMANENT);
    is_kept && !flags.contains(AddressFlags::DUPLICATE)
}

fn no_route_of_a_guest(route: &OtherRoute) -> InterfaceError {
    let to = format!("{}/{}", route.destination, route.prefix_length);
    match route.kind {
        OtherKind::SeveralHops => InterfaceError::Multipath(to),
        OtherKind::Type(kind) => InterfaceError::Nowhere { to, kind },
    }
}

/// The guest's kernel makes these along with addresses, or learns them of a router.
fn comes_by_itself(route: &Route) -> bool {
    [RouteProtocol::KERNEL, RouteProtocol::ROUTER].contains(&route.protocol)
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn address(address: &Address) -> proto::InterfaceAddress {
    proto::InterfaceAddress {
        address: octets(address.ip),
        prefix_length: address.prefix_length.into(),
        peer: address.peer.map(octets).unwrap_or_default(),
        broadcast: address.broadcast.map(octets).unwrap_or_default(),
        scope: address.scope.into(),
        no_prefix_route: address.flags.contains(AddressFlags::NO_PREFIX_ROUTE),
        ..proto::InterfaceAddress::default()
    }
}

fn route(route: &Route) -> proto::Route {
    proto::Route {
        destination: octets(route.destination),
        prefix_length: route.prefix_length.into(),
        gateway: route.gateway.map(octets).unwrap_or_default(),
        on_link: route.on_link,
        preferred_source: route.preferred_source.map(octets).unwrap_or_default(),
        metric: route.metric,
        scope: route.scope.into(),
        protocol: route.protocol.0.into(),
        mtu: route.mtu.unwrap_or_default(),
        ..proto::Route::default()
    }
}

fn neighbour(neighbour: &Neighbour) -> proto::Neighbour {
    proto::Neighbour {
        address: octets(neighbour.ip),
        hardware_address: neighbour.hardware_address.to_vec(),
        ..proto::Neighbour::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(ip: &str, flags: u32) -> Address {
        Address {
            index: 1,
            ip: ip.parse().unwrap(),
            prefix_length: 24,
            peer: None,
            broadcast: None,
            scope: 0,
            flags: AddressFlags(flags),
        }
    }

    #[test]
    fn an_address_that_somebody_else_has_is_not_passed_on() {
        let permanent = AddressFlags::PERMANENT.0;
        assert!(is_fixed(&address("fd00::2", permanent)));
        let duplicate = permanent | AddressFlags::DUPLICATE.0;
        assert!(!is_fixed(&address("fd00::2", duplicate)));
        assert!(!is_fixed(&address("fd00::2", 0)), "of a router");
    }

    #[test]
    fn a_lease_of_ipv4_is_passed_on() {
        assert!(is_fixed(&address("10.0.0.2", 0)));
        assert!(is_fixed(&address("10.0.0.2", AddressFlags::PERMANENT.0)));
    }
}
