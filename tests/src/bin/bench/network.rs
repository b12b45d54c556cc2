//! TCP between a container of Docker's default network and the host: lazaret's tap against the veth
//! pair of a runc container, both ways, by qperf.

use std::fmt::Write;

use anyhow::Context;
use lazaret_tests::{Kind, Machine, setup};

use crate::clock::Clock;
use crate::figure::Figure;

const RUNTIMES: [&str; 2] = ["lazaret", "runc"];

/// Seconds of the machine's clock for each measurement.
const SECONDS: u32 = 2;

/// Prints `from to test value`, in bytes a second and microseconds. The container has the machine's
/// own programs, for its image has no qperf. Who has the server is told what to send by the client.
const OBSERVE: &str = r#"set -e
name=lazaret-bench
container() { docker run --rm --runtime=$runtime --name=$name -v /usr:/usr:ro "$@"; }
figures() { sed -n 's/^ *\(bw\|latency\) *= *\([0-9,.]*\).*/\1 \2/p' | tr -d , | sed "s/^/$1 /"; }
host=$(docker network inspect --format '{{range .IPAM.Config}}{{.Gateway}}{{end}}' bridge)
qperf >/dev/null & server=$!
trap 'kill $server; docker rm -f $name >/dev/null 2>&1 || true' EXIT
container debian qperf -uu -t $seconds $host tcp_bw tcp_lat | figures container-to-host
kill $server; wait $server || true
container -d debian qperf >/dev/null
address=$(docker inspect --format '{{.NetworkSettings.IPAddress}}' $name)
until qperf -t 1 $address conf >/dev/null 2>&1; do docker inspect $name >/dev/null; done
qperf -uu -t $seconds $address tcp_bw | figures host-to-container
docker rm -f $name >/dev/null
trap - EXIT
"#;

pub(crate) fn measure(machine: &Machine, clock: Clock) -> anyhow::Result<Vec<Figure>> {
    setup::ready(machine, Kind::Docker).context("Docker")?;
    setup::debian(machine, Kind::Docker).context("image debian")?;
    let mut figures = Vec::new();
    for runtime in RUNTIMES {
        let mut script = String::new();
        writeln!(script, "runtime={runtime} seconds={SECONDS}")?;
        script += OBSERVE;
        let observed = machine.shell(&script).context(runtime)?;
        figures.extend(read(runtime, &observed, clock)?);
    }
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
        throughput("TCP, container to host", "container-to-host bw")?,
        throughput("TCP, host to container", "host-to-container bw")?,
        Figure::of(
            runtime,
            "TCP, one way of a byte",
            value("container-to-host latency")?,
            clock.microseconds(),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_qperf_are_read() {
        let observed = "container-to-host bw 2097152\ncontainer-to-host latency 1500\nhost-to-container bw 1048576\n";
        let figures = read("runc", observed, Clock::Time).unwrap();
        let values: Vec<_> = figures.iter().map(|figure| figure.value).collect();
        assert_eq!(values, [2.0, 1.0, 1500.0]);
        assert!(read("runc", "container-to-host bw 1\n", Clock::Time).is_err());
    }
}
