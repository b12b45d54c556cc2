//! `lazaret-agent`: PID 1 of the guest, from the initramfs. The same program is also
//! the stage that turns into a container's process (first argument `container-init`).

use std::env;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use lazaret_agent::container::{is_stage, run_stage};
use lazaret_agent::log::Records;
use lazaret_agent::sandbox::{Config, Sandbox};
use lazaret_agent::streams::Streams;
use lazaret_agent::{init, log, server};
use lazaret_protocol::{Hello, ports};
use rustix::process::getpid;
use tokio::io::AsyncWriteExt as _;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

/// The agent's program in the guest's root, through its read-only mount.
const PROGRAM: &str = "/init";

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    if is_stage(arguments.next().as_deref()) {
        return run_stage(arguments.next().as_deref());
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            // The end of PID 1 is a kernel panic, which the VMM reports as such.
            ExitCode::FAILURE
        }
    }
}

/// To the console, which the host keeps in the sandbox's log: the last resort.
#[expect(
    clippy::print_stderr,
    reason = "there is no other way left to be heard"
)]
fn report(error: &anyhow::Error) {
    eprintln!("lazaret-agent: {error:#}");
}

fn run() -> anyhow::Result<()> {
    if !getpid().is_init() {
        bail!("to be run as PID 1 of a lazaret guest");
    }
    init::prepare_guest().context("prepare the guest")?;
    let records = log::install().context("install the log")?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?
        .block_on(serve(records))
}

async fn serve(records: Records) -> anyhow::Result<()> {
    let streams = Arc::new(Streams::default());
    let config = Config {
        program: PathBuf::from(PROGRAM),
        cgroup_mount: PathBuf::from(init::CGROUP_MOUNT),
    };
    let sandbox = Sandbox::new(&config, Arc::clone(&streams)).context("make the sandbox")?;
    let connections = listen(ports::STREAM)?;
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(listen(ports::AGENT)?.into())
        .register_service(server::service(Arc::new(sandbox)));
    server.start().await.context("serve")?;
    // Kept open: its end tells the host that the agent is gone.
    let _ready = say_hello().await?;
    tokio::spawn(send_log(records));
    accept_streams(connections, &streams).await
}

fn listen(port: u32) -> anyhow::Result<VsockListener> {
    let address = VsockAddr::new(VMADDR_CID_ANY, port);
    VsockListener::bind(address).with_context(|| format!("listen on vsock port {port}"))
}

async fn say_hello() -> anyhow::Result<VsockStream> {
    let mut line = serde_json::to_vec(&Hello::current()).context("encode the hello line")?;
    line.push(b'\n');
    let address = VsockAddr::new(ports::HOST_CID, ports::READY);
    let mut host = VsockStream::connect(address)
        .await
        .context("connect to the host")?;
    host.write_all(&line).await.context("greet the host")?;
    Ok(host)
}

async fn send_log(records: Records) {
    let address = VsockAddr::new(ports::HOST_CID, ports::LOG);
    match VsockStream::connect(address).await {
        Ok(host) => records.forward(host).await,
        Err(error) => report(&anyhow::Error::new(error).context("connect the log to the host")),
    }
}

async fn accept_streams(connections: VsockListener, streams: &Streams) -> anyhow::Result<()> {
    loop {
        match connections.accept().await {
            Ok((connection, peer)) if peer.cid() == ports::HOST_CID => {
                streams.park(peer.port(), connection.into());
            }
            // Only the host has business here.
            Ok(_) => {}
            // This connection's trouble: the next one may fare better.
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error).context("accept a stream connection"),
        }
    }
}
