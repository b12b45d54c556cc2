//! From `run -d` to `rm`: stop, kill, wait, names, states.

use lazaret_tests::start;

#[test]
fn stop_asks_first() {
    let lazaret = start!("stop");
    let name = lazaret.container("a");
    let script = "trap 'echo asked; exit 5' TERM; echo up; while :; do sleep 0.1; done";
    lazaret.detached(&name, ["busybox", "sh", "-c", script]);
    let mut logs = lazaret.cmd(["logs", "-f", &name]).spawn();
    assert_eq!(logs.line(), "up");
    lazaret
        .lazaret(["stop", &name])
        .success()
        .stdout(&format!("{name}\n"));
    assert_eq!(logs.line(), "asked");
    logs.wait().status(0);
    lazaret.lazaret(["wait", &name]).success().stdout("5\n");

    lazaret.lazaret(["stop", &name]).success();
    lazaret
        .lazaret(["kill", &name])
        .status(1)
        .stderr_contains("is not running");
    lazaret
        .lazaret(["rm", &name])
        .success()
        .stdout(&format!("{name}\n"));
}

#[test]
fn stop_kills_what_does_not_listen() {
    let lazaret = start!("stop-kills");
    let name = lazaret.container("a");
    // A process without a handler is deaf to SIGTERM as PID 1.
    lazaret.detached(&name, ["busybox", "sleep", "1000"]);
    lazaret.lazaret(["stop", "-t", "1", &name]).success();
    lazaret.lazaret(["wait", &name]).success().stdout("137\n");
    lazaret.lazaret(["rm", &name]).success();
}

#[test]
fn wait_answers_when_the_container_ends() {
    let lazaret = start!("wait");
    let name = lazaret.container("a");
    let id = lazaret.detached(
        &name,
        [
            "busybox",
            "sh",
            "-c",
            "trap 'exit 21' USR1; sleep 1000 & wait; wait",
        ],
    );
    let wait = lazaret.cmd(["wait", &name]).spawn();
    // Any unambiguous beginning of the id will do, as with Docker.
    lazaret.sh(&format!(
        "for try in $(seq 50); do lazaret kill -s USR1 {} && sleep 0.2;
            lazaret ps -q --no-trunc | grep -q {id} || break; done 2>/dev/null",
        &id[..12]
    ));
    wait.wait().success().stdout("21\n");
    lazaret.lazaret(["rm", &name]).success();
}

#[test]
fn running_container_is_removed_only_by_force() {
    let lazaret = start!("rm-force");
    let name = lazaret.container("a");
    lazaret.detached(&name, ["busybox", "sleep", "1000"]);
    lazaret
        .lazaret(["rm", &name])
        .status(1)
        .stderr_contains("container is running");
    lazaret
        .lazaret(["rm", "-f", &name])
        .success()
        .stdout(&format!("{name}\n"));
    lazaret
        .lazaret(["rm", &name])
        .status(1)
        .stderr_contains("No such container");
}

#[test]
fn name_in_use_is_refused_and_free_again_after_rm() {
    let lazaret = start!("name-in-use");
    let name = lazaret.container("a");
    lazaret.run(["--name", &name, "busybox", "true"]).success();
    lazaret
        .run(["--name", &name, "busybox", "true"])
        .status(125)
        .stderr_contains(&format!(
            "Conflict. The container name \"/{name}\" is already in use by container"
        ))
        .stderr_contains(
            "You have to remove (or rename) that container to be able to reuse that name.",
        );
    lazaret.lazaret(["rm", &name]).success();
    lazaret
        .run(["--rm", "--name", &name, "busybox", "true"])
        .success();
}

#[test]
fn detached_container_with_rm_removes_itself() {
    let lazaret = start!("detached-rm");
    let name = lazaret.container("a");
    let id = lazaret.detached(&name, ["--rm", "busybox", "sleep", "1"]);
    assert_eq!(id.len(), 64, "a whole id: {id}");
    // No further command of ours: it has to go by itself.
    let gone = format!(
        "for try in $(seq 100); do [ -e /var/lib/lazaret/containers/{id} ] || exit 0; sleep 0.2; done; exit 1"
    );
    lazaret.sh(&gone);
}

#[test]
fn containers_run_side_by_side() {
    let lazaret = start!("side-by-side");
    let names: Vec<_> = ["a", "b", "c"]
        .iter()
        .map(|suffix| lazaret.container(suffix))
        .collect();
    let starts: Vec<_> = names
        .iter()
        .map(|name| {
            let script = "echo $1; read line; echo $line";
            lazaret
                .run_cmd([
                    "--rm", "-i", "--name", name, "busybox", "sh", "-c", script, "sh", name,
                ])
                .spawn()
        })
        .collect();
    // All are up before any ends.
    let mut running = Vec::new();
    for (mut run, name) in starts.into_iter().zip(&names) {
        assert_eq!(run.line(), *name);
        running.push(run);
    }
    for (mut run, name) in running.into_iter().zip(&names) {
        run.write(&format!("bye {name}\n"));
        assert_eq!(run.line(), format!("bye {name}"));
        run.wait().success();
    }
}
