//! Puts a microVM together: the boot order, top to bottom.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::channel;

use kvm_ioctls::{IoEventAddress, VcpuFd};
use rustix::fs::{Mode, OFlags};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::arch::x86_64::{boot_params, cpuid, layout, mptable, msr, regs};
use crate::backends::Backends;
use crate::bus::Bus;
use crate::config::{VmConfig, VmFds};
use crate::control::{ControlSocket, VmmEvent};
use crate::devices::serial::{self, SerialPort};
use crate::devices::virtio::balloon::{Balloon, BalloonHandle};
use crate::devices::virtio::fs::{Fs, FsError};
use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::VsockDevice;
use crate::devices::virtio::{GuestMemory, VirtioDevice};
use crate::event_loop::{EventLoop, EventLoopHandle};
use crate::jail::Jail;
use crate::kernel::{self, Kernel, KernelError};
use crate::kvm::{KvmError, Machine};
use crate::vcpu::{EventSender, ExitCounts, RunState, Shared, Vcpus};
use crate::vmm::{Director, Vmm};
use crate::{cmdline, memory, seccomp};

#[derive(Debug, Error)]
pub enum BuildError {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    BootParams(#[from] boot_params::BootParamsError),
    #[error(transparent)]
    MpTable(#[from] mptable::MpTableError),
    #[error("page tables do not fit into guest memory")]
    Tables(#[from] vm_memory::GuestMemoryError),
    #[error("vCPU {index} was not created")]
    CreateVcpu {
        index: u8,
        #[source]
        source: kvm_ioctls::Error,
    },
    #[error(transparent)]
    Cpuid(#[from] cpuid::CpuidError),
    #[error(transparent)]
    Msr(#[from] msr::MsrError),
    #[error(transparent)]
    Regs(#[from] regs::RegsError),
    #[error("interrupt line {0} was not connected")]
    Irqfd(u32, #[source] kvm_ioctls::Error),
    #[error("queue {0} of a virtio slot was not connected")]
    Ioeventfd(u32, #[source] kvm_ioctls::Error),
    #[error("{what} failed")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Builds the microVM; [`Vmm::run`] lets its vCPUs enter the guest.
pub fn build(
    config: &VmConfig,
    fds: VmFds,
    jail: Jail,
    control: Arc<ControlSocket>,
) -> Result<Vmm, BuildError> {
    // From here on only the jail's view of it counts: this one leads out.
    drop(fds.shared_dir);
    let machine = Machine::new(fds.kvm)?;
    let memory = memory::map(config.memory_mib)?;
    memory::register(&machine.vm, &memory)?;

    let (event_loop, loop_handle) = EventLoop::new().map_err(io("making the event loop"))?;
    let fs = shared_directory(config, jail)?;
    let many_files = fs.alarm().map_err(io("copying an eventfd"))?;
    let vsock = vsock(config, fds.vsock_listener, &control, &loop_handle)?;
    let (mut devices, balloon) = quick_devices(&loop_handle);
    devices.splice(
        0..0,
        [Box::new(vsock) as Box<dyn VirtioDevice>, Box::new(fs)],
    );
    let (backends, late) = Backends::new(config).map_err(io("making the slots"))?;
    devices.extend(late);
    let slots = devices.len();
    let transports = connect(&machine, &memory, devices)?;
    let serial_irq = event().map_err(io("making an eventfd"))?;
    register_irq(&machine, &serial_irq, serial::IRQ)?;
    let serial = SerialPort::new(serial_irq, fds.console).map_err(io("preparing the console"))?;
    let bus = Arc::new(Bus::new(transports, serial));

    let kernel = load(config, &memory, fds.kernel, fds.initramfs, slots)?;
    let vcpu_fds = (0..config.vcpus)
        .map(|index| create_vcpu(&machine, index, config.vcpus, kernel))
        .collect::<Result<Vec<_>, _>>()?;

    let (events, vcpu_events) = channel();
    let wake = event().map_err(io("making an eventfd"))?;
    let vcpu_wake = wake.try_clone().map_err(io("copying an eventfd"))?;
    let shared = Shared {
        bus,
        memory,
        sender: EventSender { events, wake },
        exits: ExitCounts::default(),
        run_state: RunState::new(vcpu_fds.len()),
    };
    let vcpus = Vcpus::start(vcpu_fds, shared, seccomp::confine_vcpu)
        .map_err(io("starting the vCPU threads"))?;
    let vcpus = Arc::new(vcpus);
    let (director, ended) = Director::new(
        control,
        Arc::clone(&vcpus),
        balloon,
        backends,
        vcpu_events,
        vcpu_wake,
        many_files,
    );
    Ok(Vmm {
        event_loop,
        loop_handle,
        director,
        ended,
        vcpus,
        vm: machine.vm,
    })
}

/// virtio-fs over the shared directory as it is seen from inside the jail, with
/// what will be mounted there later.
fn shared_directory(config: &VmConfig, jail: Jail) -> Result<Fs, BuildError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty())
        .map_err(|error| io("opening the jail's root")(error.into()))?;
    Ok(Fs::new(
        &config.fs,
        root,
        jail.proc_self_fd,
        Box::new(seccomp::confine_fs),
    )?)
}

/// vsock, whose guest's connections reach the sandbox process by the control socket.
fn vsock(
    config: &VmConfig,
    listener: OwnedFd,
    control: &Arc<ControlSocket>,
    events: &EventLoopHandle,
) -> Result<VsockDevice, BuildError> {
    rustix::io::ioctl_fionbio(&**control, true)
        .map_err(|error| io("preparing the control socket")(error.into()))?;
    let control = Arc::clone(control);
    let connected = move |port: u32, connection: OwnedFd| {
        control
            .send(&VmmEvent::VsockConnection { port }, &[connection.as_fd()])
            .map_err(io::Error::other)
    };
    VsockDevice::new(
        config.vsock.clone(),
        listener,
        Arc::new(connected),
        events.clone(),
    )
    .map_err(io("making the vsock device"))
}

/// What needs nothing from the host: rng, balloon.
fn quick_devices(events: &EventLoopHandle) -> (Vec<Box<dyn VirtioDevice>>, BalloonHandle) {
    let balloon = Balloon::new(events.clone());
    let handle = balloon.handle();
    let devices: Vec<Box<dyn VirtioDevice>> =
        vec![Box::new(Rng::new(events.clone())), Box::new(balloon)];
    (devices, handle)
}

/// Loads the kernel and everything it is told.
fn load(
    config: &VmConfig,
    memory: &GuestMemory,
    kernel: OwnedFd,
    initramfs: OwnedFd,
    slots: usize,
) -> Result<Kernel, BuildError> {
    let kernel = kernel::load(memory, File::from(kernel))?;
    let initramfs = kernel::load_initramfs(memory, kernel, File::from(initramfs))?;
    let cmdline = cmdline::build(slots, &config.kernel_args);
    boot_params::write(memory, config.memory_mib, &cmdline, initramfs)?;
    mptable::write(memory, config.vcpus)?;
    regs::write_tables(memory)?;
    Ok(kernel)
}

/// Puts each device into a slot: a window, an interrupt line, an event a queue.
fn connect(
    machine: &Machine,
    memory: &GuestMemory,
    devices: Vec<Box<dyn VirtioDevice>>,
) -> Result<Vec<MmioTransport>, BuildError> {
    let places = (layout::VIRTIO_IRQ_BASE..).zip(cmdline::slot_bases());
    let connected = places.zip(devices).map(|((irq, base), device)| {
        let irqfd = event().map_err(io("making an eventfd"))?;
        let transport = MmioTransport::new(device, memory.clone(), irqfd)
            .map_err(io("making a virtio slot"))?;
        register_irq(machine, transport.irqfd(), irq)?;
        let notify = IoEventAddress::Mmio(base + QUEUE_NOTIFY);
        for (queue, kick) in transport.kicks() {
            machine
                .vm
                .register_ioevent(kick, &notify, queue)
                .map_err(|source| BuildError::Ioeventfd(queue, source))?;
        }
        Ok(transport)
    });
    connected.collect()
}

fn register_irq(machine: &Machine, event: &EventFd, irq: u32) -> Result<(), BuildError> {
    machine
        .vm
        .register_irqfd(event, irq)
        .map_err(|source| BuildError::Irqfd(irq, source))
}

/// The boot processor starts at the kernel's entry, the others when it calls them.
fn create_vcpu(
    machine: &Machine,
    index: u8,
    vcpus: u8,
    kernel: Kernel,
) -> Result<VcpuFd, BuildError> {
    let vcpu = machine
        .vm
        .create_vcpu(index.into())
        .map_err(|source| BuildError::CreateVcpu { index, source })?;
    let cpuid = cpuid::for_vcpu(&machine.cpuid, index, vcpus)?;
    vcpu.set_cpuid2(&cpuid).map_err(cpuid::CpuidError::Set)?;
    msr::set(&vcpu)?;
    regs::set_fpu(&vcpu)?;
    if index == 0 {
        regs::set_boot_state(&vcpu, kernel.entry)?;
    }
    Ok(vcpu)
}

fn event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

fn io(what: &'static str) -> impl Fn(io::Error) -> BuildError {
    move |source| BuildError::Io { what, source }
}
