//! Sandboxes of `lazaret-oci`: a process that stands for its container.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use containerd_shim_protos::api::StateRequest;
use lazaret_runtime::sandbox::id::SandboxId;
use lazaret_runtime::sandbox::state::{ContainerStatus, process_start_time};
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid,
};
use serde_json::{Value, json};

use crate::harness::{Box_, ID, context, create_request, refusal, start_request, wait_request};

const OCI: &str = "oci";

/// A sandbox whose process this test will reap, as an engine's monitor does.
pub fn engine(scenario: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> Box_ {
    set_child_subreaper(Some(getpid())).unwrap();
    let sandbox = Box_::new(scenario, OCI);
    sandbox.spec(args, |spec| {
        spec["linux"]["namespaces"] = json!([{ "type": "network" }]);
        change(spec);
    });
    sandbox
}

pub fn pid(sandbox: &Box_) -> Pid {
    Pid::from_raw(sandbox.state().unwrap().pid.cast_signed()).unwrap()
}

/// Waits for a sandbox process's end. Returns its exit status.
pub async fn exit_code(pid: Pid) -> i32 {
    let reaped = tokio::task::spawn_blocking(move || waitpid(Some(pid), WaitOptions::empty()));
    let reaped = tokio::time::timeout(Duration::from_secs(30), reaped).await;
    let (_, status) = reaped.unwrap().unwrap().unwrap().unwrap();
    status.exit_status().unwrap()
}

/// The container's result stays until somebody takes it, and nothing else.
pub async fn result_is_left(sandbox: &Box_, status: u32) {
    let state = sandbox.state().unwrap();
    assert_eq!(state.vmm_pid, None);
    assert_eq!(state.containers[ID].status, ContainerStatus::Stopped);
    assert_eq!(state.containers[ID].exit_status, Some(status));
    let id = SandboxId::new(ID).unwrap();
    // A process that another test has just forked may hold the lock until it executes.
    sandbox
        .wait_for("its remains to be removed", || {
            sandbox.store.cleanup(&id).is_ok()
        })
        .await;
    sandbox.nothing_is_left().await;
}

#[tokio::test]
async fn the_process_stays_without_clients_and_ends_as_its_container_does() {
    for (program, status) in [(&["exit", "7"][..], 7), (&["kill-vmm"], 137)] {
        let mut sandbox = engine("ok", program, |_| {});
        let client = sandbox.created().await;
        let pid = pid(&sandbox);
        let request = StateRequest {
            id: ID.to_owned(),
            ..StateRequest::default()
        };
        let told = client.state(context(), &request).await.unwrap();
        assert_eq!(told.pid, pid.as_raw_nonzero().get().cast_unsigned());
        drop(client);
        // It has time to notice that it is alone.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let client = sandbox.connect().await;
        // The microVM's end may come before the answer.
        let _ = client.start(context(), &start_request("")).await;
        if let Ok(exit) = client.wait(context(), &wait_request("")).await {
            assert_eq!(exit.exit_status, status);
        }
        assert_eq!(exit_code(pid).await, status.cast_signed());
        result_is_left(&sandbox, status).await;
    }
}

/// `podman cp` enters the mount namespace of this process and writes below `/`.
#[tokio::test]
async fn its_mount_namespace_holds_the_containers_root_and_nothing_of_the_host() {
    let mut sandbox = engine("ok", &["exit", "0"], |_| {});
    fs::write(sandbox.path("bundle/rootfs/mark"), "").unwrap();
    let client = sandbox.created().await;
    let pid = pid(&sandbox);
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    let root: Vec<_> = fs::read_dir(format!("{proc}/root/"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(root, ["mark"]);
    let mounts = fs::read_to_string(format!("{proc}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    client.start(context(), &start_request("")).await.unwrap();
    drop(client);
    assert_eq!(exit_code(pid).await, 0);
    result_is_left(&sandbox, 0).await;
}

#[tokio::test]
async fn a_program_that_is_not_there_ends_it_too() {
    let mut sandbox = engine("ok", &["missing"], |_| {});
    let client = sandbox.created().await;
    let pid = pid(&sandbox);
    let (_, text) = refusal(client.start(context(), &start_request("")).await);
    assert!(text.contains("not found in $PATH"), "{text}");
    drop(client);
    assert_eq!(exit_code(pid).await, 127);
    result_is_left(&sandbox, 127).await;
}

#[tokio::test]
async fn signals_to_it_are_the_containers() {
    // SIGTERM, SIGUSR1, SIGRTMIN + 3.
    for number in [15, 10, 37] {
        let mut sandbox = engine("ok", &["sleep"], |_| {});
        let client = sandbox.created().await;
        client.start(context(), &start_request("")).await.unwrap();
        let pid = pid(&sandbox);
        let kill = std::process::Command::new("kill")
            .arg(format!("-{number}"))
            .arg(pid.as_raw_nonzero().to_string())
            .status();
        assert!(kill.unwrap().success());
        assert_eq!(exit_code(pid).await, 128 + number);
        result_is_left(&sandbox, (128 + number).cast_unsigned()).await;
    }
}

#[tokio::test]
async fn a_kill_takes_all_of_it() {
    let mut sandbox = engine("ok", &["sleep"], |_| {});
    let client = sandbox.created().await;
    client.start(context(), &start_request("")).await.unwrap();
    let vmm = sandbox.state().unwrap().vmm_pid.unwrap();
    kill_process(pid(&sandbox), Signal::KILL).unwrap();
    sandbox
        .wait_for("the VMM to end", || process_start_time(vmm).is_none())
        .await;
    sandbox
        .wait_for("the death to be noticed", || {
            sandbox.state().unwrap().containers[ID].status == ContainerStatus::Stopped
        })
        .await;
    assert_eq!(
        sandbox.state().unwrap().containers[ID].exit_status,
        Some(137)
    );
    sandbox
        .wait_for("its remains to be removed", || {
            sandbox.store.reap_dead().unwrap().len() == 1
        })
        .await;
    sandbox.nothing_is_left().await;
}

#[tokio::test]
async fn a_create_that_ends_early_leaves_nothing() {
    for scenario in ["slow-create", "silent"] {
        let mut sandbox = engine(scenario, &["sleep"], |_| {});
        let client = sandbox.client().await;
        let create = create_request(&sandbox.path("bundle"));
        let request = client.create(context(), &create);
        let left = tokio::time::timeout(Duration::from_millis(300), request).await;
        assert!(left.is_err(), "{scenario}");
        sandbox.note_pids();
        drop(client);
        sandbox.nothing_is_left().await;
    }
}

#[tokio::test]
async fn hooks_of_create_see_the_containers_mounts() {
    for (script, fails) in [
        ("cat >told; test -e $ROOT", false),
        ("echo no; exit 3", true),
    ] {
        let mut sandbox = engine("ok", &["exit", "0"], |_| {});
        let hook = sandbox.path("hook");
        fs::write(&hook, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        let root = sandbox.sandbox_dir().join("shared/box/mounts/0/file");
        sandbox.change_spec(|spec| {
            let root = format!("ROOT={}", root.display());
            spec["hooks"] = json!({
                "createContainer": [{ "path": hook, "env": [root, "PATH=/usr/bin:/bin"] }],
                "poststop": [{ "path": "/bin/false" }],
            });
        });
        if fails {
            let client = sandbox.client().await;
            let create = create_request(&sandbox.path("bundle"));
            let (_, text) = refusal(client.create(context(), &create).await);
            assert!(text.contains("createContainer hook #0"), "{text}");
            assert!(text.contains("output: no"), "{text}");
            sandbox.note_pids();
            drop(client);
            sandbox.nothing_is_left().await;
            continue;
        }
        let client = sandbox.created().await;
        let pid = pid(&sandbox);
        let told = fs::read_to_string(sandbox.path("bundle/told")).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(
            (&told["id"], &told["status"]),
            (&json!(ID), &json!("creating"))
        );
        assert_eq!(told["pid"], pid.as_raw_nonzero().get());
        client.start(context(), &start_request("")).await.unwrap();
        drop(client);
        assert_eq!(exit_code(pid).await, 0);
        result_is_left(&sandbox, 0).await;
    }
}
