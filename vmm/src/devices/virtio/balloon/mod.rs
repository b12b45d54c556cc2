//! virtio-balloon (virtio 1.3, section 5.5): memory taken from the guest on
//! request, and memory that the guest reports as free, go back to the host.

mod discard;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use self::discard::{PAGE, discard};
use super::buffers::{Buffers, Chain};
use super::queue_loop::{Answer, QueueHandler, ServeChain, Served};
use super::{
    ActivateError, Activation, DeviceType, Interrupt, RING_FEATURES, VirtioDevice,
    read_config_bytes,
};
use crate::event_loop::EventLoopHandle;

/// The guest may take pages back when it runs out, without asking.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;

/// The guest tells which pages it does not use.
const F_REPORTING: u64 = 1 << 5;

/// Inflate, deflate, reporting. Linux counts only the queues of negotiated
/// features, so that reporting is the third without statistics and hinting.
const QUEUE_SIZES: [u16; 3] = [128, 128, 128];

const INFLATE: usize = 0;
const REPORTING: usize = 2;

/// Most page numbers of one request that are looked at; Linux sends 256.
const PAGES_PER_REQUEST: usize = 4096;

/// Most ranges of one report that are looked at; Linux sends 32.
const RANGES_PER_REPORT: usize = 256;

/// Where `actual` is in the configuration space.
const ACTUAL_OFFSET: u64 = 4;

const PAGES_PER_MIB: u32 = (1 << 20) / 4096;

/// The configuration space (virtio 1.3, 5.5.4) and who is told of changes.
#[derive(Debug, Default)]
struct Config {
    /// Pages wanted from the guest.
    num_pages: AtomicU32,
    /// Pages the guest says it has given.
    actual: AtomicU32,
    /// Of the active driver.
    interrupt: Mutex<Option<Interrupt>>,
}

/// Sets the balloon of a running microVM.
#[derive(Clone, Debug)]
pub struct BalloonHandle(Arc<Config>);

impl BalloonHandle {
    /// Asks the guest to give `mib` MiB in all; it does so when it can.
    pub fn set_target_mib(&self, mib: u32) {
        let pages = mib.saturating_mul(PAGES_PER_MIB);
        self.0.num_pages.store(pages, Ordering::SeqCst);
        if let Some(interrupt) = &*self.0.interrupt.lock() {
            interrupt.config_changed();
        }
    }

    /// What the guest says it has given, MiB.
    pub fn actual_mib(&self) -> u32 {
        self.0.actual.load(Ordering::SeqCst) / PAGES_PER_MIB
    }
}

/// The balloon.
#[derive(Debug)]
pub struct Balloon {
    config: Arc<Config>,
    served: Served,
}

impl Balloon {
    pub fn new(events: EventLoopHandle) -> Self {
        Self {
            config: Arc::default(),
            served: Served::by(events),
        }
    }

    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(Arc::clone(&self.config))
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn features(&self) -> u64 {
        F_DEFLATE_ON_OOM | F_REPORTING | RING_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 8];
        let (num_pages, actual) = config.split_at_mut(4);
        num_pages.copy_from_slice(&self.config.num_pages.load(Ordering::SeqCst).to_le_bytes());
        actual.copy_from_slice(&self.config.actual.load(Ordering::SeqCst).to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL_OFFSET, Ok(pages)) = (offset, data.try_into()) {
            let pages = u32::from_le_bytes(pages);
            self.config.actual.store(pages, Ordering::SeqCst);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let interrupt = activation.interrupt.clone();
        let reporting = activation.driver_features & F_REPORTING != 0;
        let handler = if reporting {
            QueueHandler::new(Pages, activation)?
        } else {
            QueueHandler::without_last(Pages, activation)?
        };
        self.served.start(handler)?;
        *self.config.interrupt.lock() = Some(interrupt);
        Ok(())
    }

    fn reset(&mut self) {
        *self.config.interrupt.lock() = None;
        self.served.stop();
        self.config.actual.store(0, Ordering::SeqCst);
    }
}

/// What the queues carry.
struct Pages;

impl ServeChain for Pages {
    fn serve(&mut self, queue: usize, chain: Chain<'_>, memory: &GuestMemoryMmap) -> Answer {
        match queue {
            INFLATE => inflate(chain, memory),
            REPORTING => report(chain, memory),
            // A page deflated is a page used again: the host gives a fresh one
            // when it is touched.
            _ => {}
        }
        Answer::Used(0)
    }
}

/// Little-endian page numbers, often runs of neighbours.
fn inflate(chain: Chain<'_>, memory: &GuestMemoryMmap) {
    let Ok(numbers) = Buffers::readable(chain, memory) else {
        return;
    };
    let mut bytes = vec![0; numbers.len().min(PAGES_PER_REQUEST * 4)];
    let copied = numbers.copy_to(&mut bytes);
    let (numbers, _) = bytes[..copied].as_chunks();
    let mut pages: Vec<u32> = numbers.iter().map(|n| u32::from_le_bytes(*n)).collect();
    // Linux fills the array from the end of what it allocated.
    pages.sort_unstable();
    pages.dedup();
    for run in pages.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
        let start = GuestAddress(u64::from(run[0]) * PAGE);
        discard(memory, start, run.len() as u64 * PAGE);
    }
}

/// The free pages themselves, as buffers (virtio 1.3, 5.5.6.7).
fn report(chain: Chain<'_>, memory: &GuestMemoryMmap) {
    for pages in chain.writable().take(RANGES_PER_REPORT) {
        discard(memory, pages.addr(), u64::from(pages.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::test_driver::{Machine, QueueSetup};

    const BUFFER: u64 = 4 * PAGE;

    fn started() -> (Machine, BalloonHandle, [QueueSetup; 3]) {
        let mut machine = Machine::new();
        let balloon = Balloon::new(machine.events());
        let handle = balloon.handle();
        let queues = machine.start(Box::new(balloon), &QUEUE_SIZES);
        (machine, handle, queues.try_into().unwrap())
    }

    fn full_buffer(machine: &mut Machine) -> u64 {
        let start = machine.buffer(BUFFER);
        machine.write(start, &vec![7; usize::try_from(BUFFER).unwrap()]);
        start
    }

    fn full_bytes(machine: &Machine, start: u64) -> usize {
        let bytes = machine.read(start, BUFFER);
        bytes.iter().filter(|byte| **byte > 0).count()
    }

    #[test]
    fn inflated_pages_are_freed() {
        let (mut machine, _, [mut inflate, ..]) = started();
        let pages = full_buffer(&mut machine);
        let first = u32::try_from(pages / PAGE).unwrap();
        let numbers = machine.buffer(16);
        for (at, number) in [first + 1, first, first + 3].into_iter().enumerate() {
            machine.write(numbers + 4 * at as u64, &number.to_le_bytes());
        }
        inflate.add(&machine, &[(numbers, 12, false)]);
        machine.kick(0);
        assert_eq!(inflate.take_used(&machine), [0]);
        assert_eq!(full_bytes(&machine, pages), 4096);
        assert_eq!(machine.read(pages + 2 * PAGE, 1), [7]);
    }

    #[test]
    fn page_numbers_without_memory_are_passed_over() {
        let (mut machine, _, [mut inflate, ..]) = started();
        let numbers = machine.buffer(16);
        machine.write(numbers, &[0xff; 16]);
        inflate.add(&machine, &[(numbers, 15, false)]);
        inflate.add(&machine, &[(u64::MAX - 3, 4, false)]);
        machine.kick(0);
        assert_eq!(inflate.take_used(&machine), [0, 0]);
    }

    #[test]
    fn reported_pages_are_freed_and_given_back() {
        let (mut machine, _, [_, _, mut reporting]) = started();
        let pages = full_buffer(&mut machine);
        let len = u32::try_from(BUFFER).unwrap();
        reporting.add(&machine, &[(pages, len, true)]);
        machine.kick(2);
        assert_eq!(reporting.take_used(&machine), [0]);
        assert_eq!(full_bytes(&machine, pages), 0);
    }

    #[test]
    fn reported_range_outside_memory_harms_nobody() {
        let (mut machine, _, [_, _, mut reporting]) = started();
        reporting.add(&machine, &[(u64::MAX - 10, u32::MAX, true)]);
        reporting.add(&machine, &[(0x4000_0000_0000, 4096, true)]);
        machine.kick(2);
        assert_eq!(reporting.take_used(&machine), [0, 0]);
    }

    #[test]
    fn deflated_pages_are_acknowledged() {
        let (mut machine, _, [_, mut deflate, _]) = started();
        let numbers = machine.buffer(16);
        deflate.add(&machine, &[(numbers, 16, false)]);
        machine.kick(1);
        assert_eq!(deflate.take_used(&machine), [0]);
    }

    #[test]
    fn new_target_reaches_the_driver_and_its_answer_the_host() {
        let (mut machine, handle, _) = started();
        handle.set_target_mib(3);
        assert!(machine.interrupted());
        assert_eq!(machine.config(0, 4), (3 * 256_u32).to_le_bytes());
        machine.set_config(4, &(2 * 256_u32).to_le_bytes());
        assert_eq!(handle.actual_mib(), 2);
        machine.set_config(0, &[0xff; 4]);
        assert_eq!(machine.config(0, 4), (3 * 256_u32).to_le_bytes());
        handle.set_target_mib(u32::MAX);
        assert_eq!(machine.config(0, 4), u32::MAX.to_le_bytes());
    }

    #[test]
    fn driver_without_reporting_leaves_that_queue_alone() {
        let mut machine = Machine::new();
        let balloon = Balloon::new(machine.events());
        let refused = F_REPORTING;
        let queues = machine.start_without(Box::new(balloon), &QUEUE_SIZES[..2], refused);
        let [mut inflate, _] = queues.try_into().unwrap();
        assert!(!machine.needs_reset());
        let numbers = machine.buffer(4);
        inflate.add(&machine, &[(numbers, 4, false)]);
        machine.kick(0);
        assert_eq!(inflate.take_used(&machine), [0]);
    }
}
