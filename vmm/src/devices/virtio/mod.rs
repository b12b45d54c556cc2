//! What a virtio device is to the rest of the VMM (virtio 1.3, section 2).
//!
//! ```text
//!            reset            DRIVER_OK
//!   driver ────────▶ inactive ─────────▶ active ──reset──▶ inactive
//! ```
//!
//! The transport owns a device's registers and, while the device is inactive,
//! its queues. `activate` moves the queues to wherever the device serves them
//! (the event loop, or a thread of its own); `reset` takes everything back.

pub mod balloon;
pub mod block;
pub mod buffers;
pub mod fs;
pub mod mmio;
pub mod net;
pub mod queue_loop;
pub mod rng;
pub mod slot;
#[cfg(test)]
pub(crate) mod test_driver;
pub mod vsock;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use thiserror::Error;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// Guest memory as devices see it.
pub type GuestMemory = Arc<GuestMemoryMmap<()>>;

/// Ring features (virtio 1.3, section 6) for a device to offer that calls
/// `disable_notification`, `enable_notification` and `needs_notification` of
/// its queues. The transport prepares the queues for what was negotiated.
pub const RING_FEATURES: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// Device numbers (virtio 1.3, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceType {
    Net = 1,
    Block = 2,
    Rng = 4,
    Balloon = 5,
    Vsock = 19,
    Fs = 26,
}

/// A shared memory region of a device (virtio 1.3, section 2.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShmRegion {
    /// Guest-physical start.
    pub base: vm_memory::GuestAddress,
    /// Bytes.
    pub len: u64,
}

/// A virtio device, as its transport drives it.
pub trait VirtioDevice: Send {
    fn device_type(&self) -> DeviceType;

    /// Whether a driver that looks for devices finds one. A slot that is to be found
    /// later shows device id 0 until then (virtio 1.3, 4.2.2).
    fn is_present(&self) -> bool {
        true
    }

    /// Feature bits offered, without `VERSION_1`, which the transport adds.
    fn features(&self) -> u64;

    /// Largest size of each queue, a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// Fills `data` from the configuration space; bytes past its end stay 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Most devices have nothing there that a driver may write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready (`DRIVER_OK`): serve the queues from now on.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stop serving and drop what `activate` was given. Guest memory is not
    /// touched after this returns.
    fn reset(&mut self);

    /// The shared memory region `id`, where the device has it.
    fn shm_region(&self, _id: u8) -> Option<ShmRegion> {
        None
    }
}

/// Reads a configuration space that is `config`; past its end bytes stay as
/// they are.
fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let Ok(offset) = usize::try_from(offset) else {
        return;
    };
    for (to, from) in data.iter_mut().zip(config.iter().skip(offset)) {
        *to = *from;
    }
}

/// What a device is given when its driver is ready.
#[derive(Debug)]
pub struct Activation {
    pub memory: GuestMemory,
    /// All queues of the device; one the driver left alone is not `ready()`.
    pub queues: Vec<ActiveQueue>,
    pub interrupt: Interrupt,
    /// Feature bits the driver accepted, a subset of those offered.
    pub driver_features: u64,
}

/// A queue and the event that says it has buffers.
#[derive(Debug)]
pub struct ActiveQueue {
    pub queue: Queue,
    pub kick: EventFd,
}

/// How a device gets its driver's attention (virtio 1.3, 4.2.2).
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<InterruptState>);

#[derive(Debug)]
struct InterruptState {
    /// The `InterruptStatus` register.
    status: AtomicU32,
    /// The `ConfigGeneration` register.
    generation: AtomicU32,
    /// `DEVICE_NEEDS_RESET` of the `Status` register.
    needs_reset: AtomicBool,
    irqfd: EventFd,
}

impl Interrupt {
    const USED_BUFFERS: u32 = 1;
    const CONFIG_CHANGED: u32 = 2;

    pub fn new(irqfd: EventFd) -> Self {
        Self(Arc::new(InterruptState {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            irqfd,
        }))
    }

    pub fn irqfd(&self) -> &EventFd {
        &self.0.irqfd
    }

    /// Tells the driver of used buffers.
    pub fn used_buffers(&self) {
        self.raise(Self::USED_BUFFERS);
    }

    /// Tells the driver to read the configuration space again.
    pub fn config_changed(&self) {
        self.0.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(Self::CONFIG_CHANGED);
    }

    /// Tells the driver that only a reset helps (virtio 1.3, 2.1.2): it has
    /// broken the device, a queue for instance.
    pub fn device_needs_reset(&self) {
        self.set_needs_reset();
        self.config_changed();
    }

    fn set_needs_reset(&self) {
        self.0.needs_reset.store(true, Ordering::SeqCst);
    }

    fn status(&self) -> u32 {
        self.0.status.load(Ordering::SeqCst)
    }

    fn acknowledge(&self, bits: u32) {
        self.0.status.fetch_and(!bits, Ordering::SeqCst);
    }

    fn generation(&self) -> u32 {
        self.0.generation.load(Ordering::SeqCst)
    }

    fn needs_reset(&self) -> bool {
        self.0.needs_reset.load(Ordering::SeqCst)
    }

    /// After a reset nothing of the past is pending; the generation goes on.
    fn clear(&self) {
        self.0.needs_reset.store(false, Ordering::SeqCst);
        self.0.status.store(0, Ordering::SeqCst);
    }

    fn raise(&self, bit: u32) {
        self.0.status.fetch_or(bit, Ordering::SeqCst);
        // An eventfd refuses a write only when its counter is full, and then the
        // interrupt is pending anyway.
        let _ = self.0.irqfd.write(1);
    }
}

/// Why a device could not start.
#[derive(Debug, Error)]
pub enum ActivateError {
    #[error("queue {0} is not ready")]
    QueueNotReady(usize),
    #[error("event loop is gone")]
    EventLoopGone,
    #[error("{what} failed")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}
