//! What can be asked of a sandbox: containerd's task requests in the sandbox's
//! own terms.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use lazaret_protocol::agent::ContainerStatsReply;
use lazaret_protocol::agent::list_processes_reply::Entry;
use serde_json::Value;
use ttrpc::Code;

use super::id::{ContainerId, ExecId};
use super::mounts::{RootMount, kind_of};
use super::plan::{ContainerPlan, plan_container};
use super::{CLOSING_GRACE, Chain, Close, Event, Fault, Sandbox, SandboxError};
use crate::agent::{AgentClient, AgentError, ProcessName};
use crate::container::{Container, Exec};
use crate::process::{Exit, Process, Stage};
use crate::stdio::{HostEnds, JsonLog, StdioPaths};

/// Longest `config.json`. Engines write 10 to 100 KiB.
const SPEC_MAX: u64 = 2 * 1024 * 1024;

/// SIGKILL: an agent that does not deliver it is no longer of use.
const SIGKILL: u32 = 9;

/// Exit status of a process whose executable could not be started.
const CANNOT_EXECUTE: u32 = 126;
const NOT_FOUND: u32 = 127;
const OWN_ERROR: u32 = 125;

/// A container to be made.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    pub id: ContainerId,
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
    /// Makes a container up to its process's execve. Returns its pid.
    pub async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<u32, SandboxError> {
        let id = request.id.clone();
        let process = Process::new(request.stdio.clone());
        let container = Arc::new(Container::new(id.clone(), request.bundle.clone(), process));
        match self.containers().entry(id.clone()) {
            std::collections::btree_map::Entry::Occupied(_) => {
                return Err(SandboxError::ContainerExists(id));
            }
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(Arc::clone(&container));
            }
        }
        let made = self.make_container(&container, request).await;
        if let Err(err) = made {
            container.init.stopped(Exit::died(Chain(&err).to_string()));
            self.unmount(&container);
            self.containers().remove(&id);
            self.changed();
            return Err(err);
        }
        self.changed();
        self.publish(Event::Create { container: id });
        Ok(self.pid().unwrap_or_default())
    }

    async fn make_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
        request: CreateRequest,
    ) -> Result<(), SandboxError> {
        let id = &request.id;
        let spec = read_spec(&request.bundle)?;
        let namespace = &self.setup.namespace;
        let plan = plan_container(id, spec, namespace, &request.bundle, kind_of)?;
        let ContainerPlan {
            spec,
            mounts,
            root,
            rootfs,
            terminal,
            annotations,
        } = plan;
        let log = match &annotations.log_path {
            Some(path) => Some(JsonLog::open(path).map_err(|source| SandboxError::Log {
                path: path.clone(),
                source,
            })?),
            None => None,
        };
        let stdio = StdioPaths {
            terminal,
            ..request.stdio
        };
        let ends = HostEnds::open(&stdio, log.as_ref())?;
        // While the guest boots.
        let shared = self.prepared().await?;
        let mounted = shared.mount_container(id, &root, &rootfs, &request.rootfs, &mounts)?;
        *container.mounts() = Some(mounted);
        let spec_json = spec.to_string().into_bytes();

        let agent = self.agent().await?;
        let (streams, stdio) = ends.connect(&self.guest_ports).await?;
        agent
            .create_container(id.as_str(), &request.bundle, spec_json, stdio)
            .await?;
        container.init.created(streams);
        let target = Target {
            container: Arc::clone(container),
            exec: None,
            process: Arc::clone(&container.init),
        };
        let close_at_end = annotations.auto_shutdown;
        tokio::spawn(Arc::clone(self).attend(agent, target, close_at_end));
        Ok(())
    }

    /// Waits for a process's end, and for its output to be delivered.
    async fn attend(self: Arc<Self>, agent: AgentClient, target: Target, close_at_end: bool) {
        let exit = tokio::select! {
            reply = agent.wait_process(target.name()) => match reply {
                Ok(reply) => Exit {
                    status: reply.exit_status.min(255),
                    at: SystemTime::now(),
                    reason: None,
                    oom_killed: reply.oom_killed,
                },
                Err(err) => {
                    self.fail(match err {
                        AgentError::Lost => Fault::AgentLost,
                        err => Fault::Misbehaved(format!(
                            "the agent cannot say how a process ended: {}",
                            Chain(&err)
                        )),
                    });
                    Exit::died(self.ended().await.to_string())
                }
            },
            reason = self.ended() => Exit::died(reason.to_string()),
        };
        if let Some(streams) = target.process.take_streams() {
            tokio::select! {
                () = streams.finish() => {}
                () = self.out_of_time() => tracing::warn!("undelivered output is dropped"),
            }
        }
        let oom_killed = exit.oom_killed;
        if !target.process.stopped(exit.clone()) {
            return;
        }
        self.changed();
        let container = target.container.id.clone();
        if oom_killed {
            self.publish(Event::Oom {
                container: container.clone(),
            });
        }
        self.publish(Event::Exit {
            container,
            exec: target.exec,
            exit,
        });
        if close_at_end {
            self.close(Close::Quit);
        }
    }

    /// Output is waited for as long as its reader likes, until the end of all.
    async fn out_of_time(&self) {
        self.close_asked().await;
        tokio::time::sleep(CLOSING_GRACE / 2).await;
    }

    /// Lets the container's process, or one added to it, run.
    pub async fn start(
        self: &Arc<Self>,
        id: &ContainerId,
        exec: Option<&ExecId>,
    ) -> Result<u32, SandboxError> {
        let agent = self.agent().await?;
        let target = match exec {
            None => self.target(id, None)?,
            Some(exec) => self.make_process(&agent, id, exec).await?,
        };
        target.process.must_be_created()?;
        target.process.starting();
        if let Err(err) = agent.start_process(target.name()).await {
            target.process.stopped(Exit {
                status: status_of_failed_start(&err),
                at: SystemTime::now(),
                reason: Some(err.to_string()),
                oom_killed: false,
            });
            self.changed();
            return Err(err.into());
        }
        target.process.started();
        self.changed();
        let container = id.clone();
        self.publish(match exec {
            None => Event::Start { container },
            Some(exec) => Event::ExecStarted {
                container,
                exec: exec.clone(),
            },
        });
        Ok(self.pid().unwrap_or_default())
    }

    /// Adds a process to a container; it is made when it is started.
    pub fn exec(&self, request: ExecRequest) -> Result<(), SandboxError> {
        let container = self.container(&request.container)?;
        container.init.must_be_alive()?;
        let exec = Arc::new(Exec {
            process: Arc::new(Process::new(request.stdio)),
            spec_json: request.spec_json,
        });
        match container.execs().entry(request.exec.clone()) {
            std::collections::btree_map::Entry::Occupied(_) => {
                return Err(SandboxError::ExecExists {
                    container: request.container,
                    exec: request.exec,
                });
            }
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(exec);
            }
        }
        self.publish(Event::ExecAdded {
            container: request.container,
            exec: request.exec,
        });
        Ok(())
    }

    async fn make_process(
        self: &Arc<Self>,
        agent: &AgentClient,
        id: &ContainerId,
        exec: &ExecId,
    ) -> Result<Target, SandboxError> {
        let target = self.target(id, Some(exec))?;
        let spec_json = {
            let execs = target.container.execs();
            execs.get(exec).map(|exec| exec.spec_json.clone())
        };
        let made = async {
            let ends = HostEnds::open(&target.process.stdio, None)?;
            let (streams, stdio) = ends.connect(&self.guest_ports).await?;
            agent
                .create_process(target.name(), spec_json.unwrap_or_default(), stdio)
                .await?;
            Ok::<_, SandboxError>(streams)
        };
        match made.await {
            Ok(streams) => {
                target.process.created(streams);
                let attended = self.target(id, Some(exec))?;
                tokio::spawn(Arc::clone(self).attend(agent.clone(), attended, false));
                Ok(target)
            }
            Err(err) => {
                let status = match &err {
                    SandboxError::Agent(err) => status_of_failed_start(err),
                    _ => OWN_ERROR,
                };
                target.process.stopped(Exit {
                    status,
                    at: SystemTime::now(),
                    reason: Some(Chain(&err).to_string()),
                    oom_killed: false,
                });
                Err(err)
            }
        }
    }

    pub async fn wait(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
    ) -> Result<Exit, SandboxError> {
        let target = self.target(id, exec)?;
        Ok(target.process.wait().await)
    }

    pub async fn kill(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
        signal: u32,
        all: bool,
    ) -> Result<(), SandboxError> {
        let target = self.target(id, exec)?;
        if target.process.exit().is_some() {
            return Err(SandboxError::AlreadyEnded);
        }
        target.process.must_be_alive()?;
        let agent = self.agent().await?;
        let result = agent.signal(target.name(), signal, all).await;
        if signal == SIGKILL && matches!(result, Err(AgentError::Deadline(_))) {
            let what = "the agent did not kill a process when told to".to_owned();
            self.fail(Fault::Misbehaved(what));
            return Ok(());
        }
        Ok(result?)
    }

    /// Forgets an ended container, or an ended process of one.
    pub async fn delete(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
    ) -> Result<Exit, SandboxError> {
        let target = self.target(id, exec)?;
        let never_made = target.process.stage() == Stage::Creating && exec.is_some();
        let exit = if never_made {
            Exit::died("it was never started".to_owned())
        } else {
            target.process.must_be_stopped()?
        };
        if let Some(agent) = self.agent_now().filter(|_| !never_made) {
            match agent.delete(target.name()).await {
                Ok(())
                | Err(AgentError::Refused {
                    code: Code::NOT_FOUND,
                    ..
                }) => {}
                // What it holds in the guest ends with the guest.
                Err(err) => tracing::warn!("the agent has not forgotten {id}: {}", Chain(&err)),
            }
        }
        if let Some(exec) = exec {
            target.container.execs().remove(exec);
        } else {
            self.unmount(&target.container);
            self.containers().remove(id);
        }
        self.changed();
        self.publish(Event::Delete {
            container: id.clone(),
            exec: exec.cloned(),
        });
        Ok(exit)
    }

    fn unmount(&self, container: &Container) {
        let mounts = container.mounts().take();
        if let (Some(shared), Some(mounts)) = (self.shared.get(), mounts)
            && let Err(err) = shared.unmount_container(mounts)
        {
            tracing::error!("{}", Chain(&err));
        }
    }

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

    pub async fn resize(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
        rows: u32,
        columns: u32,
    ) -> Result<(), SandboxError> {
        let target = self.target(id, exec)?;
        target.process.must_be_alive()?;
        let agent = self.agent().await?;
        Ok(agent.resize(target.name(), rows, columns).await?)
    }

    pub fn close_stdin(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<(), SandboxError> {
        self.target(id, exec)?.process.close_stdin();
        Ok(())
    }

    pub async fn set_paused(&self, id: &ContainerId, pause: bool) -> Result<(), SandboxError> {
        let container = self.container(id)?;
        container.init.must_be_alive()?;
        let agent = self.agent().await?;
        if pause {
            agent.pause(id.as_str()).await?;
        } else {
            agent.resume(id.as_str()).await?;
        }
        container.set_paused(pause);
        self.changed();
        let container = id.clone();
        self.publish(if pause {
            Event::Paused { container }
        } else {
            Event::Resumed { container }
        });
        Ok(())
    }

    pub async fn processes(&self, id: &ContainerId) -> Result<Vec<Entry>, SandboxError> {
        self.container(id)?;
        Ok(self.agent().await?.processes(id.as_str()).await?)
    }

    pub async fn stats(&self, id: &ContainerId) -> Result<ContainerStatsReply, SandboxError> {
        self.container(id)?;
        Ok(self.agent().await?.stats(id.as_str()).await?)
    }

    /// Ends the sandbox unless there are containers left; `now` asks no such
    /// question.
    pub fn shut_down(&self, now: bool) {
        if now || self.containers().is_empty() {
            self.close(Close::Shutdown);
        }
    }

    /// The pid of a container for who asks to be connected with it.
    pub fn task_pid(&self, id: &ContainerId) -> Result<u32, SandboxError> {
        self.container(id)?;
        Ok(self.pid().unwrap_or_default())
    }

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

fn status_of_failed_start(err: &AgentError) -> u32 {
    match err {
        AgentError::Refused { code, .. } if *code == Code::NOT_FOUND => NOT_FOUND,
        AgentError::Refused { code, .. } if *code == Code::PERMISSION_DENIED => CANNOT_EXECUTE,
        _ => OWN_ERROR,
    }
}

/// Reads a bundle's `config.json`.
pub(super) fn read_spec(bundle: &Path) -> Result<Value, SandboxError> {
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
