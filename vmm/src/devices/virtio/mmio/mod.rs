//! The virtio-mmio transport, version 2 (virtio 1.3, section 4.2).
//!
//! One 4 KiB window of registers per device. The registers belong to the
//! transport; what they describe is handed to the device by `activate`:
//!
//! ```text
//!  status   0 ─▶ ACKNOWLEDGE ─▶ DRIVER ─▶ FEATURES_OK ─▶ DRIVER_OK
//!           ▲                                  │             │
//!           └── write 0, from anywhere ────────┴─────────────┘
//! ```
//!
//! A driver that goes another way, or describes a queue that cannot be, gets
//! `DEVICE_NEEDS_RESET` and nothing else until it resets. Kicks do not come
//! through here but by ioeventfd on [`QUEUE_NOTIFY`]; a written one is passed on.

mod queue;
#[cfg(test)]
mod tests;

use std::io;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::EventFd;

use self::queue::QueueRegisters;
use super::{Activation, GuestMemory, Interrupt, VirtioDevice};

/// Bytes of guest-physical address space a device takes.
pub const WINDOW_SIZE: u64 = 0x1000;

/// Where in the window a driver kicks: a 32-bit write of the queue's index.
pub const QUEUE_NOTIFY: u64 = reg::QUEUE_NOTIFY;

/// Offsets of the registers (virtio 1.3, 4.2.2).
mod reg {
    use virtio_bindings::virtio_mmio as b;

    macro_rules! offsets {
        ($($name:ident = $value:ident),* $(,)?) => {
            $(pub(super) const $name: u64 = b::$value as u64;)*
        };
    }

    offsets! {
        MAGIC = VIRTIO_MMIO_MAGIC_VALUE,
        VERSION = VIRTIO_MMIO_VERSION,
        DEVICE_ID = VIRTIO_MMIO_DEVICE_ID,
        VENDOR_ID = VIRTIO_MMIO_VENDOR_ID,
        DEVICE_FEATURES = VIRTIO_MMIO_DEVICE_FEATURES,
        DEVICE_FEATURES_SEL = VIRTIO_MMIO_DEVICE_FEATURES_SEL,
        DRIVER_FEATURES = VIRTIO_MMIO_DRIVER_FEATURES,
        DRIVER_FEATURES_SEL = VIRTIO_MMIO_DRIVER_FEATURES_SEL,
        QUEUE_SEL = VIRTIO_MMIO_QUEUE_SEL,
        QUEUE_SIZE_MAX = VIRTIO_MMIO_QUEUE_NUM_MAX,
        QUEUE_SIZE = VIRTIO_MMIO_QUEUE_NUM,
        QUEUE_READY = VIRTIO_MMIO_QUEUE_READY,
        QUEUE_NOTIFY = VIRTIO_MMIO_QUEUE_NOTIFY,
        INTERRUPT_STATUS = VIRTIO_MMIO_INTERRUPT_STATUS,
        INTERRUPT_ACK = VIRTIO_MMIO_INTERRUPT_ACK,
        STATUS = VIRTIO_MMIO_STATUS,
        QUEUE_DESC_LOW = VIRTIO_MMIO_QUEUE_DESC_LOW,
        QUEUE_DESC_HIGH = VIRTIO_MMIO_QUEUE_DESC_HIGH,
        QUEUE_DRIVER_LOW = VIRTIO_MMIO_QUEUE_AVAIL_LOW,
        QUEUE_DRIVER_HIGH = VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
        QUEUE_DEVICE_LOW = VIRTIO_MMIO_QUEUE_USED_LOW,
        QUEUE_DEVICE_HIGH = VIRTIO_MMIO_QUEUE_USED_HIGH,
        SHM_SEL = VIRTIO_MMIO_SHM_SEL,
        SHM_LEN_LOW = VIRTIO_MMIO_SHM_LEN_LOW,
        SHM_LEN_HIGH = VIRTIO_MMIO_SHM_LEN_HIGH,
        SHM_BASE_LOW = VIRTIO_MMIO_SHM_BASE_LOW,
        SHM_BASE_HIGH = VIRTIO_MMIO_SHM_BASE_HIGH,
        CONFIG_GENERATION = VIRTIO_MMIO_CONFIG_GENERATION,
        CONFIG = VIRTIO_MMIO_CONFIG,
    }
}

/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "LZRT"; drivers do not look at it.
const VENDOR: u32 = 0x5452_5a4c;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// A shared memory region's length and base where there is none.
const NO_SHM: u64 = u64::MAX;

/// The registers of one device.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Interrupt,
    queues: Vec<QueueRegisters>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    shm_sel: u32,
    /// The device was given the queues and not been reset since.
    active: bool,
}

impl MmioTransport {
    /// `irqfd` is written for every interrupt (edge-triggered).
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        irqfd: EventFd,
    ) -> io::Result<Self> {
        let queues = device
            .queue_sizes()
            .iter()
            .map(|&size| QueueRegisters::new(size))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            device,
            memory,
            interrupt: Interrupt::new(irqfd),
            queues,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            shm_sel: 0,
            active: false,
        })
    }

    /// For each queue the event to signal when its index is written to
    /// [`QUEUE_NOTIFY`] (KVM ioeventfd, 4 bytes, matching the index).
    pub fn kicks(&self) -> impl Iterator<Item = (u32, &EventFd)> {
        (0..).zip(self.queues.iter().map(QueueRegisters::kick))
    }

    /// The interrupt line.
    pub fn irqfd(&self) -> &EventFd {
        self.interrupt.irqfd()
    }

    /// Reads at `offset` of the window. What is not there reads as 0.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(config) = offset.checked_sub(reg::CONFIG) {
            self.device.read_config(config, data);
        } else if let Ok(register) = <&mut [u8; 4]>::try_from(data) {
            *register = self.register(offset).to_le_bytes();
        }
    }

    /// Writes at `offset` of the window. What is not there is not written.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(config) = offset.checked_sub(reg::CONFIG) {
            if self.status & DRIVER != 0 {
                self.device.write_config(config, data);
            }
        } else if let Ok(value) = <[u8; 4]>::try_from(data) {
            self.set_register(offset, u32::from_le_bytes(value));
        }
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            reg::MAGIC => MAGIC,
            reg::VERSION => VERSION,
            reg::DEVICE_ID if self.device.is_present() => self.device.device_type() as u32,
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => match self.device_features_sel {
                0 => low(self.offered()),
                1 => high(self.offered()),
                _ => 0,
            },
            reg::QUEUE_SIZE_MAX => self.queue().map_or(0, |q| u32::from(q.max_size())),
            reg::QUEUE_READY => self.queue().map_or(0, |q| u32::from(q.ready)),
            reg::INTERRUPT_STATUS => self.interrupt.status(),
            reg::STATUS => self.status(),
            reg::SHM_LEN_LOW => low(self.shm().0),
            reg::SHM_LEN_HIGH => high(self.shm().0),
            reg::SHM_BASE_LOW => low(self.shm().1),
            reg::SHM_BASE_HIGH => high(self.shm().1),
            reg::CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::DRIVER_FEATURES => self.accept_features(value),
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::SHM_SEL => self.shm_sel = value,
            reg::QUEUE_NOTIFY => self.notify(value),
            reg::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::STATUS => self.set_status(value),
            reg::QUEUE_SIZE => self.set_queue(|q| q.size = value),
            reg::QUEUE_READY => self.set_queue_ready(value),
            reg::QUEUE_DESC_LOW => self.set_queue(|q| set_low(&mut q.desc_table, value)),
            reg::QUEUE_DESC_HIGH => self.set_queue(|q| set_high(&mut q.desc_table, value)),
            reg::QUEUE_DRIVER_LOW => self.set_queue(|q| set_low(&mut q.avail_ring, value)),
            reg::QUEUE_DRIVER_HIGH => self.set_queue(|q| set_high(&mut q.avail_ring, value)),
            reg::QUEUE_DEVICE_LOW => self.set_queue(|q| set_low(&mut q.used_ring, value)),
            reg::QUEUE_DEVICE_HIGH => self.set_queue(|q| set_high(&mut q.used_ring, value)),
            _ => {}
        }
    }

    fn offered(&self) -> u64 {
        self.device.features() | VERSION_1
    }

    /// Length and base of the selected shared memory region.
    fn shm(&self) -> (u64, u64) {
        u8::try_from(self.shm_sel)
            .ok()
            .and_then(|id| self.device.shm_region(id))
            .map_or((NO_SHM, NO_SHM), |region| (region.len, region.base.0))
    }

    fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    fn notify(&self, queue: u32) {
        let queue = usize::try_from(queue).ok().and_then(|q| self.queues.get(q));
        if let (true, Some(queue)) = (self.active, queue) {
            // Refused only when the counter is full: then a kick is pending.
            let _ = queue.kick().write(1);
        }
    }

    fn accept_features(&mut self, bits: u32) {
        if self.phase() != DRIVER {
            return;
        }
        match self.driver_features_sel {
            0 => set_low(&mut self.driver_features, bits),
            1 => set_high(&mut self.driver_features, bits),
            // Bits past 63 are not offered; accepting one is refused like any
            // other that is not.
            _ if bits != 0 => self.break_device("features beyond bit 63"),
            _ => {}
        }
    }

    /// Queues are set up between `FEATURES_OK` and `DRIVER_OK`, each while it
    /// is not ready; at other times the device may be using what is there.
    fn set_queue(&mut self, set: impl FnOnce(&mut QueueRegisters)) {
        if self.phase() != FEATURES_OK {
            return;
        }
        let index = usize::try_from(self.queue_sel).ok();
        if let Some(queue) = index.and_then(|i| self.queues.get_mut(i))
            && !queue.ready
        {
            set(queue);
        }
    }

    fn set_queue_ready(&mut self, value: u32) {
        if value == 1 {
            self.set_queue(|q| q.ready = true);
        } else if value == 0 {
            self.stop_queue();
        }
    }

    /// Once the register reads 0 the driver may reuse the queue's memory. No
    /// device can give back one queue (`VIRTIO_F_RING_RESET` is not offered),
    /// so an active one stops altogether.
    fn stop_queue(&mut self) {
        let index = usize::try_from(self.queue_sel).ok();
        let Some(queue) = index.and_then(|i| self.queues.get_mut(i)) else {
            return;
        };
        if !std::mem::take(&mut queue.ready) || !self.active {
            return;
        }
        self.deactivate();
        self.break_device("queue stopped while in use");
    }

    fn status(&self) -> u32 {
        let needs_reset = if self.interrupt.needs_reset() {
            NEEDS_RESET
        } else {
            0
        };
        self.status | needs_reset
    }

    /// The last step of initialisation taken; 0 also when there is no next one.
    fn phase(&self) -> u32 {
        if self.status & FAILED != 0 || self.interrupt.needs_reset() {
            return 0;
        }
        [DRIVER_OK, FEATURES_OK, DRIVER, ACKNOWLEDGE]
            .into_iter()
            .find(|bit| self.status & bit != 0)
            .unwrap_or(0)
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        self.status |= value & FAILED;
        if value & FAILED != 0 || self.interrupt.needs_reset() {
            return;
        }
        if self.status & !value != 0 {
            self.break_device("status bits cleared without a reset");
            return;
        }
        for (bit, after) in [
            (ACKNOWLEDGE, 0),
            (DRIVER, ACKNOWLEDGE),
            (FEATURES_OK, DRIVER),
            (DRIVER_OK, FEATURES_OK),
        ] {
            if value & !self.status & bit == 0 {
                continue;
            }
            if self.phase() != after {
                self.break_device("status bits set out of order");
                return;
            }
            self.advance(bit);
        }
    }

    fn advance(&mut self, bit: u32) {
        match bit {
            // The bit stays clear, which is how the driver learns of it.
            FEATURES_OK if !self.features_acceptable() => {
                tracing::debug!(features = self.driver_features, "features refused");
            }
            DRIVER_OK => {
                self.status |= DRIVER_OK;
                self.activate();
            }
            _ => self.status |= bit,
        }
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.offered() == 0 && self.driver_features & VERSION_1 != 0
    }

    fn activate(&mut self) {
        let event_idx = self.driver_features & EVENT_IDX != 0;
        let queues = self
            .queues
            .iter()
            .map(|queue| queue.build(&self.memory, event_idx))
            .collect::<Result<_, _>>();
        let queues = match queues {
            Ok(queues) => queues,
            Err(error) => return self.break_device(&error.to_string()),
        };
        let activation = Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: self.interrupt.clone(),
            driver_features: self.driver_features,
        };
        match self.device.activate(activation) {
            Ok(()) => self.active = true,
            Err(error) => self.break_device(&error.to_string()),
        }
    }

    fn reset(&mut self) {
        self.deactivate();
        self.interrupt.clear();
        for queue in &mut self.queues {
            queue.reset();
        }
        self.status = 0;
        self.driver_features = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
        self.shm_sel = 0;
    }

    fn deactivate(&mut self) {
        if std::mem::take(&mut self.active) {
            self.device.reset();
        }
    }

    fn break_device(&self, why: &str) {
        tracing::debug!(device = ?self.device.device_type(), why, "device needs reset");
        // Before `DRIVER_OK` there is no driver to interrupt.
        if self.status & DRIVER_OK == 0 {
            self.interrupt.set_needs_reset();
        } else {
            self.interrupt.device_needs_reset();
        }
    }
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device", &self.device.device_type())
            .field("status", &self.status())
            .field("driver_features", &self.driver_features)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

fn set_low(value: &mut u64, bits: u32) {
    *value = *value & !0xffff_ffff | u64::from(bits);
}

fn set_high(value: &mut u64, bits: u32) {
    *value = *value & 0xffff_ffff | u64::from(bits) << 32;
}
