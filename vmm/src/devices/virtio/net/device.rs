//! The network slot as its driver sees it.

use virtio_bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS};
use vm_memory::GuestMemoryMmap;

use crate::devices::virtio::buffers::Chain;
use crate::devices::virtio::queue_loop::{Answer, QueueHandler, ServeChain, Served};
use crate::devices::virtio::{
    ActivateError, Activation, DeviceType, RING_FEATURES, VirtioDevice, read_config_bytes,
};
use crate::event_loop::EventLoopHandle;

/// Receive and transmit.
const QUEUE_SIZES: [u16; 2] = [256, 256];

const TRANSMIT: usize = 1;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The address of slot `slot` until a backend brings its own: locally
    /// administered, unicast, the same in every microVM.
    pub fn of_slot(slot: u8) -> Self {
        Self([0x02, b'l', b'z', b'r', b't', slot])
    }
}

/// A network slot.
#[derive(Debug)]
pub struct Net {
    mac: MacAddress,
    served: Served,
}

impl Net {
    pub fn new(mac: MacAddress, events: EventLoopHandle) -> Self {
        Self {
            mac,
            served: Served::by(events),
        }
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | RING_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// The address, then a status without `VIRTIO_NET_S_LINK_UP`.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.mac.0, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.served.start(QueueHandler::new(Unplugged, activation)?)
    }

    fn reset(&mut self) {
        self.served.stop();
    }
}

/// A link that is down.
struct Unplugged;

impl ServeChain for Unplugged {
    fn serve(&mut self, queue: usize, _chain: Chain<'_>, _memory: &GuestMemoryMmap) -> Answer {
        if queue == TRANSMIT {
            Answer::Used(0)
        } else {
            Answer::Leave
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::test_driver::Machine;

    #[test]
    fn driver_finds_an_address_and_no_link() {
        let machine = Machine::new();
        let net = Net::new(MacAddress::of_slot(3), machine.events());
        let mut config = [0; 8];
        net.read_config(0, &mut config);
        assert_eq!(config, *b"\x02lzrt\x03\0\0");
    }

    #[test]
    fn frames_sent_are_given_back_and_receive_buffers_kept() {
        let mut machine = Machine::new();
        let net = Net::new(MacAddress::of_slot(0), machine.events());
        let queues = machine.start(Box::new(net), &QUEUE_SIZES);
        let [mut receive, mut transmit] = queues.try_into().unwrap();
        let buffer = machine.buffer(2048);
        receive.add(&machine, &[(buffer, 2048, true)]);
        transmit.add(&machine, &[(buffer, 60, false)]);
        machine.kick(0);
        machine.kick(1);
        assert!(receive.take_used(&machine).is_empty());
        assert_eq!(transmit.take_used(&machine), [0]);
        assert!(machine.interrupted());
    }
}
