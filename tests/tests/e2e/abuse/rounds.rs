//! Again and again: nothing grows, neither on the machine nor in a container that stays.

use lazaret_tests::{Lazaret, start};

use super::bundle::Bundle;
use super::footprint::Footprint;

/// A container's ways through life, by number.
const ROUND: &str = r"
set -e
round=$1; bundle=$2; id=abuse-round-$round
lazaret-oci create --bundle $bundle --pid-file $bundle/pid $id >/dev/null </dev/null
case $((round % 5)) in
0) lazaret-oci delete $id ;;
1)  lazaret-oci start $id
    lazaret-oci kill $id KILL
    until lazaret-oci state $id | grep -q stopped; do sleep 0.1; done
    lazaret-oci delete $id ;;
2)  lazaret-oci start $id
    lazaret-oci exec $id true
    lazaret-oci delete --force $id ;;
3)  lazaret-oci start $id
    lazaret-oci pause $id
    lazaret-oci delete --force $id ;;
4)  lazaret-oci start $id
    lazaret-oci exec --detach --pid-file $bundle/exec.pid $id sleep 1000 >/dev/null </dev/null
    kill -KILL $(cat $bundle/pid)
    until lazaret-oci state $id | grep -q stopped; do sleep 0.1; done
    lazaret-oci delete $id ;;
esac
";

/// What a container that stays goes through in between.
const EXECS: &str = r#"
set -e
bundle=$1; id=$2
[ "$(lazaret-oci exec $id echo out)" = out ]
[ "$(echo in | lazaret-oci exec $id cat)" = in ]
! lazaret-oci exec $id /no/such/program 2>/dev/null
lazaret-oci exec --detach --pid-file $bundle/exec.pid $id true >/dev/null </dev/null
while kill -0 $(cat $bundle/exec.pid) 2>/dev/null; do sleep 0.1; done
lazaret-oci ps $id >/dev/null
lazaret-oci events --stats $id >/dev/null
lazaret-oci pause $id
lazaret-oci resume $id
"#;

fn rounds(lazaret: &Lazaret, count: u32) {
    let staying = Bundle::new(lazaret, "staying", "sleep 100000");
    let coming = Bundle::new(lazaret, "coming", "sleep 100000");
    let parent = staying.start();
    let round = lazaret.file("round", ROUND);
    let execs = lazaret.file("execs", EXECS);
    let go = |number: u32| {
        lazaret.sh(&format!("bash {execs} {} {}", staying.path, staying.id));
        lazaret.sh(&format!("bash {round} {number} {}", coming.path));
    };
    // Directories that stay are made by the first.
    go(4);
    let before = Footprint::of(lazaret);
    (0..count).for_each(go);
    before.assert_again(lazaret);
    staying.call(&["delete", "--force"], &[]).success();
    assert_eq!(parent.ended(), "signal 9");
}

#[test]
fn nothing_grows() {
    let lazaret = start!("abuse-rounds");
    rounds(&lazaret, 5);
}

#[test]
#[ignore = "takes minutes: make test-full"]
fn nothing_grows_in_fifty_rounds() {
    let lazaret = start!("abuse-fifty-rounds");
    rounds(&lazaret, 50);
}
