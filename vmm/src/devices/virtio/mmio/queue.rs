//! A queue's registers, and the queue they make once the driver is ready.

use std::io;

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory as _};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::devices::virtio::{ActiveQueue, GuestMemory};

/// What the driver has written about one queue.
#[derive(Debug)]
pub(super) struct QueueRegisters {
    max_size: u16,
    pub(super) size: u32,
    pub(super) ready: bool,
    pub(super) desc_table: u64,
    pub(super) avail_ring: u64,
    pub(super) used_ring: u64,
    kick: EventFd,
}

/// Bytes of the three parts of a split queue (virtio 1.3, 2.7), the two event
/// fields included.
fn part_sizes(size: u16) -> [usize; 3] {
    let size = usize::from(size);
    [16 * size, 6 + 2 * size, 6 + 8 * size]
}

impl QueueRegisters {
    pub(super) fn new(max_size: u16) -> io::Result<Self> {
        Ok(Self {
            max_size,
            size: u32::from(max_size),
            ready: false,
            desc_table: 0,
            avail_ring: 0,
            used_ring: 0,
            kick: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    pub(super) fn kick(&self) -> &EventFd {
        &self.kick
    }

    pub(super) fn max_size(&self) -> u16 {
        self.max_size
    }

    /// As after power-on. A kick that nobody has taken is harmless to the next
    /// driver: devices look at the ring, not at the count.
    pub(super) fn reset(&mut self) {
        self.size = u32::from(self.max_size);
        self.ready = false;
        self.desc_table = 0;
        self.avail_ring = 0;
        self.used_ring = 0;
    }

    /// The queue as the driver described it; one it left alone is not ready.
    pub(super) fn build(&self, memory: &GuestMemory, event_idx: bool) -> Result<ActiveQueue, Bad> {
        let mut queue = Queue::new(self.max_size).map_err(|_| Bad::Size(self.size))?;
        if self.ready {
            let size = u16::try_from(self.size).map_err(|_| Bad::Size(self.size))?;
            queue.try_set_size(size).map_err(|_| Bad::Size(self.size))?;
            self.place(&mut queue, memory, size)?;
            queue.set_event_idx(event_idx);
            queue.set_ready(true);
        }
        Ok(ActiveQueue {
            queue,
            kick: self.kick.try_clone().map_err(Bad::Kick)?,
        })
    }

    fn place(&self, queue: &mut Queue, memory: &GuestMemory, size: u16) -> Result<(), Bad> {
        let parts = [self.desc_table, self.avail_ring, self.used_ring].map(GuestAddress);
        for (part, bytes) in parts.into_iter().zip(part_sizes(size)) {
            // Zero is where a driver that set nothing would be served.
            if part.0 == 0 || !memory.check_range(part, bytes) {
                return Err(Bad::Address(part.0));
            }
        }
        let [desc_table, avail_ring, used_ring] = parts;
        queue
            .try_set_desc_table_address(desc_table)
            .map_err(|_| Bad::Address(desc_table.0))?;
        queue
            .try_set_avail_ring_address(avail_ring)
            .map_err(|_| Bad::Address(avail_ring.0))?;
        queue
            .try_set_used_ring_address(used_ring)
            .map_err(|_| Bad::Address(used_ring.0))
    }
}

/// Why a queue the driver calls ready cannot be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum Bad {
    #[error("queue size {0} is not a power of two up to the device's largest")]
    Size(u32),
    #[error("queue part at {0:#x} is misaligned or outside guest memory")]
    Address(u64),
    #[error("kick event could not be duplicated")]
    Kick(#[source] io::Error),
}
