//! What is served between a driver's `DRIVER_OK` and its reset: the queues, and
//! how several threads share them.
//!
//! Any thread takes the next request of any queue, so that one that waits for
//! the disk holds up no other. The driver is asked to announce new requests
//! while a request is being served only if a thread is free to take them: with
//! all of them busy, the one that is done first looks for itself.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::memory::ServerMemory;
use super::request::{Chain, Requests};
use crate::devices::virtio::{ActiveQueue, Interrupt};
use crate::event_loop::borrow;

/// The epoll token of the event that ends the session; lanes have their number.
const STOP: u64 = u64::MAX;

/// Events taken from epoll at once: the two queues and the stop event.
const EVENTS_PER_ROUND: usize = 3;

#[derive(Debug)]
pub(super) struct Session {
    memory: ServerMemory,
    lanes: Vec<Lane>,
    interrupt: Interrupt,
    stop: EventFd,
    stopped: AtomicBool,
    /// Threads that wait for an event.
    idle: AtomicUsize,
}

/// A queue that several threads take from.
#[derive(Debug)]
struct Lane {
    kick: EventFd,
    /// `None` after the driver has broken it.
    queue: Mutex<Option<Queue>>,
}

/// The driver has written to its rings what no driver writes.
#[derive(Debug)]
struct Broken;

impl Session {
    pub(super) fn new(
        memory: ServerMemory,
        queues: Vec<ActiveQueue>,
        interrupt: Interrupt,
    ) -> io::Result<Self> {
        let lanes = queues
            .into_iter()
            .filter(|active| active.queue.ready())
            .map(Lane::new)
            .collect::<io::Result<_>>()?;
        Ok(Self {
            memory,
            lanes,
            interrupt,
            stop: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            stopped: AtomicBool::new(false),
            idle: AtomicUsize::new(0),
        })
    }

    /// Ends [`serve`](Self::serve) on all threads once they are done with the
    /// requests they are at.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Never read, so that all threads see it, and so it cannot be full.
        let _ = self.stop.write(1);
    }

    /// Serves requests until the session is stopped.
    pub(super) fn serve(&self, requests: &Requests) {
        if let Err(error) = self.serve_events(requests) {
            tracing::error!("virtio-fs thread cannot wait for requests: {error}");
            self.interrupt.device_needs_reset();
        }
    }

    fn serve_events(&self, requests: &Requests) -> io::Result<()> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let stop = EventData::new_u64(STOP);
        epoll::add(&epoll, borrow(&self.stop), stop, EventFlags::IN)?;
        for (number, lane) in self.lanes.iter().enumerate() {
            // Exclusive: one kick wakes one thread.
            let events = EventFlags::IN | EventFlags::EXCLUSIVE;
            let token = EventData::new_u64(number as u64);
            epoll::add(&epoll, borrow(&lane.kick), token, events)?;
        }
        let mut events = Vec::with_capacity(EVENTS_PER_ROUND);
        loop {
            self.idle.fetch_add(1, Ordering::SeqCst);
            let waited = epoll::wait(&epoll, spare_capacity(&mut events), None);
            self.idle.fetch_sub(1, Ordering::SeqCst);
            match waited {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            // Stop comes before kicks that came with it.
            if events.iter().any(|event| event.data.u64() == STOP) {
                return Ok(());
            }
            for event in events.drain(..) {
                let lane = usize::try_from(event.data.u64()).ok();
                if let Some(lane) = lane.and_then(|number| self.lanes.get(number)) {
                    self.drain(lane, requests);
                }
            }
        }
    }

    /// Serves the requests of `lane` until there are none or the session stops.
    fn drain(&self, lane: &Lane, requests: &Requests) {
        // Nothing to read is fine: another thread has taken the event.
        let _ = lane.kick.read();
        let mut locked = lane.queue.lock();
        while let Some(queue) = locked.as_mut() {
            let taken = self.take(lane, queue);
            let chain = match taken {
                Ok(Some(chain)) => chain,
                Ok(None) => return,
                Err(Broken) => {
                    self.give_up(&mut locked);
                    return;
                }
            };
            drop(locked);
            let head = chain.head_index();
            let written = requests.serve(&self.memory, chain);
            locked = lane.queue.lock();
            let returned = locked
                .as_mut()
                .map(|queue| self.give_back(queue, head, written));
            if let Some(Err(Broken)) = returned {
                self.give_up(&mut locked);
            }
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// The next request; `None` if there is none, and then the driver's next
    /// one comes with an event.
    fn take<'a>(&'a self, lane: &Lane, queue: &mut Queue) -> Result<Option<Chain<'a>>, Broken> {
        let memory = self.memory.get();
        let broken = |_| Broken;
        loop {
            let index = queue.avail_idx(memory, Ordering::Acquire).map_err(broken)?;
            if index.0 != queue.next_avail() {
                break;
            }
            if !queue.enable_notification(memory).map_err(broken)? {
                return Ok(None);
            }
        }
        let chain = queue.iter(memory).map_err(broken)?.next().ok_or(Broken)?;
        let somebody_idle = self.idle.load(Ordering::SeqCst) > 0;
        if somebody_idle && queue.enable_notification(memory).map_err(broken)? {
            // There are more already, and their event has been taken.
            let _ = lane.kick.write(1);
        }
        Ok(Some(chain))
    }

    fn give_back(&self, queue: &mut Queue, head: u16, written: u32) -> Result<(), Broken> {
        let memory = self.memory.get();
        queue.add_used(memory, head, written).map_err(|_| Broken)?;
        if queue.needs_notification(memory).map_err(|_| Broken)? {
            self.interrupt.used_buffers();
        }
        Ok(())
    }

    fn give_up(&self, queue: &mut Option<Queue>) {
        *queue = None;
        tracing::warn!("driver of virtio-fs has broken a queue; it is served no more");
        self.interrupt.device_needs_reset();
    }
}

impl Lane {
    fn new(active: ActiveQueue) -> io::Result<Self> {
        let kick = borrow(&active.kick);
        // A thread that comes second to an event must not wait for the next.
        let flags = rustix::fs::fcntl_getfl(kick.as_fd())?;
        rustix::fs::fcntl_setfl(kick.as_fd(), flags | OFlags::NONBLOCK)?;
        Ok(Self {
            kick: active.kick,
            queue: Mutex::new(Some(active.queue)),
        })
    }
}
