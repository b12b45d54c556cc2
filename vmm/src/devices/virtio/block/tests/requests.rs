//! What a driver asks for is done.

use std::os::unix::fs::{FileExt, MetadataExt};

use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;

use super::*;

#[test]
fn what_is_written_is_on_the_disk_and_is_read_again() {
    with_each_engine(|engines| {
        let (mut guest, file) = Guest::with_disk(engines);
        assert_eq!(guest.request(WRITE, 3, Data::Out(&[7; 1024])), OK);
        assert_eq!(on_disk(&file, 3 * 512, 1024), [7; 1024]);
        assert_eq!(guest.request(FLUSH, 0, Data::None), OK);
        file.write_all_at(&[9; 512], 8 * 512).unwrap();
        assert_eq!(guest.read(8, 512), [9; 512]);
        assert_eq!(guest.queue.take_used(&guest.machine), [1, 1, 513]);
        assert!(guest.machine.interrupted());
    });
}

#[test]
fn request_of_many_segments_is_done_whole() {
    with_each_engine(|engines| {
        let (mut guest, file) = Guest::with_disk(engines);
        let bytes: Vec<u8> = (0..120).flat_map(|sector| [sector; 512]).collect();
        file.write_all_at(&bytes, 512).unwrap();
        let header = guest.machine.buffer(17);
        guest.machine.write(header, &header_bytes(READ, 1));
        guest.machine.write(header + 16, &[UNANSWERED]);
        let data = guest.machine.buffer(bytes.len() as u64);
        let mut parts = vec![(header, 16, false)];
        // In reverse, so that it is no single piece of memory.
        parts.extend((0..120).rev().map(|at| (data + 512 * at, 512, true)));
        parts.push((header + 16, 1, true));
        guest.queue.add(&guest.machine, &parts);
        let status = header + 16;
        assert_eq!(guest.answer(&Asked { status, data }), OK);
        for sector in 0..120 {
            let place = data + 512 * u64::from(119 - sector);
            assert_eq!(guest.machine.read(place, 512), [sector; 512]);
        }
    });
}

#[test]
fn discarded_blocks_are_given_back_to_the_host() {
    with_each_engine(|engines| {
        let (mut guest, file) = Guest::with_disk(engines);
        file.write_all_at(&vec![7; 256 << 10], 0).unwrap();
        file.sync_all().unwrap();
        let before = file.metadata().unwrap().blocks();
        let discard = range(0, 256, 0);
        assert_eq!(guest.request(DISCARD, 0, Data::Out(&discard)), OK);
        let after = file.metadata().unwrap().blocks();
        assert!(after < before, "{after} of {before} blocks are left");
        assert_eq!(file.metadata().unwrap().len(), DISK_LEN);
    });
}

#[test]
fn zeroes_are_written_with_and_without_giving_blocks_back() {
    with_each_engine(|engines| {
        for flags in [0, 1] {
            let (mut guest, file) = Guest::with_disk(engines);
            file.write_all_at(&[7; 8192], 0).unwrap();
            let zeroes = range(1, 9, flags);
            assert_eq!(guest.request(WRITE_ZEROES, 0, Data::Out(&zeroes)), OK);
            assert_eq!(on_disk(&file, 0, 512), [7; 512]);
            assert_eq!(on_disk(&file, 512, 9 * 512), [0; 9 * 512]);
            assert_eq!(on_disk(&file, 10 * 512, 512), [7; 512]);
        }
    });
}

#[test]
fn slot_says_its_name() {
    with_each_engine(|engines| {
        let (mut guest, _file) = Guest::with_disk(engines);
        let asked = guest.ask(GET_ID, 0, Data::In(20));
        assert_eq!(guest.answer(&asked), OK);
        assert_eq!(guest.machine.read(asked.data, 8), b"slot-3\0\0");
    });
}

#[test]
fn driver_without_flush_has_its_writes_made_durable() {
    with_each_engine(|engines| {
        let mut guest = Guest::without(engines, 1 << VIRTIO_BLK_F_FLUSH);
        let file = file();
        assert_eq!(guest.connect(medium(&file, false)), None);
        assert_eq!(guest.request(WRITE, 0, Data::Out(&[5; 512])), OK);
        assert_eq!(on_disk(&file, 0, 512), [5; 512]);
    });
}

#[test]
fn requests_beyond_the_disk_fail_and_change_nothing() {
    with_each_engine(|engines| {
        let (mut guest, file) = Guest::with_disk(engines);
        let end = DISK_LEN / 512;
        for (kind, sector, data) in [
            (READ, end, Data::In(512)),
            (READ, end - 1, Data::In(1024)),
            (READ, u64::MAX, Data::In(512)),
            (WRITE, end, Data::Out(&[1; 512])),
            (WRITE, u64::MAX / 512 + 1, Data::Out(&[1; 512])),
            // No sectors at all, and parts of some.
            (READ, 0, Data::None),
            (READ, 0, Data::In(511)),
            (WRITE, 0, Data::Out(&[1; 513])),
            (DISCARD, 0, Data::Out(&range(end - 1, 2, 0))),
            (DISCARD, 0, Data::Out(&range(u64::MAX, 1, 0))),
            (DISCARD, 0, Data::Out(&range(0, 0, 0))),
            (WRITE_ZEROES, 0, Data::Out(&range(0, u32::MAX, 0))),
            (WRITE_ZEROES, 0, Data::Out(&range(0, 1, 0)[..15])),
            (
                DISCARD,
                0,
                Data::Out(&[range(0, 1, 0), range(1, 1, 0)].concat()),
            ),
            (GET_ID, 0, Data::In(19)),
        ] {
            assert_eq!(guest.request(kind, sector, data), FAILED, "{kind} {sector}");
        }
        assert_eq!(on_disk(&file, 0, 4096), [0; 4096]);
        assert_eq!(file.metadata().unwrap().len(), DISK_LEN);
    });
}

#[test]
fn what_the_device_does_not_know_is_unsupported() {
    with_each_engine(|engines| {
        let (mut guest, _file) = Guest::with_disk(engines);
        assert_eq!(guest.request(2, 0, Data::Out(&[0; 512])), UNSUPPORTED);
        assert_eq!(guest.request(u32::MAX, 0, Data::None), UNSUPPORTED);
        for bad_flags in [range(0, 1, 1), range(0, 1, 2)] {
            let status = guest.request(DISCARD, 0, Data::Out(&bad_flags));
            assert_eq!(status, UNSUPPORTED);
        }
        let status = guest.request(WRITE_ZEROES, 0, Data::Out(&range(0, 1, 4)));
        assert_eq!(status, UNSUPPORTED);
    });
}

#[test]
fn read_only_disk_is_read_and_nothing_else() {
    with_each_engine(|engines| {
        let (mut guest, file) = (Guest::new(engines), file());
        file.write_all_at(&[6; 512], 0).unwrap();
        assert_eq!(guest.connect(medium(&file, true)), None);
        assert_eq!(guest.read(0, 512), [6; 512]);
        assert_eq!(guest.request(WRITE, 0, Data::Out(&[1; 512])), FAILED);
        for kind in [DISCARD, WRITE_ZEROES] {
            let range = range(0, 1, 0);
            assert_eq!(guest.request(kind, 0, Data::Out(&range)), FAILED);
        }
        assert_eq!(guest.request(FLUSH, 0, Data::None), OK);
        assert_eq!(on_disk(&file, 0, 512), [6; 512]);
    });
}

#[test]
fn disk_that_shrinks_under_the_guest_is_an_error_not_a_hang() {
    with_each_engine(|engines| {
        let (mut guest, file) = Guest::with_disk(engines);
        file.set_len(1000).unwrap();
        assert_eq!(guest.request(READ, 4, Data::In(512)), FAILED);
        assert_eq!(guest.request(READ, 1, Data::In(512)), FAILED);
    });
}

#[test]
fn more_requests_than_the_queue_has_places_are_all_answered() {
    with_each_engine(|engines| {
        let (mut guest, _file) = Guest::with_disk(engines);
        for _ in 0..20 {
            let asked: Vec<_> = (0..40)
                .map(|at| guest.ask(READ, at, Data::In(512)))
                .collect();
            for asked in &asked {
                assert_eq!(guest.answer(asked), OK);
            }
            assert_eq!(guest.queue.take_used(&guest.machine), [513; 40]);
        }
    });
}
