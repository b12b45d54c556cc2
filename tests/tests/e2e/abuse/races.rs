//! Everybody at once: whatever commands meet at one container, each of them ends, with an answer
//! that means something, and the container has one end.

use lazaret_tests::{Lazaret, start};

use super::bundle::Bundle;
use super::footprint::Footprint;

/// Runs the lines of its input at the same time, each several times, and writes for each run its exit
/// code and the first line of what it says. A command that hangs has 124.
const ALL_AT_ONCE: &str = r#"
run=0
while read -r line; do
    for again in 1 2 3; do
        run=$((run + 1))
        ( timeout -k 5 120 $line >/dev/null 2>$0.said$run </dev/null
            echo "$? $line: $(head -n 1 $0.said$run)" ) &
    done
done
wait
"#;

/// What a command may say when somebody else was quicker.
const LATE: [&str; 11] = [
    "container does not exist",
    "container not running",
    "container not paused",
    "that is not stopped",
    "already exists",
    "cannot start a container that has stopped",
    "cannot start an already running container",
    "process is being started",
    "cannot start a container in the paused state",
    "exec in a stopped container",
    "exec in a paused container",
];

/// What each run has answered: exit code and message.
fn all_at_once(lazaret: &Lazaret, lines: &[String]) -> Vec<(i32, String)> {
    let file = lazaret.file("all-at-once", ALL_AT_ONCE);
    let run = lazaret.sh_cmd(&format!("bash {file}"));
    let outcome = run.stdin(lines.join("\n") + "\n").output();
    outcome.status(0);
    let answers: Vec<_> = outcome
        .lines()
        .iter()
        .map(|line| {
            let (code, said) = line.split_once(' ').expect("a code and a text");
            (code.parse().expect("a number"), said.to_owned())
        })
        .collect();
    assert_eq!(answers.len(), 3 * lines.len(), "{outcome}");
    for (code, said) in &answers {
        assert_ne!(*code, 124, "hangs: {said}");
        let late = LATE.iter().any(|text| said.contains(text));
        // A process that was added ends with the container's.
        let killed = *code == 137 && said.starts_with("lazaret-oci exec");
        assert!(*code == 0 || late || killed, "{code} {said}");
    }
    answers
}

fn of(bundle: &Bundle<'_>, verbs: &[&str]) -> Vec<String> {
    let line = |verb: &&str| format!("lazaret-oci {}", verb.replace("ID", &bundle.id));
    verbs.iter().map(line).collect()
}

#[test]
#[ignore = "minutes in a lab: make test-full"]
fn commands_that_meet_all_end() {
    let lazaret = start!("abuse-races");
    let before = Footprint::of(&lazaret);
    let meetings: [&[&str]; 5] = [
        &["kill ID KILL", "exec ID true", "delete --force ID"],
        &["kill ID KILL", "kill ID TERM", "delete ID", "state ID"],
        &["pause ID", "resume ID", "kill ID KILL", "ps ID"],
        &["exec ID true", "exec ID sleep 100000", "kill --all ID KILL"],
        &["start ID", "events --stats ID", "list", "delete --force ID"],
    ];
    for (number, verbs) in meetings.iter().enumerate() {
        let bundle = Bundle::new(&lazaret, &format!("race{number}"), "sleep 100000");
        let parent = bundle.start();
        all_at_once(&lazaret, &of(&bundle, verbs));
        // Whoever was first, it has one end, and the parent hears of it.
        bundle.call(&["delete", "--force"], &[]).success();
        let ended = parent.ended();
        assert!(
            ["signal 9", "status 137"].contains(&ended.as_str()),
            "{ended}"
        );
        bundle.assert_gone();
        lazaret.sh(&format!("rm -r {}", bundle.path));
        before.assert_again(&lazaret);
    }
}

#[test]
fn one_of_many_makes_and_one_of_many_deletes() {
    let lazaret = start!("abuse-one-of-many");
    let before = Footprint::of(&lazaret);
    let bundle = Bundle::new(&lazaret, "many", "exit 3");
    let create = format!("create --bundle {} ID", bundle.path);
    let once = |answers: Vec<(i32, String)>| {
        let done = answers.iter().filter(|(code, _)| *code == 0).count();
        assert_eq!(done, 1, "{answers:?}");
    };
    once(all_at_once(&lazaret, &of(&bundle, &[&create])));
    once(all_at_once(&lazaret, &of(&bundle, &["start ID"])));
    bundle.until_stopped();
    once(all_at_once(&lazaret, &of(&bundle, &["delete ID"])));
    bundle.assert_gone();
    lazaret.sh(&format!("rm -r {}", bundle.path));
    before.assert_again(&lazaret);
}
