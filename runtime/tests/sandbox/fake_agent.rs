//! An agent without a kernel: its containers run programs that it makes up.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use async_trait::async_trait;
use futures_core::Stream;
use lazaret_protocol::agent::*;
use lazaret_protocol::agent_ttrpc::{Agent, create_agent};
use lazaret_protocol::ports;
use lazaret_vmm::control::{ControlSocket, ExitReason, VmmEvent};
use protobuf::Message;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, TtrpcContext};
use ttrpc::error::get_rpc_status;
use ttrpc::{Code, Result};

use crate::fake_vmm::{self, Streams};

struct Incoming(mpsc::Receiver<UnixStream>);

impl Stream for Incoming {
    type Item = std::io::Result<UnixStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|stream| stream.map(Ok))
    }
}

pub async fn serve(
    scenario: &str,
    incoming: mpsc::Receiver<UnixStream>,
    streams: Streams,
    control: Arc<ControlSocket>,
    ready: UnixStream,
) {
    let agent = FakeAgent {
        scenario: scenario.to_owned(),
        streams,
        control,
        ready: Mutex::new(Some(ready)),
        remembering: Mutex::default(),
        processes: Mutex::default(),
    };
    let mut server = Server::new()
        .add_listener(Listener::new(Incoming(incoming)))
        .register_service(create_agent(Arc::new(agent)));
    server.start().await.unwrap();
    std::future::pending::<()>().await;
}

struct FakeAgent {
    scenario: String,
    streams: Streams,
    control: Arc<ControlSocket>,
    ready: Mutex<Option<UnixStream>>,
    /// Ends when files are forgotten.
    remembering: Mutex<Option<Arc<Process>>>,
    processes: Mutex<HashMap<(String, String), Arc<Process>>>,
}

struct Process {
    args: Vec<String>,
    stdio: Mutex<Stdio>,
    /// Its start has been refused once.
    refused: AtomicBool,
    started: AtomicBool,
    status: watch::Sender<Option<u32>>,
    size: watch::Sender<(u32, u32)>,
}

impl FakeAgent {
    fn add(&self, container: &str, exec: &str, process: &Value, stdio: Stdio) {
        let args = process["args"].as_array().unwrap();
        let args = args.iter().map(|arg| arg.as_str().unwrap().to_owned());
        let process = Process {
            args: args.collect(),
            stdio: Mutex::new(stdio),
            refused: AtomicBool::new(false),
            started: AtomicBool::new(false),
            status: watch::Sender::new(None),
            size: watch::Sender::new((0, 0)),
        };
        let key = (container.to_owned(), exec.to_owned());
        self.processes
            .lock()
            .unwrap()
            .insert(key, Arc::new(process));
    }

    fn find(&self, container: &str, exec: &str) -> Result<Arc<Process>> {
        let key = (container.to_owned(), exec.to_owned());
        let found = self.processes.lock().unwrap().get(&key).cloned();
        found.ok_or_else(|| get_rpc_status(Code::NOT_FOUND, format!("no process {key:?}")))
    }

    /// A container that ends while its microVM is still there.
    fn must_not_be_ending(&self) -> Result<()> {
        if self.scenario == "ending" {
            let text = "container box is not running";
            return Err(get_rpc_status(Code::ABORTED, text));
        }
        Ok(())
    }

    fn stream(&self, port: u32) -> Option<UnixStream> {
        self.streams.lock().unwrap().remove(&port)
    }

    fn run(&self, process: Arc<Process>) {
        let stdio = process.stdio.lock().unwrap().clone();
        let input = self.stream(stdio.stdin_port);
        let stdout = self.stream(stdio.stdout_port);
        let stderr = self.stream(stdio.stderr_port);
        match process.args[0].as_str() {
            "kill-vmm" => fake_vmm::die(),
            "panic" => fake_vmm::exit(&self.control, ExitReason::Panic),
            "resolve" => {
                let ends = [ports::DNS_DATAGRAM, ports::DNS_STREAM]
                    .map(|kind| (kind, fake_vmm::connect_host(&self.control, ports::DNS)));
                tokio::spawn(async move {
                    let status = u32::from(!resolve(ends).await);
                    process.status.send_replace(Some(status));
                });
                return;
            }
            "remember" => {
                *self.remembering.lock().unwrap() = Some(process);
                self.control.send(&VmmEvent::ManyFiles, &[]).unwrap();
                return;
            }
            "leave" => drop(self.ready.lock().unwrap().take()),
            _ => {}
        }
        tokio::spawn(async move {
            let status = program(&process, input, stdout, stderr).await;
            process.status.send_if_modified(|now| {
                let first = now.is_none();
                now.get_or_insert(status);
                first
            });
        });
    }
}

/// Lets the test know how far things are.
fn note(name: &str) {
    let dir = std::env::var("LAZARET_FAKE_DIR").unwrap();
    std::fs::write(format!("{dir}/{name}"), "").unwrap();
}

/// The resolver reverses datagrams and repeats what comes on streams.
async fn resolve(ends: [(u8, UnixStream); 2]) -> bool {
    for (kind, mut host) in ends {
        host.write_all(&[kind, 0, 3, b'a', b'b', b'c'])
            .await
            .unwrap();
        let mut answer = [0; 5];
        host.read_exact(&mut answer).await.unwrap();
        let expected = match kind {
            ports::DNS_DATAGRAM => b"\0\x03cba",
            _ => b"\0\x03abc",
        };
        if answer != *expected {
            return false;
        }
    }
    true
}

/// What SIGPIPE leaves.
const BROKEN_PIPE: u32 = 141;

/// Shows its terminal's size, and what is typed, until it is ended by a signal.
async fn show_sizes(process: &Process, mut stdin: UnixStream, mut stdout: UnixStream) -> u32 {
    let mut status = process.status.subscribe();
    let mut size = process.size.subscribe();
    size.mark_changed();
    let mut buffer = vec![0; 4096];
    let mut typing = true;
    loop {
        let text = tokio::select! {
            ended = status.wait_for(Option::is_some) => return ended.unwrap().unwrap(),
            changed = size.changed() => {
                changed.unwrap();
                let (rows, columns) = *size.borrow_and_update();
                format!("{rows}x{columns}\n").into_bytes()
            }
            read = stdin.read(&mut buffer), if typing => {
                let read = read.unwrap();
                typing = read > 0;
                buffer[..read].to_vec()
            }
        };
        // A terminal that has hung up is told of by a signal.
        let _ = stdout.write_all(&text).await;
    }
}

/// What the made-up programs do; the streams close as they return.
async fn program(
    process: &Process,
    stdin: Option<UnixStream>,
    stdout: Option<UnixStream>,
    _stderr: Option<UnixStream>,
) -> u32 {
    let args: Vec<&str> = process.args.iter().map(String::as_str).collect();
    match args[..] {
        ["exit", status] => status.parse().unwrap(),
        ["kill-vmm-when-signalled"] => {
            let mut status = process.status.subscribe();
            status.wait_for(Option::is_some).await.unwrap();
            fake_vmm::die()
        }
        ["echo", text] => {
            let line = format!("{text}\n");
            stdout.unwrap().write_all(line.as_bytes()).await.unwrap();
            0
        }
        ["cat"] => {
            let (mut stdin, mut stdout) = (stdin.unwrap(), stdout.unwrap());
            let mut buffer = vec![0; 65536];
            loop {
                let count = stdin.read(&mut buffer).await.unwrap();
                if count == 0 {
                    return 0;
                }
                stdout.write_all(&buffer[..count]).await.unwrap();
            }
        }
        ["write", count] => {
            let mut left: usize = count.parse().unwrap();
            let mut stdout = stdout.unwrap();
            let block: Vec<u8> = (0..65536_u32)
                .map(|at| {
                    if at % 64 == 63 {
                        b'\n'
                    } else {
                        b'a' + (at % 26) as u8
                    }
                })
                .collect();
            while left > 0 {
                let count = left.min(block.len());
                if stdout.write_all(&block[..count]).await.is_err() {
                    return BROKEN_PIPE;
                }
                left -= count;
            }
            0
        }
        ["count"] => {
            let (mut stdin, mut count, mut sum) = (stdin.unwrap(), 0, 0_u64);
            let mut buffer = vec![0; 65536];
            loop {
                let read = stdin.read(&mut buffer).await.unwrap();
                if read == 0 {
                    break;
                }
                count += read;
                sum += buffer[..read].iter().map(|b| u64::from(*b)).sum::<u64>();
            }
            let line = format!("{count} {sum}\n");
            stdout.unwrap().write_all(line.as_bytes()).await.unwrap();
            0
        }
        // An agent tells of an end when all output is with the host.
        ["ignore-signals", "write"] => {
            let mut stdout = stdout.unwrap();
            while stdout.write_all(&[b'x'; 4096]).await.is_ok() {}
            137
        }
        ["sizes"] => show_sizes(process, stdin.unwrap(), stdout.unwrap()).await,
        _ => {
            let mut status = process.status.subscribe();
            let ended = status.wait_for(Option::is_some).await.unwrap();
            ended.unwrap()
        }
    }
}

fn stdio(stdio: protobuf::MessageField<Stdio>) -> Stdio {
    stdio.into_option().unwrap_or_default()
}

#[async_trait]
impl Agent for FakeAgent {
    async fn setup_sandbox(
        &self,
        _: &TtrpcContext,
        request: SetupSandboxRequest,
    ) -> Result<SetupSandboxReply> {
        assert!(request.entropy.len() >= 32 && request.wall_clock_ns > 0);
        if self.scenario == "deaf" {
            std::future::pending::<()>().await;
        }
        Ok(SetupSandboxReply {
            kernel_release: "fake\x1b[2J".to_owned(),
            ..SetupSandboxReply::default()
        })
    }

    async fn configure_network(
        &self,
        _: &TtrpcContext,
        request: ConfigureNetworkRequest,
    ) -> Result<Empty> {
        let dir = std::env::var("LAZARET_FAKE_DIR").unwrap();
        let (new, noted) = (format!("{dir}/network.new"), format!("{dir}/network"));
        std::fs::write(&new, request.write_to_bytes().unwrap()).unwrap();
        std::fs::rename(new, noted).unwrap();
        Ok(Empty::default())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerReply> {
        if self.scenario == "slow-create" {
            std::future::pending::<()>().await;
        }
        let spec: Value = serde_json::from_slice(&request.spec_json).unwrap();
        let id = &request.container_id;
        let dir = std::env::var("LAZARET_FAKE_DIR").unwrap();
        std::fs::write(format!("{dir}/name"), &request.name).unwrap();
        let below = format!("/run/lazaret/shared/{id}");
        let root = spec["root"]["path"].as_str().unwrap();
        assert!(
            root == format!("{below}/rootfs") || root == format!("{below}/engine-rootfs"),
            "{root}"
        );
        for (number, mount) in spec["mounts"].as_array().unwrap().iter().enumerate() {
            assert_eq!(mount["source"], format!("{below}/mounts/{number}"));
        }
        if self.scenario == "cannot-create" {
            let text = "linux.seccomp: no such\x1b thing";
            return Err(get_rpc_status(Code::UNIMPLEMENTED, text));
        }
        self.add(id, "", &spec["process"], stdio(request.stdio));
        Ok(CreateContainerReply::default())
    }

    async fn create_process(
        &self,
        _: &TtrpcContext,
        request: CreateProcessRequest,
    ) -> Result<CreateProcessReply> {
        self.must_not_be_ending()?;
        let process: Value = serde_json::from_slice(&request.process_json).unwrap();
        let (container, exec) = (&request.container_id, &request.exec_id);
        self.add(container, exec, &process, stdio(request.stdio));
        Ok(CreateProcessReply::default())
    }

    async fn start_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRequest,
    ) -> Result<StartProcessReply> {
        let process = self.find(&request.container_id, &request.exec_id)?;
        let name = &process.args[0];
        match name.as_str() {
            "missing" => Err(get_rpc_status(
                Code::NOT_FOUND,
                format!("exec: {name:?}: executable file not found in $PATH"),
            )),
            "denied" => Err(get_rpc_status(
                Code::PERMISSION_DENIED,
                format!("exec: {name:?}: permission denied"),
            )),
            "paused-at-first" if !process.refused.swap(true, Ordering::Relaxed) => {
                let text = "container box is paused";
                Err(get_rpc_status(Code::FAILED_PRECONDITION, text))
            }
            "end-in-start" | "go-in-start" => {
                note("starting");
                let mut status = process.status.subscribe();
                status.wait_for(Option::is_some).await.unwrap();
                if name == "go-in-start" {
                    std::future::pending::<()>().await;
                }
                let text = "the process was killed during its start";
                Err(get_rpc_status(Code::ABORTED, text))
            }
            _ if process.started.swap(true, Ordering::Relaxed) => Err(get_rpc_status(
                Code::FAILED_PRECONDITION,
                "the process has been started already",
            )),
            _ => {
                self.run(process);
                Ok(StartProcessReply::default())
            }
        }
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRequest,
    ) -> Result<WaitProcessReply> {
        let process = self.find(&request.container_id, &request.exec_id)?;
        let mut status = process.status.subscribe();
        // After its start has failed, by the test's word.
        let late = process.args[0] == "end-in-start";
        let has_ended = |status: &Option<u32>| match status {
            Some(status) => !late || *status == 137,
            None => false,
        };
        let ended = *status.wait_for(has_ended).await.unwrap();
        Ok(WaitProcessReply {
            exit_status: ended.unwrap(),
            ..WaitProcessReply::default()
        })
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> Result<Empty> {
        let process = self.find(&request.container_id, &request.exec_id)?;
        match process.args[0].as_str() {
            "ignore-signals" => return Ok(Empty::default()),
            "refuse-signals" => return Err(get_rpc_status(Code::INTERNAL, "no")),
            "deny-signals" => return Err(get_rpc_status(Code::NOT_FOUND, "no such process")),
            _ => {}
        }
        process.status.send_replace(Some(128 + request.signal));
        Ok(Empty::default())
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> Result<Empty> {
        let process = self.find(&request.container_id, &request.exec_id)?;
        process.size.send_replace((request.rows, request.columns));
        Ok(Empty::default())
    }

    async fn close_stdin(&self, _: &TtrpcContext, _: ProcessRequest) -> Result<Empty> {
        Ok(Empty::default())
    }

    async fn pause_container(&self, _: &TtrpcContext, _: ContainerRequest) -> Result<Empty> {
        self.must_not_be_ending()?;
        Ok(Empty::default())
    }

    async fn resume_container(&self, _: &TtrpcContext, _: ContainerRequest) -> Result<Empty> {
        Ok(Empty::default())
    }

    async fn update_container(&self, _: &TtrpcContext, _: UpdateContainerRequest) -> Result<Empty> {
        self.must_not_be_ending()?;
        Ok(Empty::default())
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        _: ContainerRequest,
    ) -> Result<ListProcessesReply> {
        let mut reply = ListProcessesReply::default();
        if self.scenario == "swollen" {
            // Below ttrpc's own bound, and a hundred times that when decoded.
            reply.processes = vec![list_processes_reply::Entry::default(); 2_000_000];
        }
        Ok(reply)
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        _: ContainerRequest,
    ) -> Result<ContainerStatsReply> {
        Ok(ContainerStatsReply {
            pids_current: 3,
            ..ContainerStatsReply::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: ProcessRequest) -> Result<Empty> {
        let key = (request.container_id, request.exec_id);
        self.processes.lock().unwrap().remove(&key);
        Ok(Empty::default())
    }

    async fn forget_files(&self, _: &TtrpcContext, _: Empty) -> Result<Empty> {
        let process = self.remembering.lock().unwrap().take();
        process.unwrap().status.send_replace(Some(0));
        Ok(Empty::default())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> Result<Empty> {
        if self.scenario != "stays" {
            fake_vmm::exit(&self.control, ExitReason::Shutdown);
        }
        Ok(Empty::default())
    }
}
