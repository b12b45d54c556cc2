//! Images: loaded from each format, imported, listed, removed.

use lazaret_tests::{Lazaret, start};
use serde_json::json;
use tar::EntryType;

use crate::archive::{Compression, directory, docker_archive, file, layer, link, oci_archive};

/// Two layers: programs and files, then changes of each kind to them.
fn two_layers(lazaret: &Lazaret) -> Vec<Vec<u8>> {
    let busybox = lazaret.sh_cmd("cat /bin/busybox").output().stdout_bytes();
    let lower = layer(&[
        directory("bin"),
        file("bin/busybox", 0o755, &busybox),
        link(EntryType::Symlink, "bin/sh", "/bin/busybox"),
        link(EntryType::Link, "bin/cat", "bin/busybox"),
        directory("d"),
        file("d/kept", 0o640, b"kept\n"),
        file("d/deleted", 0o644, b"deleted\n"),
        file("d/changed", 0o644, b"before\n"),
        directory("opaque"),
        file("opaque/hidden", 0o644, b"hidden\n"),
        file("original", 0o644, b"two names\n"),
        link(EntryType::Link, "second", "original"),
    ]);
    let upper = layer(&[
        directory("d"),
        file("d/.wh.deleted", 0o644, b""),
        file("d/changed", 0o644, b"after\n"),
        directory("opaque"),
        file("opaque/.wh..wh..opq", 0o644, b""),
        file("opaque/shown", 0o644, b"shown\n"),
    ]);
    vec![lower, upper]
}

const LOOK: &str = "cd /; busybox ls d opaque; cat d/changed opaque/shown second;
    busybox stat -c %h second; busybox stat -c %a d/kept; echo $FROM_IMAGE; pwd";

const SEEN: &str = "d:\nchanged\nkept\n\nopaque:\nshown\nafter\nshown\ntwo names\n2\n640\nyes\n/\n";

#[test]
fn docker_archive_is_loaded_with_its_layers_and_settings() {
    let lazaret = start!("load-docker");
    let config = json!({
        "Env": ["PATH=/bin", "FROM_IMAGE=yes"],
        "Entrypoint": ["sh", "-c"],
        "Cmd": ["echo default; pwd; busybox id -u"],
        "WorkingDir": "/d",
        "User": "17:18",
    });
    let archive = docker_archive("e2e/docker:v1", &config, &two_layers(&lazaret));
    let path = lazaret.file("image.tar", archive);
    lazaret
        .lazaret(["load", "-i", &path])
        .success()
        .stdout("Loaded image: e2e/docker:v1\n");
    lazaret
        .run(["--rm", "e2e/docker:v1"])
        .success()
        .stdout("default\n/d\n17\n");
    lazaret
        .run([
            "--rm",
            "-u",
            "0",
            "--entrypoint",
            "sh",
            "e2e/docker:v1",
            "-c",
            LOOK,
        ])
        .success()
        .stdout(SEEN);

    let row = lazaret.lazaret(["images"]).success().lines();
    assert_eq!(
        row[0].split_whitespace().collect::<Vec<_>>(),
        ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    );
    let found = row
        .iter()
        .find(|line| line.starts_with("e2e/docker"))
        .expect("it is listed");
    assert_eq!(found.split_whitespace().nth(1), Some("v1"), "{found}");
    let listed = lazaret
        .lazaret(["images", "--format", "json"])
        .success()
        .json_lines();
    let listed = listed
        .iter()
        .find(|image| image["Repository"] == "e2e/docker");
    assert_eq!(listed.expect("it is listed as JSON")["Tag"], "v1");

    lazaret
        .lazaret(["rmi", "e2e/docker:v1"])
        .success()
        .stdout_contains("Untagged: e2e/docker:v1");
    lazaret.run(["--rm", "e2e/docker:v1"]).status(125);
}

#[test]
fn oci_archive_is_loaded_from_standard_input_whatever_its_compression() {
    let lazaret = start!("load-oci");
    let config = json!({ "Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sh", "-c", LOOK] });
    let layers = two_layers(&lazaret);
    for (tag, compression) in [
        ("e2e-oci:plain", Compression::None),
        ("e2e-oci:gzip", Compression::Gzip),
        ("e2e-oci:zstd", Compression::Zstd),
    ] {
        let archive = oci_archive(tag, &config, &layers, compression);
        let loaded = lazaret.cmd(["load"]).stdin(archive).output();
        loaded.success().stdout(&format!("Loaded image: {tag}\n"));
    }
    lazaret.run(["--rm", "e2e-oci:zstd"]).success().stdout(SEEN);
    lazaret
        .run(["--rm", "e2e-oci:gzip", "cat", "/d/changed"])
        .success()
        .stdout("after\n");
    lazaret
        .lazaret(["rmi", "e2e-oci:plain", "e2e-oci:gzip", "e2e-oci:zstd"])
        .success();
}

#[test]
fn file_system_is_imported_and_an_image_in_use_stays() {
    let lazaret = start!("import");
    let name = lazaret.container("a");
    let root = lazaret.file("root.tar", two_layers(&lazaret).swap_remove(0));
    let imported = lazaret.lazaret(["import", &root, "e2e-import:v2"]);
    assert!(
        imported.success().text().starts_with("sha256:"),
        "{imported}"
    );
    lazaret
        .run(["--name", &name, "e2e-import:v2", "/bin/cat", "/d/changed"])
        .success()
        .stdout("before\n");
    lazaret
        .lazaret(["rmi", "e2e-import:v2"])
        .status(1)
        .stderr_contains("is using");
    lazaret.lazaret(["rm", &name]).success();
    lazaret.lazaret(["rmi", "e2e-import:v2"]).success();
    lazaret
        .lazaret(["rmi", "e2e-import:v2"])
        .status(1)
        .stderr_contains("No such image");
}

#[test]
fn containers_of_one_image_do_not_see_each_others_changes() {
    let lazaret = start!("image-shared");
    lazaret
        .run(["--rm", "busybox", "sh", "-c", "rm /bin/vi; echo x >/new"])
        .success();
    lazaret
        .run(["--rm", "busybox", "sh", "-c", "ls /new; ls /bin/vi"])
        .status(0)
        .stdout("/bin/vi\n");
}
