//! Frames of all sizes in both directions.

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MRG_RXBUF};

use super::host_side::frame;
use super::{Guest, HostSide, QUEUE_SIZES, connected};

#[test]
fn frames_cross_unchanged_in_both_directions() {
    let Some((mut guest, host)) = connected() else {
        return;
    };
    guest.send(&frame(1514, 0x11));
    assert_eq!(host.receive().unwrap(), frame(1514, 0x11));
    assert_eq!(guest.transmit.take_used(&guest.machine), [0]);
    let buffer = guest.offer(2048);
    guest.machine.kick(0);
    host.send(&frame(1000, 0x22));
    assert_eq!(guest.received(), [1012]);
    assert_eq!(guest.machine.read(buffer + 12, 1000), frame(1000, 0x22));
    let one_buffer = [1, 0];
    assert_eq!(guest.machine.read(buffer + 10, 2), one_buffer);
    assert!(guest.machine.interrupted());
}

#[test]
fn frames_stay_in_the_tap_until_there_are_buffers() {
    let Some((mut guest, host)) = connected() else {
        return;
    };
    for fill in 0..10 {
        host.send(&frame(100, fill));
    }
    assert!(guest.received().is_empty());
    let buffers: Vec<_> = (0..10).map(|_| guest.offer(2048)).collect();
    guest.machine.kick(0);
    assert_eq!(guest.received(), [112; 10]);
    for (fill, buffer) in (0..).zip(buffers) {
        assert_eq!(guest.machine.read(buffer + 12, 100), frame(100, fill));
    }
}

#[test]
fn long_frame_lies_in_several_buffers() {
    let Some((mut guest, host)) = connected() else {
        return;
    };
    let first = guest.offer(512);
    guest.machine.kick(0);
    host.send(&frame(1200, 7));
    assert!(guest.received().is_empty(), "it is not shown in parts");
    let second = guest.offer(512);
    guest.machine.kick(0);
    assert!(guest.received().is_empty());
    let third = guest.offer(512);
    guest.machine.kick(0);
    assert_eq!(guest.received(), [512, 512, 1212 - 1024]);
    assert_eq!(guest.machine.read(first + 10, 2), [3, 0]);
    let parts = [
        guest.machine.read(first + 12, 500),
        guest.machine.read(second, 512),
        guest.machine.read(third, 188),
    ];
    assert_eq!(parts.concat(), frame(1200, 7));
}

#[test]
fn frame_that_fits_nowhere_is_lost_and_the_next_is_not() {
    let Some((host, tap)) = HostSide::new() else {
        return;
    };
    let mut guest = Guest::with(&[4, 4], 0);
    assert_eq!(guest.connect(tap), None);
    for _ in 0..4 {
        guest.offer(256);
    }
    guest.machine.kick(0);
    host.send(&frame(1200, 1));
    host.send(&frame(200, 2));
    assert_eq!(guest.received(), [212]);
}

#[test]
fn driver_without_mergeable_buffers_gets_what_fits_into_one() {
    let Some((host, tap)) = HostSide::new() else {
        return;
    };
    let mut guest = Guest::with(&QUEUE_SIZES, 1 << VIRTIO_NET_F_MRG_RXBUF);
    assert_eq!(guest.connect(tap), None);
    let buffer = guest.offer(512);
    guest.offer(512);
    guest.machine.kick(0);
    host.send(&frame(1200, 1));
    host.send(&frame(400, 2));
    assert_eq!(guest.received(), [412]);
    assert_eq!(guest.machine.read(buffer + 10, 2), [1, 0]);
    assert_eq!(guest.machine.read(buffer + 12, 400), frame(400, 2));
}

#[test]
fn many_frames_at_once_take_several_turns_and_none_is_lost() {
    let Some((mut guest, host)) = connected() else {
        return;
    };
    for _ in 0..200 {
        guest.offer(256);
    }
    guest.machine.kick(0);
    for fill in 0..200 {
        host.send(&frame(64, fill));
    }
    assert_eq!(guest.received().len(), 200);
}

/// A TCP segment that the sender has left to be cut into pieces of 1000 bytes.
fn uncut_segment() -> ([u8; 10], Vec<u8>) {
    let payload = 3500_u16;
    let mut segment = vec![0xff; 12];
    segment.extend([0x08, 0x00]);
    let total = 40 + payload;
    let [high, low] = total.to_be_bytes();
    segment.extend([0x45, 0, high, low, 0, 1, 0, 0, 64, 6, 0, 0]);
    segment.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    segment.extend([
        0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    segment.resize(14 + usize::from(total), 0x77);
    let [size_low, size_high] = 1000_u16.to_le_bytes();
    ([1, 1, 54, 0, size_low, size_high, 34, 0, 16, 0], segment)
}

#[test]
fn segments_are_cut_by_who_was_agreed_on() {
    // Whichever comes later, the tap or the driver, the tap is told.
    for refused in [0, 1 << VIRTIO_NET_F_GUEST_TSO4] {
        let Some((host, tap)) = HostSide::new() else {
            return;
        };
        let mut guest = Guest::with(&QUEUE_SIZES, refused);
        assert_eq!(guest.connect(tap), None);
        for _ in 0..8 {
            guest.offer(4096);
        }
        guest.machine.kick(0);
        let (header, segment) = uncut_segment();
        host.send_with(header, &segment);
        let whole = 12 + 54 + 3500;
        if refused == 0 {
            assert_eq!(guest.received(), [whole]);
        } else {
            assert_eq!(guest.received(), [1066, 1066, 1066, 566]);
            guest.restart();
            for _ in 0..8 {
                guest.offer(4096);
            }
            guest.machine.kick(0);
            host.send_with(header, &segment);
            assert_eq!(guest.received(), [whole], "the next driver agrees anew");
        }
    }
}

#[test]
fn segment_that_the_guest_leaves_uncut_reaches_the_host_whole() {
    let Some((mut guest, host)) = connected() else {
        return;
    };
    let (header, segment) = uncut_segment();
    let buffer = guest.machine.buffer(8192);
    guest.machine.write(buffer, &header);
    guest.machine.write(buffer + 12, &segment);
    let len = 12 + u32::try_from(segment.len()).unwrap();
    guest.transmit.add(&guest.machine, &[(buffer, len, false)]);
    guest.machine.kick(1);
    assert_eq!(host.receive_any().unwrap(), segment);
}
