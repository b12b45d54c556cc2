//! `exec` in all its forms but that with a terminal.

use lazaret_tests::{Bundle, Lazaret, Oci, start};
use serde_json::json;

#[test]
fn processes_are_added_to_a_container() {
    let lazaret = start!("oci-exec");
    let oci = Oci::new(&lazaret);
    let bundle = oci.bundle("exec sleep 1000");
    let id = &bundle.id;
    oci.started(&bundle);
    flags_change_what_they_name(&oci, id);
    failures_are_told_as_runc_does(&oci, id);
    file_describes_a_process(&lazaret, &oci, id);
    detached_process_has_one_that_stands_for_it(&lazaret, &oci, &bundle);

    oci.call(["kill", id, "KILL"]).success();
    oci.until_stopped(&bundle);
    oci.call(["exec", id, "true"])
        .status(255)
        .stderr_contains("cannot exec in a stopped container");
    oci.call(["delete", id]).success();
}

fn flags_change_what_they_name(oci: &Oci, id: &str) {
    let script =
        "cat; echo error >&2; id -u; id -g; id -G; pwd; echo $A; grep CapEff /proc/self/status
        grep NoNewPrivs /proc/self/status; exit 9";
    let flags = "exec --user 12:34 --additional-gids 56 --cwd /etc --env A=b,c --cap CAP_NET_RAW";
    let rest = [id, "sh", "-c", script];
    let exec = oci.cmd(flags.split(' ').chain(rest)).stdin("in\n").output();
    exec.status(9).stderr("error\n");
    let lines = exec.lines();
    assert_eq!(lines[..6], ["in", "12", "34", "34 56", "/etc", "b,c"]);
    // Another user than root has the capability to use only where it is ambient.
    assert!(lines[6].starts_with("CapEff:\t"), "{exec}");
    assert_eq!(lines[7], "NoNewPrivs:\t1", "the container's");

    // Root has what the container has, and what is added.
    let show = [
        "exec",
        "--cap",
        "CAP_NET_RAW",
        id,
        "grep",
        "CapEff",
        "/proc/self/status",
    ];
    oci.call(show)
        .success()
        .stdout("CapEff:\t0000000020002420\n");
}

fn failures_are_told_as_runc_does(oci: &Oci, id: &str) {
    oci.call(["exec", id, "no-such-program"])
        .status(255)
        .stderr_contains("executable file not found in $PATH");
    oci.call(["exec", id, "/etc/passwd"])
        .status(255)
        .stderr_contains("permission denied");
    oci.call(["exec", id, "sh", "-c", "kill -9 $$"]).status(137);
}

fn file_describes_a_process(lazaret: &Lazaret, oci: &Oci, id: &str) {
    let process = json!({
        "args": ["sh", "-c", "echo $X; pwd; ulimit -n; id -u"],
        "cwd": "/tmp",
        "user": { "uid": 7, "gid": 7 },
        "env": ["PATH=/bin", "X=from the file"],
        "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 77, "soft": 77 }],
    });
    let file = lazaret.file("process.json", process.to_string());
    oci.call(["exec", "--process", &file, id])
        .success()
        .stdout("from the file\n/tmp\n77\n7\n");
}

fn detached_process_has_one_that_stands_for_it(lazaret: &Lazaret, oci: &Oci, bundle: &Bundle) {
    let (path, id, runtime) = (&bundle.path, &bundle.id, oci.runtime());
    let probe = lazaret.probe();
    // A signal to it is the program's, and it ends as the program does.
    let script = r#"trap "echo asked; exit 33" TERM; echo up; while :; do sleep 0.1; done"#;
    lazaret.file("detached.sh", script);
    let reaper = lazaret.sh_cmd(&format!(
        "cd {path}; exec {probe} reap exec-pid sh -c '{runtime} exec -d --pid-file exec-pid {id} \
         sh -c \"$(cat ../detached.sh)\" >exec-out 2>&1 </dev/null'"
    ));
    let reaper = reaper.spawn();
    oci.until_written(bundle, "exec-out");
    lazaret.sh(&format!("kill -TERM $(cat {path}/exec-pid)"));
    reaper.wait().success().stdout("exit 33\n");
    assert_eq!(oci.read(bundle, "exec-out"), "up\nasked\n");
}
