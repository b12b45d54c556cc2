//! Who answers when a vCPU reads or writes an address that is not RAM.

use parking_lot::Mutex;

use crate::arch::x86_64::layout;
use crate::devices::i8042;
use crate::devices::power;
use crate::devices::serial::{self, SerialPort};
use crate::devices::virtio::mmio::{MmioTransport, WINDOW_SIZE};

/// What an address reads as where there is nothing.
const NOBODY: u8 = 0xff;

/// A write that ends the microVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRequest {
    PowerOff,
    Reset,
}

/// All devices by address. Each lock is held for one access.
#[derive(Debug)]
pub struct Bus {
    /// By slot; a slot's window follows from its number.
    virtio: Vec<Mutex<MmioTransport>>,
    serial: Mutex<SerialPort>,
}

impl Bus {
    pub fn new(virtio: Vec<MmioTransport>, serial: SerialPort) -> Self {
        Self {
            virtio: virtio.into_iter().map(Mutex::new).collect(),
            serial: Mutex::new(serial),
        }
    }

    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.slot(address) {
            Some((transport, offset)) => transport.lock().read(offset, data),
            None => data.fill(NOBODY),
        }
    }

    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((transport, offset)) = self.slot(address) {
            transport.lock().write(offset, data);
        }
    }

    pub fn pio_read(&self, port: u16, data: &mut [u8]) {
        data.fill(NOBODY);
        if let Some(offset) = serial::offset(port) {
            self.serial.lock().read(offset, data);
        } else if port == i8042::STATUS_PORT {
            data.fill(i8042::IDLE);
        }
    }

    pub fn pio_write(&self, port: u16, data: &[u8]) -> Option<GuestRequest> {
        if let Some(offset) = serial::offset(port) {
            self.serial.lock().write(offset, data);
            return None;
        }
        match (port, data) {
            (i8042::COMMAND_PORT, [i8042::PULSE_RESET]) => Some(GuestRequest::Reset),
            (power::PORT, [power::OFF]) => Some(GuestRequest::PowerOff),
            _ => None,
        }
    }

    /// Writes out what the guest has printed without ending the line.
    pub fn flush_console(&self) {
        self.serial.lock().flush();
    }

    fn slot(&self, address: u64) -> Option<(&Mutex<MmioTransport>, u64)> {
        let distance = address.checked_sub(layout::VIRTIO_MMIO_BASE)?;
        let slot = usize::try_from(distance / WINDOW_SIZE).ok()?;
        Some((self.virtio.get(slot)?, distance % WINDOW_SIZE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EventFd;

    fn bus() -> Bus {
        let console = tempfile::tempfile().unwrap();
        let serial = SerialPort::new(EventFd::new(0).unwrap(), console.into()).unwrap();
        Bus::new(Vec::new(), serial)
    }

    #[test]
    fn nobody_reads_as_all_ones() {
        let mut data = [0; 4];
        bus().mmio_read(layout::VIRTIO_MMIO_BASE, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus().pio_read(0x70, &mut data[..1]);
        assert_eq!(data[0], 0xff);
    }

    #[test]
    fn requests_are_told_from_other_writes() {
        let bus = bus();
        assert_eq!(bus.pio_write(0x64, &[0xfe]), Some(GuestRequest::Reset));
        assert_eq!(bus.pio_write(0x64, &[0xd1]), None);
        assert_eq!(bus.pio_write(0x604, b"S"), Some(GuestRequest::PowerOff));
        assert_eq!(bus.pio_write(0x604, b"SS"), None);
        assert_eq!(bus.pio_write(0xffff, &[0; 8]), None);
    }
}
