//! Created, running, stopped: what each verb does in each state, and what engines see of it.
//! <https://github.com/opencontainers/runtime-spec/blob/v1.2.0/runtime.md#lifecycle>

use lazaret_tests::{Oci, start};

#[test]
fn verbs_keep_to_the_states() {
    let lazaret = start!("oci-states");
    let oci = Oci::new(&lazaret);
    let bundle =
        oci.bundle("echo began; trap 'echo asked; exit 5' TERM; while :; do sleep 0.1; done");
    let (path, id) = (&bundle.path, &bundle.id);

    oci.create(&bundle).success().stdout("");
    let state = oci.state(&bundle);
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], id.as_str());
    assert_eq!(state["bundle"], path.as_str());
    let version = state["ociVersion"].as_str();
    assert!(
        version.is_some_and(|version| version.starts_with("1.")),
        "{state}"
    );
    let pid = oci.read(&bundle, "pid");
    assert_eq!(state["pid"].to_string(), pid, "the pid file's");
    lazaret.sh(&format!("kill -0 {pid}"));
    assert_eq!(oci.read(&bundle, "out"), "", "nothing runs before start");
    oci.call(["create", "--bundle", path, id])
        .status(1)
        .stderr_contains("container with given ID already exists");
    // What the bundle says from here on is no longer of concern.
    lazaret.sh(&format!(
        "sed -i 's/echo began/echo changed/' {path}/config.json"
    ));

    oci.call(["pause", id]).success();
    assert_eq!(oci.status(&bundle), "paused");
    oci.call(["start", id])
        .status(1)
        .stderr_contains("cannot start a container in the paused state");
    oci.call(["resume", id]).success();
    assert_eq!(oci.status(&bundle), "created");

    oci.call(["start", id]).success();
    assert_eq!(oci.until_written(&bundle, "out"), "began\n");
    assert_eq!(oci.status(&bundle), "running");
    oci.call(["start", id])
        .status(1)
        .stderr_contains("cannot start an already running container");
    oci.call(["delete", id])
        .status(1)
        .stderr_contains("that is not stopped: running");

    oci.call(["kill", id, "TERM"]).success();
    oci.until_stopped(&bundle);
    assert_eq!(oci.read(&bundle, "out"), "began\nasked\n");
    lazaret.sh(&format!("! kill -0 {pid} 2>/dev/null"));
    oci.call(["kill", id, "TERM"])
        .status(1)
        .stderr_contains("container not running");
    oci.call(["start", id])
        .status(1)
        .stderr_contains("cannot start a container that has stopped");

    oci.call(["delete", id]).success();
    oci.call(["state", id])
        .status(1)
        .stderr_contains("container does not exist");
    oci.call(["delete", id])
        .status(1)
        .stderr_contains("container does not exist");
}

/// The id is free after `delete`, whatever became of the container.
#[test]
#[ignore = "long: make test-full"]
fn created_containers_can_be_killed_and_deleted() {
    let lazaret = start!("oci-created");
    let oci = Oci::new(&lazaret);
    let bundle = oci.bundle("echo ran");
    oci.create(&bundle).success();
    oci.call(["kill", &bundle.id, "KILL"]).success();
    oci.until_stopped(&bundle);
    oci.call(["delete", &bundle.id]).success();
    assert_eq!(oci.read(&bundle, "out"), "");

    oci.create(&bundle).success();
    oci.call(["delete", "--force", &bundle.id]).success();
    oci.call(["state", &bundle.id]).status(1);
    assert_eq!(oci.read(&bundle, "out"), "");
}

/// Engines wait for the process of the pid file: they are its reaper, its exit status is the
/// container's, and signals to it are the container's.
#[test]
fn process_of_the_pid_file_is_the_container() {
    let lazaret = start!("oci-reap");
    let oci = Oci::new(&lazaret);
    let probe = lazaret.probe();
    let bundle =
        oci.bundle("trap 'echo asked; exit 42' TERM; echo up; while :; do sleep 0.1; done");
    let (path, id, runtime) = (&bundle.path, &bundle.id, oci.runtime());
    let reaper = lazaret.sh_cmd(&format!(
        "cd {path}; exec {probe} reap pid sh -c \
         '{runtime} create --pid-file pid {id} >out 2>err </dev/null && {runtime} start {id}'"
    ));
    let reaper = reaper.spawn();
    oci.until_written(&bundle, "out");
    if oci.is_lazaret() {
        lazaret.sh(&format!("kill -TERM $(cat {path}/pid)"));
    } else {
        oci.call(["kill", id, "TERM"]).success();
    }
    reaper.wait().success().stdout("exit 42\n");
    // All of the output is there once the process is not.
    assert_eq!(oci.read(&bundle, "out"), "up\nasked\n");
    assert_eq!(oci.status(&bundle), "stopped");
    oci.call(["delete", id]).success();
}

#[test]
#[ignore = "long: make test-full"]
fn equal_ids_in_two_roots_are_two_containers() {
    let lazaret = start!("oci-roots");
    let oci = Oci::new(&lazaret);
    let bundle = oci.bundle("exec sleep 1000");
    let (path, id) = (&bundle.path, &bundle.id);
    let root = format!("{path}/root");
    let other = |arguments: &[&str]| oci.call(["--root", &root].iter().chain(arguments));
    oci.create(&bundle).success();
    other(&["state", id]).status(1);
    lazaret.sh(&format!(
        "{} --root {root} create --bundle {path} {id} </dev/null >{path}/out2 2>&1",
        oci.runtime()
    ));
    other(&["list", "-q"]).success().stdout(&format!("{id}\n"));
    other(&["delete", "--force", id]).success();
    other(&["list", "-q"]).success().stdout("");
    assert_eq!(oci.status(&bundle), "created", "the other one is as it was");
    oci.call(["delete", "--force", id]).success();
    lazaret.sh(&format!("rm -rf {root}"));
}
