//! A slot whose backend comes late: what net and block have alike.
//!
//! ```text
//!   vCPU threads ──activate, reset────────▶ commands ──▶ SlotHandler ──▶ Endpoint
//!   main thread  ──connect, disconnect────▶    │      on the slot's thread, the only
//!                ◀─────────answer──────────────┘      owner of queues and backend
//! ```
//!
//! The driver and the backend come and go in any order, each without the other's
//! knowledge; the endpoint serves while it has both.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::event::epoll::EventFlags;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{ActivateError, Activation};
use crate::event_loop::{EventHandler, EventLoopHandle, Next, Registrar, borrow};

/// The token of a slot's commands; endpoints use those after it.
const COMMANDS: u32 = 0;

/// First token of an endpoint.
pub const FIRST_TOKEN: u32 = COMMANDS + 1;

/// What a slot's thread has to tell the main thread.
#[derive(Debug)]
pub enum SlotEvent {
    /// A change of a backend is made, or why not.
    Answer { id: u64, refusal: Option<String> },
    /// The thread can serve no longer.
    Failed(String),
}

/// Tells the main thread; wakes its event loop.
#[derive(Clone, Debug)]
pub struct SlotEvents {
    sender: Sender<SlotEvent>,
    wake: Arc<EventFd>,
}

impl SlotEvents {
    /// With where the events come out, and what says that there are some.
    pub fn new() -> io::Result<(Self, Receiver<SlotEvent>, Arc<EventFd>)> {
        let (sender, events) = channel();
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let kept = Arc::clone(&wake);
        Ok((Self { sender, wake }, events, kept))
    }

    pub fn send(&self, event: SlotEvent) {
        // Nobody listens when the microVM is ending anyway.
        let _ = self.sender.send(event);
        let _ = self.wake.write(1);
    }

    /// The answer to request `id`, to be given once.
    pub fn reply(&self, id: u64) -> Reply {
        Reply {
            id,
            events: Some(self.clone()),
        }
    }
}

/// An answer that is owed. Dropped without one, it is a refusal.
#[derive(Debug)]
pub struct Reply {
    id: u64,
    events: Option<SlotEvents>,
}

impl Reply {
    pub fn answer<E: Error>(mut self, result: Result<(), E>) {
        self.give(result.err().map(|error| text_of(&error)));
    }

    fn give(&mut self, refusal: Option<String>) {
        if let Some(events) = self.events.take() {
            let id = self.id;
            events.send(SlotEvent::Answer { id, refusal });
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.give(Some("the slot is no longer served".into()));
    }
}

/// An error with its causes.
fn text_of(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Held while guest memory may be touched; whoever resets the device waits for
/// its end.
#[derive(Debug)]
pub struct Release(#[expect(dead_code, reason = "dropped, not used")] Sender<()>);

/// One kind of device on its slot's thread.
pub trait Endpoint: Send + 'static {
    type Backend: Send;
    type Error: Error;

    /// Registers what the endpoint always waits for.
    fn start(&mut self, _registrar: &Registrar<'_>) -> io::Result<()> {
        Ok(())
    }

    /// The driver is ready.
    fn activate(
        &mut self,
        activation: Activation,
        registrar: &Registrar<'_>,
    ) -> Result<(), ActivateError>;

    /// The driver resets the device: whatever touches guest memory ends, and
    /// then `release` is dropped. Comes without an activation as well.
    fn deactivate(&mut self, release: Release, registrar: &Registrar<'_>);

    fn connect(
        &mut self,
        backend: Self::Backend,
        registrar: &Registrar<'_>,
    ) -> Result<(), Self::Error>;

    /// Lets go of the backend and then answers. An empty slot is as asked for.
    fn disconnect(&mut self, reply: Reply, registrar: &Registrar<'_>);

    /// Something registered with `token`, which is [`FIRST_TOKEN`] or more.
    fn ready(&mut self, token: u32, events: EventFlags, registrar: &Registrar<'_>);
}

enum Command<B> {
    Activate(Activation),
    Reset(Release),
    Connect(B, Reply),
    Disconnect(Reply),
}

/// Commands an endpoint from other threads.
#[derive(Debug)]
pub struct Slot<B> {
    commands: Sender<Command<B>>,
    wake: Arc<EventFd>,
}

impl<B: Send + 'static> Slot<B> {
    /// Puts `endpoint` on the thread of `events`, for good.
    pub fn new<E: Endpoint<Backend = B>>(
        events: &EventLoopHandle,
        endpoint: E,
    ) -> io::Result<Self> {
        let (sender, commands) = channel();
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let handler = SlotHandler {
            commands,
            wake: Arc::clone(&wake),
            endpoint,
        };
        events
            .add(Box::new(handler))
            .ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self {
            commands: sender,
            wake,
        })
    }

    pub fn activate(&self, activation: Activation) -> Result<(), ActivateError> {
        let sent = self.send(Command::Activate(activation));
        sent.ok_or(ActivateError::EventLoopGone)
    }

    /// Returns when guest memory is no longer touched. Must not be called on
    /// the slot's thread.
    pub fn reset(&self) {
        let (release, released) = channel();
        if self.send(Command::Reset(Release(release))).is_some() {
            // The end of the channel is what is waited for.
            let _ = released.recv();
        }
    }

    pub fn connect(&self, backend: B, reply: Reply) {
        // A command that is not taken drops its reply, which says so.
        self.send(Command::Connect(backend, reply));
    }

    pub fn disconnect(&self, reply: Reply) {
        self.send(Command::Disconnect(reply));
    }

    fn send(&self, command: Command<B>) -> Option<()> {
        self.commands.send(command).ok()?;
        // Fails only when the counter is full: then the thread wakes anyway.
        let _ = self.wake.write(1);
        Some(())
    }
}

impl<B> Clone for Slot<B> {
    fn clone(&self) -> Self {
        Self {
            commands: self.commands.clone(),
            wake: Arc::clone(&self.wake),
        }
    }
}

struct SlotHandler<E: Endpoint> {
    commands: Receiver<Command<E::Backend>>,
    wake: Arc<EventFd>,
    endpoint: E,
}

impl<E: Endpoint> SlotHandler<E> {
    fn obey(&mut self, registrar: &Registrar<'_>) {
        // Nothing to read is fine: another wake-up has taken it.
        let _ = self.wake.read();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Activate(activation) => {
                    let interrupt = activation.interrupt.clone();
                    if let Err(error) = self.endpoint.activate(activation, registrar) {
                        tracing::warn!("slot cannot be served: {}", text_of(&error));
                        interrupt.device_needs_reset();
                    }
                }
                Command::Reset(release) => self.endpoint.deactivate(release, registrar),
                Command::Connect(backend, reply) => {
                    reply.answer(self.endpoint.connect(backend, registrar));
                }
                Command::Disconnect(reply) => self.endpoint.disconnect(reply, registrar),
            }
        }
    }
}

impl<E: Endpoint> EventHandler for SlotHandler<E> {
    fn start(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        registrar.add(borrow(&self.wake), COMMANDS, EventFlags::IN)?;
        self.endpoint.start(registrar)
    }

    fn ready(&mut self, token: u32, events: EventFlags, registrar: &Registrar<'_>) -> Next {
        if token == COMMANDS {
            self.obey(registrar);
        } else {
            self.endpoint.ready(token, events, registrar);
        }
        Next::Continue
    }

    fn stop(&mut self, registrar: &Registrar<'_>) {
        // What was not added cannot be removed, and need not be.
        let _ = registrar.remove(borrow(&self.wake));
    }
}
