use std::io::Write;

use super::guest::*;
use crate::devices::virtio::vsock::muxer::CONNECTIONS_MAX;
use crate::devices::virtio::vsock::packet::{Header, Op};

#[test]
fn packets_of_other_cids_are_dropped() {
    let mut guest = Guest::new();
    let (host, (host_port, guest_port)) = guest.connect_from_host();
    for (src_cid, dst_cid) in [(4, 2), (3, 3), (2, 3), (u64::MAX, 2), (3, 1 << 32 | 2)] {
        let header = Header {
            src_cid,
            dst_cid,
            ..guest.header(Op::Reset, host_port, guest_port)
        };
        guest.send(header, &[]);
    }
    guest.receive_nothing();
    assert!(!is_closed(&host));
}

#[test]
fn packet_of_another_type_is_reset_in_its_type() {
    let mut guest = Guest::new();
    let header = Header {
        kind: 2,
        ..guest.header(Op::Request, OPEN, 5000)
    };
    guest.send(header, &[]);
    assert_eq!(guest.receive_one(Op::Reset).header.kind, 2);
    guest.nothing_connected();
}

#[test]
fn unknown_operation_resets_the_connection() {
    for op in [0, 8, u16::MAX] {
        let mut guest = Guest::new();
        let (host, (host_port, guest_port)) = guest.connect_from_host();
        let header = Header {
            op,
            ..guest.header(Op::Data, host_port, guest_port)
        };
        guest.send(header, &[]);
        guest.receive_one(Op::Reset);
        assert!(is_closed(&host));
    }
}

#[test]
fn length_beyond_the_chain_resets_the_connection() {
    for len in [4, u32::MAX] {
        let mut guest = Guest::new();
        let (host, (host_port, guest_port)) = guest.connect_from_host();
        let header = Header {
            len,
            ..guest.header(Op::Data, host_port, guest_port)
        };
        guest.send(header, b"abc");
        guest.receive_one(Op::Reset);
        assert_eq!(drain(&host), (vec![], true));
    }
}

#[test]
fn bytes_past_the_packets_length_are_not_data() {
    let mut guest = Guest::new();
    let (host, (host_port, guest_port)) = guest.connect_from_host();
    let header = Header {
        len: 2,
        ..guest.header(Op::Data, host_port, guest_port)
    };
    guest.send(header, b"abc");
    assert_eq!(drain(&host).0, b"ab");
}

#[test]
fn packet_for_no_connection_is_reset_unless_it_is_a_reset() {
    let mut guest = Guest::new();
    for op in [
        Op::Response,
        Op::Shutdown,
        Op::Data,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        guest.control(op, (OPEN, 5000));
        guest.receive_one(Op::Reset);
    }
    guest.control(Op::Reset, (OPEN, 5000));
    guest.receive_nothing();
}

#[test]
fn packets_before_the_answer_reset_the_connection() {
    for op in [Op::Data, Op::Shutdown, Op::CreditUpdate, Op::Request] {
        let mut guest = Guest::new();
        let host = guest.host(b"CONNECT 77\n");
        let request = guest.receive_one(Op::Request).header;
        guest.control(op, (request.src_port, 77));
        guest.receive_one(Op::Reset);
        assert!(is_closed(&host));
    }
}

#[test]
fn second_answer_resets_the_connection() {
    let mut guest = Guest::new();
    let (host, ports) = guest.connect_from_host();
    guest.control(Op::Response, ports);
    guest.receive_one(Op::Reset);
    assert!(is_closed(&host));
}

#[test]
fn packet_in_many_pieces_is_one_packet() {
    let mut guest = Guest::new();
    let (host, (host_port, guest_port)) = guest.connect_from_host();
    let header = Header {
        len: 6,
        ..guest.header(Op::Data, host_port, guest_port)
    };
    let buffer = guest.machine.buffer(128);
    let bytes = [header.to_bytes().as_slice(), b"abcdef"].concat();
    guest.machine.write(buffer, &bytes);
    guest.tx.add(
        &guest.machine,
        &[
            (buffer, 1, false),
            (buffer + 1, 42, false),
            (buffer + 43, 0, false),
            (buffer + 43, 3, false),
            (buffer + 46, 4, false),
        ],
    );
    guest.machine.kick(1);
    assert_eq!(drain(&host).0, b"abcdef");
}

#[test]
fn receive_buffer_in_pieces_is_filled() {
    let mut guest = Guest::without_buffers();
    let buffer = guest.machine.buffer(4096);
    guest.rx.add(
        &guest.machine,
        &[
            (buffer, 30, true),
            (buffer + 30, 20, true),
            (buffer + 50, 14, true),
        ],
    );
    guest.host(b"CONNECT 77\n");
    guest.machine.kick(0);
    assert_eq!(guest.rx.take_used(&guest.machine), [44]);
    let header = guest.machine.read(buffer, 44).try_into().unwrap();
    assert_eq!(Header::parse(&header).op, Op::Request.number());
}

#[test]
fn useless_receive_buffers_cost_the_driver_only() {
    let mut guest = Guest::without_buffers();
    let buffer = guest.machine.buffer(4096);
    let parts: [(u64, u32, bool); 5] = [
        (buffer, 43, true),
        (buffer, 4096, false),
        (u64::MAX - 8, 4096, true),
        (0x4000_0000_0000, 4096, true),
        (buffer, 0, true),
    ];
    for part in parts {
        guest.rx.add(&guest.machine, &[part]);
    }
    // Room for a header, none for data.
    for _ in 0..2 {
        guest.rx.add(&guest.machine, &[(buffer, 44, true)]);
    }
    let mut host = guest.host(b"CONNECT 77\n");
    guest.machine.kick(0);
    let used = guest.rx.take_used(&guest.machine);
    assert_eq!(used, [0, 0, 0, 0, 0, 44]);
    let header = guest.machine.read(buffer, 44).try_into().unwrap();
    let request = Header::parse(&header);
    guest.control(Op::Response, (request.src_port, 77));
    host.write_all(b"hello").unwrap();
    guest.machine.settle();
    assert_eq!(guest.rx.take_used(&guest.machine), [0]);
    guest.post(1);
    assert_eq!(guest.receive_data(), b"hello");
}

#[test]
fn transmit_chains_without_a_packet_are_given_back() {
    let mut guest = Guest::new();
    let buffer = guest.machine.buffer(4096);
    for part in [
        (buffer, 43, false),
        (buffer, 4096, true),
        (u64::MAX - 8, 44, false),
        (buffer, 0, false),
    ] {
        guest.tx.add(&guest.machine, &[part]);
    }
    guest.machine.kick(1);
    assert_eq!(guest.tx.take_used(&guest.machine), [0; 4]);
    guest.receive_nothing();
}

#[test]
fn chain_that_runs_in_a_circle_ends() {
    let mut guest = Guest::new();
    let buffer = guest.machine.buffer(4096);
    guest
        .tx
        .set_descriptor(&guest.machine, 0, buffer, 4096, 1, 1);
    guest
        .tx
        .set_descriptor(&guest.machine, 1, buffer, 4096, 1, 0);
    guest.tx.publish(&guest.machine, 0);
    guest.machine.kick(1);
    assert_eq!(guest.tx.take_used(&guest.machine), [0]);
    guest.connect_from_host();
}

#[test]
fn head_outside_the_table_breaks_the_device_until_a_reset() {
    let mut guest = Guest::new();
    guest.tx.publish(&guest.machine, 128);
    guest.machine.kick(1);
    assert!(guest.machine.needs_reset());
    guest.reset();
    guest.connect_from_host();
}

#[test]
fn flood_without_receive_buffers_waits_in_the_guest() {
    let mut guest = Guest::without_buffers();
    for port in 0..120 {
        let header = guest.header(Op::Request, 9, port);
        guest.queue(header, &[]);
    }
    guest.machine.kick(1);
    let taken = guest.tx.take_used(&guest.machine).len();
    assert!(taken < 120, "{taken} answers are kept");
    guest.post(20);
    let resets = guest.receive();
    assert_eq!(resets.len(), 120);
    assert!(resets.iter().all(|p| p.op() == Some(Op::Reset)));
}

#[test]
fn connections_past_the_limit_are_reset() {
    allow_many_descriptors();
    let mut guest = Guest::new();
    let limit = u32::try_from(CONNECTIONS_MAX).unwrap();
    let mut hosts: Vec<_> = (0..limit)
        .map(|port| guest.connect_to_host(port).0)
        .collect();
    guest.control(Op::Request, (OPEN, limit));
    guest.receive_one(Op::Reset);
    let refused = guest.host(b"CONNECT 77\n");
    guest.receive_nothing();
    assert!(is_closed(&refused));
    guest.data((OPEN, limit - 1), b"still served");
    assert_eq!(drain(&hosts.pop().unwrap()).0, b"still served");
    guest.control(Op::Reset, (OPEN, 0));
    guest.receive();
    guest.connect_from_host();
}

/// xorshift64*: sequences that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % end
    }

    fn index(&mut self, end: u64) -> usize {
        usize::try_from(self.below(end)).unwrap()
    }

    fn below32(&mut self, end: u32) -> u32 {
        u32::try_from(self.below(u64::from(end))).unwrap()
    }
}

#[test]
fn random_packets_leave_a_device_that_works() {
    for seed in 1..40 {
        let mut random = Random(seed);
        let mut guest = Guest::new();
        let mut hosts = Vec::new();
        for _ in 0..300 {
            let host_port = [OPEN, REFUSING, 1 << 30, (1 << 30) + 1][random.index(4)];
            let mut header = guest.header(Op::Data, host_port, random.below32(4));
            header.op = u16::try_from(random.below(9)).unwrap();
            header.kind = u16::from(random.below(20) != 0);
            header.flags = random.below32(5);
            header.len = random.below32(200);
            if random.below(10) == 0 {
                header.buf_alloc = random.below32(u32::MAX);
                header.fwd_cnt = random.below32(u32::MAX);
            }
            let data = vec![7; random.index(200)];
            guest.send(header, &data);
            match random.below(6) {
                0 => hosts.push(guest.host(b"CONNECT 1\n")),
                1 if !hosts.is_empty() => drop(hosts.remove(0)),
                2 => {
                    // The guest may have closed it.
                    let _ = hosts.last_mut().map(|host| host.write(&[9; 5000]));
                }
                _ => {}
            }
            guest.receive();
        }
        assert!(!guest.machine.needs_reset(), "seed {seed}");
        guest.reset();
        guest.connect_from_host();
    }
}

#[test]
fn random_descriptors_leave_a_device_that_works() {
    for seed in 1..150 {
        let mut random = Random(seed);
        let mut guest = Guest::new();
        let (mut host, _) = guest.connect_from_host();
        let buffer = guest.machine.buffer(64 << 10);
        let filler: Vec<u8> = (0..64 << 10)
            .map(|_| random.below32(256).to_le_bytes()[0])
            .collect();
        guest.machine.write(buffer, &filler);
        for _ in 0..60 {
            for index in 0..16 {
                let address = match random.below(4) {
                    0 => random.below(u64::MAX),
                    _ => buffer + random.below(64 << 10),
                };
                let len = match random.below(4) {
                    0 => random.below32(u32::MAX),
                    _ => random.below32(88),
                };
                let flags = u16::try_from(random.below(8)).unwrap();
                let next = u16::try_from(random.below(20)).unwrap();
                for queue in [&guest.rx, &guest.tx, &guest.event] {
                    queue.set_descriptor(&guest.machine, index, address, len, flags, next);
                }
            }
            let head = u16::try_from(random.below(16)).unwrap();
            guest.rx.publish(&guest.machine, head);
            guest.tx.publish(&guest.machine, head);
            guest.event.publish(&guest.machine, head);
            // The guest may have closed it.
            let _ = host.write(b"data");
            guest.handle.reset_connections();
            guest.machine.kick(0);
            guest.machine.kick(1);
        }
        guest.reset();
        guest.connect_from_host();
    }
}
