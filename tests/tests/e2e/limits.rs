//! `--memory` and `--cpus`: seen from inside the microVM and from outside, and enforced.

use lazaret_tests::start;

#[test]
fn memory_and_cpus_are_seen_inside_and_outside() {
    let lazaret = start!("limits");
    let name = lazaret.container("a");
    lazaret.detached(
        &name,
        [
            "--memory", "200m", "--cpus", "2", "busybox", "sleep", "1000",
        ],
    );
    let seen = lazaret.lazaret(["exec", &name, "sh", "-c",
        "grep -c ^processor /proc/cpuinfo; cat /sys/fs/cgroup/memory.max; cat /sys/fs/cgroup/cpu.max"]);
    assert_eq!(seen.success().lines(), ["2", "209715200", "200000 100000"]);

    let inspected = lazaret.lazaret(["inspect", &name]).success().json();
    assert_eq!(inspected[0]["HostConfig"]["Memory"], 209_715_200);
    assert_eq!(inspected[0]["HostConfig"]["NanoCpus"], 2_000_000_000_u64);

    let id = inspected[0]["Id"].as_str().expect("Id");
    let outside = lazaret.sh(&format!(
        "cd /sys/fs/cgroup/lazaret/{id} && cat cpu.max && cat memory.max && cat cgroup.procs | wc -l"
    ));
    let outside: Vec<_> = outside.lines().collect();
    assert_ne!(
        outside[0], "max 100000",
        "the microVM's processor time is limited"
    );
    let memory: u64 = outside[1].parse().expect("the microVM's memory is limited");
    assert!((209_715_200..2 * 209_715_200).contains(&memory), "{memory}");
    assert_eq!(
        outside[2], "1",
        "the virtual machine monitor is in the cgroup, alone"
    );
    lazaret.lazaret(["rm", "-f", &name]).success();
}

#[test]
fn container_that_needs_more_memory_than_it_may_is_killed() {
    let lazaret = start!("oom");
    let probe = lazaret.probe();
    let name = lazaret.container("a");
    let volume = format!("{probe}:/probe:ro");
    let run = |mib: &str| {
        lazaret.run([
            "--rm", "--name", &name, "-m", "128m", "-v", &volume, "busybox", "/probe", "memory",
            mib,
        ])
    };
    run("90").success().stdout("90 MiB\n");
    run("200").status(137);
}
