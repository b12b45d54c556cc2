//! What is refused, by name, leaving nothing behind.

use lazaret_tests::{Oci, start};
use serde_json::{Value, json};

#[test]
fn unknown_containers_are_named_as_such() {
    let lazaret = start!("oci-unknown");
    let oci = Oci::new(&lazaret);
    let log = format!("{}/log", lazaret.scratch());
    for verb in [
        "state", "start", "kill", "delete", "pause", "resume", "ps", "events",
    ] {
        let logged = [
            "--log",
            &log,
            "--log-format",
            "json",
            verb,
            "no-such-container",
        ];
        oci.call(logged)
            .status(1)
            .stderr_contains("container does not exist");
    }
    oci.call(["exec", "no-such-container", "true"])
        .stderr_contains("container does not exist");
    oci.call(["delete", "--force", "no-such-container"])
        .success();

    // Each is in the log as well, in its format.
    let text = lazaret.sh(&format!("cat {log}"));
    assert_eq!(text.lines().count(), 8, "{text}");
    for line in text.lines() {
        let entry: Value = serde_json::from_str(line).expect("a JSON line");
        assert_eq!(entry["level"], "error", "{line}");
        assert!(entry["time"].is_string(), "{line}");
        let message = entry["msg"].as_str().expect("a message");
        assert!(message.contains("container does not exist"), "{line}");
    }
}

#[test]
fn bad_bundles_are_refused() {
    let lazaret = start!("oci-bad-bundles");
    let oci = Oci::new(&lazaret);
    let scratch = lazaret.scratch();
    let create = |bundle: &str, id: &str| oci.call(["create", "--bundle", bundle, id]);
    for id in ["", "a/b", "..", "a b"] {
        let outcome = create(&scratch, id);
        assert_ne!(outcome.status_code(), 0, "{id:?}: {outcome}");
    }
    create("/no/such/bundle", "e2e-bad").status(1);
    create(&scratch, "e2e-bad")
        .status(1)
        .stderr_contains("config.json");
    lazaret.file("config.json", "{ \"ociVersion\": ");
    create(&scratch, "e2e-bad").status(1);
}

/// Each of these would be a container but for one thing, which the error names.
#[test]
fn what_cannot_be_is_refused_by_name() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 12] = [
        ("9.9.9", |config| config["ociVersion"] = json!("9.9.9")),
        ("args", |config| config["process"]["args"] = json!([])),
        ("Cwd", |config| config["process"]["cwd"] = json!("relative")),
        ("no-such-root", |config| {
            config["root"]["path"] = json!("no-such-root");
        }),
        ("RLIMIT_NONSENSE", |config| {
            let limits = json!([{ "type": "RLIMIT_NONSENSE", "hard": 1, "soft": 1 }]);
            config["process"]["rlimits"] = limits;
        }),
        ("/no/such/source", |config| {
            let mount =
                json!({ "destination": "/mnt", "source": "/no/such/source", "options": ["bind"] });
            config["mounts"].as_array_mut().expect("a list").push(mount);
        }),
        ("nonsense", |config| {
            config["linux"]["namespaces"] =
                json!([{ "type": "mount" }, { "type": "network" }, { "type": "nonsense" }]);
        }),
        ("twice", |config| {
            let namespaces = json!([{ "type": "mount" }, { "type": "network" }, { "type": "pid" }, { "type": "pid" }]);
            config["linux"]["namespaces"] = namespaces;
        }),
        ("hook", |config| {
            config["hooks"] = json!({ "createRuntime": [{ "path": "/no/such/hook" }] });
        }),
        ("kernel.no_such_sysctl", |config| {
            config["linux"]["sysctl"] = json!({ "kernel.no_such_sysctl": "1" });
        }),
        ("network", |config| {
            config["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "pid" }]);
        }),
        ("intelRdt", |config| {
            config["linux"]["intelRdt"] = json!({ "closID": "guests" });
        }),
    ];
    let lazaret = start!("oci-refused");
    let oci = Oci::new(&lazaret);
    for (what, change) in changes {
        let bundle = oci.bundle_with("true", change);
        let created = oci.create(&bundle);
        assert_ne!(created.status_code(), 0, "{what}: {created}");
        created.stderr_contains(what);
        let state = oci.call(["state", &bundle.id]);
        assert_ne!(state.status_code(), 0, "{what} leaves a container: {state}");
    }
}

#[test]
#[ignore = "long: make test-full"]
fn missing_programs_are_told_in_runcs_words() {
    let lazaret = start!("oci-no-program");
    let oci = Oci::new(&lazaret);
    for (program, words) in [
        ("no-such-program", "executable file not found in $PATH"),
        ("/etc/passwd", "permission denied"),
        ("/no/such/program", "no such file or directory"),
    ] {
        let bundle = oci.bundle_with("", |config| config["process"]["args"] = json!([program]));
        // The specification lets the runtime tell at create or at start.
        let mut outcome = oci.create(&bundle);
        if outcome.status_code() == 0 {
            outcome = oci.call(["start", &bundle.id]);
        }
        assert_ne!(outcome.status_code(), 0, "{outcome}");
        outcome.stderr_contains(words);
        oci.call(["delete", "--force", &bundle.id]).success();
    }
}
