//! The network of a sandbox: whatever an engine puts into the network namespace that
//! the sandbox process lives in, the guest gets, whenever it comes.
//!
//! ```text
//!  engine's bridge ── veth ══ eth0 ◀─ tc ─▶ lz0 (tap) ══ VMM, slot 0 ══ eth0 of the guest
//!                             └──── the sandbox's network namespace ───┘
//! ```
//! [`Network::update`] looks at the namespace, ties each interface to a free slot, and
//! tells the agent what the guest's network is to be. It is asked at the end of create,
//! before start, and with every change that the kernel reports afterwards; it does
//! nothing where nothing has changed.

mod claim;
mod interface;
mod multicast;
mod namespace;
mod resolver;
mod sysctl;
mod tap;
mod tc;
mod tie;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lazaret_netlink::{Changes, Groups, Link, Socket};
use lazaret_protocol::agent::ConfigureNetworkRequest;
use lazaret_vmm::devices::virtio::net::MacAddress;
use rustix::io::Errno;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::agent::{AgentClient, AgentError};
use crate::vm::{BackendError, VmHandle};
pub use claim::Claim;
pub use interface::InterfaceError;
use interface::{Found, Interface};
pub use namespace::{NamespaceError, clear, enter};
use resolver::ResolvConf;
pub use resolver::resolv_conf;
use tie::Tie;
pub use tie::TieError;

/// Network slots of a microVM: more than engines usually give a container, and each
/// costs the guest's boot a probe.
pub const SLOTS: u8 = 4;

/// Name queries and connections of the guest at once; it knows the bound. With a slow
/// server upstream all wait for their deadline, and other names must not.
const QUERIES_MAX: usize = 256;

// Each takes a port to ask from, and another where the server forwards it.
const _: () = assert!(2 * QUERIES_MAX <= (tc::SHARED_PORTS.1 - tc::SHARED_PORTS.0) as usize);

/// From which ports the host's kernel chooses, in its thread's network namespace.
const LOCAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// After an update that failed. It may be a change itself, by a tap that came and
/// went, and so changes are no reason to be quicker.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(60);

/// A VMM answers a request at once.
const VMM_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, Error)]
pub enum NetworkError {
    #[error("cannot open a netlink socket")]
    Socket(#[source] Errno),
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    #[error(transparent)]
    Tie(#[from] TieError),
    #[error("cannot write {LOCAL_PORTS}")]
    Ports(#[source] std::io::Error),
    #[error("no slot is left for interface {0}: a microVM has {SLOTS} of them")]
    NoSlot(String),
    #[error("interface {name} cannot be connected to the microVM")]
    Connect { name: String, source: BackendError },
    #[error("interface {0} cannot be connected: the virtual machine monitor does not answer")]
    Silent(String),
    #[error("the guest's network cannot be configured")]
    Agent(#[from] AgentError),
}

/// What has been done so far.
#[derive(Debug, Default)]
struct State {
    ties: Vec<Tie>,
    told: Option<ConfigureNetworkRequest>,
}

/// The network of one sandbox.
#[derive(Debug)]
pub struct Network {
    state: tokio::sync::Mutex<State>,
    /// Of the container, on the host.
    resolv_conf: Mutex<Option<ResolvConf>>,
    /// Where queries of the guest go.
    server: Mutex<Option<SocketAddr>>,
    queries: Arc<Semaphore>,
    /// Whether changes are to be followed.
    begun: watch::Sender<bool>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            state: tokio::sync::Mutex::default(),
            resolv_conf: Mutex::default(),
            server: Mutex::default(),
            queries: Arc::new(Semaphore::new(QUERIES_MAX)),
            begun: watch::Sender::new(false),
        }
    }
}

impl Network {
    /// To be told before the container runs.
    pub fn set_resolv_conf(&self, path: Option<PathBuf>) {
        let found = path.and_then(|path| {
            let found = ResolvConf::find(&path);
            // Whether it can be mounted is found out elsewhere.
            let log = |err| tracing::debug!(%err, path = %path.display(), "no resolv.conf");
            found.map_err(log).ok()
        });
        *lock(&self.resolv_conf) = found;
    }

    /// Makes the guest's network what the namespace's is now.
    pub async fn update(&self, vm: &VmHandle, agent: &AgentClient) -> Result<(), NetworkError> {
        self.begun.send_replace(true);
        let mut state = self.state.lock().await;
        let mut socket = Socket::open().map_err(NetworkError::Socket)?;
        let mut found = Found::look(&mut socket)?;
        // Before some of them go, which the look does not tell.
        found.taps.retain(|tap| !state.has(tap));
        state.drop_gone(&mut socket, &found, vm).await?;
        let tied = state.tie_new(&mut socket, &found, vm).await;
        let server = self.find_server().await;
        if server.is_some() {
            state.share(&mut socket)?;
        }
        let request = ConfigureNetworkRequest {
            interfaces: state.describe(&found),
            name_server: server.map(octets).unwrap_or_default(),
            ..ConfigureNetworkRequest::default()
        };
        if state.told.as_ref() != Some(&request) {
            // Half told is not told.
            state.told = None;
            agent.configure_network(&request).await?;
            state.told = Some(request);
        }
        tied
    }

    /// Follows the namespace's changes from the first update on.
    pub async fn follow(&self, vm: &VmHandle, agent: &AgentClient) {
        let changes = match Changes::subscribe(Groups::ALL) {
            Ok(changes) => changes,
            Err(err) => {
                tracing::error!(%err, "changes of the network cannot be followed");
                return;
            }
        };
        let mut begun = self.begun.subscribe();
        // The sender lives as long as `self`.
        let _ = begun.wait_for(|begun| *begun).await;
        // Those that come during an update or a pause are kept.
        while changes.wait().await.is_ok() {
            self.update_at_last(vm, agent).await;
        }
    }

    /// Updates until that works, for nobody else may ask for it again.
    async fn update_at_last(&self, vm: &VmHandle, agent: &AgentClient) {
        let mut complained = String::new();
        let mut pause = RETRY_FIRST;
        while let Err(err) = self.update(vm, agent).await {
            let text = crate::sandbox::Chain(&err).to_string();
            if text != complained {
                tracing::warn!("the network's change does not reach the guest: {text}");
            }
            complained = text;
            sleep(pause).await;
            pause = RETRY_LAST.min(pause * 2);
        }
    }

    async fn find_server(&self) -> Option<SocketAddr> {
        let known = *lock(&self.server);
        if known.is_some() {
            // Its end is not waited for: a resolver is there as long as its network.
            return known;
        }
        let named = lock(&self.resolv_conf).as_ref()?.loopback_server();
        let server = named.ok().flatten()?;
        if !resolver::listens(server).await {
            return None;
        }
        *lock(&self.server) = Some(server);
        Some(server)
    }

    /// Takes a connection of the guest to the host's DNS port. More than agreed on are
    /// closed.
    pub fn serve_names(&self, guest: UnixStream) {
        let server = *lock(&self.server);
        let permit = Arc::clone(&self.queries).try_acquire_owned();
        if let (Some(server), Ok(permit)) = (server, permit) {
            tokio::spawn(async move {
                resolver::serve(guest, server).await;
                drop(permit);
            });
        }
    }

    /// Gives the interfaces back to the namespace, which may outlive the sandbox.
    pub async fn release(&self) {
        let mut state = self.state.lock().await;
        let released = Socket::open().and_then(|mut socket| {
            let mut ties = state.ties.drain(..);
            ties.try_for_each(|tie| tie.release(&mut socket))
        });
        if let Err(err) = released {
            tracing::warn!(%err, "an interface could not be given back");
        }
    }
}

impl State {
    /// Lets go of interfaces that are no longer there, or down.
    async fn drop_gone(
        &mut self,
        socket: &mut Socket,
        found: &Found,
        vm: &VmHandle,
    ) -> Result<(), NetworkError> {
        let is_gone = |tie: &Tie| !found.interfaces.iter().any(|i| i.index == tie.index);
        while let Some(at) = self.ties.iter().position(is_gone) {
            let tie = self.ties.swap_remove(at);
            let (name, slot) = (tie.name.clone(), tie.slot);
            tracing::info!(name, slot, "interface has gone");
            // It may be there still, and be used by others.
            let released = tie.release(socket);
            answer(&name, vm.disconnect_net(slot)).await?;
            released.map_err(|source| TieError::Release { name, source })?;
        }
        Ok(())
    }

    fn has(&self, tap: &Link) -> bool {
        self.ties.iter().any(|tie| tie.tap == tap.index)
    }

    /// Ties those that have come. `found` names only others' taps.
    async fn tie_new(
        &mut self,
        socket: &mut Socket,
        found: &Found,
        vm: &VmHandle,
    ) -> Result<(), NetworkError> {
        for interface in &found.interfaces {
            let known = self.ties.iter_mut().find(|t| t.index == interface.index);
            if let Some(tie) = known {
                tie.follow(socket, interface)?;
                continue;
            }
            let name = interface.name.clone();
            let slot = self.free_slot().ok_or(NetworkError::NoSlot(name.clone()))?;
            if let Some(tap) = found.taps.first() {
                let tap = tap.name.clone();
                return Err(TieError::Elsewhere { name, tap }.into());
            }
            let (tie, tap) = Tie::make(socket, interface, slot)?;
            tracing::info!(name, slot, "interface is there");
            // Known before the VMM has answered, which may be too late: it is to be
            // released with the others.
            self.ties.push(tie);
            if let Err(err) = answer(&name, vm.connect_net(slot, tap)).await {
                if let Some(tie) = self.ties.pop() {
                    // What failed first is what counts.
                    let _ = tie.release(socket);
                }
                return Err(err);
            }
        }
        Ok(())
    }

    /// Lets the engine's resolver ask further name servers. Its questions leave by the
    /// namespace's interfaces, from ports that no guest uses.
    fn share(&mut self, socket: &mut Socket) -> Result<(), NetworkError> {
        let (first, last) = tc::SHARED_PORTS;
        std::fs::write(LOCAL_PORTS, format!("{first} {last}")).map_err(NetworkError::Ports)?;
        for tie in &mut self.ties {
            tie.share(socket)?;
        }
        Ok(())
    }

    fn free_slot(&self) -> Option<u8> {
        (0..SLOTS).find(|slot| !self.ties.iter().any(|tie| tie.slot == *slot))
    }

    fn describe(&self, found: &Found) -> Vec<lazaret_protocol::agent::Interface> {
        let slot = |interface: &&Interface| {
            let tie = self.ties.iter().find(|tie| tie.index == interface.index);
            tie.map(|tie| tie.slot)
        };
        found
            .interfaces
            .iter()
            .filter_map(|interface| Some((interface, slot(&interface)?)))
            .map(|(interface, slot)| interface.describe(MacAddress::of_slot(slot).0))
            .collect()
    }
}

async fn answer(
    name: &str,
    request: impl Future<Output = Result<(), BackendError>>,
) -> Result<(), NetworkError> {
    let name = name.to_owned();
    match timeout(VMM_DEADLINE, request).await {
        Ok(answer) => answer.map_err(|source| NetworkError::Connect { name, source }),
        Err(_) => Err(NetworkError::Silent(name)),
    }
}

fn octets(server: SocketAddr) -> Vec<u8> {
    match server.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UdpSocket;

    use super::*;

    async fn ask(network: &Network, name: &[u8; 5]) -> UnixStream {
        let (mut guest, host) = UnixStream::pair().unwrap();
        network.serve_names(host);
        // An error means that it is not served.
        let _ = guest.write_all(&[b"u\0\x05", &name[..]].concat()).await;
        guest
    }

    #[tokio::test]
    async fn slow_names_leave_room_for_fast_ones() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let network = Network::default();
        *lock(&network.server) = Some(socket.local_addr().unwrap());
        tokio::spawn(async move {
            let mut name = [0; 5];
            while let Ok((_, client)) = socket.recv_from(&mut name).await {
                if name == *b"fast." {
                    socket.send_to(&name, client).await.unwrap();
                }
            }
        });
        let mut slow = Vec::new();
        for _ in 0..40 {
            slow.push(ask(&network, b"slow.").await);
        }
        let mut fast = ask(&network, b"fast.").await;
        let mut answer = Vec::new();
        fast.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"\0\x05fast.");
    }

    #[tokio::test]
    async fn guests_that_give_up_free_their_places() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let network = Network::default();
        *lock(&network.server) = Some(silent.local_addr().unwrap());
        for _ in 0..=2 * QUERIES_MAX {
            let guest = ask(&network, b"slow.").await;
            let mut name = [0; 5];
            // Who has no place is not heard.
            let heard = timeout(Duration::from_secs(60), silent.recv(&mut name)).await;
            heard.unwrap().unwrap();
            drop(guest);
        }
    }
}
