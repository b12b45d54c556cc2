//! Engines and what stands between them and a container are killed: the container runs on where the
//! engine promises that, ends where it does not, and is the engine's again either way.

use lazaret_tests::{Engine, Kind, Lazaret, start};

/// Begins a test on an engine, or ends it here where there is none.
macro_rules! engine {
    ($lazaret:ident, $kind:expr) => {
        match Engine::start(&$lazaret, $kind) {
            Some(engine) => engine,
            None => return,
        }
    };
}

/// Counts until it is told to end.
const COUNT: &str = "trap 'exit 8' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.2; done";

const CONFIG: &str = "/etc/docker/daemon.json";

/// Kills the daemon, and with it the containerd that it has started, and starts it anew.
const KILL_DOCKER: &str = "
pid=$(cat /var/run/docker.pid)
kill -KILL $pid; while kill -0 $pid; do sleep 0.2; done 2>/dev/null
setsid dockerd >>/var/log/dockerd.log 2>&1 </dev/null &
until docker version >/dev/null 2>&1; do sleep 0.5; done";

#[track_caller]
fn set_live_restore(lazaret: &Lazaret, live: bool) {
    lazaret.sh(&format!(
        "jq '.\"live-restore\" = {live}' {CONFIG} >{CONFIG}.new && mv {CONFIG}.new {CONFIG}
        kill -HUP $(cat /var/run/docker.pid)
        until docker info --format '{{{{.LiveRestoreEnabled}}}}' | grep -x {live}; do sleep 0.5; done"
    ));
}

/// It still runs, under its daemon as if nothing had been.
#[track_caller]
fn assert_runs_on(docker: &Engine<'_>, name: &str, pid: &str) {
    let state = docker.inspect(name, "{{.State.Status}} {{.State.Pid}}");
    assert_eq!(state, format!("running {pid}"));
    assert_eq!(docker.ok(["exec", name, "echo", "here"]), "here");
    let lazaret = docker.lazaret();
    // What it writes arrives again.
    lazaret.sh(&format!(
        "before=$(docker logs {name} | wc -l)
        until [ $(docker logs {name} | wc -l) -gt $before ]; do sleep 0.5; done"
    ));
    docker.ok(["stop", "-t", "60", name]);
    assert_eq!(docker.inspect(name, "{{.State.ExitCode}}"), "8");
    docker.remove([name]);
}

#[test]
#[ignore = "restarts the daemon: make test-full"]
fn container_outlives_a_killed_daemon() {
    let lazaret = start!("abuse-dockerd-live");
    let docker = engine!(lazaret, Kind::Docker);
    set_live_restore(&lazaret, true);
    let name = docker.name("live");
    docker.detached(&name, ["busybox", "sh", "-c", COUNT]);
    let pid = docker.inspect(&name, "{{.State.Pid}}");
    lazaret.sh_cmd(KILL_DOCKER).output().status(0);
    assert_runs_on(&docker, &name, &pid);
    set_live_restore(&lazaret, false);
}

#[test]
#[ignore = "restarts the daemon: make test-full"]
fn container_of_a_killed_daemon_ends_with_the_next() {
    let lazaret = start!("abuse-dockerd");
    let docker = engine!(lazaret, Kind::Docker);
    let name = docker.name("killed");
    let again = docker.name("again");
    docker.detached(&name, ["busybox", "sh", "-c", COUNT]);
    docker.detached(&again, ["--restart=always", "busybox", "sh", "-c", COUNT]);
    let pid = docker.inspect(&again, "{{.State.Pid}}");
    lazaret.sh_cmd(KILL_DOCKER).output().status(0);
    docker.until(&name, "{{.State.Status}}", "exited");
    docker.until(&again, "{{.State.Status}}", "running");
    assert_ne!(docker.inspect(&again, "{{.State.Pid}}"), pid);
    docker.ok(["start", &name]);
    assert_eq!(docker.ok(["exec", &name, "echo", "here"]), "here");
    docker.remove([&name, &again]);
}

/// The daemon starts a new containerd, which finds its shims and through them the containers.
#[test]
#[ignore = "restarts the daemon's containerd: make test-full"]
fn container_outlives_a_killed_containerd() {
    let lazaret = start!("abuse-containerd");
    let docker = engine!(lazaret, Kind::Docker);
    let name = docker.name("survivor");
    docker.detached(&name, ["busybox", "sh", "-c", COUNT]);
    let pid = docker.inspect(&name, "{{.State.Pid}}");
    lazaret.sh(
        "file=/var/run/docker/containerd/containerd.pid; old=$(cat $file); kill -KILL $old
        until [ \"$(cat $file)\" != $old ] && kill -0 $(cat $file); do sleep 0.5; done 2>/dev/null",
    );
    // The daemon's connection comes back some time after.
    lazaret.sh(&format!(
        "until timeout 60 docker exec {name} true; do sleep 0.5; done 2>/dev/null"
    ));
    assert_runs_on(&docker, &name, &pid);
}

/// Nobody reads the container's output any more, nor waits for its end: podman still ends it.
#[test]
fn container_without_its_conmon_can_be_removed() {
    let lazaret = start!("abuse-conmon");
    let podman = engine!(lazaret, Kind::Podman);
    let name = podman.name("orphan");
    podman.detached(&name, ["busybox", "sleep", "100000"]);
    let conmon = podman.inspect(&name, "{{.State.ConmonPid}}");
    lazaret.sh(&format!(
        "kill -KILL {conmon}; while kill -0 {conmon}; do sleep 0.1; done 2>/dev/null"
    ));
    assert_eq!(podman.inspect(&name, "{{.State.Status}}"), "running");
    assert_eq!(podman.ok(["exec", &name, "echo", "here"]), "here");
    // Podman misses conmon's word of how the container ended, says so, and has ended it.
    podman.call(["rm", "-f", "--time=0", &name]);
    let there = podman.ok(["ps", "-aq", "--filter", &format!("name={name}")]);
    if !there.is_empty() {
        podman.until(&name, "{{.State.Status}}", "exited");
        podman.remove([&name]);
    }
}

/// The shim that stands between containerd and the container is killed: containerd has the container
/// deleted, by force.
#[test]
#[ignore = "half a minute in the lab: make test-full"]
fn container_of_a_killed_shim_ends() {
    let lazaret = start!("abuse-shim");
    let docker = engine!(lazaret, Kind::Docker);
    let name = docker.name("shimless");
    let id = docker.detached(&name, ["busybox", "sh", "-c", COUNT]);
    lazaret.sh(&format!(
        "pkill -KILL -f '^[^ ]*containerd-shim-runc-v2 .*-id {id}'"
    ));
    docker.until(&name, "{{.State.Status}}", "exited");
    docker.remove([&name]);
}
