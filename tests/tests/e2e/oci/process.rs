//! The process and its namespaces as the configuration has them, seen from inside.
//! <https://github.com/opencontainers/runtime-spec/blob/v1.2.0/config.md#process>

use lazaret_tests::{Oci, start};
use serde_json::json;

/// What the container tells of itself, a line for each property.
const TELL: &str = r"
id -u; id -g; id -G; umask; pwd; echo $A $HOME
hostname; cat /proc/sys/kernel/domainname
ulimit -n; ulimit -Hn; cat /proc/sys/vm/max_map_count
grep processes /proc/self/limits | tr -s ' ' | cut -d ' ' -f 3; cat /proc/sys/fs/inotify/max_user_watches
cat /proc/self/oom_score_adj /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax
for name in CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs; do grep $name: /proc/self/status; done | cut -f 2
cut -d ' ' -f 19 /proc/self/stat
uname -m
tr -s ' ' </proc/self/timens_offsets | cut -d ' ' -f 1,2 | head -n 1
echo /proc/[0-9]*
";

#[test]
fn process_is_as_configured() {
    let lazaret = start!("oci-process");
    let oci = Oci::new(&lazaret);
    let bundle = oci.bundle_with(TELL, |config| {
        config["domainname"] = json!("example");
        config["hostname"] = json!("configured");
        let process = &mut config["process"];
        process["user"] =
            json!({ "uid": 100, "gid": 200, "additionalGids": [5, 6], "umask": 0o27 });
        process["cwd"] = json!("/new/directory");
        process["env"] = json!(["PATH=/bin:/usr/bin", "A=b"]);
        process["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "hard": 2_000_000, "soft": 100 }]);
        process["oomScoreAdj"] = json!(123);
        process["noNewPrivileges"] = json!(true);
        process["capabilities"] = json!({
            "bounding": ["CAP_KILL", "CAP_CHOWN"],
            "permitted": ["CAP_KILL"],
            "effective": ["CAP_KILL"],
            "inheritable": ["CAP_KILL"],
            "ambient": ["CAP_KILL"],
        });
        process["scheduler"] = json!({ "policy": "SCHED_OTHER", "nice": 7 });
        config["linux"]["sysctl"] = json!({ "net.core.somaxconn": "321", "kernel.msgmax": "4321" });
        config["linux"]["personality"] = json!({ "domain": "LINUX32" });
        config["linux"]["timeOffsets"] = json!({ "monotonic": { "secs": 5000 } });
        let namespaces = config["linux"]["namespaces"].as_array_mut();
        namespaces.expect("a list").push(json!({ "type": "time" }));
    });
    let run = oci.run(&bundle);
    run.success();
    let kill = "0000000000000020";
    let expected = [
        "100",
        "200",
        "200 5 6",
        "0027",
        "/new/directory",
        "b /home/tester",
        "configured",
        "example",
        "100",
        // More than the kernel allows by itself.
        "2000000",
        "1048576",
        "unlimited",
        "1048576",
        "123",
        "321",
        "4321",
        kill,
        kill,
        kill,
        "0000000000000021",
        kill,
        "1",
        "7",
        "i686",
        "monotonic 5000",
        // The shell is alone.
        "/proc/1",
    ];
    assert_eq!(run.lines(), expected, "{run}");
}

/// A container whose root is nobody: its ids are mapped, outside it owns nothing but its files.
#[test]
#[ignore = "long: make test-full"]
fn user_namespace_maps_ids() {
    let lazaret = start!("oci-userns");
    let oci = Oci::new(&lazaret);
    let script =
        "id -u; cat /proc/self/uid_map | tr -s ' '; touch /made; stat -c %u /made /not-mapped";
    let bundle = oci.bundle_with(script, |config| {
        let ids = json!([{ "containerID": 0, "hostID": 300_000, "size": 65536 }]);
        config["linux"]["uidMappings"] = ids.clone();
        config["linux"]["gidMappings"] = ids;
        let namespaces = config["linux"]["namespaces"].as_array_mut();
        namespaces.expect("a list").push(json!({ "type": "user" }));
    });
    let rootfs = format!("{}/rootfs", bundle.path);
    lazaret.sh(&format!(
        "chmod 755 {}; chown -hR 300000:300000 {rootfs}; touch {rootfs}/not-mapped",
        bundle.path
    ));
    oci.run(&bundle)
        .success()
        .stdout("0\n 0 300000 65536\n0\n65534\n");
    assert_eq!(lazaret.sh(&format!("stat -c %u {rootfs}/made")), "300000\n");
}

/// Filters hold by name and by argument, in the container's own process and in those added.
#[test]
fn seccomp_filters_calls() {
    let lazaret = start!("oci-seccomp");
    let oci = Oci::new(&lazaret);
    let script = "mkdir /tmp/a 2>&1 | grep -o 'Operation not permitted'
        chmod 700 /etc && echo allowed
        chmod 777 /etc 2>&1 | grep -o 'No data available'
        grep Seccomp: /proc/self/status | cut -f 2
        sleep 0; echo $?; kill -0 $$; echo $?";
    let bundle = oci.bundle_with(script, |config| {
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" },
                { "names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 61,
                  "args": [{ "index": 1, "value": 0o777, "op": "SCMP_CMP_EQ" }] },
                { "names": ["clock_nanosleep", "nanosleep"], "action": "SCMP_ACT_KILL_PROCESS" },
            ],
        });
    });
    oci.run(&bundle)
        .status(0)
        .stdout("Operation not permitted\nallowed\nNo data available\n2\n159\n0\n");
}
