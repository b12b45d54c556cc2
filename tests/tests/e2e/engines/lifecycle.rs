//! Containers in the background, from `run -d` to `rm`.

use lazaret_tests::{Engine, Kind};

super::for_both! {
    quick: [],
    quick_on_docker: [],
    full: [exec_logs_and_top, pause_stats_kill_and_wait, stop_start_and_restart, terminal_of_an_exec, restart_policies],
}

fn exec_logs_and_top(engine: &Engine) {
    let name = engine.name("a");
    let script = "echo out; echo error >&2; exec sleep 1000";
    let id = engine.detached(&name, ["busybox", "sh", "-c", script]);
    assert_eq!(id.len(), 64, "{id}");
    let shown = engine.ok(["ps", "--format", "{{.Names}} {{.Status}}"]);
    assert!(shown.starts_with(&format!("{name} Up")), "{shown}");

    let logs = engine.call(["logs", &name]);
    logs.status(0).stdout("out\n").stderr("error\n");

    let exec = ["exec", "-i", "-w", "/etc", "-e", "A=b", "-u", "7:8", &name];
    let script = ["sh", "-c", "cat; pwd; echo $A $(id -u) $(id -g); exit 5"];
    let outcome = engine
        .cmd(exec.iter().chain(&script))
        .stdin("in\n")
        .output();
    outcome.status(5).stdout("in\n/etc\nb 7 8\n");
    // Docker says 126 of an exec, podman 127, whatever the runtime.
    let missing = engine.call(["exec", &name, "no-such-command"]);
    assert!([126, 127].contains(&missing.status_code()), "{missing}");
    let said = missing.text() + &missing.errors();
    assert!(
        said.contains("executable file not found in $PATH"),
        "{missing}"
    );

    // In the background: seen by its effect.
    let marks = "echo done >/mark; exec sleep 999";
    engine.ok(["exec", "-d", &name, "sh", "-c", marks]);
    engine.ok([
        "exec",
        &name,
        "sh",
        "-c",
        "until grep done /mark; do sleep 0.1; done",
    ]);
    // What the host has of the container: the processes in it are the guest kernel's. Podman looks
    // into the pid namespace of the container's process, which is the host's.
    if engine.kind() == Kind::Docker {
        let top = engine.ok(["top", &name, "-o", "pid,args"]);
        assert_eq!(top.contains("lazaret-vmm"), engine.is_lazaret(), "{top}");
    }
    let inside = engine.ok(["exec", &name, "ps", "-o", "args"]);
    assert!(
        inside.contains("sleep 1000") && inside.contains("sleep 999"),
        "{inside}"
    );
    engine.remove([&name]);
}

fn terminal_of_an_exec(engine: &Engine) {
    let name = engine.name("a");
    engine.detached(&name, ["busybox", "sleep", "1000"]);
    let mut terminal = engine.cmd(["exec", "-it", &name, "sh"]).terminal(20, 70);
    terminal.ask_until("stty size\n", "20 70");
    terminal.pull_until(25, 75);
    terminal.write("exit 3\n");
    terminal.status(3);
    engine.remove([&name]);
}

fn pause_stats_kill_and_wait(engine: &Engine) {
    let name = engine.name("a");
    let script = "trap 'echo asked; exit 21' USR1; i=0
        while :; do echo $i >/new; mv /new /count; i=$((i+1)); sleep 0.1; done";
    engine.detached(&name, ["busybox", "sh", "-c", script]);

    engine.ok(["pause", &name]);
    engine.until(&name, "{{.State.Status}}", "paused");
    assert_ne!(engine.call(["exec", &name, "true"]).status_code(), 0);
    engine.ok(["unpause", &name]);
    engine.until(&name, "{{.State.Status}}", "running");
    let count = "cat /count; sleep 2; cat /count";
    let counts = engine.ok(["exec", &name, "sh", "-c", count]);
    let (before, after) = counts.split_once('\n').expect("two counts");
    assert_ne!(before, after, "it goes on");

    let format = "{{.Name}} {{.MemUsage}} {{.PIDs}}";
    let stats = engine.ok(["stats", "--no-stream", "--format", format, &name]);
    let fields: Vec<_> = stats.split_whitespace().collect();
    assert_eq!(fields[0], name, "{stats}");
    assert!(!fields[1].starts_with("0B"), "memory in use: {stats}");
    assert_ne!(fields.last(), Some(&"0"), "processes: {stats}");

    let wait = engine.cmd(["wait", &name]).spawn();
    engine.ok(["kill", "-s", "USR1", &name]);
    wait.wait().status(0).stdout("21\n");
    assert_eq!(
        engine.inspect(&name, "{{.State.Status}} {{.State.ExitCode}}"),
        "exited 21"
    );
    engine.call(["logs", &name]).stdout("asked\n");
    engine.remove([&name]);
}

fn stop_start_and_restart(engine: &Engine) {
    let name = engine.name("a");
    let script = "trap 'echo stopped; exit 4' TERM; echo up >>/boots; cat /boots | wc -l
        while :; do sleep 0.1; done";
    engine.detached(&name, ["busybox", "sh", "-c", script]);
    let until = |lines: u32| {
        engine.lazaret().sh(&format!(
            "until [ $({} logs {name} | wc -l) = {lines} ]; do sleep 0.5; done",
            engine.kind().name()
        ));
    };
    until(1);
    engine.ok(["stop", "-t", "60", &name]);
    assert_eq!(engine.inspect(&name, "{{.State.ExitCode}}"), "4");
    engine.ok(["start", &name]);
    until(3);
    engine.ok(["restart", "-t", "60", &name]);
    until(5);
    engine
        .call(["logs", &name])
        .stdout("1\nstopped\n2\nstopped\n3\n");
    // One that is deaf is killed.
    let deaf = engine.name("deaf");
    engine.detached(&deaf, ["busybox", "sleep", "1000"]);
    engine.ok(["stop", "-t", "1", &deaf]);
    assert_eq!(engine.inspect(&deaf, "{{.State.ExitCode}}"), "137");
    engine.remove([&name, &deaf]);
}

fn restart_policies(engine: &Engine) {
    let failing = engine.name("failing");
    engine.detached(
        &failing,
        [
            "--restart=on-failure:2",
            "busybox",
            "sh",
            "-c",
            "echo run; exit 3",
        ],
    );
    let always = engine.name("always");
    engine.detached(
        &always,
        [
            "--restart=always",
            "busybox",
            "sh",
            "-c",
            "echo run; sleep 1",
        ],
    );

    // Once, and twice again.
    engine.until(&failing, "{{.State.Status}} {{.RestartCount}}", "exited 2");
    engine.call(["logs", &failing]).stdout("run\nrun\nrun\n");
    let engine_name = engine.kind().name();
    engine.lazaret().sh(&format!(
        "until [ $({engine_name} logs {always} | wc -l) -ge 3 ]; do sleep 0.5; done"
    ));
    // Podman's clean-up process may be starting it anew while it goes.
    if engine.kind() == Kind::Podman {
        engine.ok(["stop", "-t", "0", &always]);
    }
    engine.remove([&failing, &always]);
}
