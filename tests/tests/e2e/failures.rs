//! The death of any one process ends in a stopped container with a reason, and leaves nothing
//! running or mounted.

use lazaret_tests::{Lazaret, Outcome, start};

use crate::initramfs::initramfs;

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

/// Runs a container under this configuration file.
fn run_with(lazaret: &Lazaret, config: &str) -> Outcome {
    let name = lazaret.container("a");
    let path = lazaret.file("config.toml", config);
    lazaret
        .sh_cmd(&format!(
            "LAZARET_CONFIG={path} lazaret run --rm --name {name} busybox true"
        ))
        .output()
}

#[test]
fn corrupt_kernel_is_refused() {
    let lazaret = start!("corrupt-kernel");
    let text = lazaret.file("text", "this is no kernel\n".repeat(100));
    let with_kernel = |path: &str| run_with(&lazaret, &format!("kernel = \"{path}\""));
    with_kernel(&text).status(125).stderr_contains("kernel");
    with_kernel("/no/such/kernel")
        .status(125)
        .stderr_contains("/no/such/kernel");
    // Good headers, and nothing, or nothing that runs, behind them.
    let scratch = lazaret.scratch();
    lazaret.sh(&format!(
        "head -c 300000 /usr/share/lazaret/vmlinux >{scratch}/short
        cp /usr/share/lazaret/vmlinux {scratch}/overwritten
        dd if=/dev/zero of={scratch}/overwritten bs=64k seek=32 count=100 conv=notrunc status=none"
    ));
    with_kernel(&format!("{scratch}/short")).status(125);
    with_kernel(&format!("{scratch}/overwritten")).status(125);
}

/// Runs a container in a guest whose agent is the test's own program.
fn run_with_agent(lazaret: &Lazaret, behaviour: &str) -> Outcome {
    let agent = initramfs(&lazaret.probe_bytes(), behaviour);
    let path = lazaret.file("initramfs", agent);
    run_with(
        lazaret,
        &format!("initramfs = \"{path}\"\nboot_timeout_s = 8\n"),
    )
}

#[test]
fn guest_without_an_agent_ends_with_its_kernels_panic() {
    let lazaret = start!("no-agent");
    let path = lazaret.file("initramfs", vec![0; 512]);
    let outcome = run_with(&lazaret, &format!("initramfs = \"{path}\""));
    outcome
        .status(125)
        .stderr_contains("the guest kernel panicked");
}

#[test]
fn agent_that_dies_ends_with_its_kernels_panic() {
    let lazaret = start!("agent-dies");
    run_with_agent(&lazaret, "die")
        .status(125)
        .stderr_contains("the guest kernel panicked");
}

#[test]
fn agent_that_says_nothing_is_given_up() {
    let lazaret = start!("agent-hangs");
    let outcome = run_with_agent(&lazaret, "hang");
    outcome.status(125).stderr_contains("8 s");
}

#[test]
fn agent_that_floods_the_console_is_given_up_and_fills_nothing() {
    let lazaret = start!("agent-floods");
    let sizes = "while sleep 0.2; do du -sk /run/lazaret | cut -f 1; done";
    let watch = lazaret.sh_cmd(sizes).spawn();
    let outcome = run_with_agent(&lazaret, "flood");
    outcome.status(125);
    watch.signal("TERM");
    let sizes = watch.wait().lines();
    let largest = sizes
        .iter()
        .filter_map(|line| line.parse::<u32>().ok())
        .max();
    assert!(
        largest.is_some_and(|kib| kib < 4096),
        "its log took {largest:?} KiB of /run"
    );
}

#[test]
fn unknown_key_in_the_configuration_is_named() {
    let lazaret = start!("config-key");
    run_with(&lazaret, "kernell = \"/x\"")
        .status(125)
        .stderr_contains("kernell");
}
