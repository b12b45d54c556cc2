//! In namespace `oci` whoever waits for a process that was added to a container
//! stands for it on the host: its process id is the one that engines know. It can
//! pass on each signal but the one that kills it, so that its death means that.

use std::sync::Arc;

use crate::sandbox::config::OCI_NAMESPACE;
use crate::sandbox::id::{ContainerId, ExecId};
use crate::sandbox::{Chain, Sandbox};

const SIGKILL: u32 = 9;

/// A process that somebody stands for, until this is told that it has ended.
pub(super) struct Standing {
    sandbox: Arc<Sandbox>,
    process: Option<(ContainerId, ExecId)>,
}

impl Standing {
    pub(super) fn new(sandbox: &Arc<Sandbox>, id: &ContainerId, exec: Option<&ExecId>) -> Self {
        let exec = exec.filter(|_| sandbox.namespace() == OCI_NAMESPACE);
        Self {
            sandbox: Arc::clone(sandbox),
            process: exec.map(|exec| (id.clone(), exec.clone())),
        }
    }

    pub(super) fn ended(mut self) {
        self.process = None;
    }
}

/// ttrpc drops a request's handler when its client goes.
impl Drop for Standing {
    fn drop(&mut self) {
        let Some((id, exec)) = self.process.take() else {
            return;
        };
        let sandbox = Arc::clone(&self.sandbox);
        tokio::spawn(async move {
            tracing::info!("what stood for process {exec} is gone");
            // One that has just ended cannot be killed.
            if let Err(err) = sandbox.kill(&id, Some(&exec), SIGKILL, false).await {
                tracing::debug!("{}", Chain(&err));
            }
        });
    }
}
