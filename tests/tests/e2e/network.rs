//! Networks of engines: whatever is in a container's network namespace on the host, its microVM
//! has, whenever it came. Engines are played by `ip` here; `lazaret-oci` is what they call.

use lazaret_tests::{Lazaret, start};

/// Makes `$dir/rootfs` (busybox, and a megabyte of noise) and `$dir/config.json`.
const BUNDLE: &str = r#"
mkdir -p $dir/rootfs/bin $dir/rootfs/proc $dir/rootfs/dev $dir/rootfs/sys $dir/rootfs/etc
cp "$(command -v busybox)" $dir/rootfs/bin/busybox
chroot $dir/rootfs /bin/busybox --install -s /bin
dd if=/dev/urandom of=$dir/rootfs/noise bs=1M count=1 2>/dev/null
capabilities='["CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"]'
cat >$dir/config.json <<JSON
{
  "ociVersion": "1.2.0",
  "process": {
    "user": { "uid": 0, "gid": 0 }, "cwd": "/", "env": ["PATH=/bin"],
    "args": ["sh", "-c", "ip -o address >/seen; exec sleep 100000"],
    "capabilities": { "bounding": $capabilities, "effective": $capabilities, "permitted": $capabilities }
  },
  "root": { "path": "rootfs" },
  "mounts": [
    { "destination": "/proc", "type": "proc", "source": "proc" },
    { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] }
  ],
  "linux": { "namespaces": [
    { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" },
    { "type": "network"$path }
  ] }
}
JSON
"#;

/// `connect NUMBER NAMESPACE MTU`: an interface `eth<NUMBER>` for a namespace (a name or a pid),
/// `10.77.<NUMBER>.2` and `fd77:<NUMBER>::2`, whose other end is the machine's, at 1.
const CONNECT: &str = r#"
connect() {
    inside() { if [ -e /run/netns/$ns ]; then ip -n $ns "$@"; else nsenter -t $ns -n ip "$@"; fi }
    local n=$1 ns=$2 mtu=$3
    ip link add lze$n mtu $mtu type veth peer name eth$n mtu $mtu
    ip address add 10.77.$n.1/24 dev lze$n
    ip -6 address add fd77:$n::1/64 dev lze$n nodad
    ip link set lze$n up
    ip link set eth$n netns $ns
    inside address add 10.77.$n.2/24 broadcast 10.77.$n.255 dev eth$n
    inside -6 address add fd77:$n::2/64 dev eth$n nodad
    inside link set eth$n up
}
"#;

/// A container by `lazaret-oci`, and the namespace that an engine has made for it.
struct Container<'a> {
    lazaret: &'a Lazaret,
    dir: String,
    id: String,
    namespace: String,
}

impl<'a> Container<'a> {
    /// With a bundle that names a namespace of its own, or none.
    fn new(lazaret: &'a Lazaret, named: bool) -> Self {
        let dir = lazaret.scratch();
        let id = lazaret.container("a");
        let this = Self {
            lazaret,
            dir,
            namespace: id.clone(),
            id,
        };
        this.sh("ip netns add $ns; ip -n $ns link set lo up");
        let path = if named {
            r#"path=", \"path\": \"/run/netns/$ns\"""#
        } else {
            "path="
        };
        this.sh(&format!("{path}\n{BUNDLE}"));
        this
    }

    /// A script of the machine that knows this container.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        let (dir, id, ns) = (&self.dir, &self.id, &self.namespace);
        self.lazaret.sh(&format!(
            "set -e; dir={dir} id={id} ns={ns}\n{CONNECT}\n{script}"
        ))
    }

    #[track_caller]
    fn create(&self) {
        self.sh("lazaret-oci create --bundle $dir --pid-file $dir/pid $id </dev/null >$dir/out 2>&1 || { cat $dir/out >&2; exit 1; }");
    }

    #[track_caller]
    fn start(&self) {
        self.sh("lazaret-oci start $id");
    }

    /// A script in the container.
    #[track_caller]
    fn exec(&self, script: &str) -> String {
        self.sh(&format!("lazaret-oci exec $id sh -c '{script}'"))
    }

    #[track_caller]
    fn pings(&self, address: &str) {
        self.exec(&format!("ping -c 2 -W 5 {address}"));
    }

    /// The machine's way to the container.
    #[track_caller]
    fn is_pinged(&self, address: &str) {
        self.sh(&format!("busybox ping -c 2 -W 5 {address} >&2"));
    }

    /// Ends it, and shows that nothing of it is left in the namespace.
    #[track_caller]
    fn end(self) {
        self.sh("lazaret-oci delete --force $id");
        self.leaves_nothing();
    }

    #[track_caller]
    fn leaves_nothing(&self) {
        let left = self.sh(
            "ip -n $ns -o link | grep -E ': lz[0-9]' || true; tc -n $ns qdisc | grep ingress || true",
        );
        assert_eq!(left, "");
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let (id, ns) = (&self.id, &self.namespace);
        self.lazaret
            .sh_cmd(&format!(
                "lazaret-oci delete --force {id}; ip netns delete {ns}
                for link in lze1 lze2 lze3; do ip link delete $link; done; true"
            ))
            .output();
    }
}

#[test]
fn interface_of_a_named_namespace_carries_both_ip_versions_both_ways() {
    let lazaret = start!("net-named");
    let container = Container::new(&lazaret, true);
    container.sh("connect 1 $ns 1500; ip -n $ns route add default via 10.77.1.1; ip -n $ns -6 route add default via fd77:1::1");
    container.create();
    container.start();
    let links = container.exec("ls /sys/class/net | xargs");
    assert_eq!(links, "eth1 lo\n", "nothing else shows");
    let inside = container.exec("ip -o link show eth1; ip route; ip -6 route");
    let outside = container.sh("ip -n $ns -o link show eth1");
    let mac = |text: &str| {
        let mut words = text
            .split_ascii_whitespace()
            .skip_while(|w| *w != "link/ether");
        words.nth(1).map(str::to_owned)
    };
    assert_eq!(mac(&inside), mac(&outside));
    assert!(inside.contains("default via 10.77.1.1"), "{inside}");
    assert!(inside.contains("default via fd77:1::1"), "{inside}");
    for address in ["10.77.1.1", "fd77:1::1"] {
        container.pings(address);
    }
    for address in ["10.77.1.2", "fd77:1::2"] {
        container.is_pinged(address);
    }
    container.end();
}

#[test]
#[ignore = "minutes in a lab: make test-full"]
fn a_hundred_megabytes_arrive_whole_both_ways() {
    let lazaret = start!("net-bulk");
    for mtu in [1500, 9000] {
        let container = Container::new(&lazaret, true);
        container.sh(&format!("connect 1 $ns {mtu}"));
        container.create();
        container.start();
        container.pings(&format!("-s {} 10.77.1.1", mtu - 28));
        let expected = container.sh("for i in $(seq 100); do cat $dir/rootfs/noise; done | md5sum");
        let out = container.sh(
            "socat -u TCP-LISTEN:5001,bind=10.77.1.1,reuseaddr - | md5sum & lazaret-oci exec $id sh -c 'for i in $(seq 100); do cat /noise; done | nc 10.77.1.1 5001' </dev/null; wait",
        );
        assert_eq!(out, expected, "to the host, MTU {mtu}");
        let inwards = container.sh(
            "lazaret-oci exec $id sh -c 'nc -l -p 5002 | md5sum' </dev/null & for i in $(seq 100); do cat $dir/rootfs/noise; done | socat -u - TCP:10.77.1.2:5002,retry=100,interval=0.2; wait",
        );
        assert_eq!(inwards, expected, "to the guest, MTU {mtu}");
        container.end();
    }
}

#[test]
fn interfaces_that_come_between_create_and_start_are_there_when_the_process_runs() {
    let lazaret = start!("net-late");
    let container = Container::new(&lazaret, false);
    container.create();
    container.sh("connect 1 $(cat $dir/pid) 1500");
    container.start();
    // What the container's first process saw as its first act.
    let seen = container.sh("for i in $(seq 100); do [ -s $dir/rootfs/seen ] && break; sleep 0.1; done; cat $dir/rootfs/seen");
    assert!(seen.contains("10.77.1.2/24"), "{seen}");
    assert!(seen.contains("fd77:1::2/64"), "{seen}");
    container.pings("10.77.1.1");
    container.end();
}

#[test]
fn a_running_container_follows_its_network() {
    let lazaret = start!("net-follow");
    let container = Container::new(&lazaret, true);
    container.sh("connect 1 $ns 1500");
    container.create();
    container.start();
    container.sh("connect 2 $ns 1500");
    let until = |what: &str| {
        container.exec(&format!(
            "for i in $(seq 200); do {what} && exit; usleep 50000; done; ip address >&2; exit 1"
        ));
    };
    until("ip address show eth2 2>/dev/null | grep -q fd77:2::2");
    container.pings("10.77.2.1");
    container.pings("fd77:1::1");
    container.sh("ip link delete lze1");
    until("! ip link show eth1 2>/dev/null >&2");
    container.pings("10.77.2.1");
    container.sh("connect 3 $ns 9000");
    until("ip address show eth3 2>/dev/null | grep -q fd77:3::2");
    container.pings("-s 8000 10.77.3.1");
    container.end();
}
