use std::io::Write;
use std::net::Shutdown;

use super::guest::*;
use crate::devices::virtio::vsock::packet::{Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

#[test]
fn end_of_the_hosts_data_is_a_shutdown_of_that_direction_only() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.connect_from_host();
    host.write_all(b"last words").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    let packets = guest.receive();
    assert_eq!(packets[0].data, b"last words");
    assert_eq!(packets[1].op(), Some(Op::Shutdown));
    assert_eq!(packets[1].header.flags, SHUTDOWN_SEND);
    assert_eq!(packets.len(), 2);
    guest.data(ports, b"answer");
    assert_eq!(drain(&host), (b"answer".to_vec(), false));
}

#[test]
fn end_of_the_guests_data_is_a_shutdown_of_that_direction_only() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.connect_from_host();
    guest.data(ports, b"last words");
    guest.shut_down(SHUTDOWN_SEND, ports);
    assert_eq!(drain(&host), (b"last words".to_vec(), true));
    host.write_all(b"answer").unwrap();
    assert_eq!(guest.receive_data(), b"answer");
}

#[test]
fn guest_that_reads_no_more_makes_the_hosts_writes_fail() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.connect_from_host();
    guest.shut_down(SHUTDOWN_RECEIVE, ports);
    let error = host.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    guest.data(ports, b"still sending");
    assert_eq!(drain(&host).0, b"still sending");
}

#[test]
fn closed_host_is_a_full_shutdown_and_the_guests_reset_ends_it() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.connect_from_host();
    host.write_all(b"last words").unwrap();
    drop(host);
    let packets = guest.receive();
    assert_eq!(packets[0].data, b"last words");
    let flags = packets[1..]
        .iter()
        .inspect(|packet| assert_eq!(packet.op(), Some(Op::Shutdown)))
        .fold(0, |all, packet| all | packet.header.flags);
    assert_eq!(flags, SHUTDOWN_BOTH);
    guest.control(Op::Reset, ports);
    guest.receive_nothing();
}

#[test]
fn closed_guest_is_answered_by_a_reset() {
    let mut guest = Guest::new();
    let (host, ports) = guest.connect_from_host();
    guest.data(ports, b"last words");
    guest.shut_down(SHUTDOWN_BOTH, ports);
    guest.receive_one(Op::Reset);
    assert_eq!(drain(&host), (b"last words".to_vec(), true));
}

#[test]
fn closed_guest_waits_until_the_host_has_read_everything() {
    let mut guest = Guest::new();
    let (host, ports) = guest.connect_from_host();
    let mut sent = 0;
    // More than the socket holds, less than the credit.
    for _ in 0..7 {
        guest.data(ports, &vec![7; 60_000]);
        sent += 60_000;
    }
    guest.shut_down(SHUTDOWN_BOTH, ports);
    assert!(guest.receive().iter().all(|p| p.op() != Some(Op::Reset)));
    let mut read = 0;
    loop {
        let (bytes, ended) = drain(&host);
        read += bytes.len();
        guest.machine.settle();
        if ended {
            break;
        }
    }
    assert_eq!(read, sent);
    assert_eq!(guest.receive().last().unwrap().op(), Some(Op::Reset));
}

#[test]
fn both_directions_may_end_one_after_the_other() {
    let mut guest = Guest::new();
    let (host, ports) = guest.connect_from_host();
    host.shutdown(Shutdown::Write).unwrap();
    guest.receive_one(Op::Shutdown);
    guest.shut_down(SHUTDOWN_SEND, ports);
    assert!(drain(&host).1);
    guest.shut_down(SHUTDOWN_BOTH, ports);
    assert_eq!(guest.receive().last().unwrap().op(), Some(Op::Reset));
}

#[test]
fn guests_data_to_a_closed_host_is_thrown_away() {
    let mut guest = Guest::new();
    let (host, ports) = guest.connect_from_host();
    drop(host);
    guest.data(ports, b"too late");
    guest.data(ports, b"and later");
    let packets = guest.receive();
    assert!(packets.iter().all(|p| p.op() == Some(Op::Shutdown)));
    guest.shut_down(SHUTDOWN_BOTH, ports);
    guest.receive_one(Op::Reset);
}

#[test]
fn guests_data_after_its_own_shutdown_resets() {
    let mut guest = Guest::new();
    let (host, ports) = guest.connect_from_host();
    guest.shut_down(SHUTDOWN_SEND, ports);
    guest.data(ports, b"more after all");
    guest.receive_one(Op::Reset);
    assert!(is_closed(&host));
}
