//! Rings that a processor of the guest fills as fast as the device empties them.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::guest::*;
use crate::devices::virtio::test_driver::{Machine, QueueSetup};
use crate::devices::virtio::vsock::packet::Op;

const RX: u32 = 0;
const EVENT: u32 = 2;

const WRITABLE: u16 = 2;

/// Chains after which the guest gives up: far more than a turn should take.
const MOST: usize = 100_000;

/// Chains after which the test has seen it.
const ENOUGH: usize = 2000;

/// No longer than a test may hang.
const DEADLINE: Duration = Duration::from_mins(1);

/// Each buffer of `queue` is `len` bytes from now on.
fn shrink_buffers(machine: &mut Machine, queue: &QueueSetup, len: u32) {
    let buffer = machine.buffer(4096);
    for index in 0..128 {
        queue.set_descriptor(machine, index, buffer, len, WRITABLE, 0);
    }
}

/// The loop has turns while `queue` is kept full, and they end.
fn assert_rounds_end(machine: &mut Machine, queue: &mut QueueSetup, number: u32) {
    let memory = Arc::clone(&machine.memory);
    let used = AtomicUsize::new(0);
    let started = Instant::now();
    let held = std::thread::scope(|scope| {
        scope.spawn(|| queue.keep_full(&memory, &used, MOST));
        while used.load(Ordering::Relaxed) < ENOUGH && started.elapsed() < DEADLINE {
            machine.notify(number);
            machine.round();
        }
        // Ends the guest's doings, if they have not ended.
        used.fetch_add(MOST, Ordering::Relaxed)
    });
    assert!(held >= ENOUGH, "only {held} chains were taken");
    assert!(held < MOST, "the loop was held for {held} chains");
    machine.kick(number);
    queue.take_used(machine);
}

#[test]
fn buffers_without_room_for_a_header_do_not_hold_the_loop_nor_lose_the_packet() {
    let mut guest = Guest::without_buffers();
    shrink_buffers(&mut guest.machine, &guest.rx, 1);
    let _host = guest.host(b"CONNECT 77\n");
    guest.machine.settle();
    assert_rounds_end(&mut guest.machine, &mut guest.rx, RX);
    guest.post(1);
    guest.receive_one(Op::Request);
}

#[test]
fn buffers_without_room_for_data_do_not_hold_the_loop_nor_lose_the_data() {
    let mut guest = Guest::without_buffers();
    guest.post(1);
    let (mut host, _) = guest.connect_from_host();
    host.write_all(&[7; 5000]).unwrap();
    guest.machine.settle();
    assert_eq!(guest.rx.take_used(&guest.machine), [RX_BUFFER]);
    shrink_buffers(&mut guest.machine, &guest.rx, 44);
    assert_rounds_end(&mut guest.machine, &mut guest.rx, RX);
    guest.post(1);
    assert_eq!(guest.receive_data().len(), 5000 - 4096);
}

#[test]
fn events_without_room_do_not_hold_the_loop_nor_lose_the_event() {
    let mut guest = Guest::without_buffers();
    shrink_buffers(&mut guest.machine, &guest.event, 1);
    guest.handle.reset_connections();
    assert_rounds_end(&mut guest.machine, &mut guest.event, EVENT);
    let buffer = guest.machine.buffer(4);
    guest.event.add(&guest.machine, &[(buffer, 4, true)]);
    guest.machine.kick(EVENT);
    assert_eq!(guest.event.take_used(&guest.machine), [4]);
}
