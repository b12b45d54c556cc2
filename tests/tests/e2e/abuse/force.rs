//! `delete --force` ends a container in whatever state, a half-made one too, and asks nobody who
//! may hang.

use lazaret_tests::{Lazaret, start};

use super::bundle::Bundle;
use super::footprint::Footprint;

/// More than any of these may take, and less than anything that hangs.
const DEADLINE: u32 = 120;

#[track_caller]
fn delete_by_force(lazaret: &Lazaret, bundle: &Bundle<'_>) {
    let delete = format!("lazaret-oci delete --force {}", bundle.id);
    lazaret
        .sh_cmd(&delete)
        .deadline(DEADLINE)
        .output()
        .success();
    bundle.assert_gone();
    lazaret.sh(&format!("rm -r {}", bundle.path));
}

#[test]
fn each_state_ends_by_force() {
    let lazaret = start!("abuse-force");
    let before = Footprint::of(&lazaret);

    let none = Bundle::new(&lazaret, "none", "true");
    delete_by_force(&lazaret, &none);

    let created = Bundle::new(&lazaret, "created", "sleep 100000");
    let parent = created.create();
    delete_by_force(&lazaret, &created);
    assert_eq!(parent.ended(), "signal 9");

    let running = Bundle::new(&lazaret, "running", "trap '' TERM; sleep 100000 & wait");
    let parent = running.start();
    running
        .call(&["delete"], &[])
        .status(1)
        .stderr_contains("running");
    delete_by_force(&lazaret, &running);
    assert_eq!(parent.ended(), "signal 9");

    let paused = Bundle::new(&lazaret, "paused", "sleep 100000");
    let parent = paused.start();
    paused.call(&["pause"], &[]).success();
    paused
        .call(&["delete"], &[])
        .status(1)
        .stderr_contains("paused");
    delete_by_force(&lazaret, &paused);
    assert_eq!(parent.ended(), "signal 9");

    let stopped = Bundle::new(&lazaret, "stopped", "exit 7");
    let parent = stopped.start();
    assert_eq!(parent.ended(), "status 7");
    assert_eq!(stopped.status(), "stopped");
    delete_by_force(&lazaret, &stopped);

    before.assert_again(&lazaret);
}

/// Each of these can be seen to be there while `create` is under way, one after the other.
const MILESTONES: [(&str, &str); 5] = [
    ("reserved", "[ -d /run/lazaret/oci/$id ]"),
    ("recorded", "[ -e /run/lazaret/oci/$id/state.json ]"),
    ("let-go", "[ -e /run/lazaret/sandboxes/$id/shim.pid ]"),
    (
        "booting",
        "jq -e .vmm_pid /run/lazaret/sandboxes/$id/state.json",
    ),
    (
        "ready",
        "grep -q 'microVM is ready' /run/lazaret/sandboxes/$id/sandbox.log",
    ),
];

/// Kills `create` at a milestone.
fn half_made<'a>(lazaret: &'a Lazaret, name: &str, there: &str) -> Bundle<'a> {
    let bundle = Bundle::new(lazaret, name, "sleep 100000");
    let (path, id) = (&bundle.path, &bundle.id);
    let script = format!(
        "id={id}
        lazaret-oci create --bundle {path} $id >/dev/null 2>&1 </dev/null &
        until {there}; do kill -0 $! || exit 1; done >/dev/null 2>&1
        kill -KILL $!; wait $!; [ $? = 137 ]"
    );
    lazaret.sh(&script);
    bundle
}

#[test]
fn half_made_container_ends_by_force() {
    let lazaret = start!("abuse-half-made");
    let before = Footprint::of(&lazaret);
    for (name, there) in MILESTONES {
        let bundle = half_made(&lazaret, name, there);
        delete_by_force(&lazaret, &bundle);
        before.assert_again(&lazaret);
    }
}

/// Nobody deletes it: what was made goes by itself, and the id is all that is left to delete.
#[test]
fn half_made_container_is_stopped_and_runs_nothing() {
    let lazaret = start!("abuse-left-half-made");
    let before = Footprint::of(&lazaret);
    for (name, there) in MILESTONES {
        let bundle = half_made(&lazaret, name, there);
        let id = &bundle.id;
        lazaret.sh(&format!(
            "while pgrep -x lazaret-vmm || pgrep -f '^[^ ]*containerd-shim-lazaret-v2'; do
                sleep 0.1; done; ! [ -e /run/lazaret/sandboxes/{id}/vsock.sock ]"
        ));
        let state = bundle.call(&["state"], &[]);
        if state.status_code() == 0 {
            assert_eq!(state.json()["status"], "stopped", "{name}");
        }
        // A container that never came to be is no obstacle to the next one of its name.
        bundle.call(&["delete", "--force"], &[]).success();
        let parent = bundle.create();
        delete_by_force(&lazaret, &bundle);
        assert_eq!(parent.ended(), "signal 9");
        before.assert_again(&lazaret);
    }
}

/// Neither a monitor nor a sandbox process that does nothing any more is waited for.
#[test]
fn hanging_processes_do_not_hold_up_force() {
    let lazaret = start!("abuse-hanging");
    let before = Footprint::of(&lazaret);

    let bundle = Bundle::new(&lazaret, "monitor", "sleep 100000");
    let parent = bundle.start();
    lazaret.sh(&format!("kill -STOP {}", bundle.vmm()));
    delete_by_force(&lazaret, &bundle);
    assert_eq!(parent.ended(), "signal 9");
    before.assert_again(&lazaret);

    let bundle = Bundle::new(&lazaret, "sandbox", "sleep 100000");
    let parent = bundle.start();
    lazaret.sh(&format!("kill -STOP {}", parent.pid));
    delete_by_force(&lazaret, &bundle);
    assert_eq!(parent.ended(), "signal 9");
    before.assert_again(&lazaret);
}

/// An engine that stops a container sends SIGKILL and waits: a guest that hangs is given up.
#[test]
fn sigkill_ends_a_guest_that_hangs() {
    let lazaret = start!("abuse-kill-hanging");
    let bundle = Bundle::new(&lazaret, "hanging", "sleep 100000");
    let parent = bundle.start();
    lazaret.sh(&format!("kill -STOP {}", bundle.vmm()));
    bundle.call(&["kill"], &["KILL"]).success();
    assert_eq!(parent.ended(), "status 137");
    bundle.until_stopped();
    bundle.call(&["delete"], &[]).success();
    bundle.assert_gone();
}
