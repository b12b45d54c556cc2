//! Networks that the engines make: published ports, names, isolation.

use lazaret_tests::{Engine, Kind};

super::for_both! {
    quick: [],
    quick_on_docker: [],
    full: [published_port_answers_connections_from_the_host, containers_of_a_network_find_each_other_by_name, no_network_is_no_network],
}

const SERVER: &str = "mkdir /www; echo hello from $(hostname) >/www/index.html
    head -c 3000000 /dev/zero | tr '\\0' x >/www/large; exec httpd -f -p 80 -h /www";

fn published_port_answers_connections_from_the_host(engine: &Engine) {
    let name = engine.name("a");
    let server = ["busybox", "sh", "-c", SERVER];
    let options = [
        "-p",
        "18080:80",
        "-p",
        "127.0.0.1:18081:80",
        "--hostname",
        "web",
    ];
    engine.detached(&name, options.iter().chain(&server));
    let get = "until busybox wget -q -O - http://127.0.0.1:18080/; do sleep 0.5; done 2>/dev/null
        address=$(ip -4 -o address show dev eth0 | sed 's/.*inet \\([^/]*\\).*/\\1/')
        busybox wget -q -O - http://$address:18080/
        busybox wget -q -O - http://127.0.0.1:18081/
        busybox wget -q -O - http://127.0.0.1:18080/large | wc -c
        for try in 1 2 3 4 5 6 7 8; do busybox wget -q -O - http://127.0.0.1:18080/ & done; wait";
    let mut expected = "hello from web\n".repeat(3);
    expected += "3000000\n";
    expected += &"hello from web\n".repeat(8);
    assert_eq!(engine.lazaret().sh(get), expected);
    engine.remove([&name]);
}

fn containers_of_a_network_find_each_other_by_name(engine: &Engine) {
    let network = engine.name("net");
    let server = engine.name("server");
    engine.ok(["network", "create", "--subnet=10.77.0.0/24", &network]);
    let options = [
        "--network",
        &network,
        "--network-alias",
        "www",
        "--hostname",
        "web",
    ];
    engine.detached(
        &server,
        options.iter().chain(&["busybox", "sh", "-c", SERVER]),
    );
    // Port 53 is free for a name server of the container's own.
    let get = format!(
        "nc -l -p 53 &
        until wget -q -O - http://{server}/; do sleep 0.5; done 2>/dev/null
        wget -q -O - http://www/; wget -q -O - http://www/large | wc -c
        ip -4 -o address show dev eth0 | grep -c 'inet 10.77.0.'; ip route | grep -c '^default via 10.77.0.1'
        cat /proc/net/tcp /proc/net/tcp6 | grep -c ':0035 .* 0A '"
    );
    let client = ["--rm", "--network", &network, "busybox", "sh", "-c", &get];
    let seen = engine.run(client);
    seen.status(0)
        .stdout("hello from web\nhello from web\n3000000\n1\n1\n1\n");

    if engine.kind() == Kind::Docker {
        // A network that a running container joins, and leaves again.
        let second = engine.name("second");
        engine.ok(["network", "create", "--subnet=10.78.0.0/24", &second]);
        engine.ok(["network", "connect", &second, &server]);
        let joined = "until ip -4 -o address | grep -q 'inet 10.78.0.'; do sleep 0.2; done";
        engine.ok(["exec", &server, "sh", "-c", joined]);
        engine.ok(["network", "disconnect", &second, &server]);
        let left = "while ip -4 -o address | grep -q 'inet 10.78.0.'; do sleep 0.2; done";
        engine.ok(["exec", &server, "sh", "-c", left]);
        engine.ok(["network", "rm", &second]);
    }
    engine.remove([&server]);
    engine.ok(["network", "rm", &network]);
}

fn no_network_is_no_network(engine: &Engine) {
    let links = "ls /sys/class/net; ip route | wc -l";
    let seen = engine.run(["--rm", "--network=none", "busybox", "sh", "-c", links]);
    seen.status(0);
    assert_eq!(seen.lines().last().map(String::as_str), Some("0"), "{seen}");
    assert!(!seen.text().contains("eth"), "{seen}");
}
