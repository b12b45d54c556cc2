//! From `create` to `delete`, by every way there is.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};

use rustix::process::Signal;
use serde_json::json;

use super::{Engine, adopt, is_alive, kill, reap, wait};

#[test]
fn a_container_lives_as_under_runc() {
    adopt();
    let engine = Engine::new("ok");
    engine.spec(&["sleep"], |spec| spec["annotations"]["k"] = json!("v"));
    engine.create().ok();
    let pid = engine.pid();

    let state = engine.state();
    assert_eq!(state["ociVersion"], "1.2.0");
    assert_eq!(state["id"], "box");
    assert_eq!(state["status"], "created");
    assert_eq!(state["pid"], pid.as_raw_nonzero().get());
    assert_eq!(state["bundle"], json!(engine.path("bundle")));
    assert_eq!(state["rootfs"], json!(engine.path("bundle/rootfs")));
    assert_eq!(state["annotations"]["k"], "v");
    assert_eq!(state["owner"], "root");
    let created = state["created"].as_str().unwrap();
    assert!(created.contains('T') && created.ends_with('Z'), "{created}");

    let again = engine.create();
    again.fails(1, "container with given ID already exists");
    assert_eq!(engine.status(), "created");

    engine.run(&["start", "box"]).ok();
    assert_eq!(engine.status(), "running");
    let twice = engine.run(&["start", "box"]);
    twice.fails(1, "cannot start an already running container");
    let early = engine.run(&["delete", "box"]);
    early.fails(
        1,
        "cannot delete container box that is not stopped: running",
    );

    engine.run(&["pause", "box"]).ok();
    assert_eq!(engine.status(), "paused");
    engine
        .run(&["exec", "box", "true"])
        .fails(255, "cannot exec in a paused container");
    engine.run(&["resume", "box"]).ok();
    engine
        .run(&["resume", "box"])
        .fails(1, "container not paused");

    engine.run(&["kill", "box", "TERM"]).ok();
    assert_eq!(reap(pid).code(), Some(143));
    let state = engine.state();
    assert_eq!(
        (&state["status"], &state["pid"]),
        (&json!("stopped"), &json!(0))
    );
    engine
        .run(&["kill", "box", "9"])
        .fails(1, "container not running");
    engine.run(&["kill", "--all", "box", "9"]).ok();
    engine
        .run(&["pause", "box"])
        .fails(1, "container not running");
    engine
        .run(&["exec", "box", "true"])
        .fails(255, "cannot exec in a stopped container");
    engine
        .run(&["start", "box"])
        .fails(1, "cannot start a container that has stopped");

    engine.run(&["delete", "box"]).ok();
    engine
        .run(&["state", "box"])
        .fails(1, "container does not exist");
    engine
        .run(&["delete", "box"])
        .fails(1, "container does not exist");
    engine.run(&["delete", "--force", "box"]).ok();
    engine.nothing_is_left();
}

#[test]
fn the_process_of_the_pid_file_ends_with_the_containers_status() {
    adopt();
    for status in [0, 7, 255] {
        let engine = Engine::new("ok");
        engine.spec(&["exit", &status.to_string()], |_| {});
        engine.create().ok();
        let pid = engine.pid();
        engine.run(&["start", "box"]).ok();
        assert_eq!(reap(pid).code(), Some(status));
        assert_eq!(engine.status(), "stopped");
        engine.run(&["delete", "box"]).ok();
        engine.nothing_is_left();
    }
}

#[test]
fn signals_to_the_process_of_the_pid_file_are_the_containers() {
    adopt();
    let engine = Engine::new("ok");
    engine.spec(&["sleep"], |_| {});
    engine.create().ok();
    engine.run(&["start", "box"]).ok();
    let pid = engine.pid();
    kill(pid, Signal::INT);
    assert_eq!(reap(pid).code(), Some(130));
    engine.run(&["delete", "box"]).ok();
    engine.nothing_is_left();
}

#[test]
fn output_goes_to_the_very_descriptors_of_create() {
    adopt();
    let engine = Engine::new("ok");
    engine.spec(&["echo", "hello"], |_| {});
    let bundle = engine.path("bundle");
    let mut file = File::create(engine.path("out")).unwrap();
    writeln!(file, "before").unwrap();
    let status = engine
        .command(&["create", "-b", bundle.to_str().unwrap()])
        .args([
            "--pid-file",
            engine.path("init.pid").to_str().unwrap(),
            "box",
        ])
        .stdout(file)
        .status()
        .unwrap();
    assert!(status.success());
    engine.run(&["start", "box"]).ok();
    assert_eq!(reap(engine.pid()).code(), Some(0));
    let text = std::fs::read_to_string(engine.path("out")).unwrap();
    assert_eq!(text, "before\nhello\n");
    engine.run(&["delete", "box"]).ok();
}

#[test]
fn run_gives_output_and_status_and_leaves_nothing() {
    let engine = Engine::new("ok");
    engine.spec(&["echo", "hi"], |_| {});
    let bundle = engine.path("bundle");
    let said = engine.run(&["run", "--bundle", bundle.to_str().unwrap(), "box"]);
    assert_eq!(said.ok().stdout, "hi\n");
    engine.nothing_is_left();

    engine.spec(&["exit", "9"], |_| {});
    let said = engine.run(&["run", "--keep", "--bundle", bundle.to_str().unwrap(), "box"]);
    assert_eq!(said.status.code(), Some(9), "{said:?}");
    assert_eq!(engine.status(), "stopped");
    engine.run(&["delete", "box"]).ok();
    engine.nothing_is_left();
}

#[test]
fn run_passes_signals_on() {
    let engine = Engine::new("ok");
    engine.spec(&["sleep"], |_| {});
    let bundle = engine.path("bundle");
    let mut child = engine
        .command(&["run", "--bundle", bundle.to_str().unwrap(), "box"])
        .spawn()
        .unwrap();
    engine.wait_for("the container", || {
        engine.run(&["state", "box"]).stdout.contains("\"running\"")
    });
    kill(rustix::process::Pid::from_child(&child), Signal::TERM);
    assert_eq!(wait(&mut child).code(), Some(143));
    engine.nothing_is_left();
}

/// A hook that holds up `create` until it is told to go on.
fn hold_up(engine: &Engine) {
    engine.spec(&["sleep"], |spec| {
        let (begun, go) = (engine.path("begun"), engine.path("go"));
        let script = format!(
            "touch {}; until [ -e {} ]; do sleep 0.02; done",
            begun.display(),
            go.display()
        );
        let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
        spec["hooks"] = json!({ "createRuntime": [hook] });
    });
}

#[test]
fn a_signal_while_a_container_is_made_leaves_nothing_half_made() {
    adopt();
    for verb in ["run", "create"] {
        let engine = Engine::new("ok");
        hold_up(&engine);
        let bundle = engine.path("bundle");
        let mut child = engine
            .command(&[verb, "--bundle", bundle.to_str().unwrap()])
            .args([
                "--pid-file",
                engine.path("init.pid").to_str().unwrap(),
                "box",
            ])
            .spawn()
            .unwrap();
        engine.wait_for("the hook", || engine.path("begun").exists());
        kill(rustix::process::Pid::from_child(&child), Signal::TERM);
        File::create(engine.path("go")).unwrap();
        let status = wait(&mut child);
        if verb == "run" {
            assert_eq!(status.code(), Some(143), "it was the container's");
        } else {
            assert!(status.success());
            assert_eq!(engine.status(), "created");
            let pid = engine.pid();
            // The sandbox process itself takes signals.
            kill(pid, Signal::TERM);
            assert_eq!(reap(pid).code(), Some(143));
            engine.run(&["delete", "box"]).ok();
        }
        engine.nothing_is_left();
    }
}

#[test]
fn a_root_is_the_same_however_its_path_is_spelled() {
    adopt();
    let engine = Engine::new("ok");
    engine.spec(&["sleep"], |_| {});
    let root = engine.path("root");
    let alias = engine.path("alias");
    std::fs::create_dir(&root).unwrap();
    std::os::unix::fs::symlink(&root, &alias).unwrap();
    let (bundle, pid_file) = (engine.path("bundle"), engine.path("init.pid"));
    let create = ["create", "-b", bundle.to_str().unwrap(), "--pid-file"];
    let status = engine
        .command(&["--root", alias.to_str().unwrap()])
        .args(create)
        .args([pid_file.to_str().unwrap(), "box"])
        .status();
    assert!(status.unwrap().success());
    for root in [&root, &root.join(""), &alias, &root.join("../alias")] {
        let at = |args: &[&str]| engine.run(&[&["--root", root.to_str().unwrap()], args].concat());
        assert!(
            at(&["state", "box"]).ok().stdout.contains("\"created\""),
            "{root:?}"
        );
    }
    let root = root.to_str().unwrap();
    engine.run(&["--root", root, "start", "box"]).ok();
    engine
        .run(&["--root", root, "delete", "box"])
        .fails(1, "that is not stopped: running");
    engine.run(&["--root", root, "delete", "-f", "box"]).ok();
    assert_eq!(reap(engine.pid()).signal(), Some(9));
    engine.nothing_is_left();
}

#[test]
fn stdin_of_run_is_the_containers() {
    let engine = Engine::new("ok");
    engine.spec(&["cat"], |_| {});
    let bundle = engine.path("bundle");
    let mut child = engine
        .command(&["run", "--bundle", bundle.to_str().unwrap(), "box"])
        .stdin(Stdio::piped())
        .stdout(File::create(engine.path("out")).unwrap())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"through\n").unwrap();
    assert!(wait(&mut child).success());
    let text = std::fs::read_to_string(engine.path("out")).unwrap();
    assert_eq!(text, "through\n");
}

#[test]
fn run_detached_leaves_the_container_running() {
    adopt();
    let engine = Engine::new("ok");
    engine.spec(&["sleep"], |_| {});
    let bundle = engine.path("bundle");
    let pid_file = engine.path("init.pid");
    let (bundle, pid_file) = (bundle.to_str().unwrap(), pid_file.to_str().unwrap());
    engine
        .run(&["run", "-d", "-b", bundle, "--pid-file", pid_file, "box"])
        .ok();
    assert_eq!(engine.status(), "running");
    let pid = engine.pid();
    assert!(is_alive(pid));
    engine.run(&["delete", "--force", "box"]).ok();
    assert_eq!(reap(pid).signal(), Some(9));
    engine.nothing_is_left();
}

#[test]
fn delete_by_force_ends_a_container_in_every_state() {
    adopt();
    let engine = Engine::new("ok");
    engine.spec(&["sleep"], |_| {});
    let states: [&[&[&str]]; 4] = [
        &[],
        &[&["start", "box"]],
        &[&["start", "box"], &["pause", "box"]],
        &[&["start", "box"], &["kill", "box", "KILL"]],
    ];
    for steps in states {
        engine.create().ok();
        for step in steps {
            engine.run(step).ok();
        }
        engine.run(&["delete", "-f", "box"]).ok();
        reap(engine.pid());
        engine.nothing_is_left();
    }
    // A created one needs no force.
    engine.create().ok();
    engine.run(&["delete", "box"]).ok();
    reap(engine.pid());
    engine.nothing_is_left();
}

#[test]
fn the_death_of_the_sandbox_process_is_the_containers() {
    adopt();
    let engine = Engine::new("ok");
    engine.spec(&["sleep"], |_| {});
    for start in [false, true] {
        engine.create().ok();
        if start {
            engine.run(&["start", "box"]).ok();
        }
        let pid = engine.pid();
        kill(pid, Signal::KILL);
        reap(pid);
        assert_eq!(engine.status(), "stopped");
        assert_eq!(engine.state()["pid"], 0);
        engine
            .run(&["kill", "box"])
            .fails(1, "container not running");
        engine
            .run(&["exec", "box", "true"])
            .fails(255, "stopped container");
        engine.run(&["delete", "box"]).ok();
        engine.nothing_is_left();
    }
}

#[test]
fn a_create_that_was_killed_half_way_is_deleted_by_force() {
    adopt();
    let engine = Engine::new("slow-create");
    engine.spec(&["sleep"], |_| {});
    let bundle = engine.path("bundle");
    let mut child = engine
        .command(&["create", "-b", bundle.to_str().unwrap(), "box"])
        .spawn()
        .unwrap();
    engine.wait_for("the sandbox", || {
        engine
            .run(&["state", "box"])
            .stdout
            .contains("\"creating\"")
            && engine.sandbox.sandbox_dir().join("state.json").exists()
    });
    engine
        .run(&["kill", "box"])
        .fails(1, "container not running");
    child.kill().unwrap();
    wait(&mut child);
    engine.wait_for("the lock to go", || engine.status() == "stopped");
    engine.create().fails(1, "already exists");
    engine.run(&["delete", "--force", "box"]).ok();
    engine.nothing_is_left();
}

#[test]
fn commands_at_the_same_time_leave_one_end() {
    adopt();
    let engine = Engine::new("ok");
    engine.spec(&["sleep"], |_| {});
    for _ in 0..3 {
        engine.create().ok();
        engine.run(&["start", "box"]).ok();
        let start = |args: &[&str]| {
            let mut command = engine.command(args);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().unwrap()
        };
        let mut others = [
            start(&["kill", "box", "KILL"]),
            start(&["exec", "box", "sleep"]),
            start(&["delete", "--force", "box"]),
            start(&["delete", "--force", "box"]),
            start(&["state", "box"]),
            start(&["kill", "--all", "box", "TERM"]),
        ];
        for child in &mut others {
            wait(child);
        }
        reap(engine.pid());
        engine
            .run(&["state", "box"])
            .fails(1, "container does not exist");
        engine.nothing_is_left();
    }
}

#[test]
fn one_of_several_starts_is_the_one() {
    adopt();
    let engine = Engine::new("ok");
    // One that ends at once, and may be gone before its start is answered.
    engine.spec(&["exit", "3"], |_| {});
    for _ in 0..5 {
        engine.create().ok();
        let start = |_| {
            let mut command = engine.command(&["start", "box"]);
            command.stderr(Stdio::null()).spawn().unwrap()
        };
        let mut starts: Vec<_> = (0..4).map(start).collect();
        let ended = starts.iter_mut().map(wait);
        assert_eq!(ended.filter(ExitStatus::success).count(), 1);
        assert_eq!(reap(engine.pid()).code(), Some(3));
        engine.run(&["delete", "box"]).ok();
        engine.nothing_is_left();
    }
}

#[test]
fn list_and_ps_say_what_is_there() {
    adopt();
    let engine = Engine::new("ok");
    assert_eq!(
        engine.run(&["list", "--format", "json"]).ok().stdout,
        "null\n"
    );
    engine.spec(&["sleep"], |_| {});
    engine.create().ok();
    engine.run(&["start", "box"]).ok();
    assert_eq!(engine.run(&["list", "-q"]).ok().stdout, "box\n");
    let table = engine.run(&["list"]).ok().stdout.clone();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 2, "{table}");
    assert!(lines[0].starts_with("ID          PID"), "{table}");
    assert!(lines[1].contains("running"), "{table}");
    let json: serde_json::Value =
        serde_json::from_str(&engine.run(&["list", "-f", "json"]).ok().stdout).unwrap();
    assert_eq!(json[0]["id"], "box");

    let pids = engine
        .run(&["ps", "--format", "json", "box"])
        .ok()
        .stdout
        .clone();
    let pids: Vec<i32> = serde_json::from_str(&pids).unwrap();
    assert_eq!(pids[0], engine.pid().as_raw_nonzero().get());
    assert_eq!(pids.len(), 2, "sandbox process and VMM: {pids:?}");
    let table = engine.run(&["ps", "box"]).ok().stdout.clone();
    assert!(table.starts_with("UID "), "{table}");

    let stats = engine
        .run(&["events", "--stats", "box"])
        .ok()
        .stdout
        .clone();
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats["type"], "stats");
    assert_eq!(stats["data"]["pids"]["current"], 3);

    kill(engine.pid(), Signal::KILL);
    reap(engine.pid());
    assert_eq!(engine.run(&["ps", "-f", "json", "box"]).ok().stdout, "[]\n");
    engine
        .run(&["events", "--stats", "box"])
        .fails(1, "is not running");
    engine.run(&["delete", "box"]).ok();
}
