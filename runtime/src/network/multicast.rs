//! Multicast frames of groups that only the guest knows of: a macvlan or an ipvlan
//! takes those that its own list names, and what the guest joins is not in it.

use lazaret_netlink::{Link, LinkFlags, Message, Socket};
use rustix::io::Errno;

const RTM_NEWLINK: u16 = 16;

/// `IFF_ALLMULTI` of netdevice(7): all groups' frames are taken.
const ALL: LinkFlags = LinkFlags(0x200);

/// `struct ifinfomsg`.
const BODY: usize = 16;

/// Has a link take the frames of all groups. Returns whether that is new.
pub(super) fn take_all(socket: &mut Socket, index: u32) -> Result<bool, Errno> {
    let links = Link::list(socket)?;
    let link = links.iter().find(|link| link.index == index);
    if link.ok_or(Errno::NODEV)?.flags.contains(ALL) {
        return Ok(false);
    }
    switch(socket, index, ALL)?;
    Ok(true)
}

/// Has a link take those of its own groups again.
pub(super) fn take_own(socket: &mut Socket, index: u32) -> Result<(), Errno> {
    switch(socket, index, LinkFlags::default())
}

fn switch(socket: &mut Socket, index: u32, flags: LinkFlags) -> Result<(), Errno> {
    let mut body = [0; BODY];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.0.to_ne_bytes());
    body[12..].copy_from_slice(&ALL.0.to_ne_bytes());
    socket.execute(Message::new(RTM_NEWLINK, 0, &body))
}
