//! The container's file system: its root, mounts, devices, and what is kept from it.
//! <https://github.com/opencontainers/runtime-spec/blob/v1.2.0/config.md#mounts>

use lazaret_tests::{Oci, start};
use serde_json::json;

#[test]
fn mounts_are_as_configured() {
    let lazaret = start!("oci-mounts");
    let oci = Oci::new(&lazaret);
    let source = format!("{}/source", lazaret.scratch());
    lazaret.sh(&format!(
        "mkdir -p {source}/sub; echo text >{source}/file; mkfifo {source}/fifo"
    ));
    let script = "touch /x 2>&1 | grep -o Read-only
        cat /bound/file; echo more >/bound/written; test -p /bound/fifo && echo fifo
        touch /bound-ro/x 2>&1 | grep -o Read-only; cat /single
        touch /fresh/x && echo fresh; stat -f -c %s%b /fresh; stat -c '%a %u' /fresh
        for at in /fresh /bound-ro /sub-private; do
            grep \" $at \" /proc/self/mountinfo | cut -d ' ' -f 6,7 | sed 's/,relatime//; s/:.*//'
        done
        wc -c </proc/timer_list; ls /sys/firmware | wc -l
        echo 1 2>&1 >/proc/sys/kernel/msgmax | grep -o Read-only
        stat -f -c %T /dev/shm; ls -d /dev/mqueue /sys/fs/cgroup/cgroup.procs";
    let bundle = oci.bundle_with(script, |config| {
        config["root"]["readonly"] = json!(true);
        let file = format!("{source}/file");
        config["mounts"].as_array_mut().expect("a list").extend([
            json!({ "destination": "/bound", "type": "none", "source": source, "options": ["rbind", "rw"] }),
            json!({ "destination": "/bound-ro", "source": source, "options": ["bind", "ro", "nodev", "nosuid"] }),
            json!({ "destination": "/single", "source": file, "options": ["bind", "ro"] }),
            json!({ "destination": "/sub-private", "source": source, "options": ["bind", "noexec", "slave"] }),
            json!({ "destination": "/fresh", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "nodev", "noexec", "size=1m", "mode=777", "uid=3"] }),
        ]);
        config["linux"]["maskedPaths"] = json!(["/proc/timer_list", "/sys/firmware", "/proc/none"]);
        config["linux"]["readonlyPaths"] = json!(["/proc/sys", "/proc/none"]);
    });
    // Mount points on a read-only root are the bundle's to bring.
    lazaret.sh(&format!(
        "cd {}/rootfs; mkdir bound bound-ro fresh sub-private; touch single",
        bundle.path
    ));
    let run = oci.run(&bundle);
    run.success();
    let expected = [
        "Read-only",
        "text",
        "fifo",
        "Read-only",
        "text",
        "fresh",
        "4096256",
        "777 3",
        "rw,nosuid,nodev,noexec -",
        "ro,nosuid,nodev -",
        "rw,noexec -",
        "0",
        "0",
        "Read-only",
        "tmpfs",
        "/dev/mqueue",
        "/sys/fs/cgroup/cgroup.procs",
    ];
    assert_eq!(run.lines(), expected, "{run}");
    assert_eq!(lazaret.sh(&format!("cat {source}/written")), "more\n");
}

/// What belongs to 3 on the host belongs to 1003 in the container, and the other way round.
#[test]
#[ignore = "long: make test-full"]
fn mapped_volumes_have_other_owners() {
    let lazaret = start!("oci-idmap");
    let oci = Oci::new(&lazaret);
    let source = format!("{}/source", lazaret.scratch());
    lazaret.sh(&format!(
        "mkdir -m 777 {source}; cd {source}; echo mine >mine; echo other >other
        chmod 600 *; chown 3:4 mine; chown 5:6 other"
    ));
    let script = "cd /mapped; stat -c '%n %u %g' *; cat mine; cat other 2>&1 | grep -o denied
        echo more >>mine; touch made; mkdir below; ln -s made link; mv mine below/renamed
        chmod 640 made; chgrp 1004 made; rm -r below/nothing 2>&1 | grep -o 'No such'
        stat -c '%n %u %g %a' made /one; cat /one";
    let bundle = oci.bundle_with(script, |config| {
        let ids = json!([{ "containerID": 0, "hostID": 1000, "size": 10 }]);
        let mapped = |at: &str, source: &str, option: &str| {
            json!({ "destination": at, "source": source, "options": ["rbind", option],
                "uidMappings": ids, "gidMappings": ids })
        };
        config["process"]["user"] = json!({ "uid": 1003, "gid": 1003, "additionalGids": [1004] });
        config["mounts"].as_array_mut().expect("a list").extend([
            mapped("/mapped", &source, "idmap"),
            mapped("/one", &format!("{source}/mine"), "ridmap"),
        ]);
    });
    let run = oci.run(&bundle);
    run.success();
    let expected = [
        "mine 1003 1004",
        "other 1005 1006",
        "mine",
        "denied",
        "No such",
        "made 1003 1004 640",
        "/one 1003 1004 600",
        "mine",
        "more",
    ];
    assert_eq!(run.lines(), expected, "{run}");
    let owners = lazaret.sh(&format!(
        "cd {source}; stat -c '%n %u %g' made below below/renamed link"
    ));
    assert_eq!(owners, "made 3 4\nbelow 3 3\nbelow/renamed 3 4\nlink 3 3\n");
}

#[test]
fn devices_are_the_default_ones_and_those_configured() {
    let lazaret = start!("oci-devices");
    let oci = Oci::new(&lazaret);
    let script = "for device in null zero full random urandom tty; do test -c /dev/$device && echo $device; done
        for link in fd stdin stdout stderr ptmx; do readlink /dev/$link; done
        stat -c '%t %T %a %u %g' /dev/mine; head -c 4 /dev/mine | od -An -tx1
        head -c 1 /dev/forbidden 2>&1 | grep -o 'Operation not permitted'
        mknod /dev/z c 1 5 && echo made";
    let bundle = oci.bundle_with(script, |config| {
        config["linux"]["devices"] = json!([
            { "path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 9, "gid": 8 },
            { "path": "/dev/forbidden", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666 },
        ]);
        config["linux"]["resources"]["devices"] = json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm" },
        ]);
        let capabilities = json!(["CAP_DAC_OVERRIDE", "CAP_MKNOD"]);
        config["process"]["capabilities"] = json!({
            "bounding": capabilities, "permitted": capabilities, "effective": capabilities,
        });
    });
    let run = oci.run(&bundle);
    run.success();
    let expected = [
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "tty",
        "/proc/self/fd",
        "/proc/self/fd/0",
        "/proc/self/fd/1",
        "/proc/self/fd/2",
        "pts/ptmx",
        "1 5 640 9 8",
        " 00 00 00 00",
        "Operation not permitted",
        "made",
    ];
    assert_eq!(run.lines(), expected, "{run}");
}
