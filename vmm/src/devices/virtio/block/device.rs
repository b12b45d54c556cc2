//! The block slot as its driver sees it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::disk::Medium;
use super::drive::Drive;
use super::engine::Engines;
use super::request::Limits;
use super::{DISCARD_SECTORS_MAX, QUEUE_SIZE, SEGMENT_SIZE_MAX, SEGMENTS_MAX, ZEROES_SECTORS_MAX};
use crate::devices::virtio::slot::Slot;
use crate::devices::virtio::{
    ActivateError, Activation, DeviceType, RING_FEATURES, VirtioDevice, read_config_bytes,
};
use crate::event_loop::EventLoopHandle;

/// Up to `write_zeroes_may_unmap` and its padding (virtio 1.3, 5.2.4).
const CONFIG_LEN: usize = 60;

/// A block slot.
#[derive(Debug)]
pub struct Block {
    shown: Arc<Shown>,
    slot: Slot<Medium>,
}

/// What the driver reads of the disk.
#[derive(Debug, Default)]
pub(super) struct Shown {
    sectors: AtomicU64,
    read_only: AtomicBool,
}

impl Shown {
    pub(super) fn set(&self, limits: Limits) {
        self.read_only.store(limits.read_only, Ordering::SeqCst);
        self.sectors.store(limits.sectors, Ordering::SeqCst);
    }
}

impl Block {
    /// Slot `number`, empty, served by `events`.
    pub fn new(number: u8, engines: &Engines, events: &EventLoopHandle) -> io::Result<Self> {
        let shown = Arc::new(Shown::default());
        let drive = Drive::new(number, Arc::clone(&shown), engines.engine()?);
        let slot = Slot::new(events, drive)?;
        Ok(Self { shown, slot })
    }

    /// Where a disk is put in.
    pub fn slot(&self) -> Slot<Medium> {
        self.slot.clone()
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    /// A driver that starts before the disk is there does not see that this is
    /// read-only: it gets errors for what it writes.
    fn features(&self) -> u64 {
        1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_DISCARD
            | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            | u64::from(self.shown.read_only.load(Ordering::SeqCst)) << VIRTIO_BLK_F_RO
            | RING_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_LEN];
        let sectors = self.shown.sectors.load(Ordering::SeqCst);
        config[..8].copy_from_slice(&sectors.to_le_bytes());
        for (at, value) in [
            (8, SEGMENT_SIZE_MAX),
            (12, SEGMENTS_MAX),
            (36, DISCARD_SECTORS_MAX),
            (40, 1), // max_discard_seg
            (44, 1), // discard_sector_alignment
            (48, ZEROES_SECTORS_MAX),
            (52, 1), // max_write_zeroes_seg
            (56, 1), // write_zeroes_may_unmap
        ] {
            config[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.slot.activate(activation)
    }

    fn reset(&mut self) {
        self.slot.reset();
    }
}
