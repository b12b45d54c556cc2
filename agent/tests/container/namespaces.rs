//! Namespaces, what is set in them, and kernel settings.

use serde_json::{Value, json};

use crate::harness::{Box, process, refused, require_root};

fn namespaces(extra: &[&str]) -> Value {
    let kinds = ["pid", "mount", "uts", "ipc", "network", "cgroup"];
    let all = kinds.iter().chain(extra);
    all.map(|kind| json!({ "type": kind })).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn network_is_the_guests_and_everything_else_is_new() {
    require_root!();
    let network = || Box::new(&["readlink", "/proc/self/ns/net"]).run();
    assert_eq!(network().await.stdout, network().await.stdout);
    for kind in ["pid", "mnt", "uts", "ipc", "cgroup"] {
        let (one, other) = (Box::new(&["sleep", "1000"]), Box::new(&["sleep", "1000"]));
        let (one, other) = (one.started().await, other.started().await);
        let link = |container: &Box| {
            let pid = container.pid;
            std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect(kind)
        };
        assert_ne!(link(&one), link(&other), "{kind}");
        one.delete().await;
        other.delete().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_are_offset_in_a_time_namespace() {
    require_root!();
    let offsets = json!({ "boottime": { "secs": 1_000_000_000, "nanosecs": 5 },
                          "monotonic": { "secs": 86_400 } });
    let container = Box::new(&["sleep", "1000"])
        .set("/linux/namespaces", namespaces(&["time"]))
        .set("/linux/timeOffsets", offsets)
        .started()
        .await;
    let script = "cut -d. -f1 /proc/uptime; cat /proc/self/timens_offsets";
    let outcome = container
        .exec("e", process(&["sh", "-c", script]))
        .await
        .expect("runs");
    let mut lines = outcome.stdout.lines();
    let uptime: u64 = lines
        .next()
        .and_then(|line| line.parse().ok())
        .expect("seconds");
    assert!(uptime > 1_000_000_000, "{uptime}");
    let words: Vec<_> = lines.flat_map(str::split_whitespace).collect();
    assert_eq!(
        words,
        ["monotonic", "86400", "0", "boottime", "1000000000", "5"]
    );
    container.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn domain_name_is_set() {
    require_root!();
    let container = Box::new(&["cat", "/proc/sys/kernel/domainname"]);
    let outcome = container
        .set("/domainname", json!("example.org"))
        .run()
        .await;
    assert_eq!(outcome.stdout, "example.org\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_settings_are_set_before_they_are_closed() {
    require_root!();
    let script = "cd /proc/sys; cat net/ipv4/ip_forward kernel/shmmni fs/mqueue/msg_max; \
                  echo 2 > kernel/shmmni";
    let settings = json!({ "net.ipv4.ip_forward": "1", "kernel/shmmni": "77",
                           "fs.mqueue.msg_max": "21" });
    let outcome = Box::sh(script).set("/linux/sysctl", settings).run().await;
    assert_eq!(outcome.stdout, "1\n77\n21\n");
    assert!(outcome.stderr.contains("Read-only"), "{}", outcome.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_whole_kernel_are_refused() {
    require_root!();
    let container = Box::new(&["true"]).set("/linux/sysctl", json!({ "vm.swappiness": "1" }));
    let (code, text) = refused(container.try_run().await);
    assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT);
    assert_eq!(
        text,
        "sysctl vm.swappiness is not in a separate kernel namespace"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn names_need_a_namespace_to_be_set_in() {
    require_root!();
    let kinds = json!([{ "type": "pid" }, { "type": "mount" }]);
    let container = Box::new(&["true"]).set("/linux/namespaces", kinds);
    let (code, text) = refused(container.try_run().await);
    assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT);
    assert!(text.contains("uts"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn namespace_of_another_container_can_be_joined() {
    require_root!();
    let first = Box::new(&["sleep", "1000"]).started().await;
    let mut kinds = namespaces(&[]);
    for kind in kinds.as_array_mut().into_iter().flatten() {
        if kind["type"] == "ipc" || kind["type"] == "pid" {
            kind["path"] = json!(format!(
                "/proc/{}/ns/{}",
                first.pid,
                kind["type"].as_str().unwrap_or_default()
            ));
        }
    }
    let script = "readlink /proc/self/ns/ipc; readlink /proc/1/ns/ipc; cat /proc/1/comm";
    let outcome = Box::sh(script).set("/linux/namespaces", kinds).run().await;
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{}", outcome.stderr);
    assert_eq!(lines[0], lines[1]);
    assert_eq!(lines[2], "sleep");
    first.delete().await;
}
