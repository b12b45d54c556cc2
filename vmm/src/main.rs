//! `lazaret-vmm`: receives a configuration and descriptors on descriptor 3, enters
//! its jail and runs one microVM. People have no reason to start it, but for
//! `lazaret-vmm check`.
#![expect(
    unsafe_code,
    reason = "takes over the inherited control socket, and sets up the heap"
)]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use lazaret_vmm::config::{VmConfig, VmFds};
use lazaret_vmm::control::{CONTROL_FD, ControlSocket, ExitReason, VmmEvent};
use lazaret_vmm::{builder, check, jail, seccomp};
use rustix::io::FdFlags;

const HELP: &str = "\
lazaret-vmm runs one microVM for a lazaret sandbox process, which starts it.

usage: lazaret-vmm check        say as JSON whether this host can run microVMs
       lazaret-vmm --version
       lazaret-vmm --help
";

#[expect(clippy::print_stdout, reason = "what is printed is what was asked for")]
fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let mut arguments = std::env::args().skip(1);
    let outcome = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => run(),
        (Some("check"), None) => return report(),
        (Some("--version"), None) => {
            println!("lazaret-vmm {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        (Some("--help" | "-h"), None) => {
            print!("{HELP}");
            Ok(())
        }
        (Some(other), _) => Err(anyhow::anyhow!("unknown argument {other:?}; see --help")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the report goes to the caller")]
fn report() -> ExitCode {
    let report = check::check();
    println!(
        "{}",
        serde_json::to_string_pretty(&report).unwrap_or_default()
    );
    if report.usable {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// One heap for all threads. The C library would give each its own, and read files of
/// `/proc` and `/sys` when it makes one and when it gives memory of one back: in the
/// jail these are not there, and a confined thread that opens a file is killed.
fn share_the_heap() -> Result<()> {
    // SAFETY: there is one thread yet, and a parameter of the allocator is set before it
    // has made a second arena.
    let set = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    if set == 1 {
        Ok(())
    } else {
        bail!("the allocator does not take M_ARENA_MAX")
    }
}

fn run() -> Result<()> {
    share_the_heap()?;
    let control = control_socket()?;
    let (config, fds) = control
        .recv::<VmConfig>()
        .context("receiving the configuration")?
        .context("the sandbox process has gone without a configuration")?;
    match start(&config, fds, Arc::clone(&control)) {
        Ok(vmm) => {
            control.send(&VmmEvent::Started, &[])?;
            let (reason, vm_exits) = vmm.run();
            tracing::info!("microVM ended: {reason}");
            // The last word waits for the reader that the others must not wait for.
            let _ = rustix::io::ioctl_fionbio(&*control, false);
            // The sandbox process may be what is gone.
            let _ = control.send(&VmmEvent::Exited { reason, vm_exits }, &[]);
            Ok(())
        }
        Err(error) => {
            let reason = ExitReason::Start(format!("{error:#}"));
            control.send(
                &VmmEvent::Exited {
                    reason,
                    vm_exits: Vec::new(),
                },
                &[],
            )?;
            Err(error)
        }
    }
}

fn start(
    config: &VmConfig,
    fds: Vec<OwnedFd>,
    control: Arc<ControlSocket>,
) -> Result<lazaret_vmm::vmm::Vmm> {
    config.validate()?;
    let fds = VmFds::try_from(fds)?;
    let jail = jail::enter(&fds.shared_dir).context("entering the jail")?;
    let vmm = builder::build(config, fds, jail, control)?;
    seccomp::confine_main().context("confining the main thread")?;
    Ok(vmm)
}

fn control_socket() -> Result<Arc<ControlSocket>> {
    // SAFETY: borrowed for this one call, which fails where nothing is open.
    let inherited = unsafe { BorrowedFd::borrow_raw(CONTROL_FD) };
    if rustix::io::fcntl_setfd(inherited, FdFlags::CLOEXEC).is_err() {
        bail!(
            "descriptor {CONTROL_FD} is not open: lazaret-vmm is started by lazaret's sandbox \
             process"
        );
    }
    // SAFETY: the parent has put the socket there for this process, and nothing else
    // in it takes the number.
    let socket = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
    Ok(Arc::new(ControlSocket::from(socket)))
}
