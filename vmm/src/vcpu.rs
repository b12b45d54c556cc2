//! Virtual processors: a thread each, in `KVM_RUN` but for the moments in which
//! the guest asks for something that KVM does not do itself.
//!
//! ```text
//!   Running ──pause──▶ Paused ──resume──▶ Running
//! ```
//!
//! A running thread is called out of the guest by a signal whose handler sets
//! `immediate_exit`: a signal that comes just before `KVM_RUN` is not lost.
#![expect(
    unsafe_code,
    reason = "a signal handler writes to the page shared with KVM"
)]

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use kvm_ioctls::{VcpuExit, VcpuFd};
use parking_lot::{Condvar, Mutex};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::arch::x86_64::layout;
use crate::bus::{Bus, GuestRequest};
use crate::control::ExitReason;
use crate::devices::virtio::GuestMemory;

/// What the kernel leaves at [`layout::WARM_BOOT_FLAG`] for `reboot=panic_warm`.
const WARM_BOOT: u16 = 0x1234;

thread_local! {
    /// `immediate_exit` of this thread's vCPU; null on other threads.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

extern "C" fn leave_guest(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: points into the page mapped by this thread's `VcpuFd`, set after
        // the page was mapped and cleared before it is unmapped.
        unsafe { flag.write_volatile(1) };
    }
}

/// Something a vCPU has to tell the main thread.
#[derive(Debug, PartialEq, Eq)]
pub enum VcpuEvent {
    AllPaused,
    Ended(ExitReason),
}

/// Tells the main thread; wakes its event loop.
#[derive(Debug)]
pub struct EventSender {
    pub events: Sender<VcpuEvent>,
    pub wake: EventFd,
}

impl EventSender {
    fn send(&self, event: VcpuEvent) {
        // Nobody listens when the microVM is ending anyway.
        let _ = self.events.send(event);
        let _ = self.wake.write(1);
    }
}

/// What all vCPUs share.
#[derive(Debug)]
pub struct Shared {
    pub bus: Arc<Bus>,
    pub memory: GuestMemory,
    pub sender: EventSender,
    pub exits: ExitCounts,
    pub run_state: RunState,
}

#[derive(Debug)]
pub struct RunState {
    state: Mutex<PauseState>,
    resumed: Condvar,
}

#[derive(Debug)]
struct PauseState {
    begun: bool,
    pause: bool,
    paused: usize,
    vcpus: usize,
}

impl RunState {
    pub fn new(vcpus: usize) -> Self {
        Self {
            state: Mutex::new(PauseState {
                begun: false,
                pause: false,
                paused: 0,
                vcpus,
            }),
            resumed: Condvar::new(),
        }
    }

    /// Waits for the whole process to be confined.
    fn wait_for_begin(&self) {
        let mut state = self.state.lock();
        while !state.begun {
            self.resumed.wait(&mut state);
        }
    }

    /// Waits while a pause is asked for. True for the vCPU that is the last to.
    fn park(&self, last: impl FnOnce()) {
        let mut state = self.state.lock();
        if !state.pause {
            return;
        }
        state.paused += 1;
        if state.paused == state.vcpus {
            last();
        }
        while state.pause {
            self.resumed.wait(&mut state);
        }
        state.paused -= 1;
    }
}

/// Returns from `KVM_RUN`, by kind.
#[derive(Debug, Default)]
pub struct ExitCounts([AtomicU64; ExitKind::ALL.len()]);

#[derive(Clone, Copy, Debug)]
enum ExitKind {
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    Signal,
}

impl ExitKind {
    const ALL: [(Self, &str); 5] = [
        (Self::IoIn, "io_in"),
        (Self::IoOut, "io_out"),
        (Self::MmioRead, "mmio_read"),
        (Self::MmioWrite, "mmio_write"),
        (Self::Signal, "signal"),
    ];
}

impl ExitCounts {
    fn count(&self, kind: ExitKind) {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn by_name(&self) -> Vec<(String, u64)> {
        ExitKind::ALL
            .iter()
            .map(|(kind, name)| {
                (
                    (*name).to_owned(),
                    self.0[*kind as usize].load(Ordering::Relaxed),
                )
            })
            .collect()
    }
}

/// The running vCPUs.
#[derive(Debug)]
pub struct Vcpus {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Vcpus {
    /// Makes a thread for each; `confine` is called first on each of them. They enter
    /// the guest when [`begin`](Self::begin) is called.
    pub fn start(
        fds: Vec<VcpuFd>,
        shared: Shared,
        confine: fn() -> io::Result<()>,
    ) -> io::Result<Self> {
        register_signal_handler(SIGRTMIN(), leave_guest)?;
        let shared = Arc::new(shared);
        let mut threads = Vec::with_capacity(fds.len());
        for (index, fd) in fds.into_iter().enumerate() {
            let vcpu = Vcpu {
                fd,
                shared: Arc::clone(&shared),
            };
            let thread = std::thread::Builder::new().name(format!("vcpu{index}"));
            threads.push(thread.spawn(move || vcpu.run(confine))?);
        }
        Ok(Self { shared, threads })
    }

    /// Lets guest code run.
    pub fn begin(&self) {
        self.shared.run_state.state.lock().begun = true;
        self.shared.run_state.resumed.notify_all();
    }

    /// Asks all to stop; answered by [`VcpuEvent::AllPaused`].
    pub fn pause(&self) {
        {
            let mut state = self.shared.run_state.state.lock();
            state.pause = true;
            // Asked again, or before a resume has reached anyone: no vCPU would
            // come by once more to answer.
            if state.paused == state.vcpus {
                self.shared.sender.send(VcpuEvent::AllPaused);
            }
        }
        for thread in &self.threads {
            // Fails only for a thread that has ended.
            let _ = thread.kill(SIGRTMIN());
        }
    }

    pub fn resume(&self) {
        self.shared.run_state.state.lock().pause = false;
        self.shared.run_state.resumed.notify_all();
    }

    pub fn exits(&self) -> Vec<(String, u64)> {
        self.shared.exits.by_name()
    }

    pub fn flush_console(&self) {
        self.shared.bus.flush_console();
    }
}

struct Vcpu {
    fd: VcpuFd,
    shared: Arc<Shared>,
}

impl Vcpu {
    fn run(mut self, confine: fn() -> io::Result<()>) {
        if let Err(error) = confine() {
            let reason = ExitReason::Vmm(format!("vCPU thread is not confined: {error}"));
            return self.shared.sender.send(VcpuEvent::Ended(reason));
        }
        IMMEDIATE_EXIT.set(&raw mut self.fd.get_kvm_run().immediate_exit);
        self.shared.run_state.wait_for_begin();
        let reason = loop {
            self.shared
                .run_state
                .park(|| self.shared.sender.send(VcpuEvent::AllPaused));
            if let Some(reason) = self.until_called() {
                break reason;
            }
        };
        IMMEDIATE_EXIT.set(std::ptr::null_mut());
        self.shared.sender.send(VcpuEvent::Ended(reason));
    }

    /// Runs the guest until a signal calls (`None`) or it ends.
    fn until_called(&mut self) -> Option<ExitReason> {
        loop {
            let shared = &self.shared;
            match self.fd.run() {
                Ok(exit) => {
                    if let Some(reason) = serve(shared, exit) {
                        return Some(reason);
                    }
                }
                Err(error) if error.errno() == libc::EINTR => {
                    shared.exits.count(ExitKind::Signal);
                    self.fd.set_kvm_immediate_exit(0);
                    return None;
                }
                Err(error) if error.errno() == libc::EAGAIN => {}
                Err(error) => return Some(ExitReason::Vmm(format!("KVM_RUN failed: {error}"))),
            }
        }
    }
}

fn serve(shared: &Shared, exit: VcpuExit<'_>) -> Option<ExitReason> {
    let (bus, exits) = (&shared.bus, &shared.exits);
    match exit {
        VcpuExit::MmioRead(address, data) => {
            exits.count(ExitKind::MmioRead);
            bus.mmio_read(address, data);
            None
        }
        VcpuExit::MmioWrite(address, data) => {
            exits.count(ExitKind::MmioWrite);
            bus.mmio_write(address, data);
            None
        }
        VcpuExit::IoIn(port, data) => {
            exits.count(ExitKind::IoIn);
            bus.pio_read(port, data);
            None
        }
        VcpuExit::IoOut(port, data) => {
            exits.count(ExitKind::IoOut);
            bus.pio_write(port, data)
                .map(|request| end_of(shared, request))
        }
        VcpuExit::Shutdown => Some(ExitReason::TripleFault),
        VcpuExit::FailEntry(code, cpu) => Some(ExitReason::Vmm(format!(
            "vCPU {cpu} could not be entered: {code:#x}"
        ))),
        VcpuExit::InternalError => Some(ExitReason::Vmm(
            "KVM could not emulate an instruction of the guest".into(),
        )),
        VcpuExit::Intr => {
            exits.count(ExitKind::Signal);
            None
        }
        // Run again, it would come again.
        other => Some(ExitReason::Vmm(format!(
            "unexpected exit of a vCPU: {other:?}"
        ))),
    }
}

fn end_of(shared: &Shared, request: GuestRequest) -> ExitReason {
    match request {
        GuestRequest::PowerOff => ExitReason::Shutdown,
        GuestRequest::Reset => match shared.memory.read_obj(layout::WARM_BOOT_FLAG) {
            Ok(WARM_BOOT) => ExitReason::Panic,
            _ => ExitReason::Reset,
        },
    }
}
