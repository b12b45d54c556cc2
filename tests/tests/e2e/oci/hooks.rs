//! Hooks: when, where, with what on stdin; and what a failing one does.
//! <https://github.com/opencontainers/runtime-spec/blob/v1.2.0/config.md#posix-platform-hooks>

use lazaret_tests::{Oci, start};
use serde_json::{Value, json};

/// A hook that appends a line to `log`: its name, the status it is told, its environment, and on
/// which side it is.
fn hook(directory: &str, name: &str) -> Value {
    let script = format!(
        r#"status=$(tr -d ' \n' | grep -o '"status":"[a-z]*"' | cut -d '"' -f 4)
        where=outside; [ -e /only-in-the-container ] && where=inside
        echo {name} $status $MARK $where >>{directory}/log"#
    );
    json!({
        "path": "/bin/sh",
        "args": ["sh", "-c", script],
        "env": ["PATH=/usr/bin:/bin", "MARK=marked"],
        "timeout": 60,
    })
}

#[test]
fn hooks_run_in_order_and_in_place() {
    let lazaret = start!("oci-hooks");
    let oci = Oci::new(&lazaret);
    let scratch = lazaret.scratch();
    let bundle = oci.bundle_with("echo ran >>/shared/log", |config| {
        let outside = |name| json!([hook(&scratch, name)]);
        config["hooks"] = json!({
            "prestart": outside("prestart"),
            "createRuntime": [hook(&scratch, "createRuntime"), hook(&scratch, "createRuntime2")],
            "createContainer": outside("createContainer"),
            "startContainer": [hook("/shared", "startContainer")],
            "poststart": outside("poststart"),
            // One that fails after the end is told of, and the next one runs all the same.
            "poststop": [{ "path": "/bin/false" }, hook(&scratch, "poststop")],
        });
        let mount =
            json!({ "destination": "/shared", "source": scratch, "options": ["rbind", "rw"] });
        config["mounts"].as_array_mut().expect("a list").push(mount);
    });
    lazaret.sh(&format!(
        "touch {}/rootfs/only-in-the-container",
        bundle.path
    ));
    let log = || -> Vec<String> {
        let log = lazaret.sh(&format!("cat {scratch}/log"));
        log.lines().map(str::to_owned).collect()
    };
    oci.create(&bundle).success();
    let before = [
        "prestart creating marked outside",
        "createRuntime creating marked outside",
        "createRuntime2 creating marked outside",
        "createContainer creating marked outside",
    ];
    assert_eq!(log(), before);
    oci.call(["start", &bundle.id]).success();
    oci.until_stopped(&bundle);
    let lines = log().split_off(before.len());
    assert_eq!(lines[0], "startContainer created marked inside");
    // The program may be quicker than the hook that follows its start.
    let mut rest = lines[1..].to_vec();
    rest.sort();
    assert_eq!(rest, ["poststart running marked outside", "ran"]);

    oci.call(["delete", &bundle.id])
        .status(0)
        .stderr_contains("hook");
    let last = log().pop();
    assert_eq!(last.as_deref(), Some("poststop stopped marked outside"));
    oci.call(["state", &bundle.id]).status(1);
}

/// What fails before the program runs is the container's end, with all that was made for it.
#[test]
#[ignore = "long: make test-full"]
fn failing_hooks_stop_the_container_before_it_runs() {
    let lazaret = start!("oci-hooks-fail");
    let oci = Oci::new(&lazaret);
    let failing =
        || json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo because >&2; exit 9"] }]);
    let late = json!([{ "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1 }]);
    for (kind, hooks) in [
        ("prestart", failing()),
        ("createRuntime", late),
        ("createContainer", failing()),
        ("startContainer", failing()),
    ] {
        let bundle = oci.bundle_with("echo ran", |config| {
            config["hooks"] = json!({ kind: hooks });
        });
        let created = oci.create(&bundle);
        if kind == "startContainer" {
            created.success();
            oci.call(["start", &bundle.id])
                .status(1)
                .stderr_contains("hook");
            oci.call(["delete", "--force", &bundle.id]).status(0);
            assert_eq!(oci.read(&bundle, "out"), "");
        } else {
            created.status(1).stderr_contains("hook");
            oci.call(["state", &bundle.id]).status(1);
        }
    }
}
