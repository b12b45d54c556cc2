//! `startContainer` hooks, run inside the container before its program.

use serde_json::{Value, json};

use crate::harness::{BUNDLE, Box, refused, require_root};

fn hook(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script, "zero", "one"], "env": ["PATH=/bin", "A=b c"] })
}

fn with_hooks(script: &str, hooks: &[Value]) -> Box {
    Box::sh(script).set("/hooks", json!({ "startContainer": hooks }))
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_run_in_order_in_the_container_before_its_program() {
    require_root!();
    let first = "echo \"$0 $A $# $HOME\" > /tmp/log; hostname >> /tmp/log; cat > /tmp/state";
    let hooks = [
        hook(first),
        hook("echo second >> /tmp/log; id -u >> /tmp/log"),
    ];
    let container = with_hooks("cat /tmp/log; cat /tmp/state", &hooks)
        .set("/annotations", json!({ "key": "value" }));
    let id = container.id.clone();
    let outcome = container.run().await;
    assert_eq!(outcome.stderr, "");
    let (log, state) = outcome.stdout.split_once('{').expect("a state");
    assert_eq!(log, "zero b c 1 \nbox\nsecond\n0\n");
    let state: Value = serde_json::from_str(&format!("{{{state}")).expect("JSON");
    let expected = json!({ "ociVersion": "1.2.0", "id": id, "status": "created", "pid": 1,
                           "bundle": BUNDLE, "annotations": { "key": "value" } });
    assert_eq!(state, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_are_told_what_the_container_is_called() {
    require_root!();
    let mut container = with_hooks("cat /tmp/state", &[hook("cat > /tmp/state")]);
    container.name = "_+called so".to_owned();
    let outcome = container.run().await;
    let state: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    assert_eq!(state["id"], "_+called so");
}

#[tokio::test(flavor = "multi_thread")]
async fn hook_without_an_environment_has_that_of_the_process() {
    require_root!();
    // As the shell was given it, and not as it passes it on.
    let script = "/bin/cat /proc/$$/environ >> /tmp/log; echo >> /tmp/log";
    let inherits = json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
    let mut has_none = inherits.clone();
    has_none["env"] = json!([]);
    let container = with_hooks("cat /tmp/log", &[inherits, has_none]).set(
        "/process/env",
        json!(["PATH=/sbin", "A=1", "PATH=/bin", "A=2"]),
    );
    let outcome = container.run().await;
    let (first, second) = outcome.stdout.split_once('\n').expect("two hooks");
    let mut first: Vec<&str> = first.split_terminator('\0').collect();
    first.sort_unstable();
    assert_eq!(first, ["A=2", "HOME=/root", "PATH=/bin"]);
    assert_eq!(second, "\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_hook_fails_the_start_with_its_output() {
    require_root!();
    let hooks = [hook("echo no luck >&2; exit 3"), hook("touch /tmp/ran")];
    let container = with_hooks("true", &hooks);
    let ran = container.root().join("tmp/ran");
    let (_, text) = refused(container.try_run().await);
    let expected = "error running startContainer hook #0: exit status: 3, output: no luck";
    assert_eq!(text, expected);
    assert!(!ran.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn hook_that_takes_too_long_is_killed() {
    require_root!();
    let mut slow = hook("sleep 1000");
    slow["timeout"] = json!(1);
    let (_, text) = refused(with_hooks("true", &[slow]).try_run().await);
    let expected = "error running startContainer hook #0: it did not end within 1 s";
    assert_eq!(text, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_hook_is_named() {
    require_root!();
    let (_, text) = refused(
        with_hooks("true", &[json!({ "path": "/no/hook" })])
            .try_run()
            .await,
    );
    let expected = "error running startContainer hook #0: execute /no/hook: \
                    no such file or directory";
    assert_eq!(text, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_have_the_rights_of_the_process() {
    require_root!();
    let container = with_hooks("cat /tmp/log", &[hook("id -u > /tmp/log")])
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
        .set("/process/capabilities", json!({}));
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(container.root().join("tmp"), open).expect("mode");
    assert_eq!(container.run().await.stdout, "1000\n");
}
