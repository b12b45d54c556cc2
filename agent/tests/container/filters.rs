//! Seccomp profiles on real processes.

use serde_json::{Value, json};

use crate::harness::{Box, process, refused, require_root};

/// What the shell says of a process that was killed for a forbidden call.
const SIGSYS_STATUS: u32 = 128 + 31;

fn profile(rules: &Value) -> Value {
    json!({ "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": rules })
}

fn without(action: &str, errno: Option<u32>) -> Value {
    profile(
        &json!([{ "names": ["mkdir", "mkdirat", "no_such_call"], "action": action,
                     "errnoRet": errno }]),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn forbidden_calls_fail_with_the_profiles_error() {
    require_root!();
    for (errno, words) in [
        (None, "Operation not permitted"),
        (Some(38), "not implemented"),
    ] {
        let outcome = Box::sh("mkdir /tmp/x; touch /tmp/y && echo made")
            .set("/linux/seccomp", without("SCMP_ACT_ERRNO", errno))
            .run()
            .await;
        assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
        assert_eq!(outcome.stdout, "made\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_actions_kill() {
    require_root!();
    for action in ["KILL", "KILL_THREAD", "KILL_PROCESS", "TRAP"] {
        let outcome = Box::new(&["mkdir", "/tmp/x"])
            .set(
                "/linux/seccomp",
                without(&format!("SCMP_ACT_{action}"), None),
            )
            .run()
            .await;
        assert_eq!(outcome.status, SIGSYS_STATUS, "{action}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logged_calls_are_made() {
    require_root!();
    let outcome = Box::sh("mkdir /tmp/x && echo made")
        .set("/linux/seccomp", without("SCMP_ACT_LOG", None))
        .run()
        .await;
    assert_eq!(outcome.stdout, "made\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn traced_calls_without_a_tracer_do_not_exist() {
    require_root!();
    let outcome = Box::sh("mkdir /tmp/x")
        .set("/linux/seccomp", without("SCMP_ACT_TRACE", Some(1)))
        .run()
        .await;
    assert!(
        outcome.stderr.contains("not implemented"),
        "{}",
        outcome.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_are_compared() {
    require_root!();
    let rule = json!([{ "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13,
                        "args": [{ "index": 1, "value": 18, "op": "SCMP_CMP_EQ" }] }]);
    let outcome = Box::sh("kill -0 $$ && echo may; kill -CONT $$ || echo may not")
        .set("/linux/seccomp", profile(&rule))
        .run()
        .await;
    assert_eq!(outcome.stdout, "may\nmay not\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn filter_needs_no_right_of_the_process_and_leaves_it_none() {
    require_root!();
    for no_new_privileges in [false, true] {
        let outcome = Box::new(&[
            "grep",
            "-E",
            "^(CapEff|CapPrm|Seccomp|NoNewPrivs):",
            "/proc/self/status",
        ])
        .set("/linux/seccomp", without("SCMP_ACT_ERRNO", None))
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
        .set("/process/noNewPrivileges", json!(no_new_privileges))
        .run()
        .await;
        let none = "0000000000000000";
        let flag = u8::from(no_new_privileges);
        let expected =
            format!("CapPrm:\t{none}\nCapEff:\t{none}\nNoNewPrivs:\t{flag}\nSeccomp:\t2\n");
        assert_eq!(outcome.stdout, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn execs_are_under_the_containers_filter() {
    require_root!();
    let container = Box::new(&["sleep", "1000"])
        .set("/linux/seccomp", without("SCMP_ACT_ERRNO", None))
        .started()
        .await;
    let outcome = container
        .exec("e", process(&["mkdir", "/tmp/x"]))
        .await
        .expect("runs");
    assert!(
        outcome.stderr.contains("not permitted"),
        "{}",
        outcome.stderr
    );
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filter_that_forbids_the_start_itself_is_reported() {
    require_root!();
    let rule = json!([{ "names": ["execve"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }]);
    let container = Box::new(&["true"]).set("/linux/seccomp", profile(&rule));
    let (_, text) = refused(container.try_run().await);
    assert_eq!(text, "exec /bin/true: operation not permitted");
}

#[tokio::test(flavor = "multi_thread")]
async fn notification_is_refused_by_name() {
    require_root!();
    let container = Box::new(&["true"]).set("/linux/seccomp", without("SCMP_ACT_NOTIFY", None));
    let (code, text) = refused(container.try_run().await);
    assert_eq!(code, ttrpc::Code::UNIMPLEMENTED);
    assert!(text.contains("SCMP_ACT_NOTIFY"), "{text}");
}
