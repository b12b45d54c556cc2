//! Standard streams of a process in a container, by way of FIFOs in a private
//! directory that goes when the command ends.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use crate::image::digest::hex;
use crate::image::workspace::{Workspace, fill_random};
use crate::stdio::StdioPaths;
use crate::storage::atomic::Lock;

const BUFFER: usize = 64 * 1024;

/// Which streams a process is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    pub stdin: bool,
    pub output: bool,
    /// One stream for all output, as a terminal has.
    pub terminal: bool,
}

/// The FIFOs of one process, our ends open.
#[derive(Debug)]
pub struct Fifos {
    directory: Option<Workspace>,
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

impl Fifos {
    /// Makes the FIFOs below `parent`; none where no stream is wanted.
    pub fn create(parent: &Path, streams: Streams) -> io::Result<Self> {
        let mut fifos = Self {
            directory: None,
            stdin: None,
            stdout: None,
            stderr: None,
        };
        if !streams.stdin && !streams.output {
            return Ok(fifos);
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)?;
        // The sweep of another command must not take it for an abandoned one.
        let lock = Lock::exclusive(&parent.join("lock"))?;
        let directory = Workspace::create(parent)?;
        drop(lock);
        let path = |name: &str| directory.path().join(name);
        if streams.stdin {
            let path = path("stdin");
            make_fifo(&path)?;
            // Open for reading too: that succeeds before the other side is there.
            fifos.stdin = Some(
                pipe::OpenOptions::new()
                    .read_write(true)
                    .open_sender(path)?,
            );
        }
        if streams.output {
            fifos.stdout = Some(open_output(&path("stdout"))?);
            if !streams.terminal {
                fifos.stderr = Some(open_output(&path("stderr"))?);
            }
        }
        fifos.directory = Some(directory);
        Ok(fifos)
    }

    /// Where the sandbox process finds the other ends.
    pub fn paths(&self, terminal: bool) -> StdioPaths {
        StdioPaths {
            stdin: self.path("stdin", self.stdin.is_some()),
            stdout: self.path("stdout", self.stdout.is_some()),
            stderr: self.path("stderr", self.stderr.is_some()),
            terminal,
        }
    }

    fn path(&self, name: &str, is_open: bool) -> String {
        let path = self.directory.as_ref().filter(|_| is_open);
        let path = path.map(|directory| directory.path().join(name));
        path.unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Our ends. The other side has opened its own by now, so that the names
    /// are not needed any more.
    pub fn into_ends(mut self) -> Ends {
        Ends {
            stdin: self.stdin.take(),
            stdout: self.stdout.take(),
            stderr: self.stderr.take(),
        }
    }
}

/// Our ends of the FIFOs.
#[derive(Debug)]
pub struct Ends {
    pub stdin: Option<pipe::Sender>,
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
}

fn make_fifo(path: &Path) -> io::Result<()> {
    Ok(mknodat(
        CWD,
        path,
        FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )?)
}

fn open_output(path: &Path) -> io::Result<pipe::Receiver> {
    make_fifo(path)?;
    pipe::OpenOptions::new().open_receiver(path)
}

/// Copies a container's output to ours, to its end.
///
/// If nobody reads ours any more, the rest is read and dropped: the container
/// must not stop for it, and its log has it all.
pub async fn copy_output(mut from: pipe::Receiver, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut is_open = true;
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        if is_open {
            is_open = write_all(&mut to, &buffer[..count])?;
        }
    }
}

/// Writes all, waiting where the other end of a non-blocking terminal is slow;
/// `false` if nobody reads.
fn write_all(to: &mut impl Write, bytes: &[u8]) -> io::Result<bool> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// Copies our input to a container's; the stream ends when ours does.
///
/// Reading happens on a thread of its own, which cannot be stopped while it
/// waits for input and ends with the process.
pub async fn copy_input(mut to: pipe::Sender) -> io::Result<()> {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Vec<u8>>(2);
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let mut stdin = io::stdin().lock();
            let mut buffer = vec![0; BUFFER];
            loop {
                match stdin.read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(0) | Err(_) => return,
                    Ok(count) if sender.blocking_send(buffer[..count].to_vec()).is_err() => return,
                    Ok(_) => {}
                }
            }
        })?;
    while let Some(bytes) = receiver.recv().await {
        to.write_all(&bytes).await?;
    }
    // All must be taken before the other side is told that no more comes.
    Ok(())
}

/// Makes sure that `-t` is given a terminal, as Docker does.
pub fn require_terminal(interactive: bool, terminal: bool) -> Result<(), &'static str> {
    if interactive && terminal && !io::stdin().is_terminal() {
        return Err("the input device is not a TTY");
    }
    Ok(())
}

/// Reads a small file of a container's image.
pub fn read_limited(file: File, limit: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A name for a process added by exec.
pub fn random_exec_id() -> String {
    let mut bytes = [0; 16];
    fill_random(&mut bytes);
    hex(&bytes)
}

/// Writes a file that only its owner may change.
pub fn write_file(path: PathBuf, text: &str) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o644);
    options.open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }

    #[test]
    fn output_is_copied_to_its_end_and_nothing_is_left() {
        let parent = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            let streams = Streams {
                stdin: false,
                output: true,
                terminal: false,
            };
            let fifos = Fifos::create(parent.path(), streams).unwrap();
            assert_eq!(fifos.paths(false).stdin, "");
            let mut writer = File::options()
                .write(true)
                .open(fifos.paths(false).stdout)
                .unwrap();
            let ends = fifos.into_ends();
            let thread = std::thread::spawn(move || writer.write_all(&vec![7; 300_000]).unwrap());
            let mut output = Vec::new();
            copy_output(ends.stdout.unwrap(), &mut output)
                .await
                .unwrap();
            thread.join().unwrap();
            assert_eq!(output, vec![7; 300_000]);
        });
        let left = std::fs::read_dir(parent.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["lock"]);
    }

    #[test]
    fn a_reader_that_went_away_does_not_stop_the_container() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let parent = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            let streams = Streams {
                stdin: false,
                output: true,
                terminal: true,
            };
            let fifos = Fifos::create(parent.path(), streams).unwrap();
            assert_eq!(fifos.paths(false).stderr, "");
            let mut writer = File::options()
                .write(true)
                .open(fifos.paths(false).stdout)
                .unwrap();
            let thread = std::thread::spawn(move || writer.write_all(&vec![7; 300_000]).unwrap());
            copy_output(fifos.into_ends().stdout.unwrap(), Closed)
                .await
                .unwrap();
            thread.join().unwrap();
        });
    }
}
