//! `run` in the foreground: output, input, exit codes, settings, terminals.

use lazaret_tests::Engine;

super::for_both! {
    quick: [],
    quick_on_docker: [output_input_and_exit_codes, process_is_as_the_command_line_says, shell_in_a_terminal_follows_the_window],
    full: [limits_hold],
}

fn output_input_and_exit_codes(engine: &Engine) {
    let outcome = engine.run([
        "--rm",
        "busybox",
        "sh",
        "-c",
        "uname -r; echo error >&2; exit 7",
    ]);
    outcome.status(7).stderr_contains("error");
    let host = engine.lazaret().sh("uname -r");
    assert_eq!(
        outcome.text() != host,
        engine.is_lazaret(),
        "kernel of {outcome}"
    );

    let cat = engine.run_cmd(["-i", "--rm", "busybox", "sha256sum"]);
    let data: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let sum = engine
        .lazaret()
        .sh_cmd("sha256sum")
        .stdin(data.clone())
        .output()
        .text();
    cat.stdin(data).output().status(0).stdout(&sum);

    engine
        .run(["--rm", "busybox", "no-such-command"])
        .status(127)
        .stderr_contains("no-such-command");
    engine.run(["--rm", "busybox", "/etc"]).status(126);
}

fn process_is_as_the_command_line_says(engine: &Engine) {
    let script = "id -u; id -G; pwd; hostname; echo $GREETING; umask; ulimit -n
        grep -E 'NoNewPrivs|CapEff' /proc/self/status | tr '\\n' ' '; echo
        touch /x 2>/dev/null || echo read-only; touch /scratch/x && echo scratch
        cat /proc/sys/net/ipv4/ip_unprivileged_port_start; grep -c '10.9.8.7.*other' /etc/hosts";
    let seen = engine.run([
        "--rm",
        "--user=1234:2345",
        "--group-add=3456",
        "--workdir=/etc",
        "--hostname=inside",
        "--env=GREETING=good day",
        "--ulimit=nofile=321",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--read-only",
        "--tmpfs=/scratch",
        "--sysctl=net.ipv4.ip_unprivileged_port_start=99",
        "--add-host=other:10.9.8.7",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    let lines = seen.status(0).lines();
    assert_eq!(
        lines,
        [
            "1234",
            "2345 3456",
            "/etc",
            "inside",
            "good day",
            "0022",
            "321",
            "CapEff:\t0000000000000000 NoNewPrivs:\t1 ",
            "read-only",
            "scratch",
            "99",
            "1"
        ],
        "{seen}"
    );
}

fn limits_hold(engine: &Engine) {
    let script = "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max; tail /dev/zero; echo $?";
    let seen = engine.run([
        "--rm",
        "--memory=64m",
        "--memory-swap=64m",
        "--pids-limit=50",
        "--cpus=0.5",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    let lines = seen.status(0).lines();
    assert_eq!(lines, ["67108864", "50", "50000 100000", "137"], "{seen}");
}

fn shell_in_a_terminal_follows_the_window(engine: &Engine) {
    let mut terminal = engine
        .run_cmd(["-it", "--rm", "busybox", "sh"])
        .terminal(33, 101);
    terminal.ask_until("stty size\n", "33 101");
    terminal.write("tty; echo sum $((40+2))\n");
    terminal.expect("/dev/").expect("sum 42");
    terminal.pull_until(40, 132);
    // Ctrl-C ends the command in the foreground, not the container.
    terminal.write("sh -c 'echo $((6*7)) go; exec sleep 1000'\n");
    terminal.expect("42 go");
    terminal.write("\x03");
    terminal.write("echo after $((50+4))\n");
    terminal.expect("after 54");
    terminal.write("exit 9\n");
    terminal.status(9);
}
