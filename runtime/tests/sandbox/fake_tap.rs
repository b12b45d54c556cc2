//! A VMM's taps with a guest that answers each UDP datagram with itself.

use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use lazaret_vmm::control::BackendChange;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read, write};
use rustix::pipe::pipe;

/// `struct virtio_net_hdr`.
const VNET_HEADER: usize = 10;
const ETHERNET: usize = VNET_HEADER;
const IP: usize = ETHERNET + 14;
const UDP: usize = IP + 20;

#[derive(Default)]
pub struct Taps {
    /// The thread ends when its pipe does.
    connected: HashMap<u8, (OwnedFd, JoinHandle<()>)>,
}

impl Taps {
    /// Makes a change, or says why not. How often taps were refused, and whether they
    /// are, a file says.
    pub fn change(&mut self, change: BackendChange, mut fds: Vec<OwnedFd>) -> Option<String> {
        match change {
            BackendChange::ConnectNet { slot } => {
                let tap = fds.pop().unwrap();
                let dir = std::env::var("LAZARET_FAKE_DIR").unwrap();
                let refusals = format!("{dir}/refusals");
                if let Ok(count) = fs::read_to_string(&refusals) {
                    let count = count.parse::<u32>().unwrap() + 1;
                    let new = format!("{refusals}.new");
                    fs::write(&new, count.to_string()).unwrap();
                    fs::rename(new, refusals).unwrap();
                    return Some("not now".to_owned());
                }
                let (end, stop) = pipe().unwrap();
                let thread = std::thread::spawn(move || echo(&tap, &end));
                assert!(self.connected.insert(slot, (stop, thread)).is_none());
            }
            BackendChange::DisconnectNet { slot } => {
                let (stop, thread) = self.connected.remove(&slot).unwrap();
                drop(stop);
                thread.join().unwrap();
            }
            other => panic!("{other:?}"),
        }
        None
    }
}

fn echo(tap: &OwnedFd, end: &OwnedFd) {
    let mut frame = vec![0; 65_536 + UDP];
    loop {
        let mut fds = [
            PollFd::new(tap, PollFlags::IN),
            PollFd::new(end, PollFlags::IN),
        ];
        poll(&mut fds, None).unwrap();
        if !fds[1].revents().is_empty() {
            return;
        }
        match read(tap, &mut frame) {
            Ok(length) => {
                if turn(&mut frame[..length]) {
                    write(tap, &frame[..length]).unwrap();
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(err) => panic!("{err}"),
        }
    }
}

/// Exchanges sender and receiver; sums over both stay what they are.
fn turn(frame: &mut [u8]) -> bool {
    let is_udp = frame.len() > UDP + 8
        && frame[ETHERNET + 12..IP] == [8, 0]
        && frame[IP] == 0x45
        && frame[IP + 9] == 17;
    if is_udp {
        for (start, size) in [(ETHERNET, 6), (IP + 12, 4), (UDP, 2)] {
            let (from, to) = frame[start..start + 2 * size].split_at_mut(size);
            from.swap_with_slice(to);
        }
    }
    is_udp
}
