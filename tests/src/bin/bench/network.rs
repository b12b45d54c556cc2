//! TCP between a container of Docker's default network and the host: lazaret's tap against the veth
//! pair of a runc container, both ways.

use anyhow::Context;
use lazaret_tests::{Kind, Machine, probe, setup};

use crate::clock::Clock;
use crate::figure::Figure;

const RUNTIMES: [&str; 2] = ["lazaret", "runc"];

const DIRECTORY: &str = "/var/tmp/lazaret-bench";

/// What goes each way, and the bytes that are waited for.
const BYTES: u32 = 32 << 20;
const ROUNDS: u32 = 500;

/// The container is the client, the host serves at the network's gateway.
const OBSERVE: &str = r"set -e
address=$(docker network inspect --format '{{range .IPAM.Config}}{{.Gateway}}{{end}}' bridge):5201
coproc server { exec $probe tcp-serve $address; }
trap 'kill $server_PID' EXIT
read -r listening <&${server[0]}
docker run --rm --runtime=$runtime -v $probe:/probe:ro busybox /probe tcp-measure $address $bytes $rounds
";

pub(crate) fn measure(machine: &Machine, clock: Clock) -> anyhow::Result<Vec<Figure>> {
    setup::ready(machine, Kind::Docker).context("Docker")?;
    let probe = probe::put(machine, DIRECTORY);
    let mut figures = Vec::new();
    for runtime in RUNTIMES {
        let script =
            format!("runtime={runtime} probe={probe} bytes={BYTES} rounds={ROUNDS}\n{OBSERVE}");
        let observed = machine.shell(&script).context(runtime)?;
        figures.extend(read(runtime, &observed, clock)?);
    }
    machine.shell(&format!("rm -r {DIRECTORY}"))?;
    Ok(figures)
}

/// Throughput each way, and the latency of a byte.
fn read(runtime: &'static str, observed: &str, clock: Clock) -> anyhow::Result<Vec<Figure>> {
    let value = |key: &str| -> anyhow::Result<f64> {
        let line = observed.lines().find_map(|line| line.strip_prefix(key));
        let value = line.with_context(|| format!("no {key:?} in {observed:?}"))?;
        Ok(value.trim().parse()?)
    };
    let throughput = |name, key| -> anyhow::Result<Figure> {
        Ok(Figure::of(
            runtime,
            name,
            value(key)? / f64::from(1 << 20),
            clock.mebibytes(),
        ))
    };
    Ok(vec![
        throughput("TCP, container to host", "sent ")?,
        throughput("TCP, host to container", "received ")?,
        Figure::of(
            runtime,
            "TCP, one way of a byte",
            value("latency ")?,
            clock.microseconds(),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_probe_are_read() {
        let observed = "sent 2097152.0\nreceived 1048576.0\nlatency 1500.0\n";
        let figures = read("runc", observed, Clock::Time).unwrap();
        let values: Vec<_> = figures.iter().map(|figure| figure.value).collect();
        assert_eq!(values, [2.0, 1.0, 1500.0]);
        assert!(read("runc", "sent 1\n", Clock::Time).is_err());
    }
}
