//! Further processes in a container, attended and left alone.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::json;

use super::{Engine, adopt, kill, read_pid, reap, wait};

fn running(scenario: &str) -> Engine {
    adopt();
    let engine = Engine::new(scenario);
    engine.spec(&["sleep"], |_| {});
    engine.create().ok();
    engine.run(&["start", "box"]).ok();
    engine
}

fn end(engine: &Engine) {
    engine.run(&["delete", "--force", "box"]).ok();
    reap(engine.pid());
    engine.nothing_is_left();
}

#[test]
fn an_attended_process_gives_output_and_status() {
    let engine = running("ok");
    let said = engine.run(&["exec", "box", "echo", "hi"]);
    assert_eq!(said.ok().stdout, "hi\n");
    let said = engine.run(&["exec", "box", "exit", "3"]);
    assert_eq!(said.status.code(), Some(3), "{said:?}");
    let mut child = engine
        .command(&["exec", "box", "cat"])
        .stdin(Stdio::piped())
        .stdout(File::create(engine.path("out")).unwrap())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"to and fro")
        .unwrap();
    assert!(wait(&mut child).success());
    let text = std::fs::read_to_string(engine.path("out")).unwrap();
    assert_eq!(text, "to and fro");
    end(&engine);
}

#[test]
fn signals_to_an_attended_process_are_its_own() {
    let engine = running("ok");
    let mut child = engine
        .command(&["exec", "--pid-file"])
        .arg(engine.path("exec.pid"))
        .args(["box", "sleep"])
        .spawn()
        .unwrap();
    let pid_file = engine.path("exec.pid");
    engine.wait_for("the pid file", || pid_file.exists());
    let pid = rustix::process::Pid::from_child(&child);
    assert_eq!(read_pid(&pid_file), pid);
    kill(pid, Signal::TERM);
    assert_eq!(wait(&mut child).code(), Some(143));
    end(&engine);
}

/// As conmon and go-runc do it.
fn exec_detached(engine: &Engine, args: &[&str]) -> rustix::process::Pid {
    let process = json!({ "args": args, "cwd": "/" }).to_string();
    std::fs::write(engine.path("process.json"), process).unwrap();
    let pid_file = engine.path("exec.pid");
    let process = engine.path("process.json");
    let (pid_file, process) = (pid_file.to_str().unwrap(), process.to_str().unwrap());
    engine
        .run(&[
            "exec",
            "--pid-file",
            pid_file,
            "--process",
            process,
            "--detach",
            "box",
        ])
        .ok();
    read_pid(&engine.path("exec.pid"))
}

#[test]
fn a_small_process_stands_for_a_detached_one_and_ends_with_its_status() {
    let engine = running("ok");
    for status in [0, 5] {
        let pid = exec_detached(&engine, &["exit", &status.to_string()]);
        assert_eq!(reap(pid).code(), Some(status));
    }
    let pid = exec_detached(&engine, &["sleep"]);
    let rollup = format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero());
    let rollup = std::fs::read_to_string(rollup).unwrap();
    // The rest are pages of the program, shared with all others of its kind.
    let own = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"))
        .and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap();
    assert!(own < 1024, "{own} KiB are its own:\n{rollup}");
    kill(pid, Signal::USR1);
    assert_eq!(reap(pid).code(), Some(138));
    end(&engine);
}

#[test]
fn the_death_of_what_stands_for_a_process_is_its_own() {
    let engine = running("ok");
    let pid = exec_detached(&engine, &["kill-vmm-when-signalled"]);
    kill(pid, Signal::KILL);
    assert_eq!(reap(pid).signal(), Some(9));
    // The program of the agent's ends its machine when it is signalled.
    assert_eq!(reap(engine.pid()).code(), Some(137));
    engine.run(&["delete", "box"]).ok();
    engine.nothing_is_left();
}

#[test]
fn what_stands_for_a_process_ends_with_the_sandbox() {
    let engine = running("ok");
    let pid = exec_detached(&engine, &["sleep"]);
    kill(engine.pid(), Signal::KILL);
    reap(engine.pid());
    assert_eq!(reap(pid).code(), Some(137));
    engine.run(&["delete", "box"]).ok();
    engine.nothing_is_left();
}

#[test]
fn what_cannot_be_executed_is_said_in_runcs_words() {
    let engine = running("ok");
    let said = engine.run(&["exec", "box", "missing"]);
    said.fails(
        255,
        r#"exec failed: unable to start container process: exec: "missing": executable file not found in $PATH"#,
    );
    engine
        .run(&["exec", "box", "denied"])
        .fails(255, "permission denied");
    // In the log as well, where containerd's shim looks for it.
    let log = std::fs::read_to_string(engine.path("log.json")).unwrap();
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    assert!(last["msg"].as_str().unwrap().contains("permission denied"));

    std::fs::write(
        engine.path("process.json"),
        json!({ "args": ["missing"], "cwd": "/" }).to_string(),
    )
    .unwrap();
    let process = engine.path("process.json");
    let pid_file = engine.path("exec.pid");
    let said = engine.run(&[
        "exec",
        "-d",
        "--pid-file",
        pid_file.to_str().unwrap(),
        "-p",
        process.to_str().unwrap(),
        "box",
    ]);
    said.fails(255, "executable file not found in $PATH");
    assert!(!pid_file.exists());
    end(&engine);
}

/// The guest knows first, and the host once the last output is with its reader.
#[test]
fn a_container_that_has_ended_in_its_guest_takes_nothing() {
    let engine = running("ending");
    engine
        .run(&["exec", "box", "true"])
        .fails(255, "cannot exec in a stopped container");
    let stopped = "container not running";
    engine.run(&["pause", "box"]).fails(1, stopped);
    engine
        .run(&["update", "--pids-limit", "9", "box"])
        .fails(1, stopped);
    assert_eq!(engine.status(), "running");
    end(&engine);
}

#[test]
fn what_cannot_cross_is_refused_by_name() {
    let engine = running("ok");
    engine
        .run(&["exec", "--preserve-fds", "1", "box", "true"])
        .fails(255, "--preserve-fds is not supported");
    engine
        .run(&["exec", "--cgroup", "sub", "box", "true"])
        .fails(255, "--cgroup is not supported");
    engine
        .run(&["exec", "-d", "-t", "box", "true"])
        .fails(255, "without setting console socket");
    engine
        .run(&["exec", "box"])
        .fails(255, "process args cannot be empty");
    engine
        .run(&["exec", "other", "true"])
        .fails(255, "container does not exist");
    end(&engine);
}
