//! The agent as the sandbox process sees it: how it is met, asked and lost.
//!
//! It lives in the guest and is not trusted: what it sends is bounded in size
//! ([`frames`]), in time, and in what its texts may hold.

mod frames;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lazaret_protocol::agent::{
    ConfigureNetworkRequest, ContainerRequest, ContainerStatsReply, CreateContainerRequest,
    CreateProcessRequest, Disk, Empty, ProcessRequest, ResizeTerminalRequest, SetupSandboxRequest,
    SignalProcessRequest, StartDisksRequest, Stdio, UpdateContainerRequest, WaitProcessReply,
    list_processes_reply::Entry,
};
use lazaret_protocol::agent_ttrpc::AgentClient as Ttrpc;
use lazaret_protocol::{HELLO_LINE_MAX, Hello, HelloError, PROCESSES_MAX, REPLY_MAX, ports};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::{self, Context};
use ttrpc::{Code, Error as TtrpcError};

use crate::sandbox::plan::GuestDisk;
use frames::{Breach, Frames};

/// How long an answer may take that needs the guest only to do something small.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// Making a container mounts, and may write back much.
const LONG_CALL_DEADLINE: Duration = Duration::from_secs(120);

/// `OK <port>\n` with the largest port.
const OK_LINE_MAX: usize = 16;

/// Longest text of the agent that is passed on.
const TEXT_MAX: usize = 2048;

/// Entropy for the guest's random number generator, bytes.
const ENTROPY_LEN: usize = 64;

#[derive(Debug, Error)]
pub enum AgentError {
    #[error("cannot reach guest port {port} through {}", path.display())]
    Connect {
        port: u32,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the agent's greeting is not understood: {0:?}")]
    Greeting(String),
    #[error(transparent)]
    Version(#[from] HelloError),
    #[error("cannot read the host's entropy")]
    Entropy(#[source] io::Error),
    /// The agent's own answer.
    #[error("{message}")]
    Refused { code: Code, message: String },
    #[error("the agent did not answer {0} in time")]
    Deadline(&'static str),
    #[error("the connection to the agent is lost")]
    Lost,
    /// The connection is no more.
    #[error("the agent sent a message of {0} bytes, more than the {REPLY_MAX} allowed")]
    TooLong(usize),
    #[error("the agent's answer to {0} is not understood")]
    Nonsense(&'static str),
}

/// A disk as the agent names it, if it is the name of a disk of a slot.
fn guest_disk(disk: &Disk) -> Option<GuestDisk> {
    let letter = disk.name.strip_prefix("vd")?;
    let fits = letter.len() == 1 && letter.bytes().all(|byte| byte.is_ascii_lowercase());
    fits.then(|| GuestDisk {
        path: format!("/dev/{}", disk.name),
        major: disk.major.into(),
        minor: disk.minor.into(),
    })
}

/// Unix socket on which the VMM takes connections to guest ports.
#[derive(Clone, Debug)]
pub struct GuestPorts {
    path: PathBuf,
}

impl GuestPorts {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Connects to a guest port; the number is the host's own port, by which
    /// the guest knows the connection.
    pub async fn connect(&self, port: u32) -> Result<(UnixStream, u32), AgentError> {
        match timeout(CALL_DEADLINE, dial(&self.path, port)).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
        .map_err(|source| AgentError::Connect {
            port,
            path: self.path.clone(),
            source,
        })
    }
}

async fn dial(path: &Path, port: u32) -> io::Result<(UnixStream, u32)> {
    let mut stream = UnixStream::connect(path).await?;
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await?;
    // Byte by byte: what follows the line belongs to the connection.
    let mut line = Vec::with_capacity(OK_LINE_MAX);
    while line.last() != Some(&b'\n') {
        if line.len() == OK_LINE_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match stream.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Err(err) => return Err(err),
        }
    }
    let host_port = std::str::from_utf8(&line)
        .ok()
        .and_then(|line| line.trim_end().strip_prefix("OK ")?.parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok((stream, host_port))
}

/// Reads and checks the greeting on the READY connection.
pub async fn greet(ready: &mut UnixStream) -> Result<Hello, AgentError> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        match ready.read(&mut byte).await {
            Ok(1) if byte[0] == b'\n' => break,
            Ok(1) if line.len() < HELLO_LINE_MAX => line.push(byte[0]),
            Ok(1) => return Err(AgentError::Greeting(clean(&String::from_utf8_lossy(&line)))),
            _ => return Err(AgentError::Lost),
        }
    }
    let hello: Hello = serde_json::from_slice(&line)
        .map_err(|_| AgentError::Greeting(clean(&String::from_utf8_lossy(&line))))?;
    hello.check()?;
    Ok(hello)
}

/// Answers when the agent is gone: the READY connection carries nothing after
/// the greeting.
pub async fn gone(mut ready: UnixStream) {
    let mut byte = [0];
    // A byte more is as much a breach as the end.
    let _ = ready.read(&mut byte).await;
}

/// Names a process: the container's own without an exec id.
#[derive(Clone, Copy, Debug)]
pub struct ProcessName<'a> {
    pub container: &'a str,
    pub exec: Option<&'a str>,
}

impl ProcessName<'_> {
    fn request(self) -> ProcessRequest {
        ProcessRequest {
            container_id: self.container.to_owned(),
            exec_id: self.exec.unwrap_or_default().to_owned(),
            ..ProcessRequest::default()
        }
    }
}

/// Typed calls to the agent.
#[derive(Clone)]
pub struct AgentClient {
    ttrpc: Ttrpc,
    breach: Breach,
}

impl std::fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentClient").finish_non_exhaustive()
    }
}

impl AgentClient {
    pub async fn connect(ports: &GuestPorts) -> Result<Self, AgentError> {
        let (stream, _) = ports.connect(ports::AGENT).await?;
        Ok(Self::over(stream))
    }

    fn over(stream: UnixStream) -> Self {
        let frames = Frames::new(stream);
        let breach = frames.breach();
        Self {
            ttrpc: Ttrpc::new(Client::new(Socket::new(frames))),
            breach,
        }
    }

    /// What a freshly booted guest must know: the time, and randomness.
    pub async fn set_up(&self, hostname: &str, cpus: u8) -> Result<(), AgentError> {
        let mut entropy = vec![0; ENTROPY_LEN];
        rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty())
            .map_err(|err| AgentError::Entropy(err.into()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let request = SetupSandboxRequest {
            hostname: hostname.to_owned(),
            wall_clock_ns: now
                .ok()
                .and_then(|now| u64::try_from(now.as_nanos()).ok())
                .unwrap_or_default(),
            entropy,
            online_cpus: cpus.into(),
            ..SetupSandboxRequest::default()
        };
        let reply = self.ttrpc.setup_sandbox(within(CALL_DEADLINE), &request);
        let reply = self.answer("SetupSandbox", reply.await)?;
        tracing::info!(kernel = clean(&reply.kernel_release), "agent ready");
        Ok(())
    }

    /// Makes the guest's network what the request says.
    pub async fn configure_network(
        &self,
        request: &ConfigureNetworkRequest,
    ) -> Result<(), AgentError> {
        let reply = self.ttrpc.configure_network(within(CALL_DEADLINE), request);
        self.answer("ConfigureNetwork", reply.await).map(drop)
    }

    /// Makes the disks in these block slots usable; says what they are called.
    pub async fn start_disks(&self, slots: Vec<u32>) -> Result<Vec<GuestDisk>, AgentError> {
        let wanted = slots.len();
        let request = StartDisksRequest {
            slots,
            ..StartDisksRequest::default()
        };
        let reply = self.ttrpc.start_disks(within(CALL_DEADLINE), &request);
        let disks = self.answer("StartDisks", reply.await)?.disks;
        let disks: Option<Vec<_>> = disks.iter().map(guest_disk).collect();
        disks
            .filter(|disks| disks.len() == wanted)
            .ok_or(AgentError::Nonsense("StartDisks"))
    }

    pub async fn create_container(
        &self,
        id: &str,
        name: &str,
        bundle: &Path,
        spec_json: Vec<u8>,
        stdio: Stdio,
    ) -> Result<(), AgentError> {
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            name: name.to_owned(),
            bundle: bundle.to_string_lossy().into_owned(),
            spec_json,
            stdio: Some(stdio).into(),
            ..CreateContainerRequest::default()
        };
        let reply = self
            .ttrpc
            .create_container(within(LONG_CALL_DEADLINE), &request);
        self.answer("CreateContainer", reply.await).map(drop)
    }

    pub async fn create_process(
        &self,
        name: ProcessName<'_>,
        process_json: Vec<u8>,
        stdio: Stdio,
    ) -> Result<(), AgentError> {
        let request = CreateProcessRequest {
            container_id: name.container.to_owned(),
            exec_id: name.exec.unwrap_or_default().to_owned(),
            process_json,
            stdio: Some(stdio).into(),
            ..CreateProcessRequest::default()
        };
        let reply = self
            .ttrpc
            .create_process(within(LONG_CALL_DEADLINE), &request);
        self.answer("CreateProcess", reply.await).map(drop)
    }

    pub async fn start_process(&self, name: ProcessName<'_>) -> Result<(), AgentError> {
        let request = name.request();
        let reply = self
            .ttrpc
            .start_process(within(LONG_CALL_DEADLINE), &request);
        self.answer("StartProcess", reply.await).map(drop)
    }

    /// The only call without a deadline: it answers when the process has ended.
    pub async fn wait_process(
        &self,
        name: ProcessName<'_>,
    ) -> Result<WaitProcessReply, AgentError> {
        let reply = self
            .ttrpc
            .wait_process(Context::default(), &name.request())
            .await;
        self.answer("WaitProcess", reply)
    }

    pub async fn signal(
        &self,
        name: ProcessName<'_>,
        signal: u32,
        all: bool,
    ) -> Result<(), AgentError> {
        let request = SignalProcessRequest {
            container_id: name.container.to_owned(),
            exec_id: name.exec.unwrap_or_default().to_owned(),
            signal,
            all,
            ..SignalProcessRequest::default()
        };
        let reply = self.ttrpc.signal_process(within(CALL_DEADLINE), &request);
        self.answer("SignalProcess", reply.await).map(drop)
    }

    pub async fn resize(
        &self,
        name: ProcessName<'_>,
        rows: u32,
        columns: u32,
    ) -> Result<(), AgentError> {
        let request = ResizeTerminalRequest {
            container_id: name.container.to_owned(),
            exec_id: name.exec.unwrap_or_default().to_owned(),
            rows,
            columns,
            ..ResizeTerminalRequest::default()
        };
        let reply = self.ttrpc.resize_terminal(within(CALL_DEADLINE), &request);
        self.answer("ResizeTerminal", reply.await).map(drop)
    }

    pub async fn close_stdin(&self, name: ProcessName<'_>) -> Result<(), AgentError> {
        let request = name.request();
        let reply = self.ttrpc.close_stdin(within(CALL_DEADLINE), &request);
        self.answer("CloseStdin", reply.await).map(drop)
    }

    pub async fn pause(&self, container: &str) -> Result<(), AgentError> {
        let request = container_request(container);
        let reply = self.ttrpc.pause_container(within(CALL_DEADLINE), &request);
        self.answer("PauseContainer", reply.await).map(drop)
    }

    pub async fn resume(&self, container: &str) -> Result<(), AgentError> {
        let request = container_request(container);
        let reply = self.ttrpc.resume_container(within(CALL_DEADLINE), &request);
        self.answer("ResumeContainer", reply.await).map(drop)
    }

    /// Changes limits in the guest; `resources` is `linux.resources` of the OCI spec.
    pub async fn update(&self, container: &str, resources: Vec<u8>) -> Result<(), AgentError> {
        let request = UpdateContainerRequest {
            container_id: container.to_owned(),
            resources_json: resources,
            ..UpdateContainerRequest::default()
        };
        let reply = self.ttrpc.update_container(within(CALL_DEADLINE), &request);
        self.answer("UpdateContainer", reply.await).map(drop)
    }

    pub async fn processes(&self, container: &str) -> Result<Vec<Entry>, AgentError> {
        let request = container_request(container);
        let reply = self.ttrpc.list_processes(within(CALL_DEADLINE), &request);
        let mut processes = self.answer("ListProcesses", reply.await)?.processes;
        processes.truncate(PROCESSES_MAX);
        for process in &mut processes {
            process.command = clean(&process.command);
            process.terminal = clean(&process.terminal);
        }
        Ok(processes)
    }

    pub async fn stats(&self, container: &str) -> Result<ContainerStatsReply, AgentError> {
        let request = container_request(container);
        let reply = self.ttrpc.container_stats(within(CALL_DEADLINE), &request);
        self.answer("ContainerStats", reply.await)
    }

    pub async fn delete(&self, name: ProcessName<'_>) -> Result<(), AgentError> {
        let request = name.request();
        let reply = self.ttrpc.delete(within(LONG_CALL_DEADLINE), &request);
        self.answer("Delete", reply.await).map(drop)
    }

    /// Has the guest's kernel forget the shared files that nobody in it uses.
    pub async fn forget_files(&self) -> Result<(), AgentError> {
        let request = Empty::default();
        let reply = self
            .ttrpc
            .forget_files(within(LONG_CALL_DEADLINE), &request);
        self.answer("ForgetFiles", reply.await)?;
        Ok(())
    }

    /// Asks the guest to power off. That it does is seen by its VMM's end.
    pub async fn shutdown(&self) -> Result<(), AgentError> {
        let request = Empty::default();
        let reply = self.ttrpc.shutdown(within(CALL_DEADLINE), &request);
        match self.answer("Shutdown", reply.await) {
            Ok(_) | Err(AgentError::Lost) => Ok(()),
            Err(err) => Err(err),
        }
    }

    fn answer<T>(
        &self,
        call: &'static str,
        result: Result<T, TtrpcError>,
    ) -> Result<T, AgentError> {
        result.map_err(|err| match err {
            TtrpcError::RpcStatus(status) => AgentError::Refused {
                code: status.code(),
                message: clean(status.message()),
            },
            TtrpcError::Others(text) if text == DEADLINE_TEXT => AgentError::Deadline(call),
            TtrpcError::Others(text) if !text.starts_with(CLOSED_TEXT) => {
                AgentError::Nonsense(call)
            }
            _ => self
                .breach
                .get()
                .map_or(AgentError::Lost, |length| AgentError::TooLong(*length)),
        })
    }
}

fn container_request(container: &str) -> ContainerRequest {
    ContainerRequest {
        container_id: container.to_owned(),
        ..ContainerRequest::default()
    }
}

fn within(deadline: Duration) -> Context {
    context::with_duration(deadline)
}

/// ttrpc has no variant for its own deadline.
const DEADLINE_TEXT: &str = "Request deadline elapsed";

/// Nor for a request on a connection that has been closed before.
const CLOSED_TEXT: &str = "reserve channel capacity failed";

/// A text of the guest, fit to be shown: bounded and without control characters.
fn clean(text: &str) -> String {
    text.chars()
        .take(TEXT_MAX)
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    async fn greeting(bytes: &[u8]) -> Result<Hello, AgentError> {
        let (mut agent, mut host) = UnixStream::pair().unwrap();
        agent.write_all(bytes).await.unwrap();
        drop(agent);
        greet(&mut host).await
    }

    #[tokio::test]
    async fn current_greeting_is_accepted() {
        let mut line = serde_json::to_vec(&Hello::current()).unwrap();
        line.push(b'\n');
        assert_eq!(greeting(&line).await.unwrap(), Hello::current());
    }

    #[tokio::test]
    async fn bad_greetings_are_told_apart() {
        let old = br#"{"protocol":99,"agent_version":"x"}"#;
        let mut old = old.to_vec();
        old.push(b'\n');
        assert!(matches!(greeting(&old).await, Err(AgentError::Version(_))));
        assert!(matches!(greeting(b"").await, Err(AgentError::Lost)));
        assert!(matches!(
            greeting(b"hi\n").await,
            Err(AgentError::Greeting(_))
        ));
        let flood = vec![b'x'; 4096];
        assert!(matches!(
            greeting(&flood).await,
            Err(AgentError::Greeting(_))
        ));
    }

    async fn dialled(reply: &'static [u8]) -> Result<(UnixStream, u32), AgentError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let vmm = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut line = [0; 13];
            stream.read_exact(&mut line).await.unwrap();
            assert_eq!(&line, b"CONNECT 1025\n");
            stream.write_all(reply).await.unwrap();
        };
        let ports = GuestPorts::new(path.clone());
        tokio::join!(ports.connect(1025), vmm).0
    }

    #[tokio::test]
    async fn bytes_behind_the_ok_line_belong_to_the_connection() {
        let (mut stream, port) = dialled(b"OK 7\nhello").await.unwrap();
        assert_eq!(port, 7);
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hello");
    }

    #[tokio::test]
    async fn a_refused_port_and_nonsense_are_errors() {
        for reply in [&b""[..], b"OK\n", b"OK -1\n", b"OK 00000000000000000001\n"] {
            assert!(
                matches!(dialled(reply).await, Err(AgentError::Connect { .. })),
                "{reply:?}"
            );
        }
    }

    #[tokio::test]
    async fn an_agent_that_has_gone_is_lost_for_each_request() {
        let (agent, host) = UnixStream::pair().unwrap();
        drop(agent);
        let client = AgentClient::over(host);
        // The first meets the end of the connection, the others come after it.
        for _ in 0..3 {
            let answer = client.forget_files().await;
            assert!(matches!(answer, Err(AgentError::Lost)), "{answer:?}");
        }
    }

    #[test]
    fn texts_of_the_guest_are_bounded_and_harmless() {
        let text = clean(&format!("\x1b[2J{}", "x".repeat(10_000)));
        assert!(text.starts_with(" [2Jx"));
        assert_eq!(text.chars().count(), TEXT_MAX);
    }
}
