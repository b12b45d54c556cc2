//! The line with which a host process names the guest port it wants:
//! `CONNECT <port>\n`, as Firecracker's users know it.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// `CONNECT 4294967295\n` has 19 bytes; more is not this protocol.
const LINE_MAX: usize = 32;

/// What has come of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Incomplete,
    Port(u32),
    Bad,
}

/// Takes the line from `socket`, and not a byte of what follows it: that is
/// for the guest.
pub(super) fn receive(socket: &OwnedFd) -> Line {
    let mut bytes = [0; LINE_MAX];
    let peeked = match recv(socket, &mut bytes, RecvFlags::PEEK) {
        Ok((len, _)) if len > 0 => &bytes[..len],
        Err(Errno::AGAIN | Errno::INTR) => return Line::Incomplete,
        Ok(_) | Err(_) => return Line::Bad,
    };
    let Some(end) = peeked.iter().position(|&byte| byte == b'\n') else {
        return if peeked.len() == LINE_MAX {
            Line::Bad
        } else {
            Line::Incomplete
        };
    };
    let line = parse(&peeked[..end]);
    match recv(socket, &mut bytes[..=end], RecvFlags::empty()) {
        Ok((len, _)) if len == end + 1 => line,
        _ => Line::Bad,
    }
}

fn parse(line: &[u8]) -> Line {
    std::str::from_utf8(line)
        .ok()
        .and_then(|line| line.strip_prefix("CONNECT "))
        .filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|port| port.parse().ok())
        .map_or(Line::Bad, Line::Port)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn received(bytes: &[u8]) -> (Line, Vec<u8>) {
        let (mut host, vmm) = UnixStream::pair().unwrap();
        vmm.set_nonblocking(true).unwrap();
        host.write_all(bytes).unwrap();
        let vmm = OwnedFd::from(vmm);
        let line = receive(&vmm);
        drop(host);
        let mut rest = Vec::new();
        UnixStream::from(vmm).read_to_end(&mut rest).unwrap();
        (line, rest)
    }

    #[test]
    fn line_is_taken_and_nothing_after_it() {
        assert_eq!(
            received(b"CONNECT 1024\nhello"),
            (Line::Port(1024), b"hello".to_vec())
        );
        assert_eq!(received(b"CONNECT 4294967295\n").0, Line::Port(u32::MAX));
    }

    #[test]
    fn half_a_line_is_waited_for() {
        assert_eq!(received(b"").0, Line::Incomplete);
        assert_eq!(received(b"CONNECT 10").0, Line::Incomplete);
    }

    #[test]
    fn anything_else_is_refused() {
        for line in [
            &b"\n"[..],
            b"CONNECT\n",
            b"CONNECT \n",
            b"CONNECT -1\n",
            b"CONNECT +1\n",
            b"CONNECT 4294967296\n",
            b"connect 1\n",
            b"CONNECT 1 \n",
            b"CONNECT \xff\n",
            b"GET / HTTP/1.1, and more than a line may have",
        ] {
            assert_eq!(received(line).0, Line::Bad, "{line:?}");
        }
    }
}
