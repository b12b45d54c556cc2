//! The sandbox as the agent sees it: the containers by their ids and what they share.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lazaret_protocol::agent::{CreateContainerRequest, Stdio as StdioRequest};
use lazaret_protocol::{GUEST_SHARED_DIR, SHARED_TAG};
use oci_spec::runtime::Spec;
use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::container::{
    CGROUP_PARENT, Container, ContainerId, Process, Request, Reserved, Workshop, attach, exists,
    new_file_system, parse_spec,
};
use crate::failure::{Code, Failure, OrFail, Result};
use crate::reaper::Reaper;
use crate::stdio::Connections;
use crate::streams::Streams;
use crate::{cgroup, guest};

/// Where the agent finds itself and the kernel's interfaces.
#[derive(Clone, Debug)]
pub struct Config {
    /// The agent's program, executed again for each container.
    pub program: PathBuf,
    /// Mount of the version 2 cgroup hierarchy.
    pub cgroup_mount: PathBuf,
}

#[derive(Debug)]
pub struct Sandbox {
    workshop: Arc<Workshop>,
    streams: Arc<Streams>,
    containers: Mutex<HashMap<String, Option<Arc<Container>>>>,
    prepared: Mutex<Prepared>,
}

/// What the first container that needs it has had done: the agent greets the host
/// sooner without.
#[derive(Debug, Default)]
struct Prepared {
    cgroups: bool,
    shared: bool,
}

impl Sandbox {
    /// From here on all children of this process are collected. Needs a runtime.
    pub fn new(config: &Config, streams: Arc<Streams>) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let program = openat(CWD, &config.program, flags, Mode::empty())
            .or_fail(|| format!("open {}", config.program.display()))?;
        let workshop = Workshop {
            program,
            reaper: Reaper::start()?,
            cgroup_mount: config.cgroup_mount.clone(),
        };
        Ok(Self {
            workshop: Arc::new(workshop),
            streams,
            containers: Mutex::default(),
            prepared: Mutex::default(),
        })
    }

    /// Makes a container; answers with its process id.
    pub(crate) async fn create_container(&self, request: &CreateContainerRequest) -> Result<u32> {
        let id = ContainerId::new(&request.container_id)?;
        let reserved = Reserved::new(&self.containers, id.as_str())
            .ok_or_else(|| exists(format!("container {id}")))?;
        let connections = Connections::take(&self.streams, &request.stdio).await?;
        let (spec, spec_json) = parse_spec(&request.spec_json)?;
        self.prepare(uses_shared_directory(&spec))?;
        let workshop = Arc::clone(&self.workshop);
        let request = Request {
            spec: &spec,
            spec_json: &spec_json,
            name: match request.name.as_str() {
                "" => id.as_str(),
                name => name,
            },
            bundle: &request.bundle,
        };
        let container = Container::create(workshop, id.clone(), request, connections).await?;
        let pid = container.process("")?.pid();
        tracing::info!(
            container = container.id().as_str(),
            pid,
            "container created"
        );
        reserved.fill(Arc::new(container));
        Ok(pid)
    }

    pub(crate) async fn create_process(
        &self,
        id: &str,
        exec_id: &str,
        process_json: &[u8],
        stdio: &StdioRequest,
    ) -> Result<u32> {
        let container = self.container(id)?;
        let connections = Connections::take(&self.streams, stdio).await?;
        let process = container
            .create_process(exec_id, process_json, connections)
            .await?;
        Ok(process.pid())
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        let containers = self.containers.lock();
        let container = containers.get(id).and_then(Option::as_ref);
        container
            .map(Arc::clone)
            .ok_or_else(|| Failure::new(Code::NotFound, format!("no container {id:?}")))
    }

    pub(crate) fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>> {
        self.container(id)?.process(exec_id)
    }

    pub(crate) async fn delete(&self, id: &str, exec_id: &str) -> Result<()> {
        let container = self.container(id)?;
        if !exec_id.is_empty() {
            return container.forget(exec_id);
        }
        container.delete().await?;
        self.containers.lock().remove(id);
        Ok(())
    }

    /// Ends every container, as far as that can be done: the guest ends next.
    pub(crate) async fn end(&self) {
        let containers: Vec<_> = self.containers.lock().values().flatten().cloned().collect();
        for container in containers {
            if let Err(failure) = container.delete().await {
                tracing::warn!(%failure, "a container did not end");
            }
        }
    }

    fn prepare(&self, needs_shared: bool) -> Result<()> {
        let mut prepared = self.prepared.lock();
        if !prepared.cgroups {
            let mount = &self.workshop.cgroup_mount;
            cgroup::enable_controllers(mount)?;
            cgroup::make_parent(&mount.join(CGROUP_PARENT))?;
            prepared.cgroups = true;
        }
        if needs_shared && !prepared.shared {
            mount_shared()?;
            prepared.shared = true;
        }
        Ok(())
    }
}

/// Mounts the host's shared directory.
fn mount_shared() -> Result<()> {
    let doing = || format!("mount the shared directory on {GUEST_SHARED_DIR}");
    std::fs::create_dir_all(GUEST_SHARED_DIR).or_fail(doing)?;
    let made = new_file_system("virtiofs", Path::new(SHARED_TAG), &[])
        .map_err(|text| Failure::internal(format!("{}: {text}", doing())))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = openat(CWD, GUEST_SHARED_DIR, flags, Mode::empty()).or_fail(doing)?;
    attach(made.as_fd(), place.as_fd()).or_fail(doing)
}

/// Tells the guest who and when it is.
pub(crate) fn set_up(
    hostname: &str,
    wall_clock_ns: u64,
    entropy: &[u8],
    online_cpus: u32,
) -> Result<()> {
    if !entropy.is_empty() {
        guest::add_entropy(entropy)?;
    }
    if wall_clock_ns != 0 {
        guest::set_clock(wall_clock_ns)?;
    }
    if !hostname.is_empty() {
        guest::set_hostname(hostname)?;
    }
    guest::set_online_cpus(online_cpus)
}

pub(crate) fn kernel_release() -> String {
    guest::kernel_release()
}

fn uses_shared_directory(spec: &Spec) -> bool {
    let root = spec.root().as_ref().map(|root| root.path().as_path());
    let sources = spec.mounts().iter().flatten();
    let sources = sources.filter_map(|mount| mount.source().as_deref());
    root.into_iter()
        .chain(sources)
        .any(|path| path.starts_with(GUEST_SHARED_DIR))
}
