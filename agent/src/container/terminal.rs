//! The pseudoterminal of a process, taken from the container's own devpts instance
//! so that its name and its limits are the container's.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::Process;
use rustix::fs::{OFlags, fstatfs};
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::termios::{Winsize, tcsetwinsize};

use super::path::Root;
use crate::failure::{Failure, OrFail, Result};

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS_MAGIC: i64 = 0x1cd1;

#[derive(Debug)]
pub(crate) struct Terminal {
    /// For the agent.
    pub(crate) master: OwnedFd,
    /// For the process.
    pub(crate) peer: OwnedFd,
}

impl Terminal {
    /// Makes a terminal in the container whose root is this process's root.
    pub(crate) fn open(process: &Process) -> Result<Self> {
        let root = Root::of_process()?;
        let master = root
            .open(Path::new("/dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY)
            .or_fail(|| "open /dev/pts/ptmx for the terminal")?;
        if fstatfs(&master).or_fail(|| "look at /dev/pts")?.f_type != DEVPTS_MAGIC {
            return Err(Failure::invalid(
                "process.terminal needs a devpts mount on /dev/pts",
            ));
        }
        unlockpt(&master).or_fail(|| "unlock the terminal")?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let peer = ioctl_tiocgptpeer(&master, flags).or_fail(|| "open the terminal's peer")?;
        if let Some(size) = process.console_size() {
            let cells = |count: u64| u16::try_from(count).unwrap_or(u16::MAX);
            set_size(&master, cells(size.height()), cells(size.width()))?;
        }
        Ok(Self { master, peer })
    }

    /// Makes the peer the controlling terminal of this session leader and its stdio.
    pub(crate) fn take_over(&self) -> Result<()> {
        ioctl_tiocsctty(&self.peer).or_fail(|| "take the controlling terminal")?;
        dup2_stdin(&self.peer)
            .and_then(|()| dup2_stdout(&self.peer))
            .and_then(|()| dup2_stderr(&self.peer))
            .or_fail(|| "put the terminal on stdio")
    }
}

pub(crate) fn set_size(terminal: impl AsFd, rows: u16, columns: u16) -> Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).or_fail(|| format!("resize the terminal to {columns}x{rows}"))
}
