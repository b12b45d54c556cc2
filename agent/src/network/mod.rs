//! The guest's network: what the host wishes, told whole with each change, and what of
//! it is there already.
//!
//! A device of the guest is known by its permanent hardware address and has whatever
//! name and address the host's interface has. The agent takes back only what it has
//! set itself: containers may have set up more.

mod device;
mod entries;
mod name_server;
mod namespace;
mod redirect;
mod settings;
mod slots;
mod wished;

use std::collections::BTreeMap;
use std::net::IpAddr;

use lazaret_netlink::{HardwareAddress, Socket};
use lazaret_protocol::agent::ConfigureNetworkRequest;
use tokio::sync::Mutex;

use crate::failure::{Failure, OrFail, Result};
use entries::Entries;
use name_server::NameServer;
pub use name_server::{Dial, HostDns};
use wished::{Interface, Wished};

/// An interface as the agent has set it.
#[derive(Debug)]
struct Configured {
    index: u32,
    interface: Interface,
}

#[derive(Debug, Default)]
struct State {
    configured: BTreeMap<HardwareAddress, Configured>,
    name_server: Option<NameServer>,
}

/// The network of the namespace that its thread is in.
#[derive(Debug)]
pub struct Network<D = HostDns> {
    state: Mutex<State>,
    dns: D,
}

impl<D: Dial> Network<D> {
    pub fn new(dns: D) -> Self {
        Self {
            state: Mutex::default(),
            dns,
        }
    }

    pub async fn configure(&self, request: &ConfigureNetworkRequest) -> Result<()> {
        let wished = Wished::try_from(request)?;
        let mut state = self.state.lock().await;
        let mut socket = Socket::open().or_fail(|| "open a netlink socket")?;
        state.retire(&mut socket, &wished)?;
        for interface in &wished.interfaces {
            if !state.has_link_of(interface) {
                let index = match state.configured.get(&interface.device) {
                    Some(configured) => configured.index,
                    None => device::find(interface.device).await?,
                };
                state.place(&mut socket, interface, index)?;
                device::carrier(index).await?;
            }
        }
        for interface in wished.interfaces {
            state.fill(&mut socket, interface)?;
        }
        self.serve_names(&mut state, wished.name_server).await
    }

    async fn serve_names(&self, state: &mut State, address: Option<IpAddr>) -> Result<()> {
        if state.name_server.as_ref().map(NameServer::address) != address {
            if let Some(before) = state.name_server.take() {
                before.stop().await;
            }
            state.name_server = address
                .map(|address| NameServer::start(address, self.dns.clone()))
                .transpose()?;
        }
        Ok(())
    }
}

impl State {
    /// Takes out of use what is no longer wished.
    fn retire(&mut self, socket: &mut Socket, wished: &Wished) -> Result<()> {
        let gone: Vec<_> = self
            .configured
            .keys()
            .filter(|device| !wished.interfaces.iter().any(|i| i.device == **device))
            .copied()
            .collect();
        for device in gone {
            if let Some(configured) = self.configured.remove(&device) {
                let Configured { index, interface } = configured;
                device::rest(socket, index, Some(&interface))?;
                if !slots::let_go(&interface.name)? {
                    device::leave(socket, index, device)?;
                }
                tracing::info!(name = interface.name, "interface disconnected");
            }
        }
        Ok(())
    }

    /// Whether the link itself (not what is on it) is as wished.
    fn has_link_of(&self, wished: &Interface) -> bool {
        let configured = self.configured.get(&wished.device);
        configured.is_some_and(|Configured { interface, .. }| {
            interface.name == wished.name
                && interface.hardware_address == wished.hardware_address
                && interface.ipv6 == wished.ipv6
                && interface.accept_ra == wished.accept_ra
        })
    }

    /// Gives a device its name and address, and takes it up with nothing on it.
    fn place(&mut self, socket: &mut Socket, wished: &Interface, index: u32) -> Result<()> {
        let before = self.configured.remove(&wished.device);
        let before = before.as_ref().map(|configured| &configured.interface);
        device::rest(socket, index, before)?;
        self.free_name(socket, &wished.name, index)?;
        device::bring_up(socket, index, wished)?;
        tracing::info!(name = wished.name, "interface connected");
        let interface = Interface {
            addresses: Vec::new(),
            routes: Vec::new(),
            neighbours: Vec::new(),
            ..wished.clone()
        };
        self.configured
            .insert(wished.device, Configured { index, interface });
        Ok(())
    }

    /// Another device may have the name: an idle one, or one whose turn comes.
    fn free_name(&mut self, socket: &mut Socket, name: &str, index: u32) -> Result<()> {
        let Some(holder) = device::holder(socket, name)?.filter(|holder| holder.index != index)
        else {
            return Ok(());
        };
        let device = self
            .configured
            .iter()
            .find_map(|(device, configured)| (configured.index == holder.index).then_some(*device));
        let Some(device) = device.or(holder.permanent_address) else {
            return Err(Failure::invalid(format!(
                "an interface {name:?} has been made in the guest already"
            )));
        };
        let before = self.configured.remove(&device);
        let before = before.as_ref().map(|configured| &configured.interface);
        device::rest(socket, holder.index, before)?;
        device::leave(socket, holder.index, device)
    }

    /// Sets what is on the link: the difference to what has been set.
    fn fill(&mut self, socket: &mut Socket, wished: Interface) -> Result<()> {
        let Some(configured) = self.configured.get_mut(&wished.device) else {
            let name = wished.name;
            return Err(Failure::invalid(format!("two interfaces are {name:?}")));
        };
        let wished = wished.with_index(configured.index);
        let mut entries = Entries {
            socket,
            name: &wished.name,
        };
        let set = &mut configured.interface;
        if set.mtu != wished.mtu {
            device::set_mtu(entries.socket, configured.index, &wished)?;
            set.mtu = wished.mtu;
        }
        if set.settings != wished.settings {
            settings::change(&wished.name, &set.settings, &wished.settings)?;
            set.settings = wished.settings;
        }
        entries.remove_others(&mut set.neighbours, &wished.neighbours)?;
        entries.remove_others(&mut set.routes, &wished.routes)?;
        if entries.remove_others(&mut set.addresses, &wished.addresses)? {
            // The kernel may have removed routes along with an address, and with a primary
            // one of IPv4 its secondaries. Those still there are only told again.
            set.routes.clear();
            set.addresses.clear();
        }
        entries.add_missing(&mut set.addresses, wished.addresses)?;
        // A gateway is reached by a route without one. Of equal routes the kernel lists the
        // one first that was added last.
        let (through, direct): (Vec<_>, Vec<_>) = wished
            .routes
            .into_iter()
            .rev()
            .partition(|route| route.gateway.is_some());
        entries.add_missing(&mut set.routes, direct)?;
        entries.add_missing(&mut set.routes, through)?;
        entries.add_missing(&mut set.neighbours, wished.neighbours)
    }
}

#[cfg(test)]
mod tests;
