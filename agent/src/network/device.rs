//! The guest's network devices: found, named, taken up and put to rest.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use lazaret_netlink::{Changes, Groups, HardwareAddress, Link, LinkChange, LinkFlags, Socket};
use rustix::io::Errno;
use tokio::time::timeout;

use super::wished::Interface;
use super::{settings, slots};
use crate::failure::{Code, Failure, OrFail, Result};

/// A device that the host has named is on its way, if it is not there.
const PATIENCE: Duration = Duration::from_secs(5);

/// Never forms link-local addresses by itself: the host's interface has one to copy.
const ADDR_GEN_MODE_NONE: &str = "1";

/// The index of the device with that permanent address (of one without, with that
/// address).
pub(super) async fn find(device: HardwareAddress) -> Result<u32> {
    slots::probe()?;
    let found = wait_for(|links| {
        let link = links.iter().find(|link| {
            let address = link.permanent_address.or(link.hardware_address);
            address == Some(device)
        });
        link.map(|link| link.index)
    });
    found.await?.ok_or_else(|| {
        Failure::new(
            Code::FailedPrecondition,
            format!("no network device {device:02x?} in the guest"),
        )
    })
}

/// Waits until frames can pass.
pub(super) async fn carrier(index: u32) -> Result<()> {
    let there = wait_for(|links| {
        let link = links.iter().find(|link| link.index == index)?;
        link.flags.contains(LinkFlags::LOWER_UP).then_some(())
    });
    if there.await?.is_none() {
        tracing::warn!(index, "an interface has no carrier");
    }
    Ok(())
}

/// Looks at the links until something is found, but not forever.
async fn wait_for<T>(mut look: impl FnMut(&[Link]) -> Option<T>) -> Result<Option<T>> {
    let doing = || "watch the network devices";
    let mut socket = Socket::open().or_fail(doing)?;
    // Subscribed before the first look: no change is missed.
    let changes = Changes::subscribe(Groups::LINK).or_fail(doing)?;
    let search = async {
        loop {
            let links = Link::list(&mut socket)?;
            if let Some(found) = look(&links) {
                return Ok::<T, io::Error>(found);
            }
            changes.wait().await?;
        }
    };
    match timeout(PATIENCE, search).await {
        Ok(found) => found.map(Some).or_fail::<&str>(doing),
        Err(_) => Ok(None),
    }
}

/// The link with that name.
pub(super) fn holder(socket: &mut Socket, name: &str) -> Result<Option<Link>> {
    let links = Link::list(socket).or_fail(|| "list the network devices")?;
    Ok(links.into_iter().find(|link| link.name == name))
}

/// Down, and without the addresses, routes and settings that it had `before`.
pub(super) fn rest(socket: &mut Socket, index: u32, before: Option<&Interface>) -> Result<()> {
    let down = LinkChange {
        up: Some(false),
        ..LinkChange::default()
    };
    down.apply(socket, index)
        .or_fail(|| format!("take network device {index} down"))?;
    let Some(before) = before else {
        return Ok(());
    };
    settings::change(&before.name, &before.settings, &[])?;
    for route in &before.routes {
        match route.remove(socket) {
            // Gone with the link, but for IPv6's of a destination and metric that other
            // interfaces have too.
            Ok(()) | Err(Errno::SRCH | Errno::NOENT | Errno::NODEV) => {}
            error => error.or_fail(|| format!("remove the route to {}", route.destination))?,
        }
    }
    for address in &before.addresses {
        match address.remove(socket) {
            // IPv6 has removed its own as the link went down.
            Ok(()) | Err(Errno::ADDRNOTAVAIL) => {}
            error => error.or_fail(|| format!("remove address {}", address.ip))?,
        }
    }
    Ok(())
}

/// Has a device that is down give up its name and address.
pub(super) fn leave(socket: &mut Socket, index: u32, device: HardwareAddress) -> Result<()> {
    let name = format!("idle{index}");
    let change = LinkChange {
        name: Some(&name),
        hardware_address: Some(device),
        ..LinkChange::default()
    };
    change
        .apply(socket, index)
        .or_fail(|| format!("rename network device {index} {name}"))
}

/// Names a device that is down, and takes it up.
pub(super) fn bring_up(socket: &mut Socket, index: u32, wished: &Interface) -> Result<()> {
    let name = &wished.name;
    let identity = LinkChange {
        name: Some(name),
        hardware_address: Some(wished.hardware_address),
        mtu: Some(wished.mtu),
        ..LinkChange::default()
    };
    identity
        .apply(socket, index)
        .or_fail(|| format!("name network device {index} {name}"))?;
    set_ipv6(wished)?;
    settings::change(name, &[], &wished.settings)?;
    let up = LinkChange {
        up: Some(true),
        ..LinkChange::default()
    };
    up.apply(socket, index)
        .or_fail(|| format!("bring {name} up"))
}

pub(super) fn set_mtu(socket: &mut Socket, index: u32, wished: &Interface) -> Result<()> {
    let change = LinkChange {
        mtu: Some(wished.mtu),
        ..LinkChange::default()
    };
    change
        .apply(socket, index)
        .or_fail(|| format!("set the MTU of {} to {}", wished.name, wished.mtu))
}

/// Addresses come from the host, which has looked for duplicates.
fn set_ipv6(wished: &Interface) -> Result<()> {
    let directory = Path::new("/proc/sys/net/ipv6/conf").join(&wished.name);
    let accept_ra = wished.accept_ra.to_string();
    let settings = [
        ("accept_dad", "0"),
        ("addr_gen_mode", ADDR_GEN_MODE_NONE),
        ("accept_ra", &accept_ra),
        ("disable_ipv6", if wished.ipv6 { "0" } else { "1" }),
    ];
    for (name, value) in settings {
        let path = directory.join(name);
        match fs::write(&path, value) {
            // Without IPv6 in the kernel nothing needs to be kept off.
            Err(err) if err.kind() == ErrorKind::NotFound && !wished.ipv6 => {}
            result => result.or_fail(|| format!("write {value} to {}", path.display()))?,
        }
    }
    Ok(())
}
