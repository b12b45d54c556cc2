//! `ConfigureNetworkRequest` in the kernel's terms. The host is trusted, but a request
//! that is not understood must not be half done.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lazaret_netlink::{Address, AddressFlags, HardwareAddress, Neighbour, Route, RouteProtocol};
use lazaret_protocol::agent as proto;

use super::settings::Setting;
use crate::failure::{Failure, Result};

/// `IFNAMSIZ`, its terminating zero included.
const NAME_MAX: usize = 16;

/// Kernels have less than a hundred for an interface.
const SETTINGS_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Wished {
    pub(super) interfaces: Vec<Interface>,
    pub(super) name_server: Option<IpAddr>,
}

/// The `index` of its parts is 0 until the device is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) device: HardwareAddress,
    pub(super) name: String,
    pub(super) hardware_address: HardwareAddress,
    pub(super) mtu: u32,
    pub(super) ipv6: bool,
    pub(super) accept_ra: u32,
    pub(super) settings: Vec<Setting>,
    pub(super) addresses: Vec<Address>,
    pub(super) routes: Vec<Route>,
    pub(super) neighbours: Vec<Neighbour>,
}

impl TryFrom<&proto::ConfigureNetworkRequest> for Wished {
    type Error = Failure;

    fn try_from(request: &proto::ConfigureNetworkRequest) -> Result<Self> {
        let name_server = optional_ip(&request.name_server, "name server")?;
        if let Some(ip) = name_server.filter(|ip| !ip.is_loopback()) {
            return Err(Failure::invalid(format!("name server {ip} is no loopback")));
        }
        let interfaces = request.interfaces.iter().map(Interface::try_from);
        Ok(Self {
            interfaces: interfaces.collect::<Result<_>>()?,
            name_server,
        })
    }
}

impl TryFrom<&proto::Interface> for Interface {
    type Error = Failure;

    fn try_from(interface: &proto::Interface) -> Result<Self> {
        let name = &interface.name;
        let odd = |char: char| char == '/' || char.is_whitespace() || char.is_control();
        if !(1..NAME_MAX).contains(&name.len()) || name.starts_with('.') || name.contains(odd) {
            return Err(Failure::invalid(format!("interface name {name:?}")));
        }
        if interface.settings.len() > SETTINGS_MAX {
            let count = interface.settings.len();
            return Err(Failure::invalid(format!("{name}: {count} settings")));
        }
        Ok(Self {
            device: hardware(&interface.device, name)?,
            name: name.clone(),
            hardware_address: hardware(&interface.hardware_address, name)?,
            mtu: interface.mtu,
            ipv6: interface.ipv6,
            accept_ra: interface.accept_ra,
            settings: all(&interface.settings, |entry| Setting::read(entry, name))?,
            addresses: all(&interface.addresses, |entry| address(entry, name))?,
            routes: all(&interface.routes, |entry| route(entry, name))?,
            neighbours: all(&interface.neighbours, |entry| neighbour(entry, name))?,
        })
    }
}

impl Interface {
    /// Names the device's index in all its parts.
    pub(super) fn with_index(mut self, index: u32) -> Self {
        for address in &mut self.addresses {
            address.index = index;
        }
        for route in &mut self.routes {
            route.index = index;
        }
        for neighbour in &mut self.neighbours {
            neighbour.index = index;
        }
        self
    }
}

fn all<P, T>(entries: &[P], read: impl Fn(&P) -> Result<T>) -> Result<Vec<T>> {
    entries.iter().map(read).collect()
}

fn address(entry: &proto::InterfaceAddress, name: &str) -> Result<Address> {
    let ip = ip(&entry.address, name)?;
    // The host has looked for duplicates, and a container must not wait.
    let mut flags = match ip {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => AddressFlags::NO_DAD.0,
    };
    if entry.no_prefix_route {
        flags |= AddressFlags::NO_PREFIX_ROUTE.0;
    }
    Ok(Address {
        index: 0,
        ip,
        prefix_length: prefix_length(entry.prefix_length, ip)?,
        peer: optional_ip(&entry.peer, name)?,
        broadcast: optional_ip(&entry.broadcast, name)?,
        scope: byte(entry.scope, "scope")?,
        flags: AddressFlags(flags),
    })
}

fn route(entry: &proto::Route, name: &str) -> Result<Route> {
    let destination = ip(&entry.destination, name)?;
    Ok(Route {
        index: 0,
        destination,
        prefix_length: prefix_length(entry.prefix_length, destination)?,
        gateway: optional_ip(&entry.gateway, name)?,
        on_link: entry.on_link,
        preferred_source: optional_ip(&entry.preferred_source, name)?,
        metric: entry.metric,
        scope: byte(entry.scope, "scope")?,
        protocol: RouteProtocol(byte(entry.protocol, "routing protocol")?),
        mtu: (entry.mtu != 0).then_some(entry.mtu),
    })
}

fn neighbour(entry: &proto::Neighbour, name: &str) -> Result<Neighbour> {
    Ok(Neighbour {
        index: 0,
        ip: ip(&entry.address, name)?,
        hardware_address: hardware(&entry.hardware_address, name)?,
    })
}

fn hardware(bytes: &[u8], name: &str) -> Result<HardwareAddress> {
    bytes.try_into().map_err(|_| {
        let length = bytes.len();
        Failure::invalid(format!("{name}: hardware address of {length} bytes"))
    })
}

fn optional_ip(bytes: &[u8], name: &str) -> Result<Option<IpAddr>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    ip(bytes, name).map(Some)
}

fn ip(bytes: &[u8], name: &str) -> Result<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(octets).into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(octets) => Ok(Ipv6Addr::from(octets).into()),
        Err(_) => Err(Failure::invalid(format!(
            "{name}: address of {} bytes",
            bytes.len()
        ))),
    }
}

fn prefix_length(length: u32, ip: IpAddr) -> Result<u8> {
    let most = match ip {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    let length = byte(length, "prefix length")?;
    if length > most {
        return Err(Failure::invalid(format!("prefix length {length} of {ip}")));
    }
    Ok(length)
}

fn byte(value: u32, what: &str) -> Result<u8> {
    u8::try_from(value).map_err(|_| Failure::invalid(format!("{what} {value}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(change: impl FnOnce(&mut proto::Interface)) -> Result<Interface> {
        let mut interface = proto::Interface {
            device: vec![2, 0, 0, 0, 0, 1],
            name: "eth0".to_owned(),
            hardware_address: vec![2, 0, 0, 0, 0, 2],
            ..proto::Interface::default()
        };
        change(&mut interface);
        Interface::try_from(&interface)
    }

    fn setting(name: &str, value: &str) -> proto::InterfaceSetting {
        proto::InterfaceSetting {
            name: name.to_owned(),
            value: value.to_owned(),
            ..proto::InterfaceSetting::default()
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        type Change = fn(&mut proto::Interface);
        let cases: [(Change, &str); 11] = [
            (|i| i.name = "../all".to_owned(), "interface name"),
            (|i| i.name = "a".repeat(16), "interface name"),
            (|i| i.device.clear(), "hardware address of 0 bytes"),
            (
                |i| i.addresses.push(proto::InterfaceAddress::new()),
                "0 bytes",
            ),
            (
                |i| {
                    i.routes.push(proto::Route {
                        destination: vec![10, 0, 0, 0],
                        prefix_length: 33,
                        ..proto::Route::default()
                    });
                },
                "prefix length 33",
            ),
            (
                |i| {
                    i.routes.push(proto::Route {
                        destination: vec![10, 0, 0, 0],
                        scope: 256,
                        ..proto::Route::default()
                    });
                },
                "scope 256",
            ),
            (|i| i.settings.push(setting("../lo/tag", "1")), "setting"),
            (|i| i.settings.push(setting("", "1")), "setting"),
            (|i| i.settings.push(setting("tag", "")), "value"),
            (|i| i.settings.push(setting("tag", "1\n2")), "value"),
            (
                |i| i.settings = vec![setting("tag", "1"); 257],
                "257 settings",
            ),
        ];
        for (change, text) in cases {
            let failure = interface(change).expect_err(text);
            assert!(failure.message.contains(text), "{failure}");
        }
        assert!(interface(|_| {}).is_ok());
    }

    #[test]
    fn only_loopback_is_served_as_name_server() {
        let mut request = proto::ConfigureNetworkRequest::new();
        request.name_server = vec![127, 0, 0, 11];
        assert!(Wished::try_from(&request).is_ok());
        request.name_server = vec![10, 0, 0, 1];
        assert!(Wished::try_from(&request).is_err());
    }
}
