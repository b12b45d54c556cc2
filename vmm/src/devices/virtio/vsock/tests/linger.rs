//! What the guest sent before it closed a connection and forgot it.

use std::io::Write;

use super::guest::*;
use crate::devices::virtio::vsock::muxer::{BUFFER, CONNECTIONS_MAX, LARGE_BUFFERS};
use crate::devices::virtio::vsock::packet::{Op, SHUTDOWN_BOTH, SHUTDOWN_SEND};

/// Reads to the end; says how much there was.
fn read_all(guest: &mut Guest, host: &std::os::unix::net::UnixStream) -> usize {
    let mut read = 0;
    loop {
        let (bytes, ended) = drain(host);
        read += bytes.len();
        if ended {
            return read;
        }
        assert!(!bytes.is_empty(), "nothing more comes after {read} bytes");
        guest.machine.settle();
    }
}

#[test]
fn guest_that_has_tired_of_waiting_for_the_host_loses_nothing() {
    let mut guest = Guest::new();
    let (host, ports) = guest.connect_from_host();
    let sent = guest.fill(ports, BUFFER);
    guest.shut_down(SHUTDOWN_BOTH, ports);
    guest.control(Op::Reset, ports);
    assert_eq!(read_all(&mut guest, &host), sent as usize);
    guest.receive_nothing();
}

#[test]
fn name_of_a_forgotten_connection_may_be_used_again() {
    let mut guest = Guest::new();
    let (first, ports) = guest.connect_to_host(5000);
    let sent = guest.fill(ports, BUFFER);
    guest.shut_down(SHUTDOWN_BOTH, ports);
    guest.control(Op::Reset, ports);
    let (mut second, _) = guest.connect_to_host(5000);
    guest.data(ports, b"of the second");
    assert_eq!(drain(&second).0, b"of the second");
    assert_eq!(read_all(&mut guest, &first), sent as usize);
    second.write_all(b"to the second").unwrap();
    assert_eq!(guest.receive_data(), b"to the second");
}

#[test]
fn host_cannot_write_to_a_guest_that_has_forgotten_it() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.connect_from_host();
    let sent = guest.fill(ports, BUFFER);
    guest.shut_down(SHUTDOWN_SEND, ports);
    guest.control(Op::Reset, ports);
    let error = host.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    assert_eq!(read_all(&mut guest, &host), sent as usize);
    guest.receive_nothing();
}

#[test]
fn reset_in_the_middle_of_the_guests_data_ends_it_at_once() {
    let mut guest = Guest::new();
    let (host, ports) = guest.connect_from_host();
    let sent = guest.fill(ports, BUFFER);
    guest.control(Op::Reset, ports);
    let (read, ended) = drain(&host);
    assert!(ended && read.len() < sent as usize);
}

#[test]
fn transport_reset_ends_what_lingers() {
    let mut guest = Guest::new();
    let (host, ports) = guest.connect_from_host();
    let sent = guest.fill(ports, BUFFER);
    guest.shut_down(SHUTDOWN_BOTH, ports);
    guest.control(Op::Reset, ports);
    guest.handle.reset_connections();
    guest.machine.settle();
    let (read, ended) = drain(&host);
    assert!(ended && read.len() < sent as usize);
}

#[test]
fn guest_that_closes_and_forgets_has_no_more_connections_than_another() {
    allow_many_descriptors();
    let mut guest = Guest::new();
    let mut hosts = Vec::new();
    let (mut refused, mut large) = (0, 0);
    for port in 0..2000 {
        let ports = (OPEN, port);
        guest.control(Op::Request, ports);
        let answer = guest.receive().remove(0);
        if answer.op() == Some(Op::Reset) {
            refused += 1;
            continue;
        }
        hosts.push(guest.connected());
        let window = answer.header.buf_alloc;
        large += usize::from(window == BUFFER);
        guest.fill(ports, window);
        guest.shut_down(SHUTDOWN_BOTH, ports);
        guest.control(Op::Reset, ports);
    }
    assert_eq!(
        (hosts.len(), refused),
        (CONNECTIONS_MAX, 2000 - CONNECTIONS_MAX)
    );
    assert_eq!(large, LARGE_BUFFERS);
    let from_host = guest.host(b"CONNECT 77\n");
    guest.receive_nothing();
    assert!(is_closed(&from_host));
    // Each end that the host closes makes room for one.
    drop(hosts.swap_remove(0));
    guest.machine.settle();
    let _open = guest.connect_to_host(3000);
    guest.control(Op::Request, (OPEN, 3001));
    guest.receive_one(Op::Reset);
    drop(hosts);
    guest.machine.settle();
    guest.control(Op::Request, (OPEN, 3001));
    assert_eq!(guest.receive_one(Op::Response).header.buf_alloc, BUFFER);
}
