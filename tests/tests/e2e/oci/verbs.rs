//! The verbs that look at a container or change it while it runs, and those without one.

use lazaret_tests::{Oci, start};
use serde_json::{Value, json};

#[test]
fn running_containers_are_looked_at_and_changed() {
    let lazaret = start!("oci-verbs");
    let oci = Oci::new(&lazaret);
    let script =
        "sleep 998 & i=0; while :; do i=$((i+1)); echo $i >/new; mv /new /count; sleep 0.1; done";
    let bundle = oci.bundle_with(script, |config| {
        config["annotations"] = json!({ "org.example.note": "kept" });
        config["linux"]["resources"] =
            json!({ "memory": { "limit": 134_217_728 }, "pids": { "limit": 100 } });
    });
    let id = &bundle.id;
    oci.started(&bundle);
    let state = oci.state(&bundle);
    assert_eq!(state["annotations"]["org.example.note"], "kept");

    let list = oci.call(["list"]).lines();
    let line = list.iter().find(|line| line.starts_with(id.as_str()));
    let line = line.unwrap_or_else(|| panic!("{id} is not in {list:?}"));
    assert!(line.contains("running"), "{line}");
    assert!(line.contains(&bundle.path), "{line}");
    let list = oci.call(["list", "--format", "json"]).json();
    let mut entries = list.as_array().expect("a list").iter();
    let entry = entries.find(|entry| entry["id"] == id.as_str());
    assert_eq!(entry.expect("it is listed")["status"], "running");

    let ps = oci.call(["ps", id]).text();
    assert!(ps.contains("PID") && ps.contains("sleep 998"), "{ps}");
    let pids = oci.call(["ps", "--format", "json", id]).json();
    let main = oci.read(&bundle, "pid").parse::<u64>().expect("a number");
    assert!(
        pids.as_array()
            .is_some_and(|pids| pids.contains(&json!(main))),
        "{main} is not in {pids}"
    );

    let figures = oci.call(["events", "--stats", id]).json();
    assert_eq!(figures["type"], "stats");
    assert_eq!(figures["id"], id.as_str());
    for (name, figure, at_least) in [
        ("memory", &figures["data"]["memory"]["usage"]["usage"], 1),
        (
            "limit",
            &figures["data"]["memory"]["usage"]["limit"],
            134_217_728,
        ),
        ("cpu", &figures["data"]["cpu"]["usage"]["total"], 1),
        ("pids", &figures["data"]["pids"]["current"], 2),
    ] {
        assert!(figure.as_u64() >= Some(at_least), "{name}: {figures}");
    }

    let update = [
        "update",
        "--memory",
        "96M",
        "--memory-swap",
        "96M",
        "--pids-limit",
        "50",
        id,
    ];
    oci.call(update).success();
    let read = [
        "exec",
        id,
        "cat",
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/pids.max",
    ];
    oci.call(read).success().stdout("100663296\n50\n");

    oci.call(["pause", id]).success();
    assert_eq!(oci.status(&bundle), "paused");
    oci.call(["exec", id, "true"])
        .status(255)
        .stderr_contains("paused");
    oci.call(["resume", id]).success();
    assert_eq!(oci.status(&bundle), "running");
    // It goes on where it was.
    let goes_on = "was=$(cat /count); until [ $(cat /count) -gt $was ]; do sleep 0.1; done";
    oci.call(["exec", id, "sh", "-c", goes_on]).success();

    oci.call(["checkpoint", id]).status(1);
    oci.call(["kill", "--all", id, "KILL"]).success();
    oci.until_stopped(&bundle);
    oci.call(["pause", id]).status(1);
    oci.call(["delete", id]).success();
}

/// `events` without `--stats` goes on as long as the container.
#[test]
fn events_end_with_the_container() {
    let lazaret = start!("oci-events");
    let oci = Oci::new(&lazaret);
    let bundle = oci.bundle("exec sleep 1000");
    oci.started(&bundle);
    let watch = ["events", "--interval", "100ms", &bundle.id];
    let mut events = oci.cmd(watch).spawn();
    for _ in 0..2 {
        let line = events.line();
        let event: Value = serde_json::from_str(&line).expect("JSON, one event a line");
        assert_eq!(event["type"], "stats", "{line}");
        assert_eq!(event["id"], bundle.id.as_str(), "{line}");
    }
    oci.call(["kill", &bundle.id, "KILL"]).success();
    events.wait().status(0);
    oci.until_stopped(&bundle);
    oci.call(["delete", &bundle.id]).success();
}

#[test]
fn what_the_runtime_offers_and_proposes_is_so() {
    let lazaret = start!("oci-offers");
    let oci = Oci::new(&lazaret);
    let features = oci.call(["features"]).success().json();
    for (list, wanted) in [
        (&features["hooks"], "createContainer"),
        (&features["mountOptions"], "rro"),
        (&features["linux"]["namespaces"], "time"),
        (&features["linux"]["capabilities"], "CAP_SYS_ADMIN"),
        (
            &features["linux"]["seccomp"]["operators"],
            "SCMP_CMP_MASKED_EQ",
        ),
    ] {
        let has = |list: &Vec<Value>| list.contains(&json!(wanted));
        assert!(list.as_array().is_some_and(has), "{wanted}: {features}");
    }
    oci.call(["--version"])
        .success()
        .stdout_contains("spec: 1.");

    // What `spec` proposes runs as it is, but for the terminal.
    let bundle = oci.bundle("");
    let spec = ["spec", "--bundle", &bundle.path];
    oci.call(spec).status(1).stderr_contains("config.json");
    lazaret.sh(&format!(
        r#"cd {}; rm config.json; {} spec
        sed -i 's/"terminal": true/"terminal": false/; s/"sh"$/"hostname"/' config.json"#,
        bundle.path,
        oci.runtime()
    ));
    let hostname = if oci.is_lazaret() {
        "lazaret\n"
    } else {
        "runc\n"
    };
    oci.run(&bundle).success().stdout(hostname);
    oci.call(["state", &bundle.id]).status(1);
    oci.call(["no-such-verb"]).stderr_contains("no-such-verb");
}

/// Every byte goes through `run`, in both directions, and the exit code is the container's.
#[test]
#[ignore = "long: make test-full"]
fn run_passes_streams_and_status() {
    let lazaret = start!("oci-run");
    let oci = Oci::new(&lazaret);
    let bundle = oci.bundle("cat; echo error >&2; exit 6");
    let (path, id) = (&bundle.path, &bundle.id);
    let data: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let run = oci.cmd(["run", "--bundle", path, id]).stdin(data.clone());
    let outcome = run.output();
    outcome.status(6).stderr("error\n");
    assert!(outcome.stdout_bytes() == data, "every byte, in order");
    oci.call(["state", id]).status(1);

    // In the background, and kept once it has ended.
    lazaret.sh(&format!(
        "{} run --detach --bundle {path} {id} </dev/null >{path}/out 2>&1",
        oci.runtime()
    ));
    oci.until_stopped(&bundle);
    oci.call(["delete", id]).success();
    assert_eq!(oci.read(&bundle, "out"), "error\n");
}
