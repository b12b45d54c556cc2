//! The tables. A call is here because a run without it was killed; its comment
//! says what makes it where that is not plain.

use super::{Allowed, Condition, Test};
use crate::devices::virtio::block::REGISTER_FILES_UPDATE;
use crate::devices::virtio::net::ALL_OFFLOADS;

/// `ioctl` of a socket that is not to block.
const FIONBIO: u32 = 0x5421;

/// Of a device's own copies of descriptors; `F_GETFD` by debug builds alone.
const FCNTL: [libc::c_int; 4] = [
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_GETFL,
    libc::F_SETFL,
];

/// Allowed with any arguments.
fn any(calls: &[libc::c_long]) -> Vec<Allowed> {
    let always = |call: &libc::c_long| Allowed {
        call: *call,
        when: Vec::new(),
    };
    calls.iter().map(always).collect()
}

/// Allowed when argument `index` is one of `values`.
fn one_of(call: libc::c_long, index: u8, values: &[u32]) -> Allowed {
    let when = values.iter().map(|value| vec![is(index, *value)]).collect();
    Allowed { call, when }
}

/// Allowed when argument `index` has none of the bits in `mask`.
fn without(call: libc::c_long, index: u8, mask: u32) -> Allowed {
    let test = Test::Bits { mask, value: 0 };
    Allowed {
        call,
        when: vec![vec![Condition { index, test }]],
    }
}

/// Allowed with a directory's descriptor as the first argument, and never the
/// working directory, from which an absolute path would lead.
fn beneath(calls: &[libc::c_long]) -> Vec<Allowed> {
    let below = |call: &libc::c_long| Allowed {
        call: *call,
        when: vec![vec![not_cwd(0)]],
    };
    calls.iter().map(below).collect()
}

fn is(index: u8, value: u32) -> Condition {
    let test = Test::Bits {
        mask: u32::MAX,
        value,
    };
    Condition { index, test }
}

fn not_cwd(index: u8) -> Condition {
    let test = Test::Not(bits(libc::AT_FDCWD));
    Condition { index, test }
}

/// An `ioctl`'s number, which has 32 bits.
fn bits_of(ioctl: libc::Ioctl) -> u32 {
    (ioctl & 0xffff_ffff) as u32
}

fn bits(value: libc::c_int) -> u32 {
    value.cast_unsigned()
}

/// What Rust's and C's runtimes do on any thread.
fn runtime() -> Vec<Allowed> {
    let mut table = any(&[
        libc::SYS_brk,
        libc::SYS_clock_gettime,
        libc::SYS_close,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_getpid,
        libc::SYS_getrandom,
        libc::SYS_gettid,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_read,
        libc::SYS_restart_syscall,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sched_yield,
        libc::SYS_sigaltstack,
        // abort(), and the call that makes a vCPU leave its guest.
        libc::SYS_tgkill,
        libc::SYS_write,
    ]);
    // The heap grows; nothing becomes executable.
    table.push(without(libc::SYS_mmap, 2, bits(libc::PROT_EXEC)));
    table.push(without(libc::SYS_mprotect, 2, bits(libc::PROT_EXEC)));
    // Given back: the heap's free pages, stacks, and the balloon's guest pages.
    let advice = [libc::MADV_DONTNEED, libc::MADV_FREE, libc::MADV_REMOVE].map(bits);
    table.push(one_of(libc::SYS_madvise, 2, &advice));
    table
}

pub(super) fn main_thread() -> Vec<Allowed> {
    let mut table = runtime();
    table.extend(event_loop());
    table.extend(any(&[
        // Of the vsock listener only: no other socket listens.
        libc::SYS_accept4,
        libc::SYS_readv,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_sendto,
        libc::SYS_shutdown,
        libc::SYS_writev,
    ]));
    // Connections that the guest opens surface as one end of a pair.
    table.push(one_of(libc::SYS_socketpair, 0, &[bits(libc::AF_UNIX)]));
    table.push(one_of(libc::SYS_ioctl, 1, &[FIONBIO]));
    table.push(one_of(libc::SYS_fcntl, 1, &FCNTL.map(bits)));
    table
}

pub(super) fn vcpu_thread() -> Vec<Allowed> {
    /// `_IO(KVMIO, 0x80)`
    const KVM_RUN: u32 = 0xae80;
    let mut table = runtime();
    table.push(one_of(libc::SYS_ioctl, 1, &[KVM_RUN]));
    // A device that is activated makes the event that will stop it.
    table.extend(any(&[libc::SYS_eventfd2]));
    // A device that is activated gets its own copy of each queue's event.
    table.push(one_of(libc::SYS_fcntl, 1, &FCNTL.map(bits)));
    table
}

/// An event loop's own calls.
fn event_loop() -> Vec<Allowed> {
    any(&[
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_epoll_wait,
    ])
}

pub(super) fn net_thread() -> Vec<Allowed> {
    let mut table = runtime();
    table.extend(event_loop());
    table.extend(any(&[libc::SYS_writev]));
    // A tap that is connected: is it one, how are its frames framed, what may be
    // left undone in them?
    let ioctls = [
        bits_of(libc::TUNGETIFF),
        bits_of(libc::TUNSETVNETHDRSZ),
        FIONBIO,
    ];
    let mut when: Vec<_> = ioctls.map(|ioctl| vec![is(1, ioctl)]).into();
    let offloads = Test::Bits {
        mask: !ALL_OFFLOADS,
        value: 0,
    };
    when.push(vec![
        is(1, bits_of(libc::TUNSETOFFLOAD)),
        Condition {
            index: 2,
            test: offloads,
        },
    ]);
    table.push(Allowed {
        call: libc::SYS_ioctl,
        when,
    });
    table.push(one_of(libc::SYS_fcntl, 1, &FCNTL.map(bits)));
    table
}

pub(super) fn block_thread() -> Vec<Allowed> {
    let mut table = runtime();
    table.extend(event_loop());
    table.extend(any(&[
        libc::SYS_io_uring_enter,
        // A disk that is put in: what is it, how large?
        libc::SYS_fstat,
        libc::SYS_lseek,
    ]));
    table.push(one_of(
        libc::SYS_io_uring_register,
        1,
        &[REGISTER_FILES_UPDATE],
    ));
    table.push(one_of(libc::SYS_fcntl, 1, &FCNTL.map(bits)));
    table
}

pub(super) fn disk_thread() -> Vec<Allowed> {
    let mut table = runtime();
    table.extend(any(&[
        libc::SYS_fallocate,
        libc::SYS_fdatasync,
        libc::SYS_preadv2,
        libc::SYS_pwritev2,
    ]));
    table.push(one_of(libc::SYS_fcntl, 1, &FCNTL.map(bits)));
    table
}

pub(super) fn fs_thread() -> Vec<Allowed> {
    let mut table = runtime();
    table.extend(any(&[
        libc::SYS_capget,
        libc::SYS_capset,
        libc::SYS_copy_file_range,
        libc::SYS_dup,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_wait,
        libc::SYS_fallocate,
        // To the descriptors of /proc/self/fd and back: attributes of links and of
        // special files are reached by a relative path from there.
        libc::SYS_fchdir,
        libc::SYS_getxattr,
        libc::SYS_listxattr,
        libc::SYS_removexattr,
        libc::SYS_setxattr,
        libc::SYS_fchmod,
        libc::SYS_fchown,
        libc::SYS_fdatasync,
        libc::SYS_fgetxattr,
        libc::SYS_flistxattr,
        libc::SYS_fremovexattr,
        libc::SYS_fsetxattr,
        libc::SYS_fstat,
        libc::SYS_fstatfs,
        libc::SYS_fsync,
        libc::SYS_ftruncate,
        libc::SYS_getdents64,
        libc::SYS_getegid,
        libc::SYS_geteuid,
        libc::SYS_lseek,
        libc::SYS_preadv2,
        libc::SYS_pwritev2,
        libc::SYS_setgroups,
        libc::SYS_syncfs,
        libc::SYS_umask,
    ]));
    table.extend(beneath(&[
        libc::SYS_fchmodat,
        libc::SYS_fchownat,
        libc::SYS_linkat,
        libc::SYS_mkdirat,
        libc::SYS_newfstatat,
        libc::SYS_openat2,
        libc::SYS_readlinkat,
        libc::SYS_renameat2,
        libc::SYS_statx,
        libc::SYS_unlinkat,
        libc::SYS_utimensat,
    ]));
    // Its descriptor comes second.
    table.push(Allowed {
        call: libc::SYS_symlinkat,
        when: vec![vec![not_cwd(1)]],
    });
    // The shared directory itself, once: the working directory, and nothing in it.
    let shared_directory = bits(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC);
    table.push(Allowed {
        call: libc::SYS_openat,
        when: vec![vec![not_cwd(0)], vec![is(2, shared_directory)]],
    });
    // No block devices, which no guest has a use for; the kernel refuses them too.
    let kinds = [
        0,
        libc::S_IFREG,
        libc::S_IFIFO,
        libc::S_IFSOCK,
        libc::S_IFCHR,
    ];
    let of_kind = |value| Condition {
        index: 2,
        test: Test::Bits {
            mask: libc::S_IFMT,
            value,
        },
    };
    table.push(Allowed {
        call: libc::SYS_mknodat,
        when: kinds.map(|kind| vec![not_cwd(0), of_kind(kind)]).into(),
    });
    // Only the effective ids change, to the caller's and back.
    let unchanged = |call| Allowed {
        call,
        when: vec![vec![is(0, u32::MAX), is(2, u32::MAX)]],
    };
    table.push(unchanged(libc::SYS_setresuid));
    table.push(unchanged(libc::SYS_setresgid));
    table.push(one_of(libc::SYS_fcntl, 1, &FCNTL.map(bits)));
    table
}
