//! Frames from the tap into the driver's buffers.
//!
//! Each is read into memory of our own first: the size of a tap's next frame
//! cannot be asked for, and the driver sees a frame whole, with the number of
//! its buffers, or not at all. What finds no buffers stays in the tap, but for
//! the one frame that had begun.

use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, GuestMemoryMmap};

use super::FRAME_MAX;
use super::offload::{HEADER_LEN, NUM_BUFFERS, Offloads, clean_received};
use super::tap::Tap;
use crate::devices::virtio::buffers::{BadChain, Chain, DESCRIPTORS_MAX};
use crate::devices::virtio::queue_loop::{LoopQueue, QueueBroken};

/// Frames before transmission and other slots have a turn.
const FRAMES_PER_TURN: usize = 64;

/// One byte more than is taken tells a frame that was cut.
const FRAME_BUFFER: usize = HEADER_LEN + FRAME_MAX + 1;

/// What reception waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// Frames.
    Drained,
    /// The driver's buffers: it has been asked for a kick.
    Starved,
    /// Its next turn.
    More,
}

/// Why reception cannot go on.
#[derive(Debug)]
pub(super) enum Stopped {
    Queue(QueueBroken),
    Tap(Errno),
}

impl<E: Into<QueueBroken>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Queue(error.into())
    }
}

/// A chain that the driver has given for frames.
#[derive(Debug)]
struct Posted {
    head: u16,
    room: usize,
    /// How many of the parts are its own.
    parts: usize,
}

/// The receive queue.
#[derive(Debug)]
pub(super) struct Receiver {
    queue: LoopQueue,
    /// A frame may lie in several chains.
    mergeable: bool,
    offloads: Offloads,
    frame: Box<[u8]>,
    /// Bytes of a frame that waits for buffers; 0 without one.
    waiting: usize,
    /// Chains taken from the queue and not used yet, and the memory of all.
    posted: Vec<Posted>,
    parts: Vec<(GuestAddress, usize)>,
    used: Vec<(u16, usize)>,
}

impl Receiver {
    pub(super) fn new(queue: LoopQueue, mergeable: bool, offloads: Offloads) -> Self {
        Self {
            queue,
            mergeable,
            offloads,
            frame: vec![0; FRAME_BUFFER].into(),
            waiting: 0,
            posted: Vec::new(),
            parts: Vec::new(),
            used: Vec::new(),
        }
    }

    /// The tap is gone, and with it the frame that was begun.
    pub(super) fn forget_frame(&mut self) {
        self.waiting = 0;
    }

    pub(super) fn wants_interrupt(
        &mut self,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, QueueBroken> {
        self.queue.wants_interrupt(memory)
    }

    pub(super) fn serve(
        &mut self,
        memory: &GuestMemoryMmap,
        tap: &Tap,
    ) -> Result<Received, Stopped> {
        for _ in 0..FRAMES_PER_TURN {
            // Without a single buffer the frame is better off in the tap.
            if self.posted.is_empty() && !self.take_chain(memory)? {
                return Ok(Received::Starved);
            }
            if self.waiting == 0 {
                match tap.receive(&mut self.frame).map_err(Stopped::Tap)? {
                    None => return Ok(Received::Drained),
                    Some(len) => self.accept(len),
                }
            }
            if self.waiting > 0 && !self.deliver(memory)? {
                return Ok(Received::Starved);
            }
        }
        Ok(Received::More)
    }

    /// Looks at a frame that was read; one that this driver cannot be given is
    /// forgotten.
    fn accept(&mut self, len: usize) {
        self.waiting = 0;
        if len == FRAME_BUFFER {
            return;
        }
        if let Some((header, [_, ..])) = self.frame[..len].split_first_chunk_mut()
            && self.offloads.permit(header)
        {
            clean_received(header, self.offloads);
            self.waiting = len;
        }
    }

    /// Gives the driver the waiting frame, if there are buffers for it.
    fn deliver(&mut self, memory: &GuestMemoryMmap) -> Result<bool, QueueBroken> {
        let limit = if self.mergeable { self.queue.size() } else { 1 };
        let (mut chains, mut room) = (0, 0);
        while room < self.waiting {
            if chains == usize::from(limit) {
                // It fits in nothing that this driver can offer.
                self.waiting = 0;
                return Ok(true);
            }
            if chains == self.posted.len() && !self.take_chain(memory)? {
                return Ok(false);
            }
            room += self.posted[chains].room;
            chains += 1;
        }
        let count = u16::try_from(chains).unwrap_or(u16::MAX);
        self.frame[NUM_BUFFERS..HEADER_LEN].copy_from_slice(&count.to_le_bytes());
        self.fill(memory, chains)?;
        self.queue.used_together(memory, &self.used)?;
        self.waiting = 0;
        Ok(true)
    }

    /// Copies the frame into the first `chains`, which then are no longer ours.
    fn fill(&mut self, memory: &GuestMemoryMmap, chains: usize) -> Result<(), QueueBroken> {
        let mut frame = &self.frame[..self.waiting];
        let mut parts = self.parts.iter();
        self.used.clear();
        for chain in &self.posted[..chains] {
            let before = frame.len();
            for &(address, len) in parts.by_ref().take(chain.parts) {
                let (now, later) = frame.split_at(len.min(frame.len()));
                memory.write_slice(now, address)?;
                frame = later;
            }
            self.used.push((chain.head, before - frame.len()));
        }
        let parts = self.parts.len() - parts.len();
        self.parts.drain(..parts);
        self.posted.drain(..chains);
        Ok(())
    }

    /// Takes one more chain; without one, the next comes with a kick.
    fn take_chain(&mut self, memory: &GuestMemoryMmap) -> Result<bool, QueueBroken> {
        loop {
            if let Some(chain) = self.queue.pop(memory)? {
                self.post(chain, memory)?;
                self.queue.busy(memory)?;
                return Ok(true);
            }
            if !self.queue.wait(memory)? {
                return Ok(false);
            }
        }
    }

    fn post(&mut self, chain: Chain<'_>, memory: &GuestMemoryMmap) -> Result<(), BadChain> {
        let head = chain.head_index();
        let (mut parts, mut room) = (0, 0);
        for (at, descriptor) in chain.enumerate() {
            if at == DESCRIPTORS_MAX {
                return Err(BadChain::TooLong);
            }
            // A u32 fits: this VMM is for 64-bit hosts.
            let len = descriptor.len() as usize;
            if !descriptor.is_write_only() || len == 0 {
                continue;
            }
            if !memory.check_range(descriptor.addr(), len) {
                return Err(BadChain::OutsideMemory);
            }
            self.parts.push((descriptor.addr(), len));
            parts += 1;
            room += len;
        }
        if room == 0 {
            return Err(BadChain::NoRoom);
        }
        self.posted.push(Posted { head, room, parts });
        Ok(())
    }
}
