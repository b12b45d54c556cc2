//! What `lazaret` shows: columns, JSON, inspection; and what it hands to the container.

use lazaret_tests::{Machine, start};

#[test]
fn check_says_whether_and_why() {
    let lazaret = start!("check");
    lazaret
        .lazaret(["check"])
        .status(0)
        .stdout_contains("This host can run microVMs.");
    lazaret
        .lazaret(["version"])
        .success()
        .stdout_contains(env!("CARGO_PKG_VERSION"));
    if let Machine::Lab(_) = lazaret.machine() {
        // On the machine around the lab, whose lack of KVM is the reason for the lab.
        let here = lazaret.check_here();
        assert_ne!(here.status_code(), 0, "{here}");
        let said = here.text() + &here.errors();
        assert!(
            said.contains("vmx") || said.contains("virtuali"),
            "the reason: {here}"
        );
    }
}

#[test]
fn ps_and_inspect_show_a_container_from_start_to_end() {
    let lazaret = start!("ps");
    let name = lazaret.container("a");
    let id = lazaret.detached(&name, ["busybox", "sleep", "1000"]);

    let table = lazaret.lazaret(["ps"]).success().lines();
    for column in [
        "CONTAINER ID",
        "IMAGE",
        "COMMAND",
        "CREATED",
        "STATUS",
        "PORTS",
        "NAMES",
    ] {
        assert!(table[0].contains(column), "no {column} in {:?}", table[0]);
    }
    let row = table
        .iter()
        .find(|row| row.ends_with(&name))
        .expect("a row for the container");
    assert!(row.starts_with(&id[..12]), "{row}");
    for cell in ["busybox", "\"sleep 1000\"", " ago", "Up "] {
        assert!(row.contains(cell), "no {cell} in {row:?}");
    }
    let find = |args: &[&str]| {
        let containers = lazaret.lazaret(args).success().json_lines();
        containers
            .into_iter()
            .find(|container| container["Names"] == name.as_str())
    };
    let shown = find(&["ps", "--format", "json"]).expect("it is listed as JSON");
    assert_eq!(shown["ID"], &id[..12]);
    assert_eq!(shown["Image"], "busybox");
    assert_eq!(shown["State"], "running");

    let inspected = lazaret.lazaret(["inspect", &name]).success().json();
    let container = &inspected[0];
    assert_eq!(container["Id"], id.as_str());
    assert_eq!(container["Name"], format!("/{name}"));
    assert_eq!(container["Path"], "sleep");
    assert_eq!(container["Args"], serde_json::json!(["1000"]));
    assert_eq!(container["State"]["Status"], "running");
    assert_eq!(container["State"]["Running"], true);
    assert_eq!(container["Config"]["Image"], "busybox");
    assert!(
        container["State"]["Pid"]
            .as_i64()
            .is_some_and(|pid| pid > 0),
        "{container}"
    );

    lazaret.lazaret(["kill", &name]).success();
    lazaret.lazaret(["wait", &name]).success().stdout("137\n");
    assert!(
        find(&["ps", "--format", "json"]).is_none(),
        "ps shows what runs"
    );
    let shown = find(&["ps", "-a", "--format", "json"]).expect("ps -a shows all");
    assert_eq!(shown["State"], "exited");
    assert!(
        shown["Status"]
            .as_str()
            .is_some_and(|status| status.starts_with("Exited (137)"))
    );
    lazaret.lazaret(["rm", &id[..12]]).success();
}

#[test]
fn settings_reach_the_container() {
    let lazaret = start!("settings");
    let env_file = lazaret.file("env", "# comment\nFILE=from file\nOVERRIDDEN=file\n");
    let script = "echo $ONE; echo $FILE; echo $OVERRIDDEN; pwd; id -u; id -g; hostname; cat /etc/hostname;
        touch /new 2>&1; touch /tmp/x 2>&1; echo x >/dev/shm/x && echo shm; grep -c \"$(hostname)\" /etc/hosts; echo $HOME";
    let seen = lazaret.run([
        "--rm",
        "-e",
        "ONE=1 and only",
        "--env-file",
        &env_file,
        "-e",
        "OVERRIDDEN=flag",
        "-w",
        "/var/made/for/me",
        "-u",
        "65534:100",
        "--hostname",
        "box",
        "--read-only",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(
        seen.success().lines(),
        [
            "1 and only",
            "from file",
            "flag",
            "/var/made/for/me",
            "65534",
            "100",
            "box",
            "box",
            "touch: /new: Read-only file system",
            "touch: /tmp/x: Read-only file system",
            "shm",
            "1",
            "/home",
        ]
    );
    // Without these flags.
    let name = lazaret.container("a");
    let script = "id -u; pwd; touch /new && echo written; hostname; cat /etc/resolv.conf >/dev/null; ip -o link | grep [,\\<]UP | cut -d ' ' -f 2";
    let seen = lazaret.run([
        "--name",
        &name,
        "--entrypoint",
        "/bin/sh",
        "busybox",
        "-c",
        script,
    ]);
    let lines = seen.success().lines();
    assert_eq!(lines[..3], ["0", "/", "written"]);
    let inspected = lazaret.lazaret(["inspect", &name]).success().json();
    assert_eq!(
        inspected[0]["Id"].as_str().map(|id| &id[..12]),
        Some(lines[3].as_str())
    );
    assert_eq!(lines[4..], ["lo:"], "loopback, and nothing else is up yet");
    lazaret.lazaret(["rm", &name]).success();
}

#[test]
fn variables_of_the_caller_pass_only_by_name() {
    let lazaret = start!("environment");
    let seen = lazaret.sh(
        "PASSED=through KEPT=out lazaret run --rm -e PASSED -e UNSET_HERE busybox \
            sh -c 'echo $PASSED-$KEPT-${UNSET_HERE-unset}'",
    );
    assert_eq!(seen, "through--unset\n");
}

#[test]
fn mistyped_verb_is_named() {
    let lazaret = start!("verb");
    let outcome = lazaret.lazaret(["no-such-verb"]);
    outcome.stderr_contains("no-such-verb");
    assert_ne!(outcome.status_code(), 0);
    lazaret.lazaret(["--help"]).success().stdout_contains("run");
}
