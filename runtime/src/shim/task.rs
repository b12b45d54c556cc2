//! The Task API: request, call, event, reply.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::Task;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Message, MessageField};
use ttrpc::r#async::TtrpcContext;
use ttrpc::error::get_rpc_status;
use ttrpc::{Code, Error as TtrpcError, Result as TtrpcResult};

use super::metrics::{METRICS_TYPE, metrics};
use super::standing::Standing;
use crate::agent::AgentError;
use crate::process::{Exit, Stage};
use crate::sandbox::config::OCI_NAMESPACE;
use crate::sandbox::id::{ContainerId, ExecId};
use crate::sandbox::mounts::RootMount;
use crate::sandbox::{Chain, CreateRequest, ExecRequest, Sandbox, SandboxError};
use crate::stdio::StdioPaths;
use crate::task_client::name_of_container;

/// What the agent says of a process.
const PROCESS_TYPE: &str = "lazaret.agent.v1.ListProcessesReply.Entry";

pub(super) struct TaskService {
    sandbox: Arc<Sandbox>,
}

impl TaskService {
    pub(super) fn new(sandbox: Arc<Sandbox>) -> Self {
        Self { sandbox }
    }

    /// Runs a request to its end even if its client leaves in between: ttrpc
    /// drops the handler then, and half a container must not be left.
    async fn call<T, F>(&self, call: impl FnOnce(Arc<Sandbox>) -> F) -> TtrpcResult<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, SandboxError>> + Send + 'static,
    {
        let sandbox = Arc::clone(&self.sandbox);
        let done = call(Arc::clone(&sandbox));
        let explained = async move {
            match done.await {
                Err(SandboxError::Agent(err @ (AgentError::Lost | AgentError::TooLong(_)))) => {
                    Err(sandbox.lost_agent(&err).await)
                }
                result => result,
            }
        };
        match tokio::spawn(explained).await {
            Ok(result) => result.map_err(|err| status(&err)),
            Err(err) => Err(get_rpc_status(Code::INTERNAL, err)),
        }
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> TtrpcResult<CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return Err(status(&SandboxError::Unsupported("restoring a checkpoint")));
        }
        let request = CreateRequest {
            id: container_id(request.id)?,
            name: name_of_container(request.options),
            bundle: request.bundle.into(),
            rootfs: request
                .rootfs
                .into_iter()
                .map(|mount| RootMount {
                    kind: mount.type_,
                    source: mount.source,
                    options: mount.options,
                })
                .collect(),
            stdio: StdioPaths {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
        };
        let pid = self
            .call(|sandbox| async move { sandbox.create(request).await })
            .await?;
        Ok(CreateTaskResponse {
            pid,
            ..CreateTaskResponse::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> TtrpcResult<StartResponse> {
        let (id, exec) = names(request.id, request.exec_id)?;
        let pid = self
            .call(|sandbox| async move { sandbox.start(&id, exec.as_ref()).await })
            .await?;
        Ok(StartResponse {
            pid,
            ..StartResponse::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> TtrpcResult<Empty> {
        let (container, exec) = names(request.id, request.exec_id)?;
        let exec = exec.ok_or_else(|| get_rpc_status(Code::INVALID_ARGUMENT, "no exec id"))?;
        let request = ExecRequest {
            container,
            exec,
            stdio: StdioPaths {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            spec_json: request.spec.into_option().unwrap_or_default().value,
        };
        let result = self.sandbox.exec(request);
        result
            .map(|()| Empty::default())
            .map_err(|err| status(&err))
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> TtrpcResult<WaitResponse> {
        let (id, exec) = names(request.id, request.exec_id)?;
        let standing = Standing::new(&self.sandbox, &id, exec.as_ref());
        let exit = self.sandbox.wait(&id, exec.as_ref()).await;
        standing.ended();
        let exit = exit.map_err(|err| status(&err))?;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: timestamp(&exit),
            ..WaitResponse::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: DeleteRequest,
    ) -> TtrpcResult<DeleteResponse> {
        let (id, exec) = names(request.id, request.exec_id)?;
        let exit = self
            .call(|sandbox| async move { sandbox.delete(&id, exec.as_ref()).await })
            .await?;
        Ok(DeleteResponse {
            exit_status: exit.status,
            exited_at: timestamp(&exit),
            ..DeleteResponse::default()
        })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> TtrpcResult<StateResponse> {
        let (id, exec) = names(request.id.clone(), request.exec_id.clone())?;
        let state = self.sandbox.process_state(&id, exec.as_ref());
        let state = state.map_err(|err| status(&err))?;
        let mut reply = StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: state.bundle.display().to_string(),
            pid: state.pid,
            stdin: state.stdio.stdin,
            stdout: state.stdio.stdout,
            stderr: state.stdio.stderr,
            terminal: state.stdio.terminal,
            ..StateResponse::default()
        };
        let status = match state.stage {
            Stage::Stopped(exit) => {
                reply.exit_status = exit.status;
                reply.exited_at = timestamp(&exit);
                Status::STOPPED
            }
            _ if state.paused => Status::PAUSED,
            Stage::Creating | Stage::Created | Stage::Starting => Status::CREATED,
            Stage::Running => Status::RUNNING,
        };
        reply.status = status.into();
        Ok(reply)
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> TtrpcResult<Empty> {
        let (id, exec) = names(request.id, request.exec_id)?;
        let (signal, all) = (request.signal, request.all);
        self.call(|sandbox| async move { sandbox.kill(&id, exec.as_ref(), signal, all).await })
            .await?;
        Ok(Empty::default())
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> TtrpcResult<PidsResponse> {
        let id = container_id(request.id)?;
        let processes = self
            .call(|sandbox| async move { sandbox.processes(&id).await })
            .await?;
        // For `lazaret-oci ps`; other clients know nothing of this type.
        let told = self.sandbox.namespace() == OCI_NAMESPACE;
        let processes = processes.into_iter().map(|process| ProcessInfo {
            pid: process.guest_pid,
            info: told
                .then(|| process.write_to_bytes().unwrap_or_default())
                .map(|value| Any {
                    type_url: PROCESS_TYPE.to_owned(),
                    value,
                    ..Any::default()
                })
                .into(),
            ..ProcessInfo::default()
        });
        Ok(PidsResponse {
            processes: processes.collect(),
            ..PidsResponse::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> TtrpcResult<Empty> {
        let id = container_id(request.id)?;
        self.call(|sandbox| async move { sandbox.set_paused(&id, true).await })
            .await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> TtrpcResult<Empty> {
        let id = container_id(request.id)?;
        self.call(|sandbox| async move { sandbox.set_paused(&id, false).await })
            .await?;
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> TtrpcResult<Empty> {
        Err(status(&SandboxError::Unsupported("a checkpoint")))
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> TtrpcResult<Empty> {
        let id = container_id(request.id)?;
        let resources = request.resources.into_option().unwrap_or_default().value;
        self.call(|sandbox| async move { sandbox.update(&id, &resources).await })
            .await?;
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> TtrpcResult<Empty> {
        let (id, exec) = names(request.id, request.exec_id)?;
        let (rows, columns) = (request.height, request.width);
        self.call(|sandbox| async move { sandbox.resize(&id, exec.as_ref(), rows, columns).await })
            .await?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> TtrpcResult<Empty> {
        let (id, exec) = names(request.id, request.exec_id)?;
        if request.stdin {
            let result = self.sandbox.close_stdin(&id, exec.as_ref());
            result.map_err(|err| status(&err))?;
        }
        Ok(Empty::default())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> TtrpcResult<StatsResponse> {
        let id = container_id(request.id)?;
        let stats = self
            .call(|sandbox| async move { sandbox.stats(&id).await })
            .await?;
        let value = metrics(&stats)
            .write_to_bytes()
            .map_err(|err| get_rpc_status(Code::INTERNAL, err))?;
        Ok(StatsResponse {
            stats: MessageField::some(Any {
                type_url: METRICS_TYPE.to_owned(),
                value,
                ..Any::default()
            }),
            ..StatsResponse::default()
        })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: ConnectRequest,
    ) -> TtrpcResult<ConnectResponse> {
        let id = container_id(request.id)?;
        let task_pid = self.sandbox.task_pid(&id).map_err(|err| status(&err))?;
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> TtrpcResult<Empty> {
        self.sandbox.shut_down(request.now);
        Ok(Empty::default())
    }
}

fn container_id(id: String) -> TtrpcResult<ContainerId> {
    ContainerId::new(id).map_err(|err| status(&err.into()))
}

fn names(id: String, exec: String) -> TtrpcResult<(ContainerId, Option<ExecId>)> {
    let id = container_id(id)?;
    if exec.is_empty() {
        return Ok((id, None));
    }
    let exec = ExecId::new(exec).map_err(|err| status(&err.into()))?;
    Ok((id, Some(exec)))
}

fn timestamp(exit: &Exit) -> MessageField<Timestamp> {
    MessageField::some(exit.at.into())
}

/// The one place where errors become statuses.
fn status(err: &SandboxError) -> TtrpcError {
    let code = match err {
        SandboxError::NoContainer(_) | SandboxError::NoExec { .. } | SandboxError::AlreadyEnded => {
            Code::NOT_FOUND
        }
        SandboxError::ContainerExists(_) | SandboxError::ExecExists { .. } => Code::ALREADY_EXISTS,
        SandboxError::Unsupported(_) => Code::UNIMPLEMENTED,
        SandboxError::Ended(_) => Code::UNAVAILABLE,
        SandboxError::Stage(_) | SandboxError::Paused(_) | SandboxError::Disk(_) => {
            Code::FAILED_PRECONDITION
        }
        SandboxError::Id(_)
        | SandboxError::Spec { .. }
        | SandboxError::SpecJson { .. }
        | SandboxError::LateLimit(_)
        | SandboxError::Resources(_)
        | SandboxError::MemoryAboveVm { .. }
        | SandboxError::Plan(_)
        | SandboxError::Stdio(_) => Code::INVALID_ARGUMENT,
        SandboxError::Agent(AgentError::Refused { code, .. }) => *code,
        SandboxError::Agent(AgentError::Deadline(_)) => Code::DEADLINE_EXCEEDED,
        SandboxError::Mount(_)
        | SandboxError::ShownRoot(_)
        | SandboxError::Log { .. }
        | SandboxError::Cgroup(_)
        | SandboxError::Hook(_)
        | SandboxError::Hooks(_)
        | SandboxError::Agent(_)
        | SandboxError::Network(_) => Code::INTERNAL,
    };
    get_rpc_status(code, Chain(err))
}
