//! The net and block slots of a microVM, for the sandbox process to connect
//! something to: who is asked to do what, and what is heard of it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::config::VmConfig;
use crate::control::BackendChange;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::{Block, Engines, Medium};
use crate::devices::virtio::net::{MacAddress, Net};
use crate::devices::virtio::slot::{Slot, SlotEvent, SlotEvents};
use crate::event_loop::borrow;
use crate::{seccomp, slot_thread};

/// What is wrong with a request to change a backend.
#[derive(Debug, Error)]
enum RequestError {
    #[error("this microVM has no {kind} slot {slot}")]
    NoSlot { kind: &'static str, slot: u8 },
    #[error("{got} descriptors came with the request, {want} are needed")]
    Descriptors { got: usize, want: usize },
}

/// All slots.
#[derive(Debug)]
pub struct Backends {
    net: Vec<Slot<OwnedFd>>,
    block: Vec<Slot<Medium>>,
    replies: SlotEvents,
    events: Receiver<SlotEvent>,
    wake: Arc<EventFd>,
}

impl Backends {
    /// Makes the slots, and a thread for those of each kind that there are.
    pub fn new(config: &VmConfig) -> io::Result<(Self, Vec<Box<dyn VirtioDevice>>)> {
        let (replies, events, wake) = SlotEvents::new()?;
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        let mut slots = Self {
            net: Vec::new(),
            block: Vec::new(),
            replies,
            events,
            wake,
        };
        if config.net_slots > 0 {
            let served = slot_thread::start("net", seccomp::confine_net, slots.replies.clone())?;
            for slot in 0..config.net_slots {
                let net = Net::new(MacAddress::of_slot(slot), &served)?;
                slots.net.push(net.slot());
                devices.push(Box::new(net));
            }
        }
        if config.block_slots > 0 {
            let engines = Engines::new(seccomp::confine_disk)?;
            let served =
                slot_thread::start("block", seccomp::confine_block, slots.replies.clone())?;
            for slot in 0..config.block_slots {
                let block = Block::new(slot, &engines, &served)?;
                slots.block.push(block.slot());
                devices.push(Box::new(block));
            }
        }
        Ok((slots, devices))
    }

    /// Does what is asked, and answers by an event.
    pub fn change(&self, id: u64, change: BackendChange, fds: Vec<OwnedFd>) {
        if let Err(error) = self.try_change(id, change, fds) {
            self.replies.reply(id).answer(Err(error));
        }
    }

    fn try_change(
        &self,
        id: u64,
        change: BackendChange,
        fds: Vec<OwnedFd>,
    ) -> Result<(), RequestError> {
        match change {
            BackendChange::ConnectNet { slot } => {
                let [tap] = exactly(fds)?;
                find(&self.net, "network", slot)?.connect(tap, self.replies.reply(id));
            }
            BackendChange::DisconnectNet { slot } => {
                let [] = exactly(fds)?;
                find(&self.net, "network", slot)?.disconnect(self.replies.reply(id));
            }
            BackendChange::ConnectBlock { slot, read_only } => {
                let [file] = exactly(fds)?;
                let medium = Medium { file, read_only };
                find(&self.block, "block", slot)?.connect(medium, self.replies.reply(id));
            }
            BackendChange::DisconnectBlock { slot } => {
                let [] = exactly(fds)?;
                find(&self.block, "block", slot)?.disconnect(self.replies.reply(id));
            }
        }
        Ok(())
    }

    /// Readable when there are events.
    pub fn event(&self) -> BorrowedFd<'_> {
        borrow(&self.wake)
    }

    pub fn next_event(&self) -> Option<SlotEvent> {
        // Nothing to read is fine: the channel is what counts.
        let _ = self.wake.read();
        self.events.try_recv().ok()
    }
}

fn find<'s, B>(
    slots: &'s [Slot<B>],
    kind: &'static str,
    slot: u8,
) -> Result<&'s Slot<B>, RequestError> {
    slots
        .get(usize::from(slot))
        .ok_or(RequestError::NoSlot { kind, slot })
}

fn exactly<const N: usize>(fds: Vec<OwnedFd>) -> Result<[OwnedFd; N], RequestError> {
    let got = fds.len();
    <[OwnedFd; N]>::try_from(fds).map_err(|_| RequestError::Descriptors { got, want: N })
}
