//! A network slot on its thread: the driver's queues, the tap, and what either
//! waits for.
//!
//! The tap is watched for frames only while there are buffers for them, and for
//! room only while a frame waits to be sent, so that neither a full nor an idle
//! side keeps the thread busy.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::epoll::EventFlags;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vmm_sys_util::eventfd::EventFd;

use super::offload::Offloads;
use super::receive::{Received, Receiver, Stopped};
use super::tap::{Tap, TapError};
use super::transmit::{Transmitted, Transmitter};
use crate::devices::virtio::queue_loop::{LoopQueue, QueueBroken};
use crate::devices::virtio::slot::{Endpoint, FIRST_TOKEN, Release, Reply};
use crate::devices::virtio::{ActivateError, Activation, GuestMemory, Interrupt};
use crate::event_loop::{Registrar, borrow};

const RECEIVE_KICK: u32 = FIRST_TOKEN;
const TRANSMIT_KICK: u32 = FIRST_TOKEN + 1;
const TAP: u32 = FIRST_TOKEN + 2;

/// The endpoint of a network slot.
#[derive(Debug)]
pub(super) struct Port {
    /// What the driver reads of the link.
    link_up: Arc<AtomicBool>,
    plug: Option<Plug>,
    driver: Option<Driver>,
}

/// A connected tap.
#[derive(Debug)]
struct Plug {
    tap: Tap,
    /// What it is watched for.
    watched: EventFlags,
}

/// An active driver.
#[derive(Debug)]
struct Driver {
    memory: GuestMemory,
    receiver: Receiver,
    transmitter: Transmitter,
    kicks: [EventFd; 2],
    interrupt: Interrupt,
    /// What frames for the guest may leave to it.
    received: Offloads,
    waits: EventFlags,
}

/// Why a queue is served no longer.
enum Unserved {
    Queue(QueueBroken),
    TapGone,
}

impl From<QueueBroken> for Unserved {
    fn from(error: QueueBroken) -> Self {
        Self::Queue(error)
    }
}

impl Port {
    pub(super) fn new(link_up: Arc<AtomicBool>) -> Self {
        Self {
            link_up,
            plug: None,
            driver: None,
        }
    }

    fn set_link(&self, up: bool) {
        self.link_up.store(up, Ordering::SeqCst);
        if let Some(driver) = &self.driver {
            driver.interrupt.config_changed();
        }
    }

    /// Watches `tap`, which leaves nothing undone yet, and serves it.
    pub(super) fn plug(&mut self, tap: Tap, registrar: &Registrar<'_>) -> Result<(), TapError> {
        if let Some(driver) = &self.driver
            && driver.received != Offloads::default()
            && let Err(error) = tap.set_offloads(driver.received)
        {
            // The driver has chosen them: the tap's owner could do nothing about it.
            tracing::debug!(%error, "network device needs reset");
            driver.interrupt.device_needs_reset();
            self.let_go(registrar);
        }
        let watched = EventFlags::empty();
        registrar
            .add(&tap, TAP, watched)
            .map_err(|source| TapError::Step {
                step: "watching the tap",
                source,
            })?;
        self.plug = Some(Plug { tap, watched });
        self.set_link(true);
        self.serve(true, false, registrar);
        Ok(())
    }

    fn unplug(&mut self, registrar: &Registrar<'_>) {
        if let Some(plug) = self.plug.take() {
            // A device that was deleted may be forgotten by epoll already.
            let _ = registrar.remove(&plug.tap);
            if let Some(driver) = &mut self.driver {
                driver.receiver.forget_frame();
                if driver.waits.contains(EventFlags::OUT) {
                    // Frames that waited for room in the tap: no kick of the
                    // driver's will speak of them again.
                    driver.waits.remove(EventFlags::OUT);
                    let _ = driver.kicks[1].write(1);
                }
            }
            self.set_link(false);
        }
    }

    fn serve(&mut self, receive: bool, transmit: bool, registrar: &Registrar<'_>) {
        if let Some(driver) = &mut self.driver {
            let tap = self.plug.as_ref().map(|plug| &plug.tap);
            let transmitted = if transmit {
                driver.transmit(tap)
            } else {
                Ok(())
            };
            let served = match tap {
                Some(tap) if receive => transmitted.and_then(|()| driver.receive(tap)),
                _ => transmitted,
            };
            match served.and_then(|()| Ok(driver.signal()?)) {
                Ok(()) => {}
                Err(Unserved::TapGone) => self.unplug(registrar),
                Err(Unserved::Queue(error)) => {
                    tracing::debug!(%error, "network device needs reset");
                    driver.interrupt.device_needs_reset();
                    self.let_go(registrar);
                }
            }
        }
        self.watch(registrar);
    }

    /// Watches the tap for what the driver waits for.
    fn watch(&mut self, registrar: &Registrar<'_>) {
        let waits = self.driver.as_ref().map(|driver| driver.waits);
        let waits = waits.unwrap_or(EventFlags::empty());
        if let Some(plug) = &mut self.plug
            && plug.watched != waits
        {
            match registrar.modify(&plug.tap, TAP, waits) {
                Ok(()) => plug.watched = waits,
                Err(error) => {
                    tracing::warn!(%error, "tap cannot be watched");
                    self.unplug(registrar);
                }
            }
        }
    }

    fn let_go(&mut self, registrar: &Registrar<'_>) {
        if let Some(driver) = self.driver.take() {
            for kick in &driver.kicks {
                // What was not added cannot be removed, and need not be.
                let _ = registrar.remove(borrow(kick));
            }
        }
    }
}

impl Endpoint for Port {
    type Backend = OwnedFd;
    type Error = TapError;

    fn activate(
        &mut self,
        activation: Activation,
        registrar: &Registrar<'_>,
    ) -> Result<(), ActivateError> {
        let failed = |what| move |source| ActivateError::Io { what, source };
        let driver = Driver::new(activation)?;
        for (token, kick) in (RECEIVE_KICK..).zip(&driver.kicks) {
            registrar
                .add(borrow(kick), token, EventFlags::IN)
                .map_err(failed("watching a queue"))?;
        }
        let received = driver.received;
        let driver = self.driver.insert(driver);
        if let Some(plug) = &self.plug {
            // It may have come while the driver looked.
            driver.interrupt.config_changed();
            if let Err(error) = plug.tap.set_offloads(received) {
                self.let_go(registrar);
                let error = std::io::Error::other(error);
                return Err(failed("negotiating with the tap")(error));
            }
        }
        // The driver's buffers may have been there before its queues were.
        self.serve(true, true, registrar);
        Ok(())
    }

    fn deactivate(&mut self, release: Release, registrar: &Registrar<'_>) {
        self.let_go(registrar);
        drop(release);
        self.watch(registrar);
    }

    fn connect(&mut self, fd: OwnedFd, registrar: &Registrar<'_>) -> Result<(), TapError> {
        if self.plug.is_some() {
            return Err(TapError::Occupied);
        }
        let tap = Tap::new(fd)?;
        tap.set_offloads(Offloads::default())?;
        self.plug(tap, registrar)
    }

    fn disconnect(&mut self, reply: Reply, registrar: &Registrar<'_>) {
        self.unplug(registrar);
        reply.answer(Ok::<_, TapError>(()));
    }

    fn ready(&mut self, token: u32, events: EventFlags, registrar: &Registrar<'_>) {
        match token {
            RECEIVE_KICK | TRANSMIT_KICK => {
                if let Some(driver) = &self.driver {
                    // An empty count is a kick that was taken together with another.
                    let _ = driver.kicks[(token - RECEIVE_KICK) as usize].read();
                }
                self.serve(token == RECEIVE_KICK, token == TRANSMIT_KICK, registrar);
            }
            _ if events.intersects(EventFlags::ERR | EventFlags::HUP) => {
                tracing::info!("tap is gone");
                self.unplug(registrar);
            }
            _ => {
                let (receive, transmit) = (EventFlags::IN, EventFlags::OUT);
                self.serve(
                    events.contains(receive),
                    events.contains(transmit),
                    registrar,
                );
            }
        }
    }
}

impl Driver {
    fn new(activation: Activation) -> Result<Self, ActivateError> {
        let features = activation.driver_features;
        let mergeable = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        let (queues, kicks) = LoopQueue::all_ready(activation.queues)?;
        let missing = |_| ActivateError::QueueNotReady(0);
        let [receive, transmit] = <[LoopQueue; 2]>::try_from(queues).map_err(missing)?;
        let kicks = <[EventFd; 2]>::try_from(kicks);
        let received = Offloads::received(features);
        Ok(Self {
            memory: activation.memory,
            receiver: Receiver::new(receive, mergeable, received),
            transmitter: Transmitter::new(transmit, Offloads::sent(features)),
            kicks: kicks.map_err(|_| ActivateError::QueueNotReady(0))?,
            interrupt: activation.interrupt,
            received,
            waits: EventFlags::IN,
        })
    }

    fn receive(&mut self, tap: &Tap) -> Result<(), Unserved> {
        let received = self.receiver.serve(&self.memory, tap);
        let received = received.map_err(|stopped| match stopped {
            Stopped::Queue(error) => Unserved::Queue(error),
            Stopped::Tap(error) => {
                tracing::info!(%error, "tap cannot be read");
                Unserved::TapGone
            }
        })?;
        // A turn that is over is followed by the next: frames are still there.
        let frames = received != Received::Starved;
        self.waits.set(EventFlags::IN, frames);
        Ok(())
    }

    fn transmit(&mut self, tap: Option<&Tap>) -> Result<(), Unserved> {
        let transmitted = self.transmitter.serve(&self.memory, tap)?;
        let full = transmitted == Transmitted::Full;
        self.waits.set(EventFlags::OUT, full);
        if transmitted == Transmitted::More {
            let _ = self.kicks[1].write(1);
        }
        Ok(())
    }

    fn signal(&mut self) -> Result<(), QueueBroken> {
        let received = self.receiver.wants_interrupt(&self.memory)?;
        if self.transmitter.wants_interrupt(&self.memory)? || received {
            self.interrupt.used_buffers();
        }
        Ok(())
    }
}
