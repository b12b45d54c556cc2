//! Standard streams: fed, captured, told apart, whole.

use lazaret_tests::start;

#[test]
fn output_goes_to_its_own_stream() {
    let lazaret = start!("streams");
    lazaret
        .run([
            "--rm",
            "busybox",
            "sh",
            "-c",
            "echo out; echo err >&2; printf 'no newline'",
        ])
        .status(0)
        .stdout("out\nno newline")
        .stderr("err\n");
}

#[test]
fn stdin_reaches_the_command_and_ends() {
    let lazaret = start!("stdin");
    lazaret
        .run_cmd(["-i", "--rm", "busybox", "cat"])
        .stdin("hi\n")
        .output()
        .success()
        .stdout("hi\n");
}

#[test]
fn without_i_stdin_is_empty() {
    let lazaret = start!("no-stdin");
    lazaret
        .run_cmd(["--rm", "busybox", "cat"])
        .stdin("hi\n")
        .output()
        .success()
        .stdout("");
}

#[test]
fn conversation_goes_line_by_line() {
    let lazaret = start!("conversation");
    let script = "while read line; do echo \"got $line\"; done; echo end";
    let mut run = lazaret
        .run_cmd(["-i", "--rm", "busybox", "sh", "-c", script])
        .spawn();
    for word in ["one", "two"] {
        run.write(&format!("{word}\n"));
        assert_eq!(run.line(), format!("got {word}"));
    }
    run.close_stdin();
    assert_eq!(run.line(), "end");
    run.wait().success();
}

#[test]
fn hundred_megabytes_arrive_whole() {
    let lazaret = start!("hundred-megabytes");
    let probe = lazaret.probe();
    let name = lazaret.container("a");
    let sums = lazaret
        .sh_cmd(&format!(
            "set -o pipefail
            {probe} stream 100000000 | sha256sum
            lazaret run --rm --name {name} -v {probe}:/probe:ro busybox /probe stream 100000000 | sha256sum"
        ))
        .deadline(600)
        .output();
    sums.success();
    let lines = sums.lines();
    assert_eq!(
        lines[0], lines[1],
        "checksums of 100 MB, direct and through the container"
    );
}

#[test]
fn ten_megabytes_go_in_and_come_back() {
    let lazaret = start!("ten-megabytes");
    let probe = lazaret.probe();
    let name = lazaret.container("a");
    let sums = lazaret.sh(&format!(
        "set -o pipefail
        {probe} stream 10000000 | sha256sum
        {probe} stream 10000000 | lazaret run --rm -i --name {name} busybox cat | sha256sum"
    ));
    let lines: Vec<_> = sums.lines().collect();
    assert_eq!(
        lines[0], lines[1],
        "checksums of 10 MB, direct and through the container"
    );
}

#[test]
fn reader_that_goes_away_does_not_disturb_the_container() {
    let lazaret = start!("reader-gone");
    let name = lazaret.container("a");
    let first = lazaret.sh(&format!(
        "lazaret run --name {name} busybox seq 1 50000 | head -n 1; lazaret logs --tail 1 {name}"
    ));
    assert_eq!(first, "1\n50000\n");
    lazaret.lazaret(["rm", &name]).success();
}

/// A guest's kernel gives up a stream that it has closed and nobody reads after 8 s. How
/// much is on its way then depends on the buffers in between.
#[test]
fn reader_may_pause_after_the_command_has_ended() {
    let lazaret = start!("reader-pauses");
    for lines in [70_000, 100_000] {
        let name = lazaret.container(&lines.to_string());
        let sums = lazaret.sh(&format!(
            "set -o pipefail
            seq 1 {lines} | cksum
            lazaret run --rm --name {name} busybox seq 1 {lines} | {{ sleep 20; cksum; }}"
        ));
        let sums: Vec<_> = sums.lines().collect();
        assert_eq!(sums[0], sums[1], "{lines} lines, direct and read late");
    }
}
