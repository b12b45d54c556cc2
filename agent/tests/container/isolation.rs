//! What a container must not see or change.

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::json;
use ttrpc::Code;

use crate::harness::{Box, refused, require_root};

#[tokio::test(flavor = "multi_thread")]
async fn processes_names_and_network_are_its_own() {
    require_root!();
    let script = "echo $$; hostname; ls /proc | grep -c '^[0-9]'; \
                  grep -c : /proc/net/dev; cat /proc/self/cgroup";
    let outcome = Box::sh(script).run().await;
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines[..2], ["1", "box"]);
    let processes: u32 = lines[2].parse().expect("a count");
    assert!(processes <= 3, "{processes} processes");
    assert_eq!(lines[3], "1", "loopback alone");
    assert_eq!(lines.last(), Some(&"0::/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn masked_and_read_only_paths() {
    require_root!();
    let script = "wc -c < /proc/version; ls /sys/firmware | wc -l; \
                  echo 1 > /proc/sys/kernel/domainname; touch /sys/firmware/x";
    let outcome = Box::sh(script).run().await;
    assert_eq!(outcome.stdout, "0\n0\n");
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn root_is_read_only_on_request() {
    require_root!();
    let container = Box::sh("touch /x; touch /dev/shm/y && echo written");
    let outcome = container.set("/root/readonly", json!(true)).run().await;
    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{}",
        outcome.stderr
    );
    assert_eq!(outcome.stdout, "written\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_the_default_ones_and_those_of_the_spec() {
    require_root!();
    let device = json!([{ "path": "/dev/extra", "type": "c", "major": 1, "minor": 5,
                          "fileMode": 0o640, "uid": 3, "gid": 4 }]);
    let script = "for f in null zero full random urandom tty; do test -c /dev/$f || echo $f; done; \
                  ls -l /dev/extra; readlink /dev/fd; readlink /dev/ptmx; ls /dev/fd/0";
    let container = Box::sh(script).set("/linux/devices", device);
    let outcome = container.run().await;
    let fields: Vec<&str> = outcome.stdout.split_whitespace().collect();
    assert_eq!(fields[..6], ["crw-r-----", "1", "3", "4", "1,", "5"]);
    assert!(
        outcome
            .stdout
            .ends_with("/proc/self/fd\npts/ptmx\n/dev/fd/0\n"),
        "{}",
        outcome.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_of_every_type_are_made() {
    require_root!();
    let devices = json!([
        { "path": "/dev/disk/block", "type": "b", "major": 7, "minor": 99 },
        { "path": "/dev/unbuffered", "type": "u", "major": 1, "minor": 7, "fileMode": 0o600 },
        { "path": "/dev/fifo", "type": "p", "fileMode": 0o622 },
    ]);
    let script = "cd /dev; stat -c '%A %t:%T' disk/block unbuffered fifo";
    let outcome = Box::sh(script).set("/linux/devices", devices).run().await;
    let expected = "brw-rw-rw- 7:63\ncrw------- 1:7\nprw--w--w- 0:0\n";
    assert_eq!(outcome.stdout, expected, "{}", outcome.stderr);
}

/// The default node of that path is another device.
#[tokio::test(flavor = "multi_thread")]
async fn devices_of_the_spec_take_the_place_of_default_ones() {
    require_root!();
    let devices = json!([
        { "path": "/dev/random", "type": "c", "major": 1, "minor": 9, "fileMode": 0o600 },
        { "path": "/dev/../dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o660,
          "uid": 3, "gid": 4 },
    ]);
    let script = "cd /dev; stat -c '%t:%T %a %u:%g' random null urandom";
    let outcome = Box::sh(script).set("/linux/devices", devices).run().await;
    let expected = "1:9 600 0:0\n1:3 660 3:4\n1:9 666 0:0\n";
    assert_eq!(outcome.stdout, expected, "{}", outcome.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_stay_in_the_places_of_devices() {
    require_root!();
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    std::fs::write(file.path(), "a file").expect("file");
    let bind = |source: &std::path::Path, destination: &str| {
        json!({ "destination": destination, "type": "bind", "source": source,
                "options": ["bind"] })
    };
    let device = json!([{ "path": "/dev/extra", "type": "c", "major": 1, "minor": 5 }]);
    let outcome = Box::sh("stat -c %t:%T /dev/random /dev/extra; cat /dev/urandom")
        .set("/linux/devices", device)
        .mount(bind("/dev/urandom".as_ref(), "/dev/random"))
        .mount(bind("/dev/null".as_ref(), "/dev/./extra"))
        .mount(bind(file.path(), "/dev/urandom"))
        .run()
        .await;
    assert_eq!(outcome.stdout, "1:9\n1:3\na file", "{}", outcome.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_device_of_the_image_is_refused_by_its_path() {
    require_root!();
    let proc = json!([{ "destination": "/proc", "type": "proc", "source": "proc" }]);
    let container = Box::sh("true").set("/mounts", proc);
    let path = container.root().join("dev/random");
    let device = makedev(1, 9);
    mknodat(CWD, path, FileType::CharacterDevice, Mode::RUSR, device).expect("a node");
    let (code, message) = refused(container.try_run().await);
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(
        message.contains("/dev/random is there already"),
        "{message}"
    );
}

/// What a container leaves on a root without a /dev of its own serves the next one.
#[tokio::test(flavor = "multi_thread")]
async fn devices_are_shown_on_files_in_their_places() {
    require_root!();
    let proc = json!([{ "destination": "/proc", "type": "proc", "source": "proc" }]);
    let container = Box::sh("stat -c %t:%T /dev/full; cat /dev/null").set("/mounts", proc);
    std::fs::write(container.root().join("dev/full"), "").unwrap();
    std::fs::write(container.root().join("dev/null"), "not empty").unwrap();
    let outcome = container.run().await;
    assert_eq!(outcome.stdout, "1:7\n", "{}", outcome.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn device_rules_are_enforced() {
    require_root!();
    let device = json!([{ "path": "/dev/memory", "type": "c", "major": 1, "minor": 1 }]);
    let rules = json!([{ "allow": false, "access": "rwm" }]);
    let script = "head -c 1 /dev/zero | wc -c; head -c 1 /dev/memory";
    let outcome = Box::sh(script)
        .set("/linux/devices", device)
        .set("/linux/resources", json!({ "devices": rules }))
        .run()
        .await;
    assert_eq!(outcome.stdout, "1\n");
    assert!(
        outcome.stderr.contains("Operation not permitted"),
        "{}",
        outcome.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_device_rules_allow_the_default_devices_alone() {
    require_root!();
    let device = json!([{ "path": "/dev/memory", "type": "c", "major": 1, "minor": 1 }]);
    let script = "for f in null zero full random urandom ptmx; do head -c 0 /dev/$f || exit 1; done; \
                  echo fine > /dev/stdout; head -c 1 /dev/memory";
    for resources in [json!(null), json!({}), json!({ "devices": [] })] {
        let outcome = Box::sh(script)
            .set("/linux/devices", device.clone())
            .set("/linux/resources", resources)
            .run()
            .await;
        assert_eq!(outcome.stdout, "fine\n", "{}", outcome.stderr);
        let denied = "head: /dev/memory: Operation not permitted\n";
        assert_eq!(outcome.stderr, denied);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guest_files_are_out_of_reach() {
    require_root!();
    let outcome = Box::sh("cat /proc/1/mounts | grep -c ' / '; ls /.. | wc -l; ls / | wc -l")
        .run()
        .await;
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines[0], "1");
    assert_eq!(lines[1], lines[2]);
}
