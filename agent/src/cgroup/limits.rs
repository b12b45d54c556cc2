//! `linux.resources` as writes to version 2 files. Pure, so that every rule is
//! tested without a kernel. What version 2 cannot express is refused by name.
//! Device rules are not files: see [`super::devices`].

use std::fmt::Display;

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources, LinuxThrottleDevice,
};

use crate::failure::{Failure, Result};

const DEFAULT_PERIOD_USEC: u64 = 100_000;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// As the spec calls it, for messages.
    pub(super) name: String,
    pub(super) file: String,
    pub(super) value: String,
    /// A kernel without the file keeps to the limit anyway.
    pub(super) met_when_absent: bool,
}

fn setting(name: &str, file: impl Into<String>, value: impl Display) -> Setting {
    Setting {
        name: name.to_owned(),
        file: file.into(),
        value: value.to_string(),
        met_when_absent: false,
    }
}

pub(super) fn settings(resources: &LinuxResources) -> Result<Vec<Setting>> {
    let mut all = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_settings(memory, &mut all)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_settings(cpu, &mut all)?;
    }
    if let Some(limit) = resources.pids().as_ref().map(LinuxPids::limit)
        && limit != 0
    {
        all.push(setting("pids.limit", "pids.max", max_if_negative(limit)));
    }
    if let Some(io) = resources.block_io() {
        io_settings(io, &mut all)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = limit.page_size();
        if !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Failure::invalid(format!("page size {size:?} is no size")));
        }
        let file = format!("hugetlb.{size}.max");
        all.push(setting(
            "hugepageLimits",
            file,
            max_if_negative(limit.limit()),
        ));
    }
    if let Some(network) = resources.network() {
        refuse(
            "resources.network.classID",
            network.class_id().is_some_and(|id| id != 0),
        )?;
        let priorities = network.priorities().as_ref();
        refuse(
            "resources.network.priorities",
            priorities.is_some_and(|list| !list.is_empty()),
        )?;
    }
    let rdma = resources.rdma().as_ref();
    refuse(
        "resources.rdma",
        rdma.is_some_and(|limits| !limits.is_empty()),
    )?;
    for (file, value) in resources.unified().iter().flatten() {
        if file.contains('/') || file.starts_with("cgroup.") || !file.contains('.') {
            return Err(Failure::invalid(format!(
                "resources.unified has no place for {file:?}"
            )));
        }
        all.push(setting("resources.unified", file.as_str(), value));
    }
    Ok(all)
}

fn memory_settings(memory: &LinuxMemory, all: &mut Vec<Setting>) -> Result<()> {
    let given = |value: Option<i64>| value.filter(|&value| value != 0);
    refuse(
        "memory.kernel",
        given(memory.kernel()).is_some_and(|limit| limit > 0),
    )?;
    refuse(
        "memory.kernelTCP",
        given(memory.kernel_tcp()).is_some_and(|limit| limit > 0),
    )?;
    refuse("memory.swappiness", memory.swappiness().is_some())?;
    refuse(
        "memory.disableOOMKiller",
        memory.disable_oom_killer() == Some(true),
    )?;
    let limit = given(memory.limit());
    if let Some(limit) = limit {
        all.push(setting(
            "memory.limit",
            "memory.max",
            max_if_negative(limit),
        ));
    }
    if let Some(reservation) = given(memory.reservation()) {
        all.push(setting(
            "memory.reservation",
            "memory.low",
            max_if_negative(reservation),
        ));
    }
    if let Some(swap) = given(memory.swap()) {
        all.push(Setting {
            // Without swap in the kernel, no container can use more of it than allowed.
            met_when_absent: true,
            ..setting("memory.swap", "memory.swap.max", swap_alone(swap, limit)?)
        });
    }
    Ok(())
}

/// The spec counts memory and swap together, version 2 counts swap alone.
fn swap_alone(swap: i64, limit: Option<i64>) -> Result<String> {
    if swap < 0 {
        return Ok("max".to_owned());
    }
    let limit = limit
        .filter(|&limit| limit > 0)
        .ok_or_else(|| Failure::invalid("memory.swap needs a memory.limit that it includes"))?;
    let alone = swap.checked_sub(limit).filter(|&alone| alone >= 0);
    alone.map(|alone| alone.to_string()).ok_or_else(|| {
        Failure::invalid(format!("memory.swap {swap} is below memory.limit {limit}"))
    })
}

fn cpu_settings(cpu: &LinuxCpu, all: &mut Vec<Setting>) -> Result<()> {
    refuse(
        "cpu.realtimeRuntime",
        cpu.realtime_runtime().is_some_and(|time| time != 0),
    )?;
    refuse(
        "cpu.realtimePeriod",
        cpu.realtime_period().is_some_and(|time| time != 0),
    )?;
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
        all.push(setting("cpu.shares", "cpu.weight", weight_of(shares)));
    }
    let quota = cpu.quota().filter(|&quota| quota != 0);
    let period = cpu.period().filter(|&period| period != 0);
    if quota.is_some() || period.is_some() {
        let quota = max_if_negative(quota.unwrap_or(-1));
        let period = period.unwrap_or(DEFAULT_PERIOD_USEC);
        all.push(setting("cpu.quota", "cpu.max", format!("{quota} {period}")));
    }
    if let Some(burst) = cpu.burst() {
        all.push(setting("cpu.burst", "cpu.max.burst", burst));
    }
    if let Some(idle) = cpu.idle() {
        all.push(setting("cpu.idle", "cpu.idle", idle));
    }
    let list = |list: &Option<String>| list.clone().filter(|list| !list.is_empty());
    if let Some(cpus) = list(cpu.cpus()) {
        all.push(setting("cpu.cpus", "cpuset.cpus", cpus));
    }
    if let Some(mems) = list(cpu.mems()) {
        all.push(setting("cpu.mems", "cpuset.mems", mems));
    }
    Ok(())
}

/// Shares of 2 to 262144 onto weights of 1 to 10000, as runc and systemd map them.
fn weight_of(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

fn io_settings(io: &LinuxBlockIo, all: &mut Vec<Setting>) -> Result<()> {
    refuse(
        "blockIO.leafWeight",
        io.leaf_weight().is_some_and(|weight| weight != 0),
    )?;
    if let Some(weight) = io.weight().filter(|&weight| weight != 0) {
        // Weights of 10 to 1000 onto 1 to 10000.
        let weight = 1 + (u64::from(weight).clamp(10, 1000) - 10) * 9_999 / 990;
        all.push(setting("blockIO.weight", "io.weight", weight));
    }
    for device in io.weight_device().iter().flatten() {
        refuse(
            "blockIO.weightDevice",
            device.weight().is_some() || device.leaf_weight().is_some(),
        )?;
    }
    let mut throttle = |key: &str, name: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        for device in devices.iter().flatten() {
            let (major, minor, rate) = (device.major(), device.minor(), device.rate());
            let rate = if rate == 0 {
                "max".to_owned()
            } else {
                rate.to_string()
            };
            all.push(setting(
                name,
                "io.max",
                format!("{major}:{minor} {key}={rate}"),
            ));
        }
    };
    throttle(
        "rbps",
        "blockIO.throttleReadBpsDevice",
        io.throttle_read_bps_device(),
    );
    throttle(
        "wbps",
        "blockIO.throttleWriteBpsDevice",
        io.throttle_write_bps_device(),
    );
    throttle(
        "riops",
        "blockIO.throttleReadIOPSDevice",
        io.throttle_read_iops_device(),
    );
    throttle(
        "wiops",
        "blockIO.throttleWriteIOPSDevice",
        io.throttle_write_iops_device(),
    );
    Ok(())
}

fn max_if_negative(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

fn refuse(setting: &str, present: bool) -> Result<()> {
    if present {
        Err(Failure::unsupported(setting))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(resources: Value) -> Result<Vec<Setting>> {
        settings(&serde_json::from_value(resources).expect("resources"))
    }

    fn written(resources: Value) -> Vec<(String, String)> {
        let all = parse(resources).expect("all supported");
        all.into_iter().map(|one| (one.file, one.value)).collect()
    }

    fn pair(file: &str, value: &str) -> (String, String) {
        (file.to_owned(), value.to_owned())
    }

    #[test]
    fn docker_limits_become_version_2_files() {
        let written = written(json!({
            "memory": { "limit": 1 << 20, "swap": 2 << 20, "reservation": 4096 },
            "cpu": { "quota": 150_000, "period": 100_000, "shares": 1024, "cpus": "0-1" },
            "pids": { "limit": 100 },
        }));
        let expected = [
            pair("memory.max", "1048576"),
            pair("memory.low", "4096"),
            pair("memory.swap.max", "1048576"),
            pair("cpu.weight", "39"),
            pair("cpu.max", "150000 100000"),
            pair("cpuset.cpus", "0-1"),
            pair("pids.max", "100"),
        ];
        assert_eq!(written, expected);
    }

    #[test]
    fn negative_means_no_limit_and_zero_means_not_given() {
        let written = written(json!({
            "memory": { "limit": -1, "swap": -1, "reservation": 0 },
            "cpu": { "quota": -1, "shares": 0 },
            "pids": { "limit": -1 },
        }));
        let expected = [
            pair("memory.max", "max"),
            pair("memory.swap.max", "max"),
            pair("cpu.max", "max 100000"),
            pair("pids.max", "max"),
        ];
        assert_eq!(written, expected);
    }

    #[test]
    fn shares_span_the_range_of_weights() {
        assert_eq!(weight_of(2), 1);
        assert_eq!(weight_of(262_144), 10_000);
        assert_eq!(weight_of(u64::MAX), 10_000);
    }

    #[test]
    fn swap_below_memory_is_refused() {
        let failure = parse(json!({ "memory": { "limit": 4096, "swap": 1 } }));
        assert!(
            failure
                .expect_err("refused")
                .message
                .contains("memory.swap 1")
        );
    }

    #[test]
    fn unified_stays_in_its_directory() {
        for file in ["../memory.max", "cgroup.procs", "x"] {
            parse(json!({ "unified": { file: "1" } })).expect_err(file);
        }
        let written = written(json!({ "unified": { "memory.high": "5" } }));
        assert_eq!(written, [pair("memory.high", "5")]);
    }
}
