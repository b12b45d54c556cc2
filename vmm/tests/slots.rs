//! Taps and disks that are connected to a guest which already runs. Needs KVM.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use harness::{Running, config, kernel};
use lazaret_vmm::config::VmConfig;
use lazaret_vmm::control::{BackendChange, ExitReason};
use nix::sched::{CloneFlags, unshare};

/// Bytes that cross in each direction.
const LEN: usize = 4 << 20;

fn slots(net_slots: u8, block_slots: u8) -> VmConfig {
    VmConfig {
        net_slots,
        block_slots,
        ..config()
    }
}

/// Bytes that no accident makes.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(len).collect()
}

fn run(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

/// A tap in a network namespace of its own, with the address 192.0.2.1.
fn tap() -> OwnedFd {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let tap = harness::tap("lz0");
    run("ip address add 192.0.2.1/24 dev lz0 && ip link set lz0 up");
    tap
}

#[test]
fn tap_that_comes_late_carries_what_both_sides_send() {
    let Some(kernel) = kernel() else { return };
    let init = "
        # An empty slot is passed over at boot.
        find() {
            until [ -e /sys/class/net/eth0 ]; do
                for slot in /sys/bus/platform/devices/virtio-mmio.*; do
                    [ -e $slot/driver ] || echo ${slot##*/} > /sys/bus/platform/drivers/virtio-mmio/bind
                done 2>/dev/null
                usleep 20000
            done
        }
        link() { until [ \"$(cat /sys/class/net/eth0/carrier)\" = $1 ]; do usleep 20000; done; }
        mount -t virtiofs shared /mnt
        ls /sys/class/net | xargs
        echo up > /mnt/up
        find
        ip link set eth0 up && ip address add 192.0.2.2/24 dev eth0
        link 1
        nc 192.0.2.1 8000 < /mnt/data > /mnt/back
        echo done > /mnt/done
        link 0
        cat /proc/net/dev >&2
        off";
    let data = noise(LEN);
    let running = Running::prepare(&kernel, &slots(2, 0), init, |shared| {
        fs::write(shared.join("data"), &data).unwrap();
    });
    running.expect_started();
    running.wait_for_file("up");
    let shared = running.shared_path();
    let tap = tap();
    let listener = TcpListener::bind("192.0.2.1:8000").unwrap();
    let connect = BackendChange::ConnectNet { slot: 0 };
    assert_eq!(running.change(connect, Some(tap)), None);
    let (mut connection, _) = listener.accept().unwrap();
    let mut received = vec![0; LEN];
    connection.read_exact(&mut received).unwrap();
    assert!(received == data, "the guest's bytes are others");
    connection.write_all(&data).unwrap();
    drop(connection);
    running.wait_for_file("done");
    let back = fs::read(shared.path().join("back")).unwrap();
    assert!(back == data, "the guest has got {} others", back.len());
    let disconnect = BackendChange::DisconnectNet { slot: 0 };
    assert_eq!(running.change(disconnect, None), None);
    run("! ip link show lz0 2>/dev/null");
    let (reason, console) = running.end();
    assert_eq!(reason, ExitReason::Shutdown, "{console}");
    let at_first = console.lines().next();
    assert_eq!(at_first, Some("lo"), "nothing at first: {console}");
}

#[test]
fn disks_that_come_late_are_read_and_written() {
    let Some(kernel) = kernel() else { return };
    let init = "
        disk() { until [ \"$(cat /sys/block/$1/size)\" -gt 0 ]; do usleep 20000; done; }
        mount -t virtiofs shared /mnt
        cat /sys/block/vda/size /sys/block/vda/serial
        echo up > /mnt/up
        disk vda; disk vdb
        dd if=/dev/vda of=/mnt/read bs=64k count=64
        dd if=/mnt/data of=/dev/vda bs=64k seek=64 conv=fsync
        blkdiscard -o 0 -l 65536 /dev/vda && echo discarded
        dd if=/dev/vdb bs=5 count=1; echo
        dd if=/mnt/data of=/dev/vdb bs=4k count=1 conv=fsync || echo refused
        vdb=$(basename $(readlink -f /sys/block/vdb/device))
        cat /sys/block/vdb/ro
        for step in unbind bind; do echo $vdb > /sys/bus/virtio/drivers/virtio_blk/$step; done
        echo \"anew: $(cat /sys/block/vdb/serial) $(cat /sys/block/vdb/ro) $(cat /sys/block/vdb/size)\"
        disk vdc; mkdir /fs
        mount -t ext4 /dev/vdc /fs && cp /mnt/data /fs && sync && cmp /mnt/data /fs/data && echo same
        umount /fs
        off";
    let data = noise(LEN);
    let running = Running::prepare(&kernel, &slots(0, 3), init, |shared| {
        fs::write(shared.join("data"), &data).unwrap();
    });
    running.expect_started();
    running.wait_for_file("up");
    let shared = running.shared_path();
    let (disk, fixed, formatted) = (disk(&data), disk(b"fixed"), disk(b""));
    run(&format!(
        "mkfs.ext4 -q -F /proc/{}/fd/{}",
        std::process::id(),
        formatted.as_raw_fd()
    ));
    let connect = |slot, file: &File, read_only| {
        let change = BackendChange::ConnectBlock { slot, read_only };
        running.change(change, Some(file.try_clone().unwrap().into()))
    };
    assert_eq!(connect(1, &fixed, true), None);
    assert_eq!(connect(0, &disk, false), None);
    assert_eq!(connect(2, &formatted, false), None);
    let (reason, console) = running.end();
    // A terminal's line ends.
    let console = console.replace('\r', "");
    assert_eq!(reason, ExitReason::Shutdown, "{console}");
    assert!(console.starts_with("0\nslot-0"), "{console}");
    assert!(console.contains("fixed"), "{console}");
    assert!(console.contains("discarded\n"), "{console}");
    assert!(console.contains("refused\n0\n"), "{console}");
    // A driver that starts when the disk is there knows all of it.
    assert!(console.contains("anew: slot-1 1 131072\n"), "{console}");
    assert!(console.contains("same\n"), "{console}");
    let read = fs::read(shared.path().join("read")).unwrap();
    assert!(read == data, "the guest has read other bytes");
    let mut start = [0; 5];
    fixed.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"fixed");
}

/// A disk of 64 MiB that begins with `data`.
fn disk(data: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(data, 0).unwrap();
    file
}

#[test]
fn what_cannot_be_connected_is_refused_with_the_reason() {
    let Some(kernel) = kernel() else { return };
    let init = "mount -t virtiofs shared /mnt; echo up > /mnt/up; sleep 1000000";
    let running = Running::start(&kernel, &slots(1, 1), init);
    running.expect_started();
    running.wait_for_file("up");
    let null = || Some(OwnedFd::from(File::open(Path::new("/dev/null")).unwrap()));
    for (change, backend, reason) in [
        (
            BackendChange::ConnectNet { slot: 1 },
            null(),
            "no network slot 1",
        ),
        (BackendChange::ConnectNet { slot: 0 }, null(), "tun device"),
        (BackendChange::ConnectNet { slot: 0 }, None, "0 descriptors"),
        (
            BackendChange::DisconnectNet { slot: 0 },
            null(),
            "1 descriptors",
        ),
        (
            BackendChange::ConnectBlock {
                slot: 0,
                read_only: true,
            },
            null(),
            "no disk",
        ),
        (
            BackendChange::DisconnectBlock { slot: 9 },
            None,
            "no block slot 9",
        ),
    ] {
        let refusal = running.change(change, backend).unwrap();
        assert!(refusal.contains(reason), "{refusal}");
    }
    running.request(&lazaret_vmm::control::VmmRequest::Stop);
    assert_eq!(running.end().0, ExitReason::Stopped);
}
