use std::io::Write;

use super::guest::*;
use crate::devices::virtio::vsock::muxer::BUFFER;
use crate::devices::virtio::vsock::packet::Op;

#[test]
fn host_sends_no_more_than_the_guests_credit() {
    let mut guest = Guest::new();
    guest.credit = 10_000;
    let (mut host, (host_port, guest_port)) = guest.connect_from_host();
    host.write_all(&[7; 15_000]).unwrap();
    let packets = guest.receive();
    let (asked, data) = packets.split_last().unwrap();
    assert_eq!(data.iter().map(|p| p.data.len()).sum::<usize>(), 10_000);
    assert_eq!(asked.op(), Some(Op::CreditRequest));
    guest.receive_nothing();
    guest.control(Op::CreditUpdate, (host_port, guest_port));
    assert_eq!(guest.receive_data().len(), 5_000);
}

#[test]
fn guest_is_told_of_credit_before_it_runs_out() {
    let mut guest = Guest::new();
    let (host, ports) = guest.connect_from_host();
    let mut told = 0;
    for _ in 0..40 {
        guest.data(ports, &vec![7; 60_000]);
        drain(&host);
        for packet in guest.receive() {
            assert_eq!(packet.op(), Some(Op::CreditUpdate));
            told = packet.header.fwd_cnt;
        }
    }
    assert!(40 * 60_000 - told < BUFFER / 2, "{told}");
}

#[test]
fn guest_that_asks_is_told_of_its_credit() {
    let mut guest = Guest::new();
    let (_host, ports) = guest.connect_from_host();
    guest.data(ports, b"abc");
    guest.control(Op::CreditRequest, ports);
    let update = guest.receive_one(Op::CreditUpdate).header;
    assert_eq!((update.buf_alloc, update.fwd_cnt), (BUFFER, 3));
}

#[test]
fn host_that_never_reads_stops_its_own_connection_only() {
    let mut guest = Guest::new();
    let (stuck, stuck_ports) = guest.connect_from_host();
    let (other, other_ports) = guest.connect_from_host();
    let sent = guest.fill(stuck_ports, BUFFER);
    for _ in 0..100 {
        guest.data(other_ports, &vec![9; 50_000]);
        assert_eq!(drain(&other).0.len(), 50_000);
    }
    let mut read = 0;
    while read < sent as usize {
        read += drain(&stuck).0.len();
        guest.machine.settle();
    }
    assert_eq!(read, sent as usize);
}

#[test]
fn guest_that_sends_more_than_its_credit_is_reset() {
    let mut guest = Guest::new();
    let (stuck, stuck_ports) = guest.connect_from_host();
    let (other, other_ports) = guest.connect_from_host();
    guest.fill(stuck_ports, BUFFER);
    guest.data(stuck_ports, b"x");
    guest.receive_one(Op::Reset);
    drain(&stuck);
    assert!(is_closed(&stuck));
    guest.data(other_ports, b"unharmed");
    assert_eq!(drain(&other).0, b"unharmed");
}

#[test]
fn guest_without_receive_buffers_loses_nothing() {
    let mut guest = Guest::without_buffers();
    let mut host = guest.host(b"CONNECT 77\n");
    guest.receive_nothing();
    guest.post(1);
    let request = guest.receive_one(Op::Request).header;
    guest.control(Op::Response, (request.src_port, 77));
    host.write_all(&vec![7; 100_000]).unwrap();
    assert_eq!(guest.receive_data().len(), 100_000);
}

#[test]
fn connections_have_their_turns_in_the_receive_queue() {
    let mut guest = Guest::without_buffers();
    guest.post(8);
    let (mut first, first_ports) = guest.connect_from_host();
    let (mut second, second_ports) = guest.connect_from_host();
    first.write_all(&vec![1; 150_000]).unwrap();
    second.write_all(&vec![2; 150_000]).unwrap();
    let ports: Vec<u32> = guest.receive().iter().map(|p| p.header.src_port).collect();
    let longest = ports.chunk_by(|a, b| a == b).map(<[u32]>::len).max();
    assert!(longest <= Some(16), "{longest:?}");
    for port in [first_ports.0, second_ports.0] {
        assert!(ports.iter().filter(|p| **p == port).count() >= 150_000 / 4096);
    }
}
