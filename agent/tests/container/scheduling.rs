//! Scheduler, I/O priority, processors and personality.

use serde_json::{Value, json};

use crate::harness::{Box, process, refused, require_root};

/// Nice value, real-time priority and policy, as /proc/self/stat has them.
async fn policy(scheduler: Value) -> String {
    let container = Box::new(&["cut", "-d ", "-f19,40,41", "/proc/self/stat"]);
    let outcome = container.set("/process/scheduler", scheduler).run().await;
    outcome.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn scheduler_is_set() {
    require_root!();
    let batch = json!({ "policy": "SCHED_BATCH", "nice": 7 });
    assert_eq!(policy(batch).await, "7 0 3\n");
    let idle = policy(json!({ "policy": "SCHED_IDLE" })).await;
    assert!(idle.ends_with(" 0 5\n"), "{idle}");
    let fifo = json!({ "policy": "SCHED_FIFO", "priority": 10 });
    let fifo = policy(fifo).await;
    assert!(fifo.ends_with(" 10 1\n"), "{fifo}");
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_scheduler_is_named() {
    require_root!();
    let scheduler = json!({ "policy": "SCHED_FIFO", "priority": 1000 });
    let container = Box::new(&["true"]).set("/process/scheduler", scheduler);
    let (_, text) = refused(container.try_run().await);
    assert_eq!(text, "set process.scheduler SCHED_FIFO: invalid argument");
}

#[tokio::test(flavor = "multi_thread")]
async fn io_priority_is_set() {
    require_root!();
    let priority = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 4 });
    let container = Box::new(&["sleep", "1000"]).set("/process/ioPriority", priority);
    let container = container.started().await;
    // SAFETY: three numbers; the call touches no memory.
    #[expect(unsafe_code, reason = "ioprio_get has no safe wrapper")]
    let priority = unsafe { libc::syscall(libc::SYS_ioprio_get, 1, container.pid) };
    assert_eq!(priority, (3 << 13) | 4);
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn personality_is_that_of_the_spec_for_execs_too() {
    require_root!();
    let container = Box::new(&["sleep", "1000"])
        .set("/linux/personality", json!({ "domain": "LINUX32" }))
        .started()
        .await;
    let outcome = container
        .exec("e", process(&["uname", "-m"]))
        .await
        .expect("runs");
    assert_eq!(outcome.stdout, "i686\n");
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_runs_on_the_processors_it_is_given() {
    require_root!();
    let container = Box::new(&["sleep", "1000"])
        .set("/process/execCPUAffinity", json!({ "final": "0" }))
        .started()
        .await;
    let allowed = ["grep", "Cpus_allowed_list", "/proc/self/status"];
    let outcome = container.exec("a", process(&allowed)).await.expect("runs");
    assert_eq!(outcome.stdout, "Cpus_allowed_list:\t0\n");
    // The process's own setting beats the container's; without an end it is reset.
    let mut own = process(&allowed);
    own["execCPUAffinity"] = json!({ "initial": "0" });
    let outcome = container.exec("b", own).await.expect("runs");
    container.delete().await;
    assert_eq!(outcome.stdout, Box::new(&allowed).run().await.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn oom_score_is_that_of_the_spec_for_execs_too() {
    require_root!();
    let container = Box::new(&["sleep", "1000"]).set("/process/oomScoreAdj", json!(321));
    let container = container.started().await;
    let score = ["cat", "/proc/1/oom_score_adj", "/proc/self/oom_score_adj"];
    let outcome = container.exec("a", process(&score)).await.expect("runs");
    assert_eq!(outcome.stdout, "321\n321\n");
    let mut own = process(&score);
    own["oomScoreAdj"] = json!(400);
    let outcome = container.exec("b", own).await.expect("runs");
    assert_eq!(outcome.stdout, "321\n400\n");
    container.delete().await;
}
