//! The life of a sandbox in all its ends: each leaves nothing behind.

use std::os::unix::fs::PermissionsExt;

use containerd_shim_protos::api::{
    PauseRequest, PidsRequest, ResumeRequest, StateRequest, StatsRequest, Status, UpdateTaskRequest,
};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use lazaret_runtime::sandbox::state::ContainerStatus;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use rustix::process::{Pid, Signal, kill_process};
use ttrpc::Code;

use crate::harness::{
    Box_, ID, context, create_request, delete_request, exec_request, kill_request, refusal,
    shut_down, start_request, wait_request,
};

const ENGINE: &str = "test";
const OWN: &str = "lazaret";

/// Runs the bundle's program to its end. Returns its exit status.
async fn run(sandbox: &mut Box_) -> u32 {
    let client = sandbox.running().await;
    let exit = client.wait(context(), &wait_request("")).await.unwrap();
    sandbox.take_down(&client).await;
    exit.exit_status
}

#[tokio::test]
async fn exit_status_is_the_processs_own() {
    for status in [0, 7, 255] {
        let mut sandbox = Box_::new("ok", ENGINE);
        sandbox.spec(&["exit", &status.to_string()], |_| {});
        assert_eq!(run(&mut sandbox).await, status);
    }
}

#[tokio::test]
async fn a_guest_that_does_not_power_off_is_stopped() {
    let mut sandbox = Box_::new("stays", ENGINE);
    sandbox.spec(&["exit", "0"], |_| {});
    assert_eq!(run(&mut sandbox).await, 0);
}

#[tokio::test]
async fn states_follow_the_container() {
    let mut sandbox = Box_::new("ok", ENGINE);
    sandbox.spec(&["sleep"], |_| {});
    let client = sandbox.client().await;
    let state = || {
        let request = StateRequest {
            id: ID.to_owned(),
            ..StateRequest::default()
        };
        let client = client.clone();
        async move { client.state(context(), &request).await.unwrap() }
    };
    let create = create_request(&sandbox.path("bundle"));
    client.create(context(), &create).await.unwrap();
    assert_eq!(state().await.status, Status::CREATED.into());
    let again = refusal(client.create(context(), &create).await);
    assert_eq!(again.0, Code::ALREADY_EXISTS);

    client.start(context(), &start_request("")).await.unwrap();
    assert_eq!(state().await.status, Status::RUNNING.into());
    let twice = refusal(client.start(context(), &start_request("")).await);
    assert_eq!(twice.0, Code::FAILED_PRECONDITION);
    let early = refusal(client.delete(context(), &delete_request("")).await);
    assert_eq!(early.0, Code::FAILED_PRECONDITION);

    let pause = PauseRequest {
        id: ID.to_owned(),
        ..PauseRequest::default()
    };
    client.pause(context(), &pause).await.unwrap();
    assert_eq!(state().await.status, Status::PAUSED.into());
    let resume = ResumeRequest {
        id: ID.to_owned(),
        ..ResumeRequest::default()
    };
    client.resume(context(), &resume).await.unwrap();
    assert_eq!(state().await.status, Status::RUNNING.into());

    sandbox.note_pids();
    client.kill(context(), &kill_request(15)).await.unwrap();
    let exit = client.wait(context(), &wait_request("")).await.unwrap();
    assert_eq!(exit.exit_status, 143);
    let stopped = state().await;
    assert_eq!(stopped.status, Status::STOPPED.into());
    assert_eq!(stopped.exit_status, 143);
    let late = refusal(client.kill(context(), &kill_request(15)).await);
    assert_eq!(late.0, Code::NOT_FOUND);

    client.delete(context(), &delete_request("")).await.unwrap();
    let gone = refusal(client.wait(context(), &wait_request("")).await);
    assert_eq!(gone.0, Code::NOT_FOUND);
    shut_down(&client).await;
    sandbox.nothing_is_left().await;
}

#[tokio::test]
async fn a_process_is_added_to_a_running_container() {
    let mut sandbox = Box_::new("ok", ENGINE);
    sandbox.spec(&["sleep"], |_| {});
    let client = sandbox.running().await;
    let exec = |args: &[&str]| exec_request("e1", args);
    client.exec(context(), &exec(&["exit", "3"])).await.unwrap();
    let again = refusal(client.exec(context(), &exec(&["exit", "3"])).await);
    assert_eq!(again.0, Code::ALREADY_EXISTS);
    client.start(context(), &start_request("e1")).await.unwrap();
    let exit = client.wait(context(), &wait_request("e1")).await.unwrap();
    assert_eq!(exit.exit_status, 3);
    client
        .delete(context(), &delete_request("e1"))
        .await
        .unwrap();

    client.exec(context(), &exec(&["missing"])).await.unwrap();
    let (code, text) = refusal(client.start(context(), &start_request("e1")).await);
    assert_eq!(code, Code::NOT_FOUND);
    assert!(text.contains("not found in $PATH"), "{text}");
    client
        .delete(context(), &delete_request("e1"))
        .await
        .unwrap();

    client.kill(context(), &kill_request(9)).await.unwrap();
    client.wait(context(), &wait_request("")).await.unwrap();
    sandbox.take_down(&client).await;
}

#[tokio::test]
async fn a_guest_that_remembers_many_files_is_made_to_forget() {
    let mut sandbox = Box_::new("ok", ENGINE);
    sandbox.spec(&["remember"], |_| {});
    assert_eq!(run(&mut sandbox).await, 0);
}

#[tokio::test]
async fn limits_change_and_use_is_measured() {
    let mut sandbox = Box_::new("ok", ENGINE);
    sandbox.spec(&["sleep"], |_| {});
    let client = sandbox.client().await;
    let create = create_request(&sandbox.path("bundle"));
    client.create(context(), &create).await.unwrap();
    let update = |resources: &str| UpdateTaskRequest {
        id: ID.to_owned(),
        resources: MessageField::some(Any {
            value: resources.as_bytes().to_vec(),
            ..Any::default()
        }),
        ..UpdateTaskRequest::default()
    };
    let limit = |mib: u64| format!(r#"{{"memory":{{"limit":{}}}}}"#, mib * 1024 * 1024);
    client
        .update(context(), &update(&limit(100)))
        .await
        .unwrap();
    for (resources, expected, refused) in [
        (
            limit(129),
            Code::INVALID_ARGUMENT,
            "129 MiB is more than the 128 MiB",
        ),
        ("{".to_owned(), Code::INVALID_ARGUMENT, "linux.resources"),
        (
            r#"{"cpu":{"cpus":"0"}}"#.to_owned(),
            Code::INTERNAL,
            "cpuset.cpus is a limit of the host's cgroup",
        ),
    ] {
        let (code, text) = refusal(client.update(context(), &update(&resources)).await);
        assert_eq!(code, expected);
        assert!(text.contains(refused), "{text}");
    }
    let stats = StatsRequest {
        id: ID.to_owned(),
        ..StatsRequest::default()
    };
    let stats = client
        .stats(context(), &stats)
        .await
        .unwrap()
        .stats
        .unwrap();
    assert_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics");
    let metrics = Metrics::parse_from_bytes(&stats.value).unwrap();
    assert_eq!(metrics.pids.current, 3);
}

#[tokio::test]
async fn a_command_that_cannot_be_executed_is_told_by_its_code() {
    for (program, expected) in [
        ("missing", Code::NOT_FOUND),
        ("denied", Code::PERMISSION_DENIED),
    ] {
        let mut sandbox = Box_::new("ok", ENGINE);
        sandbox.spec(&[program], |_| {});
        let client = sandbox.created().await;
        let (code, text) = refusal(client.start(context(), &start_request("")).await);
        assert_eq!(code, expected, "{text}");
        sandbox.take_down(&client).await;
    }
}

#[tokio::test]
async fn a_microvm_that_does_not_come_up_says_why() {
    for (scenario, expected) in [
        ("refuse", "could not be started: no such kernel"),
        ("die", "virtual machine monitor"),
        ("nonsense", "broke the control protocol"),
        ("silent", "did not answer within 2 s"),
        ("deaf", "did not answer within 2 s"),
        ("gone", "agent in the guest has gone"),
        ("wrong-version", "protocol 99"),
        ("panic", "the guest kernel panicked"),
        ("cannot-create", "linux.seccomp: no such  thing"),
    ] {
        let mut sandbox = Box_::new(scenario, ENGINE);
        sandbox.spec(&["exit", "0"], |_| {});
        let client = sandbox.client().await;
        let create = create_request(&sandbox.path("bundle"));
        let (_, text) = refusal(client.create(context(), &create).await);
        assert!(text.contains(expected), "{scenario}: {text}");
        sandbox.note_pids();
        shut_down(&client).await;
        sandbox.nothing_is_left().await;
    }
}

#[tokio::test]
async fn a_vmm_that_does_not_take_a_disk_is_ended() {
    let mut sandbox = Box_::new("takes-no-disk", ENGINE);
    let image = sandbox.path("image");
    std::fs::write(&image, "").unwrap();
    sandbox.spec(&["exit", "0"], |spec| {
        let disk = serde_json::json!({
            "type": "ext4", "source": image, "destination": "/disk",
        });
        spec["mounts"].as_array_mut().unwrap().push(disk);
    });
    let client = sandbox.client().await;
    let create = create_request(&sandbox.path("bundle"));
    let (_, text) = refusal(client.create(context(), &create).await);
    let expected = "image cannot be connected: the virtual machine monitor does not answer";
    assert!(text.contains(expected), "{text}");
    sandbox
        .wait_for("the microVM's end", || {
            sandbox.state().unwrap().vmm_pid.is_none()
        })
        .await;
    assert!(sandbox.state().unwrap().containers.is_empty());
    let image = std::fs::File::open(&image).unwrap();
    image.try_lock().unwrap();
    assert!(sandbox.sandbox_log().contains(expected));
    sandbox.note_pids();
    shut_down(&client).await;
    sandbox.nothing_is_left().await;
}

#[tokio::test]
async fn a_plan_that_cannot_be_honoured_is_refused_by_name() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 4] = [
        (
            |spec| spec["annotations"]["dev.lazaret.memory-mib"] = "63".into(),
            "63 MiB",
        ),
        (
            |spec| spec["annotations"]["dev.lazaret.memory-mib"] = "99999999".into(),
            "this host has",
        ),
        (
            |spec| spec["mounts"][0]["source"] = "/no/such/path".into(),
            "/no/such/path does not exist",
        ),
        (
            |spec| spec["mounts"][0]["source"] = "/dev/ptmx".into(),
            "is a character device",
        ),
    ];
    for (change, expected) in cases {
        let mut sandbox = Box_::new("ok", ENGINE);
        sandbox.spec(&["exit", "0"], change);
        let client = sandbox.client().await;
        let create = create_request(&sandbox.path("bundle"));
        let (code, text) = refusal(client.create(context(), &create).await);
        assert!(text.contains(expected), "{text}");
        assert!(matches!(code, Code::INVALID_ARGUMENT | Code::UNAVAILABLE));
        shut_down(&client).await;
        sandbox.nothing_is_left().await;
    }
}

#[tokio::test]
async fn a_microvm_that_ends_takes_its_containers_with_it() {
    for (program, expected) in [
        ("kill-vmm", "virtual machine monitor"),
        ("panic", "the guest kernel panicked"),
        ("leave", "the agent in the guest has gone"),
    ] {
        let mut sandbox = Box_::new("ok", ENGINE);
        sandbox.spec(&[program], |_| {});
        let client = sandbox.created().await;
        // It may be too late for an answer.
        let _ = client.start(context(), &start_request("")).await;
        let exit = client.wait(context(), &wait_request("")).await.unwrap();
        assert!(matches!(exit.exit_status, 125 | 137));
        sandbox
            .wait_for("the state to be written", || {
                let state = sandbox.state().unwrap();
                state.vmm_pid.is_none() && state.containers[ID].status == ContainerStatus::Stopped
            })
            .await;
        let state = sandbox.state().unwrap().containers[ID].clone();
        if exit.exit_status == 137 {
            let reason = state.reason.unwrap_or_default();
            assert!(reason.contains(expected), "{program}: {reason}");
        }
        sandbox.take_down(&client).await;
    }
}

#[tokio::test]
async fn a_vmm_killed_from_outside_leaves_a_stopped_container() {
    let mut sandbox = Box_::new("ok", ENGINE);
    sandbox.spec(&["sleep"], |_| {});
    let client = sandbox.running().await;
    let vmm = sandbox.state().unwrap().vmm_pid.unwrap();
    kill_process(Pid::from_raw(vmm.cast_signed()).unwrap(), Signal::KILL).unwrap();
    let exit = client.wait(context(), &wait_request("")).await.unwrap();
    assert_eq!(exit.exit_status, 137);
    let state = sandbox.state().unwrap().containers[ID].clone();
    let reason = state.reason.unwrap();
    assert!(reason.contains("killed by signal 9"), "{reason}");
    sandbox.take_down(&client).await;
}

#[tokio::test]
async fn a_killed_sandbox_process_is_cleaned_up_after() {
    let mut sandbox = Box_::new("ok", ENGINE);
    sandbox.spec(&["sleep"], |_| {});
    let _client = sandbox.running().await;
    let pid = sandbox.state().unwrap().pid;
    assert!(sandbox.store.reap_dead().unwrap().is_empty());
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    sandbox
        .wait_for("the death to be noticed", || {
            sandbox.state().unwrap().containers[ID].status == ContainerStatus::Stopped
        })
        .await;
    // A process that another test has just forked may hold the lock until it executes.
    let mut reaped = Vec::new();
    sandbox
        .wait_for("its remains to be cleaned up", || {
            reaped = sandbox.store.reap_dead().unwrap();
            !reaped.is_empty()
        })
        .await;
    let state = reaped[0].1.as_ref().unwrap();
    assert_eq!(state.containers[ID].exit_status, Some(137));
    sandbox.nothing_is_left().await;
}

#[tokio::test]
async fn a_name_in_use_is_refused_and_a_dead_ones_is_not() {
    let mut sandbox = Box_::new("ok", ENGINE);
    sandbox.spec(&["sleep"], |_| {});
    let _client = sandbox.created().await;
    let second = sandbox.shim("start");
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(text.contains("box is already there"), "{text}");
    let pid = sandbox.state().unwrap().pid;
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    sandbox
        .wait_for("the lock to be free", || {
            sandbox.shim("start").status.success()
        })
        .await;
}

#[tokio::test]
async fn delete_ends_whatever_is_there() {
    let mut sandbox = Box_::new("ok", ENGINE);
    sandbox.spec(&["sleep"], |_| {});
    let _client = sandbox.created().await;
    let output = sandbox.shim("delete");
    assert!(output.status.success(), "{output:?}");
    sandbox.nothing_is_left().await;
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_start_leaves_nothing() {
    for scenario in ["silent", "deaf", "slow-create"] {
        let mut sandbox = Box_::new(scenario, OWN);
        sandbox.spec(&["sleep"], |_| {});
        let client = sandbox.client().await;
        let create = create_request(&sandbox.path("bundle"));
        let request = client.create(context(), &create);
        let left = tokio::time::timeout(std::time::Duration::from_millis(300), request).await;
        assert!(left.is_err(), "{scenario}");
        sandbox.note_pids();
        drop(client);
        sandbox.nothing_is_left().await;
    }
}

#[tokio::test]
async fn a_termination_signal_ends_it_in_order() {
    let mut sandbox = Box_::new("ok", ENGINE);
    sandbox.spec(&["sleep"], |_| {});
    let client = sandbox.running().await;
    let pid = sandbox.state().unwrap().pid;
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::TERM).unwrap();
    let exit = client.wait(context(), &wait_request("")).await.unwrap();
    assert_eq!(exit.exit_status, 137);
    drop(client);
    sandbox
        .wait_for("its end", || sandbox.store.reap_dead().unwrap().len() == 1)
        .await;
    sandbox.nothing_is_left().await;
}

#[tokio::test]
async fn a_detached_container_ends_by_itself_and_its_result_is_handed_on() {
    let mut sandbox = Box_::new("ok", OWN);
    sandbox.spec(&["exit", "7"], |spec| {
        spec["annotations"]["dev.lazaret.auto-shutdown"] = "true".into();
    });
    let told = sandbox.path("told");
    let state = sandbox.sandbox_dir().join("state.json");
    let script = format!(
        "#!/bin/sh\necho \"$@\" >{0}.new\ncat {1} >>{0}.new\nmv {0}.new {0}\n",
        told.display(),
        state.display()
    );
    std::fs::write(sandbox.path("exit-command"), script).unwrap();
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(sandbox.path("exit-command"), mode).unwrap();
    let client = sandbox.client().await;
    let create = create_request(&sandbox.path("bundle"));
    client.create(context(), &create).await.unwrap();
    client.start(context(), &start_request("")).await.unwrap();
    drop(client);
    sandbox.wait_for("the exit command", || told.exists()).await;
    let text = std::fs::read_to_string(&told).unwrap();
    assert!(text.starts_with("cleanup box\n"), "{text}");
    assert!(text.contains("\"exit_status\":7"), "{text}");
    sandbox
        .wait_for("its end", || sandbox.store.reap_dead().unwrap().len() == 1)
        .await;
    sandbox.nothing_is_left().await;
}

/// The sandbox process has never had much.
fn assert_little_memory(sandbox: &Box_) {
    let pid = sandbox.state().unwrap().pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let kib: u64 = peak
        .split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!(kib < 64 * 1024, "{peak}");
}

#[tokio::test]
async fn an_answer_that_is_too_long_ends_the_microvm() {
    let mut sandbox = Box_::new("swollen", ENGINE);
    sandbox.spec(&["sleep"], |_| {});
    let client = sandbox.running().await;
    let request = PidsRequest {
        id: ID.to_owned(),
        ..PidsRequest::default()
    };
    let listed = client.pids(context(), &request).await;
    let (_, text) = refusal(listed.map(|reply| reply.processes.len()));
    let expected = "bytes, more than the 65536 allowed";
    assert!(text.contains(expected), "{text}");
    let exit = client.wait(context(), &wait_request("")).await.unwrap();
    assert_eq!(exit.exit_status, 137);
    let reason = sandbox.state().unwrap().containers[ID].clone().reason;
    assert!(reason.unwrap().contains(expected));
    assert_little_memory(&sandbox);
    sandbox.take_down(&client).await;
}

#[tokio::test]
async fn a_flooding_guest_is_bounded() {
    let mut sandbox = Box_::new("flood", ENGINE);
    sandbox.spec(&["sleep"], |_| {});
    let client = sandbox.running().await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    client.kill(context(), &kill_request(9)).await.unwrap();
    let exit = client.wait(context(), &wait_request("")).await.unwrap();
    assert_eq!(exit.exit_status, 137);
    let log = std::fs::metadata(sandbox.sandbox_dir().join("sandbox.log")).unwrap();
    assert!(log.len() <= 1024 * 1024, "{}", log.len());
    assert_little_memory(&sandbox);
    sandbox.take_down(&client).await;
}
