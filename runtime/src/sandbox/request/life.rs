//! A container's life: made, paused, forgotten.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use ttrpc::Code;

use super::{CreateRequest, Target, read_spec};
use crate::agent::{AgentClient, AgentError};
use crate::container::Container;
use crate::hooks::{HookKind, HookState, hooks_of, run_hooks};
use crate::network::resolv_conf;
use crate::process::{Exit, Process, Stage};
use crate::sandbox::cgroup::CgroupLimits;
use crate::sandbox::disks::DiskError;
use crate::sandbox::id::{ContainerId, ExecId};
use crate::sandbox::mounts::kind_of;
use crate::sandbox::plan::{ContainerPlan, Disk, flags_of, fresh_tmpfs, plan_container};
use crate::sandbox::{Chain, Close, Event, Fault, Sandbox, SandboxError};
use crate::stdio::{HostEnds, JsonLog, StdioPaths};

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
            self.take_disks_back(&id).await;
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
        if let Some(network) = &self.network {
            network.set_resolv_conf(resolv_conf(&spec).map(|path| request.bundle.join(path)));
        }
        if !self.is_sized_for(&request.bundle)
            && let Some(file) = CgroupLimits::of_resources(&spec["linux"]["resources"]).needs_host()
        {
            return Err(SandboxError::LateLimit(file));
        }
        let plan = plan_container(
            id,
            spec,
            namespace,
            &request.bundle,
            kind_of,
            flags_of,
            fresh_tmpfs,
        )?;
        let ContainerPlan {
            spec,
            mounts,
            disks,
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
        if terminal
            && self.is_the_container()
            && let Some(terminal) = self.inherited.terminal(&stdio.stdin)?
        {
            container.set_terminal(terminal);
        }
        let ends = HostEnds::open(&stdio, log.as_ref(), &self.inherited)?;
        // While the guest boots.
        let shared = self.prepared().await?;
        let mounted = shared.mount_container(id, &root, &rootfs, &request.rootfs, &mounts)?;
        *container.mounts() = Some(mounted);
        if self.is_the_container() {
            let root = self.setup.dir.shared().join(rootfs);
            let shown = self.setup.shown_root.show(root).await;
            shown.map_err(SandboxError::ShownRoot)?;
        }
        let name = request.name.as_deref().unwrap_or(id.as_str());
        let mut spec = run_hooks_of_create(name, &request.bundle, spec).await?;

        let agent = self.agent().await?;
        self.give_disks(id, &disks, &mut spec, &agent).await?;
        let spec_json = spec.to_string().into_bytes();
        // The container's settings may be of its interfaces.
        self.update_network(&agent).await?;
        let (streams, stdio) = ends.connect(&self.guest_ports).await?;
        agent
            .create_container(id.as_str(), name, &request.bundle, spec_json, stdio)
            .await?;
        self.take_terminal(&agent, container).await;
        container.init.created(streams);
        container.set_close_at_end(annotations.auto_shutdown || self.is_the_container());
        let target = Target {
            container: Arc::clone(container),
            exec: None,
            process: Arc::clone(&container.init),
        };
        tokio::spawn(Arc::clone(self).attend(agent, target));
        Ok(())
    }

    async fn give_disks(
        &self,
        id: &ContainerId,
        disks: &[Disk],
        spec: &mut Value,
        agent: &AgentClient,
    ) -> Result<(), SandboxError> {
        let Some(vmm) = self.vmm.get() else {
            return Ok(());
        };
        let slots = vmm.block_slots;
        let given = self.disks.give(id, disks, spec, &vmm.handle, slots, agent);
        let given = given.await;
        if let Err(err @ DiskError::Silent { .. }) = &given {
            self.fail(Fault::Misbehaved(err.to_string()));
        }
        Ok(given?)
    }

    /// Whether a bundle's is the container that the microVM was planned for.
    fn is_sized_for(&self, bundle: &Path) -> bool {
        std::fs::canonicalize(bundle).is_ok_and(|bundle| bundle == self.setup.bundle)
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
            self.take_disks_back(id).await;
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

    /// Ends the sandbox unless there are containers left; `now` asks no such
    /// question.
    pub fn shut_down(&self, now: bool) {
        if now || self.containers().is_empty() {
            self.close(Close::Shutdown);
        }
    }
}

/// Hooks of this process's mount and network namespaces. The guest boots on.
async fn run_hooks_of_create(
    name: &str,
    bundle: &Path,
    spec: Value,
) -> Result<Value, SandboxError> {
    if hooks_of(&spec, HookKind::CreateContainer)?.is_empty() {
        return Ok(spec);
    }
    let (name, bundle) = (name.to_owned(), bundle.to_owned());
    let ran = tokio::task::spawn_blocking(move || {
        let state = HookState {
            id: &name,
            status: "creating",
            pid: Some(std::process::id()),
            bundle: &bundle,
            spec: &spec,
        };
        run_hooks(&spec, HookKind::CreateContainer, &state)?;
        Ok(spec)
    });
    ran.await.map_err(SandboxError::Hooks)?
}
