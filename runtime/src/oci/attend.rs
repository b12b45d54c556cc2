//! Stands for a process of a container on the host: waits for its end and ends
//! with its status, passes signals on to it, and keeps its terminal's size.
//!
//! One thread and two descriptors: a detached exec leaves such a process behind
//! for as long as it runs, so it does without a runtime. It speaks the Task API
//! as far as that goes.
//! <https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md>

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use containerd_shim_protos::api::{
    DeleteRequest, KillRequest, ResizePtyRequest, WaitRequest, WaitResponse,
};
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use protobuf::Message;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{ioctl_tiocsctty, setsid};
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MessageHeader};

use super::console::size_of;
use super::signals::hold_back_signals;

/// Version 3 of the Task API.
const SERVICE: &str = "containerd.task.v3.Task";

/// The first request; the others' numbers follow in steps of two.
const WAIT_STREAM: u32 = 1;

/// Exit status of a process whose sandbox has died under it.
const DIED: u8 = 137;

/// Exit status where the sandbox process answers nonsense.
const NONSENSE: u8 = 255;

/// What `exec --detach` starts; not for users.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(long)]
    socket: PathBuf,
    /// Standard input is the process's terminal.
    #[arg(long)]
    terminal: bool,
    container: String,
    exec: String,
}

impl Args {
    /// Standard output is a pipe that tells `exec` when this process is ready.
    pub(super) fn run(&self) -> ExitCode {
        ExitCode::from(self.stand().unwrap_or(DIED))
    }

    fn stand(&self) -> io::Result<u8> {
        // Fails for the leader of a process group, which this is not.
        setsid()?;
        let stdin = io::stdin();
        if self.terminal {
            ioctl_tiocsctty(stdin.as_fd())?;
        }
        std::env::set_current_dir("/")?;
        let mut attendant = Attendant::new(&self.socket, &self.container, &self.exec)?;
        let mut stdout = io::stdout();
        stdout.write_all(READY)?;
        stdout.flush()?;
        // Closes the pipe: whoever reads it to its end has this process's word.
        rustix::stdio::dup2_stdout(std::fs::File::open("/dev/null")?)?;
        let status = attendant.attend(|attendant| {
            let size = size_of(stdin.as_fd()).filter(|_| self.terminal);
            size.map_or(Ok(()), |size| attendant.resize(size.ws_row, size.ws_col))
        })?;
        attendant.forget();
        Ok(status)
    }
}

/// What a process that stands for another says once it does.
pub(super) const READY: &[u8] = b"ready";

/// A connection to the sandbox process, and the signals to pass on.
pub(super) struct Attendant {
    stream: UnixStream,
    signals: SignalFd,
    container: String,
    /// Empty for the container's own process.
    exec: String,
    next_stream: u32,
}

impl Attendant {
    /// Connects and asks for the process's end. From here on this process no
    /// longer dies of signals.
    pub(super) fn new(socket: &Path, container: &str, exec: &str) -> io::Result<Self> {
        let passed_on = hold_back_signals()?;
        let mut attendant = Self {
            stream: UnixStream::connect(socket)?,
            signals: SignalFd::with_flags(&passed_on, SfdFlags::SFD_CLOEXEC)?,
            container: container.to_owned(),
            exec: exec.to_owned(),
            next_stream: WAIT_STREAM,
        };
        let request = WaitRequest {
            id: attendant.container.clone(),
            exec_id: attendant.exec.clone(),
            ..WaitRequest::default()
        };
        attendant.request("Wait", &request)?;
        Ok(attendant)
    }

    /// Stays until the process has ended. Returns its exit status. `fit` is called
    /// first, and with each change of the terminal's size.
    pub(super) fn attend(
        &mut self,
        mut fit: impl FnMut(&mut Self) -> io::Result<()>,
    ) -> io::Result<u8> {
        if fit(self).is_err() {
            return self.last_words();
        }
        loop {
            let (replied, signalled) = self.look()?;
            if replied {
                match self.reply() {
                    Ok(Some(status)) => return Ok(status),
                    Ok(None) => {}
                    Err(err) if err.kind() == io::ErrorKind::InvalidData => return Ok(NONSENSE),
                    Err(_) => return Ok(DIED),
                }
            }
            if signalled && let Some(info) = self.signals.read_signal()? {
                let done = if info.ssi_signo == Signal::SIGWINCH as u32 {
                    fit(self)
                } else {
                    self.kill(info.ssi_signo)
                };
                if done.is_err() {
                    return self.last_words();
                }
            }
        }
    }

    /// Nothing more can be asked; the answer may have come before.
    fn last_words(&mut self) -> io::Result<u8> {
        loop {
            match self.reply() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(_) => return Ok(DIED),
            }
        }
    }

    fn look(&self) -> io::Result<(bool, bool)> {
        let mut fds = [
            PollFd::new(&self.stream, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok((false, false)),
            Err(err) => return Err(err.into()),
        }
        // Hang-ups are seen by reading.
        Ok((!fds[0].revents().is_empty(), !fds[1].revents().is_empty()))
    }

    /// Reads one reply. `Some` for the one that has been waited for.
    fn reply(&mut self) -> io::Result<Option<u8>> {
        let mut header = [0; MESSAGE_HEADER_LENGTH];
        self.stream.read_exact(&mut header)?;
        let header = MessageHeader::from(header);
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        if length > MESSAGE_LENGTH_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload)?;
        if header.stream_id != WAIT_STREAM {
            // A signal for what has just ended, and the like: the status is on
            // its way.
            return Ok(None);
        }
        let invalid = |err| io::Error::new(io::ErrorKind::InvalidData, err);
        let response = ttrpc::Response::parse_from_bytes(&payload).map_err(invalid)?;
        if response
            .status
            .as_ref()
            .is_some_and(|status| status.code() != ttrpc::Code::OK)
        {
            return Ok(Some(DIED));
        }
        let wait = WaitResponse::parse_from_bytes(&response.payload).map_err(invalid)?;
        Ok(Some(u8::try_from(wait.exit_status).unwrap_or(u8::MAX)))
    }

    fn request(&mut self, method: &str, request: &impl Message) -> io::Result<()> {
        let request = ttrpc::Request {
            service: SERVICE.to_owned(),
            method: method.to_owned(),
            payload: request.write_to_bytes().map_err(io::Error::other)?,
            ..ttrpc::Request::default()
        };
        let request = request.write_to_bytes().map_err(io::Error::other)?;
        let length = u32::try_from(request.len()).map_err(io::Error::other)?;
        let header = MessageHeader::new_request(self.next_stream, length);
        self.next_stream = self.next_stream.wrapping_add(2);
        let mut packet = Vec::from(header);
        packet.extend_from_slice(&request);
        self.stream.write_all(&packet)
    }

    fn kill(&mut self, signal: u32) -> io::Result<()> {
        let request = KillRequest {
            id: self.container.clone(),
            exec_id: self.exec.clone(),
            signal,
            ..KillRequest::default()
        };
        self.request("Kill", &request)
    }

    pub(super) fn resize(&mut self, rows: u16, columns: u16) -> io::Result<()> {
        let request = ResizePtyRequest {
            id: self.container.clone(),
            exec_id: self.exec.clone(),
            width: columns.into(),
            height: rows.into(),
            ..ResizePtyRequest::default()
        };
        self.request("ResizePty", &request)
    }

    /// Lets the sandbox process forget the ended process.
    pub(super) fn forget(&mut self) {
        let request = DeleteRequest {
            id: self.container.clone(),
            exec_id: self.exec.clone(),
            ..DeleteRequest::default()
        };
        // Without it, it is remembered until the container ends. The answer is
        // waited for, since a request ends with its connection.
        if self.request("Delete", &request).is_ok() {
            let _ = self.reply();
        }
    }
}

impl std::fmt::Debug for Attendant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attendant")
            .field("container", &self.container)
            .field("exec", &self.exec)
            .finish_non_exhaustive()
    }
}
