//! Limits of a container that is made or runs.

use serde_json::Value;

use crate::sandbox::cgroup::{CgroupError, CgroupLimits, remove_host_limits};
use crate::sandbox::config::HostFacts;
use crate::sandbox::id::ContainerId;
use crate::sandbox::{Sandbox, SandboxError};

const MIB: u64 = 1024 * 1024;

impl Sandbox {
    /// Changes what `linux.resources` names, in the guest and outside.
    pub async fn update(&self, id: &ContainerId, resources: &[u8]) -> Result<(), SandboxError> {
        let container = self.container(id)?;
        container.init.must_be_alive()?;
        let resources: Value =
            serde_json::from_slice(resources).map_err(SandboxError::Resources)?;
        self.check_memory(&resources)?;
        let limits = CgroupLimits::of_resources(&resources);
        let cgroup = self.cgroup();
        if let (None, Some(file)) = (cgroup, limits.needs_host()) {
            return Err(CgroupError::SwitchedOff(file).into());
        }
        let agent = self.agent().await?;
        agent
            .update(
                id.as_str(),
                of_the_guest(resources).to_string().into_bytes(),
            )
            .await?;
        if let Some(cgroup) = cgroup {
            cgroup.update(&limits)?;
        }
        Ok(())
    }

    /// A microVM keeps the memory that it was started with, which is never more than the
    /// host has.
    fn check_memory(&self, resources: &Value) -> Result<(), SandboxError> {
        let limit = resources["memory"]["limit"].as_u64().unwrap_or_default();
        let all = HostFacts::read().map_or(u32::MAX, |host| host.memory_mib);
        match self.vmm.get() {
            Some(vmm) if limit > u64::from(vmm.memory_mib) * MIB && vmm.memory_mib < all => {
                Err(SandboxError::MemoryAboveVm {
                    asked_mib: limit.div_ceil(MIB),
                    has_mib: vmm.memory_mib,
                })
            }
            _ => Ok(()),
        }
    }
}

/// Engines repeat the devices of create, with the host's numbers; runc passes over them too.
fn of_the_guest(mut resources: Value) -> Value {
    remove_host_limits(&mut resources);
    if let Some(resources) = resources.as_object_mut() {
        resources.remove("devices");
    }
    resources
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn devices_stay_as_they_are() {
        let all = json!({
            "devices": [{ "allow": false, "access": "rwm" }],
            "cpu": { "shares": 2, "cpus": "0" },
            "memory": { "limit": 1 },
        });
        let left = json!({ "cpu": { "shares": 2 }, "memory": { "limit": 1 } });
        assert_eq!(of_the_guest(all), left);
    }
}
