//! Mounts of the spec, and roots that try to lead them astray.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Box, refused, require_root};

fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": "bind", "source": source, "options": options })
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_and_files_are_bound() {
    require_root!();
    let volume = tempfile::tempdir().expect("temporary directory");
    fs::write(volume.path().join("file"), "from outside").expect("file");
    let outcome = Box::sh("cat /a/b/file /etc/one; echo back > /a/b/new")
        .mount(bind(volume.path(), "/a/b", &["rbind", "rprivate"]))
        .mount(bind(&volume.path().join("file"), "/etc/one", &["bind"]))
        .run()
        .await;
    assert_eq!(outcome.stdout, "from outsidefrom outside");
    let new = fs::read_to_string(volume.path().join("new")).expect("written");
    assert_eq!(new, "back\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_binds_refuse_writes() {
    require_root!();
    let volume = tempfile::tempdir().expect("temporary directory");
    for option in ["ro", "rro"] {
        let outcome = Box::sh("touch /v/x")
            .mount(bind(volume.path(), "/v", &["rbind", option]))
            .run()
            .await;
        assert!(outcome.stderr.contains("Read-only"), "{}", outcome.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn link_in_the_root_cannot_move_a_mount_outside() {
    require_root!();
    let volume = tempfile::tempdir().expect("temporary directory");
    let outside = tempfile::tempdir().expect("temporary directory");
    let target = outside.path().join("target");
    let container =
        Box::sh("echo inside > /data/x; ls /data").mount(bind(volume.path(), "/data", &["rbind"]));
    // The link dangles inside the root: nothing may be made where it points outside.
    symlink(&target, container.root().join("data")).expect("link");
    let (_, text) = refused(container.try_run().await);
    assert!(text.contains("/data"), "{text}");
    assert!(!target.exists());

    let container = Box::sh("echo inside > /data/x; readlink /data").mount(bind(
        volume.path(),
        "/data",
        &["rbind"],
    ));
    symlink(&target, container.root().join("data")).expect("link");
    let inside = container
        .root()
        .join(target.strip_prefix("/").expect("absolute"));
    fs::create_dir_all(inside).expect("directories");
    let outcome = container.run().await;
    assert_eq!(outcome.stderr, "");
    assert!(!target.exists());
    assert!(volume.path().join("x").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_into_proc_are_refused() {
    require_root!();
    let volume = tempfile::tempdir().expect("temporary directory");
    let container = Box::new(&["true"]).mount(bind(volume.path(), "/proc/sys", &["bind"]));
    let (code, text) = refused(container.try_run().await);
    assert_eq!(code, ttrpc::Code::UNIMPLEMENTED);
    assert!(text.contains("/proc/sys"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_mount_options_are_reported_with_their_mount() {
    require_root!();
    let mount = json!({ "destination": "/t", "type": "tmpfs", "options": ["colour=blue"] });
    let (_, text) = refused(Box::new(&["true"]).mount(mount).try_run().await);
    assert!(text.starts_with("mount /t: option colour"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tmpfs_has_its_options() {
    require_root!();
    let mount = json!({ "destination": "/t", "type": "tmpfs", "source": "tmpfs",
                        "options": ["noexec", "nosuid", "nodev", "size=64k", "mode=1777"] });
    let outcome = Box::new(&["grep", " /t ", "/proc/mounts"])
        .mount(mount)
        .run()
        .await;
    for option in ["nosuid", "nodev", "noexec", "size=64k"] {
        assert!(outcome.stdout.contains(option), "{}", outcome.stdout);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_source_is_named() {
    require_root!();
    let container = Box::new(&["true"]).mount(bind(Path::new("/no/such/source"), "/v", &["rbind"]));
    let (_, text) = refused(container.try_run().await);
    assert_eq!(
        text,
        "bind /no/such/source on /v: no such file or directory"
    );
}
