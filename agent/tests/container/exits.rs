//! How processes end, and how they fail to begin.

use std::fs;

use serde_json::json;

use crate::harness::{Box, refused, require_root};

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_are_the_programs_own() {
    require_root!();
    assert_eq!(Box::new(&["true"]).run().await.status, 0);
    assert_eq!(Box::sh("exit 7").run().await.status, 7);
    assert_eq!(
        Box::sh("sh -c 'kill -9 $$'; exit $?").run().await.status,
        137
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_program_is_not_found() {
    require_root!();
    let (code, text) = refused(Box::new(&["no-such"]).try_run().await);
    assert_eq!(code, ttrpc::Code::NOT_FOUND);
    assert_eq!(
        text,
        r#"exec: "no-such": executable file not found in $PATH"#
    );
    let (code, text) = refused(Box::new(&["/no/such"]).try_run().await);
    assert_eq!(code, ttrpc::Code::NOT_FOUND);
    assert_eq!(
        text,
        r#"exec: "/no/such": stat /no/such: no such file or directory"#
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_executed_is_denied() {
    require_root!();
    let (code, text) = refused(Box::new(&["/etc/passwd"]).try_run().await);
    assert_eq!(code, ttrpc::Code::PERMISSION_DENIED);
    assert_eq!(text, r#"exec: "/etc/passwd": permission denied"#);
    let (code, text) = refused(Box::new(&["/etc"]).try_run().await);
    assert_eq!(code, ttrpc::Code::PERMISSION_DENIED);
    assert_eq!(text, r#"exec: "/etc": is a directory"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_format_is_denied() {
    require_root!();
    let container = Box::new(&["/bin/odd"]);
    let path = container.root().join("bin/odd");
    fs::write(&path, "\0\0 no program").expect("file");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&path, mode).expect("mode");
    let (code, text) = refused(container.try_run().await);
    assert_eq!(code, ttrpc::Code::PERMISSION_DENIED);
    assert_eq!(text, "exec /bin/odd: exec format error");
}

#[tokio::test(flavor = "multi_thread")]
async fn unsupported_setting_is_named() {
    require_root!();
    let container = Box::new(&["true"]).set("/linux/intelRdt", json!({ "closID": "x" }));
    let (code, text) = refused(container.try_run().await);
    assert_eq!(code, ttrpc::Code::UNIMPLEMENTED);
    assert_eq!(text, "linux.intelRdt is not supported");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_creation_leaves_the_name_free() {
    require_root!();
    let broken = Box::new(&["true"]).set("/root/path", json!("/no/such/root"));
    let (_, text) = refused(broken.create(lazaret_protocol::agent::Stdio::new()).await);
    assert_eq!(
        text,
        "container root /no/such/root: no such file or directory"
    );
    let mut good = Box::new(&["true"]);
    good.id.clone_from(&broken.id);
    assert_eq!(good.run().await.status, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_program_fails_the_creation_already() {
    require_root!();
    let container = Box::new(&["nope"]);
    let (code, text) = refused(
        container
            .create(lazaret_protocol::agent::Stdio::new())
            .await,
    );
    assert_eq!(code, ttrpc::Code::NOT_FOUND);
    assert_eq!(text, r#"exec: "nope": executable file not found in $PATH"#);
}
