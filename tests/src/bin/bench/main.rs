//! Measures what lazaret costs, beside runc, crun and gVisor on the same root file system in the
//! same run: time to a ready agent, time of `run … true` and `docker run`, host memory of an idle
//! sandbox, VM exits, TCP, files and disks. Prints a table and writes
//! `target/bench/latest.json`. Arguments, if there are any, are the groups to measure; after
//! `--keep` the file keeps the figures that it has of others.

mod attempt;
mod clock;
mod docker;
mod figure;
mod files;
mod network;
mod peers;
mod sandbox;

use std::io::Write;
use std::path::Path;

use anyhow::{Context, anyhow, ensure};
use clock::Clock;
use figure::{Figure, median};
use lazaret_tests::Machine;
use serde_json::Value;

/// Measured runs of each command; figures are their median.
const RUNS: usize = 7;

/// Runs before those: caches are to be warm.
const WARM_UP: usize = 2;

type Measure = fn(&Machine, Clock) -> anyhow::Result<Vec<Figure>>;

const GROUPS: [(&str, Measure); 5] = [
    ("sandbox", sandbox::measure),
    ("run", peers::measure),
    ("docker", docker::measure),
    ("network", network::measure),
    ("files", files::measure),
];

fn main() -> anyhow::Result<()> {
    let machine = Machine::find().map_err(|reason| anyhow!(reason))?;
    let clock = Clock::of(machine);
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    let keep = wanted.first().is_some_and(|option| option == "--keep");
    wanted.drain(..usize::from(keep));
    for name in &wanted {
        let known = GROUPS.iter().any(|(group, _)| name == group);
        ensure!(known, "no figures called {name:?}");
    }
    let mut figures = Vec::new();
    for (group, measure) in GROUPS {
        if wanted.is_empty() || wanted.iter().any(|name| name == group) {
            figures.extend(measure(machine, clock).context(group)?);
        }
    }

    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", figure::table(&figures))?;
    if clock == Clock::Instructions {
        writeln!(
            stdout,
            "lab ms: a million instructions of the emulated processor, host and guest together"
        )?;
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/latest.json");
    write_json(&file, &figures, keep).with_context(|| file.display().to_string())
}

fn write_json(file: &Path, figures: &[Figure], keep: bool) -> anyhow::Result<()> {
    let directory = file.parent().context("it is in a directory")?;
    std::fs::create_dir_all(directory)?;
    let mut array: Vec<Value> = if keep {
        serde_json::from_slice(&std::fs::read(file)?)?
    } else {
        Vec::new()
    };
    array.retain(|old| figures.iter().all(|new| old["name"] != new.name.as_str()));
    array.extend(figures.iter().map(Figure::to_json));
    std::fs::write(file, serde_json::to_string_pretty(&array)? + "\n")?;
    Ok(())
}

/// Runs a command again and again; the median of its times, in milliseconds.
fn time(machine: &Machine, clock: Clock, command: &str) -> anyhow::Result<f64> {
    let script = format!(
        r"begin=$EPOCHREALTIME
        {command} </dev/null >/dev/null || exit
        end=$EPOCHREALTIME
        echo $((${{end/./}} - ${{begin/./}}))"
    );
    let mut microseconds = Vec::new();
    for run in 0..WARM_UP + RUNS {
        let time: f64 = attempt::shell(machine, clock, &script)?.trim().parse()?;
        if run >= WARM_UP {
            microseconds.push(time);
        }
    }
    Ok(median(microseconds)? / 1000.0)
}
