//! A container from create to delete.

use lazaret_protocol::agent::{ContainerRequest, SignalProcessRequest, Stdio};

use crate::harness::{Box, context, process, refused, require_root};

fn signal(container: &Box, signal: u32, all: bool) -> SignalProcessRequest {
    let mut request = SignalProcessRequest::new();
    request.container_id.clone_from(&container.id);
    request.signal = signal;
    request.all = all;
    request
}

fn container_request(container: &Box) -> ContainerRequest {
    let mut request = ContainerRequest::new();
    request.container_id.clone_from(&container.id);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_runs_before_start() {
    require_root!();
    let container = Box::sh("touch /ran");
    container.create(Stdio::new()).await.expect("create");
    assert!(!container.root().join("ran").exists());
    container.start("").await.expect("start");
    assert_eq!(container.wait("").await.exit_status, 0);
    assert!(container.root().join("ran").exists());
    let again = refused(container.start("").await);
    assert_eq!(again.0, ttrpc::Code::FAILED_PRECONDITION);
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn name_in_use_is_refused_and_unknown_ones_are_not_found() {
    require_root!();
    let container = Box::new(&["sleep", "1000"]).started().await;
    let twice = refused(container.create(Stdio::new()).await);
    assert_eq!(twice.0, ttrpc::Code::ALREADY_EXISTS);
    container.delete().await;
    let gone = refused(container.start("").await);
    assert_eq!(gone.0, ttrpc::Code::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_one_or_all() {
    require_root!();
    let trap = "trap 'exit 9' TERM; while :; do sleep 0.05; done";
    let container = Box::sh(trap).started().await;
    let request = signal(&container, 15, false);
    let sent = container.client.signal_process(context(), &request).await;
    sent.expect("sent");
    // The trap may not be set yet, in which case PID 1 ignores the signal.
    let status = loop {
        let waiting = container.wait("");
        let pause = tokio::time::sleep(std::time::Duration::from_millis(100));
        tokio::select! {
            reply = waiting => break reply.exit_status,
            () = pause => {
                let _ = container.client.signal_process(context(), &request).await;
            }
        }
    };
    assert_eq!(status, 9);
    container.delete().await;

    let container = Box::new(&["sleep", "1000"]).started().await;
    let request = signal(&container, 9, true);
    let sent = container.client.signal_process(context(), &request).await;
    sent.expect("sent");
    assert_eq!(container.wait("").await.exit_status, 137);
    let late = signal(&container, 15, false);
    let ended = container.client.signal_process(context(), &late);
    assert_eq!(refused(ended.await).0, ttrpc::Code::NOT_FOUND);
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn created_container_can_be_killed() {
    require_root!();
    let container = Box::new(&["true"]);
    container.create(Stdio::new()).await.expect("create");
    let request = signal(&container, 9, false);
    let sent = container.client.signal_process(context(), &request).await;
    sent.expect("sent");
    assert_eq!(container.wait("").await.exit_status, 137);
    let late = refused(container.start("").await);
    assert_eq!(late.0, ttrpc::Code::ABORTED);
    container.delete().await;
}

/// Wherever on its way a start is when the container is killed, the end is the signal's.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_meets_a_kill_gives_way_to_it() {
    require_root!();
    for _ in 0..20 {
        let container = Box::new(&["sleep", "1000"]);
        container.create(Stdio::new()).await.expect("create");
        let request = signal(&container, 9, false);
        let (started, killed) = tokio::join!(
            container.start(""),
            container.client.signal_process(context(), &request)
        );
        killed.expect("it is there");
        if started.is_err() {
            assert_eq!(refused(started).0, ttrpc::Code::ABORTED);
        }
        assert_eq!(container.wait("").await.exit_status, 137);
        container.delete().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_list_and_resume() {
    require_root!();
    let container = Box::new(&["sleep", "1000"]).started().await;
    container
        .create_process("e", process(&["sleep", "1000"]), Stdio::new())
        .await;
    container.start("e").await.expect("start");
    let request = container_request(&container);
    let client = &container.client;
    client
        .pause_container(context(), &request)
        .await
        .expect("pause");
    let listed = client
        .list_processes(context(), &request)
        .await
        .expect("list");
    let mut names: Vec<_> = listed
        .processes
        .iter()
        .map(|entry| &entry.exec_id)
        .collect();
    names.sort();
    assert_eq!(names, ["", "e"]);
    client
        .resume_container(context(), &request)
        .await
        .expect("resume");
    client
        .container_stats(context(), &request)
        .await
        .expect("stats");
    let running = refused(client.delete(context(), &container.request("e")).await);
    assert_eq!(running.0, ttrpc::Code::FAILED_PRECONDITION);
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_container_can_be_deleted() {
    require_root!();
    let container = Box::new(&["sleep", "1000"]).started().await;
    let request = container_request(&container);
    let paused = container.client.pause_container(context(), &request).await;
    paused.expect("pause");
    container.delete().await;
}

/// Wherever on its way a process is when the container ends, that is what is said.
#[tokio::test(flavor = "multi_thread")]
async fn processes_on_their_way_into_a_container_that_ends_hear_of_its_end() {
    require_root!();
    for _ in 0..5 {
        let container = Box::new(&["sleep", "1000"]).started().await;
        let kill = signal(&container, 9, true);
        let create = async |exec: &str| {
            let stdio = Stdio::new();
            container
                .try_create_process(exec, process(&["true"]), stdio)
                .await
        };
        let (a, b, c, killed) = tokio::join!(
            create("a"),
            create("b"),
            create("c"),
            container.client.signal_process(context(), &kill)
        );
        killed.expect("it runs");
        for made in [a, b, c] {
            if made.is_err() {
                assert_eq!(refused(made).0, ttrpc::Code::ABORTED);
            }
        }
        container.delete().await;
    }
}
