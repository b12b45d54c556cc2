//! A sandbox from the inside: its boot, the host memory of its processes, its VM exits. Read off
//! `sandbox.log` and `/proc`.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use lazaret_tests::Machine;

use crate::clock::Clock;
use crate::figure::{Figure, median};
use crate::{RUNS, WARM_UP, attempt};

/// Boots an idle sandbox, prints what its processes take, ends it, prints its whole log, which a
/// descriptor keeps although the file goes with the sandbox. Guest RAM is the one mapping that is
/// as large as it.
const OBSERVE: &str = r#"set -e
id=$(lazaret run -d --memory 128m busybox sleep 100000)
cd /run/lazaret/sandboxes/$id
exec 3<sandbox.log
memory=$(grep -o 'memory_mib=[0-9]*' sandbox.log | cut -d = -f 2)
for pid in $(jq '.pid, .vmm_pid' state.json); do
    awk -v name=$(cat /proc/$pid/comm) -v memory=$memory '
        /^Size:/ { guest = $2 >= memory * 1024 }
        /^Pss:/ { if (guest) ram += $2; else own += $2 }
        END { print "pss", name, own + 0, ram + 0 }' /proc/$pid/smaps
done
cd /
lazaret stop -t 0 $id >/dev/null
lazaret rm $id >/dev/null
cat <&3
"#;

pub(crate) fn measure(machine: &Machine, clock: Clock) -> anyhow::Result<Vec<Figure>> {
    let unit = clock.milliseconds();
    let mut boots = Vec::new();
    let mut last = String::new();
    for run in 0..WARM_UP + RUNS {
        last = attempt::shell(machine, clock, OBSERVE)?;
        let microseconds: f64 = field(&last, "boot_us=").context("boot_us")?.parse()?;
        if run >= WARM_UP {
            boots.push(microseconds / 1000.0);
        }
    }
    let mut figures = vec![Figure::own(
        "start of lazaret-vmm to agent ready",
        median(boots)?,
        unit,
    )];
    figures.extend(memory(&last)?);
    figures.extend(exits(&last)?);
    Ok(figures)
}

/// What follows `key` in a log line, up to a space.
fn field<'a>(log: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = log.split_once(key)?;
    rest.split(char::is_whitespace).next()
}

/// Proportional memory of each process of an idle 128 MiB sandbox, guest RAM apart.
fn memory(observed: &str) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let (mut own, mut guest) = (0.0, 0.0);
    for line in observed
        .lines()
        .filter_map(|line| line.strip_prefix("pss "))
    {
        let fields: Vec<_> = line.split(' ').collect();
        let [process, kib, guest_kib] = fields[..] else {
            anyhow::bail!("{line:?} is not a process and two sizes");
        };
        let mib = kib.parse::<f64>()? / 1024.0;
        figures.push(Figure::own(
            format!("idle sandbox, PSS of {process}"),
            mib,
            "MiB",
        ));
        own += mib;
        guest += guest_kib.parse::<f64>()? / 1024.0;
    }
    ensure!(guest > 0.0, "no process maps the guest's memory");
    figures.push(Figure::own(
        "idle sandbox, PSS of all processes",
        own,
        "MiB",
    ));
    figures.push(Figure::own("idle sandbox, guest RAM in use", guest, "MiB"));
    Ok(figures)
}

/// VM exits to the monitor from power-on to power-off, by kind: `vm_exits=[("hlt", 12), …]`.
fn exits(log: &str) -> anyhow::Result<Vec<Figure>> {
    let (_, list) = log.split_once("vm_exits=[").context("vm_exits")?;
    let (list, _) = list.split_once(']').context("the end of vm_exits")?;
    let mut kinds = BTreeMap::new();
    for pair in list.split("), (") {
        let (kind, count) = pair
            .trim_matches(['(', ')'])
            .rsplit_once(", ")
            .context("a pair")?;
        kinds.insert(kind.trim_matches('"').to_owned(), count.parse::<f64>()?);
    }
    let total = kinds.values().sum();
    let mut figures: Vec<_> = kinds
        .into_iter()
        .map(|(kind, count)| Figure::own(format!("VM exits, {kind}"), count, "exits"))
        .collect();
    figures.push(Figure::own("VM exits, all", total, "exits"));
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_records_are_read() {
        let log = "… agent ready boot_us=1234 x=1\n… vm_exits=[(\"hlt\", 2), (\"io\", 40)] end\n";
        assert_eq!(field(log, "boot_us="), Some("1234"));
        let exits = exits(log).unwrap();
        let shown: Vec<_> = exits
            .iter()
            .map(|exit| (exit.name.as_str(), exit.value))
            .collect();
        assert_eq!(
            shown,
            [
                ("VM exits, hlt", 2.0),
                ("VM exits, io", 40.0),
                ("VM exits, all", 42.0)
            ]
        );
    }

    #[test]
    fn guest_memory_is_apart() {
        let figures = memory("pss containerd-shim 1024 0\npss lazaret-vmm 2048 4096\n").unwrap();
        let values: Vec<_> = figures.iter().map(|figure| figure.value).collect();
        assert_eq!(values, [1.0, 2.0, 3.0, 4.0]);
        assert!(memory("pss lazaret-vmm 2048 0\n").is_err());
    }
}
