//! The sandbox process or the VMM is killed, whatever the container is doing: it is stopped then,
//! its parent hears of it, and `delete` finds nothing difficult about it.

use lazaret_tests::{Background, Lazaret, start};

use super::bundle::{Bundle, Parent};
use super::footprint::Footprint;

/// What a container is doing when it is hit.
#[derive(Clone, Copy, Debug)]
enum State {
    Created,
    Running,
    Paused,
    /// With two processes added to it: one that somebody waits for, one detached.
    Exec,
}

const STATES: [State; 4] = [State::Created, State::Running, State::Paused, State::Exec];

/// A container in a state.
struct Hit<'a> {
    bundle: Bundle<'a>,
    parent: Parent<'a>,
    exec: Option<Background<'a>>,
}

fn container_in(lazaret: &Lazaret, state: State) -> Hit<'_> {
    let name = format!("{state:?}").to_lowercase();
    let bundle = Bundle::new(lazaret, &name, "sleep 100000");
    let parent = bundle.create();
    let mut exec = None;
    match state {
        State::Created => {}
        State::Running => {
            bundle.call(&["start"], &[]).success();
        }
        State::Paused => {
            bundle.call(&["start"], &[]).success();
            bundle.call(&["pause"], &[]).success();
        }
        State::Exec => {
            bundle.call(&["start"], &[]).success();
            let detached = format!(
                "lazaret-oci exec --detach --pid-file {}/exec.pid {} sleep 100000 >/dev/null 2>&1 </dev/null",
                bundle.path, bundle.id
            );
            lazaret.sh(&detached);
            let script = format!(
                "lazaret-oci exec {} sh -c 'echo in; sleep 100000'",
                bundle.id
            );
            let mut attached = lazaret.sh_cmd(&script).spawn();
            assert_eq!(attached.line(), "in");
            exec = Some(attached);
        }
    }
    Hit {
        bundle,
        parent,
        exec,
    }
}

impl Hit<'_> {
    /// The state's own ends, and then the end of everything.
    fn assert_ended(self, lazaret: &Lazaret, expected: &str) {
        let Self {
            bundle,
            parent,
            exec,
        } = self;
        assert_eq!(parent.ended(), expected, "{}", bundle.id);
        bundle.until_stopped();
        if let Some(exec) = exec {
            exec.wait().status(137);
            // What stands for the detached one goes by itself.
            lazaret.sh(&format!(
                "while kill -0 $(cat {}/exec.pid); do sleep 0.1; done 2>/dev/null",
                bundle.path
            ));
        }
        for (verb, rest) in [("exec", &["true"][..]), ("kill", &["TERM"]), ("start", &[])] {
            let outcome = bundle.call(&[verb], rest);
            assert_ne!(
                outcome.status_code(),
                0,
                "{verb} of what is dead: {outcome}"
            );
        }
        bundle.call(&["delete"], &[]).success();
        bundle.assert_gone();
        lazaret.sh(&format!("rm -r {}", bundle.path));
    }
}

#[test]
fn killed_sandbox_process_is_a_stopped_container() {
    let lazaret = start!("abuse-kill-sandbox");
    let before = Footprint::of(&lazaret);
    for state in STATES {
        let hit = container_in(&lazaret, state);
        lazaret.sh(&format!("kill -KILL {}", hit.parent.pid));
        hit.assert_ended(&lazaret, "signal 9");
        before.assert_again(&lazaret);
    }
}

#[test]
fn killed_monitor_is_a_stopped_container() {
    let lazaret = start!("abuse-kill-monitor");
    let before = Footprint::of(&lazaret);
    for state in STATES {
        let hit = container_in(&lazaret, state);
        lazaret.sh(&format!("kill -KILL {}", hit.bundle.vmm()));
        hit.assert_ended(&lazaret, "status 137");
        before.assert_again(&lazaret);
    }
}
