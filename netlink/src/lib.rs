//! rtnetlink(7) as far as lazaret needs it: the host's side reads a container's
//! network, the guest's side writes it, so both speak of the same few types.
//!
//! Why not a crate: the kernel answers a request before `send` returns, so nothing
//! here has to be asynchronous, and the agent, whose size is copied into each
//! microVM, gets five messages for a few KiB.

mod address;
mod changes;
mod link;
mod message;
mod neighbour;
mod route;
mod rule;
mod socket;
mod table;

pub use address::{Address, AddressFlags};
pub use changes::{Changes, Groups};
pub use link::{Link, LinkChange, LinkFlags};
pub use message::{Attributes, Message, NEST, Reply, text};
pub use neighbour::Neighbour;
pub use route::{MAIN_TABLE, Route, RouteProtocol};
pub use rule::ruled_tables;
pub use socket::Socket;
pub use table::{OtherKind, OtherRoute, Table};

/// A 48-bit Ethernet address.
pub type HardwareAddress = [u8; 6];

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Flags of a request that makes something (linux/netlink.h).
pub const REPLACE: u16 = 0x100;
pub const EXCLUSIVE: u16 = 0x200;
pub const CREATE: u16 = 0x400;
