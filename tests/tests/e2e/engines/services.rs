//! Real software from Debian, in containers: a database, a web server under load, a package
//! manager. Minutes of work for an emulated processor, so these run in `make test-full`.

use lazaret_tests::Engine;

super::for_both! {
    quick: [],
    quick_on_docker: [],
    full: [database_keeps_its_data, web_server_serves_under_load, packages_are_installed],
}

const DATABASE: &str =
    "set -e; cd /; bin=$(echo /usr/lib/postgresql/*/bin); data=/var/lib/postgresql/e2e
    mkdir -p $data /run/postgresql; chown postgres: $data /run/postgresql; chmod 700 $data
    [ -s $data/PG_VERSION ] || su postgres -c \"$bin/initdb --auth=trust $data\"
    echo \"listen_addresses = '*'\" >>$data/postgresql.conf
    echo 'host all all all trust' >>$data/pg_hba.conf
    exec su postgres -c \"exec $bin/postgres -D $data\"";

fn database_keeps_its_data(engine: &Engine) {
    engine.with_debian();
    let lazaret = engine.lazaret();
    let name = engine.name("db");
    let volume = engine.name("data");
    let kind = engine.kind().name();
    engine.ok(["volume", "create", &volume]);
    let options = [
        "--memory=1g",
        "--shm-size=128m",
        "-v",
        &format!("{volume}:/var/lib/postgresql"),
    ];
    let query = |sql: &str| {
        engine.ok([
            "exec",
            &name,
            "psql",
            "-h",
            "localhost",
            "-U",
            "postgres",
            "-Atc",
            sql,
        ])
    };
    let up = || {
        engine.detached(
            &name,
            options.iter().chain(&["debian", "sh", "-c", DATABASE]),
        );
        let ready = format!(
            "until {kind} exec {name} pg_isready -q -h localhost; do
                [ \"$({kind} inspect --format '{{{{.State.Running}}}}' {name})\" = true ] ||
                    {{ {kind} logs {name} >&2; exit 1; }}; sleep 2; done"
        );
        let came = lazaret.sh_cmd(&ready).deadline(900).output();
        came.status(0);
    };
    up();
    query("create table t (n int primary key, s text)");
    query("insert into t select n, repeat(md5(n::text), 8) from generate_series(1, 20000) n");
    query("create index on t (s)");
    query("begin; delete from t where n % 2 = 0; commit");
    let sum = "select count(*), sum(n), md5(string_agg(s, ',' order by n)) from t";
    let before = query(sum);
    assert!(before.starts_with("10000|100000000|"), "{before}");
    // The power goes off: what was committed has to be there.
    engine.ok(["kill", &name]);
    engine.remove([&name]);
    up();
    assert_eq!(query(sum), before);
    query("vacuum full t");
    engine.ok(["stop", "-t", "120", &name]);
    engine.remove([&name]);
    engine.ok(["volume", "rm", &volume]);
}

fn web_server_serves_under_load(engine: &Engine) {
    engine.with_debian();
    let lazaret = engine.lazaret();
    let name = engine.name("web");
    let script =
        "head -c 100000 /dev/urandom >/var/www/html/random; cat /var/www/html/random >/random
        exec nginx -g 'daemon off;'";
    engine.detached(&name, ["-p", "18085:80", "debian", "sh", "-c", script]);
    let mut load = lazaret.sh_cmd(
        "set -e; until busybox wget -q -O /dev/null http://127.0.0.1:18085/random; do sleep 1; done 2>/dev/null
        for client in $(seq 16); do
            for request in $(seq 12); do busybox wget -q -O - http://127.0.0.1:18085/random | sha256sum; done &
        done | sort | uniq -c; wait",
    );
    load = load.deadline(900);
    let answers = load.output();
    let lines = answers.status(0).lines();
    let sum = engine.ok(["exec", &name, "sha256sum", "/random"]);
    let sum = sum.split(' ').next().expect("a sum");
    assert_eq!(lines.len(), 1, "all answers are the same: {answers}");
    let fields: Vec<_> = lines[0].split_whitespace().collect();
    assert_eq!(fields[..2], ["192", sum], "{answers}");
    // Connections that stay open, from a container of the same network.
    let address = engine.inspect(
        &name,
        "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
    );
    let url = format!("http://{address}/random");
    let bench = [
        "--rm", "debian", "ab", "-q", "-k", "-n", "300", "-c", "16", &url,
    ];
    let measured = engine.run_cmd(bench).deadline(900).output();
    measured
        .status(0)
        .stdout_contains("Failed requests:        0");
    engine.remove([&name]);
}

fn packages_are_installed(engine: &Engine) {
    engine.with_debian();
    let script = "set -e; export DEBIAN_FRONTEND=noninteractive; apt-get update
        apt-get install -y --no-install-recommends hello jq; hello; echo '{\"a\": 42}' | jq .a
        apt-get purge -y jq; [ -e /usr/bin/jq ] || echo gone; dpkg --audit";
    let run = ["--rm", "--network=none", "debian", "sh", "-c", script];
    let outcome = engine.run_cmd(run).deadline(900).output();
    let text = outcome.status(0).text();
    assert!(text.contains("Hello, world!\n42\n"), "{outcome}");
    assert!(text.ends_with("gone\n"), "{outcome}");
}
