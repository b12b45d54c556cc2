//! Filters kill; what they must let pass does.
#![expect(unsafe_code, reason = "forks a child to be killed by its filter")]

use super::*;

/// Runs `act` under the filter of `table` in a child; its wait status.
fn status_under(table: fn() -> Vec<Allowed>, act: fn()) -> libc::c_int {
    let program = compile(table()).unwrap();
    // SAFETY: the child makes only system calls before it ends.
    match unsafe { libc::fork() } {
        0 => {
            if seccompiler::apply_filter(&program).is_ok() {
                act();
            }
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(0) }
        }
        child => {
            let mut status = 0;
            // SAFETY: the status is written to a live integer.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            status
        }
    }
}

fn killed(status: libc::c_int) -> bool {
    libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS
}

fn make_executable() {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let protection = ProtFlags::READ | ProtFlags::EXEC;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let _ = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, protection, MapFlags::PRIVATE) };
}

fn open_by_path() {
    let flags = rustix::fs::OFlags::RDONLY;
    let _ = rustix::fs::open("/", flags, rustix::fs::Mode::empty());
}

fn ask_for_pid() {
    let _ = rustix::process::getpid();
}

fn ask_for_ids() {
    let _ = rustix::process::geteuid();
}

#[test]
fn forbidden_call_kills_each_kind_of_thread() {
    for table in [tables::main_thread, tables::vcpu_thread, tables::fs_thread] {
        assert!(killed(status_under(table, make_executable)));
        assert!(killed(status_under(table, open_by_path)));
    }
}

#[test]
fn allowed_call_passes() {
    assert_eq!(status_under(tables::fs_thread, ask_for_ids), 0);
    assert_eq!(status_under(tables::main_thread, ask_for_pid), 0);
}
