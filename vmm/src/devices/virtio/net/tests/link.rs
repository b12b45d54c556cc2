//! The link comes and goes.

use super::host_side::{frame, interface_exists, tap};
use super::{Guest, HostSide, QUEUE_SIZES, connected};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::net::{MacAddress, Net};
use crate::devices::virtio::test_driver::Machine;

#[test]
fn driver_finds_an_address_and_no_link() {
    let machine = Machine::new();
    let net = Net::new(MacAddress::of_slot(3), &machine.events()).unwrap();
    let mut config = [0; 8];
    net.read_config(0, &mut config);
    assert_eq!(config, *b"\x02lzrt\x03\0\0");
}

#[test]
fn frames_sent_without_a_link_are_given_back_and_receive_buffers_kept() {
    let mut guest = Guest::new();
    guest.offer(2048);
    guest.machine.kick(0);
    guest.send(&frame(60, 1));
    assert!(guest.received().is_empty());
    assert_eq!(guest.transmit.take_used(&guest.machine), [0]);
    assert!(guest.machine.interrupted());
}

#[test]
fn link_is_up_while_a_tap_is_connected() {
    let Some((host, tap)) = HostSide::new() else {
        return;
    };
    let mut guest = Guest::new();
    assert!(!guest.link_up());
    assert_eq!(guest.connect(tap), None);
    assert!(guest.link_up());
    assert!(guest.machine.interrupted(), "by a change of configuration");
    assert_eq!(guest.disconnect(), None);
    assert!(!guest.link_up());
    assert!(guest.machine.interrupted());
    assert!(!interface_exists(), "the tap is closed");
    drop(host);
    assert_eq!(guest.disconnect(), None, "as asked for already");
}

#[test]
fn tap_that_was_connected_before_the_driver_serves_it() {
    let Some((host, tap)) = HostSide::new() else {
        return;
    };
    let mut machine = Machine::new();
    let net = Net::new(MacAddress::of_slot(0), &machine.events()).unwrap();
    let slot = net.slot();
    let (replies, events, _wake) = crate::devices::virtio::slot::SlotEvents::new().unwrap();
    slot.connect(tap, replies.reply(1));
    machine.settle();
    drop(events.try_recv().unwrap());
    let queues = machine.start(Box::new(net), &QUEUE_SIZES);
    let [receive, transmit] = queues.try_into().unwrap();
    let mut guest = Guest {
        machine,
        slot,
        receive,
        transmit,
    };
    assert!(guest.link_up());
    guest.offer(2048);
    guest.machine.kick(0);
    host.send(&frame(60, 5));
    assert_eq!(guest.received(), [72]);
}

#[test]
fn second_tap_and_what_is_no_tap_are_refused() {
    let Some((mut guest, _host)) = connected() else {
        return;
    };
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let refusal = guest.connect(reader).unwrap();
    assert!(refusal.contains("another tap"), "{refusal}");
    assert_eq!(guest.disconnect(), None);
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let refusal = guest.connect(reader).unwrap();
    assert!(refusal.contains("not that of a tun device"), "{refusal}");
    let refusal = guest.connect(tap(libc::IFF_TUN | libc::IFF_NO_PI)).unwrap();
    assert!(refusal.contains("IFF_VNET_HDR"), "{refusal}");
    assert!(!guest.link_up());
}

#[test]
fn frames_flow_again_after_a_reset() {
    let Some((mut guest, host)) = connected() else {
        return;
    };
    guest.offer(2048);
    guest.machine.kick(0);
    guest.restart();
    assert!(guest.link_up());
    guest.offer(2048);
    guest.machine.kick(0);
    host.send(&frame(100, 9));
    assert_eq!(guest.received(), [112]);
    guest.send(&frame(80, 3));
    assert_eq!(host.receive().unwrap(), frame(80, 3));
}

#[test]
fn another_tap_can_follow_one_that_was_deleted() {
    let Some((mut guest, host)) = connected() else {
        return;
    };
    guest.offer(2048);
    guest.machine.kick(0);
    let deleted = std::process::Command::new("ip")
        .args(["link", "delete", "lztest0"])
        .status();
    assert!(deleted.unwrap().success());
    guest.machine.settle();
    assert!(!guest.link_up());
    drop(host);
    let (host, tap) = HostSide::new().unwrap();
    assert_eq!(guest.connect(tap), None);
    guest.send(&frame(60, 4));
    assert_eq!(host.receive().unwrap(), frame(60, 4));
}
