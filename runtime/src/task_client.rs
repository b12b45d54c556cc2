//! The Task API of a sandbox process, from its client's side: what `lazaret`
//! and `lazaret-oci` ask of it.
//! <https://github.com/containerd/containerd/blob/main/core/runtime/v2/README.md>

use std::path::{Path, PathBuf};
use std::process::Stdio;

use containerd_shim_protos::api::{
    CloseIORequest, CreateTaskRequest, DeleteRequest, ExecProcessRequest, KillRequest, Mount,
    PauseRequest, PidsRequest, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StatsRequest, UpdateTaskRequest, WaitRequest,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use rustix::termios::Winsize;
use ttrpc::Code;
use ttrpc::context::Context;

use crate::stdio::StdioPaths;

use crate::signal_mask;

/// Told by the sandbox process when a detached container has ended.
const EXIT_COMMAND_ENV: &str = "LAZARET_EXIT_COMMAND";

/// What containerd puts in front of a process's specification.
const PROCESS_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// What containerd puts in front of limits.
const RESOURCES_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// What `lazaret-oci` puts in front of a container's id in its root, among the options
/// of its creation: the id of the request is the sandbox's, which all roots share.
const NAME_TYPE_URL: &str = "types.lazaret.dev/ContainerName";

/// What the options of a container's creation say that it is called.
pub fn name_of_container(options: MessageField<Any>) -> Option<String> {
    let options = options.into_option();
    let name = options.filter(|options| options.type_url == NAME_TYPE_URL)?;
    String::from_utf8(name.value).ok()
}

#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("cannot run the sandbox process {}", path.display())]
    Spawn {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{0}")]
    Start(String),
    #[error("the sandbox process gave the address `{0}`, which is not a unix socket's")]
    Address(String),
    #[error("cannot connect to the sandbox process at {address}")]
    Connect {
        address: String,
        source: ttrpc::Error,
    },
    #[error("{0}")]
    Status(String, Code),
    #[error("the connection to the sandbox process is lost")]
    Lost(#[source] ttrpc::Error),
}

impl TaskError {
    fn of(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => {
                Self::Status(status.message().to_owned(), status.code())
            }
            error => Self::Lost(error),
        }
    }

    /// The status that the sandbox process has answered with.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Status(_, code) => Some(*code),
            _ => None,
        }
    }

    /// Whether there is no process any more, or nobody who would know one.
    pub fn means_ended(&self) -> bool {
        matches!(self, Self::Status(_, Code::NOT_FOUND) | Self::Lost(_))
    }
}

/// How the sandbox process of a new container is started.
#[derive(Debug)]
pub struct SandboxStart<'a> {
    pub shim: &'a Path,
    /// Whose sandbox it is: containerd's word for the one who asks.
    pub namespace: &'a str,
    pub id: &'a str,
    pub bundle: &'a Path,
    /// This program, if it is to be told of the container's end.
    pub exit_command: Option<PathBuf>,
}

/// Starts a sandbox process and gives the address of its Task API.
pub async fn start_sandbox(start: SandboxStart<'_>) -> Result<String, TaskError> {
    let mut command = tokio::process::Command::new(start.shim);
    command
        .args([
            "-namespace",
            start.namespace,
            "-id",
            start.id,
            "-address",
            "",
            "-bundle",
        ])
        .arg(start.bundle)
        .arg("start")
        .current_dir(start.bundle)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A terminal's Ctrl-C is for this command to handle.
        .process_group(0);
    signal_mask::unblock(command.as_std_mut());
    if let Some(program) = start.exit_command {
        command.env(EXIT_COMMAND_ENV, program);
    }
    let output = command.output().await;
    let output = output.map_err(|source| TaskError::Spawn {
        path: start.shim.to_owned(),
        source,
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let text = text.trim();
        let text = if text.is_empty() {
            "the sandbox process did not start"
        } else {
            text
        };
        return Err(TaskError::Start(text.to_owned()));
    }
    address(&String::from_utf8_lossy(&output.stdout))
}

/// A bare address, or containerd's JSON around it.
fn address(reply: &str) -> Result<String, TaskError> {
    let reply = reply.trim();
    let address = match serde_json::from_str::<serde_json::Value>(reply) {
        Ok(reply) => reply["address"].as_str().unwrap_or_default().to_owned(),
        Err(_) => reply.to_owned(),
    };
    if address.starts_with("unix://") {
        Ok(address)
    } else {
        Err(TaskError::Address(address))
    }
}

/// A connection to the sandbox process of one container.
#[derive(Clone)]
pub struct Task {
    client: TaskClient,
    id: String,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Task {
    pub async fn connect(address: &str, id: &str) -> Result<Self, TaskError> {
        let client = Client::connect(address)
            .await
            .map_err(|source| TaskError::Connect {
                address: address.to_owned(),
                source,
            })?;
        Ok(Self {
            client: TaskClient::new(client),
            id: id.to_owned(),
        })
    }

    pub async fn create(
        &self,
        bundle: &Path,
        rootfs: Vec<Mount>,
        stdio: &StdioPaths,
    ) -> Result<(), TaskError> {
        let request = self.create_request(bundle, rootfs, stdio);
        self.send_create(&request).await
    }

    /// Makes a container that has another name than its sandbox.
    pub async fn create_named(
        &self,
        name: &str,
        bundle: &Path,
        stdio: &StdioPaths,
    ) -> Result<(), TaskError> {
        let name = Any {
            type_url: NAME_TYPE_URL.to_owned(),
            value: name.as_bytes().to_vec(),
            ..Any::default()
        };
        let mut request = self.create_request(bundle, Vec::new(), stdio);
        request.options = MessageField::some(name);
        self.send_create(&request).await
    }

    fn create_request(
        &self,
        bundle: &Path,
        rootfs: Vec<Mount>,
        stdio: &StdioPaths,
    ) -> CreateTaskRequest {
        CreateTaskRequest {
            id: self.id.clone(),
            bundle: bundle.to_string_lossy().into_owned(),
            rootfs,
            terminal: stdio.terminal,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            ..CreateTaskRequest::default()
        }
    }

    async fn send_create(&self, request: &CreateTaskRequest) -> Result<(), TaskError> {
        let made = self.client.create(Context::default(), request).await;
        made.map(drop).map_err(TaskError::of)
    }

    pub async fn start(&self, exec: &str) -> Result<(), TaskError> {
        let request = StartRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..StartRequest::default()
        };
        self.client
            .start(Context::default(), &request)
            .await
            .map_err(TaskError::of)?;
        Ok(())
    }

    pub async fn exec(
        &self,
        exec: &str,
        process: &serde_json::Value,
        stdio: &StdioPaths,
    ) -> Result<(), TaskError> {
        let spec = Any {
            type_url: PROCESS_TYPE_URL.to_owned(),
            value: process.to_string().into_bytes(),
            ..Any::default()
        };
        let request = ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            terminal: stdio.terminal,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            spec: MessageField::some(spec),
            ..ExecProcessRequest::default()
        };
        self.client
            .exec(Context::default(), &request)
            .await
            .map_err(TaskError::of)?;
        Ok(())
    }

    /// Waits for the process's end and gives its exit status.
    pub async fn wait(&self, exec: &str) -> Result<u32, TaskError> {
        let request = WaitRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..WaitRequest::default()
        };
        let reply = self.client.wait(Context::default(), &request).await;
        Ok(reply.map_err(TaskError::of)?.exit_status)
    }

    /// Sends a signal to a process, or to all of the container's.
    pub async fn kill(&self, exec: &str, signal: u32, all: bool) -> Result<(), TaskError> {
        let request = KillRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            signal,
            all,
            ..KillRequest::default()
        };
        self.client
            .kill(Context::default(), &request)
            .await
            .map_err(TaskError::of)?;
        Ok(())
    }

    pub async fn resize(&self, exec: &str, size: Winsize) -> Result<(), TaskError> {
        let request = ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            width: size.ws_col.into(),
            height: size.ws_row.into(),
            ..ResizePtyRequest::default()
        };
        self.client
            .resize_pty(Context::default(), &request)
            .await
            .map_err(TaskError::of)?;
        Ok(())
    }

    pub async fn close_stdin(&self, exec: &str) -> Result<(), TaskError> {
        let request = CloseIORequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            stdin: true,
            ..CloseIORequest::default()
        };
        self.client
            .close_io(Context::default(), &request)
            .await
            .map_err(TaskError::of)?;
        Ok(())
    }

    pub async fn delete(&self, exec: &str) -> Result<(), TaskError> {
        let request = DeleteRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..DeleteRequest::default()
        };
        self.client
            .delete(Context::default(), &request)
            .await
            .map_err(TaskError::of)?;
        Ok(())
    }

    pub async fn pause(&self) -> Result<(), TaskError> {
        let request = PauseRequest {
            id: self.id.clone(),
            ..PauseRequest::default()
        };
        let reply = self.client.pause(Context::default(), &request).await;
        reply.map(drop).map_err(TaskError::of)
    }

    pub async fn resume(&self) -> Result<(), TaskError> {
        let request = ResumeRequest {
            id: self.id.clone(),
            ..ResumeRequest::default()
        };
        let reply = self.client.resume(Context::default(), &request).await;
        reply.map(drop).map_err(TaskError::of)
    }

    /// The container's processes, by their numbers in the guest.
    pub async fn pids(&self) -> Result<Vec<ProcessInfo>, TaskError> {
        let request = PidsRequest {
            id: self.id.clone(),
            ..PidsRequest::default()
        };
        let reply = self.client.pids(Context::default(), &request).await;
        Ok(reply.map_err(TaskError::of)?.processes)
    }

    /// What the container uses, as containerd's cgroup v2 metrics.
    pub async fn stats(&self) -> Result<Any, TaskError> {
        let request = StatsRequest {
            id: self.id.clone(),
            ..StatsRequest::default()
        };
        let reply = self.client.stats(Context::default(), &request).await;
        Ok(reply.map_err(TaskError::of)?.stats.unwrap_or_default())
    }

    /// Changes limits: `linux.resources` of the runtime specification.
    pub async fn update(&self, resources: &serde_json::Value) -> Result<(), TaskError> {
        let resources = Any {
            type_url: RESOURCES_TYPE_URL.to_owned(),
            value: resources.to_string().into_bytes(),
            ..Any::default()
        };
        let request = UpdateTaskRequest {
            id: self.id.clone(),
            resources: MessageField::some(resources),
            ..UpdateTaskRequest::default()
        };
        let reply = self.client.update(Context::default(), &request).await;
        reply.map(drop).map_err(TaskError::of)
    }

    pub async fn shutdown(&self) -> Result<(), TaskError> {
        let request = ShutdownRequest {
            id: self.id.clone(),
            ..ShutdownRequest::default()
        };
        self.client
            .shutdown(Context::default(), &request)
            .await
            .map_err(TaskError::of)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_reply_are_read() {
        let bare = "unix:///run/lazaret/sandboxes/a/task.sock";
        assert_eq!(address(&format!("{bare}\n")).unwrap(), bare);
        let json = format!(r#"{{"version":3,"address":"{bare}","protocol":"ttrpc"}}"#);
        assert_eq!(address(&json).unwrap(), bare);
        assert!(matches!(address("tcp://x"), Err(TaskError::Address(_))));
        assert!(matches!(address(""), Err(TaskError::Address(_))));
    }
}
