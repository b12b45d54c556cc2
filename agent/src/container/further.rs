//! What a container's spec says of the processes that are added to it.

use oci_spec::runtime::{Linux, LinuxNamespaceType, Process, Spec};

use super::input::Inherited;
use super::security_module::Lsm;
use super::spec;
use super::user_namespace::Mappings;

/// What of the container's spec its further processes are subject to.
#[derive(Debug)]
pub(super) struct ForExecs {
    pub(super) inherited: Inherited,
    pub(super) lsm: Lsm,
    pub(super) users: Option<Mappings>,
    /// The container's own, for what theirs leave out.
    own: Process,
}

impl ForExecs {
    pub(super) fn of(
        spec: &Spec,
        process: &Process,
        linux: &Linux,
        users: Option<Mappings>,
    ) -> Self {
        let mut own = process.clone();
        own.set_args(None).set_env(None);
        Self {
            inherited: Inherited {
                seccomp: linux.seccomp().clone(),
                personality: linux.personality().clone(),
                has_time_namespace: spec::has_namespace(linux, LinuxNamespaceType::Time),
                has_user_namespace: users.is_some(),
            },
            lsm: Lsm::of(spec),
            users,
            own,
        }
    }

    /// Fills in what a process leaves out and runc takes from the container's. User,
    /// environment, working directory and `noNewPrivileges` are its own in any case.
    pub(super) fn complete(&self, mut process: Process) -> Process {
        let own = &self.own;
        if process.capabilities().is_none() {
            process.set_capabilities(own.capabilities().clone());
        }
        if process.rlimits().as_ref().is_none_or(Vec::is_empty) {
            process.set_rlimits(own.rlimits().clone());
        }
        if process.user().umask().is_none() {
            let mut user = process.user().clone();
            user.set_umask(own.user().umask());
            process.set_user(user);
        }
        if process.scheduler().is_none() {
            process.set_scheduler(own.scheduler().clone());
        }
        if process.io_priority().is_none() {
            process.set_io_priority(*own.io_priority());
        }
        if process.oom_score_adj().is_none() {
            process.set_oom_score_adj(own.oom_score_adj());
        }
        if process.exec_cpu_affinity().is_none() {
            process.set_exec_cpu_affinity(own.exec_cpu_affinity().clone());
        }
        process
    }
}
