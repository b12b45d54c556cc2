//! What can be asked of a sandbox: containerd's task requests in the sandbox's
//! own terms.

mod life;
mod process;
mod query;
mod update;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::id::{ContainerId, ExecId};
use super::mounts::RootMount;
use super::{Sandbox, SandboxError};
use crate::agent::ProcessName;
use crate::container::Container;
use crate::process::{Process, Stage};
use crate::stdio::StdioPaths;

/// Longest `config.json`. Engines write 10 to 100 KiB.
const SPEC_MAX: u64 = 2 * 1024 * 1024;

/// A container to be made.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    pub id: ContainerId,
    /// What its engine calls it, if not by the id: hooks are told so.
    pub name: Option<String>,
    pub bundle: PathBuf,
    pub rootfs: Vec<RootMount>,
    pub stdio: StdioPaths,
}

/// A process to be added.
#[derive(Clone, Debug)]
pub struct ExecRequest {
    pub container: ContainerId,
    pub exec: ExecId,
    pub stdio: StdioPaths,
    pub spec_json: Vec<u8>,
}

/// A process as it is reported.
#[derive(Clone, Debug)]
pub struct ProcessState {
    pub bundle: PathBuf,
    pub pid: u32,
    pub stage: Stage,
    pub paused: bool,
    pub stdio: StdioPaths,
}

/// A process of a container, with what is needed to name it to the agent.
#[derive(Clone)]
struct Target {
    container: Arc<Container>,
    exec: Option<ExecId>,
    process: Arc<Process>,
}

impl Target {
    fn name(&self) -> ProcessName<'_> {
        ProcessName {
            container: self.container.id.as_str(),
            exec: self.exec.as_ref().map(ExecId::as_str),
        }
    }
}

impl Sandbox {
    fn container(&self, id: &ContainerId) -> Result<Arc<Container>, SandboxError> {
        let found = self.containers().get(id).cloned();
        found.ok_or_else(|| SandboxError::NoContainer(id.clone()))
    }

    fn target(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<Target, SandboxError> {
        let container = self.container(id)?;
        let process = match exec {
            None => Arc::clone(&container.init),
            Some(exec) => {
                let found = container
                    .execs()
                    .get(exec)
                    .map(|exec| Arc::clone(&exec.process));
                found.ok_or_else(|| SandboxError::NoExec {
                    container: id.clone(),
                    exec: exec.clone(),
                })?
            }
        };
        Ok(Target {
            container,
            exec: exec.cloned(),
            process,
        })
    }
}

/// Reads a bundle's `config.json`.
pub fn read_spec(bundle: &Path) -> Result<Value, SandboxError> {
    let path = bundle.join("config.json");
    let read = || -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        File::open(&path)?
            .take(SPEC_MAX + 1)
            .read_to_end(&mut text)?;
        if text.len() as u64 > SPEC_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(text)
    };
    let text = match read() {
        Ok(text) => text,
        Err(source) => return Err(SandboxError::Spec { path, source }),
    };
    serde_json::from_slice(&text).map_err(|source| SandboxError::SpecJson { path, source })
}
