//! `exec`: a further command in a running container.

use lazaret_tests::start;

#[test]
fn commands_run_beside_the_first() {
    let lazaret = start!("exec");
    let name = lazaret.container("a");
    lazaret.detached(
        &name,
        ["-e", "FROM=run", "-w", "/tmp", "busybox", "sleep", "1000"],
    );
    let exec = |args: &[&str]| lazaret.lazaret(["exec"].iter().chain(args).copied());

    // The container's processes, environment, directory and user.
    exec(&[&name, "ps"]).success().stdout_contains("sleep 1000");
    exec(&[&name, "sh", "-c", "echo $FROM; pwd; id -u"])
        .success()
        .stdout("run\n/tmp\n0\n");
    // Its own ones.
    exec(&[
        "-e",
        "FROM=exec",
        "-w",
        "/etc",
        "-u",
        "65534:65533",
        &name,
        "sh",
        "-c",
        "echo $FROM; pwd; id -u; id -g",
    ])
    .success()
    .stdout("exec\n/etc\n65534\n65533\n");
    // Streams and exit codes.
    exec(&[&name, "sh", "-c", "echo out; echo err >&2; exit 12"])
        .status(12)
        .stdout("out\n")
        .stderr("err\n");
    lazaret
        .cmd(["exec", "-i", &name, "wc", "-c"])
        .stdin("12345")
        .output()
        .success()
        .stdout("5\n");
    exec(&[&name, "no-such-command"])
        .status(127)
        .stderr_contains("executable file not found in $PATH");
    exec(&[&name, "/etc/hostname"])
        .status(126)
        .stderr_contains("permission denied");
    exec(&["-u", "nobody-here", &name, "true"])
        .status(1)
        .stderr_contains("nobody-here");

    lazaret.lazaret(["rm", "-f", &name]).success();
    exec(&[&name, "true"])
        .status(1)
        .stderr_contains(&format!("No such container: {name}"));
}

#[test]
fn several_execs_at_once_do_not_mix() {
    let lazaret = start!("exec-many");
    let name = lazaret.container("a");
    lazaret.detached(&name, ["busybox", "sleep", "1000"]);
    let outputs = lazaret.sh(&format!(
        "for i in 1 2 3 4; do
            lazaret exec {name} sh -c \"for n in 1 2 3 4 5; do echo $i; done; exit $i\" >/tmp/lazaret-e2e-$i &
            pids=\"$pids $!\"
        done
        for pid in $pids; do
            wait $pid; codes=\"$codes $?\"
        done
        echo $codes
        for i in 1 2 3 4; do echo $(cat /tmp/lazaret-e2e-$i); rm /tmp/lazaret-e2e-$i; done"
    ));
    assert_eq!(
        outputs,
        "1 2 3 4\n1 1 1 1 1\n2 2 2 2 2\n3 3 3 3 3\n4 4 4 4 4\n"
    );
    lazaret.lazaret(["rm", "-f", &name]).success();
}

#[test]
fn exec_ends_with_its_container() {
    let lazaret = start!("exec-ends");
    let name = lazaret.container("a");
    lazaret.detached(&name, ["busybox", "sleep", "1000"]);
    let mut exec = lazaret
        .cmd(["exec", &name, "sh", "-c", "echo in; sleep 1000"])
        .spawn();
    assert_eq!(exec.line(), "in");
    lazaret.lazaret(["kill", &name]).success();
    exec.wait().status(137);
    lazaret
        .lazaret(["exec", &name, "true"])
        .status(1)
        .stderr_contains("is not running");
    lazaret.lazaret(["rm", &name]).success();
}
