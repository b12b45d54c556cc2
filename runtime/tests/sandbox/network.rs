//! A container's network, from an engine's interface to the VMM's tap. The fake VMM
//! sends back each datagram that it gets, and the fake agent notes what it is told.

mod net;

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::time::Instant;

use containerd_shim_protos::shim_async::TaskClient;
use lazaret_protocol::agent::{ConfigureNetworkRequest, Interface};
use lazaret_runtime::sandbox::id::SandboxId;
use protobuf::Message;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use ttrpc::Code;

use crate::harness::{
    Box_, ID, context, create_request, exec_request, kill_request, refusal, shut_down,
    start_request, wait_request,
};
use net::{Net, ip, named, run, within};

const OCI: &str = "oci";

fn sandbox(network: Option<&str>, args: &[&str]) -> Box_ {
    let sandbox = Box_::new("ok", OCI);
    sandbox.spec(args, |spec| {
        let mut namespace = json!({ "type": "network" });
        if let Some(path) = network {
            namespace["path"] = path.into();
        }
        spec["linux"]["namespaces"] = json!([namespace]);
    });
    sandbox
}

/// What the agent was told last.
fn told(sandbox: &Box_) -> ConfigureNetworkRequest {
    let bytes = fs::read(sandbox.path("network")).unwrap_or_default();
    ConfigureNetworkRequest::parse_from_bytes(&bytes).unwrap()
}

fn interface(sandbox: &Box_, name: &str) -> Interface {
    let told = told(sandbox);
    let mut found = told.interfaces.into_iter().filter(|i| i.name == name);
    found.next().unwrap_or_default()
}

async fn refused_create(sandbox: &mut Box_) -> (Code, String) {
    let client = sandbox.client().await;
    let request = create_request(&sandbox.path("bundle"));
    let refusal = refusal(client.create(context(), &request).await);
    shut_down(&client).await;
    refusal
}

async fn end(sandbox: &Box_, client: &TaskClient) {
    // It may have ended by itself.
    let _ = client.kill(context(), &kill_request(9)).await;
    let _ = client.wait(context(), &wait_request("")).await;
    sandbox.processes_end().await;
    // The container's end was the sandbox's: there is nobody to be asked to delete it.
    sandbox.store.end(&SandboxId::new(ID).unwrap()).unwrap();
    sandbox.nothing_is_left().await;
}

#[tokio::test]
async fn an_interface_that_is_there_is_the_guests() {
    let net = Net::new();
    net.connect_container(1);
    net.inside("route add default via 10.0.1.1");
    net.inside("-6 route add default via fd00:1::1 metric 77");
    net.inside("route add 203.0.113.0/24 via 100.64.0.1 dev eth1 onlink mtu 1300");
    let mut sandbox = sandbox(Some(&net.path()), &["sleep"]);
    let client = sandbox.created().await;

    let eth = interface(&sandbox, "eth1");
    assert_eq!(eth.device, *b"\x02lzrt\0");
    assert_eq!(eth.hardware_address, [2, 0x42, 10, 0, 1, 2]);
    assert_eq!(eth.mtu, 1450);
    assert!(eth.ipv6);
    let lengths: Vec<_> = eth.addresses.iter().map(|a| a.address.len()).collect();
    assert_eq!(lengths, [4, 16, 16], "IPv4, IPv6 and its link-local");
    assert_eq!(eth.addresses[0].address, [10, 0, 1, 2]);
    assert_eq!(eth.addresses[0].prefix_length, 24);
    assert_eq!(eth.addresses[0].broadcast, [10, 0, 1, 255]);
    assert_eq!(eth.addresses[2].scope, 253);
    let defaults = eth.routes.iter().filter(|route| route.prefix_length == 0);
    let gateways: Vec<_> = defaults.map(|route| route.gateway.clone()).collect();
    let ipv6: IpAddr = "fd00:1::1".parse().unwrap();
    let IpAddr::V6(ipv6) = ipv6 else { panic!() };
    assert_eq!(gateways, [vec![10, 0, 1, 1], ipv6.octets().to_vec()]);
    let on_link = eth.routes.iter().find(|route| route.on_link).unwrap();
    assert_eq!((on_link.prefix_length, on_link.mtu), (24, 1300));
    assert_eq!(eth.routes.len(), 3, "not what comes with addresses");
    assert_eq!(eth.neighbours.len(), 1);
    assert_eq!(eth.neighbours[0].hardware_address, [2, 0, 0, 0, 0, 9]);

    client.start(context(), &start_request("")).await.unwrap();
    assert!(net.echoes(1));
    assert_eq!((net.taps(), net.qdiscs()), (1, 2));
    let output = net.inside("-6 address show dev lz0");
    assert_eq!(output, "", "the tap is silent");
    end(&sandbox, &client).await;
    assert_eq!((net.taps(), net.qdiscs()), (0, 0));
    assert!(net.inside("address").contains("10.0.1.2/24"));
}

#[tokio::test]
async fn a_leased_address_is_the_guests_while_the_lease_lasts() {
    let net = Net::new();
    net.connect_container(1);
    net.inside("address add 192.0.2.7/24 dev eth1 valid_lft 600 preferred_lft 600");
    let mut sandbox = sandbox(Some(&net.path()), &["sleep"]);
    let client = sandbox.created().await;
    let leased = || {
        let addresses = interface(&sandbox, "eth1").addresses;
        addresses.iter().any(|a| a.address == [192, 0, 2, 7])
    };
    assert!(leased());
    net.inside("address delete 192.0.2.7/24 dev eth1");
    sandbox.wait_for("its end", || !leased()).await;
    end(&sandbox, &client).await;
}

/// A macvlan's filter lets its own groups' frames in, and those are not the guest's.
#[tokio::test]
async fn a_macvlan_lets_in_the_guests_multicast_groups() {
    let net = Net::new();
    let host = &net.host;
    for arguments in [
        "link add v9 type veth peer name lower",
        "address add 10.0.9.1/24 dev v9",
        "link set v9 up",
        "link set lower up",
        "route add 239.0.0.0/8 dev v9",
    ] {
        ip(&format!("-n {host} {arguments}"));
    }
    let container = &net.container;
    ip(&format!(
        "-n {host} link add link lower name eth9 netns {container} type macvlan mode bridge"
    ));
    net.inside("link set eth9 up");
    let mut sandbox = sandbox(Some(&net.path()), &["sleep"]);
    let client = sandbox.created().await;
    within(named(host), || {
        let socket = UdpSocket::bind("10.0.9.1:0").unwrap();
        for _ in 0..50 {
            socket.send_to(&[0; 1200], "239.1.2.3:7").unwrap();
        }
    });
    sandbox
        .wait_for("the frames", || net.sent("lz0") >= 50 * 1200)
        .await;
    end(&sandbox, &client).await;
}

#[tokio::test]
async fn the_guests_multicast_groups_are_let_in_while_it_lives() {
    let net = Net::new();
    net.connect_container(1);
    net.connect_container(2);
    net.inside("link set eth2 allmulticast on");
    let mut first = sandbox(Some(&net.path()), &["sleep"]);
    let client = first.created().await;
    assert!(net.takes_all_multicast("eth1") && net.takes_all_multicast("eth2"));
    end(&first, &client).await;
    assert!(!net.takes_all_multicast("eth1"), "as it was");
    assert!(net.takes_all_multicast("eth2"), "the engine's wish");

    let mut second = sandbox(Some(&net.path()), &["sleep"]);
    second.created().await;
    let pid = second.state().unwrap().pid;
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    second.wait_for("the taps to go", || net.taps() == 0).await;
    let spec = json!({ "linux": { "namespaces": [{ "type": "network", "path": net.path() }] } });
    lazaret_runtime::network::clear(&spec).unwrap();
    assert!(!net.takes_all_multicast("eth1"), "of who was killed");
}

#[tokio::test]
async fn equal_ways_over_several_networks_are_each_networks_own() {
    let net = Net::new();
    for number in [1, 2] {
        net.connect_container(number);
        net.inside(&format!(
            "-6 route append default via fd00:{number}::1 metric 100"
        ));
    }
    assert!(net.inside("-6 route show default").contains("nexthop"));
    let mut sandbox = sandbox(Some(&net.path()), &["sleep"]);
    let client = sandbox.created().await;
    for number in [1, 2_u8] {
        let eth = interface(&sandbox, &format!("eth{number}"));
        let routes: Vec<_> = eth
            .routes
            .iter()
            .map(|route| (route.prefix_length, route.metric, route.gateway.clone()))
            .collect();
        let mut gateway = vec![0; 16];
        (gateway[0], gateway[3], gateway[15]) = (0xfd, number, 1);
        assert_eq!(routes, [(0, 100, gateway)]);
    }
    end(&sandbox, &client).await;
}

#[tokio::test]
async fn settings_that_an_engine_has_made_are_the_guests() {
    let net = Net::new();
    net.connect_container(1);
    let container = net.container.clone();
    let set = |path: &'static str, value: &'static str| {
        let path = format!("/proc/sys/net/{path}");
        within(named(&container), move || fs::write(path, value).unwrap());
    };
    set("ipv4/conf/eth1/proxy_arp", "1");
    set("ipv4/conf/default/arp_ignore", "2");
    set("ipv6/conf/eth1/autoconf", "0");
    set("ipv6/conf/eth1/accept_ra", "0");
    set("ipv6/conf/eth1/mtu", "1300");
    let mut sandbox = sandbox(Some(&net.path()), &["sleep"]);
    let client = sandbox.created().await;
    let settings: Vec<_> = interface(&sandbox, "eth1")
        .settings
        .into_iter()
        .map(|setting| (setting.ipv6, setting.name, setting.value))
        .collect();
    let expected = [
        (false, "arp_ignore", "0"),
        (false, "proxy_arp", "1"),
        (true, "autoconf", "0"),
    ];
    assert_eq!(
        settings,
        expected.map(|(ipv6, name, value)| (ipv6, name.to_owned(), value.to_owned()))
    );
    end(&sandbox, &client).await;
}

#[tokio::test]
async fn engines_find_a_new_namespace_by_pid_and_fill_it_before_start() {
    let net = Net::new();
    let mut sandbox = sandbox(None, &["sleep"]);
    let client = sandbox.created().await;
    assert!(told(&sandbox).interfaces.is_empty());
    let pid = sandbox.state().unwrap().pid.to_string();
    net.connect(1, &pid);
    let inside = |arguments: &str| {
        let output = run("nsenter", &format!("-t {pid} -n ip {arguments}"));
        assert!(output.status.success(), "{arguments}: {output:?}");
    };
    let loopback = run("nsenter", &format!("-t {pid} -n ip link show up dev lo"));
    assert!(!loopback.stdout.is_empty(), "the loopback is up");
    Net::set_up(1, inside);
    client.start(context(), &start_request("")).await.unwrap();
    // At the latest now, and not some time after.
    assert_eq!(interface(&sandbox, "eth1").addresses.len(), 3);
    assert!(net.echoes(1));
    end(&sandbox, &client).await;
}

/// Docker leaves IPv6 out where the loopback has none after create.
#[tokio::test]
async fn settings_of_ipv6_are_the_namespaces_too() {
    let net = Net::new();
    for network in [None, Some(net.path())] {
        let mut sandbox = sandbox(network.as_deref(), &["sleep"]);
        sandbox.change_spec(|spec| {
            spec["linux"]["sysctl"] = json!({
                "net.ipv6.conf.all.disable_ipv6": "1",
                "net/ipv6/conf/default/accept_ra": "0",
                "net.ipv6.conf.lo.disable_ipv6": "0",
                "net.ipv4.ip_local_port_range": "2000 3000",
            });
        });
        let client = sandbox.created().await;
        let pid = sandbox.state().unwrap().pid;
        let namespace = File::open(format!("/proc/{pid}/ns/net")).unwrap();
        let settings = within(namespace, || {
            [
                "ipv6/conf/all/disable_ipv6",
                "ipv6/conf/default/disable_ipv6",
                "ipv6/conf/default/accept_ra",
                "ipv6/conf/lo/disable_ipv6",
                "ipv4/ip_local_port_range",
            ]
            .map(|name| fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap())
        });
        let [all, default, accept_ra, loopback, ports] = settings;
        assert_eq!([all, default], ["1\n", "1\n"]);
        assert_eq!(accept_ra, "0\n");
        assert_eq!(loopback, "0\n", "after what is for all");
        assert_ne!(ports, "2000\t3000\n", "the guest's alone");
        end(&sandbox, &client).await;
    }

    let sandbox = sandbox(None, &["sleep"]);
    let unknown = "net.ipv6.conf.all.no_such_setting";
    sandbox.change_spec(|spec| spec["linux"]["sysctl"] = json!({ unknown: "1" }));
    let output = sandbox.shim("start");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(unknown), "{text}");
    assert!(!sandbox.sandbox_dir().exists());
}

#[tokio::test]
async fn a_running_container_follows_its_network() {
    let net = Net::new();
    net.connect_container(1);
    let mut sandbox = sandbox(Some(&net.path()), &["sleep"]);
    let client = sandbox.created().await;
    client.start(context(), &start_request("")).await.unwrap();

    net.connect_container(2);
    sandbox
        .wait_for("the new interface", || {
            interface(&sandbox, "eth2").addresses.len() == 3
        })
        .await;
    assert_eq!(interface(&sandbox, "eth2").device, *b"\x02lzrt\x01");
    assert!(net.echoes(1) && net.echoes(2));

    net.inside("address add 192.0.2.7/32 dev eth1");
    net.inside("link set eth1 mtu 1400");
    sandbox
        .wait_for("the changes", || {
            let eth = interface(&sandbox, "eth1");
            eth.addresses.len() == 4 && eth.mtu == 1400
        })
        .await;
    assert!(net.inside("link show dev lz0").contains("mtu 1400"));

    ip(&format!("-n {} link delete v1", net.host));
    sandbox
        .wait_for("the interface to go", || {
            told(&sandbox).interfaces.len() == 1 && net.taps() == 1
        })
        .await;
    assert!(net.echoes(2));

    // The slot is free again.
    net.connect_container(3);
    sandbox
        .wait_for("the next interface", || {
            interface(&sandbox, "eth3").addresses.len() == 3
        })
        .await;
    assert_eq!(interface(&sandbox, "eth3").device, *b"\x02lzrt\x00");
    assert!(net.echoes(2) && net.echoes(3));
    end(&sandbox, &client).await;
    assert_eq!((net.taps(), net.qdiscs()), (0, 0));
}

#[tokio::test]
async fn an_interface_may_take_anothers_place_between_two_looks() {
    let net = Net::new();
    net.connect_container(1);
    // What lets the process go on is the container's too.
    let mut sandbox = sandbox(Some(&net.path()), &["ignore-signals"]);
    sandbox.running().await;
    let pid = sandbox.state().unwrap().pid;
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    ip(&format!("-n {} link delete v1", net.host));
    net.connect_container(2);
    kill_process(pid, Signal::CONT).unwrap();
    sandbox
        .wait_for("the new interface", || {
            interface(&sandbox, "eth2").addresses.len() == 3
        })
        .await;
    assert_eq!(interface(&sandbox, "eth2").device, *b"\x02lzrt\0");
    assert!(net.echoes(2));
    let log = sandbox.sandbox_log();
    assert!(!log.contains("belongs to another microVM"), "{log}");
}

#[tokio::test]
async fn an_interface_that_is_refused_is_tried_again_at_leisure() {
    let net = Net::new();
    let mut sandbox = sandbox(Some(&net.path()), &["sleep"]);
    let client = sandbox.created().await;
    client.start(context(), &start_request("")).await.unwrap();
    fs::write(sandbox.path("refusals"), "0").unwrap();
    let refusals = || {
        let count = fs::read_to_string(sandbox.path("refusals")).unwrap();
        count.parse::<u64>().unwrap()
    };
    let begin = Instant::now();
    net.connect_container(1);
    // That each comes after another needs no further change.
    sandbox.wait_for("requests", || refusals() >= 3).await;
    // Each tap that was made and dropped was a change.
    let most = 1 + begin.elapsed().as_secs();
    assert!(refusals() <= most, "{} in {most} seconds", refusals());

    fs::remove_file(sandbox.path("refusals")).unwrap();
    sandbox
        .wait_for("the interface", || {
            interface(&sandbox, "eth1").addresses.len() == 3
        })
        .await;
    assert!(net.echoes(1));
    end(&sandbox, &client).await;
}

/// A tap's longest frame is shorter than a veth's.
#[tokio::test]
async fn an_interface_with_the_longest_mtu_is_tied() {
    let net = Net::new();
    net.connect_container(1);
    net.inside("link set eth1 mtu 65535");
    let mut sandbox = sandbox(Some(&net.path()), &["sleep"]);
    let client = sandbox.created().await;
    assert_eq!(interface(&sandbox, "eth1").mtu, 65_535);
    assert!(net.echoes(1));
    for mtu in [1400, 65_535] {
        net.inside(&format!("link set eth1 mtu {mtu}"));
        sandbox
            .wait_for("the change", || interface(&sandbox, "eth1").mtu == mtu)
            .await;
        let tap = format!("mtu {} ", mtu.min(65_521));
        let shown = net.inside("link show dev lz0");
        assert!(shown.contains(&tap), "{shown}");
    }
    end(&sandbox, &client).await;
}

/// A start that is refused because the namespace is another's.
fn refused_start(sandbox: &Box_, net: &Net) {
    let output = sandbox.shim("start");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    let expected = format!("{} belongs to another microVM", net.path());
    assert!(text.contains(&expected), "{text}");
    assert!(!sandbox.sandbox_dir().exists());
}

#[tokio::test]
async fn an_empty_namespace_belongs_to_one_microvm_as_well() {
    let net = Net::new();
    let mut first = sandbox(Some(&net.path()), &["sleep"]);
    let client = first.created().await;
    refused_start(&sandbox(Some(&net.path()), &["sleep"]), &net);
    let state = first.state().unwrap();
    assert_eq!(
        net.holders(&[state.pid, state.vmm_pid.unwrap()]),
        [state.pid]
    );
    end(&first, &client).await;

    let mut third = sandbox(Some(&net.path()), &["sleep"]);
    let client = third.created().await;
    refused_start(&sandbox(Some(&net.path()), &["sleep"]), &net);
    client.start(context(), &start_request("")).await.unwrap();
    end(&third, &client).await;
}

/// One that was made without a claim, by an older lazaret or by hand.
#[tokio::test]
async fn a_foreign_tap_is_left_alone() {
    let net = Net::new();
    net.connect_container(1);
    net.inside("tuntap add lz0 mode tap");
    let mut sandbox = sandbox(Some(&net.path()), &["sleep"]);
    let (_, text) = refused_create(&mut sandbox).await;
    let expected = "interface eth1 belongs to another microVM, by its tap lz0";
    assert!(text.contains(expected), "{text}");
    sandbox.nothing_is_left().await;
}

#[tokio::test]
async fn a_namespace_belongs_to_one_microvm_until_it_ends_in_any_way() {
    let net = Net::new();
    net.connect_container(1);
    let mut first = sandbox(Some(&net.path()), &["sleep"]);
    let client = first.created().await;

    refused_start(&sandbox(Some(&net.path()), &["sleep"]), &net);
    client.start(context(), &start_request("")).await.unwrap();
    assert!(net.echoes(1), "the first one's wire is whole");

    let pid = first.state().unwrap().pid;
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    first.wait_for("the tap to go", || net.taps() == 0).await;
    assert_eq!(net.qdiscs(), 1, "nobody was there to remove it");

    let spec = json!({ "linux": { "namespaces": [{ "type": "network", "path": net.path() }] } });
    lazaret_runtime::network::clear(&spec).unwrap();
    assert_eq!(net.qdiscs(), 0, "who deletes the container does");
    net.tc("qdisc add dev eth1 ingress");
    lazaret_runtime::network::clear(&spec).unwrap();
    assert_eq!(net.qdiscs(), 1, "it may be anybody's");

    let mut third = sandbox(Some(&net.path()), &["sleep"]);
    let client = third.created().await;
    client.start(context(), &start_request("")).await.unwrap();
    assert!(net.echoes(1));
    end(&third, &client).await;
    assert_eq!((net.taps(), net.qdiscs()), (0, 0));
}

/// Who makes a container has claimed its namespace before there is a tap.
#[test]
fn a_namespace_that_is_claimed_is_not_cleared() {
    let net = Net::new();
    net.connect_container(1);
    let claim = within(named(&net.container), || {
        let name = UnixAddr::from_abstract_name("lazaret-microvm").unwrap();
        UnixListener::bind_addr(&name).unwrap()
    });
    net.tc("qdisc add dev eth1 ingress");
    let filter = "protocol all u32 match u32 0 0 flowid 1:1";
    net.tc(&format!(
        "filter add dev eth1 parent ffff: prio 27775 {filter}"
    ));
    let spec = json!({ "linux": { "namespaces": [{ "type": "network", "path": net.path() }] } });
    lazaret_runtime::network::clear(&spec).unwrap();
    assert_eq!(net.qdiscs(), 1);
    drop(claim);
    lazaret_runtime::network::clear(&spec).unwrap();
    assert_eq!(net.qdiscs(), 0);
}

#[tokio::test]
async fn what_a_guest_cannot_have_is_refused_by_name() {
    type Change = fn(&Net);
    let cases: [(Change, &str); 7] = [
        (
            |net| {
                for number in 1..=5 {
                    net.connect_container(number);
                }
            },
            "no slot is left for interface eth",
        ),
        (
            |net| {
                net.connect_container(1);
                net.tc("qdisc add dev eth1 ingress");
                net.tc("filter add dev eth1 parent ffff: prio 7 protocol ip u32 match u32 0 0 flowid 1:1");
            },
            "interface eth1 has traffic filters of its own",
        ),
        (
            |net| {
                net.inside("tuntap add tun7 mode tun");
                net.inside("link set tun7 up");
            },
            "interface tun7 is not of Ethernet's kind",
        ),
        (
            |net| {
                net.connect_container(1);
                net.inside("rule add from 10.0.1.2 table 77");
            },
            "a routing rule leads to table 77",
        ),
        (
            |net| {
                net.connect_container(1);
                let hops = "nexthop via 10.0.1.5 nexthop via 10.0.1.6";
                net.inside(&format!("route add 198.51.100.0/24 {hops}"));
            },
            "route to 198.51.100.0/24 has several next hops",
        ),
        (
            |net| {
                net.connect_container(1);
                net.inside("route add blackhole 198.51.100.0/24");
            },
            "route to 198.51.100.0/24 is of type blackhole",
        ),
        (
            |net| {
                net.connect_container(1);
                net.inside("-6 route add unreachable default metric 500");
            },
            "route to ::/0 is of type unreachable",
        ),
    ];
    for (change, expected) in cases {
        let net = Net::new();
        change(&net);
        let mut sandbox = sandbox(Some(&net.path()), &["sleep"]);
        let (_, text) = refused_create(&mut sandbox).await;
        assert!(text.contains(expected), "{text}");
        sandbox.nothing_is_left().await;
        assert_eq!(net.taps(), 0);
    }
}

#[test]
fn the_hosts_network_is_refused_before_anything_is_made() {
    for (namespaces, expected) in [
        (json!([]), "cannot share the host's network"),
        (
            json!([{ "type": "network", "path": "/proc/self/ns/net" }]),
            "the host's own network namespace",
        ),
        (
            json!([{ "type": "network", "path": "/proc/self/ns/ipc" }]),
            "is no network namespace",
        ),
    ] {
        let sandbox = Box_::new("ok", OCI);
        sandbox.spec(&["sleep"], |spec| spec["linux"]["namespaces"] = namespaces);
        let output = sandbox.shim("start");
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(expected), "{text}");
        assert!(!sandbox.sandbox_dir().exists());
    }
}

#[tokio::test]
async fn names_are_asked_of_the_engines_resolver() {
    let net = Net::new();
    net.connect_container(1);
    ip(&format!(
        "-n {} address add fd00:1::1/64 dev v1 nodad",
        net.host
    ));
    let resolver = within(named(&net.container), || {
        let address: SocketAddr = "127.0.0.11:53".parse().unwrap();
        let streams = TcpListener::bind(address).unwrap();
        (streams, UdpSocket::bind(address).unwrap())
    });
    let (streams, datagrams) = resolver;
    std::thread::spawn(move || {
        let mut query = [0; 512];
        let (length, client) = datagrams.recv_from(&mut query).unwrap();
        query[..length].reverse();
        datagrams.send_to(&query[..length], client).unwrap();
    });
    std::thread::spawn(move || {
        for client in streams.incoming() {
            let mut client = client.unwrap();
            // The first is the question whether somebody listens.
            let _ = std::io::copy(&mut client.try_clone().unwrap(), &mut client);
        }
    });
    let mut sandbox = sandbox(Some(&net.path()), &["sleep"]);
    let resolv_conf = sandbox.path("resolv.conf");
    fs::write(&resolv_conf, "nameserver 127.0.0.11\noptions ndots:0\n").unwrap();
    sandbox.change_spec(|spec| {
        let mount = json!({
            "type": "bind", "source": resolv_conf, "destination": "/etc/resolv.conf",
            "options": ["rbind"],
        });
        spec["mounts"].as_array_mut().unwrap().push(mount);
    });
    let client = sandbox.created().await;
    assert_eq!(told(&sandbox).name_server, [127, 0, 0, 11]);
    client.start(context(), &start_request("")).await.unwrap();
    let exec = exec_request("e1", &["resolve"]);
    client.exec(context(), &exec).await.unwrap();
    client.start(context(), &start_request("e1")).await.unwrap();
    let exit = client.wait(context(), &wait_request("e1")).await.unwrap();
    assert_eq!(exit.exit_status, 0);
    assert!(net.forwards("10.0.1.1:53", "0.0.0.0:0"));
    assert!(net.forwards("[fd00:1::1]:53", "[::]:0"));
    assert!(net.echoes(1), "all else is the guest's");
    assert!(
        net.echoes_between(53, 1, 64_511),
        "answers to its own resolver too"
    );
    end(&sandbox, &client).await;
}
