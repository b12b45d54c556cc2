//! Terminals: relayed by `run` and `exec`, or given away through a console socket.

use lazaret_tests::{Oci, start};
use serde_json::json;

#[test]
fn run_and_exec_relay_their_terminals() {
    let lazaret = start!("oci-terminal");
    let oci = Oci::new(&lazaret);
    let bundle = oci.bundle_with("", |config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["args"] = json!(["sh"]);
    });
    let (path, id) = (&bundle.path, &bundle.id);
    oci.create(&bundle)
        .status(1)
        .stderr_contains("console socket");

    let mut run = oci.cmd(["run", "--bundle", path, id]).terminal(31, 91);
    run.ask_until("stty size\n", "31 91");
    run.pull_until(32, 92);
    let mut exec = oci.cmd(["exec", "-t", id, "sh"]).terminal(20, 70);
    exec.ask_until("stty size\n", "20 70");
    exec.pull_until(21, 71);
    exec.write("test -t 0 && test -t 1 && test -t 2 && exit 3\n");
    exec.status(3);
    run.write("sh -c 'echo $((6*7)) go; exec sleep 1000'\n");
    run.expect("42 go");
    run.write("\x03");
    run.write("exit 8\n");
    run.status(8);
    oci.call(["state", id]).status(1);
}

#[test]
fn console_socket_gets_the_terminal() {
    let lazaret = start!("oci-console");
    let oci = Oci::new(&lazaret);
    let probe = lazaret.probe();
    let bundle = oci.bundle_with("", |config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["args"] = json!(["sh"]);
    });
    let (path, id) = (&bundle.path, &bundle.id);
    let socket = format!("{path}/socket");
    let listen = |socket: &str, rows: &str| {
        let listen = format!("exec {probe} console {socket} {rows} 100");
        let mut engine = lazaret.sh_cmd(&listen).spawn();
        assert_eq!(engine.line(), "listening");
        engine
    };
    let mut engine = listen(&socket, "40");
    oci.call(["create", "--bundle", path, "--console-socket", &socket, id])
        .success();
    oci.call(["start", id]).success();
    engine.write("echo is $(stty size) on $(tty)\n");
    while engine.line().trim() != "is 40 100 on /dev/pts/0" {}

    // A process that is added has one of its own.
    let socket = format!("{path}/exec-socket");
    let mut added = listen(&socket, "50");
    oci.call([
        "exec",
        "--detach",
        "--tty",
        "--console-socket",
        &socket,
        id,
        "sh",
    ])
    .success();
    added.write("echo is $(stty size) on $(tty)\n");
    let is_there = |line: &str| line.starts_with("is 50 100 on /dev/pts/");
    while !is_there(added.line().trim()) {}
    added.write("exit\n");
    added.wait().status(0);

    engine.write("exit 4\n");
    engine.wait().status(0);
    oci.until_stopped(&bundle);
    oci.call(["delete", id]).success();
}
