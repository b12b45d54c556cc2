//! The life of a sandbox's microVM, from its start to nothing left.

use std::convert::Infallible;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lazaret_protocol::ports;
use lazaret_vmm::config::VmFds;
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::cgroup::{Cgroup, CgroupLimits};
use super::config::{Defaults, HostFacts, OWN_NAMESPACE};
use super::id::SandboxId;
use super::mounts::SharedDir;
use super::oom_score::set_oom_score;
use super::plan::{VmPlan, plan_vm};
use super::request::read_spec;
use super::state::{ContainerStatus, DIED_STATUS, process_start_time};
use super::{
    BootError, CLOSING_GRACE, Chain, Close, Ended, Fault, Phase, Sandbox, VmmFacts, store,
};
use crate::agent::{self, AgentClient};
use crate::process::Stage;
use crate::vm::{self, GuestConnection, Vm, VmHandle, VmmOutput};

const KVM: &str = "/dev/kvm";

/// How long a guest may take to power itself off.
const POWER_OFF_DEADLINE: Duration = Duration::from_secs(10);

/// How long a VMM may take to stop when told to.
const STOP_DEADLINE: Duration = Duration::from_secs(3);

/// The agent's end and its machine's are one event seen in two places.
const CAUSE_DEADLINE: Duration = Duration::from_secs(2);

/// A sandbox of the `lazaret` command that nobody has asked anything ends.
const FIRST_CLIENT_DEADLINE: Duration = Duration::from_secs(10);

/// Longest name that sethostname(2) takes; ids may be longer.
const HOSTNAME_MAX: usize = 64;

/// Connections of one guest's log at a time.
const LOG_CONNECTIONS_MAX: usize = 2;

/// Why a running microVM comes to its end.
enum Cause {
    Vm(vm::VmEnd),
    AgentGone,
    Agent(String),
    Closed,
}

impl Sandbox {
    /// Lives the sandbox's life. Returns once it is over and only what is to be
    /// kept is left.
    pub async fn run(self: Arc<Self>) -> Ended {
        let watch = tokio::spawn(Arc::clone(&self).close_when_left());
        let reason = match self.start_vm().await {
            Ok(vm) => self.watch(vm).await,
            Err(err) => Chain(&err).to_string(),
        };
        self.end(&reason).await;
        let close = self.close_asked().await;
        watch.abort();
        let close = match close {
            Close::Quit if self.containers().is_empty() => Close::Shutdown,
            close => close,
        };
        if close == Close::Shutdown
            && let Err(err) = store::remove_dir(&self.setup.dir)
        {
            tracing::error!("{}", Chain(&err));
        }
        Ended {
            close,
            exit_code: self.exit_code(),
        }
    }

    fn exit_code(&self) -> u8 {
        if !self.is_the_container() {
            return 0;
        }
        let exit = self.containers().values().next().map(|it| it.init.exit());
        let status = match exit {
            Some(exit) => exit.map_or(DIED_STATUS, |exit| exit.status),
            // Deleted with its result told, or never there.
            None => 0,
        };
        u8::try_from(status).unwrap_or(u8::MAX)
    }

    async fn start_vm(&self) -> Result<Vm, BootError> {
        let setup = &self.setup;
        let config = &setup.config;
        let spec = read_spec(&setup.bundle)?;
        let defaults = Defaults {
            vcpus: config.vcpus,
            memory_mib: config.memory_mib,
        };
        let VmPlan { vm, cgroup } = plan_vm(&spec, &setup.namespace, defaults, HostFacts::read()?)?;

        let (console, console_writer) = log_pipe()?;
        let (output, output_writer) = log_pipe()?;
        let begun = Instant::now();
        let stdout = output_writer.try_clone().map_err(BootError::Pipe)?;
        let spawned = vm::spawn(
            &config.vmm,
            VmmOutput {
                stdout,
                stderr: output_writer,
            },
        );
        // The VMM's process comes up while its descriptors are opened.
        let (spawned, fds) = tokio::join!(spawned, async { self.open_fds(console_writer) });
        let (spawned, fds) = match (spawned, fds) {
            (Ok(spawned), Ok(fds)) => (spawned, fds),
            (Ok(spawned), Err(err)) => {
                spawned.abandon().await;
                return Err(err);
            }
            (Err(err), _) => return Err(err.into()),
        };
        if let Err(err) = self.place(&spec, &cgroup, spawned.pid) {
            spawned.abandon().await;
            return Err(err);
        }
        drop::<Value>(spec);
        let pid = spawned.pid;
        let booted = spawned.boot(&vm, &fds)?;
        let log = &setup.log;
        tokio::spawn(Arc::clone(log).copy_lines("vmm", output));
        tokio::spawn(Arc::clone(log).copy_lines("console", console));
        // Set once, by this function alone.
        let _ = self.vmm.set(VmmFacts {
            pid,
            handle: booted.handle.clone(),
            start_time: process_start_time(pid),
            vcpus: vm.vcpus,
            memory_mib: vm.memory_mib,
            block_slots: vm.block_slots,
            begun,
        });
        self.phase.send_replace(Phase::Booting);
        self.changed();
        tracing::info!(
            pid,
            vcpus = vm.vcpus,
            memory_mib = vm.memory_mib,
            "microVM starts"
        );
        Ok(booted)
    }

    /// Puts the processes of the sandbox where the spec wants them among the host's.
    fn place(&self, spec: &Value, limits: &CgroupLimits, vmm: u32) -> Result<(), BootError> {
        self.enter_cgroup(spec, limits, vmm)?;
        if self.is_the_container() {
            set_oom_score(spec, &[vmm, std::process::id()])?;
        }
        Ok(())
    }

    fn open_fds(&self, console: OwnedFd) -> Result<VmFds, BootError> {
        let config = &self.setup.config;
        let kvm = File::options()
            .read(true)
            .write(true)
            .open(KVM)
            .map_err(|source| BootError::Kvm {
                path: KVM.into(),
                source,
            })?;
        let open = |path: &Path| {
            File::open(path)
                .map(OwnedFd::from)
                .map_err(|source| BootError::Open {
                    path: path.to_owned(),
                    source,
                })
        };
        let kernel = open(&config.kernel)?;
        let initramfs = open(&config.initramfs)?;
        let vsock = self.setup.dir.vsock_socket();
        let vsock_listener = UnixListener::bind(&vsock)
            .map(OwnedFd::from)
            .map_err(|source| BootError::Listen {
                path: vsock,
                source,
            })?;
        let shared = SharedDir::create(self.setup.dir.shared())?;
        let shared_dir = shared.open()?;
        // Set once, by this function alone.
        let _ = self.shared.set(shared);
        Ok(VmFds {
            kvm: kvm.into(),
            kernel,
            initramfs,
            console,
            vsock_listener,
            shared_dir,
        })
    }

    /// Keeps the microVM until it must end, and ends it. Returns why.
    async fn watch(&self, mut vm: Vm) -> String {
        let cause = tokio::select! {
            end = vm.handle.ended() => Cause::Vm(end),
            cause = self.keep_agent(&mut vm.connections) => cause,
            never = self.follow_network(&vm.handle) => match never {},
            never = self.keep_files_few(&vm.handle) => match never {},
            fault = self.failed() => match fault {
                Fault::AgentLost => Cause::AgentGone,
                Fault::Misbehaved(what) => Cause::Agent(what),
            },
            _ = self.close_asked() => Cause::Closed,
        };
        match cause {
            Cause::Vm(end) => self.explain(&end),
            Cause::AgentGone => {
                if let Ok(end) = timeout(CAUSE_DEADLINE, vm.handle.ended()).await {
                    return self.explain(&end);
                }
                vm.handle.stop(STOP_DEADLINE).await;
                "the agent in the guest has gone".to_owned()
            }
            Cause::Agent(reason) => {
                vm.handle.stop(STOP_DEADLINE).await;
                reason
            }
            Cause::Closed => {
                self.power_off(&vm.handle).await;
                "the sandbox was shut down".to_owned()
            }
        }
    }

    /// Lets the guest's network follow the host's.
    async fn follow_network(&self, vm: &VmHandle) -> Infallible {
        if let (Some(network), Ok(agent)) = (&self.network, self.agent().await) {
            network.follow(vm, &agent).await;
        }
        std::future::pending().await
    }

    /// Has the guest forget files before they take the memory that the host keeps for
    /// the microVM.
    async fn keep_files_few(&self, vm: &VmHandle) -> Infallible {
        if let Ok(agent) = self.agent().await {
            loop {
                vm.many_files().await;
                if let Err(err) = agent.forget_files().await {
                    tracing::warn!("the guest does not forget files: {}", Chain(&err));
                }
            }
        }
        std::future::pending().await
    }

    fn explain(&self, end: &vm::VmEnd) -> String {
        let oom_killed = self.cgroup().is_some_and(Cgroup::oom_killed);
        if matches!(end, vm::VmEnd::Killed { .. }) && oom_killed {
            return format!("{end}: the microVM has used up the memory of its cgroup on the host");
        }
        end.to_string()
    }

    /// Orderly where the guest does its part in time.
    async fn power_off(&self, vm: &VmHandle) {
        if let Some(agent) = self.agent_now() {
            let orderly = async {
                if let Err(err) = agent.shutdown().await {
                    tracing::warn!("the guest does not power off: {}", Chain(&err));
                    return;
                }
                vm.ended().await;
            };
            if timeout(POWER_OFF_DEADLINE, orderly).await.is_err() {
                tracing::warn!("the guest does not power off in time");
            }
        }
        vm.stop(STOP_DEADLINE).await;
    }

    /// Meets the agent in time, and answers when it is lost.
    async fn keep_agent(&self, connections: &mut mpsc::Receiver<GuestConnection>) -> Cause {
        let (ready_tx, ready) = oneshot::channel();
        tokio::select! {
            cause = self.hold_agent(ready) => cause,
            () = self.route(connections, ready_tx) => std::future::pending().await,
        }
    }

    async fn hold_agent(&self, ready: oneshot::Receiver<UnixStream>) -> Cause {
        let seconds = u64::from(self.setup.config.boot_timeout_s);
        let met = timeout(Duration::from_secs(seconds), self.meet_agent(ready)).await;
        let ready = match met {
            Ok(Ok(ready)) => ready,
            Ok(Err(agent::AgentError::Lost)) => return Cause::AgentGone,
            Ok(Err(err)) => return Cause::Agent(Chain(&err).to_string()),
            Err(_) => {
                return Cause::Agent(format!(
                    "the guest's agent did not answer within {seconds} s; \
                     the sandbox's log may say why"
                ));
            }
        };
        agent::gone(ready).await;
        Cause::AgentGone
    }

    async fn meet_agent(
        &self,
        ready: oneshot::Receiver<UnixStream>,
    ) -> Result<UnixStream, agent::AgentError> {
        let Ok(mut ready) = ready.await else {
            // The VMM is gone; its end is being told elsewhere.
            std::future::pending().await
        };
        agent::greet(&mut ready).await?;
        let agent = AgentClient::connect(&self.guest_ports).await?;
        let vmm = self.vmm.get();
        agent
            .set_up(hostname(&self.setup.id), vmm.map_or(1, |vmm| vmm.vcpus))
            .await?;
        if let Some(vmm) = vmm {
            // From the start of its VMM's process.
            tracing::info!(
                boot_us = vmm.begun.elapsed().as_micros(),
                "microVM is ready"
            );
        }
        self.phase.send_replace(Phase::Ready(agent));
        Ok(ready)
    }

    /// Gives the guest's connections to whom they are for.
    async fn route(
        &self,
        connections: &mut mpsc::Receiver<GuestConnection>,
        ready: oneshot::Sender<UnixStream>,
    ) {
        let mut ready = Some(ready);
        let mut logs = tokio::task::JoinSet::new();
        while let Some(GuestConnection { port, stream }) = connections.recv().await {
            match port {
                ports::READY => {
                    // A second one is dropped with `stream`.
                    if let Some(ready) = ready.take() {
                        let _ = ready.send(stream);
                    }
                }
                ports::LOG => {
                    while logs.try_join_next().is_some() {}
                    if logs.len() < LOG_CONNECTIONS_MAX {
                        logs.spawn(Arc::clone(&self.setup.log).copy_lines("agent", stream));
                    }
                }
                ports::DNS => {
                    if let Some(network) = &self.network {
                        network.serve_names(stream);
                    }
                }
                _ => tracing::debug!(port, "connection to a port that is not served"),
            }
        }
        while logs.join_next().await.is_some() {}
    }

    /// Takes leave: every container has ended, and nothing of the microVM stays
    /// on the host.
    async fn end(&self, reason: &str) {
        tracing::info!("microVM has ended: {reason}");
        self.phase.send_replace(Phase::Ended(reason.into()));
        if let Some(network) = &self.network {
            network.release().await;
        }
        let containers: Vec<_> = self.containers().values().cloned().collect();
        let ends = async {
            for container in &containers {
                container.init.wait().await;
                let execs: Vec<_> = container.execs().values().cloned().collect();
                for exec in execs {
                    if exec.process.stage() != Stage::Creating {
                        exec.process.wait().await;
                    }
                }
            }
        };
        if timeout(CLOSING_GRACE, ends).await.is_err() {
            tracing::warn!("output of a container could not be delivered");
        }
        for container in containers {
            let mounts = container.mounts().take();
            if let (Some(shared), Some(mounts)) = (self.shared.get(), mounts)
                && let Err(err) = shared.unmount_container(mounts)
            {
                tracing::error!("{}", Chain(&err));
            }
        }
        if let Some(shared) = self.shared.get()
            && let Err(err) = shared.unmount()
        {
            tracing::error!("{}", Chain(&err));
        }
        self.leave_cgroup();
        self.changed();
    }

    /// A sandbox of a command has no engine that would come back: left by its
    /// clients, and without a container to keep, it ends.
    async fn close_when_left(self: Arc<Self>) {
        if self.setup.namespace != OWN_NAMESPACE && !self.is_the_container() {
            return;
        }
        let mut clients = self.clients.subscribe();
        let mut changes = self.changes.subscribe();
        if timeout(FIRST_CLIENT_DEADLINE, clients.wait_for(|count| *count > 0))
            .await
            .is_err()
        {
            tracing::warn!("nobody came, the sandbox ends");
            self.close(Close::Quit);
        }
        loop {
            let left = *clients.borrow_and_update() == 0;
            changes.mark_unchanged();
            if left && !self.is_kept() {
                self.close(Close::Quit);
                return;
            }
            // Neither sender ends before `self` does.
            tokio::select! {
                _ = clients.changed() => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// Whether there is a container to live for: one that runs, and for
    /// `lazaret-oci`, whose verbs come and go, one that is made.
    fn is_kept(&self) -> bool {
        self.containers()
            .values()
            .any(|container| match container.status() {
                ContainerStatus::Running | ContainerStatus::Paused => true,
                ContainerStatus::Created => {
                    self.is_the_container() && container.init.stage() != Stage::Creating
                }
                ContainerStatus::Stopped => false,
            })
    }
}

/// The guest's own name, seen by containers without a UTS namespace of theirs.
/// Ids are ASCII: they can be cut anywhere.
fn hostname(id: &SandboxId) -> &str {
    let id = id.as_str();
    &id[..id.len().min(HOSTNAME_MAX)]
}

/// A pipe into the log. The writer's side blocks nobody's reads here.
fn log_pipe() -> Result<(Receiver, OwnedFd), BootError> {
    let failed = |err: rustix::io::Errno| BootError::Pipe(err.into());
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    rustix::io::ioctl_fionbio(&reader, true).map_err(failed)?;
    let reader = Receiver::from_owned_fd(reader).map_err(BootError::Pipe)?;
    Ok((reader, writer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_ids_are_cut_to_a_hostname() {
        let id = SandboxId::new("a".repeat(72)).unwrap();
        assert_eq!(hostname(&id), "a".repeat(64));
        let id = SandboxId::new("box").unwrap();
        assert_eq!(hostname(&id), "box");
    }
}
