//! Volumes: a directory or file of the host, the same on both sides, with the whole of POSIX.

use lazaret_tests::start;

#[test]
fn directory_is_shared_both_ways() {
    let lazaret = start!("volume");
    let scratch = lazaret.scratch();
    lazaret.file("from-host", "host\n");
    let volume = format!("{scratch}:/data");
    let script = "cat /data/from-host; echo guest >/data/from-guest; mkdir /data/d; chmod 700 /data/d; chown 12:34 /data/d";
    lazaret
        .run(["--rm", "-v", &volume, "busybox", "sh", "-c", script])
        .success()
        .stdout("host\n");
    let host = lazaret.sh(&format!(
        "cat {scratch}/from-guest; stat -c '%a %u %g' {scratch}/d"
    ));
    assert_eq!(host, "guest\n700 12 34\n");
}

#[test]
fn changes_are_seen_while_the_container_runs() {
    let lazaret = start!("volume-live");
    let scratch = lazaret.scratch();
    let script =
        "until [ -e /data/question ]; do sleep 0.1; done; cat /data/question >/data/answer";
    let name = lazaret.container("a");
    lazaret.detached(
        &name,
        [
            "-v",
            &format!("{scratch}:/data"),
            "busybox",
            "sh",
            "-c",
            script,
        ],
    );
    lazaret.sh(&format!(
        "echo 'are you there?' >{scratch}/q && mv {scratch}/q {scratch}/question"
    ));
    lazaret.lazaret(["wait", &name]).success().stdout("0\n");
    assert_eq!(
        lazaret.sh(&format!("cat {scratch}/answer")),
        "are you there?\n"
    );
    lazaret.lazaret(["rm", &name]).success();
}

#[test]
fn read_only_and_single_files() {
    let lazaret = start!("volume-ro");
    let scratch = lazaret.scratch();
    let file = lazaret.file("file", "content\n");
    let (directory, file) = (format!("{scratch}:/ro:ro"), format!("{file}:/etc/one-file"));
    let script = "cat /ro/file /etc/one-file; echo x >/ro/new; echo x >>/ro/file; echo more >>/etc/one-file; ls /ro";
    let seen = lazaret.run([
        "--rm", "-v", &directory, "-v", &file, "busybox", "sh", "-c", script,
    ]);
    seen.status(0)
        .stdout("content\ncontent\nfile\n")
        .stderr_contains("Read-only file system");
    assert_eq!(
        lazaret.sh(&format!("cat {scratch}/file")),
        "content\nmore\n"
    );
}

#[test]
fn missing_host_path_is_refused() {
    let lazaret = start!("volume-missing");
    let name = lazaret.container("a");
    lazaret
        .run([
            "--rm",
            "--name",
            &name,
            "-v",
            "/no/such/path:/data",
            "busybox",
            "true",
        ])
        .status(125)
        .stderr_contains("/no/such/path");
    lazaret.sh("! [ -e /no ]");
}

#[test]
fn file_system_calls_work_in_volumes_and_in_the_root() {
    let lazaret = start!("posix");
    let probe = lazaret.probe();
    let scratch = lazaret.scratch();
    let (program, data) = (format!("{probe}:/probe:ro"), format!("{scratch}:/data"));
    let script = "mkdir /data/work /work; /probe posix /data/work; /probe posix /work";
    let checks = lazaret
        .run_cmd([
            "--rm", "-v", &program, "-v", &data, "busybox", "sh", "-c", script,
        ])
        .deadline(600)
        .output();
    checks.success();
    assert!(
        checks.lines().iter().all(|line| line.starts_with("ok ")),
        "{checks}"
    );
    assert!(checks.lines().len() >= 30, "{checks}");
}

#[test]
fn ten_thousand_files_are_the_same_on_both_sides() {
    let lazaret = start!("ten-thousand-files");
    let probe = lazaret.probe();
    let scratch = lazaret.scratch();
    let (program, data) = (format!("{probe}:/probe:ro"), format!("{scratch}:/data"));
    lazaret.sh(&format!("{probe} files-make {scratch}/host 1000"));
    let script = "/probe files-make /data/guest 10000 && /probe files-check /data/guest 10000 &&
        /probe files-check /data/host 1000 && echo same";
    lazaret
        .run_cmd([
            "--rm", "-v", &program, "-v", &data, "busybox", "sh", "-c", script,
        ])
        .deadline(1500)
        .output()
        .success()
        .stdout("same\n");
    lazaret.sh(&format!("{probe} files-check {scratch}/guest 10000"));
}

/// The host remembers each file that the guest does: more than there is memory for, had the guest
/// not to forget.
#[test]
#[ignore = "minutes in a lab: make test-full"]
fn trees_larger_than_the_hosts_memory_for_them_are_walked() {
    let lazaret = start!("large-tree");
    let name = lazaret.container("a");
    // On a disk: what is in memory anyway costs nothing.
    let tree = lazaret.sh("mktemp -d /var/tmp/lazaret-e2e.XXXXXX");
    let tree = tree.trim();
    lazaret.sh(&format!(
        "cd {tree}; for d in $(seq 700); do mkdir $d; (cd $d; for f in $(seq 200); do : >$f; done); done
        sync; echo 3 >/proc/sys/vm/drop_caches"
    ));
    let volume = format!("{tree}:/tree:ro");
    let id = lazaret.detached(
        &name,
        [
            "--memory", "128m", "-v", &volume, "busybox", "sleep", "100000",
        ],
    );
    for _ in 0..2 {
        let walk = lazaret.cmd(["exec", &name, "sh", "-c", "ls -lR /tree | grep -c ^-"]);
        walk.deadline(600).output().success().stdout("140000\n");
    }
    let state = format!("/run/lazaret/sandboxes/{id}/state.json");
    let remembered = lazaret.sh(&format!("ls /proc/$(jq .vmm_pid {state})/fd | wc -l"));
    assert!(
        remembered.trim().parse::<u32>().unwrap() < 60_000,
        "{remembered}"
    );
    lazaret.cmd(["rm", "-f", &name]).output().success();
    lazaret.sh(&format!("rm -r {tree}"));
}

#[test]
fn git_and_sqlite_work_in_a_volume() {
    let lazaret = start!("git-sqlite");
    let scratch = lazaret.scratch();
    lazaret.sh(&format!(
        r#"set -e
        mkdir {scratch}/root && cd {scratch}/root
        mkdir -p tmp etc && chmod 1777 tmp && echo root:x:0:0::/:/bin/sh >etc/passwd
        programs="$(which bash cat git sqlite3 seq sync) $(git --exec-path)/git"
        for file in $programs $(ldd $programs | grep -o '/[^ :]*' | sort -u); do
            cp -L --parents $file .
        done
        mkdir -p bin && cp usr/bin/bash bin/sh
        ln -s git usr/bin/git-upload-pack
        mkdir -p usr/share/git-core/templates
        tar -c . | lazaret import - lazaret-e2e-tools >/dev/null
        cd .. && rm -rf root
        git init -q -b main origin && cd origin
        for i in $(seq 1 50); do echo "line $i" >file$i; done
        git add . && git -c user.name=e2e -c user.email=e2e@localhost commit -q -m first"#
    ));
    let data = format!("{scratch}:/data");
    let script = r#"set -e
        export HOME=/tmp GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
        git clone -q /data/origin /data/clone
        cd /data/clone
        git fsck --no-progress
        echo changed >file7
        git -c user.name=e2e -c user.email=e2e@localhost commit -q -a -m second
        git status --porcelain
        git rev-list --count HEAD
        git clone -q --no-local /data/clone /tmp/again && cat /tmp/again/file7
        for mode in wal delete; do
            sqlite3 /data/$mode.db "PRAGMA journal_mode=$mode; CREATE TABLE t(n INTEGER PRIMARY KEY, s TEXT);
                WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<2000)
                    INSERT INTO t SELECT n, hex(n*n) FROM c;
                UPDATE t SET s='x' WHERE n%2; DELETE FROM t WHERE n%5=0; VACUUM;
                SELECT count(*), sum(n) FROM t; PRAGMA integrity_check;"
        done"#;
    lazaret
        .run_cmd([
            "--rm",
            "-v",
            &data,
            "lazaret-e2e-tools",
            "/usr/bin/bash",
            "-c",
            script,
        ])
        .deadline(600)
        .output()
        .success()
        .stdout("2\nchanged\nwal\n1600|1600000\nok\ndelete\n1600|1600000\nok\n");
    let host = lazaret.sh(&format!(
        "cd {scratch}/clone && git -c safe.directory='*' log --format=%s && git -c safe.directory='*' fsck --no-progress
        sqlite3 {scratch}/wal.db 'SELECT count(*) FROM t; PRAGMA integrity_check'"
    ));
    assert_eq!(host, "second\nfirst\n1600\nok\n");
    lazaret.lazaret(["rmi", "lazaret-e2e-tools"]).status(0);
}
