//! The tables. A call is here because a run without it was killed; its comment
//! says what makes it where that is not plain.

use super::{Allowed, Condition};

const INT: u64 = 0xffff_ffff;

/// Of a device's own copies of descriptors; `F_GETFD` by debug builds alone.
const FCNTL: [libc::c_int; 4] = [
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_GETFL,
    libc::F_SETFL,
];

/// Allowed with any arguments.
fn any(calls: &[libc::c_long]) -> Vec<Allowed> {
    calls
        .iter()
        .map(|call| Allowed {
            call: *call,
            when: Vec::new(),
        })
        .collect()
}

/// Allowed when argument `index` is one of `values`.
fn one_of(call: libc::c_long, index: u8, values: &[u64]) -> Allowed {
    let when = values
        .iter()
        .map(|value| Condition {
            index,
            mask: INT,
            value: *value,
        })
        .collect();
    Allowed { call, when }
}

/// Allowed when argument `index` has none of the bits in `mask`.
fn without(call: libc::c_long, index: u8, mask: u64) -> Allowed {
    Allowed {
        call,
        when: vec![Condition {
            index,
            mask,
            value: 0,
        }],
    }
}

fn bits(value: libc::c_int) -> u64 {
    u64::from(value.cast_unsigned())
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
    table.extend(any(&[
        // Of the vsock listener only: no other socket listens.
        libc::SYS_accept4,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_epoll_wait,
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
    table.push(one_of(libc::SYS_ioctl, 1, &[libc::FIONBIO]));
    table.push(one_of(libc::SYS_fcntl, 1, &FCNTL.map(bits)));
    table
}

pub(super) fn vcpu_thread() -> Vec<Allowed> {
    /// `_IO(KVMIO, 0x80)`
    const KVM_RUN: u64 = 0xae80;
    let mut table = runtime();
    table.push(one_of(libc::SYS_ioctl, 1, &[KVM_RUN]));
    // A device that is activated makes the event that will stop it.
    table.extend(any(&[libc::SYS_eventfd2]));
    // A device that is activated gets its own copy of each queue's event.
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
        libc::SYS_fchdir,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_fdatasync,
        libc::SYS_fgetxattr,
        libc::SYS_flistxattr,
        libc::SYS_flock,
        libc::SYS_fremovexattr,
        libc::SYS_fsetxattr,
        libc::SYS_fstat,
        libc::SYS_fstatfs,
        libc::SYS_fsync,
        libc::SYS_ftruncate,
        libc::SYS_getdents64,
        libc::SYS_getegid,
        libc::SYS_geteuid,
        libc::SYS_getxattr,
        libc::SYS_linkat,
        libc::SYS_listxattr,
        libc::SYS_lseek,
        libc::SYS_mkdirat,
        libc::SYS_mknodat,
        libc::SYS_newfstatat,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_pread64,
        libc::SYS_preadv,
        libc::SYS_preadv2,
        libc::SYS_pwrite64,
        libc::SYS_pwritev,
        libc::SYS_pwritev2,
        libc::SYS_readlinkat,
        libc::SYS_readv,
        libc::SYS_removexattr,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_setgroups,
        libc::SYS_setresgid,
        libc::SYS_setresuid,
        libc::SYS_setxattr,
        libc::SYS_statx,
        libc::SYS_symlinkat,
        libc::SYS_syncfs,
        libc::SYS_umask,
        libc::SYS_unlinkat,
        libc::SYS_utimensat,
        libc::SYS_writev,
    ]));
    table.push(one_of(libc::SYS_fcntl, 1, &FCNTL.map(bits)));
    table
}
