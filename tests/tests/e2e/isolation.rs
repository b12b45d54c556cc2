//! One kernel a container: nothing of the host and nothing of another container is seen.

use lazaret_tests::start;

#[test]
fn container_has_its_own_kernel() {
    let lazaret = start!("kernel");
    let host = lazaret.sh("uname -r");
    let guest = lazaret.run(["--rm", "busybox", "uname", "-r"]);
    guest.success();
    assert_ne!(guest.text(), host);
}

#[test]
fn two_containers_see_nothing_of_each_other() {
    let lazaret = start!("two-containers");
    let names = [lazaret.container("a"), lazaret.container("b")];
    for name in &names {
        let script = format!(
            "echo secret-{name} >/secret; echo secret-{name} >/dev/shm/secret; exec sleep 98765"
        );
        lazaret.detached(
            name,
            [
                "-e",
                &format!("SECRET=secret-{name}"),
                "busybox",
                "sh",
                "-c",
                &script,
            ],
        );
    }
    let look = "cat /proc/sys/kernel/random/boot_id; cat /secret /dev/shm/secret; ps | grep -c '[s]leep 98765';
        cat /proc/*/environ | tr '\\0' '\\n' | grep -c ^SECRET=; ls /run/lazaret /var/lib/lazaret 2>/dev/null | wc -l";
    let seen: Vec<_> = names
        .iter()
        .map(|name| {
            lazaret
                .lazaret(["exec", name, "sh", "-c", look])
                .success()
                .lines()
        })
        .collect();
    for (lines, name) in seen.iter().zip(&names) {
        let secret = format!("secret-{name}");
        assert_eq!(lines[1..3], [secret.clone(), secret], "files of {name}");
        assert_eq!(lines[3], "1", "processes of {name}");
        assert_eq!(lines[5], "0", "lazaret's own directories in {name}");
    }
    assert_ne!(seen[0][0], seen[1][0], "two boots, two kernels");

    // Outside: no memory is shared by both monitors.
    let memory = lazaret.sh(
        "for pid in $(pgrep -x lazaret-vmm); do
            echo monitor $(awk '$2 ~ /s/ && $6 !~ /anon_inode/ { print $5 }' /proc/$pid/maps | sort -u)
        done",
    );
    let memory: Vec<Vec<_>> = memory
        .lines()
        .map(|line| line.split(' ').skip(1).collect())
        .collect();
    assert_eq!(memory.len(), 2, "two monitors: {memory:?}");
    assert!(
        memory[0].iter().all(|inode| !memory[1].contains(inode)),
        "shared: {memory:?}"
    );
    lazaret
        .lazaret(["rm", "-f", &names[0], &names[1]])
        .success();
}

#[test]
fn monitor_is_jailed() {
    let lazaret = start!("jail");
    let name = lazaret.container("a");
    lazaret.detached(&name, ["busybox", "sleep", "1000"]);
    let status = lazaret.sh("pid=$(pgrep -x lazaret-vmm) || exit
        for kind in mnt net ipc pid user; do
            [ $(readlink /proc/$pid/ns/$kind) != $(readlink /proc/self/ns/$kind) ] && echo own $kind
        done
        for task in /proc/$pid/task/*; do
            awk -v ORS=' ' '/^(NoNewPrivs|Seccomp):/ { print $1 $2 }' $task/status; echo
        done | sort -u
        ls /proc/$pid/root/ | tr '\\n' ' '");
    let lines: Vec<_> = status.lines().collect();
    assert_eq!(
        lines[..5],
        ["own mnt", "own net", "own ipc", "own pid", "own user"]
    );
    assert_eq!(
        lines[5], "NoNewPrivs:1 Seccomp:2 ",
        "every thread: {status}"
    );
    let root = lines.get(6).copied().unwrap_or_default();
    assert!(
        !root.contains("etc") && !root.contains("usr"),
        "its root shows the host's: {root}"
    );
    lazaret.lazaret(["rm", "-f", &name]).success();
}

#[test]
fn root_of_the_container_is_not_root_of_the_host() {
    let lazaret = start!("guest-root");
    let name = lazaret.container("a");
    let script = "hostname changed 2>/dev/null; mknod /host b 8 0 2>/dev/null; head -c 1 /host 2>/dev/null | wc -c;
        mount -t tmpfs t /mnt 2>/dev/null && echo mounted; dmesg >/dev/null 2>&1; ls /dev | sort | tr '\\n' ' '";
    let seen = lazaret.run(["--rm", "--name", &name, "busybox", "sh", "-c", script]);
    let lines = seen.status(0).lines();
    assert_eq!(lines[0], "0", "a disk of the host could be read");
    assert_ne!(
        lines[1], "mounted",
        "mounting takes a capability that containers do not have"
    );
    assert!(
        !lines[1].contains("kvm") && !lines[1].contains("vda"),
        "devices: {}",
        lines[1]
    );
}
