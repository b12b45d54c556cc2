//! The terminal's other side goes away, as when an engine or its client dies: the container sees
//! what it would see of a terminal on its host.

use lazaret_tests::start;
use serde_json::json;

use super::bundle::Bundle;

/// `create` with a console socket, then `start`, as an engine does; hangs up once the container has
/// said a line: `hang-up BUNDLE ID`.
const HANG_UP: &str = r"
import os, socket, subprocess, sys
bundle, name = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX)
listener.bind(bundle + '/console')
listener.listen()
make = ['lazaret-oci', 'create', '--bundle', bundle, '--console-socket', bundle + '/console', name]
subprocess.run(make, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
connection, _ = listener.accept()
_, (master,), _, _ = socket.recv_fds(connection, 100, 1)
subprocess.run(['lazaret-oci', 'start', name], check=True)
seen = b''
while b'ready' not in seen:
    seen += os.read(master, 100)
os.close(master)
";

/// Init takes no notice of SIGHUP: what it and its child read from the terminal has an end all the
/// same, and what they write has nowhere to go.
#[test]
fn terminal_that_hangs_up_hangs_up_in_the_container() {
    let lazaret = start!("abuse-hang-up");
    let script = "trap '' HUP; echo ready; cat; echo $? >/over; echo lost || echo gone >>/over";
    let bundle = Bundle::with(&lazaret, "terminal", script, |config| {
        config["process"]["terminal"] = json!(true);
    });
    let program = lazaret.file("hang-up", HANG_UP);
    let line = format!("python3 {program} {} {} 2>&1", bundle.path, bundle.id);
    lazaret.sh_cmd(&line).output().status(0);
    bundle.until_stopped();
    let over = lazaret.sh(&format!("cat {}/rootfs/over", bundle.path));
    assert!(over.ends_with("gone\n"), "{over}");
    bundle.call(&["delete"], &[]).success();
    bundle.assert_gone();
}
