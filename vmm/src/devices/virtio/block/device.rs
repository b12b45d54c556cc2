//! The block slot as its driver sees it.

use virtio_bindings::virtio_blk::VIRTIO_BLK_S_IOERR;
use vm_memory::GuestMemoryMmap;

use crate::devices::virtio::buffers::{Buffers, Chain};
use crate::devices::virtio::queue_loop::{Answer, QueueHandler, ServeChain, Served};
use crate::devices::virtio::{ActivateError, Activation, DeviceType, RING_FEATURES, VirtioDevice};
use crate::event_loop::EventLoopHandle;

const QUEUE_SIZES: [u16; 1] = [128];

/// A block slot.
#[derive(Debug)]
pub struct Block {
    served: Served,
}

impl Block {
    pub fn new(events: EventLoopHandle) -> Self {
        Self {
            served: Served::by(events),
        }
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// All zeros: the capacity comes first, and is 0.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.served.start(QueueHandler::new(NoMedium, activation)?)
    }

    fn reset(&mut self) {
        self.served.stop();
    }
}

/// A drive with nothing in it.
struct NoMedium;

impl ServeChain for NoMedium {
    /// A request's status is its last writable byte.
    fn serve(&mut self, _queue: usize, chain: Chain<'_>, memory: &GuestMemoryMmap) -> Answer {
        let Ok(mut writable) = Buffers::writable(chain, memory) else {
            return Answer::Used(0);
        };
        let len = writable.len();
        writable.skip(len.saturating_sub(1));
        match writable.copy_from(&VIRTIO_BLK_S_IOERR.to_le_bytes()[..1]) {
            0 => Answer::Used(0),
            // What was "written" ends with the status.
            _ => Answer::Used(len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::test_driver::Machine;

    #[test]
    fn every_request_fails_with_a_status() {
        let mut machine = Machine::new();
        let block = Block::new(machine.events());
        let [mut queue] = machine
            .start(Box::new(block), &QUEUE_SIZES)
            .try_into()
            .unwrap();
        let buffer = machine.buffer(1024);
        queue.add(
            &machine,
            &[
                (buffer, 16, false),
                (buffer + 16, 512, true),
                (buffer + 528, 1, true),
            ],
        );
        machine.kick(0);
        assert_eq!(queue.take_used(&machine), [513]);
        assert_eq!(machine.read(buffer + 528, 1), [1]);
        assert!(machine.interrupted());
    }

    #[test]
    fn request_without_room_for_a_status_is_given_back() {
        let mut machine = Machine::new();
        let block = Block::new(machine.events());
        let [mut queue] = machine
            .start(Box::new(block), &QUEUE_SIZES)
            .try_into()
            .unwrap();
        let buffer = machine.buffer(16);
        queue.add(&machine, &[(buffer, 16, false)]);
        queue.add(&machine, &[(buffer, 0, true)]);
        machine.kick(0);
        assert_eq!(queue.take_used(&machine), [0, 0]);
    }
}
