//! The network slot as its driver sees it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use super::datapath::Port;
use super::offload;
use crate::devices::virtio::slot::Slot;
use crate::devices::virtio::{
    ActivateError, Activation, DeviceType, RING_FEATURES, VirtioDevice, read_config_bytes,
};
use crate::event_loop::EventLoopHandle;

/// Receive and transmit.
pub(super) const QUEUE_SIZES: [u16; 2] = [256, 256];

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The address of slot `slot` until the guest is told another: locally
    /// administered, unicast, the same in every microVM.
    pub fn of_slot(slot: u8) -> Self {
        Self([0x02, b'l', b'z', b'r', b't', slot])
    }
}

/// A network slot.
#[derive(Debug)]
pub struct Net {
    mac: MacAddress,
    features: u64,
    link_up: Arc<AtomicBool>,
    slot: Slot<OwnedFd>,
}

impl Net {
    /// A slot that is served by `events`, the link down.
    pub fn new(mac: MacAddress, events: &EventLoopHandle) -> io::Result<Self> {
        let link_up = Arc::new(AtomicBool::new(false));
        Ok(Self {
            mac,
            features: offload::features(offload::host_knows_uso())
                | 1 << VIRTIO_NET_F_MAC
                | 1 << VIRTIO_NET_F_MRG_RXBUF
                | 1 << VIRTIO_NET_F_STATUS
                | RING_FEATURES,
            slot: Slot::new(events, Port::new(Arc::clone(&link_up)))?,
            link_up,
        })
    }

    /// Where a tap is connected.
    pub fn slot(&self) -> Slot<OwnedFd> {
        self.slot.clone()
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    /// Its driver would make an interface that nobody has use for, at a price for
    /// the boot of the guest; who connects a tap has the guest look again.
    fn is_present(&self) -> bool {
        self.link_up.load(Ordering::SeqCst)
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// The address, then the link's status.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let status = if self.link_up.load(Ordering::SeqCst) {
            VIRTIO_NET_S_LINK_UP
        } else {
            0
        };
        let mut config = [0; 8];
        config[..6].copy_from_slice(&self.mac.0);
        config[6..].copy_from_slice(&status.to_le_bytes()[..2]);
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.slot.activate(activation)
    }

    fn reset(&mut self) {
        self.slot.reset();
    }
}
