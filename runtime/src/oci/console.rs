//! Terminals: a pseudo-terminal whose slave the sandbox process gets, and whose
//! master goes to the engine over its console socket, or is relayed here.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use super::failure::OciError;
use crate::cli::terminal::{self, RawTerminal};

/// What comes along with a master, as it is from runc.
const MASTER_NAME: &[u8] = b"/dev/ptmx";

/// A pseudo-terminal of the host. The guest's own does the line discipline, so
/// this one passes every byte on as it is.
#[derive(Debug)]
pub(super) struct Console {
    pub(super) master: OwnedFd,
    pub(super) slave: OwnedFd,
}

impl Console {
    pub(super) fn open() -> Result<Self, OciError> {
        Self::make().map_err(OciError::Terminal)
    }

    fn make() -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        let mut attributes = tcgetattr(&slave)?;
        attributes.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &attributes)?;
        Ok(Self { master, slave })
    }

    /// Sends the master to the engine, which sets the size and copies.
    pub(super) fn send_master(&self, socket: &Path) -> Result<(), OciError> {
        let send = || {
            let stream = UnixStream::connect(socket)?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let fds = [self.master.as_fd()];
            if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(io::Error::other("no room for a descriptor"));
            }
            let name = [IoSlice::new(MASTER_NAME)];
            sendmsg(&stream, &name, &mut ancillary, SendFlags::NOSIGNAL)?;
            Ok(())
        };
        send().map_err(|source| OciError::Io {
            verb: "send the terminal to the console socket",
            path: socket.to_owned(),
            source,
        })
    }
}

/// Copies between this command's own terminal, or what it has in its place, and
/// a master, until the container's side is closed.
#[derive(Debug)]
pub(super) struct Relay {
    master: File,
    output: JoinHandle<()>,
    /// Restores the terminal in the end.
    _raw: Option<RawTerminal>,
}

impl Relay {
    pub(super) fn start(master: OwnedFd) -> Result<Self, OciError> {
        Self::begin(master).map_err(OciError::Terminal)
    }

    fn begin(master: OwnedFd) -> io::Result<Self> {
        let master = File::from(master);
        let raw = RawTerminal::enter()?;
        let from = master.try_clone()?;
        let output = std::thread::spawn(move || copy(from, io::stdout()));
        let to = master.try_clone()?;
        // Ends with this process: a read of a terminal cannot be called off.
        std::thread::spawn(move || copy(io::stdin(), to));
        let relay = Self {
            master,
            output,
            _raw: raw,
        };
        relay.fit();
        Ok(relay)
    }

    /// Gives the container's terminal the size of ours.
    pub(super) fn fit(&self) {
        if let Some(size) = terminal::size() {
            // Without the size it has the process goes on with another.
            let _ = tcsetwinsize(&self.master, size);
        }
    }

    /// Waits until all output is copied: the other side has been closed.
    pub(super) fn finish(self) {
        // A thread that panicked has copied what it could.
        let _ = self.output.join();
    }
}

/// Copies until either side is gone; a terminal's end reads as an error.
fn copy(mut from: impl Read, mut to: impl Write) {
    let mut buffer = vec![0; 8192];
    loop {
        match from.read(&mut buffer) {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(count) => {
                let written = to.write_all(&buffer[..count]).and_then(|()| to.flush());
                if written.is_err() {
                    return;
                }
            }
        }
    }
}

/// The size of a terminal, if it has been given one.
pub(super) fn size_of(terminal: impl AsFd) -> Option<rustix::termios::Winsize> {
    let size = tcgetwinsize(terminal.as_fd()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(size)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    use super::*;

    #[test]
    fn bytes_pass_as_they_are() {
        let console = Console::open().unwrap();
        let mut master = File::from(console.master);
        let mut slave = File::from(console.slave);
        master.write_all(b"a\r\x03\x04").unwrap();
        let mut got = [0; 4];
        slave.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"a\r\x03\x04");
        slave.write_all(b"b\nc").unwrap();
        let mut got = [0; 3];
        master.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"b\nc");
    }

    #[test]
    fn a_console_socket_gets_the_master_with_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let console = Console::open().unwrap();
        console.send_master(&path).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut name = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &stream,
            &mut [io::IoSliceMut::new(&mut name)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
        .unwrap();
        assert_eq!(&name[..received.bytes], MASTER_NAME);
        let fds: Vec<OwnedFd> = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        let [master] = &fds[..] else {
            panic!("{} descriptors", fds.len())
        };
        assert_ne!(master.as_raw_fd(), console.master.as_raw_fd());
        assert_eq!(size_of(&console.slave), None);
        let size = rustix::termios::Winsize {
            ws_row: 7,
            ws_col: 9,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(master, size).unwrap();
        assert_eq!(size_of(&console.slave).unwrap().ws_row, 7);
    }

    #[test]
    fn no_console_socket_is_named() {
        let console = Console::open().unwrap();
        let err = console.send_master(Path::new("/nowhere.sock")).unwrap_err();
        assert!(err.to_string().contains("/nowhere.sock"), "{err}");
    }
}
