//! Containers whose root is somebody else in the guest.

use std::os::unix::fs::chown;

use lazaret_protocol::agent::Stdio;
use serde_json::{Value, json};

use crate::harness::{Box, process, read_in_background, refused, require_root, stream};

const OUTER: u32 = 100_000;

fn map() -> Value {
    json!([{ "containerID": 0, "hostID": OUTER, "size": 65_536 }])
}

/// The same container with its ids mapped.
fn mapped(container: Box) -> Box {
    let kinds = ["pid", "mount", "uts", "ipc", "network", "cgroup", "user"];
    let namespaces: Vec<_> = kinds.iter().map(|kind| json!({ "type": kind })).collect();
    chown(container.root(), Some(OUTER), Some(OUTER)).expect("the root's owner");
    container
        .set("/linux/namespaces", json!(namespaces))
        .set("/linux/uidMappings", map())
        .set("/linux/gidMappings", map())
}

#[tokio::test(flavor = "multi_thread")]
async fn root_of_the_container_is_another_outside() {
    require_root!();
    let container = mapped(Box::sh(
        "id -u; id -g; cat /proc/self/uid_map; touch /made; sleep 1000",
    ));
    let root = container.root().to_owned();
    let outcome = mapped(Box::sh("id -u; id -g; cat /proc/self/uid_map; touch /made"))
        .run()
        .await;
    assert_eq!(outcome.stderr, "");
    let words: Vec<_> = outcome.stdout.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "0", "100000", "65536"]);

    let container = container.started().await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", container.pid));
    let status = status.expect("it runs");
    assert!(status.contains("Uid:\t100000\t100000"), "{status}");
    assert!(root.exists());
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mapped_container_has_all_that_others_have() {
    require_root!();
    let script = "hostname; head -c 1 /dev/zero | wc -c; echo x > /dev/null; ls /sys/class | wc -l; \
                  cat /proc/1/comm; wc -c < /proc/version; touch /dev/shm/x && echo shm; \
                  echo 1 > /proc/sys/kernel/domainname; grep -c mqueue /proc/mounts; \
                  ls -l /proc/self/fd | grep -c pipe; echo out > /dev/stdout";
    let outcome = mapped(Box::sh(script)).run().await;
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines[..2], ["box", "1"], "{}", outcome.stderr);
    assert_ne!(lines[2], "0");
    assert_eq!(lines[3..6], ["sh", "0", "shm"]);
    assert_eq!(lines.last(), Some(&"out"));
    assert!(outcome.stderr.contains("Read-only"), "{}", outcome.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_enters_the_user_namespace() {
    require_root!();
    let container = mapped(Box::new(&["sleep", "1000"])).started().await;
    let script =
        "id -u; readlink /proc/self/ns/user | wc -l; cat /proc/self/uid_map; echo x > /dev/stdout";
    let outcome = container
        .exec("a", process(&["sh", "-c", script]))
        .await
        .expect("runs");
    let words: Vec<_> = outcome.stdout.split_whitespace().collect();
    assert_eq!(
        words,
        ["0", "1", "0", "100000", "65536", "x"],
        "{}",
        outcome.stderr
    );
    let mut user = process(&["sh", "-c", "id -u; echo x > /dev/stdout"]);
    user["user"] = json!({ "uid": 1000, "gid": 1000, "additionalGids": [5] });
    let outcome = container.exec("b", user).await.expect("runs");
    assert_eq!(outcome.stdout, "1000\nx\n", "{}", outcome.stderr);
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_are_those_of_the_namespace_alone() {
    require_root!();
    let all = json!(["CAP_SYS_ADMIN", "CAP_SYS_TIME", "CAP_CHOWN"]);
    let sets = json!({ "bounding": all, "effective": all, "permitted": all });
    let script = "mount -t tmpfs none /tmp && echo mounted; date -s @1 > /dev/null";
    let outcome = mapped(Box::sh(script))
        .set("/process/capabilities", sets)
        .run()
        .await;
    assert_eq!(outcome.stdout, "mounted\n", "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("can't set date"),
        "{}",
        outcome.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_set_for_mapped_containers_too() {
    require_root!();
    // Above the soft limit that is the default.
    let limits = json!([{ "type": "RLIMIT_NOFILE", "soft": 4096, "hard": 4097 }]);
    let container = mapped(Box::sh("ulimit -Sn; ulimit -Hn")).set("/process/rlimits", limits);
    let outcome = container.run().await;
    assert_eq!(outcome.stdout, "4096\n4097\n", "{}", outcome.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_is_shown_with_the_containers_ids() {
    require_root!();
    let volume = tempfile::tempdir().expect("temporary directory");
    std::fs::write(volume.path().join("file"), "x").expect("file");
    let mount =
        json!({ "destination": "/v", "source": volume.path(), "options": ["rbind", "idmap"] });
    let outcome = mapped(Box::sh("stat -c %u /v/file; touch /v/new"))
        .mount(mount)
        .run()
        .await;
    assert_eq!(outcome.stdout, "0\n", "{}", outcome.stderr);
    let made = std::fs::metadata(volume.path().join("new")).expect("made");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn user_outside_of_the_mapping_is_refused() {
    require_root!();
    let container =
        mapped(Box::new(&["true"])).set("/process/user", json!({ "uid": 70_000, "gid": 0 }));
    let (code, text) = refused(container.try_run().await);
    assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT);
    assert!(text.contains("70000"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn profile_is_enforced_in_a_user_namespace() {
    require_root!();
    let rule = json!([{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" }]);
    let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rule });
    let outcome = mapped(Box::sh("mkdir /dev/shm/x"))
        .set("/linux/seccomp", profile)
        .run()
        .await;
    assert!(
        outcome.stderr.contains("not permitted"),
        "{}",
        outcome.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn terminal_is_the_mapped_users() {
    require_root!();
    let container = mapped(Box::sh(
        "tty; stat -c %u /dev/pts/0; test -c /dev/console && echo console",
    ))
    .set("/process/terminal", json!(true))
    .set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    let (port, output) = stream();
    let mut stdio = Stdio::new();
    stdio.stdout_port = port;
    let output = read_in_background(output);
    container.create(stdio).await.expect("create");
    container.start("").await.expect("start");
    container.wait("").await;
    container.delete().await;
    let output = output.join().expect("reader lives");
    assert_eq!(
        String::from_utf8_lossy(&output),
        "/dev/pts/0\r\n1000\r\nconsole\r\n"
    );
}
