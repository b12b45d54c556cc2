//! `run true` from command to exit: lazaret and three OCI runtimes, one root file system.

use anyhow::Context;
use lazaret_tests::Machine;

use crate::clock::Clock;
use crate::figure::Figure;
use crate::time;

const NAME: &str = "run true, command to exit";

const BUNDLE: &str = "/var/tmp/lazaret-bench";

/// The command lines; each is given a bundle, and a container id that is free again after it.
const PEERS: [(&str, &str); 3] = [
    ("crun", "crun run --bundle $bundle bench"),
    ("runc", "runc run --bundle $bundle bench"),
    (
        "runsc",
        "runsc --platform=kvm --network=none run --bundle $bundle bench",
    ),
];

pub(crate) fn measure(machine: &Machine, clock: Clock) -> anyhow::Result<Vec<Figure>> {
    let unit = clock.milliseconds();
    make_bundle(machine).context("bundle for the other runtimes")?;
    let own = time(machine, clock, "lazaret run --rm busybox true").context("lazaret")?;
    let mut figures = vec![Figure::own(NAME, own, unit)];
    for (subject, command) in PEERS {
        let command = command.replace("$bundle", BUNDLE);
        let value = time(machine, clock, &command).context(subject)?;
        figures.push(Figure {
            name: NAME.to_owned(),
            value,
            unit,
            subject,
            peer: true,
        });
    }
    machine.shell(&format!("rm -rf {BUNDLE}"))?;
    Ok(figures)
}

/// The layer of the image that lazaret runs, unpacked, with the settings that runc proposes.
fn make_bundle(machine: &Machine) -> anyhow::Result<()> {
    let image = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/busybox-image");
    machine.shell(&format!(
        r#"set -eo pipefail
        rm -rf {BUNDLE}; mkdir -p {BUNDLE}/rootfs; cd {BUNDLE}
        {image} image.tar
        tar -xOf image.tar --wildcards '*/layer.tar' | tar -x -C rootfs
        runc spec
        jq '.process.terminal = false | .process.args = ["true"] | .root.readonly = false' \
            config.json >new && mv new config.json"#
    ))?;
    Ok(())
}
