//! Stands in for an engine at the other end of a console socket: receives a container's terminal and
//! joins it to its own streams.

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use anyhow::Context;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};

/// Longest name of a terminal that comes with it.
const NAME: usize = 256;

/// Listens on the socket, says so in a line, receives one terminal, gives it a size, and copies to
/// and from it until it is hung up.
pub(crate) fn relay(socket: &Path, rows: u16, columns: u16) -> anyhow::Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| socket.display().to_string())?;
    writeln!(std::io::stdout(), "listening")?;
    let (connection, _) = listener.accept()?;
    let mut terminal = File::from(receive(&connection)?);
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&terminal, size)?;
    let mut input = terminal.try_clone()?;
    thread::spawn(move || std::io::copy(&mut std::io::stdin(), &mut input));
    // A terminal whose other side is closed fails to be read (EIO): that is its end.
    std::io::copy(&mut terminal, &mut std::io::stdout()).ok();
    Ok(())
}

/// The descriptor that is sent over a connection, its name being the data.
fn receive(connection: &std::os::unix::net::UnixStream) -> anyhow::Result<OwnedFd> {
    let mut name = [0; NAME];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut data = [IoSliceMut::new(&mut name)];
    recvmsg(
        connection,
        &mut data,
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let mut first = descriptors.next().context("no descriptor was sent")?;
    first.next().context("no descriptor was sent")
}
