//! The exit code of `lazaret run` is the container's own, or Docker's for what kept it from running.

use lazaret_tests::start;

#[test]
fn exit_code_is_the_commands_own() {
    let lazaret = start!("exit-code");
    lazaret
        .run(["--rm", "busybox", "true"])
        .status(0)
        .stdout("")
        .stderr("");
    lazaret
        .run(["--rm", "busybox", "sh", "-c", "exit 7"])
        .status(7)
        .stdout("")
        .stderr("");
}

#[test]
fn missing_command_is_127() {
    let lazaret = start!("missing-command");
    let name = lazaret.container("a");
    lazaret
        .run(["--rm", "--name", &name, "busybox", "no-such-command"])
        .status(127)
        .stdout("")
        .stderr_contains(r#"exec: "no-such-command": executable file not found in $PATH"#);
    lazaret
        .run(["--rm", "--name", &name, "busybox", "/no/such/command"])
        .status(127)
        .stderr_contains("no such file or directory");
}

#[test]
fn command_that_is_not_executable_is_126() {
    let lazaret = start!("not-executable");
    lazaret
        .run(["--rm", "busybox", "/etc/hostname"])
        .status(126)
        .stdout("")
        .stderr_contains("permission denied");
}

#[test]
fn killed_container_is_137() {
    let lazaret = start!("killed");
    let name = lazaret.container("a");
    let mut run = lazaret
        .run_cmd([
            "--rm",
            "--name",
            &name,
            "busybox",
            "sh",
            "-c",
            "echo up; sleep 1000",
        ])
        .spawn();
    assert_eq!(run.line(), "up");
    lazaret
        .lazaret(["kill", &name])
        .success()
        .stdout(&format!("{name}\n"));
    run.wait().status(137);
}

#[test]
fn signal_inside_the_container_is_128_and_its_number() {
    let lazaret = start!("signal-inside");
    // Not the first process, which is deaf to signals that it sends itself.
    let script = "sh -c 'kill -9 $$'; exit $?";
    lazaret
        .run(["--rm", "busybox", "sh", "-c", script])
        .status(137);
}
