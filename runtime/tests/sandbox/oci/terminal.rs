//! Terminals: by the console socket, and relayed.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use serde_json::json;

use super::{Engine, adopt, read_pid, reap, wait};

/// What an engine receives on its console socket.
fn receive_master(listener: &UnixListener) -> File {
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        &stream,
        &mut [IoSliceMut::new(&mut name)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    assert!(received.bytes > 0);
    let fd: Option<OwnedFd> = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.unwrap().into()
}

fn read_line(from: &mut File) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while text.last() != Some(&b'\n') {
        from.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn the_console_socket_gets_the_containers_terminal() {
    adopt();
    let engine = Engine::new("ok");
    engine.spec(&["cat"], |spec| spec["process"]["terminal"] = json!(true));
    let socket = engine.path("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (bundle, pid_file) = (engine.path("bundle"), engine.path("init.pid"));
    engine
        .run(&[
            "create",
            "-b",
            bundle.to_str().unwrap(),
            "--pid-file",
            pid_file.to_str().unwrap(),
            "--console-socket",
            socket.to_str().unwrap(),
            "box",
        ])
        .ok();
    let mut master = receive_master(&listener);
    engine.run(&["start", "box"]).ok();
    master.write_all(b"typed\n").unwrap();
    assert_eq!(read_line(&mut master), "typed\n");
    engine.run(&["kill", "box", "KILL"]).ok();
    assert_eq!(reap(engine.pid()).code(), Some(137));
    // Nobody holds the other side any more.
    assert!(master.read(&mut [0]).is_err());
    engine.run(&["delete", "box"]).ok();
    engine.nothing_is_left();
}

#[test]
fn an_exec_has_a_terminal_of_its_own() {
    adopt();
    let engine = Engine::new("ok");
    engine.spec(&["sleep"], |_| {});
    engine.create().ok();
    engine.run(&["start", "box"]).ok();
    let socket = engine.path("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let pid_file = engine.path("exec.pid");
    engine
        .run(&[
            "exec",
            "-d",
            "-t",
            "--console-socket",
            socket.to_str().unwrap(),
            "--pid-file",
            pid_file.to_str().unwrap(),
            "box",
            "cat",
        ])
        .ok();
    let mut master = receive_master(&listener);
    master.write_all(b"line\n").unwrap();
    assert_eq!(read_line(&mut master), "line\n");
    let pid = read_pid(&pid_file);
    super::kill(pid, rustix::process::Signal::TERM);
    assert_eq!(reap(pid).code(), Some(143));
    assert!(master.read(&mut [0]).is_err());
    engine.run(&["delete", "-f", "box"]).ok();
    reap(engine.pid());
    engine.nothing_is_left();
}

#[test]
fn run_relays_its_terminal_and_restores_it() {
    let engine = Engine::new("ok");
    engine.spec(&["cat"], |spec| spec["process"]["terminal"] = json!(true));
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let user = openpt(flags).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let terminal = ioctl_tiocgptpeer(&user, flags).unwrap();
    let before = tcgetattr(&terminal).unwrap();
    let bundle = engine.path("bundle");
    let mut child = engine
        .command(&["run", "-b", bundle.to_str().unwrap(), "box"])
        .stdin(terminal.try_clone().unwrap())
        .stdout(terminal.try_clone().unwrap())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    engine.wait_for("the raw terminal", || {
        let now = tcgetattr(&terminal).unwrap();
        !now.local_modes.contains(LocalModes::ICANON)
    });
    let mut user = File::from(user);
    user.write_all(b"relayed\n").unwrap();
    assert_eq!(read_line(&mut user), "relayed\n");
    engine.run(&["kill", "box", "TERM"]).ok();
    assert_eq!(wait(&mut child).code(), Some(143));
    let after = tcgetattr(&terminal).unwrap();
    assert_eq!(after.local_modes, before.local_modes);
    engine.nothing_is_left();
}
