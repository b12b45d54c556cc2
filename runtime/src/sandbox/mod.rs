//! The sandbox: one microVM, its containers, and everything on the host that
//! belongs to them.
//!
//! ```text
//! Preparing ──▶ Booting ──▶ Ready ──▶ Ended
//!     └────────────┴──────────────────▲
//! ```
//! [`Sandbox::run`] (in `life.rs`) takes the microVM through these phases, and
//! is the only place that ends it; requests (in `request/`) wait for the phase
//! they need. A request's work goes on when its client has gone.

pub mod cgroup;
pub mod config;
mod disks;
mod error;
mod event;
pub mod id;
mod life;
mod log;
mod mount_tree;
pub mod mounts;
mod oom_score;
mod place;
pub mod plan;
mod request;
pub mod shown_root;
pub mod state;
pub mod store;
mod terminal;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

pub use error::{BootError, Chain, SandboxError};
pub use event::{Event, EventSink};
pub use log::SandboxLog;
pub use request::{CreateRequest, ExecRequest, ProcessState, read_spec};

use crate::agent::{AgentClient, AgentError, GuestPorts};
use crate::config::Config;
use crate::container::Container;
use crate::network::Network;
use crate::stdio::Inherited;
use crate::vm::VmHandle;
use cgroup::Cgroup;
use config::OCI_NAMESPACE;
use disks::DiskSlots;
use id::{ContainerId, SandboxId};
use mounts::SharedDir;
use place::Place;
use shown_root::ShownRoot;
use state::SandboxState;
use store::SandboxDir;

/// Where the microVM is in its life.
#[derive(Clone, Debug)]
enum Phase {
    /// Nothing is there to mount into yet.
    Preparing,
    /// The VMM runs.
    Booting,
    /// The agent answers.
    Ready(AgentClient),
    /// Nothing of the microVM is left; the text says why.
    Ended(Arc<str>),
}

/// A request to end the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// Its engine is done with it: leave nothing.
    Shutdown,
    /// Nobody asked for the results yet: leave the state of its containers.
    Quit,
}

/// How a sandbox has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub close: Close,
    /// In namespace `oci` the container's exit status.
    pub exit_code: u8,
}

/// What a guest did for which its microVM must end.
#[derive(Clone, Debug)]
enum Fault {
    /// May be the first sign of the microVM's own end.
    AgentLost,
    Misbehaved(String),
}

/// What is known of the VMM once it runs.
#[derive(Debug)]
struct VmmFacts {
    pid: u32,
    handle: VmHandle,
    start_time: Option<u64>,
    vcpus: u8,
    memory_mib: u32,
    block_slots: u8,
    /// When its process was about to be started.
    begun: Instant,
}

/// What the sandbox process was started with.
#[derive(Debug)]
pub struct Setup {
    pub id: SandboxId,
    pub namespace: String,
    /// Of the container that makes the sandbox.
    pub bundle: std::path::PathBuf,
    pub config: Config,
    pub dir: SandboxDir,
    pub cgroup: Cgroup,
    pub log: Arc<SandboxLog>,
    pub shown_root: ShownRoot,
}

pub struct Sandbox {
    setup: Setup,
    events: EventSink,
    guest_ports: GuestPorts,
    /// Descriptors that requests will name.
    inherited: Inherited,
    phase: watch::Sender<Phase>,
    shared: OnceLock<SharedDir>,
    vmm: OnceLock<VmmFacts>,
    place: OnceLock<Place>,
    /// Where containers have one.
    network: Option<Network>,
    disks: DiskSlots,
    containers: Mutex<BTreeMap<ContainerId, Arc<Container>>>,
    close: watch::Sender<Option<Close>>,
    /// Why the microVM must end, where it is not its own doing.
    fault: watch::Sender<Option<Fault>>,
    /// Ticks with each change of a container.
    changes: watch::Sender<u64>,
    clients: watch::Sender<usize>,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox")
            .field("id", &self.setup.id)
            .finish_non_exhaustive()
    }
}

/// A connected client; its drop is its disconnection.
#[derive(Debug)]
pub struct Client {
    sandbox: Arc<Sandbox>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.sandbox.clients.send_modify(|count| *count -= 1);
    }
}

impl Sandbox {
    pub fn new(setup: Setup, events: EventSink) -> Arc<Self> {
        Arc::new(Self {
            guest_ports: GuestPorts::new(setup.dir.vsock_socket()),
            network: plan::has_network(&setup.namespace).then(Network::default),
            setup,
            events,
            inherited: Inherited::default(),
            phase: watch::Sender::new(Phase::Preparing),
            shared: OnceLock::new(),
            vmm: OnceLock::new(),
            place: OnceLock::new(),
            disks: DiskSlots::default(),
            containers: Mutex::default(),
            close: watch::Sender::new(None),
            fault: watch::Sender::new(None),
            changes: watch::Sender::new(0),
            clients: watch::Sender::new(0),
        })
    }

    /// Where descriptors are handed over.
    pub fn inherited(&self) -> &Inherited {
        &self.inherited
    }

    pub fn id(&self) -> &SandboxId {
        &self.setup.id
    }

    pub fn namespace(&self) -> &str {
        &self.setup.namespace
    }

    /// Counts a client in.
    pub fn client(self: &Arc<Self>) -> Client {
        self.clients.send_modify(|count| *count += 1);
        Client {
            sandbox: Arc::clone(self),
        }
    }

    /// Answers when no client is connected.
    pub async fn deserted(&self) {
        // The sender lives as long as `self`.
        let _ = self.clients.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Asks the sandbox to end. The first to ask says how.
    pub fn close(&self, close: Close) {
        self.close.send_if_modified(|asked| {
            let first = asked.is_none();
            if first {
                *asked = Some(close);
            }
            first
        });
    }

    async fn close_asked(&self) -> Close {
        let mut asked = self.close.subscribe();
        loop {
            if let Some(close) = *asked.borrow_and_update() {
                return close;
            }
            // The sender lives as long as `self`.
            let _ = asked.changed().await;
        }
    }

    /// Ends the microVM because of something it did.
    fn fail(&self, what: Fault) {
        self.fault.send_if_modified(|fault| {
            let first = fault.is_none();
            if first {
                *fault = Some(what);
            }
            first
        });
    }

    /// Without its agent a microVM is of no use, and ends. Returns why.
    pub async fn lost_agent(&self, how: &AgentError) -> SandboxError {
        self.fail(match how {
            AgentError::Lost => Fault::AgentLost,
            how => Fault::Misbehaved(how.to_string()),
        });
        SandboxError::Ended(self.ended().await.to_string())
    }

    async fn failed(&self) -> Fault {
        let mut fault = self.fault.subscribe();
        loop {
            if let Some(what) = &*fault.borrow_and_update() {
                return what.clone();
            }
            let _ = fault.changed().await;
        }
    }

    fn containers(&self) -> MutexGuard<'_, BTreeMap<ContainerId, Arc<Container>>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to mount into.
    async fn prepared(&self) -> Result<&SharedDir, SandboxError> {
        let mut phase = self.phase.subscribe();
        loop {
            match &*phase.borrow_and_update() {
                Phase::Preparing => {}
                Phase::Ended(reason) => return Err(SandboxError::Ended(reason.to_string())),
                Phase::Booting | Phase::Ready(_) => {
                    let shared = self.shared.get();
                    return shared.ok_or_else(|| SandboxError::Ended("not prepared".to_owned()));
                }
            }
            let _ = phase.changed().await;
        }
    }

    /// Waits for the agent.
    async fn agent(&self) -> Result<AgentClient, SandboxError> {
        let mut phase = self.phase.subscribe();
        loop {
            match &*phase.borrow_and_update() {
                Phase::Preparing | Phase::Booting => {}
                Phase::Ready(agent) => return Ok(agent.clone()),
                Phase::Ended(reason) => return Err(SandboxError::Ended(reason.to_string())),
            }
            let _ = phase.changed().await;
        }
    }

    /// The agent if it is there now.
    fn agent_now(&self) -> Option<AgentClient> {
        match &*self.phase.borrow() {
            Phase::Ready(agent) => Some(agent.clone()),
            _ => None,
        }
    }

    /// Answers why, once nothing of the microVM is left.
    async fn ended(&self) -> Arc<str> {
        let mut phase = self.phase.subscribe();
        loop {
            if let Phase::Ended(reason) = &*phase.borrow_and_update() {
                return Arc::clone(reason);
            }
            let _ = phase.changed().await;
        }
    }

    /// Makes the guest's network what the host's is now.
    async fn update_network(&self, agent: &AgentClient) -> Result<(), SandboxError> {
        if let (Some(network), Some(vmm)) = (&self.network, self.vmm.get()) {
            network.update(&vmm.handle, agent).await?;
        }
        Ok(())
    }

    /// Takes back the disks of a container that is gone or was never made.
    async fn take_disks_back(&self, container: &ContainerId) {
        if let Some(vmm) = self.vmm.get() {
            self.disks.take_back(container, &vmm.handle).await;
        }
    }

    /// The number under which the host knows all processes of the guest: of the
    /// VMM, or of this process where it ends as its container does.
    fn pid(&self) -> Option<u32> {
        if self.is_the_container() {
            return Some(std::process::id());
        }
        self.vmm.get().map(|vmm| vmm.pid)
    }

    /// Whether this process stands for the sandbox's one container: its end is the
    /// container's, its exit status too, and signals to it are for the container.
    fn is_the_container(&self) -> bool {
        self.setup.namespace == OCI_NAMESPACE
    }

    /// Notes a change: writes the state down, and wakes who waits for changes.
    fn changed(&self) {
        let path = self.setup.dir.state();
        if let Err(err) = self.state().write(&path) {
            tracing::error!("cannot write {}: {err}", path.display());
        }
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn state(&self) -> SandboxState {
        let pid = std::process::id();
        let ended = matches!(*self.phase.borrow(), Phase::Ended(_));
        let vmm = self.vmm.get().filter(|_| !ended);
        SandboxState {
            pid,
            start_time: state::process_start_time(pid).unwrap_or_default(),
            namespace: self.setup.namespace.clone(),
            vmm_pid: vmm.map(|vmm| vmm.pid),
            vmm_start_time: vmm.and_then(|vmm| vmm.start_time),
            cgroup: self.cgroup_state(),
            containers: self
                .containers()
                .iter()
                .map(|(id, container)| (id.to_string(), container.state(self.pid())))
                .collect(),
        }
    }

    fn publish(&self, event: Event) {
        (self.events)(event);
    }
}

/// How long output may take to be delivered once its sandbox ends.
const CLOSING_GRACE: Duration = Duration::from_secs(5);
