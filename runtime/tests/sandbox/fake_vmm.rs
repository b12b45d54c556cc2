//! A VMM without a machine: speaks the control protocol, and has the fake agent
//! in it. What it does is named by the environment.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::sync::{Arc, Mutex};

use lazaret_protocol::{Hello, ports};
use lazaret_vmm::config::{VmConfig, VmFds};
use lazaret_vmm::control::{BackendChange, ControlSocket, ExitReason, VmmEvent, VmmRequest};
use rustix::process::{Signal, getpid, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::fake_agent;
use crate::fake_tap::Taps;

/// Connections to the stream port, by their host port.
pub type Streams = Arc<Mutex<HashMap<u32, UnixStream>>>;

/// Not a test: the fake VMM's entry. Run as a test it has nothing to do.
#[test]
fn play() {
    let Ok(scenario) = std::env::var("LAZARET_FAKE_VMM") else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run(&scenario));
    std::process::exit(0);
}

pub fn exit(control: &ControlSocket, reason: ExitReason) -> ! {
    let event = VmmEvent::Exited {
        reason,
        vm_exits: Vec::new(),
    };
    let _ = control.send(&event, &[]);
    std::process::exit(0);
}

pub fn die() -> ! {
    // As the first process of its PID namespace it cannot end itself by a
    // signal: without a word is what counts.
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::exit(42);
}

async fn run(scenario: &str) {
    let control = ControlSocket::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
    let control = Arc::new(control);
    let (config, fds) = control.recv::<VmConfig>().unwrap().unwrap();
    config.validate().unwrap();
    let fds = VmFds::try_from(fds).unwrap();
    match scenario {
        "refuse" => exit(&control, ExitReason::Start("no such kernel".to_owned())),
        "die" => die(),
        "nonsense" => {
            control.send(&"what?", &[]).unwrap();
            std::future::pending::<()>().await;
        }
        _ => {}
    }
    control.send(&VmmEvent::Started, &[]).unwrap();
    let requests = Arc::clone(&control);
    let takes_no_disk = scenario == "takes-no-disk";
    std::thread::spawn(move || {
        let mut taps = Taps::default();
        loop {
            match requests.recv::<VmmRequest>() {
                Ok(Some((VmmRequest::Backend { change, .. }, _)))
                    if takes_no_disk && matches!(change, BackendChange::ConnectBlock { .. }) => {}
                Ok(Some((VmmRequest::Backend { id, change }, fds))) => {
                    let refusal = taps.change(change, fds);
                    let answer = VmmEvent::Backend { id, refusal };
                    requests.send(&answer, &[]).unwrap();
                }
                Ok(Some((VmmRequest::Stop, _))) => exit(&requests, ExitReason::Stopped),
                Ok(Some(_)) => {}
                _ => std::process::exit(1),
            }
        }
    });
    boot(scenario, &control, fds).await;
}

async fn boot(scenario: &str, control: &Arc<ControlSocket>, fds: VmFds) {
    rustix::io::write(&fds.console, b"Linux version 0.0 (fake)\n").unwrap();
    let mut ready = connect_host(control, ports::READY);
    match scenario {
        "silent" => std::future::pending().await,
        "gone" => {
            drop(ready);
            return std::future::pending().await;
        }
        "wrong-version" => {
            let hello = Hello {
                protocol: 99,
                ..Hello::current()
            };
            say(&mut ready, &hello).await;
            return std::future::pending().await;
        }
        "panic" => exit(control, ExitReason::Panic),
        _ => {}
    }
    let mut log = connect_host(control, ports::LOG);
    log.write_all(b"{\"message\":\"agent up\"}\n")
        .await
        .unwrap();
    if scenario == "flood" {
        tokio::spawn(async move {
            let line = [b'x'; 4096];
            while log.write_all(&line).await.is_ok() {}
        });
        let console = fds.console.try_clone().unwrap();
        std::thread::spawn(move || while rustix::io::write(&console, &[b'y'; 4096]).is_ok() {});
    }
    say(&mut ready, &Hello::current()).await;
    let (agent_connections, incoming) = mpsc::channel(4);
    let streams = Streams::default();
    let agent = fake_agent::serve(
        scenario,
        incoming,
        Arc::clone(&streams),
        Arc::clone(control),
        ready,
    );
    let accept = accept(fds.vsock_listener, agent_connections, streams);
    tokio::join!(agent, accept);
}

async fn say(ready: &mut UnixStream, hello: &Hello) {
    let mut line = serde_json::to_vec(hello).unwrap();
    line.push(b'\n');
    ready.write_all(&line).await.unwrap();
}

pub fn connect_host(control: &ControlSocket, port: u32) -> UnixStream {
    let (guest, host) = StdUnixStream::pair().unwrap();
    control
        .send(&VmmEvent::VsockConnection { port }, &[host.as_fd()])
        .unwrap();
    guest.set_nonblocking(true).unwrap();
    UnixStream::from_std(guest).unwrap()
}

async fn accept(listener: OwnedFd, agent: mpsc::Sender<UnixStream>, streams: Streams) {
    let listener = StdUnixListener::from(listener);
    listener.set_nonblocking(true).unwrap();
    let listener = UnixListener::from_std(listener).unwrap();
    let mut host_port = 5000;
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(stream.read_u8().await.unwrap());
        }
        host_port += 1;
        let port = String::from_utf8(line).unwrap();
        let port: u32 = port
            .trim()
            .strip_prefix("CONNECT ")
            .unwrap()
            .parse()
            .unwrap();
        if port == ports::STREAM {
            streams.lock().unwrap().insert(host_port, stream);
            let mut held = streams.lock().unwrap();
            let stream = held.get_mut(&host_port).unwrap();
            let ok = format!("OK {host_port}\n");
            assert_eq!(stream.try_write(ok.as_bytes()).unwrap(), ok.len());
        } else {
            let ok = format!("OK {host_port}\n");
            stream.write_all(ok.as_bytes()).await.unwrap();
            agent.send(stream).await.unwrap();
        }
    }
}
