//! Queues served on the event loop: what all its devices do alike.
//!
//! [`LoopQueue`] is a queue with its suppression of kicks and interrupts,
//! [`Served`] the handler of an active device, [`QueueHandler`] the handler of
//! a device that answers each chain at once.

use std::io;
use std::sync::atomic::{Ordering, fence};

use rustix::event::epoll::EventFlags;
use thiserror::Error;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::buffers::{BadChain, Chain};
use super::{ActivateError, Activation, ActiveQueue, GuestMemory, Interrupt};
use crate::event_loop::{EventHandler, EventLoopHandle, HandlerId, Next, Registrar, borrow};

/// Chains a device answers before others of the loop have a turn. The dearest
/// is a balloon request of thousands of scattered pages.
const CHAINS_PER_TURN: usize = 32;

/// Where the rings' elements begin, and their sizes (virtio 1.3, 2.7.6 and 2.7.8).
const AVAIL_RING: u64 = 4;
const AVAIL_ELEMENT: u64 = 2;
const USED_RING: u64 = 4;
const USED_ELEMENT: u64 = 8;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`
const NO_INTERRUPT: u16 = 1;

/// The driver has made a queue that cannot be served: only a reset helps.
#[derive(Debug, Error)]
pub enum QueueBroken {
    #[error("queue is broken")]
    Ring(#[from] virtio_queue::Error),
    #[error("ring is outside guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    #[error(transparent)]
    Chain(#[from] BadChain),
}

/// A queue whose driver is active.
#[derive(Debug)]
pub struct LoopQueue {
    queue: Queue,
    /// The used index up to which the driver was interrupted, or need not be.
    signalled: u16,
}

impl LoopQueue {
    /// All of a device's queues, which must be ready, and their kicks.
    pub fn all_ready(queues: Vec<ActiveQueue>) -> Result<(Vec<Self>, Vec<EventFd>), ActivateError> {
        if let Some(index) = queues.iter().position(|q| !q.queue.ready()) {
            return Err(ActivateError::QueueNotReady(index));
        }
        Ok(queues
            .into_iter()
            .map(|q| (Self::new(q.queue), q.kick))
            .unzip())
    }

    fn new(queue: Queue) -> Self {
        Self {
            signalled: queue.next_used(),
            queue,
        }
    }

    /// Chains that fit into the queue.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The next chain the driver has made available.
    pub fn pop<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
    ) -> Result<Option<Chain<'m>>, QueueBroken> {
        Ok(self.queue.iter(memory)?.next())
    }

    /// Makes the last `chains` popped the next ones again.
    pub fn put_back(&mut self, chains: usize) {
        for _ in 0..chains {
            self.queue.go_to_previous_position();
        }
    }

    /// Gives a chain back with `written` bytes in it.
    pub fn used(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        written: usize,
    ) -> Result<(), QueueBroken> {
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        Ok(self.queue.add_used(memory, head, written)?)
    }

    /// Gives several chains back at once: the driver sees all of them or none.
    pub fn used_together(
        &mut self,
        memory: &GuestMemoryMmap,
        chains: &[(u16, usize)],
    ) -> Result<(), QueueBroken> {
        let Some((&(head, written), others)) = chains.split_last() else {
            return Ok(());
        };
        // Behind the index that the driver goes by, which the last one moves.
        for &(head, written) in others {
            let written = u32::try_from(written).unwrap_or(u32::MAX);
            let next = self.queue.next_used();
            let place = u64::from(next % self.queue.size());
            let address = self.queue.used_ring() + USED_RING + USED_ELEMENT * place;
            let element = u64::from(written) << 32 | u64::from(head);
            memory.write_obj(element.to_le(), GuestAddress(address))?;
            self.queue.set_next_used(next.wrapping_add(1));
        }
        self.used(memory, head, written)
    }

    /// The driver is to be interrupted for what was used since the last call
    /// (virtio 1.3, 2.7.7).
    pub fn wants_interrupt(&mut self, memory: &GuestMemoryMmap) -> Result<bool, QueueBroken> {
        let now = self.queue.next_used();
        let before = std::mem::replace(&mut self.signalled, now);
        if now == before {
            return Ok(false);
        }
        // The used index first, then what the driver wants.
        fence(Ordering::SeqCst);
        let ring = self.queue.avail_ring();
        if !self.queue.event_idx_enabled() {
            let flags: u16 = memory.load(GuestAddress(ring), Ordering::Relaxed)?;
            return Ok(flags & NO_INTERRUPT == 0);
        }
        let event = ring + AVAIL_RING + AVAIL_ELEMENT * u64::from(self.queue.size());
        let event: u16 = memory.load(GuestAddress(event), Ordering::Relaxed)?;
        Ok(now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before))
    }

    /// Asks for a kick; true when chains have come in meanwhile.
    pub fn wait(&mut self, memory: &GuestMemoryMmap) -> Result<bool, QueueBroken> {
        Ok(self.queue.enable_notification(memory)?)
    }

    /// Wants no kicks until [`wait`](Self::wait).
    pub fn busy(&mut self, memory: &GuestMemoryMmap) -> Result<(), QueueBroken> {
        Ok(self.queue.disable_notification(memory)?)
    }
}

/// The handler of a device on the event loop, there while the driver is active.
#[derive(Debug)]
pub struct Served {
    events: EventLoopHandle,
    handler: Option<HandlerId>,
}

impl Served {
    pub fn by(events: EventLoopHandle) -> Self {
        Self {
            events,
            handler: None,
        }
    }

    pub fn start(&mut self, handler: impl EventHandler + 'static) -> Result<(), ActivateError> {
        self.stop();
        let id = self.events.add(Box::new(handler));
        self.handler = Some(id.ok_or(ActivateError::EventLoopGone)?);
        Ok(())
    }

    /// Returns when the handler is dropped.
    pub fn stop(&mut self) {
        if let Some(id) = self.handler.take() {
            self.events.remove(id);
        }
    }
}

/// A device that answers each chain at once.
pub trait ServeChain: Send {
    /// Serves `chain` of queue `queue`; says how many bytes it wrote there.
    fn serve(&mut self, queue: usize, chain: Chain<'_>, memory: &GuestMemoryMmap) -> Answer;
}

/// What becomes of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Give it back with this many bytes written.
    Used(usize),
    /// The device has no use for chains of this queue now.
    Leave,
}

/// Serves a [`ServeChain`]'s queues.
pub struct QueueHandler<D> {
    device: D,
    memory: GuestMemory,
    queues: Vec<LoopQueue>,
    kicks: Vec<EventFd>,
    interrupt: Interrupt,
}

impl<D: ServeChain> QueueHandler<D> {
    /// Serves all queues of the activation, which must be ready.
    pub fn new(device: D, activation: Activation) -> Result<Self, ActivateError> {
        let (queues, kicks) = LoopQueue::all_ready(activation.queues)?;
        Ok(Self {
            device,
            memory: activation.memory,
            queues,
            kicks,
            interrupt: activation.interrupt,
        })
    }

    /// The same for a device whose last queue belongs to a feature that was not
    /// negotiated.
    pub fn without_last(device: D, mut activation: Activation) -> Result<Self, ActivateError> {
        activation.queues.pop();
        Self::new(device, activation)
    }

    fn serve(&mut self, index: usize) -> Result<(), QueueBroken> {
        let Some(queue) = self.queues.get_mut(index) else {
            return Ok(());
        };
        let mut left = CHAINS_PER_TURN;
        loop {
            queue.busy(&self.memory)?;
            while left > 0
                && let Some(chain) = queue.pop(&self.memory)?
            {
                left -= 1;
                let head = chain.head_index();
                match self.device.serve(index, chain, &self.memory) {
                    Answer::Used(written) => queue.used(&self.memory, head, written)?,
                    Answer::Leave => {
                        queue.put_back(1);
                        return Ok(());
                    }
                }
            }
            if queue.wants_interrupt(&self.memory)? {
                self.interrupt.used_buffers();
            }
            if left == 0 {
                // The other devices of the loop first.
                let _ = self.kicks[index].write(1);
                return Ok(());
            }
            if !queue.wait(&self.memory)? {
                return Ok(());
            }
        }
    }
}

impl<D: ServeChain> EventHandler for QueueHandler<D> {
    fn start(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        for (token, kick) in (0..).zip(&self.kicks) {
            registrar.add(borrow(kick), token, EventFlags::IN)?;
            // The driver's buffers may have been there before its queue was.
            let _ = kick.write(1);
        }
        Ok(())
    }

    fn ready(&mut self, token: u32, _events: EventFlags, _registrar: &Registrar<'_>) -> Next {
        let index = token as usize;
        if let Some(kick) = self.kicks.get(index) {
            // An empty count is a kick that was taken together with another.
            let _ = kick.read();
        }
        match self.serve(index) {
            Ok(()) => Next::Continue,
            Err(error) => {
                tracing::debug!(%error, "device needs reset");
                self.interrupt.device_needs_reset();
                Next::Remove
            }
        }
    }

    fn stop(&mut self, registrar: &Registrar<'_>) {
        for kick in &self.kicks {
            // What was not added cannot be removed, and need not be.
            let _ = registrar.remove(borrow(kick));
        }
    }
}

impl<D> std::fmt::Debug for QueueHandler<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueHandler")
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}
