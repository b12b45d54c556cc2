use super::*;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

struct Fixture {
    dir: tempfile::TempDir,
    listener: UnixListener,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("vsock.sock")).unwrap();
        Self { dir, listener }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.path(name);
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        path.display().to_string()
    }

    fn reader(path: &str) -> File {
        std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(path)
            .unwrap()
    }

    /// Connects one stream, and returns the guest's end of it.
    async fn connect(&self, ends: HostEnds) -> (Streams, Stdio, UnixStream) {
        let ports = GuestPorts::new(self.path("vsock.sock"));
        let guest = async {
            let (mut stream, _) = self.listener.accept().await.unwrap();
            let mut line = [0; 13];
            stream.read_exact(&mut line).await.unwrap();
            stream.write_all(b"OK 5\n").await.unwrap();
            stream
        };
        let (connected, stream) = tokio::join!(ends.connect(&ports), guest);
        let (streams, stdio) = connected.unwrap();
        (streams, stdio, stream)
    }
}

/// Of a process that nobody has killed.
fn unkilled() -> watch::Receiver<bool> {
    watch::channel(false).1
}

fn stdout(path: &str) -> StdioPaths {
    StdioPaths {
        stdout: path.to_owned(),
        ..StdioPaths::default()
    }
}

fn stdin(path: &str) -> StdioPaths {
    StdioPaths {
        stdin: path.to_owned(),
        ..StdioPaths::default()
    }
}

#[tokio::test]
async fn output_reaches_log_and_fifo_before_the_end() {
    let fixture = Fixture::new();
    let path = fixture.fifo("out");
    let reader = Fixture::reader(&path);
    let log_path = fixture.path("log");
    let log = JsonLog::open(&log_path).unwrap();
    let ends = HostEnds::open(&stdout(&path), Some(&log), &Inherited::default()).unwrap();
    // stderr goes to the log alone; close it in this test.
    let ends = HostEnds {
        stderr: None,
        ..ends
    };
    let (streams, stdio, mut guest) = fixture.connect(ends).await;
    assert_eq!((stdio.stdin_port, stdio.stdout_port), (0, 5));

    let total = 4 * 1024 * 1024;
    let reading = tokio::task::spawn_blocking(move || {
        rustix::io::ioctl_fionbio(&reader, false).unwrap();
        io::copy(&mut &reader, &mut io::sink()).unwrap()
    });
    let block = vec![b'x'; total / 4];
    for _ in 0..4 {
        guest.write_all(&block).await.unwrap();
    }
    drop(guest);
    streams.finish(unkilled()).await;
    assert_eq!(reading.await.unwrap(), total as u64);
    let logged = std::fs::read_to_string(&log_path).unwrap();
    let bytes: usize = logged.bytes().filter(|byte| *byte == b'x').count();
    assert_eq!(bytes, total);
}

#[tokio::test]
async fn a_reader_that_is_gone_does_not_stop_the_log() {
    let fixture = Fixture::new();
    let path = fixture.fifo("out");
    let reader = Fixture::reader(&path);
    let log_path = fixture.path("log");
    let log = JsonLog::open(&log_path).unwrap();
    let ends = HostEnds::open(&stdout(&path), Some(&log), &Inherited::default()).unwrap();
    let ends = HostEnds {
        stderr: None,
        ..ends
    };
    let (streams, _, mut guest) = fixture.connect(ends).await;
    drop(reader);
    guest.write_all(&vec![b'y'; 300_000]).await.unwrap();
    drop(guest);
    streams.finish(unkilled()).await;
    let logged = std::fs::read_to_string(&log_path).unwrap();
    assert_eq!(logged.bytes().filter(|byte| *byte == b'y').count(), 300_000);
}

#[tokio::test]
async fn output_held_open_by_another_is_cut_off() {
    let fixture = Fixture::new();
    let path = fixture.fifo("out");
    let _reader = Fixture::reader(&path);
    let ends = HostEnds::open(&stdout(&path), None, &Inherited::default()).unwrap();
    let (streams, _, _guest) = fixture.connect(ends).await;
    streams.finish(unkilled()).await;
}

#[tokio::test]
async fn output_that_another_goes_on_writing_is_cut_off() {
    let fixture = Fixture::new();
    let path = fixture.fifo("out");
    let mut reader = Fixture::reader(&path);
    let ends = HostEnds::open(&stdout(&path), None, &Inherited::default()).unwrap();
    let (streams, _, mut guest) = fixture.connect(ends).await;
    let reading = std::thread::spawn(move || {
        rustix::io::ioctl_fionbio(&reader, false).unwrap();
        io::copy(&mut reader, &mut io::sink()).unwrap()
    });
    let writing = tokio::spawn(async move {
        while guest.write_all(b"still here\n").await.is_ok() {
            tokio::time::sleep(DRAIN_GRACE / 20).await;
        }
    });
    streams.finish(unkilled()).await;
    // The guest's writer sees it too.
    writing.await.unwrap();
    assert!(reading.join().unwrap() > 0);
}

#[tokio::test]
async fn reader_of_an_ended_process_may_take_its_time_unless_that_was_killed() {
    let fixture = Fixture::new();
    let path = fixture.fifo("out");
    let reader = Fixture::reader(&path);
    let ends = HostEnds::open(&stdout(&path), None, &Inherited::default()).unwrap();
    let (streams, _, mut guest) = fixture.connect(ends).await;
    guest.write_all(&vec![b'x'; 200_000]).await.unwrap();
    let (kill, killed) = watch::channel(false);
    let finish = streams.finish(killed);
    tokio::pin!(finish);
    let early = tokio::time::timeout(DRAIN_GRACE * 2, &mut finish).await;
    assert!(early.is_err(), "the reader was not waited for");
    kill.send_replace(true);
    finish.await;
    drop(reader);
}

#[tokio::test]
async fn stdin_waits_for_its_first_writer_and_ends_with_the_last() {
    let fixture = Fixture::new();
    let path = fixture.fifo("in");
    let ends = HostEnds::open(&stdin(&path), None, &Inherited::default()).unwrap();
    let (_streams, _, mut guest) = fixture.connect(ends).await;
    let early = tokio::time::timeout(Duration::from_millis(50), guest.read_u8()).await;
    assert!(early.is_err(), "no writer yet, and no end");
    let mut writer = File::options().write(true).open(&path).unwrap();
    writer.write_all(b"hi").unwrap();
    drop(writer);
    let mut text = String::new();
    guest.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hi");
}

#[tokio::test]
async fn closing_stdin_delivers_what_was_written_before() {
    let fixture = Fixture::new();
    let path = fixture.fifo("in");
    let ends = HostEnds::open(&stdin(&path), None, &Inherited::default()).unwrap();
    let (streams, _, mut guest) = fixture.connect(ends).await;
    let mut writer = File::options().read(true).write(true).open(&path).unwrap();
    writer.write_all(&vec![b'z'; 50_000]).unwrap();
    streams.close_stdin();
    let mut text = Vec::new();
    guest.read_to_end(&mut text).await.unwrap();
    assert_eq!(text.len(), 50_000);
}

#[test]
fn what_is_no_fifo_is_refused() {
    let fixture = tempfile::tempdir().unwrap();
    let file = fixture.path().join("file");
    std::fs::write(&file, "").unwrap();
    let file = file.display().to_string();
    let open = |paths: &StdioPaths| HostEnds::open(paths, None, &Inherited::default()).unwrap_err();
    assert!(matches!(open(&stdout(&file)), StdioError::NotFifo { .. }));
    assert!(matches!(open(&stdin("/none")), StdioError::Open { .. }));
    let logger = open(&stdout("binary:///bin/logger"));
    assert!(matches!(logger, StdioError::Scheme(_)));
}
