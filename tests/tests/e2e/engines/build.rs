//! Images built from a recipe whose steps run on lazaret-oci.

use lazaret_tests::{Engine, Kind};

const RECIPE: &str = "FROM busybox
ENV GREETING=hello
WORKDIR /work
COPY file /work/
RUN echo $GREETING >>file && uname -r >kernel
RUN [\"sh\", \"-c\", \"echo someone:x:1000:1000::/:/bin/sh >>/etc/passwd && chown someone file && ln -s file link\"]
USER someone
CMD [\"sh\", \"-c\", \"cat link; stat -c %U file; cat kernel\"]
";

/// Writes the recipe and its file; gives the directory.
fn context(engine: &Engine) -> String {
    engine.lazaret().file("Dockerfile", RECIPE);
    engine.lazaret().file("file", "copied\n");
    engine.lazaret().scratch()
}

/// What the image says when it runs, and that its steps ran where they should.
fn check(engine: &Engine, image: &str) {
    let seen = engine.run(["--rm", image]);
    let lines = seen.status(0).lines();
    assert_eq!(lines[..3], ["copied", "hello", "someone"], "{seen}");
    let host = engine.lazaret().sh("uname -r");
    assert_eq!(
        lines[3] != host.trim(),
        engine.is_lazaret(),
        "kernel of the steps: {seen}"
    );
}

/// The classic builder has no option for the runtime: it takes the daemon's default one.
#[test]
#[ignore = "minutes long: make test-full"]
fn docker_build() {
    super::with(Kind::Docker, "docker-build", |engine| {
        let context = context(engine);
        let runtime = engine.runtime();
        let config = "/etc/docker/daemon.json";
        let default = |runtime: &str| {
            engine.lazaret().sh(&format!(
                "jq '.\"default-runtime\" = \"{runtime}\"' {config} >{config}.new && mv {config}.new {config}
                kill -HUP $(cat /var/run/docker.pid)
                until docker info --format '{{{{.DefaultRuntime}}}}' | grep -x {runtime}; do sleep 0.5; done"
            ));
        };
        default(runtime);
        let command = format!("DOCKER_BUILDKIT=0 docker build -t e2e-built {context}");
        let built = engine.lazaret().sh_cmd(&command).output();
        default("runc");
        built
            .status(0)
            .stdout_contains("Successfully tagged e2e-built:latest");
        check(engine, "e2e-built");
        engine.ok(["rmi", "e2e-built"]);
    });
}

#[test]
#[ignore = "minutes long: make test-full"]
fn podman_build() {
    super::with(Kind::Podman, "podman-build", |engine| {
        let context = context(engine);
        engine.ok(["build", "--isolation=oci", "-t", "e2e-built", &context]);
        check(engine, "e2e-built");
        engine.ok(["rmi", "e2e-built"]);
    });
}

#[test]
#[ignore = "minutes long: make test-full"]
fn buildah_bud() {
    super::with(Kind::Podman, "buildah-bud", |engine| {
        let context = context(engine);
        let runtime = engine.runtime_path();
        let bud = format!("buildah bud --isolation=oci --runtime={runtime} -t e2e-built {context}");
        engine.lazaret().sh_cmd(&bud).output().status(0);
        check(engine, "e2e-built");
        // By hand, as buildah's users also do.
        let steps = format!(
            "set -e; container=$(buildah from e2e-built)
            buildah run --isolation=oci --runtime={runtime} $container -- sh -c 'echo again >>file; exit 0'
            code=0; buildah run --isolation=oci --runtime={runtime} $container -- sh -c 'cat file; exit 6' || code=$?
            echo code $code; buildah rm $container >/dev/null"
        );
        let ran = engine.lazaret().sh_cmd(&steps).output();
        ran.status(0).stdout("copied\nhello\nagain\ncode 6\n");
        engine.ok(["rmi", "e2e-built"]);
    });
}
