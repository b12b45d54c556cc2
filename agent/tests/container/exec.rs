//! Further processes in a running container.

use serde_json::json;

use crate::harness::{Box, process, refused, require_root};

#[tokio::test(flavor = "multi_thread")]
async fn exec_is_inside_the_container() {
    require_root!();
    let container = Box::new(&["sleep", "1000"]).started().await;
    let script = "hostname; readlink /proc/1/exe; grep ^0: /proc/self/cgroup; exit 5";
    let outcome = container.exec("e", process(&["sh", "-c", script])).await;
    let outcome = outcome.expect("runs");
    assert_eq!(outcome.status, 5);
    assert_eq!(outcome.stdout, "box\n/bin/busybox\n0::/\n");
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_has_its_own_identity() {
    require_root!();
    let container = Box::new(&["sleep", "1000"]).started().await;
    let mut process = process(&["sh", "-c", "id -u; pwd; echo $COLOUR"]);
    process["user"] = json!({ "uid": 1000, "gid": 1000 });
    process["cwd"] = json!("/tmp");
    process["env"] = json!(["PATH=/bin", "COLOUR=blue"]);
    let outcome = container.exec("e", process).await.expect("runs");
    assert_eq!(outcome.stdout, "1000\n/tmp\nblue\n");
    container.delete().await;
}

/// What programs see that read the environment themselves, or by getenv.
#[tokio::test(flavor = "multi_thread")]
async fn last_setting_of_a_variable_is_the_only_one() {
    require_root!();
    let container = Box::new(&["sleep", "1000"]).started().await;
    let mut process = process(&["cat", "/proc/self/environ"]);
    process["env"] = json!(["A=1", "PATH=/nowhere", "A=2", "HOME=", "PATH=/bin"]);
    let outcome = container.exec("e", process.clone()).await.expect("runs");
    assert_eq!(outcome.stdout, "A=2\0PATH=/bin\0HOME=/root\0");
    for entry in ["A", "=1"] {
        process["env"] = json!(["PATH=/bin", entry]);
        let stdio = lazaret_protocol::agent::Stdio::new();
        let result = container.try_create_process("f", process.clone(), stdio);
        let (code, text) = refused(result.await);
        assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT);
        assert!(text.contains(&format!("{entry:?}")), "{text}");
    }
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn created_container_takes_processes_before_its_start() {
    require_root!();
    let container = Box::sh("until [ -e /tmp/end ]; do sleep 0.1; done");
    let stdio = lazaret_protocol::agent::Stdio::new;
    container.create(stdio()).await.expect("create");
    let outcome = container.exec("e", process(&["sh", "-c", "hostname; echo $$"]));
    let outcome = outcome.await.expect("runs");
    assert!(outcome.stdout.starts_with("box\n"), "{}", outcome.stdout);
    container.start("").await.expect("start");
    let after = container.exec("f", process(&["touch", "/tmp/end"]));
    assert_eq!(after.await.expect("runs").status, 0);
    assert_eq!(container.wait("").await.exit_status, 0);
    container.delete().await;

    let container = Box::new(&["true"]);
    container.create(stdio()).await.expect("create");
    let mut kill = lazaret_protocol::agent::SignalProcessRequest::new();
    kill.container_id.clone_from(&container.id);
    kill.signal = 9;
    let killed = container
        .client
        .signal_process(crate::harness::context(), &kill);
    killed.await.expect("kill");
    container.wait("").await;
    let refusal = container.try_create_process("e", process(&["true"]), stdio());
    assert_eq!(refused(refusal.await).0, ttrpc::Code::ABORTED);
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_program_is_not_found() {
    require_root!();
    let container = Box::new(&["sleep", "1000"]).started().await;
    let (code, text) = refused(container.exec("e", process(&["nope"])).await);
    assert_eq!(code, ttrpc::Code::NOT_FOUND);
    assert_eq!(text, r#"exec: "nope": executable file not found in $PATH"#);
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_container_takes_no_process() {
    require_root!();
    let container = Box::new(&["true"]).started().await;
    container.wait("").await;
    let stdio = lazaret_protocol::agent::Stdio::new();
    let result = container
        .try_create_process("e", process(&["true"]), stdio)
        .await;
    assert_eq!(refused(result).0, ttrpc::Code::ABORTED);
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_of_a_security_module_are_refused_unless_the_container_does_without() {
    require_root!();
    let mut confined = process(&["true"]);
    confined["apparmorProfile"] = json!("own-profile");
    let container = Box::new(&["sleep", "1000"]).started().await;
    let stdio = lazaret_protocol::agent::Stdio::new;
    let result = container
        .try_create_process("e", confined.clone(), stdio())
        .await;
    let (code, text) = refused(result);
    assert_eq!(code, ttrpc::Code::UNIMPLEMENTED);
    assert!(text.contains("apparmor=unconfined"), "{text}");
    container.delete().await;

    let annotations = json!({ "dev.lazaret.ignore-lsm": "true" });
    let container = Box::new(&["sleep", "1000"]).set("/annotations", annotations);
    let container = container.started().await;
    let outcome = container.exec("e", confined).await.expect("runs");
    assert_eq!(outcome.status, 0);
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_has_its_own_rights() {
    require_root!();
    let container = Box::new(&["sleep", "1000"]).started().await;
    let mut process = process(&["grep", "-E", "^(CapEff|NoNewPrivs)", "/proc/self/status"]);
    let list = json!(["CAP_CHOWN"]);
    process["capabilities"] = json!({ "bounding": list, "permitted": list, "effective": list });
    process["noNewPrivileges"] = json!(true);
    let outcome = container.exec("e", process).await.expect("runs");
    assert_eq!(
        outcome.stdout,
        "CapEff:\t0000000000000001\nNoNewPrivs:\t1\n"
    );
    container.delete().await;
}

/// As `exec --process` with a file that says no more than what to run.
#[tokio::test(flavor = "multi_thread")]
async fn exec_has_the_containers_rights_and_limits_where_it_has_none_of_its_own() {
    require_root!();
    let list = json!(["CAP_CHOWN"]);
    let limit = |count: u32| json!([{ "type": "RLIMIT_NOFILE", "soft": count, "hard": count }]);
    let container = Box::new(&["sleep", "1000"])
        .set(
            "/process/capabilities",
            json!({ "bounding": list, "permitted": list, "effective": list }),
        )
        .set("/process/rlimits", limit(77))
        .set(
            "/process/user",
            json!({ "uid": 0, "gid": 0, "umask": 0o027 }),
        )
        .set(
            "/process/scheduler",
            json!({ "policy": "SCHED_BATCH", "nice": 7 }),
        )
        .started()
        .await;
    let script = "grep ^CapEff /proc/self/status; ulimit -n; umask; \
                  cut -d ' ' -f 19,41 /proc/self/stat";
    let mut process = process(&["sh", "-c", script]);
    let outcome = container.exec("e", process.clone()).await.expect("runs");
    assert_eq!(outcome.stdout, "CapEff:\t0000000000000001\n77\n0027\n7 3\n");
    process["capabilities"] = json!({});
    process["rlimits"] = limit(78);
    process["user"]["umask"] = json!(0o077);
    process["scheduler"] = json!({ "policy": "SCHED_OTHER", "nice": 8 });
    let outcome = container.exec("f", process).await.expect("runs");
    assert_eq!(outcome.stdout, "CapEff:\t0000000000000000\n78\n0077\n8 0\n");
    container.delete().await;
}
