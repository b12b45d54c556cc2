//! Signals to a command that makes a container or stands for one of its processes:
//! as with runc, they do not end it.

use std::io;

use nix::sys::signal::{SigSet, Signal};

/// Not passed on: what cannot be caught, what this process gets for its own
/// doing, and what its terminal or its children cause.
const KEPT: [Signal; 13] = [
    Signal::SIGKILL,
    Signal::SIGSTOP,
    Signal::SIGCHLD,
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGTRAP,
    Signal::SIGABRT,
    Signal::SIGSYS,
    Signal::SIGPIPE,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// Blocks the signals that are passed on, for this process and not for what it starts.
/// What comes from here on waits until it is read from a descriptor, if it ever is.
pub(super) fn hold_back_signals() -> io::Result<SigSet> {
    let mut passed_on = SigSet::all();
    for signal in KEPT {
        passed_on.remove(signal);
    }
    passed_on.thread_block()?;
    Ok(passed_on)
}
