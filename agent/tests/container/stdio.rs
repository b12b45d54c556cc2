//! Bytes in, bytes out, and terminals.

use std::io::{Read, Write};
use std::time::Duration;

use lazaret_protocol::agent::{ResizeTerminalRequest, Stdio};
use serde_json::json;

use crate::harness::{Box, context, process, read_in_background, require_root, stream};

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_kept_apart() {
    require_root!();
    let outcome = Box::sh("cat; echo oops >&2").stdin(b"hello\n").run().await;
    assert_eq!(outcome.stdout, "hello\n");
    assert_eq!(outcome.stderr, "oops\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn output_of_any_size_arrives_whole() {
    const SIZE: usize = 100 << 20;
    require_root!();
    let script = format!("dd if=/dev/zero bs=64k count={} 2>/dev/null", SIZE >> 16);
    let outcome = Box::sh(&script).run().await;
    assert_eq!(outcome.stdout.len(), SIZE);
    assert!(outcome.stdout.bytes().all(|byte| byte == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn stdout_can_be_opened_by_name_by_any_user() {
    require_root!();
    let user = json!({ "uid": 1000, "gid": 1000 });
    let container = Box::sh("echo hi > /dev/stdout; echo ho >> /dev/stderr");
    let outcome = container.set("/process/user", user).run().await;
    assert_eq!(
        (outcome.stdout.as_str(), outcome.stderr.as_str()),
        ("hi\n", "ho\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_streams_stdio_is_the_null_device() {
    require_root!();
    let container = Box::sh("test \"$(readlink /proc/self/fd/2)\" = /dev/null && ! read line");
    let container = container.started().await;
    assert_eq!(container.wait("").await.exit_status, 0);
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn child_that_holds_the_pipe_does_not_hold_the_wait_of_an_exec() {
    require_root!();
    let container = Box::new(&["sleep", "1000"]).started().await;
    let run = container.exec_detached("echo first; sleep 1000 &").await;
    assert_eq!(run, "first\n");
    container.delete().await;
}

impl Box {
    /// The output that is there when the wait for the process is answered.
    async fn exec_detached(&self, script: &str) -> String {
        let (stdout_port, mut host) = stream();
        let mut stdio = Stdio::new();
        stdio.stdout_port = stdout_port;
        self.create_process("e", process(&["sh", "-c", script]), stdio)
            .await;
        self.start("e").await.expect("start");
        assert_eq!(self.wait("e").await.exit_status, 0);
        host.set_read_timeout(Some(Duration::from_secs(10)))
            .expect("timeout");
        let mut buffer = [0; 64];
        let length = host.read(&mut buffer).expect("output is there");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn end_of_the_first_process_is_the_end_of_its_children() {
    require_root!();
    let outcome = Box::sh("sleep 1000 & echo gone").run().await;
    assert_eq!((outcome.status, outcome.stdout.as_str()), (0, "gone\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn close_stdin_ends_the_input() {
    require_root!();
    let container = Box::new(&["cat"]);
    let (stdin_port, mut input) = stream();
    let (stdout_port, output) = stream();
    let mut stdio = Stdio::new();
    stdio.stdin_port = stdin_port;
    stdio.stdout_port = stdout_port;
    container.create(stdio).await.expect("create");
    container.start("").await.expect("start");
    input.write_all(b"sent before").expect("write");
    let request = container.request("");
    container
        .client
        .close_stdin(context(), &request)
        .await
        .expect("close");
    assert_eq!(container.wait("").await.exit_status, 0);
    let output = read_in_background(output).join().expect("reader lives");
    assert_eq!(output, b"sent before");
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terminal_has_size_and_is_the_console() {
    require_root!();
    let script = "tty; stty size; test -c /dev/console && echo console; read go; stty size; \
                  exit 3";
    let container = Box::sh(script)
        .set("/process/terminal", json!(true))
        .set("/process/consoleSize", json!({ "height": 24, "width": 80 }));
    let (stdin_port, mut input) = stream();
    let (stdout_port, output) = stream();
    let mut stdio = Stdio::new();
    stdio.stdin_port = stdin_port;
    stdio.stdout_port = stdout_port;
    container.create(stdio).await.expect("create");
    container.start("").await.expect("start");
    let mut resize = ResizeTerminalRequest::new();
    resize.container_id.clone_from(&container.id);
    // Only after the first size has been printed.
    let mut output = output;
    let mut seen = String::new();
    while !seen.contains("console") {
        let mut buffer = [0; 256];
        let length = output.read(&mut buffer).expect("terminal output");
        assert!(length > 0, "terminal ended: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    assert_eq!(seen, "/dev/pts/0\r\n24 80\r\nconsole\r\n");
    (resize.rows, resize.columns) = (50, 132);
    container
        .client
        .resize_terminal(context(), &resize)
        .await
        .expect("resize");
    input.write_all(b"go\n").expect("write");
    let rest = read_in_background(output);
    assert_eq!(container.wait("").await.exit_status, 3);
    let rest = String::from_utf8(rest.join().expect("reader lives")).expect("text");
    assert_eq!(rest, "go\r\n50 132\r\n");
    container.delete().await;
}
