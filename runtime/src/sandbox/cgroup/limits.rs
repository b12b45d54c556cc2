//! A spec's `linux.resources` as far as they have a meaning outside the guest, in
//! the files of a cgroup (v2).
//!
//! Processor time, processors and block I/O are the host's to give: its numbers of
//! processors and devices mean nothing in a guest. Memory and processes are bounded
//! in both places, and outside by what the microVM as a whole may take.

use serde_json::Value;

/// Limits of a sandbox on its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupLimits {
    /// In the order in which they are to be written.
    pub settings: Vec<Setting>,
    /// Of `cpu.max`, in microseconds, where the quota is to stay.
    pub cpu_period: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub file: &'static str,
    pub value: String,
    /// What is written instead, and where, if the kernel has this file.
    pub rather: Option<(&'static str, String)>,
}

impl CgroupLimits {
    pub fn set(&mut self, file: &'static str, value: impl Into<String>) {
        self.settings.push(Setting {
            file,
            value: value.into(),
            rather: None,
        });
    }

    /// The weight of all devices, or of one. The scheduler BFQ has its own file, and takes
    /// the specification's range as it is.
    fn set_io_weight(&mut self, devices: &str, weight: u64) {
        self.settings.push(Setting {
            file: "io.weight",
            value: format!("{devices} {}", io_weight(weight)),
            rather: Some(("io.bfq.weight", format!("{devices} {weight}"))),
        });
    }

    /// What of `linux.resources` is the host's to give.
    pub fn of_resources(resources: &Value) -> Self {
        let mut limits = Self::default();
        limits.memory(&resources["memory"]);
        limits.cpu(&resources["cpu"]);
        limits.block_io(&resources["blockIO"]);
        limits
    }

    fn memory(&mut self, memory: &Value) {
        let amount = |key: &str| memory[key].as_u64().filter(|bytes| *bytes > 0);
        if let Some(reservation) = amount("reservation") {
            self.set("memory.low", reservation.to_string());
        }
        if let (Some(limit), Some(swap)) = (amount("limit"), amount("swap")) {
            self.set("memory.swap.max", swap.saturating_sub(limit).to_string());
        }
    }

    fn cpu(&mut self, cpu: &Value) {
        if let Some(idle) = cpu["idle"].as_i64() {
            self.set("cpu.idle", idle.to_string());
        }
        if let Some(shares) = cpu["shares"].as_u64().filter(|shares| *shares != 0) {
            self.set("cpu.weight", weight_of_shares(shares).to_string());
        }
        let quota = cpu["quota"].as_i64().filter(|quota| *quota != 0);
        let quota = quota.map(|quota| match u64::try_from(quota) {
            Ok(quota) => quota.to_string(),
            Err(_) => "max".to_owned(),
        });
        let period = cpu["period"].as_u64().filter(|period| *period != 0);
        match (quota, period) {
            // A quota alone leaves the period as it is.
            (Some(quota), None) => self.set("cpu.max", quota),
            (Some(quota), Some(period)) => self.set("cpu.max", format!("{quota} {period}")),
            (None, period) => self.cpu_period = period,
        }
        if let Some(burst) = cpu["burst"].as_u64() {
            self.set("cpu.max.burst", burst.to_string());
        }
        for (key, file) in [("cpus", "cpuset.cpus"), ("mems", "cpuset.mems")] {
            if let Some(list) = cpu[key].as_str().filter(|list| !list.is_empty()) {
                self.set(file, list);
            }
        }
    }

    fn block_io(&mut self, io: &Value) {
        if let Some(weight) = io["weight"].as_u64().filter(|weight| *weight != 0) {
            self.set_io_weight("default", weight);
        }
        for entry in io["weightDevice"].as_array().into_iter().flatten() {
            if let Some(weight) = entry["weight"].as_u64().filter(|weight| *weight != 0) {
                self.set_io_weight(&numbers(entry), weight);
            }
        }
        for (list, key) in [
            ("throttleReadBpsDevice", "rbps"),
            ("throttleWriteBpsDevice", "wbps"),
            ("throttleReadIOPSDevice", "riops"),
            ("throttleWriteIOPSDevice", "wiops"),
        ] {
            for limited in io[list].as_array().into_iter().flatten() {
                let rate = match limited["rate"].as_u64() {
                    None | Some(0) => "max".to_owned(),
                    Some(rate) => rate.to_string(),
                };
                self.set("io.max", format!("{} {key}={rate}", numbers(limited)));
            }
        }
    }

    /// The first setting that nothing but a cgroup of the host can honour.
    pub fn needs_host(&self) -> Option<&'static str> {
        let mut files = self.settings.iter().map(|setting| setting.file);
        files.find(|file| file.starts_with("cpuset.") || file.starts_with("io."))
    }
}

/// Takes from `linux.resources` what is honoured outside, and would be wrong inside.
pub fn remove_host_limits(resources: &mut Value) {
    if let Some(cpu) = resources.get_mut("cpu").and_then(Value::as_object_mut) {
        cpu.remove("cpus");
        cpu.remove("mems");
    }
    if let Some(resources) = resources.as_object_mut() {
        resources.remove("blockIO");
    }
}

/// How many processors a list such as `0-2,7` names.
pub fn count_cpus(list: &str) -> Option<u32> {
    let mut count = 0_u32;
    for part in list.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let from: u32 = from.trim().parse().ok()?;
        let to: u32 = to.trim().parse().ok()?;
        count = count.checked_add(to.checked_sub(from)?.checked_add(1)?)?;
    }
    Some(count)
}

fn numbers(device: &Value) -> String {
    let number = |key: &str| device[key].as_u64().unwrap_or_default();
    format!("{}:{}", number("major"), number("minor"))
}

/// The mapping that runc and crun use from cgroup v1 shares (2 to 262,144).
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

/// Weights of 10 to 1000 onto 1 to 10,000, as in runc.
fn io_weight(weight: u64) -> u64 {
    1 + (weight.clamp(10, 1000) - 10) * 9_999 / 990
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn files(resources: &Value) -> Vec<String> {
        let limits = CgroupLimits::of_resources(resources).settings;
        let line = |setting: Setting| format!("{} = {}", setting.file, setting.value);
        limits.into_iter().map(line).collect()
    }

    #[test]
    fn what_the_host_gives_is_written_there() {
        let device = |key: &str, value: u64| json!([{ "major": 8, "minor": 16, key: value }]);
        let resources = json!({
            "cpu": {
                "shares": 1024, "quota": 150_000, "period": 100_000, "burst": 10_000,
                "cpus": "0-1", "mems": "0",
            },
            "blockIO": {
                "weight": 500, "weightDevice": device("weight", 10),
                "throttleReadBpsDevice": device("rate", 4096),
                "throttleWriteIOPSDevice": device("rate", 0),
            },
            "memory": { "limit": 10, "swap": 30, "reservation": 5 }, "pids": { "limit": 1 },
        });
        assert_eq!(
            files(&resources),
            [
                "memory.low = 5",
                "memory.swap.max = 20",
                "cpu.weight = 39",
                "cpu.max = 150000 100000",
                "cpu.max.burst = 10000",
                "cpuset.cpus = 0-1",
                "cpuset.mems = 0",
                "io.weight = default 4950",
                "io.weight = 8:16 1",
                "io.max = 8:16 rbps=4096",
                "io.max = 8:16 wiops=max",
            ]
        );
    }

    #[test]
    fn what_engines_leave_at_zero_is_not_asked_for() {
        let zeros = json!({
            "cpu": { "shares": 0, "quota": 0, "period": 0, "cpus": "", "mems": "" },
            "blockIO": { "weight": 0 },
        });
        assert_eq!(files(&zeros), Vec::<String>::new());
        assert_eq!(files(&json!({ "cpu": { "quota": -1 } })), ["cpu.max = max"]);
    }

    #[test]
    fn limits_of_the_host_do_not_reach_the_guest() {
        let mut resources = json!({
            "cpu": { "quota": 1, "cpus": "7" }, "blockIO": { "weight": 10 },
        });
        let host = CgroupLimits::of_resources(&resources);
        assert_eq!(host.needs_host(), Some("cpuset.cpus"));
        remove_host_limits(&mut resources);
        assert_eq!(resources, json!({ "cpu": { "quota": 1 } }));
        assert_eq!(CgroupLimits::of_resources(&resources).needs_host(), None);
    }

    #[test]
    fn processors_are_counted() {
        for (list, count) in [
            ("0", Some(1)),
            ("0-3,7", Some(5)),
            ("3-1", None),
            ("", None),
            ("0-4294967295", None),
        ] {
            assert_eq!(count_cpus(list), count, "{list}");
        }
    }

    #[test]
    fn shares_become_a_weight() {
        for (shares, weight) in [(2, 1), (1024, 39), (262_144, 10_000), (0, 1)] {
            assert_eq!(weight_of_shares(shares), weight);
        }
    }
}
