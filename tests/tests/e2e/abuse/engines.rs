//! What stands between an engine and a container is killed: the container is the engine's to end all
//! the same.

use lazaret_tests::{Engine, Kind, start};

/// Nobody reads the container's output any more, nor waits for its end: podman still ends it.
#[test]
fn container_without_its_conmon_can_be_removed() {
    let lazaret = start!("abuse-conmon");
    let Some(podman) = Engine::start(&lazaret, Kind::Podman) else {
        return;
    };
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
