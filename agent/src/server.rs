//! The ttrpc service of `agent.proto`: request, call, reply, and nothing else.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use lazaret_protocol::agent as proto;
use lazaret_protocol::agent_ttrpc;
use rustix::process::Signal;
use ttrpc::r#async::{Service, TtrpcContext};

use crate::container::list_reply;
use crate::failure::{Failure, OrFail, Result};
use crate::network::{HostDns, Network};
use crate::sandbox::{self, Sandbox};
use crate::{disks, files, power};

/// `_NSIG` of x86-64 Linux.
const SIGNAL_MAX: i32 = 64;

#[derive(Debug)]
struct Agent {
    sandbox: Arc<Sandbox>,
    network: Network,
}

/// The service to register with a ttrpc server.
pub fn service(sandbox: Arc<Sandbox>) -> HashMap<String, Service> {
    agent_ttrpc::create_agent(Arc::new(Agent {
        sandbox,
        network: Network::new(HostDns),
    }))
}

#[async_trait]
impl agent_ttrpc::Agent for Agent {
    async fn setup_sandbox(
        &self,
        _: &TtrpcContext,
        request: proto::SetupSandboxRequest,
    ) -> ttrpc::Result<proto::SetupSandboxReply> {
        sandbox::set_up(
            &request.hostname,
            request.wall_clock_ns,
            &request.entropy,
            request.online_cpus,
        )?;
        let mut reply = proto::SetupSandboxReply::new();
        reply.kernel_release = sandbox::kernel_release();
        Ok(reply)
    }

    async fn configure_network(
        &self,
        _: &TtrpcContext,
        request: proto::ConfigureNetworkRequest,
    ) -> ttrpc::Result<proto::Empty> {
        self.network.configure(&request).await?;
        Ok(proto::Empty::new())
    }

    async fn start_disks(
        &self,
        _: &TtrpcContext,
        request: proto::StartDisksRequest,
    ) -> ttrpc::Result<proto::StartDisksReply> {
        // The kernel reads a disk that it finds.
        let started = tokio::task::spawn_blocking(move || {
            let started = request.slots.into_iter().map(disks::start);
            started.collect::<Result<Vec<_>>>()
        });
        let disks = started
            .await
            .map_err(|_| Failure::internal("the disks' thread has died"))??;
        Ok(proto::StartDisksReply {
            disks,
            ..proto::StartDisksReply::default()
        })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: proto::CreateContainerRequest,
    ) -> ttrpc::Result<proto::CreateContainerReply> {
        let mut reply = proto::CreateContainerReply::new();
        reply.guest_pid = self.sandbox.create_container(&request).await?;
        Ok(reply)
    }

    async fn create_process(
        &self,
        _: &TtrpcContext,
        request: proto::CreateProcessRequest,
    ) -> ttrpc::Result<proto::CreateProcessReply> {
        let mut reply = proto::CreateProcessReply::new();
        reply.guest_pid = self
            .sandbox
            .create_process(
                &request.container_id,
                &request.exec_id,
                &request.process_json,
                &request.stdio,
            )
            .await?;
        Ok(reply)
    }

    async fn start_process(
        &self,
        _: &TtrpcContext,
        request: proto::ProcessRequest,
    ) -> ttrpc::Result<proto::StartProcessReply> {
        let container = self.sandbox.container(&request.container_id)?;
        let process = container.start(&request.exec_id).await?;
        let mut reply = proto::StartProcessReply::new();
        reply.guest_pid = process.pid();
        Ok(reply)
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: proto::ProcessRequest,
    ) -> ttrpc::Result<proto::WaitProcessReply> {
        let process = self
            .sandbox
            .process(&request.container_id, &request.exec_id)?;
        let exit = process.wait().await;
        let mut reply = proto::WaitProcessReply::new();
        reply.exit_status = exit.status;
        reply.exited_at_ns = exit.at_ns;
        reply.oom_killed = exit.oom_killed;
        Ok(reply)
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: proto::SignalProcessRequest,
    ) -> ttrpc::Result<proto::Empty> {
        let signal = signal(request.signal)?;
        let container = self.sandbox.container(&request.container_id)?;
        if request.all {
            container.signal_all(signal)?;
        } else {
            container.process(&request.exec_id)?.signal(signal)?;
        }
        Ok(proto::Empty::new())
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: proto::ResizeTerminalRequest,
    ) -> ttrpc::Result<proto::Empty> {
        let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        self.sandbox
            .process(&request.container_id, &request.exec_id)?
            .resize(cells(request.rows), cells(request.columns))?;
        Ok(proto::Empty::new())
    }

    async fn close_stdin(
        &self,
        _: &TtrpcContext,
        request: proto::ProcessRequest,
    ) -> ttrpc::Result<proto::Empty> {
        self.sandbox
            .process(&request.container_id, &request.exec_id)?
            .close_stdin();
        Ok(proto::Empty::new())
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: proto::ContainerRequest,
    ) -> ttrpc::Result<proto::Empty> {
        self.sandbox
            .container(&request.container_id)?
            .pause()
            .await?;
        Ok(proto::Empty::new())
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: proto::ContainerRequest,
    ) -> ttrpc::Result<proto::Empty> {
        self.sandbox
            .container(&request.container_id)?
            .resume()
            .await?;
        Ok(proto::Empty::new())
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: proto::ContainerRequest,
    ) -> ttrpc::Result<proto::ListProcessesReply> {
        let processes = self.sandbox.container(&request.container_id)?.processes()?;
        Ok(list_reply(processes))
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: proto::UpdateContainerRequest,
    ) -> ttrpc::Result<proto::Empty> {
        self.sandbox
            .container(&request.container_id)?
            .update(&request.resources_json)?;
        Ok(proto::Empty::new())
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        request: proto::ContainerRequest,
    ) -> ttrpc::Result<proto::ContainerStatsReply> {
        Ok(self
            .sandbox
            .container(&request.container_id)?
            .stats()
            .into())
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: proto::ProcessRequest,
    ) -> ttrpc::Result<proto::Empty> {
        self.sandbox
            .delete(&request.container_id, &request.exec_id)
            .await?;
        Ok(proto::Empty::new())
    }

    async fn forget_files(&self, _: &TtrpcContext, _: proto::Empty) -> ttrpc::Result<proto::Empty> {
        // Takes as long as there are files.
        let forgotten = tokio::task::spawn_blocking(files::forget_unused).await;
        forgotten.or_fail(|| "forget files")??;
        Ok(proto::Empty::new())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: proto::Empty) -> ttrpc::Result<proto::Empty> {
        self.sandbox.end().await;
        power::off()?;
        Ok(proto::Empty::new())
    }
}

fn signal(number: u32) -> Result<Signal> {
    let raw = i32::try_from(number)
        .ok()
        .filter(|raw| (1..=SIGNAL_MAX).contains(raw));
    raw.and_then(|raw| Signal::from_named_raw(raw).or_else(|| real_time_signal(raw)))
        .ok_or_else(|| Failure::invalid(format!("there is no signal {number}")))
}

#[expect(unsafe_code, reason = "rustix names no real-time signals")]
fn real_time_signal(raw: i32) -> Option<Signal> {
    // SAFETY: in the range of the kernel's real-time signals; sent to processes whose
    // signal handling is not this process's.
    (32..=SIGNAL_MAX)
        .contains(&raw)
        .then(|| unsafe { Signal::from_raw_unchecked(raw) })
}
