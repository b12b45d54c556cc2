//! Mounts of the spec, and roots that try to lead them astray.

use std::fs;
use std::os::unix::fs::{chown, symlink};
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
async fn relative_destination_is_below_the_root() {
    require_root!();
    let tmpfs = json!({ "destination": "data/../t", "type": "tmpfs", "source": "tmpfs" });
    let outcome = Box::new(&["grep", "-c", " /t tmpfs", "/proc/mounts"])
        .set("/process/cwd", json!("/tmp"))
        .mount(tmpfs)
        .run()
        .await;
    assert_eq!(outcome.stdout, "1\n");
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
    // Whether the link dangles inside the root or not: nothing may be made where it
    // points outside.
    for is_there in [false, true] {
        let container = Box::sh("echo inside > /data/x; readlink /data").mount(bind(
            volume.path(),
            "/data",
            &["rbind"],
        ));
        symlink(&target, container.root().join("data")).expect("link");
        if is_there {
            let inside = target.strip_prefix("/").expect("absolute");
            fs::create_dir_all(container.root().join(inside)).expect("directories");
        }
        let outcome = container.run().await;
        assert_eq!(outcome.stderr, "");
        assert_eq!(outcome.stdout, format!("{}\n", target.display()));
        assert!(!target.exists());
        fs::remove_file(volume.path().join("x")).expect("written through the mount");
    }
}

/// As /etc/localtime of an image without time zones.
#[tokio::test(flavor = "multi_thread")]
async fn file_is_bound_where_a_dangling_link_leads() {
    require_root!();
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    fs::write(file.path(), "from outside").expect("file");
    let container = Box::sh("readlink /etc/localtime; cat /etc/localtime /no/zone").mount(bind(
        file.path(),
        "/etc/localtime",
        &["bind", "ro"],
    ));
    symlink("../no/zone", container.root().join("etc/localtime")).expect("link");
    let outcome = container.run().await;
    assert_eq!(outcome.stdout, "../no/zone\nfrom outsidefrom outside");
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
async fn tmpfs_has_the_mode_of_the_directory_it_covers_or_is_open_to_all() {
    require_root!();
    let tmpfs = |path: &str| json!({ "destination": path, "type": "tmpfs", "source": "tmpfs" });
    let container = Box::new(&["stat", "-c", "%a", "/new/dir", "/old", "/new"])
        .mount(tmpfs("/new/dir"))
        .mount(tmpfs("/old"));
    let old = container.root().join("old");
    fs::create_dir(&old).expect("directory");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o750);
    fs::set_permissions(&old, mode).expect("mode");
    assert_eq!(container.run().await.stdout, "1777\n750\n755\n");
}

/// As `podman run --read-only --read-only-tmpfs=false` has them.
#[tokio::test(flavor = "multi_thread")]
async fn read_only_tmpfs_is_filled_first() {
    require_root!();
    let dev = json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                      "options": ["nosuid", "noexec", "strictatime", "mode=755", "ro"] });
    let volume = tempfile::tempdir().expect("temporary directory");
    let tmpfs = json!({ "destination": "/t", "type": "tmpfs", "options": ["ro"] });
    let device = json!([{ "path": "/dev/extra", "type": "c", "major": 1, "minor": 5 }]);
    let script = "touch /dev/x; touch /t/x; test -c /dev/extra && test -c /dev/null \
                  && echo made > /dev/null && touch /dev/shm/x /t/volume/x && echo fine";
    for terminal in [false, true] {
        let mut container = Box::sh(script)
            .set("/linux/devices", device.clone())
            .set("/process/terminal", json!(terminal))
            .set("/root/readonly", json!(true))
            .mount(tmpfs.clone())
            .mount(bind(volume.path(), "/t/volume", &["rbind"]));
        container.spec["mounts"][1] = dev.clone();
        let outcome = container.run().await;
        let said = outcome.stdout + &outcome.stderr;
        assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
        assert!(said.contains("fine"), "{said}");
        fs::remove_file(volume.path().join("x")).expect("written");
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

async fn mountinfo(container: Box, path: &str) -> String {
    let pattern = format!(" {path} ");
    let container = container.set(
        "/process/args",
        json!(["grep", pattern, "/proc/self/mountinfo"]),
    );
    let outcome = container.run().await;
    assert_eq!(outcome.stderr, "");
    outcome.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attribute_is_set() {
    require_root!();
    let volume = tempfile::tempdir().expect("temporary directory");
    for (option, shown) in [
        ("ro", "ro"),
        ("nosuid", "nosuid"),
        ("nodev", "nodev"),
        ("noexec", "noexec"),
        ("noatime", "noatime"),
        ("nodiratime", "nodiratime"),
        ("nosymfollow", "nosymfollow"),
        ("relatime", "relatime"),
    ] {
        let container = Box::sh("true").mount(bind(volume.path(), "/v", &["rbind", option]));
        let info = mountinfo(container, "/v").await;
        let attributes = info.split(' ').nth(5).expect("attributes").to_owned();
        assert!(
            attributes.split(',').any(|one| one == shown),
            "{option}: {attributes}"
        );
        let container = Box::sh("true").mount(json!({
            "destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": [option] }));
        let info = mountinfo(container, "/t").await;
        assert!(info.contains(shown), "{option}: {info}");
    }
    let container = Box::sh("true").mount(bind(volume.path(), "/v", &["bind", "strictatime"]));
    assert!(!mountinfo(container, "/v").await.contains("relatime"));
}

#[tokio::test(flavor = "multi_thread")]
async fn recursive_attributes_reach_mounts_below() {
    require_root!();
    let below = json!({ "destination": "/v/below", "type": "tmpfs", "source": "tmpfs" });
    let volume = tempfile::tempdir().expect("temporary directory");
    fs::create_dir(volume.path().join("below")).expect("directory");
    // The tree below /v as a second container mount sees it is bound once more.
    let outcome = Box::sh("touch /dev/shm/x; touch /w/shm/x")
        .mount(below)
        .mount(bind(Path::new("/dev"), "/w", &["rbind", "rro", "rnoexec"]))
        .run()
        .await;
    assert!(
        outcome.stderr.contains("/w/shm/x: Read-only"),
        "{}",
        outcome.stderr
    );
    assert!(!outcome.stderr.contains("/dev/shm/x"), "{}", outcome.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn propagation_is_that_of_the_options() {
    require_root!();
    let volume = tempfile::tempdir().expect("temporary directory");
    for (option, shown) in [
        ("shared", "shared:"),
        ("rshared", "shared:"),
        ("unbindable", "unbindable"),
        ("runbindable", "unbindable"),
    ] {
        let container = Box::sh("true").mount(bind(volume.path(), "/v", &["rbind", option]));
        assert!(mountinfo(container, "/v").await.contains(shown), "{option}");
    }
    for option in ["private", "rprivate", "slave", "rslave"] {
        let container = Box::sh("true").mount(bind(volume.path(), "/v", &["rbind", option]));
        let info = mountinfo(container, "/v").await;
        assert!(
            !info.contains("shared:") && !info.contains("unbindable"),
            "{option}: {info}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_propagation_is_that_of_the_spec() {
    require_root!();
    for (word, shown) in [
        ("shared", "shared:"),
        ("rshared", "shared:"),
        ("unbindable", "unbindable"),
    ] {
        let container = Box::sh("true").set("/linux/rootfsPropagation", json!(word));
        let info = mountinfo(container, "/").await;
        assert!(info.contains(shown), "{word}: {info}");
    }
    for word in ["private", "slave", "rslave"] {
        let container = Box::sh("true").set("/linux/rootfsPropagation", json!(word));
        assert!(
            !mountinfo(container, "/").await.contains("shared:"),
            "{word}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tmpfs_can_start_with_what_it_covers() {
    require_root!();
    let mount = json!({ "destination": "/etc", "type": "tmpfs", "source": "tmpfs",
                        "options": ["rprivate", "nosuid", "nodev", "tmpcopyup", "ro"] });
    let container = Box::sh("grep -c root /etc/passwd; touch /etc/x").mount(mount);
    let outcome = container.run().await;
    assert_eq!(outcome.stdout, "1\n");
    assert!(outcome.stderr.contains("Read-only"), "{}", outcome.stderr);
    for (owner, expected) in [
        (&["uid=1000", "gid=1001"][..], "1000:1001:700\n"),
        (&["gid=1001"], "3:1001:700\n"),
        (&["uid=1000"], "1000:4:700\n"),
        (&[], "3:4:700\n"),
    ] {
        let options = [&["tmpcopyup", "mode=700"], owner].concat();
        let mount = json!({ "destination": "/etc", "type": "tmpfs", "source": "tmpfs",
                            "options": options });
        let container = Box::new(&["stat", "-c", "%u:%g:%a", "/etc"]).mount(mount);
        chown(container.root().join("etc"), Some(3), Some(4)).expect("an owner");
        let outcome = container.run().await;
        assert_eq!(outcome.stdout, expected, "{}", outcome.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mounted_thing_can_be_changed() {
    require_root!();
    let again = json!({ "destination": "/dev/shm", "source": "none",
                        "options": ["remount", "ro", "noexec", "size=4k"] });
    let info = mountinfo(Box::sh("true").mount(again), "/dev/shm").await;
    assert!(info.contains(" ro,"), "{info}");
    assert!(info.contains("size=4k"), "{info}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_file_systems_take_their_options() {
    require_root!();
    let proc = json!({ "destination": "/p", "type": "proc", "source": "proc",
                       "options": ["subset=pid", "hidepid=2"] });
    let outcome = Box::sh("ls /p/meminfo; ls /p/self/stat; ls /dev/mqueue; cat /sys/fs/cgroup/cgroup.procs | wc -l; stat -c %a /dev/ptmx")
        .mount(proc)
        .run()
        .await;
    assert!(
        outcome.stderr.contains("/p/meminfo: No such file"),
        "{}",
        outcome.stderr
    );
    assert!(
        outcome.stdout.starts_with("/p/self/stat\n"),
        "{}",
        outcome.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_of_proc_may_be_covered() {
    require_root!();
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    fs::write(file.path(), "11.5 3.2\n").expect("file");
    let container = Box::new(&["cat", "/proc/uptime"]).mount(bind(
        file.path(),
        "/proc/uptime",
        &["bind", "ro"],
    ));
    assert_eq!(container.run().await.stdout, "11.5 3.2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn link_cannot_lead_a_mount_into_proc() {
    require_root!();
    let volume = tempfile::tempdir().expect("temporary directory");
    let container = Box::new(&["true"]).mount(bind(volume.path(), "/data", &["rbind"]));
    symlink("/proc/sys", container.root().join("data")).expect("link");
    let (code, text) = refused(container.try_run().await);
    assert_eq!(code, ttrpc::Code::UNIMPLEMENTED);
    assert!(text.contains("/data"), "{text}");
    // Only a proc file system passes for /proc.
    let container = Box::new(&["true"]).mount(bind(volume.path(), "/proc", &["rbind"]));
    assert_eq!(
        refused(container.try_run().await).0,
        ttrpc::Code::UNIMPLEMENTED
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_mapped_mount_belong_to_others() {
    require_root!();
    let volume = tempfile::tempdir().expect("temporary directory");
    fs::write(volume.path().join("file"), "x").expect("file");
    let map = json!([{ "containerID": 0, "hostID": 1000, "size": 10 }]);
    for option in ["idmap", "ridmap"] {
        let mut mount = bind(volume.path(), "/v", &["rbind", option]);
        mount["uidMappings"] = map.clone();
        mount["gidMappings"] = map.clone();
        let outcome = Box::new(&["stat", "-c", "%u:%g", "/v/file"])
            .mount(mount)
            .run()
            .await;
        assert_eq!(
            outcome.stdout, "1000:1000\n",
            "{option}: {}",
            outcome.stderr
        );
    }
    let mount = bind(volume.path(), "/v", &["rbind", "idmap"]);
    let (code, text) = refused(Box::new(&["true"]).mount(mount).try_run().await);
    assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT);
    assert!(text.contains("/v"), "{text}");
}
