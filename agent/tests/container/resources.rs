//! Limits, their change in a running container, and figures. Files of controllers need
//! a machine that has them in its version 2 hierarchy.

use std::fs;
use std::path::PathBuf;

use lazaret_protocol::agent::{
    ContainerRequest, ContainerStatsReply, Stdio, UpdateContainerRequest,
};
use serde_json::{Value, json};

use crate::harness::{Box, cgroup_mount, context, process, refused, require_root};

/// Leaves the calling test, loudly, where version 2 has no controllers.
macro_rules! require_controllers {
    () => {
        let controllers = cgroup_mount().join("cgroup.controllers");
        if !fs::read_to_string(controllers).is_ok_and(|list| list.contains("memory")) {
            eprintln!("SKIPPED: {} needs cgroup v2 controllers", module_path!());
            return;
        }
    };
}

fn sleeper(resources: Value) -> Box {
    Box::new(&["sleep", "1000"]).set("/linux/resources", resources)
}

fn directory(container: &Box) -> PathBuf {
    cgroup_mount().join("lazaret").join(&container.id)
}

fn file(container: &Box, name: &str) -> String {
    let text = fs::read_to_string(directory(container).join(name)).expect(name);
    text.trim().to_owned()
}

async fn update(container: &Box, resources: Value) -> ttrpc::Result<()> {
    let mut request = UpdateContainerRequest::new();
    request.container_id.clone_from(&container.id);
    request.resources_json = serde_json::to_vec(&resources).expect("JSON");
    container
        .client
        .update_container(context(), &request)
        .await?;
    Ok(())
}

fn request(container: &Box) -> ContainerRequest {
    let mut request = ContainerRequest::new();
    request.container_id.clone_from(&container.id);
    request
}

async fn stats(container: &Box) -> ContainerStatsReply {
    let stats = container
        .client
        .container_stats(context(), &request(container))
        .await;
    stats.expect("figures")
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_those_of_the_spec_until_they_are_changed() {
    require_root!();
    require_controllers!();
    let container = sleeper(json!({
        "memory": { "limit": 64 << 20, "reservation": 32 << 20, "swap": 96 << 20 },
        "cpu": { "shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0" },
        "pids": { "limit": 50 },
        "unified": { "memory.high": "50331648", "cgroup.max.depth": "7" },
    }))
    .started()
    .await;
    let expected = [
        ("memory.max", "67108864"),
        ("memory.low", "33554432"),
        ("memory.swap.max", "33554432"),
        ("memory.high", "50331648"),
        ("cpu.max", "50000 100000"),
        ("cpu.weight", "20"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
        ("pids.max", "50"),
        ("cgroup.max.depth", "7"),
    ];
    for (name, value) in expected {
        assert_eq!(file(&container, name), value, "{name}");
    }
    update(
        &container,
        json!({ "cpu": { "quota": 20_000 }, "pids": { "limit": 60 } }),
    )
    .await
    .expect("an update");
    assert_eq!(file(&container, "cpu.max"), "20000 100000");
    assert_eq!(file(&container, "pids.max"), "60");
    assert_eq!(file(&container, "memory.max"), "67108864");
    update(
        &container,
        json!({ "cpu": { "period": 50_000 }, "memory": { "swap": 128 << 20 } }),
    )
    .await
    .expect("an update");
    assert_eq!(file(&container, "cpu.max"), "20000 50000");
    assert_eq!(file(&container, "memory.swap.max"), (64 << 20).to_string());
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limit_below_the_usage_is_refused_where_that_is_asked_for() {
    require_root!();
    require_controllers!();
    let container = sleeper(json!({})).started().await;
    let memory = json!({ "memory": { "limit": 4096, "checkBeforeUpdate": true } });
    let (code, text) = refused(update(&container, memory).await);
    assert_eq!(code, ttrpc::Code::FAILED_PRECONDITION);
    assert!(
        text.starts_with("rejecting memory limit 4096 < usage"),
        "{text}"
    );
    assert_eq!(file(&container, "memory.max"), "max");
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_update_changes_nothing() {
    require_root!();
    let container = sleeper(json!({})).started().await;
    let bad = json!({ "memory": { "limit": 1 << 30, "swappiness": 3 } });
    let (code, text) = refused(update(&container, bad).await);
    assert_eq!(code, ttrpc::Code::UNIMPLEMENTED);
    assert!(text.contains("swappiness"), "{text}");
    let nonsense = update(&container, json!({ "memory": "much" })).await;
    assert_eq!(refused(nonsense).0, ttrpc::Code::INVALID_ARGUMENT);
    container.delete().await;
    assert_eq!(
        refused(update(&container, json!({})).await).0,
        ttrpc::Code::NOT_FOUND
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn device_rules_are_replaced() {
    require_root!();
    let device = json!([{ "path": "/dev/log", "type": "c", "major": 1, "minor": 11 }]);
    let all = json!({ "devices": [{ "allow": true, "access": "rwm" }] });
    let none = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    let container = sleeper(all.clone())
        .set("/linux/devices", device)
        .started()
        .await;
    let script = "exec 3> /dev/log && echo open";
    for (number, resources, expected) in [
        (1, all.clone(), "open\n"),
        (2, none, ""),
        (3, all, "open\n"),
    ] {
        update(&container, resources).await.expect("an update");
        let name = format!("e{number}");
        let outcome = container
            .exec(&name, process(&["sh", "-c", script]))
            .await
            .expect("runs");
        assert_eq!(outcome.stdout, expected, "{}", outcome.stderr);
    }
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn number_of_processes_is_limited() {
    require_root!();
    require_controllers!();
    let outcome = Box::sh("for n in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo made all")
        .set("/linux/resources", json!({ "pids": { "limit": 5 } }))
        .run()
        .await;
    assert_ne!(outcome.stdout, "made all\n");
    assert!(outcome.stderr.contains("can't fork"), "{}", outcome.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_limited_and_the_end_by_it_reported() {
    require_root!();
    require_controllers!();
    let container = Box::new(&["dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=60"])
        .set(
            "/linux/resources",
            json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } }),
        )
        .started()
        .await;
    let reply = container.wait("").await;
    assert_eq!(reply.exit_status, 137);
    assert!(reply.oom_killed);
    let stats = stats(&container).await;
    assert!(stats.oom_kills > 0);
    assert_eq!(stats.memory_limit_bytes, 16 << 20);
    assert!(
        stats
            .memory_events
            .get("oom")
            .is_some_and(|&count| count > 0)
    );
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_those_of_the_container() {
    require_root!();
    require_controllers!();
    let script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=8 2>/dev/null; \
                  n=0; while test $n -lt 20000; do n=$((n + 1)); done; sleep 1000";
    let resources =
        json!({ "pids": { "limit": 77 }, "cpu": { "quota": 10_000, "period": 100_000 } });
    let container = Box::sh(script)
        .set("/linux/resources", resources)
        .started()
        .await;
    let stats = loop {
        let stats = stats(&container).await;
        if stats
            .memory_stat
            .get("shmem")
            .is_some_and(|&bytes| bytes >= 8 << 20)
            && stats.cpu_throttled_periods > 0
        {
            break stats;
        }
        tokio::task::yield_now().await;
    };
    assert!(stats.memory_usage_bytes >= 8 << 20);
    assert_eq!(stats.pids_limit, 77);
    assert!(stats.pids_current > 0);
    assert!(stats.cpu_usage_usec > 0);
    assert!(stats.cpu_throttled_usec > 0);
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_limit_is_named() {
    require_root!();
    require_controllers!();
    for (resources, name) in [
        (json!({ "cpu": { "cpus": "4096" } }), "cpu.cpus"),
        (json!({ "rdma": { "mlx5_1": { "hcaHandles": 3 } } }), "rdma"),
        (
            json!({ "unified": { "memory.nothing": "1" } }),
            "memory.nothing",
        ),
    ] {
        let (_, text) = refused(sleeper(resources).create(Stdio::new()).await);
        assert!(text.contains(name), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_starts_in_a_paused_container() {
    require_root!();
    let container = sleeper(json!({})).started().await;
    let made = container
        .try_create_process("made", process(&["true"]), Stdio::new())
        .await;
    made.expect("a process before the pause");
    container
        .client
        .pause_container(context(), &request(&container))
        .await
        .expect("paused");
    let (code, text) = refused(container.start("made").await);
    assert_eq!(code, ttrpc::Code::FAILED_PRECONDITION);
    assert_eq!(text, format!("container {} is paused", container.id));
    let new = container
        .try_create_process("new", process(&["true"]), Stdio::new())
        .await;
    assert_eq!(refused(new).0, ttrpc::Code::FAILED_PRECONDITION);
    container
        .client
        .resume_container(context(), &request(&container))
        .await
        .expect("resumed");
    container.start("made").await.expect("starts");
    assert_eq!(container.wait("made").await.exit_status, 0);
    // A paused container can be ended.
    container
        .client
        .pause_container(context(), &request(&container))
        .await
        .expect("paused");
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_are_listed_as_ps_shows_them() {
    require_root!();
    let container = Box::sh("sleep 1000; true").started().await;
    let mut exec = process(&["sleep", "2000"]);
    exec["user"] = json!({ "uid": 1000, "gid": 1000 });
    container.create_process("e", exec, Stdio::new()).await;
    container.start("e").await.expect("starts");
    let list = loop {
        let list = container
            .client
            .list_processes(context(), &request(&container))
            .await;
        let list = list.expect("a list").processes;
        if list.len() == 3 {
            break list;
        }
        tokio::task::yield_now().await;
    };
    let find = |command: &str| {
        let mut all = list.iter();
        all.find(|entry| entry.command == command)
            .unwrap_or_else(|| panic!("{command}: {list:?}"))
    };
    let (first, child, exec) = (
        find("sh -c sleep 1000; true"),
        find("sleep 1000"),
        find("sleep 2000"),
    );
    assert_eq!((first.container_pid, first.container_parent_pid), (1, 0));
    assert_eq!(first.guest_pid, container.pid);
    assert_eq!(child.container_parent_pid, 1);
    assert_eq!(
        (exec.exec_id.as_str(), exec.uid, exec.container_parent_pid),
        ("e", 1000, 0)
    );
    assert!(first.started_at_ns > 0);
    container.delete().await;
}
