use std::sync::Arc;

use parking_lot::Mutex;
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::devices::virtio::{ActivateError, DeviceType, RING_FEATURES, ShmRegion};

const MEMORY: usize = 0x10_0000;
const QUEUE_SIZES: [u16; 2] = [64, 8];
const OWN_FEATURE: u64 = 1 << 3;

/// What the transport did to the device.
#[derive(Debug, Default)]
struct Log {
    activations: Vec<Activation>,
    resets: usize,
    config: [u8; 8],
    refuse: bool,
}

struct Recorder(Arc<Mutex<Log>>);

impl VirtioDevice for Recorder {
    fn device_type(&self) -> DeviceType {
        DeviceType::Rng
    }

    fn features(&self) -> u64 {
        OWN_FEATURE | RING_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let log = self.0.lock();
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at)
                .ok()
                .and_then(|at| log.config.get(at).copied())
                .unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 && data.len() == 8 {
            self.0.lock().config.copy_from_slice(data);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut log = self.0.lock();
        if log.refuse {
            return Err(ActivateError::EventLoopGone);
        }
        log.activations.push(activation);
        Ok(())
    }

    fn reset(&mut self) {
        let mut log = self.0.lock();
        assert!(log.activations.len() > log.resets, "reset while inactive");
        log.resets += 1;
    }

    fn shm_region(&self, id: u8) -> Option<ShmRegion> {
        (id == 1).then_some(ShmRegion {
            base: GuestAddress(0x1_0000_2000),
            len: 0x2_0000_0000,
        })
    }
}

struct Driver {
    transport: MmioTransport,
    log: Arc<Mutex<Log>>,
}

impl Driver {
    fn new() -> Self {
        let log = Arc::default();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let transport = MmioTransport::new(
            Box::new(Recorder(Arc::clone(&log))),
            Arc::new(memory),
            EventFd::new(EFD_NONBLOCK).unwrap(),
        )
        .unwrap();
        Self { transport, log }
    }

    fn get(&self, offset: u64) -> u32 {
        let mut data = [0xaa; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn add_status(&mut self, bit: u32) -> u32 {
        self.set(reg::STATUS, self.get(reg::STATUS) | bit);
        self.get(reg::STATUS)
    }

    fn accept(&mut self, features: u64) {
        self.set(reg::DRIVER_FEATURES_SEL, 0);
        self.set(reg::DRIVER_FEATURES, low(features));
        self.set(reg::DRIVER_FEATURES_SEL, 1);
        self.set(reg::DRIVER_FEATURES, high(features));
    }

    /// Up to `FEATURES_OK`.
    fn negotiate(&mut self, features: u64) {
        self.set(reg::STATUS, 0);
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        self.accept(features);
        self.add_status(FEATURES_OK);
    }

    fn set_up_queue(&mut self, index: u32, size: u32, base: u32) {
        self.set(reg::QUEUE_SEL, index);
        self.set(reg::QUEUE_SIZE, size);
        self.set(reg::QUEUE_DESC_LOW, base);
        self.set(reg::QUEUE_DRIVER_LOW, base + 0x1000);
        self.set(reg::QUEUE_DEVICE_LOW, base + 0x2000);
        self.set(reg::QUEUE_READY, 1);
    }

    fn start(&mut self) {
        self.negotiate(VERSION_1 | EVENT_IDX);
        self.set_up_queue(0, 32, 0x1000);
        self.add_status(DRIVER_OK);
    }

    fn needs_reset(&self) -> bool {
        self.get(reg::STATUS) & NEEDS_RESET != 0
    }

    fn activations(&self) -> usize {
        self.log.lock().activations.len()
    }
}

#[test]
fn identity_is_what_drivers_look_for() {
    let driver = Driver::new();
    assert_eq!(driver.get(reg::MAGIC), u32::from_le_bytes(*b"virt"));
    assert_eq!(driver.get(reg::VERSION), 2);
    assert_eq!(driver.get(reg::DEVICE_ID), 4);
}

#[test]
fn features_are_offered_in_two_halves() {
    let mut driver = Driver::new();
    let low_half = driver.get(reg::DEVICE_FEATURES);
    driver.set(reg::DEVICE_FEATURES_SEL, 1);
    let high_half = driver.get(reg::DEVICE_FEATURES);
    driver.set(reg::DEVICE_FEATURES_SEL, 2);
    assert_eq!(u64::from(low_half), OWN_FEATURE | RING_FEATURES);
    assert_eq!(high_half, 1);
    assert_eq!(driver.get(reg::DEVICE_FEATURES), 0);
}

#[test]
fn orderly_driver_gets_its_queues_to_the_device() {
    let mut driver = Driver::new();
    driver.start();
    assert_eq!(
        driver.get(reg::STATUS),
        ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
    );
    let log = driver.log.lock();
    let [activation] = log.activations.as_slice() else {
        panic!("{log:?}");
    };
    assert_eq!(activation.driver_features, VERSION_1 | EVENT_IDX);
    let [used, unused] = activation.queues.as_slice() else {
        panic!("{activation:?}");
    };
    assert!(used.queue.ready() && used.queue.event_idx_enabled());
    assert_eq!(used.queue.size(), 32);
    assert_eq!(used.queue.desc_table(), 0x1000);
    assert_eq!(used.queue.avail_ring(), 0x2000);
    assert_eq!(used.queue.used_ring(), 0x3000);
    assert!(!unused.queue.ready());
}

#[test]
fn several_status_bits_at_once_are_taken_in_order() {
    let mut driver = Driver::new();
    driver.set(reg::STATUS, ACKNOWLEDGE | DRIVER);
    driver.accept(VERSION_1);
    driver.set(reg::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(driver.activations(), 1);
}

#[test]
fn each_step_out_of_order_breaks_the_device() {
    for status in [
        DRIVER,
        FEATURES_OK,
        DRIVER_OK,
        ACKNOWLEDGE | FEATURES_OK,
        ACKNOWLEDGE | DRIVER | DRIVER_OK,
    ] {
        let mut driver = Driver::new();
        driver.set(reg::STATUS, status);
        assert!(driver.needs_reset(), "{status:#x}");
        assert_eq!(driver.activations(), 0, "{status:#x}");
        driver.start();
        assert_eq!(driver.activations(), 1, "a reset helps after {status:#x}");
    }
}

#[test]
fn clearing_status_bits_breaks_the_device() {
    let mut driver = Driver::new();
    driver.start();
    driver.set(reg::STATUS, ACKNOWLEDGE | DRIVER);
    assert!(driver.needs_reset());
    assert_eq!(driver.get(reg::INTERRUPT_STATUS), 2);
}

#[test]
fn failed_driver_goes_nowhere_until_reset() {
    let mut driver = Driver::new();
    driver.negotiate(VERSION_1);
    driver.add_status(FAILED);
    driver.add_status(DRIVER_OK);
    assert_eq!(driver.activations(), 0);
    assert!(driver.get(reg::STATUS) & FAILED != 0);
    driver.start();
    assert_eq!(driver.activations(), 1);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    for features in [0, OWN_FEATURE, VERSION_1 | 1 << 50, VERSION_1 | 1 << 4] {
        let mut driver = Driver::new();
        driver.negotiate(features);
        assert_eq!(
            driver.get(reg::STATUS),
            ACKNOWLEDGE | DRIVER,
            "{features:#x}"
        );
        driver.add_status(DRIVER_OK);
        assert_eq!(driver.activations(), 0, "{features:#x}");
    }
}

#[test]
fn refused_driver_may_try_other_features() {
    let mut driver = Driver::new();
    driver.negotiate(1 << 50);
    driver.accept(VERSION_1);
    assert!(driver.add_status(FEATURES_OK) & FEATURES_OK != 0);
}

#[test]
fn features_are_fixed_once_negotiated() {
    let mut driver = Driver::new();
    driver.negotiate(VERSION_1);
    driver.accept(VERSION_1 | OWN_FEATURE);
    driver.add_status(DRIVER_OK);
    assert_eq!(driver.log.lock().activations[0].driver_features, VERSION_1);
}

#[test]
fn queue_that_cannot_be_breaks_the_device() {
    let last = u32::try_from(MEMORY).unwrap();
    for (size, base) in [
        (0, 0x1000),
        (3, 0x1000),
        (128, 0x1000),
        (0x1_0020, 0x1000),
        (32, 0x1001),
        (32, last),
        (32, last - 0x2000),
    ] {
        let mut driver = Driver::new();
        driver.negotiate(VERSION_1);
        driver.set_up_queue(0, size, base);
        driver.add_status(DRIVER_OK);
        assert!(driver.needs_reset(), "size {size}, base {base:#x}");
        assert_eq!(driver.activations(), 0, "size {size}, base {base:#x}");
    }
}

#[test]
fn queue_up_to_the_last_byte_of_memory_is_served() {
    let mut driver = Driver::new();
    driver.negotiate(VERSION_1);
    let last = u32::try_from(MEMORY).unwrap();
    driver.set(reg::QUEUE_SEL, 1);
    driver.set(reg::QUEUE_DESC_LOW, 0x1000);
    driver.set(reg::QUEUE_DRIVER_LOW, 0x2000);
    driver.set(reg::QUEUE_DEVICE_LOW, last - (6 + 8 * 8 + 2));
    driver.set(reg::QUEUE_READY, 1);
    driver.add_status(DRIVER_OK);
    assert_eq!(driver.activations(), 1);
}

#[test]
fn queue_registers_are_fixed_while_the_device_uses_them() {
    let mut driver = Driver::new();
    driver.start();
    driver.set_up_queue(1, 8, 0x8000);
    assert_eq!(driver.get(reg::QUEUE_READY), 0);
    assert!(!driver.needs_reset());
}

#[test]
fn stopping_one_queue_stops_the_device() {
    let mut driver = Driver::new();
    driver.start();
    driver.set(reg::QUEUE_SEL, 0);
    driver.set(reg::QUEUE_READY, 0);
    assert_eq!(driver.get(reg::QUEUE_READY), 0);
    assert_eq!(driver.log.lock().resets, 1);
    assert!(driver.needs_reset());
}

#[test]
fn device_that_cannot_start_needs_a_reset() {
    let mut driver = Driver::new();
    driver.log.lock().refuse = true;
    driver.start();
    assert!(driver.needs_reset());
    driver.log.lock().refuse = false;
    driver.start();
    assert_eq!(driver.activations(), 1);
}

#[test]
fn reset_takes_everything_back() {
    let mut driver = Driver::new();
    driver.start();
    let interrupt = driver.log.lock().activations[0].interrupt.clone();
    interrupt.used_buffers();
    interrupt.device_needs_reset();
    assert_eq!(driver.get(reg::INTERRUPT_STATUS), 3);
    driver.set(reg::STATUS, 0);
    assert_eq!(driver.log.lock().resets, 1);
    assert_eq!(driver.get(reg::STATUS), 0);
    assert_eq!(driver.get(reg::INTERRUPT_STATUS), 0);
    assert_eq!(driver.get(reg::QUEUE_READY), 0);
    driver.set(reg::STATUS, 0);
    assert_eq!(driver.log.lock().resets, 1, "inactive device is left alone");
    driver.start();
    assert_eq!(driver.activations(), 2);
}

#[test]
fn interrupts_stay_until_acknowledged() {
    let mut driver = Driver::new();
    driver.start();
    let interrupt = driver.log.lock().activations[0].interrupt.clone();
    let generation = driver.get(reg::CONFIG_GENERATION);
    interrupt.used_buffers();
    interrupt.config_changed();
    assert_eq!(driver.get(reg::INTERRUPT_STATUS), 3);
    driver.set(reg::INTERRUPT_ACK, 1);
    assert_eq!(driver.get(reg::INTERRUPT_STATUS), 2);
    assert_eq!(driver.get(reg::CONFIG_GENERATION), generation + 1);
    assert_eq!(driver.transport.irqfd().read().unwrap(), 2);
}

#[test]
fn written_kick_reaches_the_queue_of_an_active_device_only() {
    let mut driver = Driver::new();
    driver.set(reg::QUEUE_NOTIFY, 0);
    driver.start();
    let kick = driver.log.lock().activations[0].queues[0]
        .kick
        .try_clone()
        .unwrap();
    assert!(kick.read().is_err());
    driver.set(reg::QUEUE_NOTIFY, 0);
    driver.set(reg::QUEUE_NOTIFY, 2);
    driver.set(reg::QUEUE_NOTIFY, u32::MAX);
    assert_eq!(kick.read().unwrap(), 1);
    let (index, exposed) = driver.transport.kicks().next().unwrap();
    assert_eq!(index, 0);
    exposed.write(1).unwrap();
    assert_eq!(kick.read().unwrap(), 1);
}

#[test]
fn shared_memory_is_all_ones_where_there_is_none() {
    let mut driver = Driver::new();
    for (id, len, base) in [
        (0, u64::MAX, u64::MAX),
        (1, 0x2_0000_0000, 0x1_0000_2000),
        (257, u64::MAX, u64::MAX),
    ] {
        driver.set(reg::SHM_SEL, id);
        assert_eq!(driver.get(reg::SHM_LEN_LOW), low(len));
        assert_eq!(driver.get(reg::SHM_LEN_HIGH), high(len));
        assert_eq!(driver.get(reg::SHM_BASE_LOW), low(base));
        assert_eq!(driver.get(reg::SHM_BASE_HIGH), high(base));
    }
}

#[test]
fn configuration_is_read_and_written_in_any_width() {
    let mut driver = Driver::new();
    driver.set(reg::STATUS, ACKNOWLEDGE | DRIVER);
    driver.transport.write(reg::CONFIG, b"abcdefgh");
    let mut data = [0xff; 4];
    driver.transport.read(reg::CONFIG + 6, &mut data);
    assert_eq!(&data, b"gh\0\0");
    let mut byte = [0xff];
    driver.transport.read(reg::CONFIG + 1, &mut byte);
    assert_eq!(&byte, b"b");
}

#[test]
fn absent_queue_has_no_registers() {
    let mut driver = Driver::new();
    driver.negotiate(VERSION_1);
    for index in [2, u32::MAX] {
        driver.set_up_queue(index, 8, 0x1000);
        assert_eq!(driver.get(reg::QUEUE_SIZE_MAX), 0);
        assert_eq!(driver.get(reg::QUEUE_READY), 0);
    }
    driver.set(reg::QUEUE_SEL, 1);
    assert_eq!(driver.get(reg::QUEUE_SIZE_MAX), 8);
}

/// xorshift64*: sequences that are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }
}

#[test]
fn random_accesses_never_panic_and_keep_the_device_contract() {
    // `Recorder::reset` asserts that only an active device is reset.
    for seed in 1..200 {
        let mut random = Random(seed);
        let mut driver = Driver::new();
        for _ in 0..2000 {
            let offset = match random.below(4) {
                0 => random.below(WINDOW_SIZE),
                1 => reg::STATUS,
                _ => random.below(0x50) * 4,
            };
            let len = [1, 2, 3, 4, 4, 4, 4, 8, 0, 16][usize::try_from(random.below(10)).unwrap()];
            let mut data = [0; 16];
            let value = match random.below(4) {
                0 => random.next(),
                1 => random.below(16),
                2 => random.below(0x100) << 8,
                _ => 1,
            };
            data[..8].copy_from_slice(&value.to_le_bytes());
            if random.below(3) == 0 {
                driver.transport.read(offset, &mut data[..len]);
            } else {
                driver.transport.write(offset, &data[..len]);
            }
        }
        driver.log.lock().refuse = false;
        let before = driver.activations();
        driver.start();
        assert_eq!(driver.activations(), before + 1, "seed {seed}");
    }
}

#[test]
fn random_walk_along_the_state_machine_activates_only_what_is_valid() {
    for seed in 1..300 {
        let mut random = Random(seed);
        let mut driver = Driver::new();
        for _ in 0..300 {
            match random.below(8) {
                0 => driver.set(reg::STATUS, 0),
                1 => driver
                    .accept([VERSION_1, 0, u64::MAX][usize::try_from(random.below(3)).unwrap()]),
                2 => {
                    let base = u32::try_from(random.below(0x20) << 15).unwrap();
                    let size = u32::try_from(random.below(70)).unwrap();
                    driver.set_up_queue(u32::try_from(random.below(3)).unwrap(), size, base);
                }
                3 => driver.set(reg::QUEUE_READY, 0),
                bit => {
                    driver.add_status(1 << (bit - 4));
                }
            }
        }
        for activation in &driver.log.lock().activations {
            assert!(activation.driver_features & VERSION_1 != 0);
            for queue in activation.queues.iter().filter(|q| q.queue.ready()) {
                assert!(queue.queue.size().is_power_of_two());
                assert!(queue.queue.is_valid(activation.memory.as_ref()));
            }
        }
    }
}
