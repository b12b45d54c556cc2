//! Leads what is meant for an engine's embedded resolver to where the agent listens, as
//! engines do by address translation: port 53 stays free for a container's own server.
//! It is done as a socket names its peer (`BPF_PROG_TYPE_CGROUP_SOCK_ADDR`), so that
//! packets of others cost nothing. Only sockets of the agent's own network namespace are
//! led: in those that a container makes, the address is another's.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use crate::bpf::{
    CALL, CONNECT_4, CONNECT_6, EXIT, Hook, Instruction, JUMP_REGISTER_NOT_EQUAL,
    JUMP_WORD_NOT_EQUAL, LOAD_WORD, MOVE, MOVE_REGISTER, NETWORK_NAMESPACE_COOKIE, PEER_NAME_4,
    PEER_NAME_6, RECEIVE_4, RECEIVE_6, SEND_4, SEND_6, STORE_WORD, instruction, link, load,
    load_long,
};

const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const SCRATCH: u8 = 2;
/// The context again: a call leaves this register as it is.
const KEPT: u8 = 6;

/// Offsets in `struct bpf_sock_addr`, all in network byte order.
const USER_IP4: i16 = 4;
const USER_IP6: i16 = 8;
const USER_PORT: i16 = 24;

/// In force until it is dropped.
#[derive(Debug)]
pub(super) struct Redirect {
    _links: Vec<OwnedFd>,
}

impl Redirect {
    /// Leads from one port of `address` to another, and answers back, for all sockets of
    /// the network namespace with that cookie.
    pub(super) fn new(namespace: u64, address: IpAddr, from: u16, to: u16) -> io::Result<Self> {
        let hierarchy = hierarchy()?;
        let there = |address: &[(i16, i32)]| program(namespace, address, from, to);
        let back = |address: &[(i16, i32)]| program(namespace, address, to, from);
        // Sockets for IPv6 name the addresses of IPv4 too.
        let (mapped, words_6) = match address {
            IpAddr::V4(ip) => (Some(words_4(ip.octets())), words_6(ip.to_ipv6_mapped())),
            IpAddr::V6(ip) => (None, words_6(ip)),
        };
        let mut links = Vec::new();
        let mut ask = |hook: &Hook, program: &[Instruction]| -> io::Result<()> {
            let program = load(hook, program)?;
            links.push(link(hierarchy.as_fd(), &program, hook)?);
            Ok(())
        };
        if let Some(words_4) = mapped {
            for (hook, program) in [
                (CONNECT_4, there(&words_4)),
                (SEND_4, there(&words_4)),
                (RECEIVE_4, back(&words_4)),
                (PEER_NAME_4, back(&words_4)),
            ] {
                ask(&hook, &program)?;
            }
        }
        for (hook, program) in [
            (CONNECT_6, there(&words_6)),
            (SEND_6, there(&words_6)),
            (RECEIVE_6, back(&words_6)),
            (PEER_NAME_6, back(&words_6)),
        ] {
            ask(&hook, &program)?;
        }
        Ok(Self { _links: links })
    }
}

/// Changes the port where namespace, address and port are those.
fn program(namespace: u64, address: &[(i16, i32)], from: u16, to: u16) -> Vec<Instruction> {
    let port = |port: u16| i32::from(u16::from_ne_bytes(port.to_be_bytes()));
    let wanted = address.iter().copied().chain([(USER_PORT, port(from))]);
    let mut all = vec![instruction(MOVE_REGISTER, KEPT, CONTEXT, 0, 0)];
    for (offset, word) in wanted {
        all.push(instruction(LOAD_WORD, SCRATCH, CONTEXT, offset, 0));
        all.push(instruction(JUMP_WORD_NOT_EQUAL, SCRATCH, 0, 0, word));
    }
    all.push(instruction(CALL, 0, 0, 0, NETWORK_NAMESPACE_COOKIE));
    all.extend(load_long(SCRATCH, namespace));
    all.push(instruction(JUMP_REGISTER_NOT_EQUAL, ANSWER, SCRATCH, 0, 0));
    all.push(instruction(MOVE, SCRATCH, 0, 0, port(to)));
    all.push(instruction(STORE_WORD, KEPT, SCRATCH, USER_PORT, 0));
    // Others go on as they are.
    let end = all.len();
    for (place, test) in all.iter_mut().enumerate() {
        if [JUMP_WORD_NOT_EQUAL, JUMP_REGISTER_NOT_EQUAL].contains(&test.code) {
            test.offset = i16::try_from(end - place - 1).unwrap_or(i16::MAX);
        }
    }
    all.push(instruction(MOVE, ANSWER, 0, 0, 1));
    all.push(instruction(EXIT, 0, 0, 0, 0));
    all
}

fn words_4(octets: [u8; 4]) -> [(i16, i32); 1] {
    [(USER_IP4, i32::from_ne_bytes(octets))]
}

fn words_6(ip: Ipv6Addr) -> [(i16, i32); 4] {
    let octets = ip.octets();
    let word = |at: usize| {
        let [a, b, c, d] = [0, 1, 2, 3].map(|byte| octets[4 * at + byte]);
        i32::from_ne_bytes([a, b, c, d])
    };
    [
        (USER_IP6, word(0)),
        (USER_IP6 + 4, word(1)),
        (USER_IP6 + 8, word(2)),
        (USER_IP6 + 12, word(3)),
    ]
}

/// The cgroup of all processes.
fn hierarchy() -> io::Result<File> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let path = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let path = words.next()?;
        (words.next()? == "cgroup2").then_some(path)
    });
    File::open(path.ok_or(io::ErrorKind::NotFound)?)
}
