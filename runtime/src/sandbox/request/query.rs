//! Questions: they change nothing.

use lazaret_protocol::agent::ContainerStatsReply;
use lazaret_protocol::agent::list_processes_reply::Entry;

use super::ProcessState;
use crate::sandbox::id::{ContainerId, ExecId};
use crate::sandbox::{Sandbox, SandboxError};

impl Sandbox {
    pub fn process_state(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
    ) -> Result<ProcessState, SandboxError> {
        let target = self.target(id, exec)?;
        Ok(ProcessState {
            bundle: target.container.bundle.clone(),
            pid: self.pid().unwrap_or_default(),
            stage: target.process.stage(),
            paused: exec.is_none() && target.container.is_paused(),
            stdio: target.process.stdio.clone(),
        })
    }

    pub async fn processes(&self, id: &ContainerId) -> Result<Vec<Entry>, SandboxError> {
        self.container(id)?;
        Ok(self.agent().await?.processes(id.as_str()).await?)
    }

    pub async fn stats(&self, id: &ContainerId) -> Result<ContainerStatsReply, SandboxError> {
        self.container(id)?;
        Ok(self.agent().await?.stats(id.as_str()).await?)
    }

    /// The pid of a container for who asks to be connected with it.
    pub fn task_pid(&self, id: &ContainerId) -> Result<u32, SandboxError> {
        self.container(id)?;
        Ok(self.pid().unwrap_or_default())
    }
}
