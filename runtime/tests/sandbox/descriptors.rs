//! Standard streams that are descriptors of another process.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use containerd_shim_protos::shim_async::TaskClient;
use lazaret_runtime::stdio::handover::{address, hand_over};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::process::Pid;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use crate::engine::{engine, exit_code, pid, result_is_left};
use crate::harness::{Box_, ID, context, create_request, refusal, start_request};

const TOTAL: usize = 100_000_000;

/// Creates the container with descriptors for its streams, and lets it run.
pub async fn run_with(sandbox: &mut Box_, fds: &[BorrowedFd<'_>]) -> (TaskClient, Pid) {
    let client = sandbox.client().await;
    hand_over(&sandbox.sandbox_dir().join("stdio.sock"), ID, fds).unwrap();
    let mut create = create_request(&sandbox.path("bundle"));
    create.terminal = fds.len() == 1;
    create.stdin = address(ID);
    create.stdout = address(ID);
    create.stderr = address(ID);
    client.create(context(), &create).await.unwrap();
    sandbox.note_pids();
    client.start(context(), &start_request("")).await.unwrap();
    let pid = pid(sandbox);
    (client, pid)
}

pub fn null() -> File {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap()
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte)).sum()
}

/// How many bytes come before the end, and their sum.
fn counted(mut reader: impl Read + Send + 'static) -> JoinHandle<(usize, u64)> {
    std::thread::spawn(move || {
        let (mut count, mut total) = (0, 0);
        let mut buffer = vec![0; 65536];
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => return (count, total),
                read => {
                    count += read;
                    total += sum(&buffer[..read]);
                }
            }
        }
    })
}

/// What the fake agent's `write` writes.
fn written(count: usize) -> u64 {
    let block: Vec<u8> = (0..65536_u32)
        .map(|at| match at % 64 {
            63 => b'\n',
            _ => b'a' + u8::try_from(at % 26).unwrap(),
        })
        .collect();
    let whole = count / block.len();
    u64::try_from(whole).unwrap() * sum(&block) + sum(&block[..count % block.len()])
}

#[tokio::test]
async fn output_arrives_whole_through_pipes_and_sockets() {
    let (pipe_reader, pipe_writer) = std::io::pipe().unwrap();
    let (socket_reader, socket_writer) = UnixStream::pair().unwrap();
    let kinds: [(JoinHandle<_>, OwnedFd); 2] = [
        (counted(pipe_reader), pipe_writer.into()),
        (counted(socket_reader), socket_writer.into()),
    ];
    for (reading, writer) in kinds {
        let mut sandbox = engine("ok", &["write", &TOTAL.to_string()], |_| {});
        let before = fcntl_getfl(&writer).unwrap();
        let null = null();
        let fds = [null.as_fd(), writer.as_fd(), null.as_fd()];
        let (client, pid) = run_with(&mut sandbox, &fds).await;
        assert_eq!(fcntl_getfl(&writer).unwrap(), before);
        assert!(!before.contains(OFlags::NONBLOCK));
        drop((client, writer));
        assert_eq!(exit_code(pid).await, 0);
        assert_eq!(reading.join().unwrap(), (TOTAL, written(TOTAL)));
        result_is_left(&sandbox, 0).await;
    }
}

#[tokio::test]
async fn files_keep_their_offset_and_their_end() {
    let mut sandbox = engine("ok", &["write", &TOTAL.to_string()], |_| {});
    let path = sandbox.path("output");
    fs::write(&path, "before, and over\n").unwrap();
    let mut file = File::options().write(true).open(&path).unwrap();
    file.write_all(b"before").unwrap();
    let null = null();
    let fds = [null.as_fd(), file.as_fd(), file.as_fd()];
    let (client, pid) = run_with(&mut sandbox, &fds).await;
    drop(client);
    assert_eq!(exit_code(pid).await, 0);
    // The offset is shared: what comes next comes after.
    file.write_all(b"after").unwrap();
    let text = fs::read(&path).unwrap();
    assert_eq!(&text[..6], b"before");
    assert_eq!(&text[text.len() - 5..], b"after");
    let output = &text[6..text.len() - 5];
    assert_eq!((output.len(), sum(output)), (TOTAL, written(TOTAL)));
    result_is_left(&sandbox, 0).await;
}

#[tokio::test]
async fn input_arrives_whole_from_every_kind() {
    let content: Vec<u8> = (0..TOTAL)
        .map(|at| u8::try_from(at * 7 % 251).unwrap())
        .collect();
    let expected = format!("{TOTAL} {}\n", sum(&content));
    for kind in ["pipe", "socket", "file", "null"] {
        let mut sandbox = engine("ok", &["count"], |_| {});
        let (stdin, writer): (OwnedFd, Option<OwnedFd>) = match kind {
            "pipe" => {
                let (reader, writer) = std::io::pipe().unwrap();
                (reader.into(), Some(writer.into()))
            }
            "socket" => {
                let (reader, writer) = UnixStream::pair().unwrap();
                (reader.into(), Some(writer.into()))
            }
            "file" => {
                let path = sandbox.path("input");
                fs::write(&path, &content).unwrap();
                let mut file = File::open(&path).unwrap();
                file.seek(SeekFrom::Start(0)).unwrap();
                (file.into(), None)
            }
            _ => (null().into(), None),
        };
        let (mut reader, output) = std::io::pipe().unwrap();
        let flags = fcntl_getfl(&stdin).unwrap();
        let fds = [stdin.as_fd(), output.as_fd(), output.as_fd()];
        let (client, pid) = run_with(&mut sandbox, &fds).await;
        drop((client, output));
        if let Some(writer) = writer {
            let content = content.clone();
            let writing = std::thread::spawn(move || File::from(writer).write_all(&content));
            tokio::task::spawn_blocking(move || writing.join().unwrap().unwrap())
                .await
                .unwrap();
        }
        assert_eq!(exit_code(pid).await, 0, "{kind}");
        assert_eq!(fcntl_getfl(&stdin).unwrap(), flags);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let expected = if kind == "null" { "0 0\n" } else { &expected };
        assert_eq!(text, expected, "{kind}");
        result_is_left(&sandbox, 0).await;
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_the_stream() {
    let mut sandbox = engine("ok", &["write", "1000000000000"], |_| {});
    let (mut reader, writer) = std::io::pipe().unwrap();
    let null = null();
    let fds = [null.as_fd(), writer.as_fd(), null.as_fd()];
    let (client, pid) = run_with(&mut sandbox, &fds).await;
    drop((client, writer));
    reader.read_exact(&mut vec![0; 100_000]).unwrap();
    drop(reader);
    // What SIGPIPE leaves.
    assert_eq!(exit_code(pid).await, 141);
    result_is_left(&sandbox, 141).await;
}

#[tokio::test]
async fn a_killed_process_does_not_wait_for_who_reads_nothing() {
    let mut sandbox = engine("ok", &["write", "1000000000000"], |_| {});
    let (reader, writer) = std::io::pipe().unwrap();
    let null = null();
    let fds = [null.as_fd(), writer.as_fd(), null.as_fd()];
    let (client, pid) = run_with(&mut sandbox, &fds).await;
    let kill = crate::harness::kill_request(9);
    client.kill(context(), &kill).await.unwrap();
    assert_eq!(exit_code(pid).await, 137);
    drop(reader);
    result_is_left(&sandbox, 137).await;
}

#[tokio::test]
async fn descriptors_that_were_not_handed_over_are_named() {
    let mut sandbox = engine("ok", &["exit", "0"], |_| {});
    let client = sandbox.client().await;
    let mut create = create_request(&sandbox.path("bundle"));
    create.stdout = address("other");
    let (_, text) = refusal(client.create(context(), &create).await);
    assert!(text.contains("\"other\""), "{text}");
    let socket = sandbox.sandbox_dir().join("stdio.sock");
    let null = null();
    let err = hand_over(&socket, "no/token", &[null.as_fd(); 3]).unwrap_err();
    assert!(err.to_string().contains("no/token"), "{err}");
    let err = hand_over(&socket, ID, &[null.as_fd(); 2]).unwrap_err();
    assert!(err.to_string().contains("2 descriptors"), "{err}");
}

/// A terminal in raw mode, as `lazaret-oci` makes it.
fn terminal() -> (File, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty()).unwrap();
    let mut attributes = tcgetattr(&slave).unwrap();
    attributes.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &attributes).unwrap();
    (master.into(), slave)
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

async fn read_line(mut master: File) -> (File, String) {
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        while text.last() != Some(&b'\n') {
            let mut byte = [0];
            master.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        (master, String::from_utf8(text).unwrap())
    });
    reading.await.unwrap()
}

#[tokio::test]
async fn a_terminal_is_followed_until_it_hangs_up() {
    let (master, slave) = terminal();
    tcsetwinsize(&master, size(24, 80)).unwrap();
    let mut sandbox = engine("ok", &["sizes"], |spec| {
        spec["process"]["terminal"] = true.into();
    });
    let (client, pid) = run_with(&mut sandbox, &[slave.as_fd()]).await;
    drop((client, slave));
    let (mut master, line) = read_line(master).await;
    assert_eq!(line, "24x80\n");
    tcsetwinsize(&master, size(50, 132)).unwrap();
    let (again, line) = read_line(master).await;
    master = again;
    assert_eq!(line, "50x132\n");
    master.write_all(b"typed\n").unwrap();
    let (master, line) = read_line(master).await;
    assert_eq!(line, "typed\n");
    // SIGHUP reaches the container.
    drop(master);
    assert_eq!(exit_code(pid).await, 129);
    result_is_left(&sandbox, 129).await;
}
