//! What is on a link: addresses, routes and neighbours, of which only what the agent
//! has set itself is ever removed.

use std::fmt;

use lazaret_netlink::{Address, Neighbour, Route, Socket};
use rustix::io::Errno;

use crate::failure::{OrFail, Result};

pub(super) trait Entry: Copy + PartialEq + fmt::Debug {
    const KIND: &'static str;
    fn add(&self, socket: &mut Socket) -> Result<(), Errno>;
    fn remove(&self, socket: &mut Socket) -> Result<(), Errno>;
}

impl Entry for Address {
    const KIND: &'static str = "address";

    fn add(&self, socket: &mut Socket) -> Result<(), Errno> {
        Address::add(self, socket)
    }

    fn remove(&self, socket: &mut Socket) -> Result<(), Errno> {
        Address::remove(self, socket)
    }
}

impl Entry for Route {
    const KIND: &'static str = "route";

    fn add(&self, socket: &mut Socket) -> Result<(), Errno> {
        match Route::add(self, socket) {
            // It may be the kernel's own, or one that outlived an address.
            Err(Errno::EXIST) => Ok(()),
            result => result,
        }
    }

    fn remove(&self, socket: &mut Socket) -> Result<(), Errno> {
        Route::remove(self, socket)
    }
}

impl Entry for Neighbour {
    const KIND: &'static str = "neighbour";

    fn add(&self, socket: &mut Socket) -> Result<(), Errno> {
        Neighbour::add(self, socket)
    }

    fn remove(&self, socket: &mut Socket) -> Result<(), Errno> {
        Neighbour::remove(self, socket)
    }
}

/// The entries of one link.
pub(super) struct Entries<'a> {
    pub(super) socket: &'a mut Socket,
    pub(super) name: &'a str,
}

impl Entries<'_> {
    /// Says whether there were any.
    pub(super) fn remove_others<E: Entry>(
        &mut self,
        set: &mut Vec<E>,
        wished: &[E],
    ) -> Result<bool> {
        let before = set.len();
        while let Some(at) = set.iter().position(|entry| !wished.contains(entry)) {
            match set[at].remove(self.socket) {
                // Somebody else, or the kernel, was first.
                Ok(()) | Err(Errno::SRCH | Errno::NOENT | Errno::ADDRNOTAVAIL | Errno::NODEV) => {
                    set.swap_remove(at);
                }
                error => {
                    return error
                        .or_fail(|| format!("remove {} {:?} from {}", E::KIND, set[at], self.name))
                        .map(|()| true);
                }
            }
        }
        Ok(set.len() < before)
    }

    pub(super) fn add_missing<E: Entry>(&mut self, set: &mut Vec<E>, wished: Vec<E>) -> Result<()> {
        for entry in wished {
            if !set.contains(&entry) {
                entry
                    .add(self.socket)
                    .or_fail(|| format!("add {} {entry:?} to {}", E::KIND, self.name))?;
                set.push(entry);
            }
        }
        Ok(())
    }
}
