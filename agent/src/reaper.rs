//! Exit statuses. The agent is PID 1: every orphan of the guest ends up as its child,
//! so it collects all children and hands those it has started to who waits for them.
//!
//! A child is announced in the same turn of the (single-threaded) event loop that made
//! it, so no exit can be collected before somebody expects it, and a process id cannot
//! be used again before its status has been handed over.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{Pid, WaitOptions, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::failure::{OrFail, Result};

/// As a shell sees it: 0 to 255, 128 + n when ended by signal n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExitStatus(pub(crate) u32);

#[derive(Clone, Debug, Default)]
pub(crate) struct Reaper {
    expected: Arc<Mutex<HashMap<i32, oneshot::Sender<ExitStatus>>>>,
}

impl Reaper {
    /// Starts to collect; must be called before the first child is made.
    pub(crate) fn start() -> Result<Self> {
        let reaper = Self::default();
        let mut child = signal(SignalKind::child()).or_fail(|| "watch for SIGCHLD")?;
        let collecting = reaper.clone();
        tokio::spawn(async move {
            while child.recv().await.is_some() {
                collecting.collect();
            }
        });
        Ok(reaper)
    }

    /// To be called right after the child was made.
    pub(crate) fn expect(&self, pid: Pid) -> oneshot::Receiver<ExitStatus> {
        let (sender, receiver) = oneshot::channel();
        self.expected
            .lock()
            .insert(pid.as_raw_nonzero().get(), sender);
        receiver
    }

    fn collect(&self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let status = exit_status(status.exit_status(), status.terminating_signal());
            let waiter = self.expected.lock().remove(&pid.as_raw_nonzero().get());
            if let Some(waiter) = waiter {
                // A waiter that is gone has lost interest.
                let _ = waiter.send(status);
            }
        }
    }
}

fn exit_status(exited: Option<i32>, killed: Option<i32>) -> ExitStatus {
    const SIGNAL_BASE: i32 = 128;
    const UNKNOWN: u32 = 255;
    let status = exited.or_else(|| killed.map(|signal| SIGNAL_BASE + signal));
    ExitStatus(
        status
            .and_then(|status| u32::try_from(status).ok())
            .unwrap_or(UNKNOWN),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_read_as_in_a_shell() {
        assert_eq!(exit_status(Some(7), None), ExitStatus(7));
        assert_eq!(exit_status(None, Some(9)), ExitStatus(137));
    }
}
