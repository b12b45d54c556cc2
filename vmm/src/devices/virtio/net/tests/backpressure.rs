//! A tap that takes no more for now.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::virtio::ActiveQueue;
use crate::devices::virtio::net::offload::Offloads;
use crate::devices::virtio::net::tap::Tap;
use crate::devices::virtio::net::transmit::{Transmitted, Transmitter};
use crate::devices::virtio::queue_loop::LoopQueue;

const FRAMES: u16 = 200;
const FRAME: u64 = 0x10_0000;

/// One end of a socket behaves as a full tap does, when nobody reads the other.
fn full_tap() -> (Tap, OwnedFd) {
    let kind = SocketType::SEQPACKET;
    let flags = SocketFlags::NONBLOCK;
    let (tap, other) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
    (Tap::of_socket(tap), other)
}

fn take_all(other: &OwnedFd) -> usize {
    let mut frame = [0; 4096];
    let mut taken = 0;
    loop {
        match rustix::io::read(other, &mut frame) {
            Ok(len) => assert_eq!(len, 12 + 2000),
            Err(Errno::AGAIN) => return taken,
            Err(error) => panic!("{error}"),
        }
        taken += 1;
    }
}

#[test]
fn frames_wait_in_the_queue_while_the_tap_is_full_and_none_is_lost() {
    let ranges = [(GuestAddress(0), 4 << 20)];
    let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
    let driver = MockSplitQueue::new(&memory, 256);
    for index in 0..FRAMES {
        let frame = RawDescriptor::from(Descriptor::new(FRAME, 12 + 2000, 0, 0));
        driver.desc_table().store(index, frame).unwrap();
        driver
            .avail()
            .ring()
            .ref_at(index.into())
            .unwrap()
            .store(index.to_le());
    }
    driver.avail().idx().store(FRAMES.to_le());
    memory
        .write_slice(&[0xff; 100], GuestAddress(FRAME + 12))
        .unwrap();
    let queue = ActiveQueue {
        queue: driver.create_queue().unwrap(),
        kick: EventFd::new(0).unwrap(),
    };
    let (mut queues, _) = LoopQueue::all_ready(vec![queue]).unwrap();
    let mut transmitter = Transmitter::new(queues.remove(0), Offloads::default());
    let (tap, other) = full_tap();
    let (mut sent, mut full) = (0, 0);
    loop {
        let progress = transmitter.serve(&memory, Some(&tap)).unwrap();
        let now = take_all(&other);
        sent += now;
        match progress {
            Transmitted::Drained => break,
            Transmitted::More => {}
            Transmitted::Full => {
                assert!(now > 0, "it is full of something");
                full += 1;
            }
        }
        assert_eq!(usize::from(u16::from_le(driver.used().idx().load())), sent);
    }
    assert!(full > 0, "the tap was never full");
    assert_eq!(sent, usize::from(FRAMES));
}
