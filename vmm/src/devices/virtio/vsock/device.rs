//! The vsock device as its transport sees it, and its handler on the event loop.
//!
//! The listener outlives the driver: while no driver is active, connecting host
//! processes wait in its backlog, which is as long as its creator made it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use rustix::io::ioctl_fionbio;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::HostPorts;
use super::datapath::{Datapath, Progress};
use super::muxer::{FIRST_SOCKET_TOKEN, Muxer};
use crate::config::VsockConfig;
use crate::devices::virtio::queue_loop::{QueueBroken, Served};
use crate::devices::virtio::{
    ActivateError, Activation, DeviceType, Interrupt, RING_FEATURES, VirtioDevice,
    read_config_bytes,
};
use crate::event_loop::{EventHandler, EventLoopHandle, Next, Registrar, borrow};

/// Receive, transmit, event. Linux fills the receive queue with buffers of a
/// page or two each when it boots: a longer one would cost time and memory.
const QUEUE_SIZES: [u16; 3] = [128, 128, 8];

const RX_KICK: u32 = 0;
const TX_KICK: u32 = 1;
const EVENT_KICK: u32 = 2;
const LISTENER: u32 = 3;
const TRANSPORT_RESET: u32 = 4;

/// Asks a running vsock device for things.
#[derive(Clone, Debug)]
pub struct VsockHandle {
    transport_reset: Arc<EventFd>,
}

impl VsockHandle {
    /// Closes all connections and tells the driver that they are gone (virtio
    /// 1.3, 5.10.6.7), as a microVM must learn that was resumed elsewhere.
    pub fn reset_connections(&self) {
        // Refused only when the counter is full: then one is asked for.
        let _ = self.transport_reset.write(1);
    }
}

/// The vsock device.
pub struct VsockDevice {
    config: VsockConfig,
    listener: Arc<OwnedFd>,
    host_ports: Arc<dyn HostPorts>,
    handle: VsockHandle,
    served: Served,
}

impl VsockDevice {
    /// `listener` is made non-blocking.
    pub fn new(
        config: VsockConfig,
        listener: OwnedFd,
        host_ports: Arc<dyn HostPorts>,
        events: EventLoopHandle,
    ) -> io::Result<Self> {
        ioctl_fionbio(&listener, true)?;
        Ok(Self {
            config,
            listener: Arc::new(listener),
            host_ports,
            handle: VsockHandle {
                transport_reset: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
            },
            served: Served::by(events),
        })
    }

    pub fn handle(&self) -> VsockHandle {
        self.handle.clone()
    }
}

impl VirtioDevice for VsockDevice {
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    /// No `VIRTIO_VSOCK_F_STREAM`: without it streams are all there is.
    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let cid = u64::from(self.config.guest_cid).to_le_bytes();
        read_config_bytes(&cid, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let muxer = Muxer::new(
            self.config.guest_cid,
            self.config.host_ports.clone(),
            Arc::clone(&self.host_ports),
        );
        let interrupt = activation.interrupt.clone();
        let (datapath, kicks) = Datapath::new(activation, muxer)?;
        self.served.start(Handler {
            datapath,
            kicks,
            interrupt,
            listener: Arc::clone(&self.listener),
            transport_reset: Arc::clone(&self.handle.transport_reset),
        })
    }

    fn reset(&mut self) {
        self.served.stop();
    }
}

impl std::fmt::Debug for VsockDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VsockDevice")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

struct Handler {
    datapath: Datapath,
    /// Of the receive, transmit and event queue.
    kicks: [EventFd; 3],
    interrupt: Interrupt,
    listener: Arc<OwnedFd>,
    transport_reset: Arc<EventFd>,
}

impl Handler {
    fn take(&mut self, token: u32, events: EventFlags, registrar: &Registrar<'_>) {
        match token {
            // An empty count is a kick that was taken together with another.
            RX_KICK | TX_KICK | EVENT_KICK => {
                let _ = self.kicks[token as usize].read();
            }
            LISTENER => self.datapath.muxer.accept(&self.listener, registrar),
            TRANSPORT_RESET => {
                let _ = self.transport_reset.read();
                self.datapath.reset_transport();
            }
            FIRST_SOCKET_TOKEN.. => self.datapath.muxer.event(token, events, registrar),
            _ => {}
        }
    }

    fn serve(&mut self, registrar: &Registrar<'_>) -> Result<(), QueueBroken> {
        if self.datapath.serve(registrar)? == Progress::More {
            // The other devices of the loop first.
            let _ = self.kicks[TX_KICK as usize].write(1);
        }
        Ok(())
    }
}

impl EventHandler for Handler {
    fn start(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        for (token, kick) in (RX_KICK..).zip(&self.kicks) {
            registrar.add(borrow(kick), token, EventFlags::IN)?;
        }
        registrar.add(&*self.listener, LISTENER, EventFlags::IN)?;
        registrar.add(
            borrow(&self.transport_reset),
            TRANSPORT_RESET,
            EventFlags::IN,
        )?;
        // The driver's buffers may have been there before its queues were.
        let _ = self.kicks[TX_KICK as usize].write(1);
        Ok(())
    }

    fn ready(&mut self, token: u32, events: EventFlags, registrar: &Registrar<'_>) -> Next {
        self.take(token, events, registrar);
        match self.serve(registrar) {
            Ok(()) => Next::Continue,
            Err(error) => {
                tracing::debug!(%error, "vsock device needs reset");
                self.interrupt.device_needs_reset();
                Next::Remove
            }
        }
    }

    fn stop(&mut self, registrar: &Registrar<'_>) {
        // What was not added cannot be removed, and need not be.
        for kick in &self.kicks {
            let _ = registrar.remove(borrow(kick));
        }
        let _ = registrar.remove(&*self.listener);
        let _ = registrar.remove(borrow(&self.transport_reset));
    }
}
