//! What a process is and may do.

use serde_json::json;

use crate::harness::{Box, require_root};

async fn stdout(container: Box) -> String {
    let outcome = container.run().await;
    assert_eq!(outcome.stderr, "");
    outcome.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn user_groups_umask_and_home() {
    require_root!();
    let user = json!({ "uid": 1000, "gid": 1000, "additionalGids": [5, 7], "umask": 0o027 });
    let container = Box::sh("id -u; id -g; id -G; umask; echo $HOME").set("/process/user", user);
    assert_eq!(
        stdout(container).await,
        "1000\n1000\n1000 5 7\n0027\n/home/me\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn resource_limits() {
    require_root!();
    let limits = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]);
    let container = Box::sh("ulimit -Sn; ulimit -Hn").set("/process/rlimits", limits);
    assert_eq!(stdout(container).await, "100\n200\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_are_exactly_those_of_the_spec() {
    require_root!();
    let list = json!(["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
    let capabilities = json!({
        "bounding": list, "effective": list, "permitted": list,
        "inheritable": ["CAP_NET_BIND_SERVICE"], "ambient": ["CAP_NET_BIND_SERVICE"],
    });
    let container = Box::new(&["grep", "-E", "^(Cap|NoNewPrivs)", "/proc/self/status"])
        .set("/process/capabilities", capabilities)
        .set("/process/noNewPrivileges", json!(true))
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    let expected = "CapInh:\t0000000000000400\nCapPrm:\t0000000000000400\n\
                    CapEff:\t0000000000000400\nCapBnd:\t0000000000000401\n\
                    CapAmb:\t0000000000000400\nNoNewPrivs:\t1\n";
    assert_eq!(stdout(container).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_capabilities_means_none() {
    require_root!();
    let container = Box::new(&["grep", "^CapEff", "/proc/self/status"]);
    assert_eq!(stdout(container).await, "CapEff:\t0000000000000000\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn working_directory_is_made() {
    require_root!();
    let container = Box::new(&["pwd"]).set("/process/cwd", json!("/made/for/it"));
    assert_eq!(stdout(container).await, "/made/for/it\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn oom_score_is_the_specs() {
    require_root!();
    let container =
        Box::new(&["cat", "/proc/self/oom_score_adj"]).set("/process/oomScoreAdj", json!(321));
    assert_eq!(stdout(container).await, "321\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_pipes_kill_as_they_should() {
    // The agent ignores SIGPIPE, and what is ignored stays so over execve.
    const SIGPIPE: u64 = 1 << (13 - 1);
    require_root!();
    let container = Box::new(&["grep", "^SigIgn", "/proc/self/status"]);
    let text = stdout(container).await;
    let ignored = text.trim().rsplit('\t').next().expect("a mask");
    let ignored = u64::from_str_radix(ignored, 16).expect("hexadecimal");
    assert_eq!(ignored & SIGPIPE, 0, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_stdio_is_open() {
    require_root!();
    let container = Box::sh("ls /proc/$$/fd; true");
    assert_eq!(stdout(container).await, "0\n1\n2\n");
}
