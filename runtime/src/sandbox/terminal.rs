//! Terminals that were handed over, and signals to the sandbox process that stands
//! for a container.
//!
//! The terminal of that container becomes this process's controlling terminal: the
//! kernel then tells it of a change of size (SIGWINCH) and of the terminal's end
//! (SIGHUP), as it would tell the container's own process.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::process::ioctl_tiocsctty;
use rustix::termios::tcgetwinsize;

use super::{Chain, Sandbox};
use crate::agent::{AgentClient, ProcessName};
use crate::container::Container;
use crate::process::Stage;

impl Sandbox {
    /// Takes a container's terminal for this process.
    pub(super) async fn take_terminal(&self, agent: &AgentClient, container: &Container) {
        let Some(terminal) = container.terminal() else {
            return;
        };
        if let Err(err) = ioctl_tiocsctty(terminal) {
            tracing::warn!("the container's terminal will not tell of its size: {err}");
        }
        set_size(agent, init_of(container), terminal).await;
    }

    /// Passes a change of the container's terminal on. Returns whether it has one.
    pub async fn follow_terminal(&self) -> bool {
        let Some(container) = self.the_container() else {
            return false;
        };
        let Some(terminal) = container.terminal() else {
            return false;
        };
        if let Some(agent) = self.agent_now() {
            set_size(&agent, init_of(&container), terminal).await;
        }
        true
    }

    /// Passes a signal on to the container's own process. Returns whether there is
    /// a container that is or was alive.
    pub async fn signal_container(&self, signal: u32) -> bool {
        let Some(container) = self.the_container() else {
            return false;
        };
        match container.init.stage() {
            Stage::Creating => false,
            Stage::Stopped(_) => true,
            Stage::Created | Stage::Starting | Stage::Running => {
                if let Some(agent) = self.agent_now() {
                    let sent = agent.signal(init_of(&container), signal, false).await;
                    if let Err(err) = sent {
                        tracing::warn!("signal {signal} is not passed on: {}", Chain(&err));
                    }
                }
                true
            }
        }
    }

    fn the_container(&self) -> Option<Arc<Container>> {
        self.containers().values().next().cloned()
    }
}

fn init_of(container: &Container) -> ProcessName<'_> {
    ProcessName {
        container: container.id.as_str(),
        exec: None,
    }
}

/// Makes a process's terminal in the guest as large as one on the host.
pub(super) async fn set_size(agent: &AgentClient, name: ProcessName<'_>, terminal: &OwnedFd) {
    // No terminal, or one that nobody has given a size yet.
    let Ok(size) = tcgetwinsize(terminal) else {
        return;
    };
    if size.ws_row == 0 && size.ws_col == 0 {
        return;
    }
    let resized = agent.resize(name, size.ws_row.into(), size.ws_col.into());
    if let Err(err) = resized.await {
        tracing::warn!("the terminal keeps its size: {}", Chain(&err));
    }
}
