//! What only Docker does: health checks, an init of its own, a daemon that is restarted under
//! running containers, networks that come and go under them.

use lazaret_tests::{Engine, Kind, start};

/// Begins a test on Docker, or ends it here where there is none.
macro_rules! docker {
    ($lazaret:ident) => {
        match Engine::start(&$lazaret, Kind::Docker) {
            Some(docker) => docker,
            None => return,
        }
    };
}

/// Docker's default profile is in force unless it is asked to go, and refuses what it should.
#[test]
#[ignore = "half a minute in the lab: make test-full"]
fn seccomp_profile_is_in_force() {
    let lazaret = start!("docker-seccomp");
    let docker = docker!(lazaret);
    // Mode 2 is a filter. `unshare` is refused without CAP_SYS_ADMIN by the profile alone: user
    // namespaces are there for everybody else.
    let script = "grep -o 'Seccomp:.*' /proc/self/status; unshare -U true 2>/dev/null && echo let";
    let confined = docker.run(["--rm", "busybox", "sh", "-c", script]);
    confined.status(1).stdout("Seccomp:\t2\n");
    let option = "--security-opt=seccomp=unconfined";
    let free = docker.run(["--rm", option, "busybox", "sh", "-c", script]);
    free.status(0).stdout("Seccomp:\t0\nlet\n");
}

#[test]
#[ignore = "half a minute in the lab: make test-full"]
fn init_of_docker_reaps_and_passes_signals() {
    let lazaret = start!("docker-init");
    let docker = docker!(lazaret);
    let name = lazaret.container("a");
    // The grandchild is init's to reap once its parent has gone.
    let script = "trap 'exit 9' TERM; (sleep 0.1 &); echo up; while :; do sleep 0.1; done";
    docker.detached(&name, ["--init", "busybox", "sh", "-c", script]);
    let reaped = "until [ \"$(cat /proc/1/comm)\" = docker-init ]; do sleep 0.1; done
        while grep -l 'State:.Z' /proc/[0-9]*/status; do sleep 0.1; done 2>/dev/null >/dev/null";
    docker.ok(["exec", &name, "sh", "-c", reaped]);
    docker.ok(["stop", "-t", "60", &name]);
    assert_eq!(docker.inspect(&name, "{{.State.ExitCode}}"), "9");
    docker.remove([&name]);
}

#[test]
#[ignore = "half a minute in the lab: make test-full"]
fn health_is_checked_in_the_container() {
    let lazaret = start!("docker-health");
    let docker = docker!(lazaret);
    let name = lazaret.container("a");
    let options = [
        "--health-cmd=cat /healthy",
        "--health-interval=1s",
        "--health-timeout=60s",
        "--health-retries=1",
        "busybox",
        "sh",
        "-c",
        "echo fine >/healthy; exec sleep 1000",
    ];
    docker.detached(&name, options);
    docker.until(&name, "{{.State.Health.Status}}", "healthy");
    let log = docker.inspect(&name, "{{range .State.Health.Log}}{{.Output}}{{end}}");
    assert!(log.starts_with("fine"), "{log}");
    docker.ok(["exec", &name, "rm", "/healthy"]);
    docker.until(&name, "{{.State.Health.Status}}", "unhealthy");
    docker.remove([&name]);
}

/// Streams of the container and of `attach` are one.
#[test]
#[ignore = "half a minute in the lab: make test-full"]
fn attach_reaches_the_process() {
    let lazaret = start!("docker-attach");
    let docker = docker!(lazaret);
    let name = lazaret.container("a");
    let script = "echo ready; read line; echo got $line; exit 6";
    docker.detached(&name, ["-i", "busybox", "sh", "-c", script]);
    // Docker lets go of the output when the input ends: it is held until the answer is there.
    let attach = format!(
        "{{ echo a line; until docker logs {name} | grep -q got; do sleep 0.1; done; }} |
        docker attach {name}"
    );
    let attached = lazaret.sh_cmd(&attach).output();
    attached.status(6).stdout_contains("got a line");
    docker.call(["logs", &name]).stdout("ready\ngot a line\n");
    docker.remove([&name]);
}

/// Two containers of a network: names, pings and TCP both ways, also while one of them is in a
/// second network, which it joins and leaves as it runs.
#[test]
#[ignore = "half a minute in the lab: make test-full"]
fn containers_talk_both_ways_while_networks_come_and_go() {
    let lazaret = start!("docker-networks");
    let docker = docker!(lazaret);
    let [first, second] = ["first", "second"].map(|name| lazaret.container(name));
    let [a, b] = ["a", "b"].map(|name| lazaret.container(name));
    docker.ok(["network", "create", "--subnet=10.87.1.0/24", &first]);
    docker.ok(["network", "create", "--subnet=10.87.2.0/24", &second]);
    let answer = "mkdir /www; hostname >/www/index.html; exec httpd -f -p 80 -h /www";
    for name in [&a, &b] {
        let container = [
            "--network",
            &first,
            "--hostname",
            name,
            "busybox",
            "sh",
            "-c",
            answer,
        ];
        docker.detached(name, container);
    }
    let says = |from: &str, to: &str| {
        let script = format!(
            "ping -c 2 -W 60 {to} >/dev/null && echo ping
            until wget -q -O - http://{to}/; do sleep 0.2; done 2>/dev/null"
        );
        docker.ok(["exec", from, "sh", "-c", &script])
    };
    assert_eq!(says(&a, &b), format!("ping\n{b}"));
    assert_eq!(says(&b, &a), format!("ping\n{a}"));

    docker.ok(["network", "connect", &second, &a]);
    let seen = "until ip -4 -o address | grep -o 'inet 10.87.2.[0-9]*'; do sleep 0.2; done";
    let address = docker.ok(["exec", &a, "sh", "-c", seen]);
    let address = address.trim_start_matches("inet ");
    lazaret.sh(&format!("busybox ping -c 2 -W 60 {address}"));
    assert_eq!(says(&b, &a), format!("ping\n{a}"));
    docker.ok(["network", "disconnect", &second, &a]);
    let gone = "while ip -4 -o address | grep 'inet 10.87.2.'; do sleep 0.2; done";
    docker.ok(["exec", &a, "sh", "-c", gone]);
    assert_eq!(says(&a, &b), format!("ping\n{b}"));

    docker.remove([&a, &b]);
    docker.ok(["network", "rm", &first, &second]);
}

/// The daemon goes and comes back: the container runs on, and its end is heard.
#[test]
#[ignore = "half a minute in the lab: make test-full"]
fn container_outlives_the_daemon() {
    let lazaret = start!("docker-live-restore");
    let docker = docker!(lazaret);
    let name = lazaret.container("a");
    let config = "/etc/docker/daemon.json";
    lazaret.sh(&format!(
        "cp {config} {config}.old
        jq '.\"live-restore\" = true' {config}.old >{config} && kill -HUP $(cat /var/run/docker.pid)
        until docker info --format '{{{{.LiveRestoreEnabled}}}}' | grep -x true; do sleep 0.5; done"
    ));
    let script = "trap 'exit 8' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.5; done";
    docker.detached(&name, ["busybox", "sh", "-c", script]);
    let pid = docker.inspect(&name, "{{.State.Pid}}");
    lazaret.sh(
        "pid=$(cat /var/run/docker.pid); kill $pid; while kill -0 $pid; do sleep 0.2; done 2>/dev/null
        setsid dockerd >>/var/log/dockerd.log 2>&1 </dev/null &
        until docker version >/dev/null 2>&1; do sleep 0.5; done",
    );
    assert_eq!(
        docker.inspect(&name, "{{.State.Status}} {{.State.Pid}}"),
        format!("running {pid}")
    );
    assert_eq!(
        docker.ok(["exec", &name, "echo", "still here"]),
        "still here"
    );
    docker.ok(["stop", "-t", "60", &name]);
    assert_eq!(docker.inspect(&name, "{{.State.ExitCode}}"), "8");
    lazaret.sh(&format!(
        "mv {config}.old {config}; kill -HUP $(cat /var/run/docker.pid)"
    ));
    docker.remove([&name]);
}
