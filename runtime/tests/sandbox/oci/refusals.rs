//! What fails at `create` is said, logged, and leaves nothing.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::process::Child;

use rustix::process::Signal;
use serde_json::json;

use super::{Engine, adopt, kill, reap, wait};

#[test]
fn a_vmm_or_guest_that_fails_is_creates_failure() {
    adopt();
    for (scenario, text) in [
        ("refuse", "no such kernel"),
        ("die", "create failed"),
        ("panic", "create failed"),
        ("silent", "did not answer"),
        ("wrong-version", "create failed"),
        ("cannot-create", "linux.seccomp"),
    ] {
        let engine = Engine::new(scenario);
        engine.spec(&["sleep"], |_| {});
        let said = engine.create();
        said.fails(1, text);
        let log = std::fs::read_to_string(engine.path("log.json")).unwrap();
        let lines: Vec<serde_json::Value> = log
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        // podman reads the whole file as one object.
        assert_eq!(lines.len(), 1, "{scenario}: {log}");
        assert_eq!(lines[0]["level"], "error");
        assert!(lines[0]["msg"].as_str().unwrap().contains(text), "{log}");
        assert!(!engine.path("init.pid").exists());
        engine.nothing_is_left();
    }
}

#[test]
fn a_pid_file_that_cannot_be_written_is_creates_failure() {
    adopt();
    let engine = Engine::new("ok");
    engine.spec(&["sleep"], |_| {});
    let bundle = engine.path("bundle");
    let said = engine.run(&[
        "create",
        "-b",
        bundle.to_str().unwrap(),
        "--pid-file",
        "/nonexistent/pid",
        "box",
    ]);
    said.fails(1, "/nonexistent/pid");
    engine.nothing_is_left();
}

#[test]
fn misuse_is_in_the_log_too() {
    let engine = Engine::new("ok");
    engine
        .run(&["create", "--frob", "box"])
        .fails(1, "unexpected argument '--frob' found");
    let log = fs::read_to_string(engine.path("log.json")).unwrap();
    let line: serde_json::Value = serde_json::from_str(log.trim()).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(line["msg"], "unexpected argument '--frob' found");
    engine
        .run(&["--root", "/", "delete", "-f", "box"])
        .fails(1, "should not be set to /");
}

#[test]
fn what_a_bundle_or_a_flag_cannot_have_is_named() {
    let engine = Engine::new("ok");
    engine.spec(&["sleep"], |_| {});
    let bundle = engine.path("bundle");
    let bundle = bundle.to_str().unwrap();
    let create = |args: &[&str]| {
        let args: Vec<&str> = [&["create", "-b", bundle][..], args].concat();
        engine.run(&args)
    };
    create(&["--preserve-fds", "2", "box"]).fails(1, "--preserve-fds is not supported");
    create(&["a/b"]).fails(1, "invalid container ID format");
    create(&["--console-socket", "/x", "box"]).fails(1, "cannot use console socket");
    engine
        .run(&["--rootless=true", "list"])
        .fails(1, "--rootless=true is not supported");
    engine
        .run(&["create", "-b", "/nonexistent", "box"])
        .fails(1, "/nonexistent/config.json");
    engine
        .run(&["checkpoint", "--image-path", "/i", "box"])
        .fails(1, "checkpoint is not supported");
    engine
        .run(&["restore", "--image-path", "/i", "box"])
        .fails(1, "restore is not supported");
    engine.spec(&["sleep"], |spec| spec["process"]["terminal"] = json!(true));
    create(&["box"]).fails(1, "without setting console socket");
    engine.spec(&["sleep"], |spec| spec["linux"]["namespaces"] = json!([]));
    create(&["box"]).fails(1, "network");
    engine.nothing_is_left();
}

#[test]
fn a_start_that_fails_says_why_and_the_container_has_stopped() {
    adopt();
    for (program, text, status) in [
        ("missing", "executable file not found in $PATH", 127),
        ("denied", "permission denied", 126),
    ] {
        let engine = Engine::new("ok");
        engine.spec(&[program], |_| {});
        engine.create().ok();
        engine.run(&["start", "box"]).fails(1, text);
        assert_eq!(reap(engine.pid()).code(), Some(status));
        assert_eq!(engine.status(), "stopped");
        engine.run(&["delete", "box"]).ok();
        engine.nothing_is_left();
    }
}

#[test]
fn a_start_that_is_refused_for_now_leaves_the_container_as_it_was() {
    adopt();
    let engine = Engine::new("ok");
    engine.spec(&["paused-at-first"], |_| {});
    engine.create().ok();
    engine.run(&["start", "box"]).fails(1, "is paused");
    assert_eq!(engine.status(), "created");
    engine.run(&["start", "box"]).ok();
    assert_eq!(engine.status(), "running");
    engine.run(&["kill", "box", "KILL"]).ok();
    assert_eq!(reap(engine.pid()).code(), Some(137));
    engine.run(&["delete", "box"]).ok();
    engine.nothing_is_left();
}

/// Starts a command whose messages go to a file.
fn spawn(engine: &Engine, args: &[&str]) -> (Child, std::path::PathBuf) {
    let said = engine.path("said");
    let mut command = engine.command(args);
    let child = command.stderr(File::create(&said).unwrap()).spawn();
    (child.unwrap(), said)
}

#[test]
fn the_end_of_a_container_killed_in_its_start_is_that_of_the_signal() {
    adopt();
    // The failed start is told of before the end, or never.
    for program in ["end-in-start", "go-in-start"] {
        let engine = Engine::new("ok");
        engine.spec(&[program], |_| {});
        engine.create().ok();
        let (mut start, said) = spawn(&engine, &["start", "box"]);
        let starting = engine.path("starting");
        engine.wait_for("the start", || starting.exists());
        if program == "end-in-start" {
            engine.run(&["kill", "box", "TERM"]).ok();
            assert_eq!(wait(&mut start).code(), Some(1));
            assert_eq!(engine.status(), "created");
        }
        engine.run(&["kill", "box", "KILL"]).ok();
        assert_eq!(wait(&mut start).code(), Some(1));
        assert_eq!(reap(engine.pid()).code(), Some(137), "{program}");
        let said = fs::read_to_string(said).unwrap();
        let text = "cannot start a container that has stopped";
        assert!(said.contains(text), "{program}: {said}");
        engine.run(&["delete", "box"]).ok();
        engine.nothing_is_left();
    }
}

#[test]
fn a_microvm_that_dies_in_a_start_is_why_it_fails() {
    adopt();
    for (program, text) in [
        (
            "kill-vmm",
            "unable to start container process: the virtual machine monitor",
        ),
        (
            "panic",
            "unable to start container process: the guest kernel panicked",
        ),
    ] {
        let engine = Engine::new("ok");
        engine.spec(&[program], |_| {});
        engine.create().ok();
        engine.run(&["start", "box"]).fails(1, text);
        assert_eq!(reap(engine.pid()).code(), Some(137));
        engine.run(&["delete", "box"]).ok();
        engine.nothing_is_left();
    }
}

/// A sandbox process that is killed closes its sockets before it has ended.
#[test]
fn a_sandbox_process_on_its_way_out_is_one_that_has_gone() {
    adopt();
    for (args, code, text) in [
        (&["kill", "box", "KILL"][..], 1, "container not running"),
        (&["pause", "box"], 1, "container not running"),
        (
            &["exec", "box", "true"],
            255,
            "cannot exec in a stopped container",
        ),
        (
            &["start", "box"],
            1,
            "cannot start a container that has stopped",
        ),
    ] {
        let engine = Engine::new("ok");
        engine.spec(&["sleep"], |_| {});
        engine.create().ok();
        if args[0] != "start" {
            engine.run(&["start", "box"]).ok();
        }
        let socket = engine.sandbox.sandbox_dir().join("task.sock");
        fs::remove_file(&socket).unwrap();
        drop(UnixListener::bind(&socket).unwrap());
        let (mut child, said) = spawn(&engine, args);
        let descriptors = format!("/proc/{}/fd", child.id());
        engine.wait_for("the command to wait", || {
            let ended = child.try_wait().unwrap();
            let said = fs::read_to_string(&said).unwrap();
            assert!(ended.is_none(), "{args:?}: {said}");
            let descriptors = fs::read_dir(&descriptors).into_iter().flatten();
            descriptors.flatten().any(|entry| {
                let target = fs::read_link(entry.path()).unwrap_or_default();
                target.to_string_lossy().contains("pidfd")
            })
        });
        kill(engine.pid(), Signal::KILL);
        reap(engine.pid());
        assert_eq!(wait(&mut child).code(), Some(code), "{args:?}");
        let said = fs::read_to_string(said).unwrap();
        assert!(said.contains(text), "{args:?}: {said}");
        engine.run(&["delete", "box"]).ok();
        engine.nothing_is_left();
    }
}

#[test]
fn update_reaches_the_sandbox_or_says_why_not() {
    adopt();
    let engine = Engine::new("ok");
    engine.spec(&["sleep"], |_| {});
    engine.create().ok();
    engine
        .run(&["update", "--kernel-memory", "1m", "box"])
        .fails(1, "--kernel-memory");
    engine
        .run(&["update", "-r", "/nonexistent", "box"])
        .fails(1, "/nonexistent");
    engine
        .run(&["update", "box", "--pids-limit", "many"])
        .fails(1, "many");
    engine.run(&["delete", "box"]).ok();
    reap(engine.pid());
    engine
        .run(&["update", "box"])
        .fails(1, "container does not exist");
}
