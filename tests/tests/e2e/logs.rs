//! `logs`, and the json-file format underneath.

use lazaret_tests::start;
use serde_json::Value;

#[test]
fn logs_of_a_stopped_container() {
    let lazaret = start!("logs");
    let name = lazaret.container("a");
    let script = "echo one; echo two >&2; echo three; printf end";
    lazaret
        .run(["--name", &name, "busybox", "sh", "-c", script])
        .status(0);

    lazaret
        .lazaret(["logs", &name])
        .status(0)
        .stdout("one\nthree\nend")
        .stderr("two\n");
    lazaret
        .lazaret(["logs", "--tail", "1", &name])
        .success()
        .stdout("end");
    lazaret
        .lazaret(["logs", "--tail", "0", &name])
        .success()
        .stdout("");
    for line in lazaret.lazaret(["logs", "-t", &name]).status(0).lines() {
        let (time, text) = line.split_once(' ').expect("a time and a text");
        assert!(
            time.ends_with('Z') && time.starts_with("20"),
            "RFC 3339 in UTC: {line}"
        );
        assert!(["one", "three", "end"].contains(&text), "{line}");
    }

    let inspected = lazaret.lazaret(["inspect", &name]).success().json();
    let path = inspected[0]["LogPath"]
        .as_str()
        .expect("LogPath")
        .to_owned();
    let records: Vec<Value> = lazaret
        .sh(&format!("cat {path}"))
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect();
    let pairs: Vec<_> = records
        .iter()
        .map(|record| {
            (
                record["stream"].as_str().unwrap(),
                record["log"].as_str().unwrap(),
            )
        })
        .collect();
    assert!(
        records.iter().all(|record| record["time"].is_string()),
        "{records:?}"
    );
    let of = |stream| {
        let texts = pairs
            .iter()
            .filter(|(of, _)| *of == stream)
            .map(|(_, log)| *log);
        texts.collect::<Vec<_>>()
    };
    assert_eq!(of("stdout"), ["one\n", "three\n", "end"]);
    assert_eq!(of("stderr"), ["two\n"]);
    lazaret.lazaret(["rm", &name]).success();
    lazaret
        .lazaret(["logs", &name])
        .status(1)
        .stderr_contains(&format!("No such container: {name}"));
}

#[test]
fn follow_shows_lines_as_they_come_and_ends_with_the_container() {
    let lazaret = start!("logs-follow");
    let name = lazaret.container("a");
    let script = "echo before; while read line; do echo \"$line\"; done </fifo; exit 4";
    let setup = format!("mkfifo /fifo; {script}");
    lazaret.detached(&name, ["busybox", "sh", "-c", &setup]);
    let mut follow = lazaret.cmd(["logs", "-f", &name]).spawn();
    assert_eq!(follow.line(), "before");
    // The fifo is held open by one exec, so that two writers come one after the other.
    let mut writer = lazaret
        .cmd(["exec", "-i", &name, "sh", "-c", "cat >/fifo"])
        .spawn();
    for line in ["first", "second"] {
        writer.write(&format!("{line}\n"));
        assert_eq!(follow.line(), line);
    }
    writer.close_stdin();
    writer.wait().status(0);
    follow.wait().status(0);
    lazaret.lazaret(["wait", &name]).success().stdout("4\n");
    lazaret.lazaret(["rm", &name]).success();
}

#[test]
fn log_of_a_detached_container_is_whole() {
    let lazaret = start!("logs-whole");
    let name = lazaret.container("a");
    lazaret.detached(&name, ["busybox", "seq", "1", "20000"]);
    lazaret.lazaret(["wait", &name]).success().stdout("0\n");
    let same = lazaret.sh(&format!(
        "lazaret logs {name} | cmp - <(seq 1 20000) && echo same; lazaret logs --tail 3 {name}"
    ));
    assert_eq!(same, "same\n19998\n19999\n20000\n");
    lazaret.lazaret(["rm", &name]).success();
}
