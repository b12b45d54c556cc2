//! A command in a terminal: a real pty of this machine, which `lab exec` carries into the lab with
//! its size, as ssh does for people.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// How long expected text may take to appear.
const DEADLINE: Duration = Duration::from_secs(180);

/// The terminal and the command in it.
#[derive(Debug)]
pub struct Terminal {
    shown: String,
    master: File,
    child: Child,
    chunks: Receiver<Vec<u8>>,
    /// What appeared and no `expect` has passed yet.
    screen: String,
}

impl Terminal {
    pub(crate) fn spawn(command: &Command, shown: String, rows: u16, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("there is a pty");
        grantpt(&master).expect("the pty can be granted");
        unlockpt(&master).expect("the pty can be unlocked");
        let name = ptsname(&master, Vec::new()).expect("the pty has a name");
        let flags = i32::try_from(OFlags::NOCTTY.bits()).expect("a small flag");
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(name.to_str().expect("its name is ASCII"))
            .expect("the pty can be opened");
        let master = File::from(master);
        tcsetwinsize(&master, size(rows, columns)).expect("the pty has a size");

        let duplicate = || slave.try_clone().expect("a descriptor can be duplicated");
        // In a session of its own, so that signals of the terminal reach it.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(duplicate())
            .stdout(duplicate())
            .stderr(duplicate())
            .spawn()
            .expect("setsid can be spawned");
        let mut reader = master.try_clone().expect("a descriptor can be duplicated");
        let (sender, chunks) = channel();
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            // The last close of the other side is an error here (EIO), not an end of file.
            while let Ok(read @ 1..) = reader.read(&mut chunk) {
                if sender.send(chunk[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            shown,
            master,
            child,
            chunks,
            screen: String::new(),
        }
    }

    /// Types this text.
    pub fn write(&mut self, text: &str) {
        self.master
            .write_all(text.as_bytes())
            .expect("the terminal takes input");
    }

    /// Changes the terminal's size, as a person does who pulls at the window.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        tcsetwinsize(&self.master, size(rows, columns)).expect("the pty has a size");
    }

    /// Waits until this text appears, and passes it.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> &mut Self {
        assert!(
            self.appears(text, DEADLINE),
            "no {text:?} within {DEADLINE:?} in the terminal of: {}\nwhich shows {:?}",
            self.shown,
            self.screen
        );
        self
    }

    /// Types `line` again and again until `answer` appears: for what follows an asynchronous event.
    #[track_caller]
    pub fn ask_until(&mut self, line: &str, answer: &str) {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            self.write(line);
            if self.appears(answer, Duration::from_secs(1)) {
                return;
            }
        }
        panic!("{line:?} was never answered {answer:?}: {:?}", self.screen);
    }

    /// Pulls at the window until a program in it tells that it has this size: engines that are still
    /// busy with the first size miss the next one.
    #[track_caller]
    pub fn pull_until(&mut self, rows: u16, columns: u16) {
        let answer = format!("{rows} {columns}");
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            self.resize(rows - 1, columns);
            self.resize(rows, columns);
            self.write("stty size\n");
            if self.appears(&answer, Duration::from_secs(2)) {
                return;
            }
        }
        panic!("its size was never {answer}: {:?}", self.screen);
    }

    fn appears(&mut self, text: &str, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        loop {
            if let Some(at) = self.screen.find(text) {
                self.screen.drain(..at + text.len());
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(chunk) = self.chunks.recv_timeout(left) else {
                return false;
            };
            self.screen.push_str(&String::from_utf8_lossy(&chunk));
        }
    }

    /// Waits for the command's end and asserts its exit code.
    #[track_caller]
    pub fn status(mut self, expected: i32) {
        while let Ok(chunk) = self.chunks.recv() {
            self.screen.push_str(&String::from_utf8_lossy(&chunk));
        }
        let status = self.child.wait().expect("the command can be waited for");
        assert_eq!(
            status.code(),
            Some(expected),
            "exit code of {}\nwhose terminal ends with {:?}",
            self.shown,
            self.screen
        );
    }
}

impl Drop for Terminal {
    /// Hangs up, should the test have failed before the command's end.
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
