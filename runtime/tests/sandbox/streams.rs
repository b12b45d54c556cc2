//! Standard streams from FIFO to process and back.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use containerd_shim_protos::api::CloseIORequest;
use serde_json::Value;

use crate::harness::{
    Box_, ID, context, create_request, exec_request, kill_request, start_request, wait_request,
};

fn fifo(sandbox: &Box_, name: &str) -> String {
    let path = sandbox.path(name);
    assert!(
        Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    path.display().to_string()
}

fn open_reader(path: &str) -> File {
    let file = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .unwrap();
    rustix::io::ioctl_fionbio(&file, false).unwrap();
    file
}

#[tokio::test]
async fn a_hundred_megabytes_arrive_whole_in_fifo_and_log() {
    const TOTAL: usize = 100_000_000;
    let mut sandbox = Box_::new("ok", "lazaret");
    let log = sandbox.path("c-json.log");
    sandbox.spec(&["write", &TOTAL.to_string()], |spec| {
        spec["annotations"]["dev.lazaret.log-path"] = log.to_str().unwrap().into();
    });
    let client = sandbox.client().await;
    let stdout = fifo(&sandbox, "stdout");
    let reader = open_reader(&stdout);
    let mut create = create_request(&sandbox.path("bundle"));
    create.stdout = stdout;
    client.create(context(), &create).await.unwrap();
    let reading = std::thread::spawn(move || {
        let (mut count, mut sum) = (0_usize, 0_u64);
        let mut buffer = vec![0; 65536];
        let mut reader = reader;
        loop {
            let read = reader.read(&mut buffer).unwrap();
            if read == 0 {
                return (count, sum);
            }
            count += read;
            sum += buffer[..read]
                .iter()
                .map(|byte| u64::from(*byte))
                .sum::<u64>();
        }
    });
    client.start(context(), &start_request("")).await.unwrap();
    client.wait(context(), &wait_request("")).await.unwrap();
    // All of it is in the log by the time the end is told.
    let text = std::fs::read_to_string(&log).unwrap();
    let (mut count, mut sum) = (0, 0_u64);
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let text = record["log"].as_str().unwrap();
        count += text.len();
        sum += text.bytes().map(u64::from).sum::<u64>();
    }
    assert_eq!(count, TOTAL);
    assert_eq!(reading.join().unwrap(), (TOTAL, sum));
    sandbox.take_down(&client).await;
}

#[tokio::test]
async fn stdin_reaches_the_process_and_its_end_too() {
    let mut sandbox = Box_::new("ok", "lazaret");
    sandbox.spec(&["cat"], |_| {});
    let client = sandbox.client().await;
    let (stdin, stdout) = (fifo(&sandbox, "stdin"), fifo(&sandbox, "stdout"));
    let mut writer = File::options().read(true).write(true).open(&stdin).unwrap();
    let mut reader = open_reader(&stdout);
    let mut create = create_request(&sandbox.path("bundle"));
    create.stdin = stdin;
    create.stdout = stdout;
    client.create(context(), &create).await.unwrap();
    client.start(context(), &start_request("")).await.unwrap();
    writer.write_all(b"hello, guest\n").unwrap();
    let close = CloseIORequest {
        id: ID.to_owned(),
        stdin: true,
        ..CloseIORequest::default()
    };
    client.close_io(context(), &close).await.unwrap();
    let exit = client.wait(context(), &wait_request("")).await.unwrap();
    assert_eq!(exit.exit_status, 0);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello, guest\n");
    sandbox.take_down(&client).await;
}

#[tokio::test]
async fn processes_have_their_streams_however_few_files_a_shell_may_open() {
    let mut sandbox = Box_::new("ok", "test");
    sandbox.spec(&["sleep"], |_| {});
    let client = sandbox.running().await;
    let stdout = fifo(&sandbox, "stdout");
    let _reader = open_reader(&stdout);
    for number in 0..50 {
        let id = format!("e{number}");
        let mut exec = exec_request(&id, &["sleep"]);
        exec.stdout.clone_from(&stdout);
        exec.stderr.clone_from(&stdout);
        client.exec(context(), &exec).await.unwrap();
        client.start(context(), &start_request(&id)).await.unwrap();
    }
    client.kill(context(), &kill_request(9)).await.unwrap();
    client.wait(context(), &wait_request("")).await.unwrap();
    sandbox.take_down(&client).await;
}
