//! BPF programs of a few instructions that the kernel asks on behalf of a cgroup
//! (bpf(2), include/uapi/linux/bpf.h).
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    /// Destination in the low half, source in the high half.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

pub(crate) const LOAD_WORD: u8 = 0x61;
pub(crate) const STORE_WORD: u8 = 0x63;
pub(crate) const AND: u8 = 0x57;
pub(crate) const SHIFT_RIGHT: u8 = 0x77;
pub(crate) const MOVE: u8 = 0xb7;
pub(crate) const MOVE_REGISTER: u8 = 0xbf;
pub(crate) const JUMP_EQUAL: u8 = 0x15;
pub(crate) const JUMP_NOT_EQUAL: u8 = 0x55;
pub(crate) const JUMP_REGISTER_NOT_EQUAL: u8 = 0x5d;
/// Compares the lower 32 bits alone.
pub(crate) const JUMP_WORD_NOT_EQUAL: u8 = 0x56;
pub(crate) const CALL: u8 = 0x85;
pub(crate) const EXIT: u8 = 0x95;
const LOAD_LONG: u8 = 0x18;

/// The function that [`CALL`] asks for the cookie of the network namespace that the
/// socket of the program's context is of.
pub(crate) const NETWORK_NAMESPACE_COOKIE: i32 = 122;

pub(crate) const fn instruction(
    code: u8,
    target: u8,
    source: u8,
    offset: i16,
    immediate: i32,
) -> Instruction {
    Instruction {
        code,
        registers: target | (source << 4),
        offset,
        immediate,
    }
}

/// All 64 bits into a register.
pub(crate) fn load_long(target: u8, value: u64) -> [Instruction; 2] {
    let bytes = value.to_le_bytes();
    let half = |at: usize| i32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[at + byte]));
    [
        instruction(LOAD_LONG, target, 0, 0, half(0)),
        instruction(0, 0, 0, 0, half(4)),
    ]
}

/// What a program is asked about: `enum bpf_prog_type` and `enum bpf_attach_type`.
#[derive(Debug)]
pub(crate) struct Hook {
    program_type: u32,
    attach_type: u32,
}

const fn of_addresses(attach_type: u32) -> Hook {
    Hook {
        program_type: 18,
        attach_type,
    }
}

pub(crate) const CGROUP_DEVICE: Hook = Hook {
    program_type: 15,
    attach_type: 6,
};
pub(crate) const CONNECT_4: Hook = of_addresses(10);
pub(crate) const CONNECT_6: Hook = of_addresses(11);
pub(crate) const SEND_4: Hook = of_addresses(14);
pub(crate) const SEND_6: Hook = of_addresses(15);
pub(crate) const RECEIVE_4: Hook = of_addresses(19);
pub(crate) const RECEIVE_6: Hook = of_addresses(20);
pub(crate) const PEER_NAME_4: Hook = of_addresses(29);
pub(crate) const PEER_NAME_6: Hook = of_addresses(30);

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// The start of `union bpf_attr` for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// The start of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkAttributes {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_LINK_CREATE: libc::c_int = 28;
/// A container's own programs for its children are asked as well as these.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The kernel gives up on a program when a signal is there for its loader, such as that
/// of an ended child.
const LOAD_ATTEMPTS: usize = 128;

/// Has the kernel check a program.
pub(crate) fn load(hook: &Hook, program: &[Instruction]) -> io::Result<OwnedFd> {
    for _ in 1..LOAD_ATTEMPTS {
        match try_to_load(hook, program) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            loaded => return loaded,
        }
    }
    try_to_load(hook, program)
}

fn try_to_load(hook: &Hook, program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        program_type: hook.program_type,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        attach_type: hook.attach_type,
        ..LoadAttributes::default()
    };
    // The program and licence that the attributes point to outlive the call.
    descriptor(call(BPF_PROG_LOAD, &attributes)?)
}

/// Has a program asked for the cgroup and all below it, until it is detached or the
/// cgroup has gone.
pub(crate) fn attach(cgroup: BorrowedFd<'_>, program: &OwnedFd, hook: &Hook) -> io::Result<()> {
    let attributes = AttachAttributes {
        target: number(&cgroup)?,
        program: number(program)?,
        attach_type: hook.attach_type,
        flags: BPF_F_ALLOW_MULTI,
    };
    call(BPF_PROG_ATTACH, &attributes).map(drop)
}

/// Ends what [`attach`] has begun.
pub(crate) fn detach(cgroup: BorrowedFd<'_>, program: &OwnedFd, hook: &Hook) -> io::Result<()> {
    let attributes = AttachAttributes {
        target: number(&cgroup)?,
        program: number(program)?,
        attach_type: hook.attach_type,
        flags: 0,
    };
    call(BPF_PROG_DETACH, &attributes).map(drop)
}

/// Has a program asked for the cgroup and all below it as long as the answer is open.
pub(crate) fn link(cgroup: BorrowedFd<'_>, program: &OwnedFd, hook: &Hook) -> io::Result<OwnedFd> {
    let attributes = LinkAttributes {
        program: number(program)?,
        target: number(&cgroup)?,
        attach_type: hook.attach_type,
        flags: 0,
    };
    descriptor(call(BPF_LINK_CREATE, &attributes)?)
}

fn number(fd: &impl AsRawFd) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: each of this module's attributes is laid out as the kernel's for its
    // command and is only read; what it points to is borrowed by the caller meanwhile.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = libc::c_int::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor, nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn signals_do_not_keep_programs_from_being_loaded() {
        extern "C" fn ignore(_: libc::c_int) {}
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: {} needs root", module_path!());
            return;
        }
        let handler = ignore as extern "C" fn(libc::c_int);
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
        // SAFETY: has no preconditions.
        let this_thread = unsafe { libc::pthread_self() };
        // Long enough for the check to be interrupted.
        let mut program = vec![instruction(MOVE, 0, 0, 0, 1); 4000];
        program.push(instruction(EXIT, 0, 0, 0, 0));
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    // SAFETY: the thread waits for this one's end.
                    unsafe { libc::pthread_kill(this_thread, libc::SIGUSR1) };
                    // Rather than at every moment: now and then.
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let loaded = (0..200).try_for_each(|_| load(&CGROUP_DEVICE, &program).map(drop));
            is_done.store(true, Ordering::Relaxed);
            loaded.expect("loaded each time");
        });
    }
}
