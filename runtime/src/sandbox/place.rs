//! The sandbox's place among the host's cgroups.

use std::path::PathBuf;

use serde_json::Value;

use super::cgroup::{Cgroup, CgroupError, CgroupLimits};
use super::state::CgroupState;
use super::{Chain, Sandbox};

#[derive(Debug)]
pub(super) struct Place {
    cgroup: Cgroup,
    /// Where this process was before.
    before: Option<PathBuf>,
}

impl Sandbox {
    /// Makes the cgroup and puts the VMM there; this process too, where its cgroup is
    /// where engines look for the container's.
    pub(super) fn enter_cgroup(
        &self,
        spec: &Value,
        limits: &CgroupLimits,
        vmm: u32,
    ) -> Result<(), CgroupError> {
        if !self.setup.config.host_cgroup {
            return match limits.needs_host() {
                Some(file) => Err(CgroupError::SwitchedOff(file)),
                None => Ok(()),
            };
        }
        let path = spec["linux"]["cgroupsPath"].as_str().unwrap_or_default();
        let cgroup = if path.is_empty() || !self.is_the_container() {
            self.setup.cgroup.clone()
        } else {
            self.setup.cgroup.named(path)?
        };
        let before = cgroup.current();
        let place = self.place.get_or_init(|| Place { cgroup, before });
        // Written down before anything is made: what is left can be found.
        self.changed();
        place.cgroup.create(limits)?;
        if self.is_the_container() {
            place.cgroup.add(std::process::id())?;
        }
        place.cgroup.add(vmm)
    }

    /// The sandbox's cgroup, if it has one.
    pub(super) fn cgroup(&self) -> Option<&Cgroup> {
        self.place.get().map(|place| &place.cgroup)
    }

    pub(super) fn cgroup_state(&self) -> Option<CgroupState> {
        let cgroup = self.cgroup().filter(|_| self.is_the_container());
        cgroup.map(Cgroup::state)
    }

    /// Removes the cgroup. This process must have left it before: what is in it is
    /// killed.
    pub(super) fn leave_cgroup(&self) {
        let Some(place) = self.place.get() else {
            return;
        };
        let left = if self.is_the_container() {
            place.cgroup.leave(place.before.as_deref())
        } else {
            Ok(())
        };
        if let Err(err) = left.and_then(|()| place.cgroup.remove()) {
            tracing::error!("{}", Chain(&err));
        }
    }
}
