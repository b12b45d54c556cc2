//! A driver for tests: brings a device up through its registers, as a guest
//! kernel would, and serves its event loop on the test's own thread until
//! nothing is left to do, so that no test waits for time to pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::Timespec;
use virtio_bindings::virtio_mmio as reg;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::mmio::{MmioTransport, QUEUE_NOTIFY};
use super::{GuestMemory, VirtioDevice};
use crate::event_loop::{EventLoop, EventLoopHandle, Round};

const MEMORY: usize = 32 << 20;
const PAGE: u64 = 4096;

const DEADLINE: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Memory, a device and its event loop.
pub(crate) struct Machine {
    pub(crate) memory: GuestMemory,
    events: EventLoop,
    handle: EventLoopHandle,
    transport: Option<MmioTransport>,
    irqfd: EventFd,
    free: u64,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let (events, handle) = EventLoop::new().unwrap();
        Self {
            memory: Arc::new(memory),
            events,
            handle,
            transport: None,
            irqfd: EventFd::new(EFD_NONBLOCK).unwrap(),
            free: PAGE,
        }
    }

    pub(crate) fn events(&self) -> EventLoopHandle {
        self.handle.clone()
    }

    /// Page-aligned guest memory.
    pub(crate) fn buffer(&mut self, len: u64) -> u64 {
        let start = self.free;
        self.free += len.next_multiple_of(PAGE);
        assert!(self.free <= MEMORY as u64, "test machine out of memory");
        start
    }

    pub(crate) fn read(&self, start: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.memory
            .read_slice(&mut bytes, GuestAddress(start))
            .unwrap();
        bytes
    }

    pub(crate) fn write(&self, start: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(start)).unwrap();
    }

    /// Starts `device` with queues of these sizes and all it offers.
    pub(crate) fn start(
        &mut self,
        device: Box<dyn VirtioDevice>,
        sizes: &[u16],
    ) -> Vec<QueueSetup> {
        self.start_without(device, sizes, 0)
    }

    /// The same without some features.
    pub(crate) fn start_without(
        &mut self,
        device: Box<dyn VirtioDevice>,
        sizes: &[u16],
        refused: u64,
    ) -> Vec<QueueSetup> {
        let irqfd = self.irqfd.try_clone().unwrap();
        let memory = GuestMemory::clone(&self.memory);
        self.transport = Some(MmioTransport::new(device, memory, irqfd).unwrap());
        self.bring_up(sizes, refused)
    }

    /// Starts the device again after a reset.
    pub(crate) fn restart(&mut self, sizes: &[u16]) -> Vec<QueueSetup> {
        self.bring_up(sizes, 0)
    }

    fn bring_up(&mut self, sizes: &[u16], refused: u64) -> Vec<QueueSetup> {
        self.set(reg::VIRTIO_MMIO_STATUS, 1);
        self.set(reg::VIRTIO_MMIO_STATUS, 3);
        for half in [0, 1] {
            self.set(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
            let offered = self.get(reg::VIRTIO_MMIO_DEVICE_FEATURES);
            let refused = u32::try_from(refused >> (32 * half) & 0xffff_ffff).unwrap();
            self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES, offered & !refused);
        }
        self.set(reg::VIRTIO_MMIO_STATUS, 11);
        assert_eq!(self.get(reg::VIRTIO_MMIO_STATUS), 11);
        let queues = (0..)
            .zip(sizes)
            .map(|(index, &size)| self.set_up_queue(index, size))
            .collect();
        self.set(reg::VIRTIO_MMIO_STATUS, 15);
        self.settle();
        queues
    }

    fn set_up_queue(&mut self, index: u32, size: u16) -> QueueSetup {
        let desc = self.buffer(u64::from(size) * 16);
        let avail = self.buffer(u64::from(size) * 2 + 6);
        let used = self.buffer(u64::from(size) * 8 + 6);
        self.set(reg::VIRTIO_MMIO_QUEUE_SEL, index);
        self.set(reg::VIRTIO_MMIO_QUEUE_NUM, u32::from(size));
        for (register, part) in [
            (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, desc),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, avail),
            (reg::VIRTIO_MMIO_QUEUE_USED_LOW, used),
        ] {
            self.set(register, u32::try_from(part).unwrap());
        }
        self.set(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        QueueSetup {
            size,
            desc,
            avail,
            used,
            next_desc: 0,
            next_avail: 0,
            next_used: 0,
        }
    }

    /// Resets the device; the loop runs meanwhile, as it does on its own thread.
    pub(crate) fn reset(&mut self) {
        let transport = self.transport.as_mut().unwrap();
        let events = &mut self.events;
        std::thread::scope(|scope| {
            let done = scope.spawn(|| {
                transport.write(u64::from(reg::VIRTIO_MMIO_STATUS), &[0; 4]);
            });
            while !done.is_finished() {
                events.round(Some(&AT_ONCE)).unwrap();
            }
        });
        self.settle();
    }

    /// Serves the loop until nothing is left to do.
    pub(crate) fn settle(&mut self) {
        while self.events.round(Some(&AT_ONCE)).unwrap() != Round::Idle {}
    }

    /// One look at what is ready.
    pub(crate) fn round(&mut self) -> Round {
        self.events.round(Some(&AT_ONCE)).unwrap()
    }

    /// Waits for an event, not longer than a test may hang.
    pub(crate) fn wait(&mut self) {
        let round = self.events.round(Some(&DEADLINE)).unwrap();
        assert_ne!(round, Round::Idle, "nothing has happened for long");
    }

    pub(crate) fn kick(&mut self, queue: u32) {
        self.notify(queue);
        self.settle();
    }

    /// A kick that nothing is done about yet.
    pub(crate) fn notify(&mut self, queue: u32) {
        self.set(u32::try_from(QUEUE_NOTIFY).unwrap(), queue);
    }

    /// The device has interrupted since the last call.
    pub(crate) fn interrupted(&mut self) -> bool {
        let status = self.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS);
        self.set(reg::VIRTIO_MMIO_INTERRUPT_ACK, status);
        self.irqfd.read().is_ok() && status != 0
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.get(reg::VIRTIO_MMIO_STATUS) & 64 != 0
    }

    pub(crate) fn config(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        let offset = u64::from(reg::VIRTIO_MMIO_CONFIG) + offset;
        self.transport.as_ref().unwrap().read(offset, &mut data);
        data
    }

    pub(crate) fn set_config(&mut self, offset: u64, data: &[u8]) {
        let offset = u64::from(reg::VIRTIO_MMIO_CONFIG) + offset;
        self.transport.as_mut().unwrap().write(offset, data);
    }

    fn get(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        let transport = self.transport.as_ref().unwrap();
        transport.read(u64::from(register), &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&mut self, register: u32, value: u32) {
        let transport = self.transport.as_mut().unwrap();
        transport.write(u64::from(register), &value.to_le_bytes());
    }
}

/// The driver's side of a split queue (virtio 1.3, 2.7).
#[derive(Debug)]
pub(crate) struct QueueSetup {
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
    next_desc: u16,
    next_avail: u16,
    next_used: u16,
}

impl QueueSetup {
    /// Makes a chain of (address, length, device-writable) available. The
    /// descriptors are reused in turn: the test keeps count of what is in use.
    pub(crate) fn add(&mut self, machine: &Machine, parts: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_desc;
        for (at, &(address, len, writable)) in parts.iter().enumerate() {
            let more = at + 1 < parts.len();
            let next = (self.next_desc + 1) % self.size;
            let flags = u16::from(more) | u16::from(writable) << 1;
            self.set_descriptor(machine, self.next_desc, address, len, flags, next);
            self.next_desc = next;
        }
        self.publish(machine, head);
        head
    }

    /// Writes one descriptor, whatever it says.
    pub(crate) fn set_descriptor(
        &self,
        machine: &Machine,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&address.to_le_bytes());
        descriptor[8..12].copy_from_slice(&len.to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        descriptor[14..].copy_from_slice(&next.to_le_bytes());
        machine.write(self.desc + 16 * u64::from(index % self.size), &descriptor);
    }

    /// Puts `head` into the available ring, and asks for an interrupt for it.
    pub(crate) fn publish(&mut self, machine: &Machine, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        machine.write(self.avail + 4 + 2 * slot, &head.to_le_bytes());
        self.next_avail = self.next_avail.wrapping_add(1);
        self.set_avail_index(machine, self.next_avail);
    }

    pub(crate) fn set_avail_index(&self, machine: &Machine, index: u16) {
        machine.write(self.avail + 2, &index.to_le_bytes());
    }

    /// Keeps the ring full of what it holds already, as a processor can that does
    /// nothing else, until it has offered `most` chains; counts them in `chains`.
    pub(crate) fn keep_full(
        &mut self,
        memory: &GuestMemoryMmap,
        chains: &AtomicUsize,
        most: usize,
    ) {
        let (avail, used) = (self.avail + 2, self.used + 2);
        while chains.load(Ordering::Relaxed) < most {
            let index: u16 = memory.load(GuestAddress(used), Ordering::Acquire).unwrap();
            let more = index.wrapping_sub(self.next_avail.wrapping_sub(self.size));
            self.next_avail = index.wrapping_add(self.size);
            memory
                .store(self.next_avail, GuestAddress(avail), Ordering::Release)
                .unwrap();
            chains.fetch_add(more.into(), Ordering::Relaxed);
        }
    }

    /// The head and length of each chain used since the last call.
    pub(crate) fn take_used_chains(&mut self, machine: &Machine) -> Vec<(u16, u32)> {
        let index = machine.read(self.used + 2, 2);
        let index = u16::from_le_bytes(index.try_into().unwrap());
        let mut chains = Vec::new();
        while self.next_used != index {
            let slot = u64::from(self.next_used % self.size);
            let element = machine.read(self.used + 4 + 8 * slot, 8);
            let id = u32::from_le_bytes(element[..4].try_into().unwrap());
            let len = u32::from_le_bytes(element[4..].try_into().unwrap());
            chains.push((u16::try_from(id).unwrap(), len));
            self.next_used = self.next_used.wrapping_add(1);
        }
        // `used_event`: interrupt for the next one.
        let event = self.avail + 4 + 2 * u64::from(self.size);
        machine.write(event, &self.next_used.to_le_bytes());
        chains
    }

    pub(crate) fn take_used(&mut self, machine: &Machine) -> Vec<u32> {
        let chains = self.take_used_chains(machine);
        chains.into_iter().map(|(_, len)| len).collect()
    }
}
