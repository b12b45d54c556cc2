//! Volumes, bind mounts and `cp`.

use lazaret_tests::{Engine, Kind};

super::for_both! {
    quick: [],
    quick_on_docker: [],
    full: [volumes_and_bind_mounts, shared_memory_is_the_guests, files_are_copied_both_ways],
}

/// Docker has no overlays of volumes.
mod podman_alone {
    crate::engines::on!(
        #[ignore = "minutes long: make test-full"]
        Podman,
        "podman-",
        overlays_keep_what_is_written
    );
}

fn volumes_and_bind_mounts(engine: &Engine) {
    let lazaret = engine.lazaret();
    let volume = engine.name("volume");
    engine.ok(["volume", "create", &volume]);
    let scratch = lazaret.scratch();
    lazaret.sh(&format!(
        "mkdir {scratch}/dir; echo from the host >{scratch}/dir/file; echo one >{scratch}/single"
    ));
    let options = [
        "--rm".to_owned(),
        format!("-v={volume}:/data"),
        format!("-v={scratch}/dir:/dir"),
        format!("-v={scratch}/single:/etc/single:ro"),
        format!("--mount=type=bind,source={scratch}/dir,target=/ro,readonly"),
        "--mount=type=tmpfs,target=/fresh".to_owned(),
    ];
    let script = "cat /dir/file /etc/single; echo from inside >/dir/back; echo kept >/data/file
        echo x >/ro/x 2>/dev/null || echo read-only; echo x >/etc/single 2>/dev/null || echo read-only
        stat -f -c %T /fresh; chown 1234:5678 /data/file; chmod 4711 /data/file";
    let run = ["busybox", "sh", "-c", script].map(str::to_owned);
    let seen = engine.run(options.iter().chain(&run));
    seen.status(0)
        .stdout("from the host\none\nread-only\nread-only\ntmpfs\n");
    assert_eq!(
        lazaret.sh(&format!("cat {scratch}/dir/back")),
        "from inside\n"
    );

    let look = "cat /data/file; stat -c '%u:%g %a' /data/file";
    let seen = engine.run([
        "--rm",
        "-v",
        &format!("{volume}:/data"),
        "busybox",
        "sh",
        "-c",
        look,
    ]);
    seen.status(0).stdout("kept\n1234:5678 4711\n");
    let mountpoint = engine.ok(["volume", "inspect", "--format", "{{.Mountpoint}}", &volume]);
    assert_eq!(lazaret.sh(&format!("cat {mountpoint}/file")), "kept\n");
    engine.ok(["volume", "rm", &volume]);
}

fn overlays_keep_what_is_written(engine: &Engine) {
    let lazaret = engine.lazaret();
    let volume = engine.name("below");
    engine.ok(["volume", "create", &volume]);
    let scratch = lazaret.scratch();
    lazaret.sh(&format!(
        "mkdir {scratch}/dir; echo from the host >{scratch}/dir/file"
    ));
    let script = "cat /x/file; echo from inside >/x/file; cat /x/file; touch /x/n /v/n
        echo /x/* /v/*; ls /a/bin/sh; touch /a/n 2>/dev/null || echo read-only";
    let seen = engine.run([
        "--rm",
        &format!("-v={scratch}/dir:/x:O"),
        &format!("-v={volume}:/v:O"),
        "--mount=type=image,source=busybox,destination=/a",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    seen.status(0)
        .stdout("from the host\nfrom inside\n/x/file /x/n /v/n\n/a/bin/sh\nread-only\n");
    let mountpoint = engine.ok(["volume", "inspect", "--format", "{{.Mountpoint}}", &volume]);
    let kept = lazaret.sh(&format!("cat {scratch}/dir/*; find {mountpoint} -type f"));
    assert_eq!(kept, "from the host\n");
    engine.ok(["volume", "rm", &volume]);
}

/// Though the engine has it on the host, to give it to other containers as well.
fn shared_memory_is_the_guests(engine: &Engine) {
    let script = "stat -f -c %T /dev/shm; stat -c %a /dev/shm
        df -k /dev/shm | awk 'END { print $(NF - 4) }'
        awk '$2 == \"/dev/shm\" { print $4 }' /proc/mounts | tr , '\\n' | grep -E '^no(suid|exec|dev)$' | sort";
    let seen = engine.run([
        "--rm",
        "--ipc=shareable",
        "--shm-size=48m",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    seen.status(0)
        .stdout("tmpfs\n1777\n49152\nnodev\nnoexec\nnosuid\n");
}

fn files_are_copied_both_ways(engine: &Engine) {
    let lazaret = engine.lazaret();
    let name = engine.name("a");
    let scratch = lazaret.scratch();
    lazaret.sh(&format!(
        "mkdir -p {scratch}/in/deep; echo going in >{scratch}/in/deep/file; chmod 640 {scratch}/in/deep/file"
    ));
    let script = "mkdir -p /out/deep; echo coming out >/out/deep/file; echo made; exec sleep 1000";
    engine.detached(&name, ["busybox", "sh", "-c", script]);
    lazaret.sh(&format!(
        "until {} logs {name} | grep made; do sleep 0.5; done",
        engine.kind().name()
    ));
    engine.ok(["cp", &format!("{scratch}/in"), &format!("{name}:/srv")]);
    let seen = engine.ok([
        "exec",
        &name,
        "sh",
        "-c",
        "cat $(find /srv -name file); stat -c %a $(find /srv -name file)",
    ]);
    assert_eq!(seen, "going in\n640");
    engine.ok(["cp", &format!("{name}:/out"), &scratch]);
    assert_eq!(
        lazaret.sh(&format!("cat {scratch}/out/deep/file")),
        "coming out\n"
    );
    // As an archive, and of one that has ended.
    engine.ok(["stop", "-t", "0", &name]);
    let archive = engine
        .call(["cp", &format!("{name}:/out/deep/file"), "-"])
        .stdout_bytes();
    let file = lazaret.sh_cmd("tar -xO").stdin(archive).output();
    file.status(0).stdout("coming out\n");
    let changes = engine.ok(["diff", &name]);
    assert!(
        changes.lines().any(|line| line == "A /out/deep/file"),
        "{changes}"
    );
    engine.remove([&name]);
    if engine.kind() == Kind::Docker {
        engine
            .call(["cp", &format!("{name}:/out"), &scratch])
            .status(1);
    }
}
