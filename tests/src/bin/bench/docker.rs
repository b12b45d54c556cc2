//! `docker run --rm … true` from command to exit, with the OCI runtimes that Docker is given.

use anyhow::Context;
use lazaret_tests::{Kind, Machine, setup};

use crate::clock::Clock;
use crate::figure::Figure;
use crate::time;

const RUNTIMES: [&str; 3] = ["lazaret", "runc", "runsc"];

pub(crate) fn measure(machine: &Machine, clock: Clock) -> anyhow::Result<Vec<Figure>> {
    let unit = clock.milliseconds();
    setup::ready(machine, Kind::Docker).context("Docker")?;
    let mut figures = Vec::new();
    for runtime in RUNTIMES {
        let command = format!("docker run --rm --runtime={runtime} busybox true");
        let value = time(machine, clock, &command).context(runtime)?;
        figures.push(Figure::of(
            runtime,
            "docker run --rm true, command to exit",
            value,
            unit,
        ));
    }
    Ok(figures)
}
