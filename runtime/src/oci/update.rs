//! `lazaret-oci update`: changes limits of a running container, in the guest
//! and on the host.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::bundle::{parse_json, read_json};
use super::container::Container;
use super::failure::{Failure, OciError};
use super::record::Status;
use super::{Host, runtime};

/// Change limits of a container
#[derive(Debug, Default, clap::Args)]
pub(super) struct Args {
    /// File with the limits as JSON (linux.resources of config.json), or - for standard
    /// input; the other flags have no effect then
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Weight of the container's I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// CPU period in microseconds, 0 for the default
    #[arg(long, value_name = "US")]
    cpu_period: Option<u64>,
    /// CPU time in each period in microseconds
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// CPU time that may be saved up for a burst, in microseconds
    #[arg(long, value_name = "US")]
    cpu_burst: Option<u64>,
    /// CPU weight relative to other containers
    #[arg(long, value_name = "SHARES")]
    cpu_share: Option<u64>,
    /// Real-time CPU period in microseconds
    #[arg(long, value_name = "US")]
    cpu_rt_period: Option<u64>,
    /// Real-time CPU time in each period in microseconds
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_rt_runtime: Option<i64>,
    /// 1 to run when no other wants the CPU, 0 for the default
    #[arg(long, value_name = "0|1")]
    cpu_idle: Option<i64>,
    /// CPUs to use
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Memory limit, in bytes or with a unit; -1 for none
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_hyphen_values = true)]
    memory: Option<i64>,
    /// Memory that is kept from reclaim, in bytes or with a unit; -1 for none
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_hyphen_values = true)]
    memory_reservation: Option<i64>,
    /// Limit of memory and swap together, in bytes or with a unit; -1 for none
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Limit of processes; -1 for none
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Obsolete: refused, as the kernel does
    #[arg(long, value_name = "BYTES", hide = true)]
    kernel_memory: Option<String>,
    /// Obsolete: refused, as the kernel does
    #[arg(long, value_name = "BYTES", hide = true)]
    kernel_memory_tcp: Option<String>,
    /// Intel RDT: refused, a guest has none
    #[arg(long, value_name = "SCHEMA", hide = true)]
    l3_cache_schema: Option<String>,
    /// Intel RDT: refused, a guest has none
    #[arg(long, value_name = "SCHEMA", hide = true)]
    mem_bw_schema: Option<String>,
    /// Id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Args {
    pub(super) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let container = Container::find(host, &self.container)?;
        let resources = self.resources()?;
        match container.status(host)? {
            Status::Created | Status::Running | Status::Paused => {}
            Status::Creating | Status::Stopped => return Err(OciError::NotRunning.into()),
        }
        let runtime = runtime()?;
        let done = runtime.block_on(async {
            let task = container.connect(host).await?;
            Ok::<_, OciError>(task.update(&resources).await?)
        });
        runtime.shutdown_background();
        done.map_err(|err| container.explain(host, err))?;
        Ok(ExitCode::SUCCESS)
    }

    fn resources(&self) -> Result<Value, OciError> {
        let resources = match &self.resources {
            Some(path) if path == Path::new("-") => parse_json(io::stdin(), path)?,
            Some(path) => read_json(path)?,
            None => self.of_flags()?,
        };
        if resources.is_object() {
            Ok(unlimited_swap_with_memory(resources))
        } else {
            Err(OciError::Invalid(
                "resources are not a JSON object".to_owned(),
            ))
        }
    }

    fn of_flags(&self) -> Result<Value, OciError> {
        for (flag, value) in [
            ("--kernel-memory", &self.kernel_memory),
            ("--kernel-memory-tcp", &self.kernel_memory_tcp),
        ] {
            if value.is_some() {
                return Err(OciError::Unsupported(flag, "cgroup v2 has no such limit"));
            }
        }
        for (flag, value) in [
            ("--l3-cache-schema", &self.l3_cache_schema),
            ("--mem-bw-schema", &self.mem_bw_schema),
        ] {
            if value.is_some() {
                return Err(OciError::Unsupported(flag, "a guest has no Intel RDT"));
            }
        }
        let mut resources = json!({});
        let mut set = |part: &str, field: &str, value: Option<Value>| {
            if let Some(value) = value {
                resources[part][field] = value;
            }
        };
        set("blockIO", "weight", self.blkio_weight.map(Into::into));
        set("cpu", "period", self.cpu_period.map(Into::into));
        set("cpu", "quota", self.cpu_quota.map(Into::into));
        set("cpu", "burst", self.cpu_burst.map(Into::into));
        set("cpu", "shares", self.cpu_share.map(Into::into));
        set("cpu", "realtimePeriod", self.cpu_rt_period.map(Into::into));
        set(
            "cpu",
            "realtimeRuntime",
            self.cpu_rt_runtime.map(Into::into),
        );
        set("cpu", "idle", self.cpu_idle.map(Into::into));
        set("cpu", "cpus", self.cpuset_cpus.clone().map(Into::into));
        set("cpu", "mems", self.cpuset_mems.clone().map(Into::into));
        set("memory", "limit", self.memory.map(Into::into));
        set(
            "memory",
            "reservation",
            self.memory_reservation.map(Into::into),
        );
        set("memory", "swap", self.memory_swap.map(Into::into));
        set("pids", "limit", self.pids_limit.map(Into::into));
        Ok(resources)
    }
}

/// Memory without a limit means swap without one, where nothing is said of swap.
fn unlimited_swap_with_memory(mut resources: Value) -> Value {
    let memory = &mut resources["memory"];
    if memory.is_null() {
        // Indexing has made room for what is not there.
        if let Some(all) = resources.as_object_mut() {
            all.remove("memory");
        }
    } else if memory["limit"] == -1 && memory.get("swap").is_none_or(Value::is_null) {
        memory["swap"] = json!(-1);
    }
    resources
}

/// Bytes as Docker's units have them: `512m`, `1.5G`, `100kb`; -1 for no limit.
fn bytes(text: &str) -> Result<i64, String> {
    if text == "-1" {
        return Ok(-1);
    }
    let invalid = || format!("{text:?} is not a size such as 512m");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = text[digits.len()..].trim().to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let unit = unit.strip_suffix('i').unwrap_or(unit);
    let factor: f64 = match unit {
        "" => 1.0,
        "k" => 1024.0,
        "m" => 1_048_576.0,
        "g" => 1_073_741_824.0,
        "t" => 1_099_511_627_776.0,
        "p" => 1_125_899_906_842_624.0,
        _ => return Err(invalid()),
    };
    if let (Ok(number), 1.0) = (digits.parse::<i64>(), factor) {
        return if number < 0 {
            Err(invalid())
        } else {
            Ok(number)
        };
    }
    let number: f64 = digits.parse().map_err(|_| invalid())?;
    let total = number * factor;
    if !(0.0..9.0e18).contains(&total) {
        return Err(invalid());
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "in range, and parts of a byte do not count"
    )]
    Ok(total as i64)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &[&str]) -> Args {
        let line = ["update"].iter().chain(line);
        Line::try_parse_from(line).unwrap().args
    }

    #[test]
    fn sizes_have_dockers_units() {
        for (text, number) in [
            ("0", 0),
            ("1024", 1024),
            ("-1", -1),
            ("512m", 512 << 20),
            ("512MB", 512 << 20),
            ("1.5g", 3 << 29),
            ("2 KiB", 2048),
        ] {
            assert_eq!(bytes(text), Ok(number), "{text}");
        }
        for text in ["", "m", "1x", "-2", "1e30g", "nan"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn flags_become_the_resources_they_name_and_nothing_else() {
        let resources = args(&[
            "--cpu-quota",
            "-1",
            "--cpu-period=100000",
            "--memory",
            "64m",
            "--pids-limit",
            "20",
            "--cpuset-cpus",
            "0-1",
            "box",
        ])
        .resources()
        .unwrap();
        let expected = json!({
            "cpu": { "quota": -1, "period": 100_000, "cpus": "0-1" },
            "memory": { "limit": 64 << 20 },
            "pids": { "limit": 20 },
        });
        assert_eq!(resources, expected);
        assert_eq!(args(&["box"]).resources().unwrap(), json!({}));
    }

    #[test]
    fn memory_without_limit_is_swap_without_limit() {
        let resources = args(&["--memory", "-1", "box"]).resources().unwrap();
        assert_eq!(resources, json!({ "memory": { "limit": -1, "swap": -1 } }));
        let resources = args(&["--memory=-1", "--memory-swap=0", "box"])
            .resources()
            .unwrap();
        assert_eq!(resources, json!({ "memory": { "limit": -1, "swap": 0 } }));
    }

    #[test]
    fn a_file_has_the_last_word_and_must_be_an_object() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resources.json");
        let path = path.to_str().unwrap();
        std::fs::write(path, r#"{"pids":{"limit":3}}"#).unwrap();
        let line = ["-r", path, "--memory", "1g", "box"];
        assert_eq!(
            args(&line).resources().unwrap(),
            json!({ "pids": { "limit": 3 } })
        );
        std::fs::write(path, "[]").unwrap();
        assert!(args(&line).resources().is_err());
    }

    #[test]
    fn what_no_guest_has_is_refused_by_name() {
        for flag in ["--kernel-memory", "--l3-cache-schema", "--mem-bw-schema"] {
            let err = args(&[flag, "1", "box"]).resources().unwrap_err();
            assert!(err.to_string().starts_with(flag), "{err}");
        }
    }
}
