//! Limits of a container that is made or runs.

use serde_json::Value;

use crate::sandbox::cgroup::{CgroupError, CgroupLimits, remove_host_limits};
use crate::sandbox::id::ContainerId;
use crate::sandbox::{Sandbox, SandboxError};

const MIB: u64 = 1024 * 1024;

impl Sandbox {
    /// Changes what `linux.resources` names, in the guest and outside.
    pub async fn update(&self, id: &ContainerId, resources: &[u8]) -> Result<(), SandboxError> {
        let container = self.container(id)?;
        container.init.must_be_alive()?;
        let mut resources: Value =
            serde_json::from_slice(resources).map_err(SandboxError::Resources)?;
        self.check_memory(&resources)?;
        let limits = CgroupLimits::of_resources(&resources);
        let cgroup = self.cgroup();
        if let (None, Some(file)) = (cgroup, limits.needs_host()) {
            return Err(CgroupError::SwitchedOff(file).into());
        }
        remove_host_limits(&mut resources);
        let agent = self.agent().await?;
        agent
            .update(id.as_str(), resources.to_string().into_bytes())
            .await?;
        if let Some(cgroup) = cgroup {
            cgroup.update(&limits)?;
        }
        Ok(())
    }

    /// A microVM keeps the memory that it was started with.
    fn check_memory(&self, resources: &Value) -> Result<(), SandboxError> {
        let limit = resources["memory"]["limit"].as_u64().unwrap_or_default();
        match self.vmm.get() {
            Some(vmm) if limit > u64::from(vmm.memory_mib) * MIB => {
                Err(SandboxError::MemoryAboveVm {
                    asked_mib: limit.div_ceil(MIB),
                    has_mib: vmm.memory_mib,
                })
            }
            _ => Ok(()),
        }
    }
}
