//! `-t`: a terminal that behaves like one, of the size of the window around it.

use lazaret_tests::start;

#[test]
fn shell_in_a_terminal_follows_the_window() {
    let lazaret = start!("terminal");
    let mut terminal = lazaret
        .run_cmd(["-it", "--rm", "busybox", "sh"])
        .terminal(33, 101);
    // Typed before the prompt is there, as impatient people do.
    terminal.write("stty size; tty; echo sum $((40+2))\n");
    terminal
        .expect("33 101")
        .expect("/dev/pts/0")
        .expect("sum 42");
    terminal.resize(40, 132);
    terminal.ask_until("stty size\n", "40 132");
    // Ctrl-C ends the command in the foreground, not the container.
    terminal.write("sh -c 'echo $((6*7)) go; exec sleep 1000'\n");
    terminal.expect("42 go");
    terminal.write("\x03");
    terminal.write("echo after $((50+4))\n");
    terminal.expect("after 54");
    terminal.write("exit 9\n");
    terminal.status(9);
}

#[test]
fn size_is_right_from_the_first_instruction() {
    let lazaret = start!("terminal-size");
    let mut terminal = lazaret
        .run_cmd(["-it", "--rm", "busybox", "stty", "size"])
        .terminal(17, 61);
    terminal.expect("17 61\r\n");
    terminal.status(0);
}

#[test]
fn terminal_without_a_terminal_is_refused() {
    let lazaret = start!("no-terminal");
    let name = lazaret.container("a");
    lazaret
        .run_cmd(["-it", "--rm", "--name", &name, "busybox", "true"])
        .stdin("")
        .output()
        .status(125)
        .stderr_contains("the input device is not a TTY");
}

#[test]
fn exec_in_a_terminal() {
    let lazaret = start!("exec-terminal");
    let name = lazaret.container("a");
    lazaret.detached(&name, ["busybox", "sleep", "1000"]);
    let mut terminal = lazaret.cmd(["exec", "-it", &name, "sh"]).terminal(20, 70);
    terminal.write("stty size\n");
    terminal.expect("20 70");
    terminal.resize(25, 75);
    terminal.ask_until("stty size\n", "25 75");
    terminal.write("exit 3\n");
    terminal.status(3);
    lazaret.lazaret(["rm", "-f", &name]).success();
}
