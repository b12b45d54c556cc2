//! Against the kernel, in a network namespace of the test's own thread, where veth
//! pairs stand for the guest's devices.
#![allow(unsafe_code, reason = "unshare has no safe wrapper")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{
    IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream,
    UdpSocket as StdUdpSocket,
};
use std::process::Command;
use std::time::Duration;

use lazaret_netlink::{Address, Link, LinkFlags, Neighbour, Route, Table};
use lazaret_protocol::agent as proto;
use lazaret_protocol::ports;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::*;

/// Leaves the calling test, loudly, when namespaces cannot be made.
macro_rules! enter_namespace {
    () => {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: {} needs root", module_path!());
            return;
        }
        // SAFETY: not CLONE_FILES, the one flag that descriptors depend on.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("new network namespace");
        crate::loopback::up().expect("loopback");
    };
}

/// A host whose resolver answers with the query, reversed.
#[derive(Clone, Debug)]
pub(super) struct Reversing;

impl Dial for Reversing {
    type Stream = DuplexStream;

    async fn dial(&self) -> std::io::Result<DuplexStream> {
        let (guest, mut host) = duplex(128 * 1024);
        tokio::spawn(async move {
            let kind = host.read_u8().await?;
            assert!([ports::DNS_DATAGRAM, ports::DNS_STREAM].contains(&kind));
            loop {
                let length = host.read_u16().await?;
                let mut message = vec![0; usize::from(length)];
                host.read_exact(&mut message).await?;
                message.reverse();
                host.write_u16(length).await?;
                host.write_all(&message).await?;
                if kind == ports::DNS_DATAGRAM {
                    return Ok::<_, std::io::Error>(());
                }
            }
        });
        Ok(guest)
    }
}

/// No resolver, no host.
#[derive(Clone, Debug)]
struct Nobody;

impl Dial for Nobody {
    type Stream = DuplexStream;

    async fn dial(&self) -> std::io::Result<DuplexStream> {
        Err(ErrorKind::ConnectionRefused.into())
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_ascii_whitespace())
        .output()
        .expect("ip runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {text}");
}

/// A device named `name` that has a carrier; its address.
fn device(name: &str, number: u8) -> Vec<u8> {
    let address = [2, 0, 0, 0, 0, number];
    ip(&format!(
        "link add {name} address 02:00:00:00:00:{number:02x} type veth peer name peer{number}"
    ));
    ip(&format!("link set peer{number} up"));
    address.to_vec()
}

fn links() -> Vec<Link> {
    Link::list(&mut Socket::open().expect("socket")).expect("links")
}

fn link(name: &str) -> Option<Link> {
    links().into_iter().find(|link| link.name == name)
}

fn addresses(index: u32) -> Vec<Address> {
    let all = Address::list(&mut Socket::open().expect("socket")).expect("addresses");
    all.into_iter().filter(|a| a.index == index).collect()
}

fn routes(index: u32) -> Vec<Route> {
    let table = Table::read(&mut Socket::open().expect("socket")).expect("routes");
    let mut routes: Vec<_> = table
        .routes
        .into_iter()
        .filter(|r| r.index == index)
        .collect();
    routes.sort_by_key(|route| (route.destination, route.prefix_length));
    routes
}

fn octets(ip: &str) -> Vec<u8> {
    match ip.parse().expect("an address") {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn address(ip: &str, prefix_length: u32) -> proto::InterfaceAddress {
    proto::InterfaceAddress {
        address: octets(ip),
        prefix_length,
        ..proto::InterfaceAddress::default()
    }
}

fn default_route(gateway: &str) -> proto::Route {
    let gateway = octets(gateway);
    proto::Route {
        destination: vec![0; gateway.len()],
        gateway,
        protocol: 3,
        ..proto::Route::default()
    }
}

fn gateways(index: u32) -> Vec<String> {
    routes(index)
        .iter()
        .filter(|route| route.prefix_length == 0)
        .map(|route| route.gateway.expect("gateway").to_string())
        .collect()
}

/// What Docker sets up, with IPv6.
fn interface(device: Vec<u8>) -> proto::Interface {
    proto::Interface {
        device,
        name: "eth0".to_owned(),
        hardware_address: vec![2, 0x42, 0xac, 17, 0, 2],
        mtu: 1450,
        ipv6: true,
        addresses: vec![
            address("172.17.0.2", 16),
            address("fd00:17::2", 64),
            proto::InterfaceAddress {
                scope: 253,
                ..address("fe80::42:acff:fe11:2", 64)
            },
        ],
        routes: vec![default_route("172.17.0.1"), default_route("fd00:17::1")],
        neighbours: vec![proto::Neighbour {
            address: octets("172.17.0.9"),
            hardware_address: vec![2, 0, 0, 0, 9, 9],
            ..proto::Neighbour::default()
        }],
        ..proto::Interface::default()
    }
}

fn request(interfaces: Vec<proto::Interface>) -> proto::ConfigureNetworkRequest {
    proto::ConfigureNetworkRequest {
        interfaces,
        ..proto::ConfigureNetworkRequest::default()
    }
}

#[tokio::test]
async fn a_device_becomes_the_hosts_interface() {
    enter_namespace!();
    let network = Network::new(Nobody);
    let wished = request(vec![interface(device("slot", 1))]);
    for round in 0..2 {
        network.configure(&wished).await.expect("configured");
        let link = link("eth0").expect("renamed");
        assert_eq!(link.mtu, 1450, "round {round}");
        assert_eq!(link.hardware_address, Some([2, 0x42, 0xac, 17, 0, 2]));
        assert!(link.flags.contains(LinkFlags::LOWER_UP));
        let mut ips: Vec<_> = addresses(link.index)
            .iter()
            .map(|address| (address.ip.to_string(), address.prefix_length))
            .collect();
        ips.sort();
        assert_eq!(
            ips,
            [
                ("172.17.0.2".to_owned(), 16),
                ("fd00:17::2".to_owned(), 64),
                ("fe80::42:acff:fe11:2".to_owned(), 64),
            ]
        );
        assert_eq!(gateways(link.index), ["172.17.0.1", "fd00:17::1"]);
        let neighbours = Neighbour::list(&mut Socket::open().expect("socket")).expect("list");
        assert!(neighbours.iter().any(|neighbour| {
            neighbour.ip == IpAddr::V4(Ipv4Addr::new(172, 17, 0, 9))
                && neighbour.hardware_address == [2, 0, 0, 0, 9, 9]
        }));
    }
    // Tentative addresses cannot be bound.
    StdUdpSocket::bind("[fd00:17::2]:0").expect("usable at once");
}

#[tokio::test]
async fn changes_are_made_and_what_a_container_has_added_stays() {
    enter_namespace!();
    let network = Network::new(Nobody);
    let device = device("slot", 1);
    let mut wished = interface(device);
    let configure = async |interface: &proto::Interface| {
        let request = request(vec![interface.clone()]);
        network.configure(&request).await.expect("configured");
    };
    configure(&wished).await;
    ip("address add 192.0.2.1/32 dev eth0");
    ip("route add 198.51.100.0/24 via 172.17.0.7");

    wished.mtu = 1300;
    wished.addresses[0] = address("172.17.0.5", 16);
    wished.neighbours.clear();
    wished.routes[1] = default_route("fd00:17::99");
    wished.routes.push(proto::Route {
        destination: octets("203.0.113.7"),
        prefix_length: 32,
        gateway: octets("100.64.0.1"),
        on_link: true,
        metric: 77,
        mtu: 1280,
        protocol: 4,
        ..proto::Route::default()
    });
    configure(&wished).await;
    let link = link("eth0").expect("there");
    assert_eq!(link.mtu, 1300);
    let ips: Vec<_> = addresses(link.index)
        .iter()
        .map(|address| address.ip.to_string())
        .collect();
    assert!(ips.contains(&"192.0.2.1".to_owned()), "{ips:?}");
    assert!(ips.contains(&"172.17.0.5".to_owned()), "{ips:?}");
    assert!(!ips.contains(&"172.17.0.2".to_owned()), "{ips:?}");
    let routes = routes(link.index);
    let to = |ip: &str| {
        let ip: IpAddr = ip.parse().expect("an address");
        let mut found = routes.iter().filter(move |route| route.destination == ip);
        (found.next().copied(), found.count())
    };
    let (added, others) = to("203.0.113.7");
    let added = added.expect("added");
    assert!(added.on_link && others == 0);
    assert_eq!((added.metric, added.mtu), (77, Some(1280)));
    assert!(to("198.51.100.0").0.is_some(), "the container's own");
    let (default, others) = to("::");
    let gateway = default.and_then(|route| route.gateway);
    assert_eq!(gateway, "fd00:17::99".parse().ok());
    assert_eq!(others, 0);
    assert!(to("0.0.0.0").0.is_some());
}

#[tokio::test]
async fn a_secondary_address_outlives_its_primary() {
    enter_namespace!();
    for of in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv4/conf/{of}/promote_secondaries");
        std::fs::write(path, "0").expect("as in a guest");
    }
    let network = Network::new(Nobody);
    let mut wished = interface(device("slot", 1));
    let configure = async |interface: &proto::Interface| {
        let request = request(vec![interface.clone()]);
        network.configure(&request).await.expect("configured");
        let link = link("eth0").expect("there");
        let mut ips: Vec<_> = addresses(link.index)
            .iter()
            .map(|address| address.ip.to_string())
            .collect();
        ips.sort();
        (ips, gateways(link.index))
    };
    wished.addresses = vec![
        address("172.17.0.2", 16),
        address("172.17.0.3", 16),
        address("fd00:17::2", 64),
    ];
    let (ips, before) = configure(&wished).await;
    assert_eq!(ips, ["172.17.0.2", "172.17.0.3", "fd00:17::2"]);
    wished.addresses.remove(0);
    let (ips, gateways) = configure(&wished).await;
    assert_eq!(ips, ["172.17.0.3", "fd00:17::2"]);
    assert_eq!(gateways, before);
}

/// As podman gives one to a container.
fn network_of_podman(device: &[u8], number: u8) -> proto::Interface {
    let default = |gateway: String| proto::Route {
        metric: 100,
        ..default_route(&gateway)
    };
    proto::Interface {
        name: format!("eth{number}"),
        hardware_address: vec![2, 0, 0, 0, 1, number],
        addresses: vec![
            address(&format!("10.0.{number}.2"), 24),
            address(&format!("fd00:{number}::2"), 64),
        ],
        routes: vec![
            default(format!("10.0.{number}.1")),
            default(format!("fd00:{number}::1")),
        ],
        neighbours: Vec::new(),
        ..interface(device.to_vec())
    }
}

#[tokio::test]
async fn each_network_keeps_its_default_route() {
    enter_namespace!();
    let network = Network::new(Nobody);
    let (one, two) = (device("slot1", 1), device("slot2", 2));
    let (one, two) = (network_of_podman(&one, 1), network_of_podman(&two, 2));
    network
        .configure(&request(vec![one.clone(), two.clone()]))
        .await
        .expect("configured");
    let first = link("eth1").expect("first").index;
    let second = link("eth2").expect("second").index;
    let ours = ["10.0.1.1", "fd00:1::1"];
    assert_eq!(gateways(first), ours);
    assert_eq!(gateways(second), ["10.0.2.1", "fd00:2::1"]);

    network
        .configure(&request(vec![one.clone()]))
        .await
        .expect("configured");
    assert_eq!(gateways(first), ours, "the other one is disconnected");
    assert!(gateways(second).is_empty());

    network
        .configure(&request(vec![one, two]))
        .await
        .expect("configured");
    assert_eq!(gateways(first), ours);
    assert_eq!(gateways(second).len(), 2, "connected again");
}

#[tokio::test]
async fn a_route_of_the_same_place_is_changed_and_order_is_the_hosts() {
    enter_namespace!();
    let network = Network::new(Nobody);
    let mut wished = network_of_podman(&device("slot", 1), 1);
    wished.addresses.push(address("10.0.1.3", 24));
    wished.routes.truncate(1);
    let configure = async |interface: &proto::Interface| {
        let request = request(vec![interface.clone()]);
        network.configure(&request).await.expect("configured");
    };
    configure(&wished).await;
    let index = link("eth1").expect("there").index;
    wished.routes[0].mtu = 1280;
    wished.routes[0].preferred_source = octets("10.0.1.3");
    configure(&wished).await;
    let defaults = routes(index).into_iter().filter(|r| r.prefix_length == 0);
    let found: Vec<_> = defaults.map(|r| (r.mtu, r.preferred_source)).collect();
    assert_eq!(found, [(Some(1280), "10.0.1.3".parse().ok())]);

    wished.routes = vec![default_route("10.0.1.8"), default_route("10.0.1.7")];
    configure(&wished).await;
    assert_eq!(gateways(index), ["10.0.1.8", "10.0.1.7"]);
}

fn setting(ipv6: bool, name: &str, value: &str) -> proto::InterfaceSetting {
    proto::InterfaceSetting {
        ipv6,
        name: name.to_owned(),
        value: value.to_owned(),
        ..proto::InterfaceSetting::default()
    }
}

#[tokio::test]
async fn settings_are_the_hosts_and_are_taken_back() {
    enter_namespace!();
    let network = Network::new(Nobody);
    let mut wished = interface(device("slot", 1));
    let configure = async |interfaces: Vec<proto::Interface>| {
        let request = request(interfaces);
        network.configure(&request).await.expect("configured");
    };
    let read = |path: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/{path}")).expect("readable");
        text.trim().to_owned()
    };
    wished.settings = vec![
        setting(false, "proxy_arp", "1"),
        setting(false, "of_no_kernel", "1"),
        setting(true, "autoconf", "0"),
        setting(true, "forwarding", "1"),
    ];
    configure(vec![wished.clone()]).await;
    assert_eq!(read("ipv4/conf/eth0/proxy_arp"), "1");
    assert_eq!(read("ipv6/conf/eth0/autoconf"), "0");
    assert_eq!(read("ipv6/conf/eth0/forwarding"), "1");

    let before = link("eth0").expect("there");
    wished.settings = vec![setting(true, "autoconf", "0"), setting(false, "tag", "7")];
    configure(vec![wished.clone()]).await;
    assert_eq!(read("ipv4/conf/eth0/proxy_arp"), "0", "no longer wished");
    assert_eq!(read("ipv6/conf/eth0/forwarding"), "0");
    assert_eq!(read("ipv6/conf/eth0/autoconf"), "0");
    assert_eq!(read("ipv4/conf/eth0/tag"), "7");
    assert_eq!(link("eth0").expect("there").index, before.index);

    wished.name = "eth5".to_owned();
    wished.settings.clear();
    configure(vec![wished.clone()]).await;
    assert_eq!(read("ipv4/conf/eth5/tag"), "0", "with another name");
    assert_eq!(read("ipv6/conf/eth5/autoconf"), "1");

    wished.settings = vec![setting(false, "tag", "words")];
    let refused = network.configure(&request(vec![wished])).await;
    let failure = refused.expect_err("no number");
    assert!(failure.message.contains("eth5/tag"), "{failure}");
}

#[tokio::test]
async fn names_are_exchanged_and_given_up() {
    enter_namespace!();
    let network = Network::new(Nobody);
    let (one, two) = (device("eth0", 1), device("eth1", 2));
    let named = |device: &[u8], name: &str, last: u8| proto::Interface {
        name: name.to_owned(),
        hardware_address: vec![2, 0, 0, 0, 1, last],
        ipv6: false,
        addresses: vec![address(&format!("10.0.{last}.1"), 24)],
        routes: Vec::new(),
        neighbours: Vec::new(),
        ..interface(device.to_vec())
    };
    // In a guest both are devices, and may lose their names to each other.
    ip("link set eth1 name slot1");
    let wished = request(vec![named(&one, "eth7", 1), named(&two, "eth1", 2)]);
    network.configure(&wished).await.expect("configured");
    let (first, second) = (link("eth7").expect("first"), link("eth1").expect("second"));
    let wished = request(vec![named(&two, "eth2", 2)]);
    network.configure(&wished).await.expect("configured");
    assert_eq!(link("eth2").expect("renamed").index, second.index);
    assert!(link("eth7").is_none());
    let idle = links().into_iter().find(|link| link.index == first.index);
    assert!(!idle.expect("still there").flags.contains(LinkFlags::UP));
    assert!(addresses(first.index).is_empty());
    // Back into use, and names exchanged.
    let wished = request(vec![named(&two, "eth2", 2), named(&one, "eth1", 3)]);
    network.configure(&wished).await.expect("configured");
    assert_eq!(link("eth1").expect("again").index, first.index);
    let wished = request(vec![named(&two, "eth1", 2), named(&one, "eth2", 3)]);
    network.configure(&wished).await.expect("configured");
    assert_eq!(link("eth2").expect("exchanged").index, first.index);
    assert_eq!(link("eth1").expect("exchanged").index, second.index);
    assert_eq!(addresses(first.index).len(), 1);
    assert_eq!(addresses(second.index).len(), 1);
}

#[tokio::test]
async fn an_interface_without_ipv6_has_none() {
    enter_namespace!();
    let network = Network::new(Nobody);
    let mut wished = interface(device("slot", 1));
    wished.ipv6 = false;
    wished.addresses.truncate(1);
    wished.routes.truncate(1);
    network
        .configure(&request(vec![wished]))
        .await
        .expect("configured");
    let link = link("eth0").expect("renamed");
    assert_eq!(addresses(link.index).len(), 1);
}

#[tokio::test]
async fn names_made_by_containers_and_missing_devices_are_errors() {
    enter_namespace!();
    let network = Network::new(Nobody);
    ip("link add eth0 type veth peer name other");
    let taken = request(vec![interface(device("slot", 1))]);
    let failure = network.configure(&taken).await.expect_err("taken");
    assert!(failure.message.contains("made in the guest"), "{failure}");
    tokio::time::pause();
    let missing = request(vec![interface(vec![2, 9, 9, 9, 9, 9])]);
    let failure = network.configure(&missing).await.expect_err("missing");
    assert!(failure.message.contains("no network device"), "{failure}");
}

#[tokio::test]
async fn a_late_device_is_waited_for() {
    enter_namespace!();
    let network = Network::new(Nobody);
    let wished = request(vec![interface(vec![2, 0, 0, 0, 0, 1])]);
    let (configured, ()) = tokio::join!(network.configure(&wished), async {
        tokio::task::yield_now().await;
        device("slot", 1);
    });
    configured.expect("configured");
    assert!(link("eth0").is_some());
}

#[tokio::test]
async fn names_are_served_over_udp_and_tcp_until_no_longer_wished() {
    enter_namespace!();
    let network = Network::new(Reversing);
    let mut wished = request(Vec::new());
    wished.name_server = vec![127, 0, 0, 11];
    network.configure(&wished).await.expect("configured");
    // The port is free for a server of the container's.
    let own_datagrams = UdpSocket::bind("0.0.0.0:53").await.expect("free");
    let own_streams = TcpListener::bind("0.0.0.0:53").await.expect("free");

    let client = UdpSocket::bind("127.0.0.1:0").await.expect("socket");
    // Who sends to it is answered by it.
    client.send_to(b"abc", "127.0.0.11:53").await.expect("sent");
    let mut answer = [0; 4];
    let (length, from) = client.recv_from(&mut answer).await.expect("answered");
    assert_eq!(
        (&answer[..length], from.to_string().as_str()),
        (&b"cba"[..], "127.0.0.11:53")
    );

    client.connect("127.0.0.11:53").await.expect("connected");
    for size in [3, 1232, 60_000] {
        let query: Vec<u8> = (0..size).map(|at: u32| at.to_le_bytes()[0]).collect();
        client.send(&query).await.expect("sent");
        let mut answer = vec![0; 65_536];
        let length = client.recv(&mut answer).await.expect("answered");
        answer.truncate(length);
        answer.reverse();
        assert!(answer == query, "{size} bytes");
    }

    // A socket of IPv6 names the same server.
    let client_6 = UdpSocket::bind("[::]:0").await.expect("socket");
    client_6
        .connect("[::ffff:127.0.0.11]:53")
        .await
        .expect("connected");
    client_6.send(b"abc").await.expect("sent");
    let length = client_6.recv(&mut answer).await.expect("answered");
    assert_eq!(&answer[..length], b"cba");

    let mut client = TcpStream::connect("127.0.0.11:53")
        .await
        .expect("connected");
    assert_eq!(client.peer_addr().expect("connected").port(), 53);
    for query in [&b"abc"[..], b"defg"] {
        let length = u16::try_from(query.len()).expect("short");
        client.write_u16(length).await.expect("sent");
        client.write_all(query).await.expect("sent");
        assert_eq!(client.read_u16().await.expect("answered"), length);
        let mut answer = vec![0; query.len()];
        client.read_exact(&mut answer).await.expect("answered");
        answer.reverse();
        assert_eq!(answer, query);
    }

    network
        .configure(&request(Vec::new()))
        .await
        .expect("configured");
    drop((own_datagrams, own_streams));
    // A command that another test starts has the listener too, until it is executed; a
    // connection to it is reset then.
    let refused = async {
        loop {
            match TcpStream::connect("127.0.0.11:53").await {
                Err(err) if err.kind() == ErrorKind::ConnectionRefused => return,
                Err(err) if err.kind() != ErrorKind::ConnectionReset => panic!("{err}"),
                Ok(_) | Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(60), refused);
    refused.await.expect("closed");
}

/// In a network namespace that has a name server of its own, at the same address.
fn ask_the_server_of_a_new_namespace() {
    enter_namespace!();
    let deadline = Some(Duration::from_secs(60));
    let own_datagrams = StdUdpSocket::bind("127.0.0.11:53").expect("free");
    let own_streams = StdTcpListener::bind("127.0.0.11:53").expect("free");
    own_datagrams.set_read_timeout(deadline).expect("set");

    let mut buffer = [0; 4];
    for local in ["127.0.0.1:0", "[::]:0"] {
        let client = StdUdpSocket::bind(local).expect("socket");
        client.set_read_timeout(deadline).expect("set");
        let server = match client.local_addr().expect("bound") {
            SocketAddr::V4(_) => "127.0.0.11:53",
            SocketAddr::V6(_) => "[::ffff:127.0.0.11]:53",
        };
        client.send_to(b"abc", server).expect("sent");
        let (_, asked_by) = own_datagrams.recv_from(&mut buffer).expect("asked");
        own_datagrams.send_to(b"own", asked_by).expect("sent");
        let (length, from) = client.recv_from(&mut buffer).expect("answered");
        assert_eq!(&buffer[..length], b"own");
        assert_eq!(from.to_string(), server);
    }

    let mut client = StdTcpStream::connect("127.0.0.11:53").expect("connected");
    let peer = client.peer_addr().expect("connected");
    assert_eq!(peer.to_string(), "127.0.0.11:53");
    let (mut connection, _) = own_streams.accept().expect("accepted");
    connection.write_all(b"own").expect("sent");
    client.read_exact(&mut buffer[..3]).expect("answered");
    assert_eq!(&buffer[..3], b"own");
}

#[tokio::test]
async fn a_namespace_that_a_container_makes_has_name_servers_of_its_own() {
    enter_namespace!();
    let network = Network::new(Reversing);
    let mut wished = request(Vec::new());
    wished.name_server = vec![127, 0, 0, 11];
    network.configure(&wished).await.expect("configured");
    std::thread::spawn(ask_the_server_of_a_new_namespace)
        .join()
        .expect("answered by its own");

    let client = UdpSocket::bind("127.0.0.1:0").await.expect("socket");
    client.send_to(b"abc", "127.0.0.11:53").await.expect("sent");
    let mut answer = [0; 4];
    let (length, _) = client.recv_from(&mut answer).await.expect("answered");
    assert_eq!(&answer[..length], b"cba", "by the agent here");
}
