//! A tap that takes no more for now.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::Timespec;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use virtio_bindings::virtio_net::VIRTIO_NET_F_GUEST_CSUM;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::virtio::net::TapError;
use crate::devices::virtio::net::datapath::Port;
use crate::devices::virtio::net::offload::Offloads;
use crate::devices::virtio::net::tap::Tap;
use crate::devices::virtio::net::transmit::{Transmitted, Transmitter};
use crate::devices::virtio::queue_loop::LoopQueue;
use crate::devices::virtio::slot::{Endpoint, Release, Reply, Slot, SlotEvent, SlotEvents};
use crate::devices::virtio::{ActivateError, Activation, ActiveQueue, GuestMemory, Interrupt};
use crate::event_loop::{EventLoop, Registrar, Round};

const FRAMES: u16 = 200;
const FRAME: u64 = 0x10_0000;

/// One end of a socket behaves as a full tap does, when nobody reads the other.
fn sockets() -> (OwnedFd, OwnedFd) {
    let kind = SocketType::SEQPACKET;
    let flags = SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, kind, flags, None).unwrap()
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

fn memory() -> GuestMemory {
    let ranges = [(GuestAddress(0), 4 << 20)];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

/// A transmit queue with [`FRAMES`] in its ring, none of which is shown yet.
fn frames(memory: &GuestMemoryMmap) -> MockSplitQueue<'_, GuestMemoryMmap> {
    let driver = MockSplitQueue::new(memory, 256);
    for index in 0..FRAMES {
        let frame = RawDescriptor::from(Descriptor::new(FRAME, 12 + 2000, 0, 0));
        driver.desc_table().store(index, frame).unwrap();
        let place = driver.avail().ring().ref_at(index.into()).unwrap();
        place.store(index.to_le());
    }
    memory
        .write_slice(&[0xff; 100], GuestAddress(FRAME + 12))
        .unwrap();
    driver
}

fn active(driver: &MockSplitQueue<'_, GuestMemoryMmap>) -> ActiveQueue {
    ActiveQueue {
        queue: driver.create_queue().unwrap(),
        kick: EventFd::new(EFD_NONBLOCK).unwrap(),
    }
}

/// A slot whose taps are sockets.
struct OfSocket(Port);

impl Endpoint for OfSocket {
    type Backend = OwnedFd;
    type Error = TapError;

    fn activate(
        &mut self,
        activation: Activation,
        registrar: &Registrar<'_>,
    ) -> Result<(), ActivateError> {
        self.0.activate(activation, registrar)
    }

    fn deactivate(&mut self, release: Release, registrar: &Registrar<'_>) {
        self.0.deactivate(release, registrar);
    }

    fn connect(&mut self, fd: OwnedFd, registrar: &Registrar<'_>) -> Result<(), TapError> {
        self.0.plug(Tap::of_socket(fd), registrar)
    }

    fn disconnect(&mut self, reply: Reply, registrar: &Registrar<'_>) {
        self.0.disconnect(reply, registrar);
    }

    fn ready(&mut self, token: u32, events: EventFlags, registrar: &Registrar<'_>) {
        self.0.ready(token, events, registrar);
    }
}

fn settle(events: &mut EventLoop) {
    let at_once = Timespec::default();
    while events.round(Some(&at_once)).unwrap() != Round::Idle {}
}

#[test]
fn frames_that_wait_for_a_tap_are_given_back_when_it_leaves() {
    let memory = memory();
    let driver = frames(&memory);
    let receive = MockSplitQueue::create(&*memory, GuestAddress(FRAME + 0x1_0000), 256);
    let (mut events, handle) = EventLoop::new().unwrap();
    let slot = Slot::new(&handle, OfSocket(Port::new(Arc::default()))).unwrap();
    let queues = vec![active(&receive), active(&driver)];
    let kick = queues[1].kick.try_clone().unwrap();
    slot.activate(Activation {
        memory: GuestMemory::clone(&memory),
        queues,
        interrupt: Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        driver_features: 0,
    })
    .unwrap();
    let (replies, _answers, _wake) = SlotEvents::new().unwrap();
    let (tap, _other) = sockets();
    slot.connect(tap, replies.reply(1));
    settle(&mut events);
    driver.avail().idx().store(FRAMES.to_le());
    kick.write(1).unwrap();
    settle(&mut events);
    let given_back = || u16::from_le(driver.used().idx().load());
    assert!(given_back() < FRAMES, "the tap was never full");
    slot.disconnect(replies.reply(2));
    settle(&mut events);
    assert_eq!(given_back(), FRAMES);
    let flags: u16 = memory.read_obj(driver.used_addr()).unwrap();
    assert_eq!(flags, 0, "kicks are wanted again");
}

/// As sockets do, which know of none.
#[test]
fn driver_whose_offloads_a_tap_does_not_take_is_broken_and_the_tap_stays() {
    for tap_comes_first in [false, true] {
        let memory = memory();
        let driver = frames(&memory);
        driver.avail().idx().store(FRAMES.to_le());
        let receive = MockSplitQueue::create(&*memory, GuestAddress(FRAME + 0x1_0000), 256);
        let (mut events, handle) = EventLoop::new().unwrap();
        let link = Arc::new(AtomicBool::new(false));
        let slot = Slot::new(&handle, OfSocket(Port::new(Arc::clone(&link)))).unwrap();
        let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let activation = Activation {
            memory: GuestMemory::clone(&memory),
            queues: vec![active(&receive), active(&driver)],
            interrupt: interrupt.clone(),
            driver_features: 1 << VIRTIO_NET_F_GUEST_CSUM,
        };
        let (replies, answers, _wake) = SlotEvents::new().unwrap();
        let (tap, other) = sockets();
        if tap_comes_first {
            slot.connect(tap, replies.reply(1));
            slot.activate(activation).unwrap();
        } else {
            // Without a link its frames are given back.
            slot.activate(activation).unwrap();
            settle(&mut events);
            slot.connect(tap, replies.reply(1));
        }
        settle(&mut events);
        let answer = answers.try_recv().unwrap();
        assert!(
            matches!(answer, SlotEvent::Answer { refusal: None, .. }),
            "{answer:?}"
        );
        assert!(interrupt.needs_reset());
        assert!(link.load(Ordering::SeqCst));
        assert_eq!(take_all(&other), 0, "it is not served");
    }
}

#[test]
fn frames_wait_in_the_queue_while_the_tap_is_full_and_none_is_lost() {
    let memory = memory();
    let driver = frames(&memory);
    driver.avail().idx().store(FRAMES.to_le());
    let (mut queues, _) = LoopQueue::all_ready(vec![active(&driver)]).unwrap();
    let mut transmitter = Transmitter::new(queues.remove(0), Offloads::default());
    let (tap, other) = sockets();
    let tap = Tap::of_socket(tap);
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
