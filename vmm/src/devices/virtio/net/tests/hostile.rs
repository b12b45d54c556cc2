//! Drivers that write what no driver writes.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_TSO4,
};

use super::host_side::frame;
use super::{Guest, HostSide, QUEUE_SIZES, connected};

const NEXT: u16 = 1;

const OUTSIDE: u64 = 1 << 40;

#[test]
fn bad_frames_are_given_back_and_good_ones_sent() {
    let Some((mut guest, host)) = connected() else {
        return;
    };
    let buffer = guest.machine.buffer(1 << 20);
    let chains: [&[(u64, u32, bool)]; 8] = [
        &[(OUTSIDE, 100, false)],
        &[(u64::MAX - 8, 100, false)],
        // No header, a header alone, nothing readable, nothing.
        &[(buffer, 11, false)],
        &[(buffer, 12, false)],
        &[(buffer, 2048, true)],
        &[(buffer, 0, false)],
        // Longer than any frame.
        &[(buffer, 1 << 20, false)],
        &[(buffer, 12, false), (buffer, 5, false)],
    ];
    for chain in chains {
        guest.transmit.add(&guest.machine, chain);
    }
    guest.machine.kick(1);
    assert_eq!(guest.transmit.take_used(&guest.machine), [0; 8]);
    guest.send(&frame(60, 1));
    assert_eq!(host.receive().unwrap(), frame(60, 1));
}

#[test]
fn frame_whose_header_asks_for_what_was_not_agreed_on_is_not_sent() {
    let Some((host, tap)) = HostSide::new() else {
        return;
    };
    let mut guest = Guest::with(&QUEUE_SIZES, 1 << VIRTIO_NET_F_HOST_TSO4);
    assert_eq!(guest.connect(tap), None);
    let buffer = guest.machine.buffer(4096);
    let header = [1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0];
    guest.machine.write(buffer, &header);
    guest.machine.write(buffer + 12, &frame(2000, 1));
    guest.transmit.add(&guest.machine, &[(buffer, 2012, false)]);
    guest.machine.kick(1);
    assert_eq!(guest.transmit.take_used(&guest.machine), [0]);
    assert_eq!(host.receive_any(), None);
}

/// The kernel's tap takes marks of congestion only together with segments.
#[test]
fn driver_of_marks_without_segments_is_no_obstacle_to_a_tap() {
    let Some((host, tap)) = HostSide::new() else {
        return;
    };
    let segments = [
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_USO4,
        VIRTIO_NET_F_GUEST_USO6,
    ];
    let refused = segments.iter().fold(0, |bits, bit| bits | 1 << bit);
    let mut guest = Guest::with(&QUEUE_SIZES, refused);
    assert_eq!(guest.connect(tap), None);
    assert!(guest.link_up());
    assert!(!guest.machine.needs_reset());
    guest.send(&frame(60, 7));
    assert_eq!(host.receive().unwrap(), frame(60, 7));
}

#[test]
fn chain_that_is_a_loop_ends() {
    let Some((mut guest, host)) = connected() else {
        return;
    };
    let buffer = guest.machine.buffer(4096);
    guest
        .transmit
        .set_descriptor(&guest.machine, 0, buffer, 64, NEXT, 1);
    guest
        .transmit
        .set_descriptor(&guest.machine, 1, buffer, 64, NEXT, 0);
    guest.transmit.publish(&guest.machine, 0);
    guest.machine.kick(1);
    assert_eq!(guest.transmit.take_used(&guest.machine).len(), 1);
    guest.restart();
    guest.send(&frame(60, 2));
    while let Some(sent) = host.receive() {
        if sent == frame(60, 2) {
            return;
        }
    }
    panic!("nothing is sent after the loop");
}

#[test]
fn receive_buffers_that_cannot_be_break_the_device_until_a_reset() {
    for bad in [
        (OUTSIDE, 4096, true),
        (0x1000, 0, true),
        (0x1000, 64, false),
    ] {
        let Some((mut guest, host)) = connected() else {
            return;
        };
        guest.receive.add(&guest.machine, &[bad]);
        guest.machine.kick(0);
        host.send(&frame(60, 1));
        guest.machine.settle();
        assert!(guest.machine.needs_reset(), "{bad:?}");
        guest.restart();
        guest.offer(2048);
        guest.machine.kick(0);
        host.send(&frame(60, 2));
        assert!(!guest.received().is_empty());
    }
}

#[test]
fn broken_ring_asks_for_a_reset_and_keeps_the_link() {
    let Some((mut guest, host)) = connected() else {
        return;
    };
    guest.transmit.set_avail_index(&guest.machine, 1000);
    guest.machine.kick(1);
    assert!(guest.machine.needs_reset());
    host.send(&frame(60, 1));
    guest.machine.kick(1);
    guest.machine.kick(0);
    guest.restart();
    assert!(guest.link_up());
    guest.send(&frame(60, 6));
    assert_eq!(host.receive().unwrap(), frame(60, 6));
}

#[test]
fn thread_rests_when_the_driver_gives_no_buffers() {
    use crate::event_loop::Round;
    let Some((mut guest, host)) = connected() else {
        return;
    };
    guest.offer(64);
    guest.machine.kick(0);
    // One frame that waits for more room, others behind it.
    for _ in 0..5 {
        host.send(&frame(1000, 1));
    }
    guest.machine.settle();
    assert_eq!(guest.machine.round(), Round::Idle);
    assert!(guest.received().is_empty());
}
