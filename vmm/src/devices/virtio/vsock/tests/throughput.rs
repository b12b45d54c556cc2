use std::io::{Read, Write};
use std::thread;

use super::guest::*;
use crate::devices::virtio::vsock::muxer::BUFFER;
use crate::devices::virtio::vsock::packet::Op;

const TOTAL: usize = 100 << 20;
/// Linux's largest packet.
const PACKET: usize = 64 << 10;

/// Byte `at` of the stream: no two pages of it are alike.
fn pattern(at: usize) -> u8 {
    (at ^ at >> 8 ^ at >> 16).to_le_bytes()[0]
}

fn stream(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(pattern).collect()
}

#[test]
fn hundred_mebibytes_from_the_host_arrive_whole() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.connect_from_host();
    let writer = thread::spawn(move || {
        for from in (0..TOTAL).step_by(PACKET) {
            host.write_all(&stream(from, PACKET)).unwrap();
        }
    });
    let mut at = 0;
    let mut told = 0;
    while at < TOTAL {
        let packets = guest.receive();
        if packets.is_empty() {
            guest.machine.wait();
        }
        for packet in packets {
            if packet.op() == Some(Op::Data) {
                assert!(packet.data == stream(at, packet.data.len()), "at {at}");
                at += packet.data.len();
            }
        }
        if at - told >= PACKET {
            guest.control(Op::CreditUpdate, ports);
            told = at;
        }
    }
    writer.join().unwrap();
    assert_eq!(at, TOTAL);
}

#[test]
fn hundred_mebibytes_from_the_guest_arrive_whole() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.connect_from_host();
    let reader = thread::spawn(move || {
        let mut buffer = vec![0; PACKET];
        let mut at = 0;
        while at < TOTAL {
            let len = host.read(&mut buffer).unwrap();
            assert!(len > 0, "ended at {at}");
            assert!(buffer[..len] == stream(at, len), "at {at}");
            at += len;
        }
    });
    let mut at = 0;
    let mut forwarded = 0;
    while at < TOTAL {
        let updates = guest.receive();
        if let Some(update) = updates.last() {
            forwarded = update.header.fwd_cnt;
        }
        let in_flight = u32::try_from(at).unwrap() - forwarded;
        if in_flight + u32::try_from(PACKET).unwrap() <= BUFFER {
            guest.data(ports, &stream(at, PACKET));
            at += PACKET;
        } else if updates.is_empty() {
            guest.machine.wait();
        }
    }
    while !reader.is_finished() {
        guest.machine.settle();
    }
    reader.join().unwrap();
}
