//! Plays the sandbox process: starts `lazaret-vmm` as one would be started, with a
//! guest whose init is a shell script.

#![allow(
    dead_code,
    unsafe_code,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test's harness: it fails by panicking and speaks to who runs it"
)]

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use command_fds::{CommandFdExt, FdMapping};
use lazaret_vmm::config::{FsConfig, VmConfig, VsockConfig};
use lazaret_vmm::control::{
    BackendChange, CONTROL_FD, ControlSocket, ExitReason, VmmEvent, VmmRequest,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tempfile::TempDir;

/// The guest kernel, as `make kernel` leaves it; None: say so and pass.
pub fn kernel() -> Option<PathBuf> {
    let path = std::env::var_os("LAZARET_KERNEL").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest-kernel/vmlinux"),
        PathBuf::from,
    );
    let usable = lazaret_vmm::check::check();
    let missing = if !usable.usable {
        format!("{:?}", usable.findings)
    } else if !path.exists() {
        format!("{} is missing; run: make kernel", path.display())
    } else {
        return Some(path);
    };
    assert!(
        std::env::var_os("LAZARET_E2E").is_none(),
        "microVMs are required: {missing}"
    );
    eprintln!("SKIPPED: {missing}");
    None
}

pub fn config() -> VmConfig {
    VmConfig {
        vcpus: 1,
        memory_mib: 128,
        kernel_args: String::new(),
        vsock: VsockConfig {
            guest_cid: 3,
            host_ports: vec![],
        },
        fs: FsConfig {
            tag: "shared".into(),
            threads: 1,
            dax_window_mib: 0,
            remembered_files: 1 << 14,
        },
        net_slots: 1,
        block_slots: 1,
    }
}

/// A started VMM and what it was given.
pub struct Running {
    pub control: ControlSocket,
    pub pid: u32,
    thread: JoinHandle<std::io::Result<std::process::ExitStatus>>,
    console: File,
    shared: Rc<TempDir>,
}

impl Running {
    pub fn start(kernel: &Path, config: &VmConfig, init: &str) -> Self {
        Self::prepare(kernel, config, init, |_| ())
    }

    /// The same, with something in the shared directory from the start.
    pub fn prepare(kernel: &Path, config: &VmConfig, init: &str, fill: impl FnOnce(&Path)) -> Self {
        let shared = Rc::new(tempfile::tempdir().unwrap());
        fill(shared.path());
        let console = tempfile::tempfile().unwrap();
        let (ours, theirs) = ControlSocket::pair().unwrap();
        let (pid, started) = channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWPID).map_err(std::io::Error::from)?;
            let mut child = spawn(theirs)?;
            pid.send(child.id()).unwrap();
            child.wait()
        });
        let listener = UnixListener::bind(shared.path().join("vsock.sock")).unwrap();
        let kvm = File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .unwrap();
        let initramfs = initramfs(init);
        let directory = File::open(shared.path()).unwrap();
        let kernel = File::open(kernel).unwrap();
        let fds: Vec<OwnedFd> = vec![
            kvm.into(),
            kernel.into(),
            initramfs.into(),
            console.try_clone().unwrap().into(),
            listener.into(),
            directory.into(),
        ];
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        ours.send(config, &borrowed).unwrap();
        Self {
            control: ours,
            pid: started.recv().unwrap(),
            thread,
            console,
            shared,
        }
    }

    /// Keeps the shared directory beyond the end.
    pub fn shared_path(&self) -> Rc<TempDir> {
        Rc::clone(&self.shared)
    }

    /// Waits for the guest to make a file in the shared directory; fails with the
    /// microVM if that ends first.
    pub fn wait_for_file(&self, name: &str) {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
        inotify
            .add_watch(self.shared.path(), AddWatchFlags::IN_CLOSE_WRITE)
            .unwrap();
        while !self.shared.path().join(name).exists() {
            let mut fds = [
                PollFd::new(inotify.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.control.as_fd(), PollFlags::POLLIN),
            ];
            poll(&mut fds, PollTimeout::NONE).unwrap();
            assert_ne!(
                fds[1].any(),
                Some(true),
                "the microVM has ended: {:?}",
                self.event()
            );
            inotify.read_events().unwrap();
        }
    }

    pub fn event(&self) -> Option<VmmEvent> {
        self.control.recv().unwrap().map(|(event, _)| event)
    }

    pub fn request(&self, request: &VmmRequest) {
        self.control.send(request, &[]).unwrap();
    }

    /// Asks for a change of a backend; the reason if it is refused.
    pub fn change(&self, change: BackendChange, backend: Option<OwnedFd>) -> Option<String> {
        let fds: Vec<_> = backend.iter().map(AsFd::as_fd).collect();
        let request = VmmRequest::Backend { id: 1, change };
        self.control.send(&request, &fds).unwrap();
        // What the VMM has is its own; nobody else's keeps a tap alive.
        drop(backend);
        match self.event() {
            Some(VmmEvent::Backend { id: 1, refusal }) => refusal,
            other => panic!("no answer but {other:?}"),
        }
    }

    pub fn expect_started(&self) {
        assert_eq!(self.event(), Some(VmmEvent::Started));
    }

    /// Waits for the end; the reason and what the guest printed.
    pub fn end(mut self) -> (ExitReason, String) {
        let reason = loop {
            match self.event() {
                Some(VmmEvent::Exited { reason, vm_exits }) => {
                    eprintln!("{reason}; exits {vm_exits:?}");
                    break reason;
                }
                Some(_) => {}
                None => panic!("no reason given\n{}", self.printed()),
            }
        };
        let console = self.printed();
        self.thread.join().unwrap().unwrap();
        (reason, console)
    }

    /// Waits for the process to end, without a word from it.
    pub fn wait(self) -> std::process::ExitStatus {
        drop(self.control);
        self.thread.join().unwrap().unwrap()
    }

    pub fn printed(&mut self) -> String {
        self.console.rewind().unwrap();
        let mut text = Vec::new();
        self.console.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }
}

fn spawn(control: ControlSocket) -> std::io::Result<Child> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazaret-vmm"));
    command.stdin(Stdio::null());
    let mapping = FdMapping {
        parent_fd: control.into(),
        child_fd: CONTROL_FD,
    };
    command
        .fd_mappings(vec![mapping])
        .map_err(std::io::Error::other)?;
    command.spawn()
}

/// A guest whose `/init` is this script, run by busybox.
fn initramfs(script: &str) -> File {
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
    let script = format!(
        "#!/bin/busybox sh\n\
         export PATH=/bin\n\
         /bin/busybox mkdir -p /dev /proc /sys /mnt\n\
         /bin/busybox --install -s /bin\n\
         mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys\n\
         off() {{ sync; printf S | dd of=/dev/port bs=1 seek=1540 2>/dev/null; }}\n\
         {script}\n"
    );
    let mut archive = Vec::new();
    entry(&mut archive, "bin", 0o040_755, b"", 0);
    entry(&mut archive, "dev", 0o040_755, b"", 0);
    entry(&mut archive, "dev/console", 0o020_600, b"", 5 << 8 | 1);
    entry(&mut archive, "bin/busybox", 0o100_755, &busybox, 0);
    entry(&mut archive, "init", 0o100_755, script.as_bytes(), 0);
    entry(&mut archive, "TRAILER!!!", 0, b"", 0);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&archive).unwrap();
    file
}

/// One entry of a newc archive (Documentation/driver-api/early-userspace).
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8], device: u32) {
    let fields = [
        1,
        mode,
        0,
        0,
        1,
        0,
        data.len() as u32,
        0,
        0,
        device >> 8,
        device & 0xff,
        name.len() as u32 + 1,
        0,
    ];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// A new tap device, as network slots need it.
pub fn tap(name: &str) -> OwnedFd {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request[16..18].copy_from_slice(&u16::try_from(flags).unwrap().to_ne_bytes());
    // SAFETY: the kernel reads and writes an `ifreq`, which has 40 bytes.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    file.into()
}
