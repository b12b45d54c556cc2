//! An interface and a tap, tied into one wire.
//!
//! The tap ends with its last descriptor, which is the VMM's. The filters on the
//! interface do not, nor does its taking of all multicast frames: a sandbox process that
//! is killed leaves them to the next one, or to the end of the network namespace.

use std::io;
use std::os::fd::OwnedFd;

use lazaret_netlink::{Link, LinkChange, Socket};
use rustix::io::Errno;
use thiserror::Error;

use super::claim::Claim;
use super::interface::Interface;
use super::multicast;
use super::tap::{self, Tap};
use super::tc::{self, Ingress};

#[derive(Debug, Error)]
pub enum TieError {
    #[error(
        "interface {name} belongs to another microVM, by its tap {tap}: \
         a network namespace cannot be shared between microVMs"
    )]
    Elsewhere { name: String, tap: String },
    #[error("interface {0} has traffic filters of its own, which a microVM would replace")]
    Filtered(String),
    #[error("cannot make a tap for interface {name}")]
    Tap { name: String, source: io::Error },
    #[error("cannot tie interface {name} to its tap")]
    Tie { name: String, source: Errno },
    #[error("cannot share interface {name} with the engine's resolver")]
    Share { name: String, source: io::Error },
    #[error("cannot give interface {name} back")]
    Release { name: String, source: Errno },
    #[error("cannot set the MTU of the tap of interface {name} to {mtu}")]
    Mtu {
        name: String,
        mtu: u32,
        source: Errno,
    },
}

/// Removes the filters of sandboxes from all interfaces of the thread's network
/// namespace, unless one of them lives. One that is being made meanwhile waits, and who
/// has it clears what it ties.
pub(super) fn clear() -> Result<(), Errno> {
    let _claim = match Claim::take() {
        Err(Errno::ADDRINUSE) => return Ok(()),
        result => result?,
    };
    let mut socket = Socket::open()?;
    let links = Link::list(&mut socket)?;
    if links.iter().any(tap::is_tap) {
        return Ok(());
    }
    for link in &links {
        if tc::ingress(&mut socket, link.index)? == Ingress::Ours {
            // The filters tell whose it was: they go last.
            multicast::take_own(&mut socket, link.index)?;
            tc::release(&mut socket, link.index)?;
        }
    }
    Ok(())
}

#[derive(Debug)]
pub(super) struct Tie {
    /// Of the interface.
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) slot: u8,
    /// Index of the tap.
    pub(super) tap: u32,
    mtu: u32,
    /// With the engine's resolver.
    shared: bool,
    /// Whether it takes all multicast frames for the guest's sake alone.
    multicast: bool,
}

impl Tie {
    /// Ties an interface to a new tap.
    pub(super) fn make(
        socket: &mut Socket,
        interface: &Interface,
        slot: u8,
    ) -> Result<(Self, OwnedFd), TieError> {
        let name = interface.name.clone();
        let failed = |source| TieError::Tie {
            name: name.clone(),
            source,
        };
        let ingress = tc::ingress(socket, interface.index).map_err(failed)?;
        if ingress == Ingress::Taken {
            return Err(TieError::Filtered(name));
        }
        let tap = Tap::make(socket, slot, interface.mtu).map_err(|source| TieError::Tap {
            name: name.clone(),
            source,
        })?;
        // The namespace is ours, and now its tap's name is too: who made them has been
        // killed.
        if ingress == Ingress::Ours {
            multicast::take_own(socket, interface.index).map_err(failed)?;
        }
        if ingress != Ingress::Free {
            tc::release(socket, interface.index).map_err(failed)?;
        }
        tc::redirect(socket, tap.index, interface.index).map_err(failed)?;
        if let Err(err) = tc::redirect(socket, interface.index, tap.index) {
            // What failed first is what counts.
            let _ = tc::release(socket, interface.index);
            return Err(failed(err));
        }
        let multicast = match multicast::take_all(socket, interface.index) {
            Ok(multicast) => multicast,
            Err(err) => {
                let _ = tc::release(socket, interface.index);
                return Err(failed(err));
            }
        };
        let tie = Self {
            index: interface.index,
            name,
            slot,
            tap: tap.index,
            mtu: interface.mtu,
            shared: false,
            multicast,
        };
        Ok((tie, tap.fd))
    }

    /// Lets the engine's resolver ask further name servers by this interface.
    pub(super) fn share(&mut self, socket: &mut Socket) -> Result<(), TieError> {
        if !self.shared {
            tc::share(socket, self.index, self.tap).map_err(|source| TieError::Share {
                name: self.name.clone(),
                source: source.into(),
            })?;
            self.shared = true;
        }
        Ok(())
    }

    /// Takes over what has changed of the interface itself.
    pub(super) fn follow(
        &mut self,
        socket: &mut Socket,
        interface: &Interface,
    ) -> Result<(), TieError> {
        if self.mtu != interface.mtu {
            let change = LinkChange {
                mtu: Some(tap::mtu(interface.mtu)),
                ..LinkChange::default()
            };
            change
                .apply(socket, self.tap)
                .map_err(|source| TieError::Mtu {
                    name: interface.name.clone(),
                    mtu: interface.mtu,
                    source,
                })?;
            self.mtu = interface.mtu;
        }
        self.name.clone_from(&interface.name);
        Ok(())
    }

    /// Gives the interface back, if it is there.
    pub(super) fn release(self, socket: &mut Socket) -> Result<(), Errno> {
        let own = if self.multicast {
            multicast::take_own(socket, self.index)
        } else {
            Ok(())
        };
        let released = tc::release(socket, self.index);
        [own, released]
            .into_iter()
            .try_for_each(|result| match result {
                Err(Errno::NODEV | Errno::INVAL | Errno::NOENT) => Ok(()),
                result => result,
            })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::super::interface::Found;
    use super::*;

    #[test]
    fn filters_of_a_microvm_that_holds_its_tap_stay() {
        let in_a_namespace = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let commands = "ip link add eth0 type veth peer name v0 && ip link set eth0 up";
            let made = Command::new("sh").args(["-c", commands]).status();
            assert!(made.unwrap().success());
            let mut socket = Socket::open().unwrap();
            let found = Found::look(&mut socket).unwrap();
            let interface = &found.interfaces[0];
            let (tie, _tap) = Tie::make(&mut socket, interface, 0).unwrap();

            let err = Tie::make(&mut socket, interface, 0).unwrap_err();
            assert!(matches!(err, TieError::Tap { .. }), "{err}");
            assert_eq!(tc::ingress(&mut socket, tie.index), Ok(Ingress::Ours));
            assert_eq!(multicast::take_all(&mut socket, tie.index), Ok(false));
        });
        in_a_namespace.join().unwrap();
    }
}
