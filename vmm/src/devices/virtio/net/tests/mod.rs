//! The device under a driver, with and without a real tap.

mod backpressure;
mod host_side;
mod hostile;
mod link;
mod traffic;

use std::os::fd::OwnedFd;

use self::host_side::HostSide;
use super::device::QUEUE_SIZES;
use super::offload::HEADER_LEN;
use super::{MacAddress, Net};
use crate::devices::virtio::slot::{Slot, SlotEvent, SlotEvents};
use crate::devices::virtio::test_driver::{Machine, QueueSetup};

/// A network device under a driver.
struct Guest {
    machine: Machine,
    slot: Slot<OwnedFd>,
    receive: QueueSetup,
    transmit: QueueSetup,
}

impl Guest {
    fn new() -> Self {
        Self::with(&QUEUE_SIZES, 0)
    }

    /// With queues of these sizes and without some features.
    fn with(sizes: &[u16], refused: u64) -> Self {
        let mut machine = Machine::new();
        let net = Net::new(MacAddress::of_slot(0), &machine.events()).unwrap();
        let slot = net.slot();
        let queues = machine.start_without(Box::new(net), sizes, refused);
        let [receive, transmit] = queues.try_into().unwrap();
        Self {
            machine,
            slot,
            receive,
            transmit,
        }
    }

    fn restart(&mut self) {
        self.machine.reset();
        let queues = self.machine.restart(&QUEUE_SIZES);
        [self.receive, self.transmit] = queues.try_into().unwrap();
    }

    /// The answer to what `ask` asks of the slot.
    fn ask(
        &mut self,
        ask: impl FnOnce(&Slot<OwnedFd>, crate::devices::virtio::slot::Reply),
    ) -> Option<String> {
        let (replies, events, _wake) = SlotEvents::new().unwrap();
        ask(&self.slot, replies.reply(7));
        self.machine.settle();
        match events.try_recv().unwrap() {
            SlotEvent::Answer { id: 7, refusal } => refusal,
            other => panic!("{other:?}"),
        }
    }

    fn connect(&mut self, fd: OwnedFd) -> Option<String> {
        self.ask(|slot, reply| slot.connect(fd, reply))
    }

    fn disconnect(&mut self) -> Option<String> {
        self.ask(Slot::disconnect)
    }

    fn link_up(&self) -> bool {
        self.machine.config(6, 2) == [1, 0]
    }

    /// Sends a frame without offloads.
    fn send(&mut self, frame: &[u8]) {
        let len = HEADER_LEN + frame.len();
        let buffer = self.machine.buffer(len as u64);
        self.machine.write(buffer + HEADER_LEN as u64, frame);
        let parts = [
            (buffer, 12, false),
            (buffer + 12, u32::try_from(frame.len()).unwrap(), false),
        ];
        self.transmit.add(&self.machine, &parts);
        self.machine.kick(1);
    }

    /// Offers a buffer for frames; where it is.
    fn offer(&mut self, len: u32) -> u64 {
        let buffer = self.machine.buffer(len.into());
        self.receive.add(&self.machine, &[(buffer, len, true)]);
        buffer
    }

    /// Lengths of the receive buffers used since the last call.
    fn received(&mut self) -> Vec<u32> {
        self.machine.settle();
        self.receive.take_used(&self.machine)
    }
}

/// A guest connected to a tap; None where there is no right to make one.
fn connected() -> Option<(Guest, HostSide)> {
    let (host, tap) = HostSide::new()?;
    let mut guest = Guest::new();
    assert_eq!(guest.connect(tap), None);
    assert!(guest.machine.interrupted());
    Some((guest, host))
}
