//! The death of any one process ends in a stopped container with a reason, and leaves nothing
//! running or mounted.

use lazaret_tests::{Lazaret, start};

/// Asserts that the container is stopped, and gives its exit code and reason.
fn ended(lazaret: &Lazaret, name: &str) -> (i64, String) {
    let code = lazaret.lazaret(["wait", name]).success().text();
    let inspected = lazaret.lazaret(["inspect", name]).success().json();
    let state = &inspected[0]["State"];
    assert_eq!(state["Running"], false, "{state}");
    assert_eq!(state["Status"], "exited", "{state}");
    let reason = state["Error"].as_str().expect("a text").to_owned();
    let exit_code = state["ExitCode"].as_i64().expect("a number");
    assert_eq!(code.trim(), exit_code.to_string(), "wait and inspect agree");
    (exit_code, reason)
}

/// Nothing of a dead sandbox may run, be mounted or hold a cgroup.
fn assert_nothing_runs(lazaret: &Lazaret) {
    let left = lazaret.sh("for try in $(seq 50); do
            left=$(pgrep -x lazaret-vmm; pgrep -f '^[^ ]*containerd-shim-lazaret-v2';
                grep '/run/lazaret\\|/var/lib/lazaret' /proc/mounts;
                find /sys/fs/cgroup/lazaret -mindepth 1 -type d 2>/dev/null)
            [ -z \"$left\" ] && break
            sleep 0.1
        done
        echo \"$left\"");
    assert_eq!(left.trim(), "");
}

#[test]
fn killed_monitor_is_a_stopped_container_with_a_reason() {
    let lazaret = start!("kill-vmm");
    let name = lazaret.container("a");
    lazaret.detached(&name, ["busybox", "sleep", "1000"]);
    let mut exec = lazaret
        .cmd(["exec", &name, "sh", "-c", "echo in; sleep 1000"])
        .spawn();
    assert_eq!(exec.line(), "in");
    lazaret.sh("pkill -KILL -x lazaret-vmm");
    let (code, reason) = ended(&lazaret, &name);
    assert_eq!(code, 137);
    assert!(
        reason.contains("killed") || reason.contains("signal"),
        "{reason}"
    );
    assert_ne!(
        exec.wait().status_code(),
        0,
        "an exec does not outlive its microVM"
    );
    assert_nothing_runs(&lazaret);
    lazaret.lazaret(["rm", &name]).success();
}

#[test]
fn killed_sandbox_process_is_a_stopped_container_with_a_reason() {
    let lazaret = start!("kill-sandbox");
    let name = lazaret.container("a");
    lazaret.detached(&name, ["busybox", "sleep", "1000"]);
    lazaret.sh("pkill -KILL -f '^[^ ]*containerd-shim-lazaret-v2'");
    let (code, reason) = ended(&lazaret, &name);
    assert_eq!(code, 137);
    assert!(reason.contains("sandbox process"), "{reason}");
    assert_nothing_runs(&lazaret);
    lazaret.lazaret(["rm", &name]).success();
}

#[test]
fn foreground_run_tells_that_the_monitor_died() {
    let lazaret = start!("kill-vmm-foreground");
    let name = lazaret.container("a");
    let script = "echo up; sleep 1000";
    let mut run = lazaret
        .run_cmd(["--rm", "--name", &name, "busybox", "sh", "-c", script])
        .spawn();
    assert_eq!(run.line(), "up");
    lazaret.sh("pkill -KILL -x lazaret-vmm");
    let outcome = run.wait();
    outcome.status(137);
    assert!(
        !outcome.errors().trim().is_empty(),
        "why, on stderr: {outcome}"
    );
    assert_nothing_runs(&lazaret);
}

#[test]
fn killed_client_leaves_the_container_manageable() {
    let lazaret = start!("kill-client");
    let name = lazaret.container("a");
    let script = "echo up; sleep 1000";
    let mut run = lazaret
        .run_cmd(["--name", &name, "busybox", "sh", "-c", script])
        .spawn();
    assert_eq!(run.line(), "up");
    run.signal("KILL");
    run.wait().status(137);
    lazaret
        .lazaret(["exec", &name, "echo", "alive"])
        .success()
        .stdout("alive\n");
    lazaret.lazaret(["rm", "-f", &name]).success();
}

/// Runs a container with a configuration in which one file is replaced.
fn run_with(lazaret: &Lazaret, key: &str, file: &str) -> lazaret_tests::Outcome {
    let name = lazaret.container(key);
    lazaret.sh(&format!(
        "mkdir -p /etc/lazaret; ! [ -e /etc/lazaret/config.toml ] || exit 1
        echo '{key} = \"{file}\"' >/etc/lazaret/config.toml"
    ));
    let outcome = lazaret.run(["--rm", "--name", &name, "busybox", "true"]);
    lazaret.sh("rm -r /etc/lazaret");
    outcome
}

#[test]
fn corrupt_kernel_is_refused() {
    let lazaret = start!("corrupt-kernel");
    let text = lazaret.file("text", "this is no kernel\n".repeat(100));
    run_with(&lazaret, "kernel", &text)
        .status(125)
        .stderr_contains("kernel");
    run_with(&lazaret, "kernel", "/no/such/kernel")
        .status(125)
        .stderr_contains("/no/such/kernel");
    // Valid headers around nothing that runs: it crashes, or is given up, but always ends.
    let scratch = lazaret.scratch();
    lazaret.sh(&format!(
        "head -c 300000 /usr/share/lazaret/vmlinux >{scratch}/short
        cp /usr/share/lazaret/vmlinux {scratch}/overwritten
        dd if=/dev/zero of={scratch}/overwritten bs=64k seek=4 count=100 conv=notrunc status=none"
    ));
    run_with(&lazaret, "kernel", &format!("{scratch}/short")).status(125);
    run_with(&lazaret, "kernel", &format!("{scratch}/overwritten")).status(125);
}

#[test]
fn initramfs_without_an_agent_ends_with_the_kernels_panic() {
    let lazaret = start!("corrupt-initramfs");
    let empty = lazaret.file("initramfs", vec![0; 512]);
    let outcome = run_with(&lazaret, "initramfs", &empty);
    outcome.status(125);
    assert!(outcome.errors().contains("panic"), "{outcome}");
}

#[test]
fn unknown_key_in_the_configuration_is_named() {
    let lazaret = start!("config-key");
    run_with(&lazaret, "kernell", "/x")
        .status(125)
        .stderr_contains("kernell");
}
