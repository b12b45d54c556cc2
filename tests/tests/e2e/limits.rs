//! `--memory` and `--cpus`: seen from inside the microVM and from outside, and enforced.

use lazaret_tests::start;

#[test]
fn memory_and_cpus_are_seen_inside_and_outside() {
    let lazaret = start!("limits");
    let name = lazaret.container("a");
    lazaret.detached(
        &name,
        [
            "--memory", "200m", "--cpus", "0.5", "busybox", "sleep", "1000",
        ],
    );
    let look = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
    let seen = lazaret.lazaret(["exec", &name, "sh", "-c", look]);
    seen.success().stdout("209715200\n50000 100000\n");

    let inspected = lazaret.lazaret(["inspect", &name]).success().json();
    assert_eq!(inspected[0]["HostConfig"]["Memory"], 209_715_200);
    assert_eq!(inspected[0]["HostConfig"]["NanoCpus"], 500_000_000);

    let id = inspected[0]["Id"].as_str().expect("Id");
    let outside = lazaret.sh(&format!(
        "cd /sys/fs/cgroup/lazaret/{id} && cat cpu.max memory.max && wc -l <cgroup.procs"
    ));
    let outside: Vec<_> = outside.lines().collect();
    assert!(
        !outside[0].starts_with("max"),
        "the microVM's processor time has no limit"
    );
    let memory: u64 = outside[1]
        .parse()
        .expect("the microVM's memory has a limit");
    assert!((209_715_200..3 * 209_715_200).contains(&memory), "{memory}");
    assert_eq!(
        outside[2], "1",
        "the virtual machine monitor is in the cgroup, alone"
    );
    lazaret.lazaret(["rm", "-f", &name]).success();
}

#[test]
fn guest_has_the_processors_and_memory_of_the_configuration() {
    let lazaret = start!("processors");
    let config = lazaret.file("config.toml", "vcpus = 2\nmemory_mib = 3584\n");
    let script = "grep -c ^processor /proc/cpuinfo; awk '/MemTotal/ { print int($2 / 1024 / 1024) }' /proc/meminfo";
    let seen = lazaret.sh(&format!(
        "LAZARET_CONFIG={config} lazaret run --rm busybox sh -c \"{}\"",
        script.replace('$', "\\$")
    ));
    assert_eq!(
        seen, "2\n3\n",
        "two processors, and memory on both sides of the hole below 4 GiB"
    );
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
