//! The thread on which quick devices are served: one epoll instance, handlers
//! that own their descriptors and their queues.
//!
//! Handlers come and go through an [`EventLoopHandle`] (a driver's reset takes
//! its device's handler away), so no handler is shared and none is locked.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Events taken from epoll at once; more wait for the next round.
const EVENTS_PER_ROUND: usize = 64;

/// Handler number of the loop itself.
const LOOP: u32 = 0;

/// Something that waits for descriptors on the loop's thread.
pub trait EventHandler: Send {
    /// Registers the first descriptors. Called once.
    fn start(&mut self, registrar: &Registrar<'_>) -> io::Result<()>;

    /// A descriptor registered with `token` is ready. Must not block.
    fn ready(&mut self, token: u32, events: EventFlags, registrar: &Registrar<'_>) -> Next;

    /// The handler is about to be dropped: remove descriptors of which a
    /// duplicate stays open elsewhere (kicks, listeners). epoll forgets a
    /// descriptor only when the last duplicate is closed.
    fn stop(&mut self, _registrar: &Registrar<'_>) {}
}

/// What the loop does after a handler has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Continue,
    /// Drop this handler.
    Remove,
    /// End the loop; [`EventLoop::run`] returns.
    Exit,
}

/// What came of one wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// Nothing was ready in time.
    Idle,
    Served,
    /// A handler has said [`Next::Exit`].
    Exit,
}

/// Names a handler for its removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandlerId(u32);

/// Lets a handler choose what it waits for.
#[derive(Debug)]
pub struct Registrar<'a> {
    epoll: &'a OwnedFd,
    handler: u32,
}

impl Registrar<'_> {
    pub fn add(&self, fd: impl AsFd, token: u32, events: EventFlags) -> io::Result<()> {
        Ok(epoll::add(self.epoll, fd, self.data(token), events)?)
    }

    pub fn modify(&self, fd: impl AsFd, token: u32, events: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(self.epoll, fd, self.data(token), events)?)
    }

    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(self.epoll, fd)?)
    }

    fn data(&self, token: u32) -> EventData {
        EventData::new_u64(u64::from(self.handler) << 32 | u64::from(token))
    }
}

enum Command {
    Add(HandlerId, Box<dyn EventHandler>),
    /// Answered when the handler has been dropped.
    Remove(HandlerId, Sender<()>),
}

/// Adds and removes handlers from any thread.
#[derive(Clone)]
pub struct EventLoopHandle {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    next_id: Arc<AtomicU32>,
}

impl EventLoopHandle {
    /// `None` when the loop has ended.
    pub fn add(&self, handler: Box<dyn EventHandler>) -> Option<HandlerId> {
        let id = HandlerId(self.next_id.fetch_add(1, Ordering::Relaxed));
        self.commands.send(Command::Add(id, handler)).ok()?;
        self.wake();
        Some(id)
    }

    /// Returns when the handler is dropped. Must not be called on the loop's thread.
    pub fn remove(&self, id: HandlerId) {
        let (done, dropped) = channel();
        if self.commands.send(Command::Remove(id, done)).is_ok() {
            self.wake();
            // The sender is dropped unanswered only when the loop, and the
            // handler with it, is gone.
            let _ = dropped.recv();
        }
    }

    fn wake(&self) {
        // Fails only when the counter is full: then the loop wakes anyway.
        let _ = self.wake.write(1);
    }
}

impl std::fmt::Debug for EventLoopHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLoopHandle").finish_non_exhaustive()
    }
}

/// The loop; [`run`](Self::run) gives it a thread.
pub struct EventLoop {
    epoll: OwnedFd,
    handlers: HashMap<u32, Box<dyn EventHandler>>,
    commands: Receiver<Command>,
    wake: Arc<EventFd>,
}

impl EventLoop {
    pub fn new() -> io::Result<(Self, EventLoopHandle)> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let (sender, commands) = channel();
        Registrar {
            epoll: &epoll,
            handler: LOOP,
        }
        .add(borrow(&wake), 0, EventFlags::IN)?;
        let handle = EventLoopHandle {
            commands: sender,
            wake: Arc::clone(&wake),
            next_id: Arc::new(AtomicU32::new(LOOP + 1)),
        };
        Ok((
            Self {
                epoll,
                handlers: HashMap::new(),
                commands,
                wake,
            },
            handle,
        ))
    }

    /// Serves until a handler says [`Next::Exit`].
    pub fn run(&mut self) -> io::Result<()> {
        while self.round(None)? != Round::Exit {}
        Ok(())
    }

    /// Waits once, without limit or for `timeout`, and serves what is ready.
    pub fn round(&mut self, timeout: Option<&Timespec>) -> io::Result<Round> {
        let mut events = Vec::with_capacity(EVENTS_PER_ROUND);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Round::Served),
            Err(error) => return Err(error.into()),
        }
        if events.is_empty() {
            return Ok(Round::Idle);
        }
        for event in events {
            let data = event.data.u64();
            let (handler, token) = ((data >> 32) as u32, (data & 0xffff_ffff) as u32);
            if handler == LOOP {
                self.obey()?;
            } else if self.dispatch(handler, token, event.flags) == Next::Exit {
                return Ok(Round::Exit);
            }
        }
        Ok(Round::Served)
    }

    fn dispatch(&mut self, id: u32, token: u32, events: EventFlags) -> Next {
        // An event of a handler removed earlier in the same round finds nobody.
        let Some(handler) = self.handlers.get_mut(&id) else {
            return Next::Continue;
        };
        let next = handler.ready(
            token,
            events,
            &Registrar {
                epoll: &self.epoll,
                handler: id,
            },
        );
        if next == Next::Remove {
            self.drop_handler(id);
        }
        next
    }

    fn drop_handler(&mut self, id: u32) {
        if let Some(mut handler) = self.handlers.remove(&id) {
            handler.stop(&Registrar {
                epoll: &self.epoll,
                handler: id,
            });
        }
    }

    fn obey(&mut self) -> io::Result<()> {
        // Nothing to read is fine: another wake-up has taken it.
        let _ = self.wake.read();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Add(HandlerId(id), mut handler) => {
                    handler.start(&Registrar {
                        epoll: &self.epoll,
                        handler: id,
                    })?;
                    self.handlers.insert(id, handler);
                }
                Command::Remove(HandlerId(id), done) => {
                    self.drop_handler(id);
                    // The asker may have stopped waiting.
                    let _ = done.send(());
                }
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLoop")
            .field("handlers", &self.handlers.len())
            .finish_non_exhaustive()
    }
}

/// An [`EventFd`] in rustix's terms.
pub fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    use std::os::fd::AsRawFd;
    borrow_raw(event.as_raw_fd(), event)
}

#[expect(unsafe_code, reason = "vmm-sys-util's EventFd does not implement AsFd")]
fn borrow_raw<T>(fd: std::os::fd::RawFd, _owner: &T) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as its owner, whose borrow the
    // result carries.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };

    /// Waits for a duplicate of a descriptor that its maker keeps.
    struct Waiter {
        kick: EventFd,
        next: Next,
    }

    impl EventHandler for Waiter {
        fn start(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
            registrar.add(borrow(&self.kick), 7, EventFlags::IN)
        }

        fn ready(&mut self, token: u32, _: EventFlags, _: &Registrar<'_>) -> Next {
            assert_eq!(token, 7);
            self.next
        }

        fn stop(&mut self, registrar: &Registrar<'_>) {
            registrar.remove(borrow(&self.kick)).unwrap();
        }
    }

    fn waiting(next: Next) -> (EventLoop, EventLoopHandle, HandlerId, EventFd) {
        let (mut events, handle) = EventLoop::new().unwrap();
        let kept = EventFd::new(EFD_NONBLOCK).unwrap();
        let kick = kept.try_clone().unwrap();
        let id = handle.add(Box::new(Waiter { kick, next })).unwrap();
        assert_eq!(events.round(Some(&AT_ONCE)).unwrap(), Round::Served);
        kept.write(1).unwrap();
        (events, handle, id, kept)
    }

    #[test]
    fn handler_that_removes_itself_is_woken_no_more() {
        let (mut events, _handle, _, _kept) = waiting(Next::Remove);
        assert_eq!(events.round(Some(&AT_ONCE)).unwrap(), Round::Served);
        assert_eq!(events.round(Some(&AT_ONCE)).unwrap(), Round::Idle);
    }

    #[test]
    fn removed_handler_is_gone_when_the_removal_returns() {
        let (mut events, handle, id, _kept) = waiting(Next::Continue);
        std::thread::scope(|scope| {
            let removal = scope.spawn(|| handle.remove(id));
            while !removal.is_finished() {
                events.round(Some(&AT_ONCE)).unwrap();
            }
        });
        assert!(events.handlers.is_empty());
        while events.round(Some(&AT_ONCE)).unwrap() != Round::Idle {}
    }

    #[test]
    fn removal_from_a_loop_that_is_gone_returns() {
        let (events, handle, id, _kept) = waiting(Next::Continue);
        drop(events);
        handle.remove(id);
        assert!(
            handle
                .add(Box::new(Waiter {
                    kick: EventFd::new(0).unwrap(),
                    next: Next::Exit
                }))
                .is_none()
        );
    }

    #[test]
    fn handler_ends_the_loop() {
        let (mut events, _handle, _, _kept) = waiting(Next::Exit);
        events.run().unwrap();
    }
}
