//! Frames from the driver to the tap, straight out of guest memory.
//!
//! Only the header is copied, so that what was checked is what the host's kernel
//! is told. A frame that cannot be sent is given back like one that was: networks
//! lose frames, and drivers are used to it.

use vm_memory::GuestMemoryMmap;

use super::FRAME_MAX;
use super::offload::{HEADER_LEN, Offloads, clean_sent};
use super::tap::{Sent, Tap};
use crate::devices::virtio::buffers::{Buffers, Chain};
use crate::devices::virtio::queue_loop::{LoopQueue, QueueBroken};

/// Frames before reception and other slots have a turn.
const FRAMES_PER_TURN: usize = 64;

/// What transmission waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transmitted {
    /// A kick.
    Drained,
    /// Room in the tap.
    Full,
    /// Its next turn.
    More,
}

/// The transmit queue.
#[derive(Debug)]
pub(super) struct Transmitter {
    queue: LoopQueue,
    offloads: Offloads,
}

impl Transmitter {
    pub(super) fn new(queue: LoopQueue, offloads: Offloads) -> Self {
        Self { queue, offloads }
    }

    pub(super) fn wants_interrupt(
        &mut self,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, QueueBroken> {
        self.queue.wants_interrupt(memory)
    }

    /// Without a tap frames go nowhere, as on a cable that is not plugged in.
    pub(super) fn serve(
        &mut self,
        memory: &GuestMemoryMmap,
        tap: Option<&Tap>,
    ) -> Result<Transmitted, QueueBroken> {
        let mut left = FRAMES_PER_TURN;
        loop {
            self.queue.busy(memory)?;
            while let Some(chain) = self.queue.pop(memory)? {
                if left == 0 {
                    self.queue.put_back(1);
                    return Ok(Transmitted::More);
                }
                left -= 1;
                let head = chain.head_index();
                if let Some(tap) = tap
                    && self.send(chain, memory, tap) == Sent::Full
                {
                    self.queue.put_back(1);
                    return Ok(Transmitted::Full);
                }
                self.queue.used(memory, head, 0)?;
            }
            if !self.queue.wait(memory)? {
                return Ok(Transmitted::Drained);
            }
        }
    }

    fn send(&self, chain: Chain<'_>, memory: &GuestMemoryMmap, tap: &Tap) -> Sent {
        let Ok(mut frame) = Buffers::readable(chain, memory) else {
            return Sent::Done;
        };
        let mut header = [0; HEADER_LEN];
        if frame.copy_to(&mut header) < HEADER_LEN {
            return Sent::Done;
        }
        frame.skip(HEADER_LEN);
        clean_sent(&mut header);
        if frame.is_empty() || frame.len() > FRAME_MAX || !self.offloads.permit(&header) {
            return Sent::Done;
        }
        tap.send(&header, &frame)
    }
}
