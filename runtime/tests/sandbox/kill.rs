//! SIGKILL is certain, whatever the agent makes of it.

use std::os::fd::AsFd;
use std::time::Duration;

use ttrpc::Code;
use ttrpc::context::{Context, with_duration};

use crate::descriptors::{null, run_with};
use crate::engine::{engine, exit_code, result_is_left};
use crate::harness::{
    Box_, ID, context, delete_request, exec_request, kill_request, refusal, start_request,
    wait_request,
};

/// For what takes as long as an agent is given to kill.
fn patient() -> Context {
    with_duration(Duration::from_secs(90))
}

async fn a_container_ends_though_its_agent_does_not_kill(program: &'static str) {
    let mut sandbox = Box_::new("ok", "test");
    sandbox.spec(&[program], |_| {});
    let client = sandbox.running().await;
    let killed = client.kill(context(), &kill_request(9)).await;
    if program == "deny-signals" {
        assert_eq!(refusal(killed).0, Code::NOT_FOUND);
    } else {
        killed.unwrap();
    }
    let exit = client.wait(patient(), &wait_request("")).await.unwrap();
    assert_eq!(exit.exit_status, 137);
    let reason = sandbox.state().unwrap().containers[ID].reason.clone();
    let reason = reason.unwrap_or_default();
    assert!(reason.contains("did not kill"), "{program}: {reason}");
    sandbox.take_down(&client).await;
}

#[tokio::test]
async fn agents_that_do_not_kill_end_with_their_containers() {
    tokio::join!(
        a_container_ends_though_its_agent_does_not_kill("ignore-signals"),
        a_container_ends_though_its_agent_does_not_kill("refuse-signals"),
        a_container_ends_though_its_agent_does_not_kill("deny-signals"),
    );
}

#[tokio::test]
async fn a_process_that_does_not_die_is_given_up_without_its_container() {
    let mut sandbox = Box_::new("ok", "test");
    sandbox.spec(&["sleep"], |_| {});
    let client = sandbox.running().await;
    let exec = exec_request("stuck", &["ignore-signals"]);
    client.exec(context(), &exec).await.unwrap();
    let start = start_request("stuck");
    client.start(context(), &start).await.unwrap();
    let mut kill = kill_request(9);
    kill.exec_id = "stuck".to_owned();
    client.kill(context(), &kill).await.unwrap();
    let wait = wait_request("stuck");
    let exit = client.wait(patient(), &wait).await.unwrap();
    assert_eq!(exit.exit_status, 137);
    let delete = delete_request("stuck");
    client.delete(context(), &delete).await.unwrap();

    client.kill(context(), &kill_request(15)).await.unwrap();
    let exit = client.wait(context(), &wait_request("")).await.unwrap();
    assert_eq!(exit.exit_status, 128 + 15);
    sandbox.take_down(&client).await;
}

#[tokio::test]
async fn a_killed_process_ends_though_nobody_takes_its_output() {
    let mut sandbox = engine("ok", &["ignore-signals", "write"], |_| {});
    let (reader, writer) = std::io::pipe().unwrap();
    let null = null();
    let fds = [null.as_fd(), writer.as_fd(), null.as_fd()];
    let (client, pid) = run_with(&mut sandbox, &fds).await;
    client.kill(context(), &kill_request(9)).await.unwrap();
    assert_eq!(exit_code(pid).await, 137);
    drop(reader);
    let state = sandbox.state().unwrap();
    assert_eq!(state.containers[ID].reason, None, "it was its own end");
    result_is_left(&sandbox, 137).await;
}
