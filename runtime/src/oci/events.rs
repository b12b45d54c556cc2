//! `lazaret-oci events`: what a container uses, and that it ran out of memory,
//! one JSON object a line in runc's form.

use std::process::ExitCode;
use std::time::Duration;

use containerd_shim_protos::cgroups_v2::metrics::{
    IOEntry, MemoryStat, Metrics, PSIData, PSIStats,
};
use protobuf::Message;
use serde_json::{Map, Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::container::Container;
use super::failure::{Failure, OciError};
use super::record::Status;
use super::state::print;
use super::{Host, runtime};
use crate::task_client::Task;

/// Show what a container uses, and when it runs out of memory
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Time between two looks, such as 500ms or 5s
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    interval: Duration,
    /// Print the figures once and exit
    #[arg(long)]
    stats: bool,
    /// Id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Args {
    pub(super) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let container = Container::find(host, &self.container)?;
        if matches!(container.status(host)?, Status::Stopped | Status::Creating) {
            let text = format!("container with id {} is not running", self.container);
            return Err(OciError::Invalid(text).into());
        }
        let runtime = runtime()?;
        let done = runtime.block_on(async {
            let task = container.connect(host).await?;
            if self.stats {
                let metrics = figures(&task).await?;
                return print(&event("stats", &self.container, Some(stats(&metrics))));
            }
            self.follow(&task).await
        });
        runtime.shutdown_background();
        done.map_err(|err| container.explain(host, err))?;
        Ok(ExitCode::SUCCESS)
    }

    /// Until the container's end.
    async fn follow(&self, task: &Task) -> Result<(), OciError> {
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first is due at once.
        ticks.tick().await;
        let end = task.wait("");
        tokio::pin!(end);
        let mut kills = kills(&figures(task).await?);
        loop {
            tokio::select! {
                _ = &mut end => return Ok(()),
                _ = ticks.tick() => {}
            }
            let metrics = match figures(task).await {
                // It is on its way out.
                Err(OciError::Task(_)) => continue,
                result => result?,
            };
            let now = self::kills(&metrics);
            if now > kills {
                print(&event("oom", &self.container, None))?;
            }
            kills = now;
            print(&event("stats", &self.container, Some(stats(&metrics))))?;
        }
    }
}

/// Durations as Go writes them, whole ones.
fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|err| err.to_string())?;
    if duration.is_zero() {
        return Err("duration interval must be greater than 0".to_owned());
    }
    Ok(duration)
}

async fn figures(task: &Task) -> Result<Metrics, OciError> {
    let figures = task.stats().await?;
    Metrics::parse_from_bytes(&figures.value)
        .map_err(|err| OciError::Invalid(format!("the sandbox's figures are not valid: {err}")))
}

fn kills(metrics: &Metrics) -> u64 {
    metrics.memory_events.oom_kill
}

fn event(kind: &str, id: &str, data: Option<Value>) -> String {
    let mut event = json!({ "type": kind, "id": id });
    if let Some(data) = data {
        event["data"] = data;
    }
    event.to_string()
}

/// Microseconds as nanoseconds, which runc has.
fn ns(usec: u64) -> u64 {
    usec.saturating_mul(1000)
}

fn stats(metrics: &Metrics) -> Value {
    let (cpu, memory, pids) = (&metrics.cpu, &metrics.memory, &metrics.pids);
    let mut stats = json!({
        "cpu": {
            "usage": {
                "total": ns(cpu.usage_usec),
                "kernel": ns(cpu.system_usec),
                "user": ns(cpu.user_usec),
            },
            "throttling": {
                "periods": cpu.nr_periods,
                "throttledPeriods": cpu.nr_throttled,
                "throttledTime": ns(cpu.throttled_usec),
            },
        },
        "memory": {
            "cache": memory.file,
            "usage": entry(memory.usage, memory.usage_limit, memory.max_usage, kills(metrics)),
            "swap": entry(memory.swap_usage, memory.swap_limit, memory.swap_max_usage, 0),
            "kernel": entry(0, 0, 0, 0),
            "kernelTCP": entry(0, 0, 0, 0),
            "raw": raw(memory),
            "event_count": {
                "low": metrics.memory_events.low,
                "high": metrics.memory_events.high,
                "max": metrics.memory_events.max,
                "oom": metrics.memory_events.oom,
                "oom_kill": metrics.memory_events.oom_kill,
            },
        },
        "pids": { "current": pids.current, "limit": pids.limit },
        "blkio": blkio(&metrics.io.usage),
        "hugetlb": hugetlb(metrics),
        "intel_rdt": {},
        "network_interfaces": null,
    });
    for (part, psi) in [
        ("cpu", &cpu.psi),
        ("memory", &memory.psi),
        ("blkio", &metrics.io.psi),
    ] {
        if let Some(psi) = psi.as_ref() {
            stats[part]["psi"] = pressure(psi);
        }
    }
    stats
}

fn entry(usage: u64, limit: u64, max: u64, failures: u64) -> Value {
    json!({ "usage": usage, "limit": limit, "max": max, "failcnt": failures })
}

/// `memory.stat` under the kernel's names.
fn raw(memory: &MemoryStat) -> Value {
    json!({
        "anon": memory.anon,
        "file": memory.file,
        "kernel_stack": memory.kernel_stack,
        "slab": memory.slab,
        "sock": memory.sock,
        "shmem": memory.shmem,
        "file_mapped": memory.file_mapped,
        "file_dirty": memory.file_dirty,
        "file_writeback": memory.file_writeback,
        "anon_thp": memory.anon_thp,
        "inactive_anon": memory.inactive_anon,
        "active_anon": memory.active_anon,
        "inactive_file": memory.inactive_file,
        "active_file": memory.active_file,
        "unevictable": memory.unevictable,
        "slab_reclaimable": memory.slab_reclaimable,
        "slab_unreclaimable": memory.slab_unreclaimable,
        "pgfault": memory.pgfault,
        "pgmajfault": memory.pgmajfault,
    })
}

fn blkio(devices: &[IOEntry]) -> Value {
    let rows = |of: fn(&IOEntry) -> [(&'static str, u64); 2]| {
        let rows = devices.iter().flat_map(|device| {
            of(device).map(|(op, value)| {
                json!({ "major": device.major, "minor": device.minor, "op": op, "value": value })
            })
        });
        rows.collect::<Vec<_>>()
    };
    if devices.is_empty() {
        return json!({});
    }
    json!({
        "ioServiceBytesRecursive": rows(|it| [("Read", it.rbytes), ("Write", it.wbytes)]),
        "ioServicedRecursive": rows(|it| [("Read", it.rios), ("Write", it.wios)]),
    })
}

fn hugetlb(metrics: &Metrics) -> Value {
    let sizes = metrics.hugetlb.iter().map(|size| {
        let value = json!({ "usage": size.current, "max": size.max, "failcnt": size.failcnt });
        (size.pagesize.clone(), value)
    });
    Value::Object(sizes.collect::<Map<_, _>>())
}

fn pressure(psi: &PSIStats) -> Value {
    let data = |data: &PSIData| {
        json!({
            "avg10": data.avg10, "avg60": data.avg60, "avg300": data.avg300, "total": data.total,
        })
    };
    let mut pressure = json!({});
    for (name, one) in [("some", &psi.some), ("full", &psi.full)] {
        if let Some(one) = one.as_ref() {
            pressure[name] = data(one);
        }
    }
    pressure
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::cgroups_v2::metrics::{CPUStat, PidsStat};
    use protobuf::MessageField;

    use super::*;

    #[test]
    fn figures_are_where_runc_has_them() {
        let metrics = Metrics {
            cpu: MessageField::some(CPUStat {
                usage_usec: 3,
                psi: MessageField::some(PSIStats {
                    some: MessageField::some(PSIData {
                        total: 5,
                        ..PSIData::default()
                    }),
                    ..PSIStats::default()
                }),
                ..CPUStat::default()
            }),
            memory: MessageField::some(MemoryStat {
                usage: 10,
                usage_limit: 20,
                ..MemoryStat::default()
            }),
            pids: MessageField::some(PidsStat {
                current: 2,
                ..PidsStat::default()
            }),
            ..Metrics::default()
        };
        let stats = stats(&metrics);
        assert_eq!(stats["cpu"]["usage"]["total"], 3000);
        assert_eq!(stats["cpu"]["psi"]["some"]["total"], 5);
        assert_eq!(stats["memory"]["usage"]["limit"], 20);
        assert_eq!(stats["pids"]["current"], 2);
        let line: Value = serde_json::from_str(&event("stats", "a", Some(stats))).unwrap();
        assert_eq!((&line["type"], &line["id"]), (&json!("stats"), &json!("a")));
        let oom: Value = serde_json::from_str(&event("oom", "a", None)).unwrap();
        assert_eq!(oom, json!({ "type": "oom", "id": "a" }));
    }

    #[test]
    fn an_interval_is_some_time() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["0s", "", "fast"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
