//! Drivers that write what no driver writes.

use super::*;

const NEXT: u16 = 1;
const WRITABLE: u16 = 2;

const OUTSIDE: u64 = 1 << 40;

#[test]
fn chain_without_room_for_a_status_is_given_back() {
    with_each_engine(|engines| {
        let (mut guest, _file) = Guest::with_disk(engines);
        let buffer = guest.machine.buffer(1024);
        let chains: [&[(u64, u32, bool)]; 5] = [
            &[(buffer, 16, false)],
            &[(buffer, 0, true)],
            &[(buffer, 16, false), (OUTSIDE, 1, true)],
            &[(buffer, 16, false), (u64::MAX - 4, 512, true)],
            &[(buffer, 16, false), (buffer, 0, true)],
        ];
        for chain in chains {
            guest.queue.add(&guest.machine, chain);
        }
        guest.machine.kick(0);
        assert_eq!(guest.queue.take_used(&guest.machine), [0; 5]);
        assert_eq!(guest.read(0, 512), [0; 512]);
    });
}

#[test]
fn chain_with_a_bad_header_or_bad_data_fails() {
    with_each_engine(|engines| {
        let (mut guest, _file) = Guest::with_disk(engines);
        let buffer = guest.machine.buffer(4096);
        let status = buffer + 2048;
        let chains: [&[(u64, u32, bool)]; 3] = [
            &[(buffer, 15, false), (status, 1, true)],
            &[(OUTSIDE, 16, false), (status, 1, true)],
            &[(status, 1, true)],
        ];
        for chain in chains {
            guest.machine.write(status, &[UNANSWERED]);
            guest.queue.add(&guest.machine, chain);
            let data = buffer;
            assert_eq!(guest.answer(&Asked { status, data }), FAILED);
        }
    });
}

#[test]
fn request_larger_than_any_driver_makes_fails() {
    with_each_engine(|engines| {
        let (mut guest, file) = Guest::with_disk(engines);
        file.set_len(1 << 40).unwrap();
        assert_eq!(guest.disconnect(), None);
        assert_eq!(guest.connect(medium(&file, false)), None);
        let header = guest.machine.buffer(17);
        let status = header + 16;
        guest.machine.write(header, &header_bytes(READ, 0));
        guest.machine.write(status, &[UNANSWERED]);
        let data = guest.machine.buffer(16 << 20);
        let mut parts = vec![(header, 16, false)];
        // The same memory again and again.
        parts.extend((0..100).map(|_| (data, 16 << 20, true)));
        parts.push((status, 1, true));
        guest.queue.add(&guest.machine, &parts);
        assert_eq!(guest.answer(&Asked { status, data }), FAILED);
    });
}

#[test]
fn chain_that_is_a_loop_ends() {
    with_each_engine(|engines| {
        let (mut guest, _file) = Guest::with_disk(engines);
        let buffer = guest.machine.buffer(4096);
        for (index, flags, next) in [(0, NEXT, 1), (1, NEXT | WRITABLE, 1)] {
            guest
                .queue
                .set_descriptor(&guest.machine, index, buffer, 512, flags, next);
        }
        guest.queue.publish(&guest.machine, 0);
        guest.machine.kick(0);
        guest.machine.settle();
        guest.machine.reset();
        assert!(!guest.machine.needs_reset());
    });
}

#[test]
fn broken_ring_asks_for_a_reset() {
    with_each_engine(|engines| {
        let (mut guest, _file) = Guest::with_disk(engines);
        guest.queue.set_avail_index(&guest.machine, 1000);
        guest.machine.kick(0);
        assert!(guest.machine.needs_reset());
        guest.machine.kick(0);
        guest.machine.reset();
        let [queue] = guest.machine.restart(&[QUEUE_SIZE]).try_into().unwrap();
        guest.queue = queue;
        assert_eq!(guest.read(0, 512), [0; 512]);
    });
}

#[test]
fn same_chain_offered_again_and_again_is_done_no_more_than_a_queue_at_a_time() {
    with_each_engine(|engines| {
        let (mut guest, _file) = Guest::with_disk(engines);
        let asked = guest.ask(READ, 0, Data::In(512));
        for _ in 0..5 {
            // Head 0 in every place of the ring, whether or not it came back.
            for _ in 0..QUEUE_SIZE - 1 {
                guest.queue.publish(&guest.machine, 0);
            }
            guest.machine.kick(0);
        }
        assert_eq!(guest.answer(&asked), OK);
        guest.machine.reset();
    });
}

#[test]
fn reset_waits_for_what_is_under_way() {
    with_each_engine(|engines| {
        let (mut guest, file) = Guest::with_disk(engines);
        for round in 0..20 {
            let data = [round; 4096];
            for at in 0..40 {
                guest.ask(WRITE, 8 * at, Data::Out(&data));
            }
            guest.machine.kick(0);
            guest.machine.reset();
            // Nothing arrives any more.
            let before = on_disk(&file, 0, 40 * 4096);
            guest.machine.settle();
            assert_eq!(on_disk(&file, 0, 40 * 4096), before);
            let [queue] = guest.machine.restart(&[QUEUE_SIZE]).try_into().unwrap();
            guest.queue = queue;
        }
        assert_eq!(guest.read(0, 512).len(), 512);
    });
}
