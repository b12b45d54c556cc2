//! virtio-rng (virtio 1.3, section 5.4): the host kernel's random bytes.

use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::GuestMemoryMmap;

use super::buffers::{Buffers, Chain};
use super::queue_loop::{Answer, QueueHandler, ServeChain, Served};
use super::{ActivateError, Activation, DeviceType, RING_FEATURES, VirtioDevice};
use crate::event_loop::EventLoopHandle;

const QUEUE_SIZES: [u16; 1] = [64];

/// Most bytes for one request; the driver asks again for more. `getrandom` is
/// never interrupted below 256 bytes, and Linux asks for 64.
const REQUEST_MAX: usize = 256;

/// The entropy device.
#[derive(Debug)]
pub struct Rng {
    served: Served,
}

impl Rng {
    pub fn new(events: EventLoopHandle) -> Self {
        Self {
            served: Served::by(events),
        }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Rng
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.served.start(QueueHandler::new(Requests, activation)?)
    }

    fn reset(&mut self) {
        self.served.stop();
    }
}

struct Requests;

impl ServeChain for Requests {
    fn serve(&mut self, _queue: usize, chain: Chain<'_>, memory: &GuestMemoryMmap) -> Answer {
        // A chain that cannot be written to gets nothing.
        Answer::Used(Buffers::writable(chain, memory).map_or(0, |buffers| fill(&buffers)))
    }
}

fn fill(buffers: &Buffers<'_>) -> usize {
    let mut bytes = [0; REQUEST_MAX];
    let wanted = &mut bytes[..buffers.len().min(REQUEST_MAX)];
    match getrandom(&mut *wanted, GetRandomFlags::empty()) {
        Ok(got) => buffers.copy_from(&wanted[..got]),
        Err(error) => {
            tracing::warn!(%error, "guest gets no random bytes");
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::test_driver::{Machine, QueueSetup};

    fn started() -> (Machine, QueueSetup) {
        let mut machine = Machine::new();
        let rng = Rng::new(machine.events());
        let queues = machine.start(Box::new(rng), &QUEUE_SIZES);
        let [queue] = queues.try_into().unwrap();
        (machine, queue)
    }

    #[test]
    fn request_is_filled_with_random_bytes() {
        let (mut machine, mut queue) = started();
        let (first, second) = (machine.buffer(64), machine.buffer(64));
        queue.add(&machine, &[(first, 64, true)]);
        queue.add(&machine, &[(second, 64, true)]);
        machine.kick(0);
        assert_eq!(queue.take_used(&machine), [64, 64]);
        assert!(machine.interrupted());
        assert_ne!(machine.read(first, 64), machine.read(second, 64));
        assert_ne!(machine.read(first, 64), [0; 64]);
    }

    #[test]
    fn long_request_is_answered_in_part() {
        let (mut machine, mut queue) = started();
        let buffer = machine.buffer(4096);
        queue.add(&machine, &[(buffer, 4096, true)]);
        machine.kick(0);
        assert_eq!(queue.take_used(&machine), [256]);
        assert_eq!(machine.read(buffer + 256, 256), [0; 256]);
    }

    #[test]
    fn request_without_room_gets_nothing() {
        let (mut machine, mut queue) = started();
        let buffer = machine.buffer(16);
        queue.add(&machine, &[(buffer, 16, false)]);
        queue.add(&machine, &[(u64::MAX - 8, 16, true)]);
        queue.add(&machine, &[(buffer, 0, true)]);
        machine.kick(0);
        assert_eq!(queue.take_used(&machine), [0, 0, 0]);
    }

    #[test]
    fn broken_queue_asks_for_a_reset_and_is_served_no_more() {
        let (mut machine, queue) = started();
        queue.set_avail_index(&machine, 1000);
        machine.kick(0);
        assert!(machine.needs_reset());
        machine.kick(0);
    }

    #[test]
    fn requests_are_served_again_after_a_reset() {
        let (mut machine, _) = started();
        machine.reset();
        let [mut queue] = machine.restart(&QUEUE_SIZES).try_into().unwrap();
        let buffer = machine.buffer(8);
        queue.add(&machine, &[(buffer, 8, true)]);
        machine.kick(0);
        assert_eq!(queue.take_used(&machine), [8]);
    }
}
