//! What people and archives get wrong: a clear message, Docker's exit code, nothing left behind
//! (which the harness checks at the end of each test).

use lazaret_tests::start;
use serde_json::json;
use tar::EntryType;

use crate::archive::{Compression, directory, docker_archive, file, layer, link, oci_archive};

#[test]
fn unknown_image_is_125() {
    let lazaret = start!("unknown-image");
    lazaret
        .run(["--rm", "no-such-image", "true"])
        .status(125)
        .stdout("")
        .stderr_contains("no-such-image:latest");
    lazaret
        .run(["--rm", "Not/A/Reference", "true"])
        .status(125)
        .stderr_contains("lowercase");
}

#[test]
fn flags_that_cannot_be_are_125() {
    let lazaret = start!("bad-flags");
    let name = lazaret.container("a");
    for (flags, message) in [
        (["--no-such-flag", "x"], "--no-such-flag"),
        (["--memory", "much"], "much"),
        (["--memory", "4m"], "memory"),
        (["--memory", "4096g"], "memory"),
        (["--cpus", "1000"], "cpus"),
        (["--cpus", "many"], "many"),
        (["-e", "=x"], "="),
        (["--env-file", "/no/such/file"], "/no/such/file"),
        (["-v", "relative:path"], "path"),
        (["-v", "/tmp:/data:rx"], "rx"),
        (["-w", "relative"], "relative"),
        (["--name", "bad name"], "bad name"),
        (["-u", "no-such-user"], "no-such-user"),
    ] {
        let mut args = vec!["--rm"];
        if flags[0] != "--name" {
            args.extend(["--name", &name]);
        }
        args.extend(flags);
        let outcome = lazaret.run(args.into_iter().chain(["busybox", "true"]));
        let said = outcome.errors().to_lowercase();
        assert!(
            said.contains(&message.to_lowercase()),
            "no {message:?} in stderr of {outcome}"
        );
        outcome.status(125);
        assert!(
            said.lines().count() <= 12,
            "a message, not a trace: {outcome}"
        );
    }
}

#[test]
fn unknown_containers_are_named() {
    let lazaret = start!("unknown-container");
    for verb in ["logs", "stop", "kill", "wait", "rm"] {
        lazaret
            .lazaret([verb, "no-such-container"])
            .status(1)
            .stderr_contains("No such container: no-such-container");
    }
    lazaret
        .lazaret(["inspect", "no-such-object"])
        .status(1)
        .stderr_contains("no-such-object");
}

#[test]
fn hostile_archives_are_refused() {
    let lazaret = start!("hostile-archives");
    let config = json!({ "Cmd": ["true"] });
    let layers = [
        (
            "absolute name",
            layer(&[file("/absolute-e2e", 0o644, b"x")]),
        ),
        (
            "parent in a name",
            layer(&[file("../../escaped-e2e", 0o644, b"x")]),
        ),
        (
            "through a symbolic link",
            layer(&[
                link(EntryType::Symlink, "out", "/tmp"),
                file("out/escaped-e2e", 0o644, b"x"),
            ]),
        ),
        (
            "hard link to a file of the host",
            layer(&[link(
                EntryType::Link,
                "stolen",
                "../../../../../../etc/passwd",
            )]),
        ),
        ("garbage", vec![0xff; 4096]),
    ];
    let before = lazaret.sh("find / -xdev -name '*e2e' -newer /proc/1/cmdline 2>/dev/null | sort");
    for (what, layer) in layers {
        let archive = docker_archive("e2e-hostile", &config, &[layer]);
        let outcome = lazaret.cmd(["load"]).stdin(archive).output();
        // Docker keeps such names inside the root; refusing them is as good. Escaping is not.
        if outcome.status_code() != 0 {
            outcome.status(1);
            assert!(!outcome.errors().trim().is_empty(), "{what}: a message");
        }
        lazaret.sh("! [ -e /absolute-e2e ] && ! [ -e /tmp/escaped-e2e ]");
        lazaret.lazaret(["rmi", "e2e-hostile"]);
    }
    let after = lazaret.sh("find / -xdev -name '*e2e' -newer /proc/1/cmdline 2>/dev/null | sort");
    assert_eq!(before, after);
}

#[test]
fn broken_archives_are_refused() {
    let lazaret = start!("broken-archives");
    let config = json!({ "Cmd": ["true"] });
    let whole = docker_archive("e2e-broken", &config, &[layer(&[directory("d")])]);
    // Another layer under the digest of the first.
    let mut forged = whole.clone();
    let at = forged
        .windows(2)
        .rposition(|pair| pair == b"d\0")
        .expect("the layer's only name");
    forged[at] = b'e';
    for (what, archive) in [
        ("empty", Vec::new()),
        ("cut short", whole[..whole.len() / 2].to_vec()),
        ("no archive at all", b"hello\n".repeat(1000)),
        ("without a manifest", layer(&[file("x", 0o644, b"x")])),
        ("layer that is not the one named", forged),
    ] {
        let outcome = lazaret.cmd(["load"]).stdin(archive).output();
        outcome.status(1).stdout("");
        assert!(!outcome.errors().trim().is_empty(), "{what}: a message");
    }
    lazaret.run(["--rm", "e2e-broken"]).status(125);
    lazaret
        .lazaret(["load", "-i", "/no/such/file"])
        .status(1)
        .stderr_contains("/no/such/file");
}

#[test]
fn layer_that_unpacks_to_too_much_is_refused() {
    let lazaret = start!("layer-bomb");
    let config = lazaret.file("config.toml", "[image]\nmax_unpacked_mib = 16\n");
    let bomb = layer(&[file("zeros", 0o644, &vec![0; 64 << 20])]);
    let archive = oci_archive("e2e-bomb", &json!({}), &[bomb], Compression::Gzip);
    let path = lazaret.file("bomb.tar", archive);
    let disk = "df --output=used -k /var/lib/lazaret | tail -n 1";
    let before: i64 = lazaret.sh(disk).trim().parse().expect("a size");
    lazaret
        .sh_cmd(&format!("LAZARET_CONFIG={config} lazaret load -i {path}"))
        .output()
        .status(1)
        .stderr_contains("image.max_unpacked_mib");
    let after: i64 = lazaret.sh(disk).trim().parse().expect("a size");
    assert!(
        after - before < 1024,
        "{} KiB are left on the disk",
        after - before
    );
}

#[test]
fn ctrl_c_in_the_middle_of_a_start_leaves_nothing() {
    let lazaret = start!("ctrl-c");
    // From before the microVM exists to the running container. The shell is deaf to the signal until
    // its trap is set, so that it is sent again, as people do.
    let script = "trap 'exit 130' INT; while :; do sleep 0.1; done";
    for delay in ["0.02", "0.15", "0.4", "0.8", "1.5", "3"] {
        let name = lazaret.container(delay);
        let outcome = lazaret
            .sh_cmd(&format!(
                "env --default-signal=INT lazaret run --rm --name {name} busybox sh -c \"{script}\" &
                pid=$!; sleep {delay}
                while kill -INT $pid 2>/dev/null; do sleep 1; done
                wait $pid"
            ))
            .output();
        outcome.status(130).stdout("");
    }
}
