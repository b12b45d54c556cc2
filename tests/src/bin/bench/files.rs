//! Files and disks in a container of Docker's: a directory of the host through virtio-fs against
//! runc's bind mount, which is the host's own file system, and a loop device of the host in a block
//! slot against the device itself. By fio; what backs both is memory, so that the way to it is what
//! is measured.

use anyhow::Context;
use lazaret_tests::{Kind, Machine, setup};
use serde_json::Value;

use crate::clock::Clock;
use crate::figure::Figure;

const RUNTIMES: [&str; 2] = ["lazaret", "runc"];

/// fio's name, what it is, and its block size.
const JOBS: [(&str, &str, &str); 4] = [
    ("read", "sequential read", "1m"),
    ("write", "sequential write", "1m"),
    ("randread", "random read", "4k"),
    ("randwrite", "random write", "4k"),
];

/// A directory or a device to measure.
struct Place {
    name: &'static str,
    /// Docker's option.
    option: &'static str,
    /// fio's file. Devices go without a page cache, the container's or the host's; files have the
    /// container's, which is empty at first.
    file: &'static str,
}

const PLACES: [Place; 2] = [
    Place {
        name: "volume",
        option: "-v $directory:/data",
        file: "--filename=/data/file --size=32m --direct=0",
    },
    Place {
        name: "block device",
        option: "--device=$device:/dev/bench",
        file: "--filename=/dev/bench --size=32m --direct=1 --invalidate=0",
    },
];

const SET_UP: &str = "set -e
directory=$(mktemp -d -p /dev/shm)
head -c 32M /dev/zero >$directory/disk
head -c 32M /dev/zero >$directory/file
device=$(losetup --find --show $directory/disk)
trap 'losetup --detach $device; rm -rf $directory' EXIT
";

pub(crate) fn measure(machine: &Machine, clock: Clock) -> anyhow::Result<Vec<Figure>> {
    setup::ready(machine, Kind::Docker).context("Docker")?;
    let mut figures = Vec::new();
    for place in &PLACES {
        for runtime in RUNTIMES {
            let script = script(place, runtime);
            let observed = machine
                .shell(&script)
                .with_context(|| format!("{runtime}, {}", place.name))?;
            figures.extend(read(place, runtime, &observed, clock)?);
        }
    }
    Ok(figures)
}

/// One container does all jobs, with the machine's own fio.
fn script(place: &Place, runtime: &str) -> String {
    let Place { option, file, .. } = place;
    let jobs: Vec<_> = JOBS
        .iter()
        .map(|(job, _, size)| {
            // Enough random blocks for a figure; of the whole file the lab would take minutes.
            let amount = if size.ends_with('k') {
                "--io_size=4m"
            } else {
                ""
            };
            format!(
                "fio --name={job} --rw={job} --bs={size} {amount} {file} \
                 --ioengine=psync --randrepeat=1 --output-format=json"
            )
        })
        .collect();
    let jobs = jobs.join(" && ");
    format!(
        "{SET_UP}docker run --rm --network=none --runtime={runtime} -v /usr:/usr:ro \
         -v /usr/lib:/lib:ro -v /usr/lib64:/lib64:ro {option} busybox sh -c '{jobs}'"
    )
}

fn read(
    place: &Place,
    runtime: &'static str,
    observed: &str,
    clock: Clock,
) -> anyhow::Result<Vec<Figure>> {
    let reports: Vec<Value> = serde_json::Deserializer::from_str(observed)
        .into_iter()
        .collect::<Result<_, _>>()
        .with_context(|| format!("fio says: {observed:.400}"))?;
    anyhow::ensure!(reports.len() == JOBS.len(), "{} reports", reports.len());
    let mut figures = Vec::new();
    for ((job, what, size), report) in JOBS.iter().zip(&reports) {
        let direction = job.trim_start_matches("rand");
        let number = |field: &str| {
            let value = report.pointer(&format!("/jobs/0/{direction}/{field}"));
            let value = value.and_then(Value::as_f64);
            value.with_context(|| format!("{field} of {job} in {report}"))
        };
        let (value, unit) = if size.ends_with('k') {
            (number("iops")?, clock.operations())
        } else {
            (number("bw_bytes")? / f64::from(1 << 20), clock.mebibytes())
        };
        let name = format!("{}, {what} {size}", place.name);
        figures.push(Figure::of(runtime, name, value, unit));
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_fio_are_read() {
        let report = r#"{"jobs": [{"read": {"bw_bytes": 1048576, "iops": 7.5},
                                   "write": {"bw_bytes": 2097152, "iops": 8.5}}]}"#;
        let figures = read(&PLACES[0], "runc", &report.repeat(4), Clock::Time).unwrap();
        let values: Vec<_> = figures.iter().map(|figure| figure.value).collect();
        assert_eq!(values, [1.0, 2.0, 7.5, 8.5]);
        assert!(read(&PLACES[0], "runc", report, Clock::Time).is_err());
    }
}
