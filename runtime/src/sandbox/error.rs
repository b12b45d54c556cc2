//! Why a request to a sandbox failed, and how it is told.

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::cgroup::CgroupError;
use super::config::AnnotationError;
use super::disks::DiskError;
use super::id::{ContainerId, ExecId, IdError};
use super::mounts::MountError;
use super::oom_score::OomScoreError;
use super::plan::PlanError;
use super::store::StoreError;
use crate::agent::AgentError;
use crate::config::ConfigError;
use crate::hooks::HookError;
use crate::network::NetworkError;
use crate::process::WrongStage;
use crate::stdio::StdioError;
use crate::vm::VmError;

#[derive(Debug, Error)]
pub enum SandboxError {
    #[error("no container {0} in this sandbox")]
    NoContainer(ContainerId),
    #[error("no process {exec} in container {container}")]
    NoExec {
        container: ContainerId,
        exec: ExecId,
    },
    #[error("container {0} is already there")]
    ContainerExists(ContainerId),
    #[error("process {exec} is already there in container {container}")]
    ExecExists {
        container: ContainerId,
        exec: ExecId,
    },
    #[error("container {0} is paused; resume it first")]
    Paused(ContainerId),
    #[error("process has already ended")]
    AlreadyEnded,
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The microVM has ended, or could not be started.
    #[error("{0}")]
    Ended(String),
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    Stage(#[from] WrongStage),
    #[error("cannot read {}", path.display())]
    Spec { path: PathBuf, source: io::Error },
    #[error("{} is not valid JSON", path.display())]
    SpecJson {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{0} limits all of a microVM: only the container that makes it can set it")]
    LateLimit(&'static str),
    #[error("the limits to be set are not a valid linux.resources")]
    Resources(#[source] serde_json::Error),
    #[error(
        "a memory limit of {asked_mib} MiB is more than the {has_mib} MiB that the microVM has; \
         memory cannot be added to a running one"
    )]
    MemoryAboveVm { asked_mib: u64, has_mib: u32 },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("cannot show the container's root file system in the sandbox's place")]
    ShownRoot(#[source] io::Error),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error("the container's hooks were not run to their end")]
    Hooks(#[source] tokio::task::JoinError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("cannot open the container's log {}", path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Stdio(#[from] StdioError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Why a microVM could not be brought up.
#[derive(Debug, Error)]
pub enum BootError {
    #[error("cannot make the sandbox's own mount namespace; are you root?")]
    Namespace(#[source] io::Error),
    #[error("cannot take over what `start` has prepared")]
    Handover(#[source] io::Error),
    #[error(
        "cannot open {}: no KVM on this host, or no right to use it; `lazaret check` says more",
        path.display()
    )]
    Kvm { path: PathBuf, source: io::Error },
    #[error("cannot open {}; is lazaret installed completely?", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot listen on {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("cannot make the pipes for the VMM's output")]
    Pipe(#[source] io::Error),
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Container(#[from] SandboxError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    OomScore(#[from] OomScoreError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Vm(#[from] VmError),
}

/// An error with all its sources: `a: b: c`.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(err) = source {
            write!(f, ": {err}")?;
            source = err.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_every_cause_once() {
        let err = BootError::Kvm {
            path: "/dev/kvm".into(),
            source: io::Error::other("denied"),
        };
        let text = Chain(&err).to_string();
        assert!(text.starts_with("cannot open /dev/kvm: no KVM"), "{text}");
        assert!(text.ends_with(": denied"), "{text}");
    }
}
