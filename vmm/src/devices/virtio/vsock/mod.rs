//! virtio-vsock (virtio 1.3, section 5.10) ending in unix sockets: neither the
//! host's kernel nor its CIDs take part.
//!
//! ```text
//!  host process ──connect──▶ listener: "CONNECT <port>\n" ──REQUEST──▶ guest
//!  host process ◀──"OK <host port>\n"────────────────────◀─RESPONSE── guest
//!  HostPorts::connected(port, socket) ◀──────────────────◀─REQUEST─── guest
//! ```
//!
//! `packet` parses, `connection` is the state of one stream, `muxer` knows them
//! all, `datapath` moves packets between them and the queues, `device` is what
//! the transport sees.

mod connection;
mod credit;
mod datapath;
mod device;
mod handshake;
mod muxer;
mod packet;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;

pub use device::{VsockDevice, VsockHandle};

/// Where connections go that the guest makes to the host.
pub trait HostPorts: Send + Sync {
    /// Takes the host's end, a blocking socket, of a connection to `port`. Runs
    /// on the event loop and must not block; after an error the guest's
    /// connection is refused.
    fn connected(&self, port: u32, socket: OwnedFd) -> io::Result<()>;
}

impl<F> HostPorts for F
where
    F: Fn(u32, OwnedFd) -> io::Result<()> + Send + Sync,
{
    fn connected(&self, port: u32, socket: OwnedFd) -> io::Result<()> {
        self(port, socket)
    }
}
