//! An engine's network in two namespaces: a host's and a container's.

use std::fs::{self, File};
use std::net::UdpSocket;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

/// Two network namespaces: an engine's, and one for a container.
pub(super) struct Net {
    pub(super) host: String,
    pub(super) container: String,
}

pub(super) fn run(program: &str, arguments: &str) -> Output {
    Command::new(program)
        .args(arguments.split_ascii_whitespace())
        .output()
        .unwrap()
}

pub(super) fn ip(arguments: &str) -> String {
    let output = run("ip", arguments);
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

impl Net {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |what: &str| format!("lazaret-{}-{number}-{what}", std::process::id());
        let net = Self {
            host: name("host"),
            container: name("box"),
        };
        for namespace in [&net.host, &net.container] {
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        net
    }

    pub(super) fn path(&self) -> String {
        format!("/run/netns/{}", self.container)
    }

    pub(super) fn inside(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.container))
    }

    pub(super) fn tc(&self, arguments: &str) {
        let output = run("tc", &format!("-n {} {arguments}", self.container));
        assert!(output.status.success(), "tc {arguments}: {output:?}");
    }

    /// An engine's interface number `number`: `eth<number>`, in `namespace` (a name or
    /// a pid).
    pub(super) fn connect(&self, number: u8, namespace: &str) {
        let host = &self.host;
        let mac = format!("02:42:0a:00:{number:02x}:02");
        ip(&format!(
            "-n {host} link add v{number} mtu 1450 type veth peer name eth{number} mtu 1450 address {mac}"
        ));
        ip(&format!(
            "-n {host} address add 10.0.{number}.1/24 dev v{number}"
        ));
        ip(&format!(
            "-n {host} neigh add 10.0.{number}.2 lladdr {mac} nud permanent dev v{number}"
        ));
        ip(&format!("-n {host} link set v{number} up"));
        ip(&format!("-n {host} link set eth{number} netns {namespace}"));
    }

    /// What engines do inside.
    pub(super) fn set_up(number: u8, inside: impl Fn(&str)) {
        inside(&format!(
            "address add 10.0.{number}.2/24 broadcast 10.0.{number}.255 dev eth{number}"
        ));
        inside(&format!(
            "address add fd00:{number}::2/64 dev eth{number} nodad"
        ));
        inside(&format!("link set eth{number} up"));
        inside(&format!(
            "neigh add 10.0.{number}.9 lladdr 02:00:00:00:00:09 nud permanent dev eth{number}"
        ));
    }

    pub(super) fn connect_container(&self, number: u8) {
        self.connect(number, &self.container);
        Self::set_up(number, |arguments| drop(self.inside(arguments)));
    }

    /// Whether a datagram from the engine's side comes back from the VMM's tap.
    pub(super) fn echoes(&self, number: u8) -> bool {
        self.echoes_between(0, number, 7)
    }

    pub(super) fn echoes_between(&self, from: u16, number: u8, to: u16) -> bool {
        within(named(&self.host), move || {
            let socket = UdpSocket::bind(("0.0.0.0", from)).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(200)))
                .unwrap();
            socket.connect(format!("10.0.{number}.2:{to}")).unwrap();
            let sent: Vec<u8> = (0..1200_u32).map(|at| at.to_le_bytes()[0]).collect();
            let mut got = [0; 2048];
            // An interface may still be on its way up.
            (0..20).any(|_| {
                socket.send(&sent).unwrap();
                matches!(socket.recv(&mut got), Ok(length) if got[..length] == sent)
            })
        })
    }

    /// Whether an engine's resolver, in the container's namespace, is answered by a
    /// name server behind the interface.
    pub(super) fn forwards(&self, server: &'static str, any: &'static str) -> bool {
        let listening = within(named(&self.host), move || UdpSocket::bind(server).unwrap());
        let answering = std::thread::spawn(move || {
            let mut query = [0; 512];
            let (length, client) = listening.recv_from(&mut query).unwrap();
            listening.send_to(&query[..length], client).unwrap();
        });
        let answered = within(named(&self.container), move || {
            let socket = UdpSocket::bind(any).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            socket.connect(server).unwrap();
            socket.send(b"query").unwrap();
            let mut answer = [0; 512];
            matches!(socket.recv(&mut answer), Ok(length) if answer[..length] == *b"query")
        });
        if answered {
            // Its port is free again.
            answering.join().unwrap();
        }
        answered
    }

    pub(super) fn takes_all_multicast(&self, interface: &str) -> bool {
        let shown = self.inside(&format!("link show dev {interface}"));
        shown.contains("ALLMULTI")
    }

    /// Which of these processes hold the claim to the namespace.
    pub(super) fn holders(&self, pids: &[u32]) -> Vec<u32> {
        let sockets = within(named(&self.container), || {
            fs::read_to_string("/proc/thread-self/net/unix").unwrap()
        });
        let claim = sockets
            .lines()
            .find(|line| line.ends_with(" @lazaret-microvm"));
        let inode = claim.unwrap().split_ascii_whitespace().nth(6).unwrap();
        let claim = std::path::PathBuf::from(format!("socket:[{inode}]"));
        let holds = |pid: &&u32| {
            let mut fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
            fds.any(|fd| fs::read_link(fd.unwrap().path()).is_ok_and(|it| it == claim))
        };
        pids.iter().filter(holds).copied().collect()
    }

    /// Bytes that an interface has sent.
    pub(super) fn sent(&self, interface: &str) -> u64 {
        let shown = self.inside(&format!("-j -s link show dev {interface}"));
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        shown[0]["stats64"]["tx"]["bytes"].as_u64().unwrap()
    }

    pub(super) fn taps(&self) -> usize {
        self.inside("-o link").matches(": lz").count()
    }

    pub(super) fn qdiscs(&self) -> usize {
        let output = run("tc", &format!("-n {} qdisc", self.container));
        let text = String::from_utf8(output.stdout).unwrap();
        text.matches("ingress").count()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for namespace in [&self.host, &self.container] {
            let _ = run("ip", &format!("netns delete {namespace}"));
        }
    }
}

pub(super) fn named(namespace: &str) -> File {
    File::open(format!("/run/netns/{namespace}")).unwrap()
}

/// Runs something in a network namespace.
pub(super) fn within<T: Send + 'static>(
    namespace: File,
    run: impl FnOnce() -> T + Send + 'static,
) -> T {
    let thread = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        run()
    });
    thread.join().unwrap()
}
