//! `linux.resources` as writes to version 2 files. Pure, so that every rule is
//! tested without a kernel. What version 2 cannot express is refused by name.
//! Device rules are not files: see [`super::devices`].

use std::fmt::Display;

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources,
    LinuxThrottleDevice,
};

use crate::failure::{Failure, Result};

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

/// What a cgroup is limited to already: an update may depend on what it leaves out.
#[derive(Debug, Default)]
pub(super) struct Current {
    /// `memory.max`, unless there is no limit.
    pub(super) memory: Option<i64>,
    /// The first word of `cpu.max`.
    pub(super) cpu_quota: Option<String>,
}

pub(super) fn settings(resources: &LinuxResources, current: &Current) -> Result<Vec<Setting>> {
    let mut all = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_settings(memory, current, &mut all)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_settings(cpu, current, &mut all)?;
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
        huge_page_settings(limit, &mut all)?;
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
    for (device, limits) in resources.rdma().iter().flatten() {
        let count = |name: &str, count: Option<u32>| {
            count.map_or_else(String::new, |count| format!(" {name}={count}"))
        };
        let (handles, objects) = (limits.hca_handles(), limits.hca_objects());
        let line = format!(
            "{device}{}{}",
            count("hca_handle", handles),
            count("hca_object", objects)
        );
        all.push(setting("resources.rdma", "rdma.max", line));
    }
    for (file, value) in resources.unified().iter().flatten() {
        let of_the_core = file.starts_with("cgroup.") && !file.starts_with("cgroup.max.");
        if file.contains('/') || of_the_core || !file.contains('.') {
            return Err(Failure::invalid(format!(
                "resources.unified has no place for {file:?}"
            )));
        }
        let name = format!("resources.unified {file}");
        all.push(setting(&name, file.as_str(), value));
    }
    Ok(all)
}

fn huge_page_settings(limit: &LinuxHugepageLimit, all: &mut Vec<Setting>) -> Result<()> {
    let size = limit.page_size();
    if !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Failure::invalid(format!("page size {size:?} is no size")));
    }
    let value = max_if_negative(limit.limit());
    let used = format!("hugetlb.{size}.max");
    all.push(setting("hugepageLimits", used, &value));
    all.push(Setting {
        // Older kernels count no reservations.
        met_when_absent: true,
        ..setting("hugepageLimits", format!("hugetlb.{size}.rsvd.max"), value)
    });
    Ok(())
}

/// `memory.kernel` and `memory.kernelTCP` are counted in `memory.limit` by version 2,
/// as in runc.
fn memory_settings(memory: &LinuxMemory, current: &Current, all: &mut Vec<Setting>) -> Result<()> {
    let given = |value: Option<i64>| value.filter(|&value| value != 0);
    refuse("memory.swappiness", memory.swappiness().is_some())?;
    refuse(
        "memory.disableOOMKiller",
        memory.disable_oom_killer() == Some(true),
    )?;
    // Version 2 always counts what is below as well.
    refuse("memory.useHierarchy", memory.use_hierarchy() == Some(false))?;
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
    // No limit on memory is none on swap, unless that has its own.
    let swap = given(memory.swap()).or(limit.filter(|&limit| limit < 0));
    if let Some(swap) = swap {
        let limit = limit.or(current.memory);
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

fn cpu_settings(cpu: &LinuxCpu, current: &Current, all: &mut Vec<Setting>) -> Result<()> {
    refuse(
        "cpu.realtimeRuntime",
        cpu.realtime_runtime().is_some_and(|time| time != 0),
    )?;
    refuse(
        "cpu.realtimePeriod",
        cpu.realtime_period().is_some_and(|time| time != 0),
    )?;
    if let Some(idle) = cpu.idle() {
        all.push(setting("cpu.idle", "cpu.idle", idle));
    }
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
        all.push(setting("cpu.shares", "cpu.weight", weight_of(shares)));
    }
    if cpu.burst().is_some() {
        // A burst above the quota would stand in the quota's way.
        all.push(setting("cpu.burst", "cpu.max.burst", 0));
    }
    let quota = cpu.quota().filter(|&quota| quota != 0).map(max_if_negative);
    match (quota, cpu.period().filter(|&period| period != 0)) {
        // A quota alone leaves the period as it is.
        (Some(quota), None) => all.push(setting("cpu.quota", "cpu.max", quota)),
        (quota, Some(period)) => {
            let quota = quota.or_else(|| current.cpu_quota.clone());
            let quota = quota.unwrap_or_else(|| "max".to_owned());
            all.push(setting(
                "cpu.period",
                "cpu.max",
                format!("{quota} {period}"),
            ));
        }
        (None, None) => {}
    }
    if let Some(burst) = cpu.burst().filter(|&burst| burst != 0) {
        all.push(setting("cpu.burst", "cpu.max.burst", burst));
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

/// Weights of 10 to 1000 onto 1 to 10000.
fn io_weight_of(weight: u16) -> u64 {
    1 + (u64::from(weight).clamp(10, 1000) - 10) * 9_999 / 990
}

fn io_settings(io: &LinuxBlockIo, all: &mut Vec<Setting>) -> Result<()> {
    refuse(
        "blockIO.leafWeight",
        io.leaf_weight().is_some_and(|weight| weight != 0),
    )?;
    if let Some(weight) = io.weight().filter(|&weight| weight != 0) {
        let line = format!("default {}", io_weight_of(weight));
        all.push(setting("blockIO.weight", "io.weight", line));
    }
    for device in io.weight_device().iter().flatten() {
        refuse(
            "blockIO.weightDevice.leafWeight",
            device.leaf_weight().is_some_and(|weight| weight != 0),
        )?;
        if let Some(weight) = device.weight().filter(|&weight| weight != 0) {
            let (major, minor) = (device.major(), device.minor());
            let line = format!("{major}:{minor} {}", io_weight_of(weight));
            all.push(setting("blockIO.weightDevice", "io.weight", line));
        }
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
        updated(resources, &Current::default())
    }

    fn updated(resources: Value, current: &Current) -> Result<Vec<Setting>> {
        settings(
            &serde_json::from_value(resources).expect("resources"),
            current,
        )
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
            pair("cpu.max", "max"),
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
        for file in ["../memory.max", "cgroup.procs", "cgroup.kill", "x"] {
            parse(json!({ "unified": { file: "1" } })).expect_err(file);
        }
        let written = written(json!({ "unified": { "memory.high": "5" } }));
        assert_eq!(written, [pair("memory.high", "5")]);
    }

    #[test]
    fn update_goes_on_from_what_is_set() {
        let current = Current {
            memory: Some(1000),
            cpu_quota: Some("5000".to_owned()),
        };
        let written = |resources| {
            let all = updated(resources, &current).expect("all supported");
            let all = all.into_iter().map(|one| (one.file, one.value));
            all.collect::<Vec<_>>()
        };
        let swap = written(json!({ "memory": { "swap": 1500 } }));
        assert_eq!(swap, [pair("memory.swap.max", "500")]);
        let period = written(json!({ "cpu": { "period": 20_000 } }));
        assert_eq!(period, [pair("cpu.max", "5000 20000")]);
        let quota = written(json!({ "cpu": { "quota": 7000 } }));
        assert_eq!(quota, [pair("cpu.max", "7000")]);
    }

    #[test]
    fn unlimited_memory_means_unlimited_swap() {
        let written = written(json!({ "memory": { "limit": -1 } }));
        let expected = [pair("memory.max", "max"), pair("memory.swap.max", "max")];
        assert_eq!(written, expected);
    }

    #[test]
    fn burst_never_stands_in_the_way_of_the_quota() {
        let written = written(json!({ "cpu": { "quota": 2000, "burst": 1000, "idle": 0 } }));
        let expected = [
            pair("cpu.idle", "0"),
            pair("cpu.max.burst", "0"),
            pair("cpu.max", "2000"),
            pair("cpu.max.burst", "1000"),
        ];
        assert_eq!(written, expected);
    }

    #[test]
    fn block_devices_have_weights_and_rates() {
        let device = |name: &str, value: u64| json!([{ "major": 8, "minor": 0, name: value }]);
        let written = written(json!({ "blockIO": {
            "weight": 10, "weightDevice": device("weight", 1000),
            "throttleReadBpsDevice": device("rate", 1), "throttleWriteBpsDevice": device("rate", 2),
            "throttleReadIOPSDevice": device("rate", 3), "throttleWriteIOPSDevice": device("rate", 0),
        } }));
        let expected = [
            pair("io.weight", "default 1"),
            pair("io.weight", "8:0 10000"),
            pair("io.max", "8:0 rbps=1"),
            pair("io.max", "8:0 wbps=2"),
            pair("io.max", "8:0 riops=3"),
            pair("io.max", "8:0 wiops=max"),
        ];
        assert_eq!(written, expected);
    }

    #[test]
    fn huge_pages_and_rdma_have_their_files() {
        let written = written(json!({
            "hugepageLimits": [{ "pageSize": "2MB", "limit": 4096 }],
            "rdma": { "mlx5_1": { "hcaHandles": 3, "hcaObjects": 5 } },
        }));
        let expected = [
            pair("hugetlb.2MB.max", "4096"),
            pair("hugetlb.2MB.rsvd.max", "4096"),
            pair("rdma.max", "mlx5_1 hca_handle=3 hca_object=5"),
        ];
        assert_eq!(written, expected);
    }

    #[test]
    fn what_version_2_lacks_is_refused_by_name() {
        for (resources, name) in [
            (json!({ "memory": { "swappiness": 60 } }), "swappiness"),
            (
                json!({ "memory": { "disableOOMKiller": true } }),
                "disableOOMKiller",
            ),
            (
                json!({ "memory": { "useHierarchy": false } }),
                "useHierarchy",
            ),
            (
                json!({ "cpu": { "realtimeRuntime": 1 } }),
                "realtimeRuntime",
            ),
            (json!({ "cpu": { "realtimePeriod": 1 } }), "realtimePeriod"),
            (json!({ "blockIO": { "leafWeight": 10 } }), "leafWeight"),
            (json!({ "network": { "classID": 1 } }), "classID"),
            (
                json!({ "network": { "priorities": [{ "name": "eth0", "priority": 1 }] } }),
                "priorities",
            ),
        ] {
            let failure = parse(resources).expect_err(name);
            assert!(failure.message.contains(name), "{failure}");
        }
    }
}
