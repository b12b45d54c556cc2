use std::io::Write;

use super::guest::*;
use crate::devices::virtio::vsock::muxer::{FIRST_HOST_PORT, HANDSHAKES_MAX};
use crate::devices::virtio::vsock::packet::Op;

#[test]
fn host_connection_is_answered_with_its_port() {
    let mut guest = Guest::new();
    let mut host = guest.host(b"CONNECT 77\n");
    let request = guest.receive_one(Op::Request).header;
    assert_eq!(request.dst_port, 77);
    assert!(request.src_port >= FIRST_HOST_PORT);
    assert!(request.buf_alloc > 0);
    guest.control(Op::Response, (request.src_port, 77));
    assert_eq!(line(&mut host), format!("OK {}\n", request.src_port));
}

#[test]
fn host_connections_to_one_port_are_told_apart() {
    let mut guest = Guest::new();
    let (mut first, first_ports) = guest.connect_from_host();
    let (mut second, second_ports) = guest.connect_from_host();
    assert_ne!(first_ports, second_ports);
    first.write_all(b"first").unwrap();
    assert_eq!(guest.receive()[0].header.src_port, first_ports.0);
    second.write_all(b"second").unwrap();
    assert_eq!(guest.receive()[0].header.src_port, second_ports.0);
}

#[test]
fn connection_the_guest_refuses_is_closed() {
    let mut guest = Guest::new();
    let host = guest.host(b"CONNECT 77\n");
    let request = guest.receive_one(Op::Request).header;
    guest.control(Op::Reset, (request.src_port, 77));
    assert!(is_closed(&host));
    guest.receive_nothing();
}

#[test]
fn line_may_come_in_pieces_and_data_behind_it() {
    let mut guest = Guest::new();
    let mut host = guest.host(b"CONN");
    guest.receive_nothing();
    host.write_all(b"ECT 77\nhello").unwrap();
    let request = guest.receive_one(Op::Request).header;
    guest.control(Op::Response, (request.src_port, 77));
    assert_eq!(guest.receive_data(), b"hello");
    assert_eq!(line(&mut host), format!("OK {}\n", request.src_port));
}

#[test]
fn host_connection_that_does_not_ask_for_a_port_is_closed() {
    let mut guest = Guest::new();
    let host = guest.host(b"HELLO\n");
    guest.receive_nothing();
    assert!(is_closed(&host));
}

#[test]
fn host_connections_that_say_nothing_make_room_for_later_ones() {
    let mut guest = Guest::new();
    let silent: Vec<_> = (0..HANDSHAKES_MAX + 2)
        .map(|_| {
            let host = guest.host(b"");
            guest.machine.settle();
            host
        })
        .collect();
    assert!(is_closed(&silent[0]) && is_closed(&silent[1]));
    assert!(!is_closed(&silent[2]));
    guest.connect_from_host();
}

#[test]
fn connection_asked_for_before_the_driver_waits_for_it() {
    let (mut host, mut guest) = Guest::after_a_connection(b"CONNECT 77\n");
    let request = guest.receive_one(Op::Request).header;
    guest.control(Op::Response, (request.src_port, 77));
    assert_eq!(line(&mut host), format!("OK {}\n", request.src_port));
}

#[test]
fn host_that_gives_up_before_the_answer_is_reset() {
    let mut guest = Guest::new();
    let host = guest.host(b"CONNECT 77\n");
    let request = guest.receive_one(Op::Request).header;
    drop(host);
    let reset = guest.receive_one(Op::Reset).header;
    assert_eq!((reset.src_port, reset.dst_port), (request.src_port, 77));
    guest.control(Op::Response, (request.src_port, 77));
    guest.receive_one(Op::Reset);
}

#[test]
fn guest_connection_reaches_the_host() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.connect_to_host(5000);
    guest.data(ports, b"from the guest");
    assert_eq!(drain(&host).0, b"from the guest");
    host.write_all(b"from the host").unwrap();
    assert_eq!(guest.receive_data(), b"from the host");
    assert!(guest.machine.interrupted());
}

#[test]
fn guest_connection_to_any_other_port_is_reset() {
    let mut guest = Guest::new();
    for port in [0, 1023, REFUSING, u32::MAX] {
        guest.control(Op::Request, (port, 5000));
        let reset = guest.receive_one(Op::Reset).header;
        assert_eq!((reset.src_port, reset.dst_port), (port, 5000));
    }
    guest.nothing_connected();
}

#[test]
fn second_request_resets_the_connection_it_collides_with() {
    let mut guest = Guest::new();
    let (host, ports) = guest.connect_to_host(5000);
    guest.control(Op::Request, ports);
    guest.receive_one(Op::Reset);
    assert!(is_closed(&host));
    guest.connect_to_host(5000);
}

#[test]
fn driver_reset_closes_connections_and_later_ones_work() {
    let mut guest = Guest::new();
    let (host, _) = guest.connect_from_host();
    let (other, _) = guest.connect_to_host(5000);
    guest.reset();
    assert!(is_closed(&host) && is_closed(&other));
    let _host = guest.connect_from_host();
    guest.connect_to_host(5000);
}

#[test]
fn transport_reset_closes_connections_and_tells_the_driver() {
    let mut guest = Guest::new();
    let (host, _) = guest.connect_from_host();
    let asking = guest.host(b"CONN");
    guest.machine.settle();
    guest.handle.reset_connections();
    guest.machine.settle();
    assert!(is_closed(&host) && !is_closed(&asking));
    let buffer = guest.machine.buffer(4);
    guest.machine.write(buffer, &[0xff; 4]);
    guest.event.add(&guest.machine, &[(buffer, 4, true)]);
    guest.event.add(&guest.machine, &[(buffer, 4, true)]);
    guest.machine.kick(2);
    assert_eq!(guest.event.take_used(&guest.machine), [4]);
    assert_eq!(guest.machine.read(buffer, 4), [0; 4]);
    guest.receive_nothing();
    guest.connect_from_host();
}
