//! Limits: in the guest's cgroup, in the host's, and felt.
//! <https://github.com/opencontainers/runtime-spec/blob/v1.2.0/config-linux.md#control-groups>

use lazaret_tests::{Oci, start};
use serde_json::json;

#[test]
fn limits_hold_inside_and_outside() {
    let lazaret = start!("oci-limits");
    let oci = Oci::new(&lazaret);
    let script = "cd /sys/fs/cgroup; cat memory.max memory.low memory.swap.max pids.max cpu.weight cpu.max memory.high
        for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done 2>&1 | grep -q 'fork' && echo few
        exec sleep 1000";
    let path = format!("/lazaret/{}", lazaret.container("limits"));
    let bundle = oci.bundle_with(script, |config| {
        config["linux"]["cgroupsPath"] = json!(path);
        config["linux"]["resources"] = json!({
            "memory": { "limit": 100_663_296, "reservation": 4_194_304, "swap": 201_326_592 },
            "pids": { "limit": 8 },
            "cpu": { "shares": 512, "quota": 50_000, "period": 100_000 },
            "unified": { "memory.high": "83886080" },
        });
    });
    oci.create(&bundle).success();
    let outside = |file: &str| lazaret.sh(&format!("cat /sys/fs/cgroup{path}/{file}"));
    // The process that engines look at is there, and so is the microVM.
    let pid = oci.read(&bundle, "pid");
    assert!(outside("cgroup.procs").lines().any(|line| line == pid));
    assert_eq!(outside("cpu.max"), "50000 100000\n");
    let memory: u64 = outside("memory.max").trim().parse().expect("a limit");
    assert!(memory > 100_663_296, "{memory} has no room for the microVM");

    oci.call(["start", &bundle.id]).success();
    let expected = "100663296\n4194304\n100663296\n8\n20\n50000 100000\n83886080\nfew\n";
    lazaret.sh(&format!(
        "until grep -q few {0}/out; do sleep 0.1; done",
        bundle.path
    ));
    assert_eq!(oci.read(&bundle, "out"), expected);
    oci.call(["kill", &bundle.id, "KILL"]).success();
    oci.until_stopped(&bundle);
    oci.call(["delete", &bundle.id]).success();
    lazaret.sh(&format!("! [ -e /sys/fs/cgroup{path} ]"));
}

#[test]
#[ignore = "long: make test-full"]
fn memory_beyond_the_limit_is_the_end() {
    let lazaret = start!("oci-oom");
    let oci = Oci::new(&lazaret);
    let probe = lazaret.probe();
    let bundle = oci.bundle_with("", |config| {
        config["process"]["args"] = json!(["/probe", "memory", "200"]);
        config["linux"]["resources"] =
            json!({ "memory": { "limit": 67_108_864, "swap": 67_108_864 } });
    });
    lazaret.sh(&format!("cp {probe} {}/rootfs/", bundle.path));
    oci.run(&bundle).status(137);
}
