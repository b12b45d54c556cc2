//! Signals of a program that is started: none is blocked, whatever its starter has
//! blocked.

#![expect(unsafe_code, reason = "CommandExt::pre_exec has no safe wrapper")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::SigSet;

pub(crate) fn unblock(command: &mut Command) {
    let none = SigSet::empty();
    // SAFETY: between fork and exec the closure only calls pthread_sigmask(3), which is
    // async-signal-safe; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || none.thread_set_mask().map_err(io::Error::from));
    }
}
