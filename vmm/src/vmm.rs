//! A running microVM: the main thread serves devices and the control socket
//! until the guest, the sandbox process or a failure ends it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use kvm_ioctls::VmFd;
use rustix::event::epoll::EventFlags;
use vmm_sys_util::eventfd::EventFd;

use crate::backends::Backends;
use crate::control::{ControlError, ControlSocket, ExitReason, VmmEvent, VmmRequest};
use crate::devices::virtio::balloon::BalloonHandle;
use crate::devices::virtio::slot::SlotEvent;
use crate::event_loop::{EventHandler, EventLoop, EventLoopHandle, Next, Registrar, borrow};
use crate::vcpu::{VcpuEvent, Vcpus};

/// Everything a microVM is, ready to run.
#[derive(Debug)]
pub struct Vmm {
    pub(crate) event_loop: EventLoop,
    pub(crate) loop_handle: EventLoopHandle,
    pub(crate) director: Director,
    pub(crate) ended: Receiver<ExitReason>,
    pub(crate) vcpus: Arc<Vcpus>,
    /// Kept open for the interrupts and kicks that were registered with it.
    #[expect(dead_code, reason = "held, not used")]
    pub(crate) vm: VmFd,
}

impl Vmm {
    /// Lets the guest run, serves it until the end, and says why that came. All
    /// threads must be confined by now. The vCPU threads still exist
    /// then; they end with the process.
    pub fn run(mut self) -> (ExitReason, Vec<(String, u64)>) {
        self.loop_handle.add(Box::new(self.director));
        self.vcpus.begin();
        let reason = match self.event_loop.run() {
            // The director has spoken before it ended the loop.
            Ok(()) => self.ended.try_recv().unwrap_or(ExitReason::Stopped),
            Err(error) => ExitReason::Vmm(format!("event loop failed: {error}")),
        };
        self.vcpus.flush_console();
        (reason, self.vcpus.exits())
    }
}

/// Turns requests of the sandbox process and events of the vCPUs into action.
#[derive(Debug)]
pub(crate) struct Director {
    control: Arc<ControlSocket>,
    vcpus: Arc<Vcpus>,
    balloon: BalloonHandle,
    backends: Backends,
    vcpu_events: Receiver<VcpuEvent>,
    vcpu_wake: EventFd,
    many_files: EventFd,
    ended: Sender<ExitReason>,
}

const CONTROL: u32 = 0;
const VCPUS: u32 = 1;
const SLOTS: u32 = 2;
const FILES: u32 = 3;

impl Director {
    pub(crate) fn new(
        control: Arc<ControlSocket>,
        vcpus: Arc<Vcpus>,
        balloon: BalloonHandle,
        backends: Backends,
        vcpu_events: Receiver<VcpuEvent>,
        vcpu_wake: EventFd,
        many_files: EventFd,
    ) -> (Self, Receiver<ExitReason>) {
        let (ended, reason) = channel();
        (
            Self {
                control,
                vcpus,
                balloon,
                backends,
                vcpu_events,
                vcpu_wake,
                many_files,
                ended,
            },
            reason,
        )
    }

    fn obey(&mut self) -> Next {
        match self.control.recv::<VmmRequest>() {
            Ok(Some((VmmRequest::Stop, _)) | None) => self.end(ExitReason::Stopped),
            Ok(Some((VmmRequest::Pause, _))) => {
                self.vcpus.pause();
                Next::Continue
            }
            Ok(Some((VmmRequest::Resume, _))) => {
                self.vcpus.resume();
                self.tell(&VmmEvent::Resumed)
            }
            Ok(Some((VmmRequest::SetBalloon { mib }, _))) => {
                self.balloon.set_target_mib(mib);
                Next::Continue
            }
            Ok(Some((VmmRequest::Backend { id, change }, fds))) => {
                self.backends.change(id, change, fds);
                Next::Continue
            }
            Err(ControlError::Socket(rustix::io::Errno::AGAIN)) => Next::Continue,
            Err(error) => self.end(ExitReason::Vmm(format!("bad control message: {error}"))),
        }
    }

    fn hear_vcpus(&mut self) -> Next {
        // Nothing to read is fine: the channel is what counts.
        let _ = self.vcpu_wake.read();
        // One wake-up may stand for several events.
        while let Ok(event) = self.vcpu_events.try_recv() {
            let next = match event {
                VcpuEvent::Ended(reason) => self.end(reason),
                VcpuEvent::AllPaused => self.tell(&VmmEvent::Paused),
            };
            if next != Next::Continue {
                return next;
            }
        }
        Next::Continue
    }

    fn hear_slots(&mut self) -> Next {
        while let Some(event) = self.backends.next_event() {
            let next = match event {
                SlotEvent::Answer { id, refusal } => self.tell(&VmmEvent::Backend { id, refusal }),
                SlotEvent::Failed(error) => {
                    self.end(ExitReason::Vmm(format!("a slot's thread failed: {error}")))
                }
            };
            if next != Next::Continue {
                return next;
            }
        }
        Next::Continue
    }

    fn hear_files(&mut self) -> Next {
        match self.many_files.read() {
            Ok(_) => self.tell(&VmmEvent::ManyFiles),
            Err(_) => Next::Continue,
        }
    }

    fn tell(&mut self, event: &VmmEvent) -> Next {
        match self.control.send(event, &[]) {
            Ok(()) => Next::Continue,
            Err(error) => self.end(ExitReason::Vmm(format!("sandbox does not listen: {error}"))),
        }
    }

    fn end(&mut self, reason: ExitReason) -> Next {
        // The receiver is `Vmm::run`, which outlives the loop.
        let _ = self.ended.send(reason);
        Next::Exit
    }
}

impl EventHandler for Director {
    fn start(&mut self, registrar: &Registrar<'_>) -> std::io::Result<()> {
        registrar.add(&*self.control, CONTROL, EventFlags::IN)?;
        registrar.add(borrow(&self.many_files), FILES, EventFlags::IN)?;
        registrar.add(self.backends.event(), SLOTS, EventFlags::IN)?;
        registrar.add(borrow(&self.vcpu_wake), VCPUS, EventFlags::IN)
    }

    fn ready(&mut self, token: u32, _: EventFlags, _: &Registrar<'_>) -> Next {
        match token {
            CONTROL => self.obey(),
            SLOTS => self.hear_slots(),
            FILES => self.hear_files(),
            _ => self.hear_vcpus(),
        }
    }
}
